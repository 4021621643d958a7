//! Addresses that every node holds, announced by BIRD to a router that spreads connections over the nodes.
//!
//! The configurations are those of conf/, so what is written there is what is tested.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::hosts::*;

/// The same service by either family: each is held, announced and routed by itself.
const SERVICES: [&str; 2] = ["192.0.2.80", "2001:db8:80::80"];
const NODES: [&str; 3] = ["n1", "n2", "n3"];
const CLIENTS: [&str; 3] = ["c1", "c2", "c3"];

/// New clients must be served again so soon after a fault.
const BACK_MS: f64 = 300.0;

fn conf(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("conf").join(file)).unwrap()
}

/// Greets with the name of its node, then echoes; on 127.0.0.1:8080 of the node.
struct Greeter(Arc<AtomicBool>);

impl Greeter {
    fn start(ns: &str, name: &'static str) -> Greeter {
        let stop = Arc::new(AtomicBool::new(false));
        let listener = in_ns(ns, || TcpListener::bind("127.0.0.1:8080").unwrap());
        listener.set_nonblocking(true).unwrap();
        let flag = stop.clone();
        std::thread::spawn(move || {
            let (mut open, mut buffer) = (Vec::<TcpStream>::new(), [0; 512]);
            while !flag.load(Ordering::Relaxed) {
                while let Ok((mut stream, _)) = listener.accept() {
                    let _ = stream.write_all(name.as_bytes());
                    stream.set_nonblocking(true).unwrap();
                    open.push(stream);
                }
                open.retain_mut(|stream| match stream.read(&mut buffer) {
                    Ok(0) => false,
                    Ok(n) => stream.write_all(&buffer[..n]).is_ok(),
                    Err(e) => e.kind() == ErrorKind::WouldBlock,
                });
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Greeter(stop)
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A router, nodes behind it, and clients in front of it.
struct Site {
    birds: Vec<Child>,
    weirs: Vec<Child>,
    _greeters: Vec<Greeter>,
    net: Net,
}

impl Site {
    fn new() -> Site {
        let net = Net::new(&["r", "n1", "n2", "n3", "c1", "c2", "c3"]);
        let r = net.ns("r");
        let mut greeters = Vec::new();
        for (i, node) in NODES.into_iter().enumerate() {
            let (ns, n) = (net.ns(node), i + 1);
            // The bridge is for clients; each node has a link of its own to the router.
            sh(&format!(
                "ip -n {ns} link set eth0 down &&
                 ip link add {node} netns {r} type veth peer name uplink netns {ns} &&
                 ip -n {r} addr add 10.0.{n}.1/24 dev {node} && ip -n {r} link set {node} up &&
                 ip -n {ns} addr add 10.0.{n}.2/24 dev uplink && ip -n {ns} link set uplink up &&
                 ip -n {r} addr add 2001:db8:{n}::1/64 dev {node} nodad &&
                 ip -n {ns} addr add 2001:db8:{n}::2/64 dev uplink nodad &&
                 ip -n {ns} route add default via 10.0.{n}.1 && ip -n {ns} route add default via 2001:db8:{n}::1 &&
                 ip -n {r} rule add fwmark {n} lookup 10{n} && ip -n {r} -6 rule add fwmark {n} lookup 10{n}"
            ));
            greeters.push(Greeter::start(&ns, node));
        }
        for client in CLIENTS {
            let (ns, gateway) = (net.ns(client), net.address("r"));
            sh(&format!(
                "ip -n {ns} route add default via {gateway} && ip -n {ns} route add default via fd09::1"
            ));
        }
        let settings = "net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.fib_multipath_hash_policy=1 \
                        net.ipv6.conf.all.forwarding=1 net.ipv6.fib_multipath_hash_policy=1";
        sh(&format!("ip netns exec {r} sysctl -qw {settings}"));
        sh(&format!(
            "ip netns exec {r} nft -f {}/conf/anycast-router.nft",
            env!("CARGO_MANIFEST_DIR")
        ));
        let mut site = Site {
            birds: Vec::new(),
            weirs: Vec::new(),
            _greeters: greeters,
            net,
        };
        site.birds.push(site.bird("r", &conf("bird-router.conf")));
        for n in 0..NODES.len() {
            let bird = site.node_bird(n);
            site.birds.push(bird);
            let weir = site.weir(n);
            site.weirs.push(weir);
        }
        site.wait_for_hops(&NODES);
        site
    }

    fn bird(&self, host: &str, conf: &str) -> Child {
        let file = |end: &str| self.net.dir.path().join(format!("{host}.{end}"));
        fs::write(file("conf"), conf).unwrap();
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.net.log(host))
            .unwrap();
        Command::new("ip")
            .args(["netns", "exec", &self.net.ns(host), "bird", "-f", "-c"])
            .arg(file("conf"))
            .arg("-s")
            .arg(file("ctl"))
            .arg("-P")
            .arg(file("pid"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn node_bird(&self, n: usize) -> Child {
        let text = conf("bird.conf").replace("10.0.1.", &format!("10.0.{}.", n + 1));
        self.bird(NODES[n], &text.replace("2001:db8:1:", &format!("2001:db8:{}:", n + 1)))
    }

    fn socket(&self, n: usize) -> PathBuf {
        self.net.dir.path().join(format!("{}.sock", NODES[n]))
    }

    fn weir(&self, n: usize) -> Child {
        let own = format!("admin: {}\nworkers: 2\nshutdown_grace: 5s\n", self.socket(n).display());
        let text = conf("failover-anycast.yaml")
            .replace("shutdown_grace: 30s\n", &own)
            .replace("10.0.9.11:8080", "127.0.0.1:8080")
            .replace("      - {name: two, address: 10.0.9.12:8080}\n", "");
        let path = self.net.dir.path().join(format!("{}.yaml", NODES[n]));
        fs::write(&path, text).unwrap();
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.net.log(NODES[n]))
            .unwrap();
        Command::new("ip")
            .args([
                "netns",
                "exec",
                &self.net.ns(NODES[n]),
                env!("CARGO_BIN_EXE_weir"),
                "run",
                "-c",
            ])
            .arg(&path)
            .stderr(log)
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// The nodes to which the router sends new connections, for each service.
    fn hops(&self) -> [Vec<String>; 2] {
        SERVICES.map(|service| self.hops_of(service))
    }

    fn hops_of(&self, service: &str) -> Vec<String> {
        let family = if service.contains(':') { "-6" } else { "-4" };
        let shown = sh(&format!("ip -n {} {family} -j route show {service}", self.net.ns("r")));
        let shown: Value = serde_json::from_str(&shown).unwrap_or(Value::Null);
        let route = &shown[0];
        let hops: Vec<&Value> = match route["nexthops"].as_array() {
            Some(hops) => hops.iter().collect(),
            None => vec![route],
        };
        let mut names: Vec<String> = hops
            .iter()
            .filter_map(|hop| Some(hop["dev"].as_str()?.to_string()))
            .collect();
        names.sort();
        names
    }

    fn wait_for_hops(&self, names: &[&str]) {
        until(30_000, &format!("the router sends to {names:?}"), || {
            self.hops() == both(names)
        });
    }

    fn signal(&self, n: usize, signal: Signal) {
        kill(Pid::from_raw(self.weirs[n].id() as i32), signal).unwrap();
    }

    fn restart(&mut self, n: usize) {
        self.weirs[n].wait().unwrap();
        self.weirs[n] = self.weir(n);
        self.wait_for_hops(&NODES);
    }

    /// Every process of a host.
    fn processes(&self, host: &str) -> Vec<Pid> {
        let pids = sh(&format!("ip netns pids {}", self.net.ns(host)));
        let own = std::process::id().to_string();
        let others = pids.split_whitespace().filter(|pid| **pid != own);
        others.map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for child in self.weirs.iter_mut().chain(&mut self.birds) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The same nodes for each service.
fn both(nodes: &[&str]) -> [Vec<String>; 2] {
    SERVICES.map(|_| nodes.iter().map(|node| node.to_string()).collect())
}

/// A connection that stays, and the node that it leads to.
struct Stays {
    stream: TcpStream,
    node: String,
}

impl Stays {
    /// So many from every client, by either family, until every node has some.
    fn open(site: &Site, each: usize) -> Vec<Stays> {
        let mut all: Vec<Stays> = Vec::new();
        while all.len() < each * CLIENTS.len() || NODES.iter().any(|n| all.iter().filter(|s| s.node == *n).count() < 3)
        {
            assert!(all.len() < 300, "the router prefers some");
            for (client, service) in CLIENTS
                .iter()
                .flat_map(|client| SERVICES.map(|service| (client, service)))
            {
                let mut stream = in_ns(&site.net.ns(client), move || TcpStream::connect((service, 80)).unwrap());
                stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                let mut name = [0; 2];
                stream.read_exact(&mut name).unwrap();
                let node = String::from_utf8_lossy(&name).into_owned();
                all.push(Stays { stream, node });
            }
        }
        all
    }

    fn works(&mut self) -> bool {
        let mut answer = [0; 5];
        self.stream.write_all(b"hello").is_ok() && self.stream.read_exact(&mut answer).is_ok() && answer == *b"hello"
    }
}

/// Those that do not lead to `node` work, all of them.
fn others_work(all: &mut [Stays], node: &str) {
    let lost: Vec<&str> = all
        .iter_mut()
        .filter(|stay| stay.node != node)
        .filter_map(|stay| (!stay.works()).then_some(stay.node.as_str()))
        .collect();
    assert!(lost.is_empty(), "lost when {node} failed: {lost:?}");
}

/// When a connection was begun, and who answered.
type Attempts = Vec<(f64, Option<String>)>;

/// A new connection from every client every few milliseconds; each has a second.
struct Newcomers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<(Attempts, f64)>>,
}

impl Newcomers {
    fn start(site: &Site) -> Newcomers {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = CLIENTS.map(|client| {
            let (ns, stop) = (site.net.ns(client), stop.clone());
            std::thread::spawn(move || {
                enter(&ns);
                come(&stop)
            })
        });
        Newcomers {
            stop,
            threads: threads.into(),
        }
    }

    /// All attempts, and the longest time for which one of the clients stood still itself, ms.
    fn finish(self) -> (Attempts, f64) {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        let mut still = 0.0f64;
        for thread in self.threads {
            let (attempts, longest) = thread.join().unwrap();
            all.extend(attempts);
            still = still.max(longest);
        }
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        (all, still)
    }
}

/// By either family in turns.
fn come(stop: &AtomicBool) -> (Attempts, f64) {
    const EVERY: Duration = Duration::from_millis(8);
    let (mut done, mut open) = (Attempts::new(), Vec::<(f64, TcpStream, Vec<u8>)>::new());
    let (mut last, mut longest) = (Instant::now(), 0.0f64);
    let mut turns = SERVICES
        .map(|service| SocketAddr::new(service.parse().unwrap(), 80))
        .into_iter()
        .cycle();
    loop {
        let last_round = stop.load(Ordering::Relaxed) && open.is_empty();
        if last_round {
            return (done, longest);
        }
        if !stop.load(Ordering::Relaxed) {
            let to = turns.next().unwrap();
            let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), None).unwrap();
            let began = now_ms();
            match socket.connect(&to.into()) {
                Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => done.push((began, None)),
                _ => open.push((began, socket.into(), Vec::new())),
            }
        }
        open.retain_mut(|(began, stream, name)| {
            let mut bytes = [0; 2];
            match stream.read(&mut bytes) {
                Ok(0) => {}
                Ok(n) => {
                    name.extend(&bytes[..n]);
                    if name.len() < 2 {
                        return true;
                    }
                    done.push((*began, Some(String::from_utf8_lossy(name).into_owned())));
                    return false;
                }
                Err(e)
                    if [ErrorKind::WouldBlock, ErrorKind::NotConnected].contains(&e.kind())
                        && now_ms() - *began < 1_000.0 =>
                {
                    return true;
                }
                Err(_) => {}
            }
            done.push((*began, None));
            false
        });
        std::thread::sleep(EVERY);
        longest = longest.max(last.elapsed().as_secs_f64() * 1_000.0);
        last = Instant::now();
    }
}

/// New connections that were begun late enough after a fault were all served, by the other nodes.
fn assert_back(what: &str, since: f64, failed: &str, newcomers: Newcomers) {
    let (attempts, still) = newcomers.finish();
    let lost: Vec<f64> = attempts
        .iter()
        .filter(|(at, by)| *at >= since && by.is_none())
        .map(|(at, _)| at - since)
        .collect();
    let before = attempts
        .iter()
        .filter(|(at, by)| *at < since - 1_000.0 && by.is_none())
        .count();
    assert_eq!(before, 0, "{what}: lost before the fault");
    let served = attempts.iter().filter(|(at, _)| *at >= since).count() - lost.len();
    println!(
        "{what}: {} new connections lost, {served} served, clients stood still for {still:.0} ms",
        lost.len()
    );
    assert!(served > 20, "{what}: {served} served");
    // Who measures waits for a CPU too, on a machine that does other things.
    assert_within(
        what,
        lost.last().copied().unwrap_or(0.0),
        BACK_MS + 2.0 * (still - 10.0).max(0.0),
    );
    let late = attempts
        .iter()
        .filter(|(at, by)| *at >= since + 600.0 && by.as_deref() == Some(failed));
    assert_eq!(late.count(), 0, "{what}: served by {failed}");
}

fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

#[test]
fn a_node_that_fails_loses_its_own_connections_only() {
    let mut site = Site::new();

    let newcomers = Newcomers::start(&site);
    let mut stays = Stays::open(&site, 6);
    let since = now_ms() + end(Pid::from_raw(site.weirs[1].id() as i32));
    pause(900);
    assert_eq!(site.hops(), both(&["n1", "n3"]));
    assert_back("killed: until new ones were served", since, "n2", newcomers);
    others_work(&mut stays, "n2");
    site.restart(1);

    let newcomers = Newcomers::start(&site);
    let mut stays = Stays::open(&site, 6);
    let since = now_ms();
    site.signal(2, Signal::SIGSTOP);
    pause(900);
    assert_eq!(site.hops(), both(&["n1", "n2"]));
    assert_back("frozen: until new ones were served", since, "n3", newcomers);
    others_work(&mut stays, "n3");
    site.signal(2, Signal::SIGCONT);
    site.wait_for_hops(&NODES);
    // It was withdrawn, and went on accepting what belonged to it.
    assert!(
        stays.iter_mut().all(Stays::works),
        "what a frozen node had goes on when it does"
    );

    // Nobody on the host is left who could withdraw anything, and its kernel goes on taking connections; but BFD is not heard.
    let newcomers = Newcomers::start(&site);
    let mut stays = Stays::open(&site, 6);
    let since = now_ms();
    let all = site.processes("n1");
    let each = |signal| all.iter().for_each(|pid| kill(*pid, signal).unwrap());
    each(Signal::SIGSTOP);
    pause(900);
    assert_eq!(site.hops(), both(&["n2", "n3"]));
    assert_back("all frozen: until new ones were served", since, "n1", newcomers);
    others_work(&mut stays, "n1");
    each(Signal::SIGCONT);
    site.wait_for_hops(&NODES);

    // A cable that carries nothing, with light on it.
    let newcomers = Newcomers::start(&site);
    let mut stays = Stays::open(&site, 6);
    let ns = site.net.ns("n3");
    let silence = "table inet silence {
        chain i { type filter hook prerouting priority -400; iifname uplink drop; }
        chain o { type filter hook postrouting priority 400; oifname uplink drop; }
    }";
    let file = site.net.dir.path().join("silence");
    fs::write(&file, silence).unwrap();
    sh(&format!("ip netns exec {ns} nft -f {}", file.display()));
    let since = now_ms();
    pause(900);
    assert_eq!(site.hops(), both(&["n1", "n2"]));
    assert_back("host gone: until new ones were served", since, "n3", newcomers);
    others_work(&mut stays, "n3");
}

#[test]
fn a_node_that_is_told_to_end_loses_nothing() {
    let mut site = Site::new();
    let newcomers = Newcomers::start(&site);
    let mut stays = Stays::open(&site, 6);
    let since = now_ms();
    site.signal(0, Signal::SIGTERM);
    until(2_000, "withdrawn", || site.hops() == both(&["n2", "n3"]));
    assert!(SERVICES.iter().all(|service| !holds(&site.net.ns("n1"), service)));
    // Until the end of shutdown_grace, but for what checking takes.
    while now_ms() - since < 3_500.0 {
        assert!(stays.iter_mut().all(Stays::works), "a connection was cut");
        pause(50);
    }
    let (attempts, _) = newcomers.finish();
    let lost = attempts.iter().filter(|(_, by)| by.is_none()).count();
    assert_eq!(lost, 0, "new connections lost");
    let to_it = |(at, by): &&(f64, Option<String>)| *at > since + 1_000.0 && by.as_deref() == Some("n1");
    assert_eq!(
        attempts.iter().filter(to_it).count(),
        0,
        "new connections to a node that ends"
    );
    // They end by themselves, and with the last one the process does.
    drop(stays);
    let ended = until(3_000, "ended", || site.weirs[0].try_wait().unwrap().is_some());
    println!("the process ended {ended:.0} ms after its last connection");
    assert!(site.weirs[0].wait().unwrap().success());
    for (family, service) in ["-4", "-6"].iter().zip(SERVICES) {
        let local = format!("ip -n {} {family} route show table local {service}", site.net.ns("n1"));
        until(2_000, "the keeper has left nothing behind", || sh(&local).is_empty());
    }
}

#[test]
fn a_node_withdraws_when_it_is_told_to_or_cannot_serve() {
    let site = Site::new();
    let order = |order: &str| {
        SERVICES.map(|service| {
            let out = Command::new(env!("CARGO_BIN_EXE_weir"))
                .args(["vip", service, order, "--socket"])
                .arg(site.socket(0))
                .output()
                .unwrap();
            String::from_utf8_lossy(&out.stdout).into_owned()
        })
    };
    let all_told = |told: [String; 2], words: &str| assert!(told.iter().all(|text| text.contains(words)), "{told:?}");
    let mut stays = Stays::open(&site, 6);
    all_told(order("demote"), "withdrawn from this node");
    site.wait_for_hops(&["n2", "n3"]);
    assert!(stays.iter_mut().all(Stays::works), "a demotion cut a connection");
    all_told(order("status"), "every node that serves");
    all_told(order("status"), "standby, demoted");
    order("allow");
    site.wait_for_hops(&NODES);
    // An upgrade is none of the routers' business.
    let held = SERVICES.map(|service| watch(&site.net.ns("n2"), service));
    site.signal(1, Signal::SIGUSR2);
    let log = || fs::read_to_string(site.net.log("n2")).unwrap();
    until(10_000, "another process serves", || log().contains("upgrade: serving"));
    pause(500);
    for watch in held {
        assert_eq!(watch.finish().len(), 1, "an upgrade moved an address");
    }
    assert!(stays.iter_mut().all(Stays::works), "an upgrade cut a connection");
    // Its one backend goes.
    site._greeters[1].0.store(true, Ordering::Relaxed);
    site.wait_for_hops(&["n1", "n3"]);
    // Both processes are killed: nobody withdraws, the kernel does.
    let keeper = keeper_of(&site.weirs[2]);
    let beside = site.net.lapse("n3");
    let since = now_ms();
    let watches = SERVICES.map(|service| watch(&site.net.ns("n3"), service));
    for pid in [keeper, Pid::from_raw(site.weirs[2].id() as i32)] {
        kill(pid, Signal::SIGKILL).unwrap();
    }
    let limit = lease_limit(beside, since);
    for watch in watches {
        assert_within(
            "main and keeper killed: the kernel withdrew it",
            watch.gone(since),
            limit,
        );
    }
    site.wait_for_hops(&["n1"]);
}
