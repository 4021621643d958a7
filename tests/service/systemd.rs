//! A whole life under a real systemd, booted in a container over a copy-on-write view of this machine's root.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::common::{PATIENCE, command, find, have, run, skip, wait_until};
use super::root;

/// A booted container. Dropping it ends everything in it and forgets what it wrote.
pub struct Container {
    nspawn: Child,
    leader: u32,
    dir: tempfile::TempDir,
}

impl Container {
    /// `None`, with the reason printed, where this cannot be done.
    pub fn boot(prepare: impl FnOnce(&Path)) -> Option<Container> {
        if !nix::unistd::Uid::effective().is_root() {
            skip("booting systemd needs root");
            return None;
        }
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["upper", "work", "root"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        prepare(&path("upper"));
        let options = format!(
            "lowerdir=/,upperdir={},workdir={}",
            path("upper").display(),
            path("work").display()
        );
        let mounted = Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &options])
            .arg(path("root"))
            .output()
            .unwrap();
        if !mounted.status.success() {
            skip(&format!("no overlay: {}", text(&mounted.stderr)));
            return None;
        }
        let log = std::fs::File::create(path("log")).unwrap();
        let mut start = command(find("systemd-nspawn").unwrap());
        start.args(["--register=no", "--keep-unit", "--private-network", "--boot"]);
        // What a host has and a container has not: conf/weir-kernel-engine.conf asks for it.
        start.args(["--capability=CAP_BPF,CAP_PERFMON", "-D"]);
        // Its own filter of system calls is older than landlock.
        start.env("SYSTEMD_SECCOMP", "0");
        start.arg(path("root")).stdin(Stdio::null());
        start.stdout(log.try_clone().unwrap()).stderr(log);
        let nspawn = start.spawn().unwrap();
        let mut container = Container { leader: 0, nspawn, dir };
        // A whole system takes its time on a busy machine.
        let deadline = Instant::now() + 4 * PATIENCE;
        while !container.has_booted() {
            assert!(Instant::now() < deadline, "the container does not boot");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(container)
    }

    fn has_booted(&mut self) -> bool {
        if let Some(status) = self.nspawn.try_wait().unwrap() {
            panic!("systemd-nspawn: {status}: {}", self.log());
        }
        self.leader = self.find_leader().unwrap_or(0);
        let booted = "systemctl is-active multi-user.target";
        self.leader != 0 && self.try_run(booted).status.success()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The container's process 1.
    fn find_leader(&self) -> Option<u32> {
        let pid = self.nspawn.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        let is_init = |pid: &u32| {
            std::fs::read_to_string(format!("/proc/{pid}/status"))
                .is_ok_and(|s| s.lines().any(|l| l.starts_with("NSpid:") && l.ends_with("\t1")))
        };
        children
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .find(is_init)
    }

    pub fn command(&self, script: &str) -> Command {
        let mut enter = command("nsenter");
        enter.args(["--all", "--target", &self.leader.to_string()]);
        enter.current_dir("/").args(["sh", "-c", script]).env_clear();
        enter.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
        enter
    }

    pub fn try_run(&self, script: &str) -> Output {
        self.command(script).output().unwrap()
    }

    /// Runs a script in it; it must succeed.
    #[track_caller]
    pub fn run(&self, script: &str) -> String {
        let output = self.try_run(script);
        let said = text(&output.stdout) + &text(&output.stderr);
        if !output.status.success() {
            let journal = text(&self.try_run("journalctl -u weir -n 60 --no-pager").stdout);
            panic!("{script}: {}: {said}\n{journal}", output.status);
        }
        said
    }

    /// Runs a script in it; it must fail.
    #[track_caller]
    pub fn fail(&self, script: &str) -> String {
        let output = self.try_run(script);
        assert!(!output.status.success(), "{script} succeeded");
        text(&output.stdout) + &text(&output.stderr)
    }

    /// A property of the service.
    pub fn property(&self, name: &str) -> String {
        let script = format!("systemctl show --property {name} --value weir.service");
        self.run(&script).trim().to_string()
    }

    #[track_caller]
    pub fn serves(&self) {
        let answer = self.run("curl --silent --show-error --max-time 5 http://127.0.0.1:79/hello");
        assert_eq!(answer, "hello");
    }

    /// Two ends of a cable, one of them for virtual addresses; and the secret of those who hold them.
    pub fn prepare_failover(&self) {
        self.run("ip link add weir0 type veth peer name weir1; ip link set weir0 up; ip link set weir1 up");
        self.run("head -c 32 /dev/urandom | base64 > /etc/weir/secret");
        self.run("chown root:weir /etc/weir/secret; chmod 640 /etc/weir/secret");
    }

    pub fn has_address(&self) -> bool {
        self.run("ip -oneline address show dev weir0").contains("10.99.0.1/24")
    }

    /// Installs a package over the one that serves: no request fails, the virtual address stays. Returns the new process.
    #[track_caller]
    pub fn upgrade(&self, package: &str) -> String {
        let before = self.property("MainPID");
        let moves = "timeout 120 ip -oneline monitor address dev weir0 | grep Deleted";
        let mut moves = self.command(moves).stdout(Stdio::null()).spawn().unwrap();
        let load = "wrk -t1 -c16 -d4s --timeout 20s -H 'Connection: close' http://127.0.0.1:79/";
        let load = self.command(load).stdout(Stdio::piped()).spawn().unwrap();
        let said = self.run(&format!("dpkg -i {package}"));
        assert!(said.contains("handing over"), "{said}");
        let after = self.wait_for_other(&before);
        let report = text(&load.wait_with_output().unwrap().stdout);
        assert!(
            report.contains("Requests/sec") && !report.contains("Socket errors"),
            "{report}"
        );
        assert_eq!(self.property("NRestarts"), "0");
        let there = self.has_address();
        let watched = moves.try_wait().unwrap().is_none();
        self.run("pkill -x ip");
        let away = moves.wait().unwrap().success();
        assert!(
            there && watched && !away,
            "the virtual address has been away:\n{}",
            self.journal()
        );
        after
    }

    /// The last events of the service.
    fn journal(&self) -> String {
        self.run("journalctl -u weir --no-pager -o cat | grep -v ^time= | tail -50")
    }

    /// Waits until a process is gone.
    #[track_caller]
    pub fn wait_for_end(&self, pid: &str) {
        wait_until("the old process ends", || {
            !self.try_run(&format!("kill -0 {pid}")).status.success()
        });
    }

    /// Waits until the service runs in another process than `pid`.
    #[track_caller]
    pub fn wait_for_other(&self, pid: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.property("MainPID");
            if now != "0" && now != pid && self.property("ActiveState") == "active" {
                return now;
            }
            if Instant::now() > deadline {
                panic!("waited in vain for another main process:\n{}", self.journal());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // The death of its process 1 ends everything else in it.
        if self.leader != 0 {
            let leader = nix::unistd::Pid::from_raw(self.leader as i32);
            let _ = nix::sys::signal::kill(leader, nix::sys::signal::Signal::SIGKILL);
        }
        let _ = self.nspawn.kill();
        let _ = self.nspawn.wait();
        let _ = Command::new("umount").arg(self.dir.path().join("root")).status();
        if std::thread::panicking() {
            println!("the container wrote:\n{}", self.log());
        }
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A package around the binary under test, as `scripts/package` makes it.
pub fn package(into: &Path) -> PathBuf {
    // Its parts are put together in one place.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock();
    let file = into.join("weir.deb");
    let mut make = Command::new(root().join("scripts/package"));
    make.env("WEIR_BINARY", env!("CARGO_BIN_EXE_weir"));
    make.args(["--profile", "dev", "--fast", "--strip"]);
    make.args(["--no-separate-debug-symbols", "--output"]);
    run(make.arg(&file));
    file
}

/// The timers of the election are long because tests run on busy machines, where a thread may wait its turn for longer than
/// the default `dead_after`; that is not what is asked here.
pub const CONFIGURATION: &str = "workers: 2\nlisteners: {web: {bind: '127.0.0.1:79', pool: web}}\n\
    pools: {web: {backends: ['127.0.0.1:8081']}}\n\
    failover: {node: a, beat: 500ms, dead_after: 3s, secret_file: /etc/weir/secret, nodes: {a: '127.0.0.1:7400'},\n  \
    vips: [{address: 10.99.0.1/24, interface: weir0, requires: [web]}]}\n";

/// Breaks tried: in the unit, leaving out WatchdogSec=, ExecReload= and AmbientCapabilities= in turn; in the package,
/// restarting instead of handing over.
#[test]
fn a_package_is_installed_lives_and_leaves() {
    let needed = ["systemd-nspawn", "cargo-deb", "wrk", "curl", "nginx", "adduser"];
    if !have(&needed) || !root().join("target/debug/weir").exists() && !skip("not a debug build") {
        return;
    }
    let Some(machine) = Container::boot(|upper| {
        std::fs::create_dir(upper.join("root")).unwrap();
        package(&upper.join("root"));
        let nginx = "daemon off; events {} http { access_log off; server { listen 127.0.0.1:8081; \
            location / { return 200 'hello'; } location /big { root /root; } } }";
        std::fs::write(upper.join("root/big"), vec![b'x'; 64 << 20]).unwrap();
        std::fs::write(upper.join("root/nginx.conf"), nginx).unwrap();
    }) else {
        return;
    };
    let write = |text: &str| machine.run(&format!("printf '%s' \"{text}\" > /etc/weir/weir.yaml"));

    // Installing starts nothing.
    machine.run("dpkg -i /root/weir.deb");
    assert_eq!(machine.fail("systemctl is-active weir").trim(), "inactive");
    assert_eq!(machine.fail("systemctl is-enabled weir").trim(), "disabled");
    assert!(machine.run("man -w weir").contains("weir.1"));

    // Without a configuration it fails at once and for good, and says why.
    machine.fail("systemctl start weir");
    assert_eq!(machine.property("ActiveState"), "failed");
    assert_eq!(machine.property("ExecMainStatus"), "3");

    // What the unit says, only shorter, for the sake of the test.
    machine.run("mkdir -p /etc/systemd/system/weir.service.d");
    machine.run(
        "sed -n 's/^WatchdogSec=.*/[Service]\\nWatchdogSec=5s/p' /usr/lib/systemd/system/weir.service \
         > /etc/systemd/system/weir.service.d/test.conf",
    );
    machine.run("systemctl daemon-reload; systemd-run --unit nginx-backend nginx -c /root/nginx.conf");
    machine.prepare_failover();
    write(CONFIGURATION);
    machine.run("systemctl enable --now weir");
    machine.serves();
    let has_vip = || machine.has_address();
    wait_until("the virtual address is there", has_vip);
    let first = machine.property("MainPID");
    assert!(machine.property("StatusText").starts_with("generation 1"));
    let user = machine.run(&format!("ps -o user= -p {first}"));
    assert_eq!(user.trim(), "weir");
    // The unit's sandbox leaves room for the program's own.
    let journal = machine.run("journalctl -u weir --no-pager");
    assert!(!journal.contains("sandbox: without"), "{journal}");

    // What the sandbox must not forbid: bulk goes through pipes.
    machine.run("chmod 711 /root; curl --silent http://127.0.0.1:79/big | cmp - /root/big");
    wait_until("there is a record of it", || {
        let journal = machine.run("journalctl -u weir --no-pager");
        journal
            .lines()
            .any(|line| line.contains(" spliced=") && !line.contains(" spliced=0"))
    });

    // Reload, and one that is refused.
    machine.run("systemctl reload weir");
    assert!(machine.property("StatusText").starts_with("generation 2"));
    write("nonsense: 1");
    machine.fail("systemctl reload weir");
    let status = machine.property("StatusText");
    assert!(status.starts_with("reload refused: "), "{status}");
    assert_eq!(machine.property("ActiveState"), "active");
    machine.serves();
    write(CONFIGURATION);
    machine.run("systemctl reload weir");
    assert_eq!(machine.property("MainPID"), first);

    // The package is upgraded under load, and the virtual address stays.
    let second = machine.upgrade("/root/weir.deb");
    machine.wait_for_end(&first);

    // Hung, then killed.
    machine.run(&format!("kill -STOP {second}"));
    let third = machine.wait_for_other(&second);
    assert!(
        machine
            .run("journalctl -u weir --no-pager")
            .contains("Watchdog timeout")
    );
    machine.serves();
    machine.run(&format!("kill -KILL {third}"));
    machine.wait_for_other(&third);
    assert_eq!(machine.property("NRestarts"), "2");
    machine.serves();

    // Stopped, removed, purged.
    wait_until("the virtual address is back", has_vip);
    machine.run("systemctl stop weir");
    assert!(!has_vip());
    assert_eq!(machine.property("Result"), "success");
    assert_eq!(machine.property("ActiveState"), "inactive");
    machine.run("systemctl start weir");
    machine.run("dpkg --purge weir");
    assert_eq!(machine.property("LoadState"), "not-found");
    machine.fail("pgrep -x weir");
    for trace in [
        "/usr/bin/weir",
        "/etc/weir",
        "/run/weir",
        "/var/log/weir",
        "/usr/share/doc/weir",
    ] {
        machine.fail(&format!("test -e {trace}"));
    }
    machine.fail("getent passwd weir");
    machine.fail("ls /etc/systemd/system/multi-user.target.wants/weir.service");
}

/// The commands in the blocks of a document, in order, without remarks.
fn commands(document: &str) -> Vec<String> {
    let blocks = document.split("```sh\n").skip(1);
    let blocks = blocks.map(|block| block.split("```").next().unwrap());
    let lines = blocks.flat_map(str::lines);
    lines
        .map(|line| line.split(" #").next().unwrap().trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}

/// docs/operating.md, as its reader would follow it; `scripts/package` alone is replaced, because it builds for minutes.
///
/// Break tried: in the document, `weir check` as `weir verify`, `ListenStream` without its address, `--signal=USR1`.
#[test]
fn the_guide_works_as_printed() {
    let needed = ["systemd-nspawn", "cargo-deb", "curl", "adduser", "nginx"];
    if !have(&needed) || !root().join("target/debug/weir").exists() && !skip("not a debug build") {
        return;
    }
    let guide = std::fs::read_to_string(root().join("docs/operating.md")).unwrap();
    let Some(machine) = Container::boot(|upper| {
        let clone = upper.join("root/weir");
        for part in ["target/debian", "target/release"] {
            std::fs::create_dir_all(clone.join(part)).unwrap();
        }
        let deb = package(&clone);
        std::fs::rename(deb, clone.join("target/debian/weir_0.1.0-1_test.deb")).unwrap();
        let weir = env!("CARGO_BIN_EXE_weir");
        std::fs::copy(weir, clone.join("target/release/weir")).unwrap();
        for part in ["scripts", "conf", "docs"] {
            run(Command::new("cp").arg("-r").args([root().join(part), clone.join(part)]));
        }
        let nginx = "daemon off; pid /run/backend.pid; events {} http { access_log off; server { listen 127.0.0.1:8081; \
            location / { return 200 'hello'; } } }";
        std::fs::write(upper.join("root/nginx.conf"), nginx).unwrap();
    }) else {
        return;
    };
    let step = |command: &str| machine.run(&format!("cd /root/weir; {command}"));
    let fetch = |port: u16| {
        machine.run(&format!(
            "curl --silent --show-error --max-time 5 http://127.0.0.1:{port}/"
        ))
    };
    machine.run("systemd-run --unit nginx-backend nginx -c /root/nginx.conf");

    // Installing, and the first start.
    let mut commands = commands(&guide).into_iter();
    assert_eq!(commands.next().unwrap(), "scripts/package");
    let upgrade = commands.next_back().unwrap();
    for command in commands {
        step(&command);
    }
    assert_eq!(machine.property("ActiveState"), "active");
    assert_eq!(fetch(8080), "hello");
    let rating = step("systemd-analyze security weir");
    let rating = rating.lines().find(|line| line.contains("Overall")).unwrap_or_default();
    assert!(guide.contains("rates it 1.9") && rating.contains(" 1.9 "), "{rating}");

    // Reload, both ways; then the upgrade.
    for command in ["systemctl reload weir", "weir reload"] {
        assert!(guide.contains(&format!("`{command}`")), "{command}");
        step(command);
    }
    assert!(machine.property("StatusText").starts_with("generation 3"));
    let first = machine.property("MainPID");
    step(&upgrade);
    machine.wait_for_other(&first);
    assert_eq!(machine.property("NRestarts"), "0");
    assert_eq!(fetch(8080), "hello");

    // The sockets of the unit that is printed. What else is installed on this machine may have taken the port.
    machine.try_run("systemctl stop nginx haproxy apache2");
    let unit = guide.split("```ini\n").nth(1).unwrap().split("```").next().unwrap();
    machine.run(&format!("cat > /etc/systemd/system/weir.socket <<'END'\n{unit}END"));
    machine.run("sed -i 's/:8080\"/:80\"/g' /etc/weir/weir.yaml; weir check");
    machine.run("systemctl daemon-reload; systemctl stop weir; systemctl start weir.socket");
    assert_eq!(machine.fail("systemctl is-active weir").trim(), "inactive");
    assert_eq!(fetch(80), "hello");
    machine.run("systemctl stop weir.socket weir; echo ReusePort=yes >> /etc/systemd/system/weir.socket");
    machine.run("systemctl daemon-reload; systemctl start weir.socket");
    assert_eq!(fetch(80), "hello");
    let log = machine.run("journalctl -u weir --no-pager");
    assert!(!log.contains("fits no listener"), "{log}");

    // Without a package.
    machine.run("systemctl stop weir.socket weir; dpkg --purge weir; rm /etc/systemd/system/weir.socket");
    for command in ["scripts/install", "scripts/install --remove"] {
        assert!(guide.contains(&format!("`{command}`")), "{command}");
    }
    step("scripts/install");
    step("cp /usr/share/doc/weir/examples/weir.yaml /etc/weir/weir.yaml");
    step("weir check && systemctl enable --now weir");
    assert_eq!(fetch(8080), "hello");
    step("scripts/install --remove");
    machine.fail("pgrep -x weir");
    machine.fail("test -e /usr/bin/weir");
}

/// The kernel engine by the drop-in of the package: one download, slow enough to last, goes on through a reload, a restart and a `kill -9`;
/// after a stop nothing is left.
///
/// Seen to fail without KillMode= in the drop-in.
#[test]
fn the_kernel_engine_lives_by_its_drop_in() {
    let needed = ["systemd-nspawn", "cargo-deb", "curl", "adduser", "nginx", "ip"];
    if !have(&needed) || !root().join("target/debug/weir").exists() && !skip("not a debug build") {
        return;
    }
    let Some(machine) = Container::boot(|upper| {
        std::fs::create_dir(upper.join("root")).unwrap();
        package(&upper.join("root"));
        let nginx = "daemon off; pid /run/backend.pid; events {} http { access_log off; server { listen 8080; \
            location / { return 200 'hello'; } location /big { root /srv; } } }";
        std::fs::write(upper.join("root/nginx.conf"), nginx).unwrap();
        std::fs::create_dir(upper.join("srv")).unwrap();
        std::fs::write(upper.join("srv/big"), vec![b'x'; 48 << 20]).unwrap();
        let yaml = "workers: 1\nshutdown_grace: 1s\nkernel: {restart_grace: 5s}\nlisteners: {web: {engine: kernel, bind: '10.9.0.1:8000', pool: web}}\n\
            pools: {web: {backends: ['10.9.1.2:8080']}}\n";
        std::fs::write(upper.join("root/weir.yaml"), yaml).unwrap();
    }) else {
        return;
    };
    for (ix, host) in ["client", "backend"].into_iter().enumerate() {
        machine.run(&format!(
            "ip netns add {host}; ip link add eth{ix} type veth peer name eth{ix} netns {host}; \
             ip addr add 10.9.{ix}.1/24 dev eth{ix}; ip link set eth{ix} up; \
             ip -n {host} addr add 10.9.{ix}.2/24 dev eth{ix}; ip -n {host} link set eth{ix} up"
        ));
    }
    machine.run("systemd-run --unit nginx-backend ip netns exec backend nginx -c /root/nginx.conf");
    machine.run("dpkg -i /root/weir.deb; install -m 644 /root/weir.yaml /etc/weir/weir.yaml");
    let fetch = "ip netns exec client curl --silent --show-error --max-time 5 http://10.9.0.1:8000/";

    // The unit alone has not what it takes, and says what would help.
    machine.fail("systemctl start weir");
    let journal = machine.run("systemctl stop weir; journalctl -u weir --no-pager");
    assert!(journal.contains("CAP_BPF") && journal.contains("missing"), "{journal}");

    machine.run(
        "mkdir -p /etc/systemd/system/weir.service.d; systemctl reset-failed weir; \
         cp /usr/share/doc/weir/examples/weir-kernel-engine.conf /etc/systemd/system/weir.service.d/kernel-engine.conf; \
         systemctl daemon-reload; systemctl start weir",
    );
    let serves = || machine.try_run(fetch).stdout == b"hello";
    wait_until("it serves", serves);
    let first = machine.property("MainPID");
    let rights = machine.run(&format!("grep -E 'CapPrm|CapBnd|NoNewPrivs' /proc/{first}/status"));
    println!("main process: {}", rights.replace('\n', ", "));
    let rating = machine.run("systemd-analyze security --no-pager weir");
    let rating = rating.lines().find(|line| line.contains("Overall")).unwrap_or_default();
    println!("{rating}");
    let guide = std::fs::read_to_string(root().join("docs/kernel-engine.md")).unwrap();
    let exposure = rating.split_whitespace().find(|word| word.parse::<f32>().is_ok());
    let stated = format!("rates the unit with it {}", exposure.unwrap_or_default());
    assert!(guide.contains(&stated), "{stated}: {rating}");

    let mut download = machine.command(
        "ip netns exec client curl --silent --show-error --limit-rate 4M http://10.9.0.1:8000/big | cmp - /srv/big",
    );
    let mut download = download.spawn().unwrap();
    let goes_on = "journalctl -u weir --no-pager | grep -c 'goes on with the connections'";
    let taken_over = || text(&machine.try_run(goes_on).stdout).trim().to_owned();
    let connections = || machine.run("weir conns --json").matches("\"id\"").count();
    wait_until("the download is counted", || connections() == 1);
    machine.run("systemctl reload weir");
    assert_eq!(machine.property("MainPID"), first);
    wait_until("it serves", serves);
    machine.run("systemctl restart weir");
    let second = machine.wait_for_other(&first);
    assert_eq!(taken_over(), "1");
    wait_until("it serves", serves);
    machine.run(&format!("kill -KILL {second}"));
    machine.wait_for_other(&second);
    assert_eq!(taken_over(), "2");
    assert_eq!(machine.property("NRestarts"), "1");
    assert_eq!(connections(), 1, "the download goes on");
    assert!(download.wait().unwrap().success(), "every byte of it has come");
    wait_until("it serves", serves);

    machine.run("systemctl stop weir");
    assert_eq!(machine.property("Result"), "success");
    wait_until("nobody is left after the grace", || {
        !machine.try_run("pgrep -x 'weir|weir-kernel'").status.success()
    });
    assert!(!machine.try_run(fetch).status.success());
    let left = machine.run("find /sys/fs/bpf /run/weir -mindepth 1 2>/dev/null | wc -l");
    assert_eq!(left.trim(), "0");
}
