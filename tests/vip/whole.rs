//! The whole balancer, `weir run`.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitPidFlag;
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::hosts::*;

/// `weir run` with a TCP listener, a pool that the VIPs require, and beside it something that answers the probes.
pub struct Whole {
    pub ns: String,
    pub child: Child,
    answers: Child,
    backend: Option<Backend>,
    pub admin: PathBuf,
}

/// The one backend of the required pool; dropping it fails the pool.
struct Backend(Arc<AtomicBool>, Option<JoinHandle<()>>);

impl Backend {
    fn start(ns: &str) -> Backend {
        let listener = in_ns(ns, || std::net::TcpListener::bind("127.0.0.1:8080").unwrap());
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let thread = std::thread::spawn(move || {
            while !flag.load(Ordering::Relaxed) {
                if listener.accept().is_err() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        Backend(stop, Some(thread))
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.take().unwrap().join().unwrap();
    }
}

impl Whole {
    pub fn start(net: &Net, node: &str) -> Whole {
        Whole::start_with(net, node, json!([]))
    }

    /// With a `notify` command, if it is not empty.
    pub fn start_with(net: &Net, node: &str, notify: Value) -> Whole {
        Whole::start_program(net, node, Path::new(env!("CARGO_BIN_EXE_weir")), notify)
    }

    /// The same as another program file, which an upgrade starts.
    pub fn start_program(net: &Net, node: &str, program: &Path, notify: Value) -> Whole {
        let ns = net.ns(node);
        let answers = Command::new("ip")
            .args(["netns", "exec", &ns, &helper()])
            .args(["answer", node, &to(VIP)])
            .spawn()
            .unwrap();
        let backend = Backend::start(&ns);
        let admin = net.dir.path().join(format!("{node}.sock"));
        let vip = |address: &str| {
            json!({"address": address, "interface": "eth0", "prefer": ["a", "b"], "preempt": true,
                   "preempt_delay": "300ms", "requires": ["web"]})
        };
        // JSON is YAML.
        let mut config = json!({
            "workers": 2, "admin": admin, "shutdown_grace": "200ms",
            "log": {"access": admin.with_extension("access")},
            "listeners": {
                "web": {"protocol": "tcp", "bind": ["0.0.0.0:80"], "pool": "web"},
                // The last of them is there on one node only, and comes and goes.
                "kept": {"protocol": "tcp", "bind": ["0.0.0.0:81", "[::]:81", "10.9.0.100:82"], "pool": "kept"},
                "dns": {"protocol": "udp", "bind": ["0.0.0.0:53"], "pool": "dns"},
            },
            "pools": {
                // Nobody is there but in tests that want it.
                "kept": {"backends": [{"name": "one", "address": "127.0.0.1:8081"}], "health": {"type": "none"}},
                "dns": {"backends": [{"name": "one", "address": "127.0.0.1:5353"}], "health": {"type": "none"}},
                "web": {"backends": [{"name": "one", "address": "127.0.0.1:8080"}],
                        "health": {"type": "tcp", "interval": "100ms", "timeout": "80ms", "rise": 1, "fall": 1}},
            },
            "failover": {
                "node": node, "secret_file": net.dir.path().join("secret"), "beat": "50ms", "dead_after": "250ms",
                "nodes": {"a": "10.9.0.1:7400", "b": "10.9.0.2:7400"},
                "vips": [vip("10.9.0.100/24"), vip("fd09::100/64")],
            },
        });
        if notify != json!([]) {
            config["failover"]["notify"] = notify;
        }
        let path = net.dir.path().join(format!("{node}.yaml"));
        fs::write(&path, config.to_string()).unwrap();
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(net.log(node))
            .unwrap();
        let child = Command::new("ip")
            .args(["netns", "exec", &ns])
            .arg(program)
            .args(["run", "-c"])
            .arg(&path)
            .stderr(log)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Whole {
            ns,
            child,
            answers,
            backend: Some(backend),
            admin,
        }
    }

    pub fn pair(net: &Net) -> (Whole, Whole) {
        let (a, b) = (Whole::start(net, "a"), Whole::start(net, "b"));
        until(10_000, "a holds both", || {
            [VIP, VIP6].iter().all(|ip| a.holds(ip) && !b.holds(ip))
        });
        (a, b)
    }

    /// The access log.
    pub fn log(&self) -> PathBuf {
        self.admin.with_extension("access")
    }

    pub fn holds(&self, ip: &str) -> bool {
        holds(&self.ns, ip)
    }

    pub fn order(&self, order: &str) {
        let out = Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["vip", VIP, order, "--socket"])
            .arg(&self.admin)
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let children = format!("/proc/{0}/task/{0}/children", self.child.id());
            for keeper in fs::read_to_string(children).unwrap_or_default().split_whitespace() {
                let _ = kill(Pid::from_raw(keeper.parse().unwrap()), Signal::SIGKILL);
            }
        }
        for child in [&mut self.child, &mut self.answers] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn the_whole_balancer_moves_when_told() {
    let net = Net::new(&["a", "b", "c"]);
    let (mut a, b) = Whole::pair(&net);
    let probe = net.probe("c", &to(VIP), 3_500);
    let since = now_ms();
    a.order("demote");
    until(1_000, "moved", || b.holds(VIP) && !a.holds(VIP));
    a.order("allow");
    until(2_000, "moved back", || a.holds(VIP) && !b.holds(VIP));
    a.signal(Signal::SIGTERM);
    until(1_000, "moved for good", || b.holds(VIP) && !a.holds(VIP));
    let answers = probe.finish();
    assert_within("weir: lost in three planned moves", lost(&answers, since) as f64, 30.0);
    assert!(a.child.wait().unwrap().success());
}

#[test]
fn the_whole_balancer_moves_when_it_is_killed() {
    let net = Net::new(&["a", "b", "c"]);
    let (a, _b) = Whole::pair(&net);
    let watch = watch(&a.ns, VIP);
    let probe = net.probe("c", &to(VIP), 1_500);
    let since = now_ms();
    let dying = end(Pid::from_raw(a.child.id() as i32));
    let answers = probe.finish();
    let gone = watch.gone(since) - dying;
    assert_within("weir killed: address gone", gone, 150.0);
    assert_within("weir killed: served", served_by(&answers, since, "b"), 350.0);
}

#[test]
fn the_whole_balancer_moves_when_it_is_stopped() {
    let net = Net::new(&["a", "b", "c"]);
    let (a, _b) = Whole::pair(&net);
    let watch = watch(&a.ns, VIP);
    let probe = net.probe("c", &to(VIP), 2_000);
    let since = now_ms();
    a.signal(Signal::SIGSTOP);
    let answers = probe.finish();
    assert_within("weir stopped: address gone", watch.gone(since), 400.0);
    assert_within("weir stopped: served", served_by(&answers, since, "b"), 400.0);
    a.signal(Signal::SIGCONT);
    until(3_000, "back in order", || a.holds(VIP));
}

#[test]
fn the_whole_balancer_moves_with_its_required_pool() {
    let net = Net::new(&["a", "b", "c"]);
    let (mut a, mut b) = Whole::pair(&net);
    a.backend = None;
    until(2_000, "to the node that has a backend", || {
        b.holds(VIP) && !a.holds(VIP)
    });
    b.backend = None;
    // Several probe intervals.
    std::thread::sleep(Duration::from_millis(1_000));
    assert!(b.holds(VIP) && !a.holds(VIP), "it stays if nobody has one");
}

/// One thread of the balancer is held by a debugger in the middle of a turn.
#[test]
fn the_whole_balancer_moves_when_one_worker_is_stuck() {
    let net = Net::new(&["a", "b", "c"]);
    let (a, b) = Whole::pair(&net);
    // Workers that sleep cannot be held in a turn.
    let stop = Arc::new(AtomicBool::new(false));
    let (ns, flag) = (net.ns("c"), stop.clone());
    let flood = std::thread::spawn(move || {
        enter(&ns);
        let web: SocketAddr = "10.9.0.100:80".parse().unwrap();
        while !flag.load(Ordering::Relaxed) {
            let _ = TcpStream::connect_timeout(&web, Duration::from_millis(20));
        }
    });
    let held = hold_a_worker(a.child.id());
    let took = until(2_000, "moved", || b.holds(VIP) && !a.holds(VIP));
    // The turn is found too long after dead_after, and the move is a planned one.
    assert_within("weir, worker stuck: moved", took, 600.0);
    drop(held);
    until(3_000, "back in order", || a.holds(VIP) && !b.holds(VIP));
    stop.store(true, Ordering::Relaxed);
    flood.join().unwrap();
}

/// Holds a worker thread while it is not asleep in epoll_wait, until the guard is dropped.
fn hold_a_worker(pid: u32) -> impl Drop {
    use nix::sys::ptrace;
    use nix::sys::wait::waitpid;
    struct Held(Option<(std::sync::mpsc::Sender<()>, JoinHandle<()>)>);
    impl Drop for Held {
        fn drop(&mut self) {
            let (stop, thread) = self.0.take().unwrap();
            drop(stop);
            thread.join().unwrap();
        }
    }
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let workers: Vec<PathBuf> = threads
        .map(|t| t.path())
        .filter(|t| fs::read_to_string(t.join("comm")).is_ok_and(|c| c.starts_with("worker-")))
        .collect();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let (found, wait) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let tid = |path: &Path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            Pid::from_raw(name.parse().unwrap())
        };
        for worker in &workers {
            ptrace::seize(tid(worker), ptrace::Options::empty()).unwrap();
        }
        let began = Instant::now();
        let asleep = [libc::SYS_epoll_wait, libc::SYS_epoll_pwait].map(|n| n.to_string());
        'search: loop {
            assert!(began.elapsed() < Duration::from_secs(10), "no worker is ever busy");
            for worker in &workers {
                ptrace::interrupt(tid(worker)).unwrap();
                waitpid(tid(worker), Some(WaitPidFlag::__WALL)).unwrap();
                let call = fs::read_to_string(worker.join("syscall")).unwrap();
                let number = call.split(' ').next().unwrap().to_string();
                if !asleep.contains(&number) {
                    break 'search;
                }
                ptrace::cont(tid(worker), None).unwrap();
            }
        }
        found.send(()).unwrap();
        // Threads are let go when their tracer ends.
        let _ = stopped.recv();
    });
    wait.recv().unwrap();
    Held(Some((stop, thread)))
}
