//! One node with nothing but failover, for tests in network namespaces.
//!
//! `failover-node run CONFIG.json` runs the election and the keeper, answers UDP on port 7777 of every VIP with the node's name,
//! and takes orders on standard input, one a line: `status`, `serving yes|no`, `pool N up|down`, `demote IP`, `allow IP`,
//! `reload FILE`, `upgrade`, `stop`. `failover-node answer NAME ADDRESS:PORT` only answers. `failover-node probe ADDRESS:PORT MILLISECONDS` asks once a millisecond and prints, for each
//! question, when it was sent and when and by whom it was answered (microseconds of CLOCK_MONOTONIC).

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use parking_lot::Mutex;
use serde::Deserialize;
use socket2::{Domain, Socket, Type};

use weir::config::model::{Failover, Track, Tracked, Vip};
use weir::control::election::{Election, Helpers, Order, Process};
use weir::failover::words::{Holders, Local};
use weir::sys::sched::{monotonic, urgent_thread};

#[derive(Deserialize)]
struct Config {
    node: String,
    secret_file: PathBuf,
    /// In place of `secret_file`.
    #[serde(default)]
    secret_files: Vec<PathBuf>,
    #[serde(default)]
    startup_delay_ms: u64,
    #[serde(default)]
    paths: BTreeMap<String, Vec<SocketAddr>>,
    #[serde(default = "beat")]
    beat_ms: u64,
    #[serde(default = "dead_after")]
    dead_after_ms: u64,
    nodes: BTreeMap<String, SocketAddr>,
    #[serde(default)]
    witnesses: Vec<SocketAddr>,
    quorum: Option<u32>,
    #[serde(default)]
    track: BTreeMap<String, TrackConfig>,
    vips: Vec<VipConfig>,
    #[serde(default)]
    notify: Vec<String>,
}

#[derive(Deserialize)]
struct VipConfig {
    address: IpNet,
    interface: String,
    prefer: Vec<String>,
    #[serde(default)]
    preempt: bool,
    #[serde(default)]
    preempt_delay_ms: u64,
    #[serde(default)]
    garp_refresh_ms: Option<u64>,
    #[serde(default)]
    requires: Vec<usize>,
    group: Option<String>,
}

/// Asked about every 300 ms.
#[derive(Deserialize)]
struct TrackConfig {
    tcp: Option<SocketAddr>,
    interface: Option<String>,
    exec: Option<Vec<String>>,
    weight: Option<u32>,
}

impl TrackConfig {
    fn track(self, name: String) -> Track {
        let what = match (self.tcp, self.interface, self.exec) {
            (Some(address), ..) => Tracked::Tcp(address),
            (_, Some(name), _) => Tracked::Interface(name),
            (.., command) => Tracked::Script(command.expect("something to watch")),
        };
        Track {
            name,
            what,
            interval: Duration::from_millis(300),
            timeout: Duration::from_millis(300),
            rise: 2,
            fall: 3,
            weight: self.weight,
        }
    }
}

fn beat() -> u64 {
    50
}

fn dead_after() -> u64 {
    250
}

fn read(path: &str) -> Failover {
    let text = std::fs::read_to_string(path).expect(path);
    let config: Config = serde_json::from_str(&text).expect(path);
    let names: Vec<String> = config.nodes.keys().cloned().collect();
    let index = |name: &String| names.iter().position(|n| n == name).expect("a node");
    Failover {
        node: config.node,
        secret_files: match config.secret_files.is_empty() {
            true => vec![config.secret_file],
            false => config.secret_files,
        },
        withdraw_delay: Duration::ZERO,
        startup_delay: Duration::from_millis(config.startup_delay_ms),
        paths: names
            .iter()
            .map(|name| config.paths.get(name).cloned().unwrap_or_default())
            .collect(),
        track: config
            .track
            .into_iter()
            .map(|(name, track)| track.track(name))
            .collect(),
        beat: Duration::from_millis(config.beat_ms),
        dead_after: Duration::from_millis(config.dead_after_ms),
        nodes: config.nodes.into_iter().collect(),
        witnesses: config.witnesses,
        arbiter: None,
        quorum: config.quorum,
        vips: config
            .vips
            .iter()
            .map(|vip| Vip {
                address: vip.address,
                interface: vip.interface.clone(),
                hold: Holders::One,
                prefer: vip.prefer.iter().map(index).collect(),
                preempt: vip.preempt,
                preempt_delay: Duration::from_millis(vip.preempt_delay_ms),
                garp_refresh: vip.garp_refresh_ms.map(Duration::from_millis),
                requires: vip.requires.iter().map(ToString::to_string).collect(),
                group: vip.group.clone(),
            })
            .collect(),
        notify: config.notify,
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["keeper"] => return weir::keeper::main(),
        ["runner"] => return weir::runner::main(),
        ["run", config] => run(config),
        ["answer", name, at] => answer(name, at.parse().expect("an address")),
        ["probe", to, ms] => probe(to.parse().expect("an address"), ms.parse().expect("ms")),
        _ => return ExitCode::from(2),
    }
    ExitCode::SUCCESS
}

fn run(path: &str) {
    weir::control::event_log::start();
    weir::control::event_log::spawn().unwrap();
    let mut config = read(path);
    let helpers = Helpers::start(&config, None).expect("keeper and runner");
    let local = Arc::new(Mutex::new(Local {
        serving: true,
        detail: String::new(),
        without_backend: Vec::new(),
    }));
    let ask = || {
        let local = local.clone();
        Process {
            local: Box::new(move || local.lock().clone()),
            leave: Box::new(|_, _| {}),
        }
    };
    let (events, _) = crossbeam_channel::bounded(1);
    let mut handle = Election::start(&config, helpers, ask(), events.clone()).expect("election");
    for vip in &config.vips {
        let (name, address) = (config.node.clone(), vip.address.addr());
        std::thread::spawn(move || answer(&name, SocketAddr::new(address, 7777)));
    }
    urgent_thread();
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("standard input");
        let words: Vec<&str> = line.split(' ').collect();
        let ip = |word: &str| -> IpAddr { word.parse().expect("an address") };
        let reply = match words[..] {
            ["status"] => {
                let status = handle.status();
                serde_json::json!({
                    "vips": status.vips, "nodes": status.nodes, "keeper": status.keeper,
                    "witnesses": status.witnesses, "tracks": status.tracks,
                    "rejected": status.rejected.iter().map(|(_, n)| n).sum::<u64>(),
                })
                .to_string()
            }
            ["serving", yes] => {
                local.lock().serving = yes == "yes";
                "ok".into()
            }
            ["pool", n, state] => {
                let without = &mut local.lock().without_backend;
                without.retain(|name| name != n);
                if state == "down" {
                    without.push(n.into());
                }
                "ok".into()
            }
            ["demote", a] => format!("{:?}", handle.order(Order::Demote(ip(a)))),
            ["allow", a] => format!("{:?}", handle.order(Order::Allow(ip(a)))),
            ["reload", file] => {
                config = read(file);
                format!("{:?}", handle.prepare(&config).and_then(|new| handle.reconfigure(new)))
            }
            ["upgrade"] => {
                let detached = handle.detach().expect("detach");
                handle = Election::resume(&config, detached, ask(), events.clone()).expect("resume");
                "ok".into()
            }
            ["stop"] => {
                let began = Instant::now();
                handle.stop();
                println!("{:?}", began.elapsed());
                return;
            }
            _ => "?".into(),
        };
        println!("{reply}");
        std::io::stdout().flush().expect("standard output");
    }
}

/// Answers every datagram with the node's name; the address need not be here yet.
///
/// Urgent like the election itself, as are all threads here that take part in a measurement: on a busy machine the test would
/// measure who waits for a CPU.
fn answer(name: &str, to: SocketAddr) {
    urgent_thread();
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None).expect("socket");
    match to.ip() {
        IpAddr::V4(_) => socket.set_freebind_v4(true).expect("freebind"),
        IpAddr::V6(_) => socket.set_freebind_v6(true).expect("freebind"),
    }
    socket.bind(&to.into()).expect("bind");
    let socket = UdpSocket::from(socket);
    let mut buffer = [0; 64];
    while let Ok((n, from)) = socket.recv_from(&mut buffer) {
        if n == 8 {
            let reply = [&buffer[..8], name.as_bytes()].concat();
            let _ = socket.send_to(&reply, from);
        }
    }
}

fn probe(to: SocketAddr, ms: u64) {
    urgent_thread();
    let any: SocketAddr = if to.is_ipv4() {
        "0.0.0.0:0".parse().expect("an address")
    } else {
        "[::]:0".parse().expect("an address")
    };
    let socket = Arc::new(UdpSocket::bind(any).expect("bind"));
    socket
        .set_read_timeout(Some(Duration::from_millis(100)))
        .expect("timeout");
    let mut sent = vec![0u64; ms as usize];
    let reader = {
        let socket = socket.clone();
        let until = Instant::now() + Duration::from_millis(ms + 200);
        std::thread::spawn(move || {
            urgent_thread();
            let mut answers = vec![(0u64, String::new()); ms as usize];
            let mut buffer = [0; 64];
            while Instant::now() < until {
                let Ok((n, _)) = socket.recv_from(&mut buffer) else {
                    continue;
                };
                let ix = u64::from_be_bytes(buffer[..8].try_into().expect("8 bytes")) as usize;
                if answers[ix].0 == 0 {
                    let node = String::from_utf8_lossy(&buffer[8..n]).into_owned();
                    answers[ix] = (monotonic().as_micros() as u64, node);
                }
            }
            answers
        })
    };
    let start = Instant::now();
    for (ix, at) in sent.iter_mut().enumerate() {
        let due = start + Duration::from_millis(ix as u64);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        *at = monotonic().as_micros() as u64;
        let _ = socket.send_to(&(ix as u64).to_be_bytes(), to);
    }
    let answers = reader.join().expect("the reader");
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for (at, (answered, node)) in sent.iter().zip(answers) {
        writeln!(out, "{at} {answered} {node}").expect("standard output");
    }
}
