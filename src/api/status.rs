//! The document of `/status` and `weir status --json`, and a row of `weir conns`.
//!
//! The same types write it and read it back in the commands, where unknown keys are passed over and missing ones have a
//! default: a command and a process of neighbouring versions understand each other.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The states of a VIP.
pub const VIP_STATES: [&str; 5] = ["standby", "claiming", "active", "releasing", "fault"];

/// The status of one process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Version of the program that runs.
    pub version: String,
    /// Id of the process.
    pub pid: u32,
    /// Seconds since the process began to serve.
    pub uptime_s: u64,
    /// Grows with every configuration taken over.
    pub generation: u64,
    /// The file, if there is one.
    pub config_file: Option<String>,
    /// Why the last reload was refused; `null` if it was not.
    pub reload_error: Option<String>,
    /// Why the last upgrade failed; null if there was none.
    pub upgrade_error: Option<String>,
    /// The process has been told to stop and lets connections finish.
    pub stopping: bool,
    /// The process as a whole.
    pub process: Process,
    /// The event loops that take new connections.
    pub workers: Vec<Worker>,
    /// In configuration order.
    pub listeners: Vec<Listener>,
    /// In configuration order.
    pub pools: Vec<Pool>,
    /// In configuration order; empty without `failover`.
    pub vips: Vec<Vip>,
    /// The other nodes of `failover`; empty without it.
    pub nodes: Vec<Node>,
    /// In configuration order; empty if there are none.
    pub witnesses: Vec<Witness>,
    /// The voter with a memory of its own; null if there is none.
    pub arbiter: Option<Arbiter>,
    /// What this node tracks, in configuration order.
    pub tracks: Vec<Track>,
    /// The kernel engine; null if this process has none.
    pub kernel: Option<Kernel>,
}

/// What the kernel engine counts as a whole, since its program was loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kernel {
    /// Established flows: connections and sessions.
    pub flows: u32,
    /// The limit on `flows`.
    pub flows_max: u32,
    /// Packets passed on from clients.
    pub packets_in: u64,
    /// Packets passed on to clients.
    pub packets_out: u64,
    /// Packets not passed on, or not as they should have been, by reason; those that have happened.
    pub dropped: BTreeMap<String, u64>,
}

/// Usage and limits of the process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    /// Live TCP connections.
    pub connections: u32,
    /// The limit on `connections`.
    pub connections_max: u32,
    /// Live sessions of UDP listeners.
    pub udp_sessions: u32,
    /// The limit on `udp_sessions`.
    pub udp_sessions_max: u32,
    /// Descriptors that the process has open.
    pub open_fds: u64,
    /// The soft limit on open descriptors.
    pub limit_fds: u64,
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
    /// User and system time used so far, in seconds.
    pub cpu_s: f64,
    /// Bytes moved by splice.
    pub spliced_bytes: u64,
    /// Access records that were lost.
    pub records_dropped: u64,
    /// Lines of the event log that were lost.
    pub log_lines_dropped: u64,
}

/// One event loop.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Worker {
    /// Its number, from 0.
    pub id: usize,
    /// Live connections.
    pub connections: u32,
    /// Live UDP sessions that it serves.
    pub udp_sessions: u32,
    /// Turns of the loop so far.
    pub turns: u64,
    /// Longest turn of about the last minute, in milliseconds.
    pub turn_ms_max: f64,
}

/// One listener of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Listener {
    /// Its name, the key in the configuration.
    pub name: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// What carries it: `proxy` or `kernel`.
    pub engine: String,
    /// Addresses as configured.
    pub bind: Vec<String>,
    /// Pool it sends to; empty if it has routes only.
    pub pool: String,
    /// By server name, in configuration order; the last one, `*`, is for the rest. Empty without `routes`.
    pub routes: Vec<Route>,
    /// Live connections or sessions.
    pub active: u32,
    /// Connections accepted, or sessions opened, so far.
    pub accepted: u64,
    /// Turned away before a backend was asked.
    pub refused: u64,
    /// Bytes received from clients so far.
    pub bytes_in: u64,
    /// Bytes sent to clients so far.
    pub bytes_out: u64,
    /// Datagrams from clients (UDP).
    pub datagrams_in: u64,
    /// Datagrams to clients (UDP).
    pub datagrams_out: u64,
}

impl Listener {
    /// The pool, `-` if it has routes only.
    pub fn pool_shown(&self) -> &str {
        match &*self.pool {
            "" => "-",
            pool => pool,
        }
    }
}

/// Where connections go that ask for a server by its name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Route {
    /// The name, perhaps with `*` for its first label; `*` alone is the rest.
    pub name: String,
    /// Name of the pool that serves it.
    pub pool: String,
    /// Connections that went there so far.
    pub connections: u64,
}

/// One pool of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pool {
    /// Its name, the key in the configuration.
    pub name: String,
    /// The balancing algorithm, as the configuration spells it.
    pub balance: String,
    /// Backends that take new work now.
    pub eligible: usize,
    /// Which backends those are: `primary`, `backup`, `all` (nothing is up and `all_down: try_all`) or `none`.
    pub serving: String,
    /// Connections that wait for room; `null` if the pool has no queue and nobody waits.
    pub queue: Option<Queue>,
    /// Those of the configuration, then those that its sources name.
    pub backends: Vec<Backend>,
    /// Where further backends come from, in configuration order.
    pub sources: Vec<Source>,
}

/// The queue of a pool.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Queue {
    /// How many connections wait for a place at a backend.
    pub length: u32,
    /// How long the first of them has waited, in milliseconds.
    pub longest_ms: u64,
}

/// A source of members.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Source {
    /// Kind and place, `file:/etc/weir/members/web.yaml`.
    pub source: String,
    /// Members that are in the pool because of it.
    pub members: usize,
    /// Seconds since it last said that these are they; `null` if it never did.
    pub age_s: Option<f64>,
    /// Why it cannot be asked, or its answer cannot be used; `null` while all is well.
    pub error: Option<String>,
    /// For how many seconds it has failed; `null` while it does not.
    pub error_s: Option<u64>,
    /// How often it has failed so far.
    pub failures: u64,
}

/// One backend of a pool.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Backend {
    /// Its name within the pool.
    pub name: String,
    /// Address as configured.
    pub address: String,
    /// The [`Source`] that named it; empty for those of the configuration.
    pub source: String,
    /// The weight in force, which an order may have changed.
    pub weight: u32,
    /// Serves only while no primary is up.
    pub backup: bool,
    /// The word of a [`State`](crate::health::State).
    pub state: String,
    /// Why it is in that state, in words for people.
    pub reason: String,
    /// Why, for scripts: the word of a [`Reason`](crate::health::Reason).
    pub reason_code: String,
    /// Seconds in this state.
    pub since_s: u64,
    /// Live connections and sessions.
    pub active: u32,
    /// Connections and sessions established so far.
    pub total: u64,
    /// Failures of real traffic of every kind.
    pub failed: u64,
    /// Attempts that followed a failed one elsewhere.
    pub retries: u64,
    /// Bytes to the backend.
    pub bytes_in: u64,
    /// Bytes from the backend.
    pub bytes_out: u64,
    /// Mean time to connect, in milliseconds; `null` before the first connection.
    pub connect_ms: Option<f64>,
    /// Smoothed time to the first byte, in milliseconds; `null` while unknown.
    pub response_ms: Option<f64>,
}

/// One virtual address.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Vip {
    /// The address with its prefix length.
    pub address: String,
    /// Name of the interface that it is put on.
    pub interface: String,
    /// `one` node holds it, or `all` that serve.
    pub hold: String,
    /// One of [`VIP_STATES`].
    pub state: String,
    /// Node that holds it, as far as this one knows; `null` if none does.
    pub holder: Option<String>,
    /// Seconds in this state.
    pub since_s: u64,
    /// Why it is in that state, in words for people.
    pub reason: String,
    /// Changes of state since the start.
    pub transitions: u64,
    /// An operator demoted it on this node.
    pub demoted: bool,
    /// When nobody holds it: for each node, what stands in the way.
    pub obstacles: Option<Vec<String>>,
}

/// One of the other nodes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Its name, a key of `failover.nodes`.
    pub name: String,
    /// Heard of within `dead_after`.
    pub alive: bool,
    /// Milliseconds since its last beat; `null` if there was none.
    pub last_beat_ms: Option<u64>,
    /// In which way it is configured otherwise than this node; `null` if it is not.
    pub mismatch: Option<String>,
}

/// An endpoint that votes by answering.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Witness {
    /// The address and port that are asked.
    pub address: String,
    /// It has answered lately; `null` while it is too early to tell.
    pub up: Option<bool>,
}

/// Something that this node watches beside its own service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Track {
    /// Its name in the configuration.
    pub name: String,
    /// What is watched: `tcp ADDRESS`, `interface NAME` or `exec COMMAND`.
    pub what: String,
    /// Whether it holds; `null` while it is too early to tell.
    pub holds: Option<bool>,
    /// What it adds to this node's rank while it holds; `null` = it must hold.
    pub weight: Option<u32>,
    /// What the last answer said, if it was a bad one.
    pub reason: Option<String>,
}

/// `failover.arbiter`, as this node sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Arbiter {
    /// It answers; null before it was asked first.
    pub up: Option<bool>,
    /// Why it does not answer; `null` if it does, or has not been asked yet.
    pub problem: Option<String>,
    /// Addresses and groups on which its vote is this node's now.
    pub votes: Vec<String>,
}

/// A live connection or session as the commands read it; [`LiveConnection`](crate::link::LiveConnection) is what is sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Connection {
    pub id: u64,
    pub protocol: String,
    pub listener: String,
    pub client: String,
    pub pool: String,
    pub backend: String,
    pub engine: String,
    pub worker: usize,
    pub state: String,
    pub age_ms: u64,
    pub idle_ms: u64,
    pub bytes_up: u64,
    pub bytes_down: u64,
}

impl Connection {
    /// `pool/backend`, `-` while none is chosen.
    pub fn place(&self) -> String {
        match &*self.backend {
            "" => "-".into(),
            backend => format!("{}/{backend}", self.pool),
        }
    }
}
