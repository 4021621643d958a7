//! What becomes of the connections to an address that leaves.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::hosts::*;
use crate::whole::Whole;

/// Echoes of a node, on TCP port 8081 and UDP port 5353 of its loopback.
struct Echo(Arc<AtomicBool>);

impl Echo {
    fn start(ns: &str) -> Echo {
        let stop = Arc::new(AtomicBool::new(false));
        let (tcp, udp) = in_ns(ns, || {
            let tcp = TcpListener::bind("127.0.0.1:8081").unwrap();
            (tcp, UdpSocket::bind("127.0.0.1:5353").unwrap())
        });
        tcp.set_nonblocking(true).unwrap();
        udp.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let flag = stop.clone();
        std::thread::spawn(move || {
            let (mut open, mut buffer) = (Vec::<TcpStream>::new(), [0; 512]);
            while !flag.load(Ordering::Relaxed) {
                if let Ok((n, from)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(&buffer[..n], from);
                }
                while let Ok((stream, _)) = tcp.accept() {
                    stream.set_nonblocking(true).unwrap();
                    open.push(stream);
                }
                for stream in &mut open {
                    if let Ok(n) = stream.read(&mut buffer) {
                        let _ = stream.write_all(&buffer[..n]);
                    }
                }
            }
        });
        Echo(stop)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn connect(ns: &str, to: &str) -> TcpStream {
    let to = to.to_string();
    let mut stream = in_ns(ns, move || TcpStream::connect(to).unwrap());
    stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    works(&mut stream);
    stream
}

fn works(stream: &mut TcpStream) {
    let mut answer = [0; 5];
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut answer).unwrap();
}

fn is_reset(stream: &mut TcpStream) {
    let outcome = stream.read(&mut [0; 1]);
    let kind = outcome.as_ref().map_err(std::io::Error::kind);
    assert_eq!(kind, Err(ErrorKind::ConnectionReset), "{outcome:?}");
}

#[test]
fn idle_clients_are_told_when_an_address_moves() {
    let net = Net::new(&["a", "b", "c"]);
    let (a, b) = Whole::pair(&net);
    let _echoes = [Echo::start(&a.ns), Echo::start(&b.ns)];
    let c = net.ns("c");
    // Wildcard binds: what counts is the address that the client used.
    let mut moving = [connect(&c, &format!("{VIP}:81")), connect(&c, &format!("{VIP}:82"))];
    let mut six = connect(&c, &format!("[{VIP6}]:81"));
    let mut own = connect(&c, &format!("{}:81", net.address("a")));
    let udp = in_ns(&c, || UdpSocket::bind("0.0.0.0:0").unwrap());
    udp.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    udp.send_to(b"hello", (VIP, 53)).unwrap();
    udp.recv_from(&mut [0; 16]).unwrap();

    a.order("demote");
    for stream in &mut moving {
        is_reset(stream);
    }
    until(1_000, "moved", || b.holds(VIP) && !a.holds(VIP));
    works(&mut own);
    works(&mut six);
    let ended = |protocol: &str| {
        let log = fs::read_to_string(a.log()).unwrap();
        let is_meant = |line: &&str| line.contains("cause=vip_moved") && line.contains(protocol);
        log.lines().filter(is_meant).count()
    };
    until(2_000, "told in the log", || {
        ended("protocol=tcp") == 2 && ended("protocol=udp") == 1
    });
    // The new holder serves.
    connect(&c, &format!("{VIP}:81"));
    a.signal(Signal::SIGTERM);
    is_reset(&mut six);
    until(1_000, "moved too", || b.holds(VIP6) && !a.holds(VIP6));
    until(2_000, "told in the log", || ended("protocol=tcp") == 3);
}

/// The address went without anybody being asked; what is left on the old node ends when it hears of the new holder.
#[test]
fn a_node_that_lost_its_address_keeps_no_dead_connections() {
    let net = Net::new(&["a", "b", "c"]);
    let (a, b) = Whole::pair(&net);
    let _echoes = [Echo::start(&a.ns), Echo::start(&b.ns)];
    let c = net.ns("c");
    let mut moving = connect(&c, &format!("{VIP}:81"));
    let mut own = connect(&c, &format!("{}:81", net.address("a")));
    a.signal(Signal::SIGSTOP);
    until(2_000, "taken over", || b.holds(VIP) && !a.holds(VIP));
    a.signal(Signal::SIGCONT);
    let ended = || fs::read_to_string(a.log()).unwrap().matches("cause=vip_moved").count();
    until(3_000, "cleaned up", || ended() == 1);
    works(&mut own);
    // It learns from the new holder, as soon as it says something.
    moving.write_all(b"hello").unwrap();
    is_reset(&mut moving);
}

/// A worker that has been told to finish what it has is still told that an address leaves.
///
/// Seen to fail as it was: only workers that take new connections were told.
#[test]
fn a_worker_that_retires_resets_what_leaves() {
    let net = Net::new(&["a", "b", "c"]);
    let (a, b) = Whole::pair(&net);
    let _echoes = [Echo::start(&a.ns), Echo::start(&b.ns)];
    let c = net.ns("c");
    let workers = || {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["status", "--json", "--socket"])
            .arg(&a.admin)
            .output()
            .unwrap();
        let status: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        let workers = status["workers"].as_array().unwrap();
        let connections = |worker: &serde_json::Value| worker["connections"].as_u64().unwrap();
        workers.iter().map(connections).collect::<Vec<u64>>()
    };
    let mut moving = Vec::new();
    until(20_000, "connections on both workers", || {
        moving.push(connect(&c, &format!("{VIP}:81")));
        let now = workers();
        now.len() == 2 && now.iter().all(|open| *open > 0)
    });
    let path = net.dir.path().join("a.yaml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"workers\":2", "\"workers\":1")).unwrap();
    a.signal(Signal::SIGHUP);
    until(5_000, "one worker takes new connections", || workers().len() == 1);
    moving.iter_mut().for_each(works);

    a.order("demote");
    moving.iter_mut().for_each(is_reset);
    until(1_000, "moved", || b.holds(VIP) && !a.holds(VIP));
    let ended = || fs::read_to_string(a.log()).unwrap().matches("cause=vip_moved").count();
    until(2_000, "told in the log", || ended() == moving.len());
}

/// Connections end in the process where they began; each process that drains hears of what leaves from the one after it.
///
/// Seen to fail without the channel between them: the clients were never told.
#[test]
fn connections_that_upgrades_left_behind_are_reset_too() {
    let net = Net::new(&["a", "b", "c"]);
    let (a, b) = Whole::pair(&net);
    let _echoes = [Echo::start(&a.ns), Echo::start(&b.ns)];
    let c = net.ns("c");
    let log = || fs::read_to_string(net.log("a")).unwrap();
    let path = net.dir.path().join("a.yaml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"200ms\"", "\"60s\"")).unwrap();
    let mut own = connect(&c, &format!("{}:81", net.address("a")));
    a.signal(Signal::SIGHUP);
    until(5_000, "reloaded", || log().contains("reloaded"));

    // "... 123 serves".
    let pid = |text: &str| Some(Pid::from_raw(text.split(' ').next()?.parse().ok()?));
    let (mut moving, mut serves) = (Vec::new(), a.pid());
    for upgrades in 1..=2 {
        moving.push(connect(&c, &format!("{VIP}:81")));
        kill(serves, Signal::SIGUSR2).unwrap();
        until(10_000, "upgraded", || {
            log().matches("connections may finish here").count() == upgrades
        });
        serves = log()
            .rsplit_once("upgrade: process ")
            .and_then(|(_, then)| pid(then))
            .unwrap();
    }
    moving.push(connect(&c, &format!("{VIP}:81")));
    a.order("demote");
    moving.iter_mut().for_each(is_reset);
    until(1_000, "moved", || b.holds(VIP) && !a.holds(VIP));
    works(&mut own);
    let ended = || fs::read_to_string(a.log()).unwrap().matches("cause=vip_moved").count();
    until(2_000, "told in the log", || ended() == moving.len());
}
