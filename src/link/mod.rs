//! What passes between control and the workers, and between workers.
//!
//! Downwards: the newest [`Snapshot`] (latest wins) and [`Command`]s (bounded queue, never lost: the sender waits). What any
//! [`Engine`] can be told is an [`EngineOrder`]; what concerns listening sockets, which only workers have, is a [`SocketMove`].
//! Upwards: [`Record`]s of ended connections (bounded, dropped and counted when the log cannot keep up) and [`Failure`]s of
//! backends seen by real traffic (bounded, dropped: they are samples). A waker follows every downward message.

mod command;
mod engine;
mod listening;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use crossbeam_channel::{Receiver, Sender, TrySendError};

use crate::base::{Latest, LogLimit};
use crate::health::FailureKind;
use crate::relay::{By, Cause};
use crate::routing::Asked;
use crate::snapshot::{Backend, Listener, Snapshot};
use crate::stats::{ProcessStats, WorkerStats};
use crate::sys::socket::ConnectError;

pub use command::{Accepted, Command, EngineOrder, Finished, InTransit, Recipients, Shed, SocketMove};
pub use engine::{Engine, Inherit, PacketFigures, StartEngine};
pub use listening::{Address, Endpoint, HandedSession, ListenSocket, SessionState};

/// Commands that may wait for one worker.
pub const COMMANDS_MAX: usize = 4096;

/// A live connection as an operator sees it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct LiveConnection {
    /// The number that `weir kill` takes.
    pub id: u64,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// Name of the listener.
    pub listener: String,
    /// Address of the client.
    pub client: String,
    /// Name of the pool.
    pub pool: String,
    /// Name of the backend, empty while none is chosen.
    pub backend: String,
    /// The engine that carries it.
    pub engine: &'static str,
    /// Number of the worker that serves it.
    pub worker: usize,
    /// `connecting`, `open`, `half_closed` or `closing`.
    pub state: &'static str,
    /// Milliseconds since it began.
    pub age_ms: u64,
    /// Milliseconds since the last byte.
    pub idle_ms: u64,
    /// Bytes from the client.
    pub bytes_up: u64,
    /// Bytes to the client.
    pub bytes_down: u64,
}

/// The access record of one ended connection or session.
#[derive(Debug, Clone)]
pub struct Record {
    /// Time of day at which it ended.
    pub time: SystemTime,
    /// Unique in this process.
    pub id: u64,
    /// The listener that accepted it.
    pub listener: Arc<Listener>,
    /// Client address, unless it came over a unix socket.
    pub client: Option<SocketAddr>,
    /// The address that the client used.
    pub local: Arc<Address>,
    /// The backend that served it, if any.
    pub backend: Option<Arc<Backend>>,
    /// How often a connection to a backend was tried.
    pub attempts: u32,
    /// Bytes from the client, delivered.
    pub bytes_up: u64,
    /// Bytes to the client, delivered.
    pub bytes_down: u64,
    /// Microseconds from the first attempt to the established connection.
    pub connect_us: Option<u64>,
    /// Microseconds from accepting to the backend's first byte.
    pub first_byte_us: Option<u64>,
    /// Microseconds from accepting to the end.
    pub duration_us: u64,
    /// Bytes moved by splice.
    pub spliced: u64,
    /// Packets from the client and to it, if the engine works on packets.
    pub packets: Option<[u64; 2]>,
    /// The side that ended it.
    pub closed_by: By,
    /// What ended it.
    pub cause: Cause,
    /// Still alive: an interim record.
    pub interim: bool,
    /// The server that it asked for by name, and where that led.
    pub asked: Asked,
}

impl Record {
    /// Of a client that was turned away at `time`, before anything was done for it.
    pub fn refused(
        time: SystemTime,
        id: u64,
        listener: Arc<Listener>,
        client: Option<SocketAddr>,
        local: Arc<Address>,
        cause: Cause,
    ) -> Record {
        Record {
            time,
            id,
            listener,
            client,
            local,
            backend: None,
            attempts: 0,
            bytes_up: 0,
            bytes_down: 0,
            connect_us: None,
            first_byte_us: None,
            duration_us: 0,
            spliced: 0,
            packets: None,
            closed_by: By::Weir,
            cause,
            interim: false,
            asked: Asked::default(),
        }
    }

    /// The pool that was to serve it, if that was decided.
    pub fn pool(&self) -> Option<&str> {
        match (&self.asked.way, &self.listener.routing) {
            (Some(way), _) => Some(&way.pool),
            (None, Some(_)) => None,
            (None, None) => self.listener.pool.as_deref(),
        }
    }
}

/// A failure of a backend, seen by real traffic.
#[derive(Debug, Clone, Copy)]
pub struct Failure {
    /// [`Backend::identity`].
    pub backend: u64,
    /// When the traffic met it.
    pub at: Instant,
    /// In which way the backend failed.
    pub kind: FailureKind,
}

/// A handle on one worker.
#[derive(Debug, Clone)]
pub struct Worker {
    /// Its number, from 0.
    pub id: usize,
    /// The sending end of its queue of at most [`COMMANDS_MAX`] commands.
    pub commands: Sender<Command>,
    /// Wakes it from poll.
    pub waker: Arc<mio::Waker>,
    /// Its statistics.
    pub stats: Arc<WorkerStats>,
}

impl Worker {
    /// Queues a command, waiting for room, and wakes the worker. False if the worker has ended.
    pub fn send(&self, command: Command) -> bool {
        self.commands.send(command).is_ok() && self.wake()
    }

    /// Queues a command unless the queue is full; gives it back then.
    pub fn try_send(&self, command: Command) -> Result<(), Command> {
        match self.commands.try_send(command) {
            Ok(()) => {
                self.wake();
                Ok(())
            }
            Err(TrySendError::Full(command) | TrySendError::Disconnected(command)) => Err(command),
        }
    }

    /// Wakes the worker from poll.
    pub fn wake(&self) -> bool {
        self.waker.wake().is_ok()
    }
}

/// What all workers and control share.
#[derive(Debug)]
pub struct Shared {
    snapshot: ArcSwap<Snapshot>,
    latest: Latest,
    workers: ArcSwap<Vec<Worker>>,
    retired: ArcSwap<Vec<Worker>>,
    engines: ArcSwap<Vec<Arc<dyn Engine>>>,
    /// Gauges and counters of the process as a whole.
    pub process: ProcessStats,
    /// Where access records go; `None` = nowhere.
    records: ArcSwapOption<Sender<Record>>,
    /// Where failures seen by real traffic go.
    pub failures: Sender<Failure>,
    /// Start of the workers' common clock.
    pub epoch: Instant,
    exhausted: LogLimit,
    trouble: LogLimit,
    unread: LogLimit,
    control_at_ms: AtomicU64,
}

impl Shared {
    /// With an empty snapshot and no workers.
    pub fn new(records: Option<Sender<Record>>, failures: Sender<Failure>, epoch: Instant) -> Arc<Shared> {
        Arc::new(Shared {
            snapshot: ArcSwap::default(),
            latest: Latest::default(),
            workers: ArcSwap::default(),
            retired: ArcSwap::default(),
            engines: ArcSwap::default(),
            process: ProcessStats::default(),
            records: ArcSwapOption::from_pointee(records),
            failures,
            epoch,
            exhausted: LogLimit::default(),
            trouble: LogLimit::default(),
            unread: LogLimit::default(),
            control_at_ms: AtomicU64::new(u64::MAX),
        })
    }

    /// Makes `snapshot` the newest and wakes every worker.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        self.latest
            .publish(snapshot.version, || self.snapshot.store(snapshot.clone()));
        for worker in self.workers.load().iter() {
            worker.wake();
        }
    }

    /// The newest snapshot if it is newer than `version`. A worker asks once a turn and keeps what it gets, so there is nothing
    /// for an `arc_swap::Cache` to save: it would compare a pointer where this compares a version, which the worker
    /// needs anyway, and [`Latest`] is small enough to be checked under loom.
    pub fn newer_than(&self, version: u64) -> Option<Arc<Snapshot>> {
        self.latest.newer_than(version, || self.snapshot.load_full())
    }

    /// The control thread has gone round.
    pub fn note_control(&self) {
        self.control_at_ms
            .store(self.epoch.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// What does not turn any more: a worker whose turn has lasted longer than `worker`, or control, unseen for longer than
    /// `control`.
    pub fn stuck(&self, worker: Duration, control: Duration) -> Option<String> {
        let now_ms = self.epoch.elapsed().as_millis() as u64;
        let late = |since_ms: u64, patience: Duration| {
            since_ms != u64::MAX && now_ms.saturating_sub(since_ms) > patience.as_millis() as u64
        };
        let workers = self.workers.load();
        if let Some(stuck) = workers.iter().find(|w| late(w.stats.busy_since_ms.get(), worker)) {
            let for_ms = now_ms - stuck.stats.busy_since_ms.get();
            return Some(format!("worker {} has been stuck for {for_ms} ms", stuck.id));
        }
        late(self.control_at_ms.load(Ordering::Relaxed), control).then(|| "the control thread is stuck".into())
    }

    /// The newest snapshot, whatever version the caller has.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// The workers that take new connections.
    pub fn workers(&self) -> arc_swap::Guard<Arc<Vec<Worker>>> {
        self.workers.load()
    }

    /// The workers that finish what they have.
    pub fn retired_workers(&self) -> arc_swap::Guard<Arc<Vec<Worker>>> {
        self.retired.load()
    }

    /// Replaces the lists of workers that take new connections and of those that finish what they have.
    pub fn set_workers(&self, workers: Vec<Worker>, retired: Vec<Worker>) {
        self.retired.store(Arc::new(retired));
        self.workers.store(Arc::new(workers));
    }

    /// The engines beside the workers.
    pub fn engines(&self) -> arc_swap::Guard<Arc<Vec<Arc<dyn Engine>>>> {
        self.engines.load()
    }

    /// Replaces the list of engines beside the workers.
    pub fn set_engines(&self, engines: Vec<Arc<dyn Engine>>) {
        self.engines.store(Arc::new(engines));
    }

    /// Says that new connections wait or are refused for want of descriptors or memory: one line a second at most.
    pub fn exhausted(&self, why: &dyn std::fmt::Display) {
        if let Some(left_out) = self.exhausted.admit(self.epoch.elapsed()) {
            log::warn!("new connections wait or are refused: {why}{left_out}");
        }
    }

    /// Says that a connection to a backend failed for a reason on this host: one line a second at most.
    pub fn trouble(&self, backend: &Backend, error: ConnectError) {
        if let Some(left_out) = self.trouble.admit(self.epoch.elapsed()) {
            let Backend { pool, config, .. } = backend;
            log::warn!("cannot connect to {pool}/{}: {}{left_out}", config.name, error.as_str());
        }
    }

    /// Says that a listening UDP socket cannot be read, which is tried again at once: one line a second at most.
    pub fn unread(&self, listener: &str, error: &std::io::Error) {
        if let Some(left_out) = self.unread.admit(self.epoch.elapsed()) {
            log::warn!("listener {listener}: cannot receive: {error}{left_out}");
        }
    }

    /// Whether access records are wanted at all.
    pub fn wants_records(&self) -> bool {
        self.records.load().is_some()
    }

    /// Has access records go to `records` from now on.
    pub fn set_records(&self, records: Option<Sender<Record>>) {
        self.records.store(records.map(Arc::new));
    }

    /// Hands a record to the log, or counts it as dropped.
    pub fn record(&self, record: Record) {
        if let Some(records) = &*self.records.load()
            && records.try_send(record).is_err()
        {
            self.process.records_dropped.add(1);
        }
    }

    /// Hands a failure to control, if it has room for it.
    pub fn failed(&self, backend: u64, kind: FailureKind, at: Instant) {
        let _ = self.failures.try_send(Failure { backend, at, kind });
    }
}

/// Starts the worker with this number on a thread of its own.
pub type SpawnWorker = Box<dyn Fn(usize, Arc<Shared>) -> io::Result<(Worker, JoinHandle<()>)> + Send + Sync>;

/// The receiving end of a worker's queue.
pub type Commands = Receiver<Command>;
