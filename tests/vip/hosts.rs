//! Hosts on a bridge, the node that runs on them, and what is measured about them.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use serde_json::{Value, json};

use weir::sys::netlink::Netlink;
use weir::sys::sched::{monotonic, urgent_thread};

pub const VIP: &str = "10.9.0.100";
pub const VIP6: &str = "fd09::100";

/// The program that is a node, with its arguments; the one place to change when there is another.
pub fn node_command(config: &Path) -> Vec<String> {
    vec![helper(), "run".into(), config.display().to_string()]
}

pub fn helper() -> String {
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_weir"));
    let example = binary.parent().unwrap().join("examples/failover-node");
    example.display().to_string()
}

/// Milliseconds of the clock that all processes share.
pub fn now_ms() -> f64 {
    monotonic().as_secs_f64() * 1000.0
}

pub fn sh(command: &str) -> String {
    let out = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(
        out.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Waits for a condition; how long it took, in milliseconds.
pub fn until(limit_ms: u64, what: &str, mut holds: impl FnMut() -> bool) -> f64 {
    let began = Instant::now();
    while !holds() {
        assert!(
            began.elapsed() < Duration::from_millis(limit_ms),
            "{what}: not within {limit_ms} ms"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    began.elapsed().as_secs_f64() * 1000.0
}

/// Tests that measure run alone; those that only look at who holds what run beside each other.
static ALONE: RwLock<()> = RwLock::new(());

/// Keeps others away for as long as a network is there.
enum Turn {
    Alone { _guard: RwLockWriteGuard<'static, ()> },
    Beside { _guard: RwLockReadGuard<'static, ()> },
}

pub static COUNT: AtomicUsize = AtomicUsize::new(0);

/// A bridge in a namespace of its own, and hosts on it: `10.9.0.N/24`, `fd09::N/64`, N counting from 1.
pub struct Net {
    pub tag: String,
    pub hosts: Vec<&'static str>,
    pub dir: tempfile::TempDir,
    _turn: Turn,
}

impl Net {
    /// For a test that measures.
    pub fn new(hosts: &[&'static str]) -> Net {
        let guard = ALONE.write().unwrap_or_else(|broken| broken.into_inner());
        Net::build(hosts, Turn::Alone { _guard: guard })
    }

    /// For a test that measures nothing.
    pub fn beside(hosts: &[&'static str]) -> Net {
        let guard = ALONE.read().unwrap_or_else(|broken| broken.into_inner());
        Net::build(hosts, Turn::Beside { _guard: guard })
    }

    fn build(hosts: &[&'static str], turn: Turn) -> Net {
        // Who measures must not wait for a CPU longer than who is measured; and nodes inherit it.
        urgent_thread();
        let tag = format!("w{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        fs::write(&secret, "a secret of the test bench").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let net = Net {
            tag,
            hosts: hosts.to_vec(),
            dir,
            _turn: turn,
        };
        let bridge = net.ns("br");
        sh(&format!(
            "ip netns add {bridge} && ip -n {bridge} link add br0 type bridge && ip -n {bridge} link set br0 up"
        ));
        for (i, host) in hosts.iter().enumerate() {
            let (ns, n) = (net.ns(host), i + 1);
            sh(&format!(
                "ip netns add {ns} &&
                 ip link add eth0 netns {ns} type veth peer name p-{host} netns {bridge} &&
                 ip -n {bridge} link set p-{host} master br0 up &&
                 ip -n {ns} link set lo up && ip -n {ns} link set eth0 up &&
                 ip -n {ns} addr add 10.9.0.{n}/24 dev eth0 &&
                 ip -n {ns} addr add fd09::{n}/64 dev eth0 nodad"
            ));
        }
        net
    }

    /// A namespace with pairs of interfaces in it, whose deletion takes the kernel a while.
    pub fn crowd(&self, name: &str, pairs: usize) -> Crowd {
        let ns = self.ns(name);
        sh(&format!("ip netns add {ns}"));
        let batch = self.dir.path().join(name);
        let lines: String = (0..pairs)
            .map(|n| format!("link add v{n} type veth peer name w{n}\n"))
            .collect();
        fs::write(&batch, lines).unwrap();
        sh(&format!("ip -n {ns} -batch {}", batch.display()));
        Crowd { ns }
    }

    pub fn ns(&self, host: &str) -> String {
        format!("{}-{host}", self.tag)
    }

    /// What a node writes to standard error.
    pub fn log(&self, node: &str) -> PathBuf {
        self.dir.path().join(format!("{node}.log"))
    }

    /// Has `witness` answer on port 22; what nodes `a` and `b` are configured with that ask it.
    pub fn witnessed_by(&self, witness: &'static str) -> impl Fn(&str) -> Value {
        let listener = in_ns(&self.ns(witness), || std::net::TcpListener::bind("0.0.0.0:22").unwrap());
        std::thread::spawn(move || for _ in listener.incoming() {});
        move |node| {
            let mut config = self.config(node, &["a", "b"]);
            config["witnesses"] = json!([format!("{}:22", self.address(witness))]);
            config
        }
    }

    pub fn address(&self, host: &str) -> String {
        let n = self.hosts.iter().position(|h| *h == host).unwrap() + 1;
        format!("10.9.0.{n}")
    }

    pub fn mac(&self, host: &str) -> String {
        let shown = sh(&format!("ip -n {} -j link show eth0", self.ns(host)));
        let shown: Value = serde_json::from_str(&shown).unwrap();
        shown[0]["address"].as_str().unwrap().to_string()
    }

    /// The configuration that most tests use: every node of `nodes`, the IPv4 and the IPv6 address, best first as listed.
    pub fn config(&self, node: &str, nodes: &[&str]) -> Value {
        let addresses: serde_json::Map<String, Value> = nodes
            .iter()
            .map(|n| (n.to_string(), json!(format!("{}:7400", self.address(n)))))
            .collect();
        let vip = |address: &str| {
            json!({"address": address, "interface": "eth0", "prefer": nodes, "preempt": true,
                   "preempt_delay_ms": 300, "requires": [0]})
        };
        json!({"node": node, "secret_file": self.dir.path().join("secret"), "nodes": addresses,
               "vips": [vip("10.9.0.100/24"), vip("fd09::100/64")]})
    }

    pub fn write(&self, name: &str, config: &Value) -> PathBuf {
        let path = self.dir.path().join(format!("{name}.json"));
        fs::write(&path, config.to_string()).unwrap();
        path
    }

    pub fn start(&self, node: &str, nodes: &[&str]) -> Node {
        self.start_with(node, &self.config(node, nodes), &[])
    }

    pub fn start_with(&self, node: &str, config: &Value, wrapper: &[&str]) -> Node {
        let config = self.write(node, config);
        let ns = self.ns(node);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &ns]).args(wrapper);
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.path().join(format!("{node}.log")))
            .unwrap();
        let mut child = command
            .args(node_command(&config))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Node {
            name: node.to_string(),
            ns,
            child,
            io: Mutex::new((stdin, stdout)),
            log: self.dir.path().join(format!("{node}.log")),
        }
    }

    /// Two nodes of which the first holds the addresses.
    pub fn pair(&self) -> (Node, Node) {
        let nodes = (self.start("a", &["a", "b"]), self.start("b", &["a", "b"]));
        nodes.0.wait_holds(true);
        nodes
    }

    pub fn probe(&self, host: &str, to: &str, ms: u64) -> Probe {
        let child = Command::new("ip")
            .args(["netns", "exec", &self.ns(host), &helper(), "probe"])
            .args([to, &ms.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The first questions fill caches.
        std::thread::sleep(Duration::from_millis(150));
        Probe { child }
    }

    /// Gives a host an address that lapses after two seconds by itself, and watches it.
    pub fn lapse(&self, host: &str) -> Watch {
        let ns = self.ns(host);
        let lifetime = "valid_lft 2 preferred_lft 2";
        sh(&format!("ip -n {ns} addr add 10.9.9.9/32 dev eth0 {lifetime}"));
        watch(&ns, "10.9.9.9")
    }

    /// The hardware address that a host has for an IP address, if it has one.
    pub fn neighbour(&self, host: &str, ip: &str) -> Option<String> {
        let shown = sh(&format!("ip -n {} -j neigh show {ip}", self.ns(host)));
        let shown: Value = serde_json::from_str(&shown).unwrap_or(Value::Null);
        shown[0]["lladdr"].as_str().map(str::to_string)
    }

    /// Which hardware address answers an ARP request from a host.
    pub fn arping(&self, host: &str, ip: &str) -> Option<String> {
        let out = Command::new("ip")
            .args(["netns", "exec", &self.ns(host)])
            .args(["arping", "-I", "eth0", "-c", "1", "-w", "1", ip])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let mac = text.split_once('[')?.1.split_once(']')?.0;
        Some(mac.to_lowercase())
    }

    pub fn bridge_link(&self, host: &str, what: &str) {
        sh(&format!("ip -n {} link set p-{host} {what}", self.ns("br")));
    }

    /// Nodes cannot reach each other; everybody else reaches both.
    pub fn part(&self, nodes: &[&str], apart: bool) {
        let state = if apart { "on" } else { "off" };
        for node in nodes {
            sh(&format!(
                "bridge -n {} link set dev p-{node} isolated {state}",
                self.ns("br")
            ));
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for host in &self.hosts {
                let log = self.dir.path().join(format!("{host}.log"));
                if let Ok(text) = fs::read_to_string(log) {
                    eprintln!("--- log of {host}\n{text}");
                }
            }
        }
        for host in self.hosts.iter().chain(&["br"]) {
            let ns = self.ns(host);
            // What a test did not start itself, such as the process after an upgrade, would live on in a nameless namespace.
            let pids = Command::new("ip").args(["netns", "pids", &ns]).output();
            let pids = pids.map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
            for pid in pids.unwrap_or_default().split_whitespace() {
                // A thread of ours that has entered the namespace is listed with our process.
                let pid = Pid::from_raw(pid.parse().unwrap());
                if pid != Pid::this() {
                    let _ = kill(pid, Signal::SIGKILL);
                }
            }
            let _ = Command::new("ip").args(["netns", "del", &ns]).status();
        }
    }
}

/// See [`Net::crowd`].
pub struct Crowd {
    ns: String,
}

impl Crowd {
    /// Deletes it. The kernel does so in the background, soon after.
    pub fn delete(self) {
        sh(&format!("ip netns del {}", self.ns));
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.ns])
            .stderr(Stdio::null())
            .status();
    }
}

/// A running node.
pub struct Node {
    pub name: String,
    pub ns: String,
    pub child: Child,
    pub io: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    pub log: PathBuf,
}

impl Node {
    pub fn ask(&self, order: &str) -> String {
        let mut io = self.io.lock().unwrap();
        writeln!(io.0, "{order}").unwrap();
        let mut line = String::new();
        io.1.read_line(&mut line).unwrap();
        line.trim_end().to_string()
    }

    pub fn status(&self) -> Value {
        let line = self.ask("status");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{}: {e}: {line}", self.name))
    }

    pub fn state(&self) -> String {
        self.status()["vips"][0]["state"].as_str().unwrap().into()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    pub fn keeper(&self) -> Pid {
        keeper_of(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// What its kernel has.
    pub fn holds(&self, ip: &str) -> bool {
        holds(&self.ns, ip)
    }

    pub fn wait_holds(&self, yes: bool) -> f64 {
        until(5_000, &format!("{} holds: {yes}", self.name), || {
            [VIP, VIP6].iter().all(|ip| self.holds(ip) == yes)
        })
    }

    /// Watches an address in its kernel from now on.
    pub fn watch(&self, ip: &str) -> Watch {
        watch(&self.ns, ip)
    }

    /// Ends it in an orderly way; its last words.
    pub fn stop(&self) -> String {
        self.ask("stop")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // What a test has stopped must be able to end.
        let path = format!("/proc/{0}/task/{0}/children", self.child.id());
        for child in fs::read_to_string(path).unwrap_or_default().split_whitespace() {
            let _ = kill(Pid::from_raw(child.parse().unwrap()), Signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Watches an address in the kernel of a namespace from now on.
pub fn watch(ns: &str, ip: &str) -> Watch {
    let ip: IpAddr = ip.parse().unwrap();
    let (stop, changes) = <(Arc<AtomicBool>, Arc<Mutex<Changes>>)>::default();
    let (ns, flag, seen) = (ns.to_string(), stop.clone(), changes.clone());
    let thread = std::thread::spawn(move || {
        urgent_thread();
        enter(&ns);
        let mut netlink = Netlink::open().unwrap();
        loop {
            // Looked at once more after the end, so that what the test has seen is seen here.
            let last = flag.load(Ordering::Relaxed);
            let all = netlink.addresses().unwrap();
            let there = all.iter().any(|a| a.net.addr() == ip);
            let mut seen = seen.lock().unwrap();
            if seen.last().is_none_or(|(_, was)| *was != there) {
                seen.push((now_ms(), there));
            }
            drop(seen);
            if last {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    Watch { stop, changes, thread }
}

/// When an address came (true) or went, the first entry as it was found.
pub type Changes = Vec<(f64, bool)>;

pub struct Watch {
    pub stop: Arc<AtomicBool>,
    pub changes: Arc<Mutex<Changes>>,
    pub thread: JoinHandle<()>,
}

impl Watch {
    pub fn finish(self) -> Changes {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        std::mem::take(&mut self.changes.lock().unwrap())
    }

    /// How long after `since` the address went for the first time, ms. Waits for it.
    pub fn gone(self, since: f64) -> f64 {
        let mut gone = None;
        until(10_000, "the address is gone", || {
            let changes = self.changes.lock().unwrap();
            gone = changes.iter().find(|(at, there)| *at >= since && !there).copied();
            gone.is_some()
        });
        self.finish();
        gone.unwrap().0 - since
    }
}

/// One question a millisecond.
pub struct Probe {
    pub child: Child,
}

/// When a question was sent, and who answered it.
pub type Answers = Vec<(f64, Option<String>)>;

impl Probe {
    pub fn finish(mut self) -> Answers {
        let mut text = String::new();
        let mut out = self.child.stdout.take().unwrap();
        out.read_to_string(&mut text).unwrap();
        assert!(self.child.wait().unwrap().success());
        text.lines()
            .map(|line| {
                let mut words = line.split(' ');
                let mut time = || words.next().unwrap().parse::<f64>().unwrap() / 1000.0;
                let (sent, answered) = (time(), time());
                let node = words.next().unwrap().to_string();
                (sent, (answered > 0.0).then_some(node))
            })
            .collect()
    }
}

/// Questions after `since` that nobody answered.
pub fn lost(answers: &Answers, since: f64) -> usize {
    answers
        .iter()
        .filter(|(sent, node)| *sent >= since && node.is_none())
        .count()
}

/// How long after `since` the first question was asked that `node` answered.
pub fn served_by(answers: &Answers, since: f64, node: &str) -> f64 {
    let first = answers
        .iter()
        .find(|(sent, by)| *sent >= since && by.as_deref() == Some(node));
    first.unwrap_or_else(|| panic!("{node} never answered")).0 - since
}

pub fn holds(ns: &str, ip: &str) -> bool {
    let ip: IpAddr = ip.parse().unwrap();
    in_ns(ns, move || {
        urgent_thread();
        let all = Netlink::open().unwrap().addresses().unwrap();
        all.iter().any(|a| a.net.addr() == ip)
    })
}

/// The keeper that a node has started.
pub fn keeper_of(node: &Child) -> Pid {
    let path = format!("/proc/{0}/task/{0}/children", node.id());
    let children = fs::read_to_string(path).unwrap();
    let first = children.split_whitespace().next().expect("a keeper");
    Pid::from_raw(first.parse().unwrap())
}

/// Kills a process; how long it took to die, ms, which on a busy machine is a while and nobody's fault.
pub fn end(pid: Pid) -> f64 {
    let since = now_ms();
    kill(pid, Signal::SIGKILL).unwrap();
    waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
    now_ms() - since
}

pub fn enter(ns: &str) {
    let file = fs::File::open(format!("/run/netns/{ns}")).unwrap();
    setns(file, CloneFlags::CLONE_NEWNET).unwrap();
}

/// Runs something in a namespace, in a thread of its own.
pub fn in_ns<T: Send + 'static>(ns: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let ns = ns.to_string();
    let thread = std::thread::spawn(move || {
        enter(&ns);
        work()
    });
    thread.join().unwrap()
}

pub fn to(ip: &str) -> String {
    SocketAddr::new(ip.parse().unwrap(), 7777).to_string()
}

/// How long after `since` the kernel may hold a lease that nobody renews, ms. Its work waits for the network's big lock as
/// everybody else's does, on a busy machine for seconds: then no longer than the address that lapsed beside it.
pub fn lease_limit(beside: Watch, since: f64) -> f64 {
    f64::max(2_700.0, beside.gone(since) + 700.0)
}

pub fn assert_within(what: &str, got: f64, limit: f64) {
    println!("{what}: {got:.1} ms (limit {limit} ms)");
    assert!(got <= limit, "{what}: {got:.1} ms, limit {limit} ms");
}
