//! Three members of etcd, each in a namespace of its own on one bridge.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use weir::config::model::{EtcdEndpoint, EtcdServers};
use weir::control::etcd::wire::Keys;
use weir::control::etcd::{Client, Settings};

use crate::common::netns::{Bridge, Netns};
use crate::common::{command, directory_in_memory, find, have, may_make_namespaces, run, wait_until};

pub const PATIENCE: Duration = Duration::from_secs(20);

const MEMBERS: usize = 3;

/// What the tests need; says so if it is not there.
pub fn possible() -> bool {
    may_make_namespaces() && have(&["etcd", "etcdctl"])
}

pub struct Member {
    pub netns: Netns,
    /// Its end of the cable on the bridge.
    pub port: String,
    pub address: String,
    child: Mutex<Option<Child>>,
}

pub struct Cluster {
    pub bridge: Bridge,
    pub members: Vec<Member>,
    dir: tempfile::TempDir,
    secure: bool,
    /// Whoever asks has to be a user.
    users: bool,
}

impl Cluster {
    pub fn start() -> Cluster {
        Cluster::with(false)
    }

    /// TLS with certificates on both sides, and users with passwords: `weir` may use `/weir/`, `nobody` may nothing.
    pub fn secure() -> Cluster {
        let mut cluster = Cluster::with(true);
        for line in [
            "user add root:root",
            "user grant-role root root",
            "user add weir:pass",
            "role add weir",
            "role grant-permission weir readwrite /weir/ /weir0",
            "user grant-role weir weir",
            "user add nobody:pass",
            "auth enable",
        ] {
            let words: Vec<&str> = line.split(' ').collect();
            cluster.etcdctl(&words);
        }
        cluster.users = true;
        cluster
    }

    fn with(secure: bool) -> Cluster {
        let dir = directory_in_memory("weir-etcd-");
        let bridge = Bridge::new();
        let members = (0..MEMBERS).map(|i| {
            let netns = Netns::new(&format!("etcd{i}"));
            let address = format!("10.8.0.{}", 11 + i);
            let port = bridge.plug(&netns, &format!("{address}/24"));
            Member {
                netns,
                port,
                address,
                child: Mutex::default(),
            }
        });
        let cluster = Cluster {
            members: members.collect(),
            bridge,
            dir,
            secure,
            users: false,
        };
        if secure {
            cluster.make_certificates();
        }
        for i in 0..MEMBERS {
            cluster.launch(i);
        }
        cluster.wait_ready();
        cluster
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file that only its owner may read.
    pub fn private(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    fn make_certificates(&self) {
        let names: Vec<String> = self.members.iter().map(|m| format!("IP:{}", m.address)).collect();
        let names = names.join(",");
        // etcd's own gateway presents the server's certificate to the server: it has to be good for both. And a client's name
        // in its certificate would compete with its user name: the gateway refuses that.
        let script = format!(
            "set -e; cd {dir}
             new='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -batch'
             openssl req -x509 $new -days 2 -subj /CN=ca -keyout ca.key -out ca.pem \
                 -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign
             printf 'subjectAltName={names}\\nextendedKeyUsage=serverAuth,clientAuth\\n' >server.ext
             printf 'extendedKeyUsage=clientAuth\\n' >client.ext
             for one in server client; do
                 openssl req $new -subj /O=$one -keyout $one.key -out $one.csr
                 openssl x509 -req -in $one.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
                     -extfile $one.ext -out $one.pem
                 chmod 600 $one.key
             done",
            dir = self.dir.path().display()
        );
        run(command("sh").args(["-c", &script]));
    }

    fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }

    fn launch(&self, i: usize) {
        let (scheme, dir) = (self.scheme(), self.dir.path());
        let peers: Vec<String> = self
            .members
            .iter()
            .enumerate()
            .map(|(n, m)| format!("m{n}=http://{}:2380", m.address))
            .collect();
        let member = &self.members[i];
        let clients = format!("{scheme}://{}:2379", member.address);
        let among = format!("http://{}:2380", member.address);
        let mut start = member.netns.command("setpriv");
        start.args(["--pdeathsig", "KILL", "--"]).arg(find("etcd").unwrap());
        start.args(["--name", &format!("m{i}"), "--initial-cluster", &peers.join(",")]);
        start.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
        start.args(["--listen-peer-urls", &among, "--initial-advertise-peer-urls", &among]);
        start
            .args(["--logger", "zap", "--data-dir"])
            .arg(dir.join(format!("m{i}")));
        if self.secure {
            let file = |name: &str| dir.join(name);
            start.arg("--client-cert-auth");
            start.arg("--trusted-ca-file").arg(file("ca.pem"));
            start.arg("--cert-file").arg(file("server.pem"));
            start.arg("--key-file").arg(file("server.key"));
        }
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(dir.join(format!("m{i}.log")))
            .unwrap();
        start.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        *self.members[i].child.lock().unwrap() = Some(start.spawn().unwrap());
    }

    fn wait_ready(&self) {
        wait_until("etcd has a leader, and every member knows it", || {
            self.statuses()
                .is_some_and(|all| all.iter().all(|(_, leader)| *leader != 0))
        });
    }

    /// Ends a member without warning.
    pub fn kill(&self, i: usize) {
        let mut child = self.members[i].child.lock().unwrap().take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn restart(&self, i: usize) {
        self.launch(i);
    }

    /// Returns when a process that is to stand still does: its threads end what they are at first.
    pub fn signal(&self, i: usize, signal: Signal) {
        let child = self.members[i].child.lock().unwrap();
        let id = child.as_ref().unwrap().id();
        kill(Pid::from_raw(id as i32), signal).unwrap();
        let stands = || {
            let mut tasks = fs::read_dir(format!("/proc/{id}/task")).unwrap().flatten();
            let state = |path: PathBuf| fs::read_to_string(path.join("stat")).unwrap_or_default();
            tasks.all(|task| state(task.path()).contains(") T "))
        };
        if signal == Signal::SIGSTOP {
            wait_until("it stands still", stands);
        }
    }

    /// Stops these members for a while.
    pub fn stall(&self, members: &[usize], length: Duration) {
        members.iter().for_each(|i| self.signal(*i, Signal::SIGSTOP));
        std::thread::sleep(length);
        members.iter().for_each(|i| self.signal(*i, Signal::SIGCONT));
    }

    /// Runs `etcdctl` beside the first member, as root if there are users.
    pub fn etcdctl(&self, words: &[&str]) -> String {
        let endpoints: Vec<String> = (0..MEMBERS).map(|i| self.endpoint(i)).collect();
        run(self.control(&endpoints.join(",")).args(words))
    }

    fn control(&self, endpoints: &str) -> Command {
        self.control_beside(0, endpoints)
    }

    fn control_beside(&self, member: usize, endpoints: &str) -> Command {
        let mut control = self.members[member].netns.command("etcdctl");
        control.env("ETCDCTL_API", "3").args(["--endpoints", endpoints]);
        if self.secure {
            let file = |name: &str| self.dir.path().join(name);
            control.arg("--cacert").arg(file("ca.pem"));
            control.arg("--cert").arg(file("client.pem"));
            control.arg("--key").arg(file("client.key"));
        }
        if self.users {
            control.args(["--user", "root:root"]);
        }
        control
    }

    fn endpoint(&self, i: usize) -> String {
        format!("{}://{}:2379", self.scheme(), self.members[i].address)
    }

    /// Of every member its own number, and its leader's; none while one does not answer.
    fn statuses(&self) -> Option<Vec<(u64, u64)>> {
        let endpoints: Vec<String> = (0..MEMBERS).map(|i| self.endpoint(i)).collect();
        let mut control = self.control(&endpoints.join(","));
        control.args(["--command-timeout", "2s", "-w", "json", "endpoint", "status"]);
        let output = control.stderr(Stdio::null()).output().unwrap();
        let all: Value = serde_json::from_slice(&output.stdout).ok()?;
        let all = all.as_array().filter(|all| all.len() == MEMBERS)?;
        let number = |value: &Value| value.as_u64().unwrap_or_default();
        let one = |one: &Value| {
            let status = &one["Status"];
            (number(&status["header"]["member_id"]), number(&status["leader"]))
        };
        Some(all.iter().map(one).collect())
    }

    /// Which member leads.
    pub fn leader(&self) -> usize {
        let mut leader = None;
        wait_until("a leader", || {
            leader = self
                .statuses()
                .and_then(|all| all.iter().position(|(own, leader)| own == leader));
            leader.is_some()
        });
        leader.unwrap()
    }

    /// Waits until another one leads while this one is gone, or cut off.
    pub fn leader_among_the_rest(&self, gone: usize) {
        let rest: Vec<usize> = (0..MEMBERS).filter(|i| *i != gone).collect();
        let endpoints: Vec<String> = rest.iter().map(|&i| self.endpoint(i)).collect();
        wait_until("the others have a leader", || {
            let mut control = self.control_beside(rest[0], &endpoints.join(","));
            control.args(["--command-timeout", "2s", "get", "/weir/ready"]);
            control
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .unwrap()
                .success()
        });
    }

    /// Has another member lead.
    pub fn move_leader(&self) {
        let leader = self.leader();
        let Some(all) = self.statuses() else { return };
        let (next, _) = all[(leader + 1) % MEMBERS];
        let mut control = self.control(&self.endpoint(leader));
        // That the leader has changed in between is as good.
        let _ = control.args(["move-leader", &format!("{next:x}")]).output();
    }

    /// How to reach it.
    pub fn servers(&self) -> EtcdServers {
        let file = |name: &str| self.secure.then(|| self.path(name));
        EtcdServers {
            endpoints: self
                .members
                .iter()
                .map(|member| EtcdEndpoint {
                    tls: self.secure,
                    host: member.address.clone(),
                    port: 2379,
                })
                .collect(),
            ca: file("ca.pem"),
            cert: file("client.pem"),
            key: file("client.key"),
            user: None,
            password_file: None,
        }
    }

    /// Runs `test` with a client in a namespace on the bridge.
    pub fn ask<T: Send, F: Future<Output = T>>(
        &self,
        servers: &EtcdServers,
        test: impl FnOnce(Client) -> F + Send,
    ) -> T {
        let settings = Settings::load(servers).unwrap();
        self.members[0].netns.enter(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async { test(Client::new(&settings)).await })
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for i in 0..MEMBERS {
                let log = fs::read_to_string(self.path(&format!("m{i}.log"))).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(20).collect();
                println!("--- member {i}, newest first\n{}", tail.join("\n"));
            }
        }
        for member in &self.members {
            if let Some(mut child) = member.child.lock().unwrap().take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// Waits until a key can be read, with a majority behind it.
pub async fn answers(client: &Client) {
    let key = Keys::One(b"/weir/ready".to_vec());
    let began = std::time::Instant::now();
    while let Err(error) = client.get(&key, PATIENCE).await {
        assert!(began.elapsed() < 2 * PATIENCE, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
