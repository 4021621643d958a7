//! Transfers while everything around them changes: weights, the configuration, the binary, the process.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use weir::base::Rng;

use super::common::client::{connect, round_trip, try_connect};
use super::common::netns::Netns;
use super::common::operator::tell;
use super::common::server::Server;
use super::common::{Launch, PATIENCE, Weir, command, may_make_namespaces, run, seed, wait_until};
use super::hosts::{Family, Net, V4, V6};

/// Random bytes; a transfer sends a part of them, so that any shift or repetition shows.
static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut rng = Rng::new(23);
    let words = std::iter::repeat_with(|| rng.next_u64().to_le_bytes());
    words.take(1 << 18).flatten().collect()
});

/// What a client says first: which directions have bytes, which bytes, and how long it takes over them.
#[derive(Debug, Clone, Copy)]
struct Transfer {
    up: bool,
    down: bool,
    from: u32,
    length: u32,
    /// After each quarter.
    pause_ms: u16,
}

const HEAD: usize = 11;
/// Behind what the backend sends: all that it got was right.
const RIGHT: u8 = b'!';

impl Transfer {
    fn new(rng: &mut Rng) -> Transfer {
        let length = match rng.below(10) {
            0 => 0,
            1..=3 => rng.below(3_000),
            4..=8 => rng.below(60_000),
            _ => rng.below(1_000_000),
        };
        let way = rng.below(3);
        Transfer {
            up: way != 0,
            down: way != 1,
            from: rng.below(BYTES.len() as u64 - length) as u32,
            length: length as u32,
            pause_ms: [0, 20, 100, 400][rng.below(4) as usize],
        }
    }

    fn head(self) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head[0] = u8::from(self.up) | u8::from(self.down) << 1;
        head[1..5].copy_from_slice(&self.from.to_be_bytes());
        head[5..9].copy_from_slice(&self.length.to_be_bytes());
        head[9..].copy_from_slice(&self.pause_ms.to_be_bytes());
        head
    }

    fn of(head: [u8; HEAD]) -> Transfer {
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        Transfer {
            up: head[0] & 1 != 0,
            down: head[0] & 2 != 0,
            from: word(1),
            length: word(5),
            pause_ms: u16::from_be_bytes([head[9], head[10]]),
        }
    }

    fn bytes(self, has_any: bool) -> &'static [u8] {
        match has_any {
            true => &BYTES[self.from as usize..][..self.length as usize],
            false => &[],
        }
    }

    /// In four parts, with a pause after each.
    fn send(self, mut to: &TcpStream, bytes: &[u8]) -> std::io::Result<()> {
        for part in bytes.chunks(bytes.len().div_ceil(4).max(1)) {
            to.write_all(part)?;
            std::thread::sleep(Duration::from_millis(self.pause_ms.into()));
        }
        Ok(())
    }
}

/// A backend's end.
fn serve(mut stream: TcpStream) {
    let mut head = [0; HEAD];
    if stream.read_exact(&mut head).is_err() {
        // A probe.
        return;
    }
    let transfer = Transfer::of(head);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| transfer.send(&stream, transfer.bytes(transfer.down)));
        let mut got = Vec::new();
        let read = (&stream).read_to_end(&mut got);
        let right = read.is_ok() && got == transfer.bytes(transfer.up);
        if sender.join().unwrap().is_ok() && right {
            let _ = (&stream).write_all(&[RIGHT]);
        }
    });
}

/// A client's end; what went wrong.
fn transfer(address: &str, transfer: Transfer) -> Result<(), String> {
    let said = |what: &str, error: std::io::Error| format!("{what} {address}: {error}, {transfer:?}");
    let stream = try_connect(address, None).map_err(|error| said("connecting to", error))?;
    (&stream)
        .write_all(&transfer.head())
        .map_err(|error| said("writing to", error))?;
    let mut got = Vec::new();
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            transfer.send(&stream, transfer.bytes(transfer.up))?;
            stream.shutdown(Shutdown::Write)
        });
        let read = (&stream).read_to_end(&mut got);
        sender.join().unwrap().map_err(|error| said("writing to", error))?;
        read.map_err(|error| said("reading from", error))
    })?;
    match got.split_last() {
        Some((&RIGHT, rest)) if rest == transfer.bytes(transfer.down) => Ok(()),
        _ => Err(format!("{address}: {} bytes have come, {transfer:?}", got.len())),
    }
}

/// Questions and answers, one after the other: none may be lost.
fn conversation(address: &str, rng: &mut Rng) -> Result<(), String> {
    let to: SocketAddr = address.parse().unwrap();
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let said = |error: std::io::Error| format!("{address}: {error}");
    let socket = UdpSocket::bind(any).map_err(said)?;
    socket.connect(to).map_err(said)?;
    socket.set_read_timeout(Some(PATIENCE)).map_err(said)?;
    for _ in 0..10 {
        let length = 8 + rng.below(1_400) as usize;
        let from = rng.below(BYTES.len() as u64 - 2_000) as usize;
        let sent = &BYTES[from..from + length];
        let mut buffer = [0; 2_000];
        socket.send(sent).map_err(said)?;
        let got = socket.recv(&mut buffer).map_err(said)?;
        if buffer[..got] != *sent {
            return Err(format!("{address}: another datagram has come back"));
        }
        std::thread::sleep(Duration::from_millis(rng.below(60)));
    }
    Ok(())
}

/// A weir that dies and is replaced, and others in its place.
struct Line<'a> {
    net: &'a Net,
    file: PathBuf,
    /// All that were started, not what they have become.
    started: Vec<Weir>,
    _ends: Ends<'a>,
}

/// Ports of the services.
const NAT: u16 = 80;
const KEEP: u16 = 81;
const DNS: u16 = 53;

fn pools(weight: u64) -> String {
    let mut text = String::new();
    for (name, family) in [("4", V4), ("6", V6)] {
        for (kind, port, more) in [
            ("nat", 8080, "balance: round_robin"),
            ("keep", 8080, "kernel: {mode: keep}, balance: least_conn"),
            ("dns", 5353, "health: none, balance: round_robin"),
        ] {
            // A busy machine may be slow to answer a probe, and that is not what is asked here.
            let health = match kind {
                "dns" => "",
                _ => ", health: {interval: 1s, timeout: 1s, fall: 10}",
            };
            text += &format!(
                "  {kind}{name}: {{{more}{health}, backends: [{{name: a, address: '{}', weight: {weight}}}, {{name: b, address: '{}'}}]}}\n",
                family.backend(0, port),
                family.backend(1, port)
            );
        }
    }
    text
}

/// `round` changes with each reload: a listener comes and goes, weights and idle times change.
fn yaml(round: u64) -> String {
    let mut listeners = String::new();
    for (name, family) in [("4", V4), ("6", V6)] {
        let idle = 10 + round % 2;
        for (kind, port) in [("nat", NAT), ("keep", KEEP)] {
            listeners += &format!(
                "  {kind}{name}: {{engine: kernel, bind: ['{}'], pool: {kind}{name}, timeouts: {{idle: {idle}m}}}}\n",
                family.service(port)
            );
        }
        listeners += &format!(
            "  dns{name}: {{engine: kernel, protocol: udp, bind: ['{}'], pool: dns{name}}}\n",
            family.service(DNS)
        );
        if round % 2 == 1 {
            listeners += &format!(
                "  passing{name}: {{engine: kernel, bind: ['{}'], pool: nat{name}}}\n",
                family.service(82)
            );
        }
    }
    format!(
        "workers: 1\nkernel: {{restart_grace: 30s}}\nlisteners:\n{listeners}pools:\n{}",
        pools(1 + round % 3)
    )
}

impl Line<'_> {
    fn start(net: &Net) -> Line<'_> {
        let first = Launch::new(&yaml(0)).inside(&net.balancer).start();
        Line {
            net,
            file: first.dir().join("weir.yaml"),
            started: vec![first],
            _ends: Ends(&net.balancer),
        }
    }

    fn admin(&self) -> PathBuf {
        self.file.with_file_name("admin.sock")
    }

    /// Replaces the file at once.
    fn rewrite(file: &Path, yaml: &str) {
        let new = file.with_extension("new");
        let head = format!(
            "admin: {}\nlog: {{access: stdout}}\n",
            file.with_file_name("admin.sock").display()
        );
        std::fs::write(&new, head + yaml).unwrap();
        std::fs::rename(&new, file).unwrap();
    }

    /// The process that serves.
    fn pid(&self) -> Option<i32> {
        status(&self.admin())?["pid"].as_i64().map(|pid| pid as i32)
    }

    #[track_caller]
    fn wait_for_other(&self, pid: i32) {
        wait_until("another process serves, alone", || {
            self.pid().is_some_and(|now| now != pid) && processes(&self.net.balancer, "run").len() == 1
        });
    }

    fn upgrade(&self) {
        let pid = self.pid().expect("it answers");
        kill(Pid::from_raw(pid), Signal::SIGUSR2).unwrap();
        self.wait_for_other(pid);
    }

    /// `kill -9` of the main process, and another one.
    fn kill(&mut self) {
        let pid = self.pid().expect("it answers");
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        wait_until("it is gone", || processes(&self.net.balancer, "run").is_empty());
        let file = self.file.display().to_string();
        let again = Launch::new("").file(&file).inside(&self.net.balancer).start();
        again.wait_for_line("goes on with the connections");
        self.started.push(again);
    }
}

/// Ends what processes of weir are left in a namespace, when dropped: successors are nobody's children any more.
pub struct Ends<'a>(pub &'a Netns);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        for subcommand in ["run", weir::kernel::helper::SUBCOMMAND] {
            for pid in processes(self.0, subcommand) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

fn status(admin: &Path) -> Option<Value> {
    tell(admin, &json!({"command": "status"})).ok()
}

/// Processes of weir in a namespace, by the word after the program's name.
pub fn processes(netns: &Netns, subcommand: &str) -> Vec<i32> {
    let pids = run(command("ip").args(["netns", "pids", netns.name()]));
    let pids = pids.lines().filter_map(|line| line.trim().parse().ok());
    pids.filter(|pid| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|byte| *byte == 0).nth(1) == Some(subcommand.as_bytes())
    })
    .collect()
}

/// How often each thing has been done.
#[derive(Default)]
struct Counts {
    transfers: AtomicUsize,
    weights: AtomicUsize,
    reloads: AtomicUsize,
    errors: Mutex<Vec<String>>,
    by_kind: Mutex<BTreeMap<&'static str, usize>>,
}

/// At least so many transfers while weights change ten times a second, the configuration every second, and the process by upgrades
/// and by `kill -9`, `apart` from each other.
fn nothing_disturbs(transfers: usize, upgrades: usize, kills: usize, apart: Duration) {
    if !may_make_namespaces() {
        return;
    }
    let net = Net::new().through_balancer();
    let _servers: Vec<Server> = [V4, V6]
        .into_iter()
        .flat_map(|family: Family| [0, 1].map(|ix| (family, ix)))
        .map(|(family, ix)| {
            net.udp_echo(ix, &family.backend(ix, 5353));
            net.serve(ix, &family.backend(ix, 8080), serve)
        })
        .collect();
    let mut line = Line::start(&net);
    let (admin, file) = (line.admin(), line.file.clone());
    let (counts, over, done) = (Counts::default(), AtomicBool::new(false), AtomicBool::new(false));
    let first_seed = seed(1);
    let began = Instant::now();

    let one = |rng: &mut Rng| {
        let family = [V4, V6][rng.below(2) as usize];
        let (kind, outcome) = match rng.below(10) {
            0 => ("udp", conversation(&family.service(DNS), rng)),
            1..=5 => ("nat", transfer(&family.service(NAT), Transfer::new(rng))),
            _ => ("keep", transfer(&family.service(KEEP), Transfer::new(rng))),
        };
        *counts.by_kind.lock().unwrap().entry(kind).or_default() += 1;
        if let Err(error) = outcome {
            let at = began.elapsed();
            counts.errors.lock().unwrap().push(format!("{at:?}: {error}"));
        }
    };
    std::thread::scope(|scope| {
        let clients = scope.spawn(|| {
            net.client.enter(|| {
                std::thread::scope(|scope| {
                    for thread in 0..32 {
                        let (one, counts, over) = (&one, &counts, &over);
                        scope.spawn(move || {
                            let mut rng = Rng::new(first_seed * 1_000 + thread);
                            // Each counts before it begins.
                            while counts.transfers.fetch_add(1, Relaxed) < transfers || !over.load(Relaxed) {
                                one(&mut rng);
                            }
                            counts.transfers.fetch_sub(1, Relaxed);
                        });
                    }
                });
            });
        });
        scope.spawn(|| {
            let mut weight = 0;
            while !done.load(Relaxed) {
                weight = weight % 5 + 1;
                for pool in ["nat4", "keep4", "nat6", "keep6"] {
                    let order = json!({"command": "backend", "pool": pool, "name": "a", "order": {"weight": weight}});
                    counts
                        .weights
                        .fetch_add(usize::from(tell(&admin, &order).is_ok()), Relaxed);
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        scope.spawn(|| {
            let mut round = 0;
            while !done.load(Relaxed) {
                std::thread::sleep(Duration::from_secs(1));
                round += 1;
                Line::rewrite(&file, &yaml(round));
                let outcome = tell(&admin, &json!({"command": "reload"}));
                counts.reloads.fetch_add(usize::from(outcome.is_ok()), Relaxed);
            }
        });
        let events = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for event in 0..upgrades + kills {
                std::thread::sleep(apart);
                // Kills are spread evenly among the upgrades.
                let is_kill = (event + 1) * kills / (upgrades + kills) > event * kills / (upgrades + kills);
                match is_kill {
                    true => line.kill(),
                    false => line.upgrade(),
                }
            }
        }));
        over.store(true, Relaxed);
        let _ = clients.join();
        done.store(true, Relaxed);
        if let Err(panic) = events {
            std::panic::resume_unwind(panic);
        }
    });

    let Counts {
        transfers: begun,
        weights,
        reloads,
        errors,
        by_kind,
    } = counts;
    let (errors, by_kind) = (errors.into_inner().unwrap(), by_kind.into_inner().unwrap());
    let took = began.elapsed();
    wait_until("all have ended", || {
        let now = status(&admin).unwrap_or_default();
        let listeners = now["listeners"].as_array().cloned().unwrap_or_default();
        let tcp = listeners.iter().filter(|listener| listener["protocol"] == "tcp");
        !listeners.is_empty() && tcp.map(|listener| listener["active"].as_u64().unwrap()).sum::<u64>() == 0
    });
    let dropped = status(&admin).unwrap()["kernel"]["dropped"].to_string();
    println!(
        "{} transfers ({by_kind:?}) in {took:.1?}, {} of them disturbed, across {} weights, {} reloads, {upgrades} upgrades, \
         {kills} kills; not passed on: {dropped}",
        begun.load(Relaxed),
        errors.len(),
        weights.load(Relaxed),
        reloads.load(Relaxed),
    );
    assert!(errors.is_empty(), "{errors:#?}");
    assert!(by_kind.values().sum::<usize>() >= transfers);
}

/// Seen to fail where a process does not take over what one before it has left.
#[test]
fn nothing_disturbs_a_transfer() {
    nothing_disturbs(150, 2, 1, Duration::from_millis(300));
}

#[test]
#[ignore = "long: 10,000 transfers, some minutes"]
fn nothing_disturbs_ten_thousand_transfers() {
    nothing_disturbs(10_000, 20, 10, Duration::from_secs(3));
}

/// The one process whose end is the end of connections: links and program are its own. The main process ends with it, to be started
/// again, and clients are reset at once instead of waiting.
#[test]
fn connections_end_with_the_helper() {
    if !may_make_namespaces() {
        return;
    }
    let net = Net::new();
    let _servers = [0, 1].map(|ix| net.echo(ix, &V4.backend(ix, 8080)));
    let mut line = Line::start(&net);
    let mut client = net.client.enter(|| connect(&V4.service(NAT)));
    round_trip(&mut client, b"before");
    let helpers = processes(&net.balancer, weir::kernel::helper::SUBCOMMAND);
    assert_eq!(helpers.len(), 1);
    kill(Pid::from_raw(helpers[0]), Signal::SIGKILL).unwrap();
    let ended = line.started[0].wait_for_end();
    assert_eq!(ended.code(), Some(1));
    // The log itself may have been on its way.
    line.started[0].wait_for_line("weir: the helper of the kernel engine has ended");
    client.write_all(b"after").unwrap();
    let read = client.read(&mut [0]);
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    // What a service manager does.
    let file = line.file.display().to_string();
    let again = Launch::new("").file(&file).inside(&net.balancer).start();
    line.started.push(again);
    let mut client = net.client.enter(|| connect(&V4.service(NAT)));
    round_trip(&mut client, b"again");
}
