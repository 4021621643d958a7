//! Whole workers under a seeded simulation: the real turn, with `tcp`, `udp`, `listen` and `sockets`, over a fake kernel.
//!
//! Each seed makes one to three workers with a listener of either protocol, clients and backends with habits (how much they say,
//! how they end, whether they stop reading or fall silent), and a configuration. For some hundred rounds anything happens in
//! any order: peers speak, read, end, reset; calls fail ([`kernel`], [`calls`]); events are late and merged; backends go down
//! and come back, a reload changes the policy, an operator kills, sheds and closes, a worker retires and hands over what it
//! has. Then the faults end and everybody finishes what they have begun.
//!
//! Checked after each turn: whoever waits is owed an event or has a timer; pipes add up. Checked in the end: nobody is left
//! over; every gauge is at zero, every descriptor closed, every pipe gone; every byte that arrived is the one that was sent, by
//! the peer on the other side and by nobody else; no FIN behind a part; what was sent before a reset has arrived; who did
//! nothing wrong finished; every datagram arrived unchanged, at most twice (once more after a refusal), and every reply at its
//! client, from the address that it had asked.
//!
//! Rules that were broken to see this fail: see the table at [`seeds`].
//!
//! `WEIR_SEED=n cargo test --lib worker::sim` replays one seed.

pub(in crate::worker) mod calls;
mod kernel;
mod verdict;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};

use super::{Settings, Worker};
use crate::balance::{Member, Picker, Shares, identity};
use crate::base::{Rng, Side};
use crate::config;
use crate::config::model::{Config, Protocol, SendProxy};
use crate::gate::Gate;
use crate::health::{Candidate, Eligibility, Standing};
use crate::link::{self, Address, Command, EngineOrder, ListenSocket, Record, Shared, Shed, SocketMove};
use crate::relay::{Cause, proxy_header};
use crate::snapshot::{Backend, Listener, Listeners, Owner, Pool, Snapshot};
use crate::stats::{BackendStats, ListenerStats};
use crate::sys::socket::ConnectError;
use crate::sys::udp::Trouble;
use kernel::{Datagram, File, Goodbye, Handshake, Kernel, Port, Queue, Stream, with};

/// How many run: `scripts/test` sets 500.
const SEEDS: u64 = 100;
/// Rounds in which anything happens.
const ROUNDS: usize = 250;
/// Rounds in which everybody has to finish.
const FINISH_ROUNDS: usize = 2_000;
const WEB: &str = "10.0.0.1:80";
const DNS: &str = "10.0.0.1:53";
const PROXY: [u8; 4] = [198, 51, 100, 7];

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// What is drawn for a seed.
#[derive(Debug, Clone, Copy)]
struct Nature {
    /// Peers fall silent and deaf, and timers end what they leave behind.
    timed: bool,
    /// An operator and control interfere.
    rough: bool,
    /// Peers reset.
    resets: bool,
    bulk: bool,
    urgent: bool,
    faulty: bool,
}

/// A datagram of a client, and what became of it.
#[derive(Debug, Default)]
struct Asked {
    len: usize,
    arrived: u32,
    answered: u32,
    replies: u32,
}

struct World {
    seed: u64,
    rng: Rng,
    nature: Nature,
    config: Config,
    shared: Arc<Shared>,
    records: Receiver<Record>,
    listeners: Arc<Listeners>,
    listener_stats: Vec<Arc<ListenerStats>>,
    backends: HashMap<u64, Arc<BackendStats>>,
    snapshots: u64,
    generation: u64,
    workers: Vec<(Worker, link::Worker)>,
    clients: u16,
    ids: Vec<u64>,
    asked: BTreeMap<(u16, u32), Asked>,
}

impl World {
    fn new(seed: u64) -> World {
        with(|kernel| *kernel = Kernel::new(seed));
        let mut rng = Rng::new(seed ^ 0x5eed);
        let mut odds = |one_in: u64| rng.below(one_in) == 0;
        let nature = Nature {
            timed: odds(3),
            rough: odds(3),
            resets: odds(3),
            bulk: odds(4),
            urgent: odds(2),
            faulty: !odds(4),
        };
        let mut text = String::from("{limits: {connections: ");
        text += if odds(6) { "6" } else { "1000" };
        text += ", udp_sessions: ";
        text += if odds(4) { "4" } else { "1000" };
        text += "}, listeners: {web: {bind: '10.0.0.1:80', pool: web, timeouts: {idle: ";
        text += if nature.timed {
            "2s, half_close: 1s"
        } else {
            "60s, half_close: 60s"
        };
        text += if nature.timed && odds(3) { ", max_age: 3s}" } else { "}" };
        text += match (odds(4), odds(4)) {
            (true, _) => ", limits: {download: 1MiB/s}",
            (_, true) => ", limits: {connections: 3, per_source: 2}",
            _ => "",
        };
        text += ", accept_proxy: {from: [198.51.100.0/24]}}, dns: {protocol: udp, bind: '10.0.0.1:53', pool: dns, udp: {idle: 1s";
        text += if odds(2) { ", replies: 1" } else { "" };
        text += if odds(4) { ", requests: 2}" } else { "}" };
        text += if odds(4) { ", limits: {connections: 3}" } else { "" };
        text += "}}, pools: {";
        for (name, port) in [("web", 8080), ("dns", 53)] {
            text += &format!("{name}: {{");
            text += if name == "web" {
                "connect: {timeout: 1s, attempts: 3}, "
            } else {
                ""
            };
            text += if odds(3) { "send_proxy: v2, " } else { "" };
            text += if odds(3) { "balance: source_hash, " } else { "" };
            let cap = if odds(3) { ", max_connections: 3" } else { "" };
            let list: Vec<String> = (1..4)
                .map(|n| format!("{{address: '10.1.0.{n}:{port}'{cap}}}"))
                .collect();
            text += &format!("backends: [{}]}}, ", list.join(", "));
        }
        text += "}}";
        let config = config::parse("sim", &text)
            .unwrap_or_else(|errors| panic!("{text}: {errors}"))
            .config;
        let (records, received) = bounded(100_000);
        let epoch = with(|kernel| kernel.now);
        let shared = Shared::new(Some(records), bounded(1).0, epoch);
        let mut world = World {
            seed,
            nature,
            listener_stats: config.listeners.iter().map(|_| ListenerStats::new(1)).collect(),
            config,
            shared,
            records: received,
            listeners: Arc::default(),
            backends: HashMap::new(),
            snapshots: 0,
            generation: 0,
            workers: Vec::new(),
            clients: 0,
            ids: Vec::new(),
            asked: BTreeMap::new(),
            rng,
        };
        world.reload();
        world.start_workers();
        let nature = world.nature;
        with(|kernel| {
            kernel.faulty = nature.faulty;
            kernel.reach = Box::new(move |rng, to, who| reach(rng, to, who, nature));
        });
        world
    }

    fn start_workers(&mut self) {
        for id in 0..=self.rng.below(3) as usize {
            let settings = Settings {
                pipes_max: self.rng.below(4) as usize,
                seed: self.seed,
            };
            let (mut worker, handle) = Worker::new(id, self.shared.clone(), settings).unwrap();
            worker.context.adopt();
            for (listener, address) in [(0, addr(WEB)), (1, addr(DNS))] {
                let merges = self.rng.below(2) == 0;
                let fd = with(|kernel| match listener {
                    0 => kernel.open(File::Queue(Queue::default())),
                    _ => kernel.open(File::Port(Port::new(address, None, merges))),
                });
                let socket = ListenSocket {
                    listener,
                    local: Address::Ip(address),
                    fd,
                };
                let sessions = Vec::new();
                handle.send(Command::Sockets(SocketMove::Serve { socket, sessions }));
            }
            self.workers.push((worker, handle));
        }
        self.announce_workers(usize::MAX);
    }

    fn announce_workers(&self, retiring: usize) {
        let handles = self.workers.iter().map(|(_, handle)| handle.clone());
        let (retired, serving) = handles.partition(|handle| handle.id == retiring);
        self.shared.set_workers(serving, retired);
    }

    /// A configuration comes into force.
    fn reload(&mut self) {
        let listeners = self.config.listeners.iter().zip(&self.listener_stats).enumerate();
        let listeners = listeners.map(|(id, (config, stats))| {
            let before = self.listeners.get(id as u32).map(|known| &*known.gate);
            let gate = Gate::new(config, stats.clone(), before);
            Arc::new(Listener {
                id: id as u32,
                config: config.clone(),
                pool: self.config.pools[config.pool].policy.name.as_str().into(),
                owner: Owner::WORKERS,
                stats: stats.clone(),
                gate,
            })
        });
        self.listeners = Arc::new(Listeners::new(listeners.collect()));
        self.generation += 1;
        self.publish(false);
    }

    /// Backends are as they are now; `some_down`: not all of them are well.
    fn publish(&mut self, some_down: bool) {
        let mut pools = Vec::new();
        for pool in &self.config.pools {
            let mut members = Vec::new();
            let mut backends = Vec::new();
            let mut candidates = Vec::new();
            for config in &pool.backends {
                let identity = identity(&pool.policy.name, &config.address.to_string());
                let stats = self.backends.entry(identity).or_insert_with(|| BackendStats::new(1));
                members.push(Member { identity, weight: 1 });
                backends.push(Arc::new(Backend {
                    identity,
                    pool: pool.policy.name.as_str().into(),
                    config: config.clone(),
                    send_proxy: pool.policy.send_proxy,
                    stats: stats.clone(),
                }));
                let down = some_down && self.rng.below(3) == 0;
                candidates.push(Candidate {
                    standing: if down { Standing::Unhealthy } else { Standing::Ready },
                    weight: 1,
                    backup: false,
                    share: Shares::WHOLE,
                });
            }
            pools.push(Arc::new(Pool {
                picker: Picker::new(pool.policy.balance, &pool.policy.source_hash, &members),
                eligibility: Eligibility::new(&candidates, pool.policy.all_down),
                config: Arc::new(pool.policy.clone()),
                backends,
            }));
        }
        self.snapshots += 1;
        let limits = if self.config.pools[0].backends.is_empty() {
            0
        } else {
            1_000
        };
        self.shared.publish(Arc::new(Snapshot {
            version: self.snapshots,
            generation: self.generation,
            listeners: self.listeners.clone(),
            pools,
            connections_max: self.config.limits.connections.unwrap_or(limits),
            connections_stated: self.seed % 2 == 0,
            sessions_max: self.config.limits.udp_sessions.unwrap_or(limits),
            interim: (self.seed % 5 == 0).then_some(Duration::from_millis(300)),
        }));
    }

    /// A client connects.
    fn connect(&mut self) {
        let (rng, nature) = (&mut self.rng, self.nature);
        self.clients += 1;
        let through_proxy = rng.below(6) == 0;
        let peer = match through_proxy {
            true => SocketAddr::from((PROXY, self.clients)),
            false => SocketAddr::from(([192, 0, 2, rng.below(3) as u8], self.clients)),
        };
        let who = with(Kernel::number) as u32;
        let mut stream = Stream::new(who, Side::Client, addr(WEB), peer);
        habits(&mut stream, rng, nature);
        if through_proxy {
            stream.prefix = proxy_header::build(SendProxy::V2, Protocol::Tcp, Some((peer, addr(WEB))));
            stream.to_send += stream.prefix.len();
        }
        let nth = rng.below(self.workers.len() as u64) as usize;
        with(|kernel| {
            let queues = kernel.files().filter_map(|(_, file)| match file {
                File::Queue(queue) => Some(queue),
                _ => None,
            });
            let mut queues: Vec<&mut Queue> = queues.collect();
            if !queues.is_empty() {
                let nth = nth % queues.len();
                queues[nth].waiting.push_back(stream);
            }
        });
    }

    /// Something happens to one of the streams.
    fn stir(&mut self, all: bool) {
        let (rng, nature) = (&mut self.rng, self.nature);
        with(|kernel| {
            kernel.reap();
            for stream in kernel.streams() {
                if !all && rng.below(3) != 0 {
                    continue;
                }
                if nature.resets && !all && rng.below(300) == 0 && stream.handshake == Handshake::Done {
                    stream.break_off();
                }
                if rng.below(2) == 0 || all {
                    stream.shake();
                }
                if rng.below(2) == 0 || all {
                    stream.arrive(rng, if nature.bulk { 250_000 } else { 400 }, nature.urgent);
                }
                if rng.below(2) == 0 || all {
                    stream.deliver(rng, all);
                }
            }
            for stream in kernel.past.iter_mut().filter(|stream| stream.is_listening()) {
                let all = all || rng.below(2) == 0;
                stream.deliver(rng, all);
            }
        });
    }

    /// A client sends datagrams.
    fn ask(&mut self) {
        let rng = &mut self.rng;
        let client = 1 + rng.below(12) as u16;
        let many = rng.below(6) == 0;
        let longest = if rng.below(4) == 0 { 1_200 } else { 40 };
        let len = 6 + rng.below(longest) as usize;
        let ports = with(|kernel| listening_ports(kernel));
        let Some(&fd) = ports.get(usize::from(client) % ports.len().max(1)) else {
            return;
        };
        for _ in 0..if many { 1 + rng.below(9) } else { 1 } {
            let seq = self.asked.len() as u32;
            self.asked.insert(
                (client, seq),
                Asked {
                    len,
                    ..Asked::default()
                },
            );
            let bytes = datagram(client, seq, len);
            let peer = client_address(client);
            with(|kernel| kernel.port(fd).unwrap().rx.push_back(Datagram { peer, bytes }));
        }
    }

    /// What weir has sent arrives.
    fn network(&mut self, calm: bool) {
        let sends_proxy = self.config.pools[1].policy.send_proxy != SendProxy::Off;
        for gone in with(|kernel| std::mem::take(&mut kernel.gone)) {
            if !gone.connected {
                self.arrive_at_client(&gone);
                continue;
            }
            let mut bytes = &gone.bytes[..];
            if sends_proxy && let proxy_header::Parsed::Header { len, .. } = proxy_header::parse(bytes) {
                bytes = &bytes[len..];
            }
            let (client, seq) = name_of(bytes);
            let asked = self
                .asked
                .get_mut(&(client, seq))
                .unwrap_or_else(|| panic!("seed {}: a backend got what no client has sent", self.seed));
            assert_eq!(bytes, datagram(client, seq, asked.len), "seed {}", self.seed);
            asked.arrived += 1;
            assert!(
                asked.arrived <= 3,
                "seed {}: {client}/{seq} arrived {} times",
                self.seed,
                asked.arrived
            );
            let reply = Datagram {
                peer: gone.to,
                bytes: datagram(client | 0x8000, seq, asked.len),
            };
            let fate = if calm { 9 } else { self.rng.below(10) };
            with(|kernel| {
                let Some(port) = kernel.port(gone.socket).filter(|port| port.to == Some(gone.to)) else {
                    return;
                };
                match fate {
                    0 => port.refuse(Trouble::Closed, gone.bytes.clone()),
                    1 => port.refuse(Trouble::Unreachable, Vec::new()),
                    2 => {}
                    _ => {
                        asked.answered += 1;
                        port.rx.push_back(reply);
                    }
                }
            });
        }
    }

    fn arrive_at_client(&mut self, gone: &kernel::Gone) {
        let seed = self.seed;
        let (client, seq) = name_of(&gone.bytes);
        let client = client & 0x7fff;
        assert_eq!(
            gone.to,
            client_address(client),
            "seed {seed}: a reply for somebody else"
        );
        assert_eq!(gone.local, addr(DNS), "seed {seed}: a reply from elsewhere");
        let asked = self.asked.get_mut(&(client, seq)).expect("a reply to a request");
        assert_eq!(gone.bytes, datagram(client | 0x8000, seq, asked.len), "seed {seed}");
        asked.replies += 1;
        assert!(asked.replies <= asked.answered, "seed {seed}: a reply was sent twice");
    }

    /// An operator or control interferes.
    fn order(&mut self) {
        let rng = &mut self.rng;
        let nth = rng.below(self.workers.len() as u64) as usize;
        let handle = self.workers[nth].1.clone();
        match rng.below(9) {
            0 | 1 => self.publish(true),
            2 => self.reload(),
            3 => {
                let (reply, live) = bounded(1);
                handle.send(Command::Order(EngineOrder::List { limit: 100, reply }));
                self.turn(nth);
                let live = live.try_recv().unwrap_or_default();
                self.ids.extend(live.iter().map(|connection| connection.id));
            }
            4 => {
                let (reply, _answer) = bounded(1);
                if let Some(id) = self.ids.pop() {
                    handle.send(Command::Order(EngineOrder::Kill { id, reply }));
                }
            }
            5 | 6 => {
                let all: Vec<u64> = self.backends.keys().copied().collect();
                let mut sorted = all;
                sorted.sort_unstable();
                let backend = sorted[rng.below(sorted.len() as u64) as usize];
                let cause = [Cause::Drained, Cause::BackendDown][rng.below(2) as usize];
                let shed = Shed {
                    backend,
                    protocol: None,
                    count: 1 + rng.below(3) as usize,
                    first: 0,
                    cause,
                };
                handle.send(Command::Order(EngineOrder::Shed(shed)));
            }
            7 if self.workers.len() > 1 => self.retire(nth),
            8 if rng.below(4) == 0 => {
                let waker = Arc::new(mio_waker());
                let finished = Arc::new(link::Finished(waker));
                let address = IpAddr::from([10, 0, 0, 1]);
                handle.send(Command::Order(EngineOrder::Leave { address, finished }));
            }
            _ => {}
        }
    }

    /// A worker gives its sockets to another one and ends when it has nothing left.
    fn retire(&mut self, nth: usize) {
        let (_, leaving) = &self.workers[nth];
        if !self.shared.workers().iter().any(|worker| worker.id == leaving.id) || self.shared.workers().len() < 2 {
            return;
        }
        self.announce_workers(leaving.id);
        let to = self.shared.workers()[0].clone();
        leaving.send(Command::Sockets(SocketMove::HandOver { to }));
        leaving.send(Command::Retire);
    }

    /// One turn of a worker, and what must hold after it.
    fn turn(&mut self, nth: usize) {
        let (worker, _) = &mut self.workers[nth];
        let goes_on = worker.turn().unwrap();
        worker.tcp.assert_consistent();
        if !goes_on {
            let (mut worker, _) = self.workers.remove(nth);
            worker.finish();
        }
    }

    fn turns(&mut self) {
        for nth in (0..self.workers.len()).rev() {
            if self.rng.below(4) != 0 {
                self.turn(nth);
            }
        }
    }

    fn run(mut self) -> BTreeMap<&'static str, u64> {
        with(|kernel| kernel.patience = Duration::from_millis(if self.nature.timed { 30 } else { 4 }));
        for _ in 0..ROUNDS {
            match self.rng.below(12) {
                0 => self.connect(),
                1 | 2 => self.ask(),
                3 if self.nature.rough => self.order(),
                _ => self.stir(false),
            }
            self.network(false);
            self.turns();
        }
        self.settle();
        self.end()
    }

    /// Faults end, and everybody finishes.
    fn settle(&mut self) {
        with(|kernel| {
            kernel.faulty = false;
            kernel.patience = Duration::from_millis(20);
        });
        self.publish(false);
        for _ in 0..FINISH_ROUNDS {
            self.stir(true);
            self.network(true);
            for nth in (0..self.workers.len()).rev() {
                self.turn(nth);
            }
            let is_idle = |(worker, handle): &(Worker, link::Worker)| {
                worker.tcp.is_empty() && worker.udp.is_empty() && handle.commands.is_empty()
            };
            let waiting = with(|kernel| {
                kernel
                    .files()
                    .any(|(_, file)| matches!(file, File::Queue(queue) if !queue.waiting.is_empty()))
            });
            if !waiting && self.workers.iter().all(is_idle) {
                return;
            }
        }
        let left: Vec<String> = self.workers.iter().map(|(worker, _)| worker.tcp.tell()).collect();
        let streams = with(|kernel| kernel.streams().map(|stream| stream.tell()).collect::<Vec<_>>());
        panic!("seed {}: stalled: {left:?} {streams:#?} {:?}", self.seed, self.nature);
    }

    /// Everything is closed, and everything adds up.
    fn end(mut self) -> BTreeMap<&'static str, u64> {
        let seed = self.seed;
        for (mut worker, _) in self.workers.drain(..) {
            worker.finish();
        }
        let process = &self.shared.process;
        assert_eq!(
            (process.connections.get(), process.udp_sessions.get()),
            (0, 0),
            "seed {seed}: the process"
        );
        for stats in &self.listener_stats {
            assert_eq!(stats.active.get(), 0, "seed {seed}: a listener");
        }
        for stats in self.backends.values() {
            assert_eq!(stats.active.get(), 0, "seed {seed}: a backend");
        }
        let mut rng = Rng::new(seed);
        let (left, pipes, past, faults) = with(|kernel| {
            kernel.reap();
            for stream in &mut kernel.past {
                stream.deliver(&mut rng, true);
            }
            let left = kernel.files().count();
            (
                left,
                kernel.pipes.len(),
                std::mem::take(&mut kernel.past),
                std::mem::take(&mut kernel.faults),
            )
        });
        assert_eq!(
            (left, pipes),
            (0, 0),
            "seed {seed}: descriptors and pipes are left open"
        );
        verdict::check(seed, self.nature, &self.config, past, self.records.try_iter().collect());
        faults
    }
}

/// What a peer does of its own accord.
fn habits(stream: &mut Stream, rng: &mut Rng, nature: Nature) {
    let most = if nature.bulk && rng.below(2) == 0 {
        300_000
    } else {
        1_500
    };
    stream.to_send = rng.below(most) as usize;
    let room = if rng.below(2) == 0 { 300 } else { 250_000 };
    let least = if nature.bulk { 20_000 } else { 20 };
    stream.tx_room = least + rng.below(room) as usize;
    if nature.resets && rng.below(3) == 0 {
        stream.goodbye = Goodbye::Reset;
    }
    if nature.timed && rng.below(4) == 0 {
        stream.goodbye = Goodbye::Silence;
    }
    if nature.timed && rng.below(4) == 0 {
        stream.deaf_after = rng.below(500) as usize;
    }
}

/// What a connection to a backend meets.
fn reach(rng: &mut Rng, to: SocketAddr, who: u32, nature: Nature) -> Result<Stream, ConnectError> {
    let local = SocketAddr::from(([10, 9, 9, 9], who as u16));
    let mut stream = Stream::new(who, Side::Backend, local, to);
    habits(&mut stream, rng, nature);
    // Room for a PROXY header, as every new socket has.
    stream.tx_room = stream.tx_room.max(64);
    stream.handshake = match rng.below(if nature.faulty { 12 } else { 5 }) {
        0..4 => Handshake::Under,
        4 => Handshake::Done,
        5 => Handshake::Refuses,
        6 => return Err(ConnectError::Refused),
        7 => Handshake::Ignored,
        _ => Handshake::Under,
    };
    Ok(stream)
}

fn listening_ports(kernel: &mut Kernel) -> Vec<RawFd> {
    let ports = kernel
        .files()
        .filter(|(_, file)| matches!(file, File::Port(port) if port.to.is_none()));
    ports.map(|(fd, _)| fd.as_raw_fd()).collect()
}

fn client_address(client: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 200], client))
}

/// What a client (or, with the highest bit, a backend in reply) sends.
fn datagram(client: u16, seq: u32, len: usize) -> Vec<u8> {
    let mut bytes = [&client.to_le_bytes()[..], &seq.to_le_bytes()].concat();
    bytes.extend((6..len).map(|at| (at as u32 ^ seq ^ u32::from(client)) as u8));
    bytes
}

fn name_of(bytes: &[u8]) -> (u16, u32) {
    let client = u16::from_le_bytes([bytes[0], bytes[1]]);
    (client, u32::from_le_bytes([bytes[2], bytes[3], bytes[4], bytes[5]]))
}

fn mio_waker() -> mio::Waker {
    let poll = mio::Poll::new().unwrap();
    mio::Waker::new(poll.registry(), mio::Token(0)).unwrap()
}

/// See the module.
///
/// | rule broken on purpose | how the simulation says so |
/// |---|---|
/// | after a rest for want of memory nothing counts as ready (`pump::resume`) | stalled |
/// | connections are always closed in order (`Connection::ending`) | FIN behind a part |
/// | what a lane holds is forgotten with its connection (`Pipes::discard`) | pipes do not add up |
/// | no timer for an attempt to connect (`Next::Schedule`) | whoever waits has a timer |
/// | a session that its listener refuses keeps its place in the process | a gauge is not at zero |
#[test]
fn seeds() {
    if let Ok(seed) = std::env::var("WEIR_SEED") {
        World::new(seed.parse().unwrap()).run();
        return;
    }
    let mut faults: BTreeMap<&str, u64> = BTreeMap::new();
    let seeds = std::env::var("WEIR_SEEDS").map_or(SEEDS, |seeds| seeds.parse().unwrap());
    for seed in 0..seeds {
        for (call, count) in World::new(seed).run() {
            *faults.entry(call).or_default() += count;
        }
    }
    // Whatever is not met is not tested.
    println!("{faults:?}");
    for call in FAULTS {
        assert!(faults.contains_key(call), "{call} never failed");
    }
}

const FAULTS: [&str; 15] = [
    "EAGAIN",
    "ECONNRESET",
    "ENOBUFS",
    "accept4: ECONNABORTED",
    "accept4: EMFILE",
    "connect: EADDRNOTAVAIL",
    "epoll_ctl: ENOSPC",
    "pipe2: EMFILE",
    "recvmmsg: ENOMEM",
    "sendmmsg: EIO",
    "sendmmsg: ENOBUFS",
    "socket: EMFILE",
    "udp connect: ENETUNREACH",
    "udp send: ENOBUFS",
    "udp socket: EMFILE",
];
