//! The meaning of a configuration: typed, complete, defaults applied, references resolved to indices.
//!
//! Nothing here parses or prints; `check.rs` builds these values and is the only place that refuses input.

mod arbiter;
mod health;

pub use super::engine::{Engine, FLOWS_AUTO, Kernel, KernelMode, Protocol};

mod members;

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use indexmap::IndexMap;
use ipnet::IpNet;

pub use members::{Family, MemberDefaults, MemberSource, MembersFrom, Resolver};

pub use super::written::Written;
pub use crate::failover::words::Holders;
pub use arbiter::{Arbiter, EtcdEndpoint, EtcdServers};
pub use health::*;

/// A whole, valid configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Event loops; `None` = one for each CPU this process may use.
    pub workers: Option<usize>,
    /// Path of the admin socket.
    pub admin: PathBuf,
    /// HTTP endpoint for metrics, status and the page; `None` = off.
    pub metrics: Option<SocketAddr>,
    /// The event log and the access log.
    pub log: Log,
    /// Limits of the whole process.
    pub limits: ProcessLimits,
    /// How long connections may finish after TERM.
    pub shutdown_grace: Duration,
    /// Listeners in file order.
    pub listeners: Vec<Listener>,
    /// Pools in file order.
    pub pools: Vec<Pool>,
    /// Where members by etcd come from; `None` = the arbiter's cluster, if there is one.
    pub etcd: Option<EtcdServers>,
    /// VIP failover; `None` = off.
    pub failover: Option<Failover>,
    /// The kernel engine.
    pub kernel: Kernel,
    /// What all of this was made from.
    pub written: Written,
}

/// The section `log:`.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// Threshold of the event log (stderr).
    pub level: log::LevelFilter,
    /// Where access records go.
    pub access: AccessTarget,
    /// Form of both logs.
    pub format: LogFormat,
    /// Period of interim access records of long connections; `None` = off.
    pub interim: Option<Duration>,
}

/// Where access records go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessTarget {
    /// No access log is written.
    Off,
    /// Lines go to standard output.
    Stdout,
    /// Appended to a file, reopened on HUP.
    File(PathBuf),
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of `key=value` pairs for each record.
    Text,
    /// One JSON object a line.
    Json,
}

/// `limits:`; `None` = what the descriptor limit can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProcessLimits {
    /// Live TCP connections at most.
    pub connections: Option<u32>,
    /// Live UDP sessions at most.
    pub udp_sessions: Option<u32>,
}

/// One `bind:` entry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Bind {
    /// An IP address and one or more ports.
    Ip {
        /// Local address, possibly the wildcard.
        ip: IpAddr,
        /// Index of the interface that a link-local address belongs to; 0 for others.
        scope: u32,
        /// Ports, usually one; 0 lets the kernel choose (a range never contains 0).
        ports: RangeInclusive<u16>,
        /// What comes in elsewhere is not for it; `None` = all interfaces.
        device: Option<Device>,
    },
    /// A unix stream socket.
    Unix(PathBuf),
}

/// An interface to which an address is limited, as this machine has it now: one that is made anew has another index.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Device {
    /// Its index; 0 = this machine has none of that name.
    pub index: u32,
    /// Its name in the file.
    pub name: String,
}

/// Where a backend is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BackendAddress {
    /// One address and port.
    Ip(SocketAddr),
    /// Address only: the port is the one that the client used.
    SamePort(IpAddr),
    /// A unix stream socket.
    Unix(PathBuf),
}

impl BackendAddress {
    /// The IP address in it.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            BackendAddress::Ip(address) => Some(address.ip()),
            BackendAddress::SamePort(ip) => Some(*ip),
            BackendAddress::Unix(_) => None,
        }
    }
}

/// `listeners.NAME`.
#[derive(Debug, Clone, PartialEq)]
pub struct Listener {
    /// Its name, unique among listeners.
    pub name: String,
    /// The transport that clients use.
    pub protocol: Protocol,
    /// The engine that carries its traffic.
    pub engine: Engine,
    /// Addresses, at least one.
    pub bind: Vec<Bind>,
    /// Those of `bind` that are virtual addresses of `failover`: they can be bound while this host does not have them.
    pub virtual_addresses: Vec<IpAddr>,
    /// Index into [`Config::pools`]; `None`: what `routes` do not name is refused.
    pub pool: Option<usize>,
    /// Server names in normal form, wildcards among them, and the pools that serve them (TCP).
    pub routes: Vec<(String, usize)>,
    /// If not empty, only these sources are served.
    pub allow: Vec<IpNet>,
    /// These sources are refused, whatever `allow` says.
    pub deny: Vec<IpNet>,
    /// Caps on connections and rates.
    pub limits: ListenerLimits,
    /// Timeouts (TCP).
    pub timeouts: Timeouts,
    /// Noticing clients that have vanished (TCP); `None` = off.
    pub keepalive: Option<Keepalive>,
    /// How many connections may wait to be accepted, at each socket (TCP); `None` = as many as the kernel allows.
    pub backlog: Option<u32>,
    /// Sources that must start with a PROXY header; empty = none.
    pub accept_proxy: Vec<IpNet>,
    /// Session ends (UDP).
    pub udp: UdpPolicy,
}

/// `listeners.NAME.limits`; `None` = unlimited.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ListenerLimits {
    /// Live connections or sessions.
    pub connections: Option<u32>,
    /// Live connections or sessions of one source address.
    pub per_source: Option<u32>,
    /// New connections of one source address.
    pub new_per_source: Option<Rate>,
    /// Sources to which the two above do not apply.
    pub exempt: Vec<IpNet>,
    /// Bytes per second towards the client, each connection.
    pub download: Option<u64>,
    /// Bytes per second from the client, each connection.
    pub upload: Option<u64>,
}

/// Events per period, for example `50/s`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// How many events are allowed in one period.
    pub events: u32,
    /// Length of the period.
    pub per: Duration,
}

/// `listeners.NAME.timeouts`; `None` = off.
#[derive(Debug, Clone, PartialEq)]
pub struct Timeouts {
    /// No byte in either direction for so long ends the connection.
    pub idle: Option<Duration>,
    /// After one direction has ended, the other may be silent for so long.
    pub half_close: Option<Duration>,
    /// Longest life of a connection, jittered by up to a tenth.
    pub max_age: Option<Duration>,
    /// With `routes`: how long a client may take for its TLS hello.
    pub hello: Duration,
}

impl Listener {
    /// The pools that it sends to, each once.
    pub fn pools(&self) -> impl Iterator<Item = usize> {
        let all = self.routes.iter().map(|(_, pool)| *pool).chain(self.pool);
        let mut pools: Vec<usize> = all.collect();
        pools.sort_unstable();
        pools.dedup();
        pools.into_iter()
    }
}

/// `listeners.NAME.keepalive` and `pools.NAME.connect.keepalive`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence after which the kernel asks whether the peer is still there.
    pub idle: Duration,
    /// Between questions that are not answered.
    pub interval: Duration,
    /// Questions without an answer that end the connection.
    pub probes: u32,
    /// Bytes under way to a peer without a sign of life for so long end the connection; `None` = off.
    pub user_timeout: Option<Duration>,
}

impl Keepalive {
    /// As the kernel takes it (tcp(7)): whole seconds until the first question and between two, and how many.
    pub fn seconds_and_probes(self) -> [u32; 3] {
        let seconds = |time: Duration| time.as_secs().clamp(1, i32::MAX as u64) as u32;
        [seconds(self.idle), seconds(self.interval), self.probes]
    }
}

/// `listeners.NAME.udp`; `None` = unlimited.
#[derive(Debug, Clone, PartialEq)]
pub struct UdpPolicy {
    /// A session without a datagram for so long ends.
    pub idle: Duration,
    /// Datagrams from the client after which the session ends.
    pub requests: Option<u32>,
    /// Datagrams from the backend for each one from the client after which the session ends.
    pub replies: Option<u32>,
}

/// `pools.NAME`: who is in it, and by which rules.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// Everything but the backends.
    pub policy: PoolPolicy,
    /// Backends in file order, names and addresses unique; at least one, unless there are sources of members.
    pub backends: Vec<Backend>,
    /// Where further backends come from.
    pub members: Vec<MemberSource>,
    /// How names are looked up.
    pub resolver: Resolver,
}

/// The rules of a pool, whoever is in it.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolPolicy {
    /// Its name, unique among pools.
    pub name: String,
    /// How a backend is chosen.
    pub balance: Balance,
    /// Parameters of `source_hash`.
    pub source_hash: SourceHash,
    /// Active health checks.
    pub health: Health,
    /// Ejection by failures of real traffic; `None` = off.
    pub passive: Option<Passive>,
    /// How often, and with what patience, a connection is tried.
    pub connect: Connect,
    /// Where connections wait while every eligible backend is full; `None` = they are refused.
    pub queue: Option<Queue>,
    /// Ramp of a returning backend; `None` = off.
    pub slow_start: Option<Duration>,
    /// What happens to live connections and sessions of a backend that goes down, if the file says it: see
    /// [`on_down`](Self::on_down).
    pub on_down: Option<OnDown>,
    /// What happens to what backups have when a primary comes back.
    pub on_marked_up: OnMarkedUp,
    /// How long connections of a draining backend may go on; `None` = as long as they like.
    pub on_drain_finish: Option<Duration>,
    /// What happens when no backend is up.
    pub all_down: AllDown,
    /// PROXY header sent to the backend.
    pub send_proxy: SendProxy,
    /// Local address of connections to backends; of probes alone where clients' addresses are kept.
    pub source_address: Option<IpAddr>,
    /// Whom backends of the proxy engine see.
    pub client_address: ClientAddress,
    /// What backends see of the kernel engine.
    pub kernel_mode: KernelMode,
    /// Local addresses of the kernel engine's connections to backends, at most
    /// [`KERNEL_SOURCES_MAX`](crate::config::KERNEL_SOURCES_MAX); none = `source_address`, or the one that this host would use.
    pub kernel_sources: Vec<IpAddr>,
}

impl PoolPolicy {
    /// What happens to what is live of a protocol at a backend that goes down. A connection cannot be moved, and a session
    /// cannot be closed in its client's eyes.
    pub fn on_down(&self, protocol: Protocol) -> OnDown {
        match (protocol, self.on_down) {
            (_, Some(OnDown::Keep)) | (Protocol::Tcp, None | Some(OnDown::Repick)) => OnDown::Keep,
            (Protocol::Tcp, Some(OnDown::Close)) => OnDown::Close,
            (Protocol::Udp, None | Some(OnDown::Close | OnDown::Repick)) => OnDown::Repick,
        }
    }
}

/// `pools.NAME.queue`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// How many connections wait at most.
    pub length: u32,
    /// How long a connection waits at most.
    pub timeout: Duration,
}

/// `pools.NAME.balance`. All are weighted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Balance {
    /// Fewest connections in proportion to weight.
    LeastConn,
    /// Maglev hash of the client's address.
    SourceHash,
    /// Smooth weighted round robin.
    RoundRobin,
    /// Two random choices, the less loaded wins.
    Random,
    /// Lowest peak-EWMA response time times load.
    LeastTime,
}

/// `pools.NAME.source_hash`.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceHash {
    /// Significant bits of an IPv4 source.
    pub prefix_v4: u8,
    /// Significant bits of an IPv6 source.
    pub prefix_v6: u8,
    /// Whether the source port counts.
    pub port: bool,
    /// Cap on a backend's load as a multiple of the mean (> 1); `None` = off.
    pub bounded_load: Option<f64>,
    /// Seed; equal on all nodes that shall agree.
    pub seed: u64,
}

/// One backend of a pool.
#[derive(Debug, Clone, PartialEq)]
pub struct Backend {
    /// Name, unique in the pool.
    pub name: String,
    /// Address, unique in the pool.
    pub address: BackendAddress,
    /// Share; 0 = no new work.
    pub weight: u32,
    /// Live connections at most; `None` = unlimited.
    pub max_connections: Option<u32>,
    /// Serves only while no primary is up.
    pub backup: bool,
}

/// `pools.NAME.passive`.
#[derive(Debug, Clone, PartialEq)]
pub struct Passive {
    /// Failures within the window that eject.
    pub failures: u32,
    /// The time in which failures are counted together.
    pub window: Duration,
    /// First ejection; doubles with each in a row, up to ten times this.
    pub eject: Duration,
}

/// `pools.NAME.connect`.
#[derive(Debug, Clone, PartialEq)]
pub struct Connect {
    /// Time for all attempts together.
    pub timeout: Duration,
    /// Attempts, each to a different backend.
    pub attempts: u32,
    /// Noticing backends that have vanished; `None` = off.
    pub keepalive: Option<Keepalive>,
    /// Mark of packets to backends.
    pub mark: Option<u32>,
    /// Class of packets to backends, 0 to 63.
    pub dscp: Option<u8>,
}

/// `pools.NAME.on_down`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDown {
    /// Connections and sessions go on.
    Keep,
    /// TCP connections are reset; UDP sessions go to another backend.
    Close,
    /// UDP sessions go to another backend with their next datagram; TCP connections go on.
    Repick,
}

/// `pools.NAME.on_marked_up`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnMarkedUp {
    /// Work at backups goes on there.
    Keep,
    /// Connections at backups are reset; sessions there go to another backend.
    CloseBackup,
}

/// `pools.NAME.all_down`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AllDown {
    /// New work is refused.
    Refuse,
    /// Try every backend as if it were up, loudly.
    TryAll,
}

/// `pools.NAME.send_proxy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendProxy {
    /// No header is sent.
    Off,
    /// The text header of version 1.
    V1,
    /// The binary header of version 2.
    V2,
}

/// `pools.NAME.client_address`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAddress {
    /// Backends see an address of this host.
    Hide,
    /// Backends see the client's address and port, and answer through this host.
    Keep,
}

/// The section `failover:`.
#[derive(Debug, Clone, PartialEq)]
pub struct Failover {
    /// This node's name, a key of `nodes`.
    pub node: String,
    /// Files with shared secrets: the first one signs, all are accepted.
    pub secret_files: Vec<PathBuf>,
    /// Time between beats.
    pub beat: Duration,
    /// Silence after which a node counts as dead.
    pub dead_after: Duration,
    /// How long a node that hears nobody claims nothing after its start.
    pub startup_delay: Duration,
    /// How long a node that stops goes on accepting after it has withdrawn addresses that others hold too.
    pub withdraw_delay: Duration,
    /// Beat addresses of all nodes, this one included.
    pub nodes: IndexMap<String, SocketAddr>,
    /// Further beat addresses, for each of `nodes`.
    pub paths: Vec<Vec<SocketAddr>>,
    /// What this node watches beside its own service.
    pub track: Vec<Track>,
    /// TCP endpoints that vote by answering.
    pub witnesses: Vec<SocketAddr>,
    /// One more voter, with a memory of its own.
    pub arbiter: Option<Arbiter>,
    /// Voters needed; `None` = a majority when there are three or more voters, else 1.
    pub quorum: Option<u32>,
    /// Virtual addresses.
    pub vips: Vec<Vip>,
    /// Command run on each transition; empty = none.
    pub notify: Vec<String>,
}

/// One entry of `failover.vips`.
#[derive(Debug, Clone, PartialEq)]
pub struct Vip {
    /// Address with prefix length.
    pub address: IpNet,
    /// Interface it is installed on.
    pub interface: String,
    /// How many nodes hold it.
    pub hold: Holders,
    /// Nodes in order of preference; indices into `nodes`.
    pub prefer: Vec<usize>,
    /// Whether a more preferred node takes the address back.
    pub preempt: bool,
    /// How long the preferred node must have been healthy first.
    pub preempt_delay: Duration,
    /// Announced again so often while it is held.
    pub garp_refresh: Option<Duration>,
    /// Names of pools that must have a backend.
    pub requires: Vec<String>,
    /// Name of the group whose addresses are held together.
    pub group: Option<String>,
}

/// One entry of `failover.track`.
#[derive(Debug, Clone, PartialEq)]
pub struct Track {
    /// Its name, unique among what is tracked.
    pub name: String,
    /// What is looked at, and how.
    pub what: Tracked,
    /// Time between two looks.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Good answers in a row after which it holds.
    pub rise: u32,
    /// Bad answers in a row after which it does not.
    pub fall: u32,
    /// What it adds to this node's rank while it holds; `None` = it must hold.
    pub weight: Option<u32>,
}

/// What a track watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tracked {
    /// A TCP endpoint that takes connections.
    Tcp(SocketAddr),
    /// An interface that has a carrier.
    Interface(String),
    /// A program that ends with 0: program and arguments.
    Script(Vec<String>),
}

impl std::fmt::Display for Tracked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Tracked::Tcp(address) => write!(f, "tcp {address}"),
            Tracked::Interface(name) => write!(f, "interface {name}"),
            Tracked::Script(command) => write!(f, "exec {}", command.join(" ")),
        }
    }
}
