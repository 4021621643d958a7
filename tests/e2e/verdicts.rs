//! Connections of every kind, all at once, with every cause that a TCP connection can end with; and a verdict on each single
//! one from both of its ends: whoever saw FIN got every byte that the other end had written, whoever saw RST got a part from
//! the beginning, and nobody saw anything else. In the end every gauge is 0, and the records add up.
//!
//! A connection is described by its number alone. Its client begins with that number, so the server behind weir knows what to
//! do, and both write down what they saw under it.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::common::operator::{json, said, status};
use super::common::{Blackhole, PATIENCE, Port, Server, Weir, client, in_parallel, raise_descriptor_limit, wait_until};
use super::integrity::BYTES;
use weir::base::{Rng, Side};
use weir::relay::Cause;

/// What happens on a connection. Each kind has a listener and a pool of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Kind {
    ClientEndsFirst,
    BackendEndsFirst,
    ClientResets,
    BackendResets,
    /// The client resets while the backend writes, and the other way round.
    ClientResetsAmid,
    BackendResetsAmid,
    Idle,
    /// More is written than the reader ever reads.
    IdleStalled,
    HalfClosed,
    HalfClosedStalled,
    MaxAge,
    BackendDown,
    Drained,
    Killed,
    Shutdown,
    ConnectFailed,
    ConnectTimeout,
    NoBackend,
    Denied,
    LimitListener,
    LimitSource,
    LimitRate,
    LimitProcess,
    BadProxyHeader,
}

/// What an end must see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Fin,
    Reset,
}

/// What an end has seen.
#[derive(Debug, Clone, Copy)]
struct Account {
    written: usize,
    received: usize,
    end: End,
}

/// Kind, its listener, keys of listener and pool, share of all connections in thousandths, clients at a time, cause.
#[rustfmt::skip]
const KINDS: [(Kind, &str, &str, &str, usize, usize, Cause); 24] = {
    use Kind::*;
    const HOLD: &str = "timeouts: {idle: off, half_close: off}";
    [
        (ClientEndsFirst,   "first",       HOLD, "", 330, 6, Cause::Finished),
        (BackendEndsFirst,  "last",        HOLD, "", 329, 6, Cause::Finished),
        (ClientResets,      "client",      HOLD, "", 40, 4, Cause::ClientReset),
        (BackendResets,     "backend",     HOLD, "", 40, 4, Cause::BackendReset),
        (ClientResetsAmid,  "clientamid",  HOLD, "", 10, 2, Cause::ClientReset),
        (BackendResetsAmid, "backendamid", HOLD, "", 10, 2, Cause::BackendReset),
        (Idle,              "idle",        "timeouts: {idle: 1s}", "", 10, 48, Cause::IdleTimeout),
        (IdleStalled,       "idlestalled", "timeouts: {idle: 1s}", "", 2, 8, Cause::IdleTimeout),
        (HalfClosed,        "half",        "timeouts: {half_close: 1s}", "", 10, 48, Cause::HalfCloseTimeout),
        (HalfClosedStalled, "halfstalled", "timeouts: {half_close: 1s}", "", 2, 8, Cause::HalfCloseTimeout),
        (MaxAge,            "age",         "timeouts: {max_age: 1s}", "", 10, 48, Cause::MaxAge),
        (BackendDown,       "down",        HOLD, "on_down: close", 10, 50, Cause::BackendDown),
        (Drained,           "drained",     HOLD, "on_drain: {finish: 1s}", 10, 50, Cause::Drained),
        (Killed,            "killed",      HOLD, "", 3, 20, Cause::Killed),
        (Shutdown,          "shutdown",    HOLD, "", 2, 400, Cause::Shutdown),
        (ConnectFailed,     "refused",     "", "", 26, 2, Cause::ConnectFailed),
        (ConnectTimeout,    "silent",      "", "connect: {timeout: 300ms}", 6, 32, Cause::ConnectTimeout),
        (NoBackend,         "nobody",      "", "", 25, 2, Cause::NoBackend),
        (Denied,            "denied",      "deny: [127.0.0.0/8]", "", 25, 2, Cause::Denied),
        (LimitListener,     "listener",    "limits: {connections: 1}, timeouts: {idle: off}", "", 25, 2, Cause::LimitListener),
        (LimitSource,       "source",      "limits: {per_source: 1}, timeouts: {idle: off}", "", 25, 2, Cause::LimitSource),
        (LimitRate,         "rate",        "limits: {new_per_source: 1/h}, timeouts: {idle: off}", "", 25, 2, Cause::LimitRate),
        (LimitProcess,      "process",     HOLD, "", 20, 2, Cause::LimitProcess),
        (BadProxyHeader,    "header",      "accept_proxy: {from: [127.0.0.0/8]}", "", 5, 2, Cause::BadProxyHeader),
    ]
};

/// Live connections that weir takes: more than the rest of the test has at any time.
const CONNECTIONS_MAX: usize = 1_000;

/// A connection.
#[derive(Debug, Clone, Copy)]
struct Plan {
    number: u64,
    kind: Kind,
    /// Bytes from the client and from the backend.
    bytes: [usize; 2],
}

impl Plan {
    fn new(kind: Kind, number: u64) -> Plan {
        let rng = &mut Rng::new(number);
        let mut some = || match rng.below(40) {
            0 => 0,
            1 => rng.below(1_500_000) as usize,
            2..=6 => 32_766 + rng.below(5) as usize,
            _ => rng.below(20_000) as usize,
        };
        let bytes = match kind {
            Kind::ClientEndsFirst | Kind::BackendEndsFirst | Kind::BackendResets => [some(), some()],
            // The client has to hear of the backend before it resets: until then weir may not have one.
            Kind::ClientResets => [some(), some().max(1)],
            Kind::IdleStalled | Kind::HalfClosedStalled => [100, 6 << 20],
            Kind::ClientResetsAmid => [100, 6 << 20],
            Kind::BackendResetsAmid => [6 << 20, 100],
            _ => [some() % 20_000, some() % 20_000],
        };
        Plan { number, kind, bytes }
    }

    /// What the client or the backend sends.
    fn stream(&self, from: Side) -> &'static [u8] {
        let start = (self.number as usize).wrapping_mul(4_099 + from as usize * 1_234_567) % (1 << 20);
        &BYTES[start..start + self.bytes[from as usize]]
    }

    fn preface(&self) -> [u8; 16] {
        let mut preface = [0; 16];
        preface[..8].copy_from_slice(&self.number.to_le_bytes());
        preface[8] = self.kind as u8;
        preface
    }

    fn from_preface(preface: [u8; 16]) -> Plan {
        let number = u64::from_le_bytes(preface[..8].try_into().unwrap());
        Plan::new(KINDS[usize::from(preface[8])].0, number)
    }
}

/// One end of a connection at work.
struct Worker<'a> {
    plan: Plan,
    side: Side,
    stream: &'a TcpStream,
    account: Account,
}

impl Worker<'_> {
    fn new(plan: Plan, side: Side, stream: &TcpStream) -> Worker<'_> {
        let account = Account {
            written: 0,
            received: 0,
            end: End::Fin,
        };
        Worker {
            plan,
            side,
            stream,
            account,
        }
    }

    /// Writes everything that this side has to say; false if it is cut off.
    fn write(&mut self) -> bool {
        for piece in self.plan.stream(self.side).chunks(64 << 10) {
            let mut left = piece;
            while !left.is_empty() {
                match (&mut &*self.stream).write(left) {
                    Ok(bytes) => (self.account.written, left) = (self.account.written + bytes, &left[bytes..]),
                    Err(error) => {
                        assert!(is_cut(error.kind()), "{:?}: writing: {error}", self.plan);
                        self.account.end = End::Reset;
                        return false;
                    }
                }
            }
        }
        true
    }

    fn fin(&self) {
        // A connection that is gone already says so to whoever reads.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Reads up to `most` bytes or to the end, and compares. False at the end, of which the account tells.
    fn read(&mut self, most: usize) -> bool {
        let expected = self.plan.stream(self.side.other());
        let mut buffer = vec![0; 64 << 10];
        let most = self.account.received.saturating_add(most);
        while self.account.received < most {
            let room = buffer.len().min(most - self.account.received);
            match (&mut &*self.stream).read(&mut buffer[..room]) {
                // After a reset that a write has met, what was read before it is followed by what looks like an end.
                Ok(0) => return false,
                Ok(bytes) => {
                    let at = self.account.received;
                    let same = expected.get(at..at + bytes) == Some(&buffer[..bytes]);
                    assert!(same, "{:?}: other bytes after {at}", self.plan);
                    self.account.received += bytes;
                }
                Err(error) => {
                    assert!(is_cut(error.kind()), "{:?}: reading: {error}", self.plan);
                    self.account.end = End::Reset;
                    return false;
                }
            }
        }
        true
    }

    fn read_all(&mut self) {
        let more = self.read(self.plan.bytes[self.side.other() as usize]);
        assert!(more, "{:?}: {:?} ended early: {:?}", self.plan, self.side, self.account);
    }

    fn read_to_end(&mut self) {
        assert!(!self.read(usize::MAX));
    }
}

fn is_cut(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

/// Waits until a connection is gone without reading from it.
fn wait_for_hangup(stream: &TcpStream) {
    let mut ready = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let timeout = PollTimeout::try_from(PATIENCE.as_millis() as i32).unwrap();
    assert_eq!(poll(&mut ready, timeout), Ok(1), "nothing happened");
}

/// What both ends wrote down.
#[derive(Default)]
struct Ledger {
    clients: Mutex<HashMap<u64, (Kind, Option<Account>)>>,
    servers: Mutex<HashMap<u64, Account>>,
    /// Connections that the server keeps until their client has seen the end.
    parked: Mutex<HashMap<u64, TcpStream>>,
}

/// What one end of a connection does next.
#[derive(Debug, Clone, Copy)]
enum Act {
    Write,
    /// The end, if it is cut off.
    WriteOrEnd,
    Fin,
    Read(usize),
    ReadAll,
    ReadToEnd,
    /// Waits until the other end has everything.
    Acknowledged,
    /// Waits until the connection is gone, without reading.
    Hangup,
    /// Says that both ends know of each other.
    Established,
    /// Keeps the connection until the client has seen the end.
    Park,
    /// Always the last.
    Reset,
}

fn acts(kind: Kind, side: Side) -> &'static [Act] {
    use Act::*;
    use Kind::*;
    use Side::{Backend, Client};
    match (kind, side) {
        (ClientEndsFirst, Client) | (BackendEndsFirst, Backend) => &[Write, Fin, ReadToEnd],
        (ClientEndsFirst, Backend) | (BackendEndsFirst, Client) => &[ReadToEnd, Write, Fin],
        (ClientResets, Client) => &[Write, ReadAll, Acknowledged, Reset],
        (BackendResets, Backend) => &[ReadAll, Write, Acknowledged, Reset],
        (ClientResetsAmid, Client) | (BackendResetsAmid, Backend) => &[Write, Read(1 << 20), Reset],
        // The write meets the reset, and what the backend sent before is still there.
        (BackendResetsAmid, Client) => &[Write, ReadToEnd],
        (ClientResetsAmid | IdleStalled, Backend) => &[ReadAll, WriteOrEnd, ReadToEnd],
        (IdleStalled, Client) => &[Write, Hangup, ReadToEnd],
        (HalfClosed, Client) => &[Write, Fin, ReadToEnd],
        (HalfClosed, Backend) => &[ReadToEnd, Park],
        (HalfClosedStalled, Client) => &[Write, Fin, Hangup, ReadToEnd],
        (HalfClosedStalled, Backend) => &[ReadToEnd, Write, Park],
        (_, Client) => &[Write, ReadAll, Established, ReadToEnd],
        (_, Backend) => &[ReadAll, Write, ReadToEnd],
    }
}

/// Plays one end of a connection, and says what it saw.
fn play(ledger: &Ledger, stream: TcpStream, plan: Plan, side: Side, established: impl FnOnce()) -> Account {
    let mut worker = Worker::new(plan, side, &stream);
    let (acts, mut established) = (acts(plan.kind, side), Some(established));
    for act in acts {
        match act {
            Act::Write => drop(worker.write()),
            Act::WriteOrEnd if !worker.write() => break,
            Act::WriteOrEnd => {}
            Act::Fin => worker.fin(),
            Act::Read(bytes) => drop(worker.read(*bytes)),
            Act::ReadAll => worker.read_all(),
            Act::ReadToEnd => worker.read_to_end(),
            Act::Acknowledged => client::wait_until_acknowledged(&stream),
            Act::Hangup => wait_for_hangup(&stream),
            Act::Established => established.take().into_iter().for_each(|tell| tell()),
            Act::Park => drop(
                ledger
                    .parked
                    .lock()
                    .unwrap()
                    .insert(plan.number, stream.try_clone().unwrap()),
            ),
            Act::Reset => worker.account.end = End::Reset,
        }
    }
    let account = worker.account;
    if let Some(Act::Reset) = acts.last() {
        client::reset(stream);
    }
    account
}

fn serve(ledger: &Ledger, stream: TcpStream) {
    let mut preface = [0; 16];
    if (&stream).read_exact(&mut preface).is_err() {
        return;
    }
    let plan = Plan::from_preface(preface);
    // Some hold a place until all others have ended.
    stream.set_read_timeout(Some(20 * PATIENCE)).unwrap();
    let account = play(ledger, stream, plan, Side::Backend, || {});
    let before = ledger.servers.lock().unwrap().insert(plan.number, account);
    assert!(before.is_none(), "{plan:?} twice");
}

fn connect(address: &str, plan: Plan) -> TcpStream {
    let stream = client::connect(address);
    (&stream).write_all(&plan.preface()).unwrap();
    stream
}

fn turned_away(address: &str, kind: Kind) {
    if kind == Kind::BadProxyHeader {
        let mut stream = client::connect(address);
        // It may be reset already while it is written to.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
        let mut worker = Worker::new(Plan::new(kind, 0), Side::Client, &stream);
        worker.account.end = End::Reset;
        worker.read_to_end();
        assert_eq!(worker.account.received, 0);
    } else {
        client::connect_to_reset(address);
    }
}

/// Holds a place of a listener: a connection that goes on later.
struct Held {
    plan: Plan,
    stream: TcpStream,
}

impl Held {
    fn new(address: &str, number: u64) -> Held {
        let plan = Plan::new(Kind::ClientEndsFirst, number);
        Held {
            plan,
            stream: connect(address, plan),
        }
    }

    fn finish(self, ledger: &Ledger) {
        let account = play(ledger, self.stream, self.plan, Side::Client, || {});
        let entry = (self.plan.kind, Some(account));
        ledger.clients.lock().unwrap().insert(self.plan.number, entry);
    }
}

/// Everything at work.
struct Stage {
    weir: Weir,
    addresses: BTreeMap<Kind, String>,
    ledger: Arc<Ledger>,
}

impl Stage {
    fn one(&self, kind: Kind, number: u64, established: impl FnOnce()) {
        let address = &self.addresses[&kind];
        let turned = matches!(
            kind,
            Kind::ConnectFailed
                | Kind::ConnectTimeout
                | Kind::NoBackend
                | Kind::Denied
                | Kind::LimitListener
                | Kind::LimitSource
                | Kind::LimitRate
                | Kind::LimitProcess
                | Kind::BadProxyHeader
        );
        let account = match turned {
            true => {
                turned_away(address, kind);
                None
            }
            false => {
                let plan = Plan::new(kind, number);
                let stream = connect(address, plan);
                let account = play(&self.ledger, stream, plan, Side::Client, established);
                self.ledger.parked.lock().unwrap().remove(&number);
                Some(account)
            }
        };
        self.ledger.clients.lock().unwrap().insert(number, (kind, account));
    }

    /// Connections that an order ends: as many at a time as `width`, all established before the order is given.
    fn batches(&self, kind: Kind, first: u64, count: usize, width: usize, order: impl Fn()) {
        for start in (0..count).step_by(width) {
            let size = width.min(count - start);
            let established = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for ix in start..start + size {
                    let established = &established;
                    scope.spawn(move || {
                        self.one(kind, first + ix as u64, || {
                            established.fetch_add(1, Ordering::Relaxed);
                        });
                    });
                }
                wait_until("all are established", || established.load(Ordering::Relaxed) == size);
                order();
            });
        }
    }

    fn run(&self, kind: Kind, first: u64, count: usize, width: usize) {
        let begun = Instant::now();
        let backend = |order: &str| {
            let name = format!("{}/one", listener_of(kind));
            said(&self.weir, &["backend", &name, order]);
        };
        match kind {
            Kind::BackendDown | Kind::Drained => {
                let (away, width) = (if kind == Kind::Drained { "drain" } else { "down" }, width.min(count));
                for start in (0..count).step_by(width) {
                    let size = width.min(count - start);
                    self.batches(kind, first + start as u64, size, width, || backend(away));
                    backend("ready");
                }
            }
            Kind::Killed => self.batches(kind, first, count, width, || {
                let live = json(&self.weir, &["conns", "--limit", "100000"]);
                for one in live
                    .as_array()
                    .unwrap()
                    .iter()
                    .filter(|one| one["listener"] == listener_of(kind))
                {
                    said(&self.weir, &["kill", &one["id"].to_string()]);
                }
            }),
            _ => drop(in_parallel(width.min(count), count, |ix| {
                self.one(kind, first + ix as u64, || ())
            })),
        }
        println!("{kind:?}: {count} in {:.1?}", begun.elapsed());
    }
}

fn listener_of(kind: Kind) -> &'static str {
    KINDS.iter().find(|row| row.0 == kind).unwrap().1
}

/// What client and backend must have seen; `None` = either.
fn expected_ends(kind: Kind) -> (End, Option<End>) {
    use Kind::*;
    match kind {
        ClientEndsFirst | BackendEndsFirst | Idle | HalfClosed => (End::Fin, Some(End::Fin)),
        // The backend has read the client's end; whether it still writes when weir resets is another question.
        HalfClosedStalled => (End::Reset, None),
        _ => (End::Reset, Some(End::Reset)),
    }
}

fn judge(number: u64, kind: Kind, client: Account, backend: Account) {
    let seen = (client.end, backend.end);
    let (from_client, from_backend) = expected_ends(kind);
    let place = format!("{kind:?} {number}: client {client:?}, backend {backend:?}");
    assert!(
        seen.0 == from_client && from_backend.is_none_or(|end| end == seen.1),
        "{place}"
    );
    assert!(
        client.received <= backend.written && backend.received <= client.written,
        "{place}"
    );
    if client.end == End::Fin {
        assert_eq!(client.received, backend.written, "FIN behind a part: {place}");
    }
    if backend.end == End::Fin {
        assert_eq!(backend.received, client.written, "FIN behind a part: {place}");
    }
    use Kind::*;
    if !matches!(
        kind,
        IdleStalled | HalfClosedStalled | ClientResetsAmid | BackendResetsAmid
    ) {
        let [up, down] = Plan::new(kind, number).bytes;
        let down = if kind == HalfClosed { 0 } else { down };
        assert_eq!((backend.received, client.received), (up, down), "{place}");
    }
}

/// About `count` connections in all.
fn verdicts(count: usize) {
    raise_descriptor_limit();
    let ledger = Arc::new(Ledger::default());
    let serving = ledger.clone();
    let server = Server::each(move |stream| serve(&serving, stream));
    let (nowhere, hole) = (Port::reserve(), Blackhole::new());
    let mut yaml = format!("workers: 2\nshutdown_grace: 1s\nlimits: {{connections: {CONNECTIONS_MAX}}}\nlisteners:\n");
    for (_, name, listener, ..) in KINDS {
        yaml += &format!("  {name}: {{bind: ['127.0.0.1:0'], pool: {name}, {listener}}}\n");
    }
    yaml += "pools:\n";
    for (kind, name, _, pool, ..) in KINDS {
        let address = match kind {
            Kind::ConnectFailed => nowhere.address(),
            Kind::ConnectTimeout => hole.address,
            _ => server.address,
        };
        let backend = format!("{{name: one, address: '{address}'}}");
        yaml += &format!("  {name}: {{backends: [{backend}], {}, {pool}}}\n", super::UNWATCHED);
    }
    let weir = Weir::start(&yaml);
    said(&weir, &["backend", "nobody/one", "down"]);
    let addresses = KINDS.iter().map(|row| (row.0, weir.address(row.1))).collect();
    let mut stage = Stage {
        weir,
        addresses,
        ledger,
    };
    let stage_ref = &stage;
    let sockets = stage.weir.sockets();

    // Each kind has its numbers, those that hold places have theirs.
    let first = |kind: Kind| (kind as u64 + 1) << 32;
    let of = |thousandths: usize| (count * thousandths / 1_000).max(2);
    let held: Vec<Held> = [Kind::LimitListener, Kind::LimitSource, Kind::LimitRate]
        .into_iter()
        .enumerate()
        .map(|(ix, kind)| Held::new(&stage.addresses[&kind], ix as u64))
        .collect();
    wait_until("those that hold a place have it", || {
        let live = json(&stage_ref.weir, &["conns"]);
        live.as_array()
            .unwrap()
            .iter()
            .filter(|one| one["state"] == "open")
            .count()
            == held.len()
    });
    std::thread::scope(|scope| {
        for (kind, _, _, _, share, width, _) in KINDS {
            if !matches!(kind, Kind::Shutdown | Kind::LimitProcess) {
                scope.spawn(move || stage_ref.run(kind, first(kind), of(share), width));
            }
        }
    });

    // As many as the process takes, and then those that it does not take.
    wait_until("nothing but what is held is left", || {
        live_connections(&stage_ref.weir) == held.len() as u64
    });
    let address = &stage.addresses[&Kind::LimitProcess];
    let places = CONNECTIONS_MAX - held.len();
    let full: Vec<Held> = (0..places).map(|ix| Held::new(address, 100 + ix as u64)).collect();
    wait_until("every place is taken", || {
        live_connections(&stage_ref.weir) == CONNECTIONS_MAX as u64
    });
    let row = KINDS.iter().find(|row| row.0 == Kind::LimitProcess).unwrap();
    stage.run(row.0, first(row.0), of(row.4), row.5);
    let mut finished: BTreeMap<Kind, usize> = [Kind::LimitListener, Kind::LimitSource, Kind::LimitRate]
        .map(|kind| (kind, 1))
        .into();
    finished.insert(Kind::LimitProcess, full.len());
    held.into_iter().chain(full).for_each(|held| held.finish(&stage.ledger));

    wait_until("every gauge is 0", || {
        live_connections(&stage_ref.weir) == 0 && gauges_are_zero(&stage_ref.weir)
    });
    // The question itself may be among those counted first.
    wait_until("every socket is closed", || stage_ref.weir.sockets() <= sockets);
    assert_eq!(json(&stage.weir, &["conns"]).as_array().unwrap().len(), 0);
    let metrics = Metrics::of(&stage.weir);

    let (_, _, _, _, share, width, _) = *KINDS.iter().find(|row| row.0 == Kind::Shutdown).unwrap();
    let last = of(share).min(width);
    stage.batches(Kind::Shutdown, first(Kind::Shutdown), last, last, || {
        stage.weir.signal(Signal::SIGTERM)
    });
    assert!(stage.weir.wait_for_end().success());

    // The verdict on each.
    let ledger = &stage.ledger;
    let served = |clients: &HashMap<u64, (Kind, Option<Account>)>| clients.values().filter(|c| c.1.is_some()).count();
    let begun = Instant::now();
    while ledger.servers.lock().unwrap().len() < served(&ledger.clients.lock().unwrap()) {
        if begun.elapsed() > PATIENCE {
            let (clients, servers) = (ledger.clients.lock().unwrap(), ledger.servers.lock().unwrap());
            let missing = clients
                .iter()
                .filter(|(number, c)| c.1.is_some() && !servers.contains_key(number));
            panic!("no account of the server: {:?}", missing.collect::<Vec<_>>());
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let (clients, mut servers) = (ledger.clients.lock().unwrap(), ledger.servers.lock().unwrap());
    for (&number, &(kind, account)) in clients.iter() {
        match (account, servers.remove(&number)) {
            (Some(client), Some(backend)) => judge(number, kind, client, backend),
            (None, None) => {}
            (client, backend) => panic!("{kind:?} {number}: client {client:?}, backend {backend:?}"),
        }
    }
    assert!(servers.is_empty(), "{} that no client made", servers.len());

    // And the counts: of metrics all of them, and of records those that the log's queue took (the rest is counted, too).
    let mut expected = BTreeMap::<(&str, &str), usize>::new();
    for (kind, name, _, _, share, _, cause) in KINDS {
        let count = if kind == Kind::Shutdown { last } else { of(share) };
        *expected.entry((name, cause.as_str())).or_default() += count;
        if let Some(count) = finished.get(&kind) {
            *expected.entry((name, "finished")).or_default() += count;
        }
    }
    let records = stage.weir.access_log();
    let mut recorded = BTreeMap::<(&str, &str), usize>::new();
    for record in &records {
        *recorded.entry((&record.listener, &record.cause)).or_default() += 1;
    }
    for (&(listener, cause), &count) in &expected {
        let labels = [format!("listener=\"{listener}\""), format!("cause=\"{cause}\"")];
        let closed = metrics.sum("weir_connections_closed_total", &labels);
        if listener != "shutdown" {
            assert_eq!(closed, count, "{listener} {cause}");
        }
    }
    assert_eq!(metrics.sum("weir_connections_closed_total", &[]) + last, clients.len());
    let dropped = metrics.sum("weir_log_records_dropped_total", &[]);
    assert_eq!(records.len() + dropped, clients.len());
    let fits = |(key, count): (_, &usize)| {
        expected
            .get(key)
            .is_some_and(|most| count == most || (dropped > 0 && count < most))
    };
    assert!(recorded.iter().all(fits), "{recorded:?} of {expected:?}");

    let mut bytes = [0, 0];
    for &(kind, account) in clients.values() {
        if let (Kind::ClientEndsFirst | Kind::BackendEndsFirst, Some(account)) = (kind, account) {
            bytes = [bytes[0] + 16 + account.written, bytes[1] + account.received];
        }
    }
    let counted = ["in", "out"].map(|direction| {
        let places =
            ["first", "last", "listener", "source", "rate", "process"].map(|name| format!("listener=\"{name}\""));
        let direction = format!("direction=\"{direction}\"");
        let sums = places.map(|place| metrics.sum("weir_bytes_total", &[place, direction.clone()]));
        sums.into_iter().sum::<usize>()
    });
    assert_eq!(counted, bytes);
    let all: Vec<Cause> = KINDS.iter().map(|row| row.6).collect();
    // Those of UDP, of backups, of queues and of virtual addresses have tests of their own.
    let other = [
        Cause::Evicted,
        Cause::PrimaryBack,
        Cause::QueueTimeout,
        Cause::QueueFull,
        Cause::VipMoved,
        // `super::server_names`.
        Cause::HelloTimeout,
        Cause::HelloTooLarge,
        Cause::NoRoute,
    ];
    let missing = Cause::ALL
        .iter()
        .find(|cause| !other.contains(cause) && !all.contains(cause));
    assert_eq!(missing, None, "a cause that no connection has");
    let (count, [up, down]) = (clients.len(), bytes);
    println!("{count} connections; of those that finished {up} bytes up and {down} down; {dropped} records dropped");
}

fn live_connections(weir: &Weir) -> u64 {
    let status = status(weir);
    let workers = status["workers"].as_array().unwrap().iter();
    workers.map(|worker| worker["connections"].as_u64().unwrap()).sum()
}

fn gauges_are_zero(weir: &Weir) -> bool {
    let metrics = Metrics::of(weir);
    let gauges = ["weir_connections_active", "weir_backend_active"];
    gauges.iter().all(|gauge| metrics.sum(gauge, &[]) == 0)
}

/// The lines of the metrics page.
struct Metrics(Vec<String>);

impl Metrics {
    fn of(weir: &Weir) -> Metrics {
        let mut stream = UnixStream::connect(weir.admin()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        writeln!(stream, r#"{{"command":"metrics"}}"#).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        let answer: serde_json::Value = serde_json::from_str(&line).unwrap();
        Metrics(answer["ok"].as_str().unwrap().lines().map(str::to_owned).collect())
    }

    /// The sum of a metric over all lines with these labels.
    #[track_caller]
    fn sum(&self, name: &str, labels: &[String]) -> usize {
        let is_it = |line: &&String| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let lines: Vec<&String> = self.0.iter().filter(is_it).collect();
        assert!(!lines.is_empty(), "no metric {name}");
        let fits = lines
            .iter()
            .filter(|line| labels.iter().all(|label| line.contains(label)));
        fits.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap() as usize)
            .sum()
    }
}

#[test]
fn every_connection_is_exact_or_reset() {
    verdicts(2_000);
}

#[test]
#[ignore = "takes minutes"]
fn every_one_of_two_hundred_thousand_is_exact_or_reset() {
    verdicts(200_000);
}
