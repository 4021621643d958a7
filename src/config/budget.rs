//! How the descriptors of a process are spent. Pure: the limit is a parameter.

use super::model::*;

/// Descriptors a connection holds: its two sockets.
pub const FDS_PER_CONNECTION: u64 = 2;
/// Descriptors a UDP session holds: its socket towards the backend.
pub const FDS_PER_SESSION: u64 = 1;
/// Most pipes that a worker keeps for bulk connections, two descriptors each. Fewer where descriptors are scarce: without
/// a pipe, bulk data is copied.
pub const PIPES_PER_WORKER: u64 = 64;
/// Most probes that run at the same time; fewer where descriptors are scarce.
pub const PROBES_MAX: u64 = 256;
/// Descriptors a probe holds: the sockets with which it tries at the most.
pub const FDS_PER_PROBE: u64 = 4;
/// Probes get one descriptor of so many.
const PROBES_SHARE: u64 = 16;
/// A worker's own: epoll, waker.
pub const FDS_PER_WORKER: u64 = 4;
/// Standard streams, logs, admin and metrics clients, beats, and room to shed work with; an eighth of a limit that is
/// smaller than eight times this.
pub const FDS_RESERVE: u64 = 64;

/// What helps where there are too few.
pub const MORE_DESCRIPTORS: &str = "raise the limit (LimitNOFILE= in the unit, or ulimit -n)";

/// How the descriptors are spent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Budget {
    /// The soft limit on open descriptors.
    pub limit: u64,
    /// Spent before the first connection, pipes included.
    pub fixed: u64,
    /// Pipes of each worker.
    pub pipes: u64,
    /// Descriptors for connections.
    pub connections: u64,
    /// Descriptors for UDP sessions.
    pub sessions: u64,
    /// Probes at a time.
    pub probes: u64,
}

impl Budget {
    /// The budget of a configuration under a descriptor limit: what is not stated takes what is left, in halves where
    /// both connections and sessions are to be carried.
    pub fn new(config: &Config, limit: u64, cpus: usize) -> Budget {
        let workers = config.workers.unwrap_or(cpus).max(1) as u64;
        let ports = |bind: &Bind| match bind {
            Bind::Ip { ports, .. } => ports.len() as u64,
            Bind::Unix(_) => 1,
        };
        let listening: u64 = config.listeners.iter().flat_map(|l| &l.bind).map(ports).sum();
        let probed = config.pools.iter().filter(|p| p.policy.health.kind != ProbeKind::None);
        // Who else comes is not known.
        let members = |p: &Pool| if p.members.is_empty() { 0 } else { PROBES_MAX };
        let probes = probed.map(|p| p.backends.len() as u64 + members(p)).sum::<u64>();
        let affordable = (limit / PROBES_SHARE / FDS_PER_PROBE).clamp(1, PROBES_MAX);
        let probes = probes.min(affordable);
        let peers = config
            .failover
            .as_ref()
            .map_or(0, |f| 2 * (f.nodes.len() + f.witnesses.len()) as u64);
        let base = workers * (listening + FDS_PER_WORKER) + probes * FDS_PER_PROBE + peers + FDS_RESERVE.min(limit / 8);
        let serves = |protocol| config.listeners.iter().any(|l| l.protocol == protocol);
        let stated = |protocol, limit: Option<u32>, each| match (serves(protocol), limit) {
            (false, _) => Some(0),
            (true, limit) => limit.map(|n| n as u64 * each),
        };
        let connections = stated(Protocol::Tcp, config.limits.connections, FDS_PER_CONNECTION);
        let sessions = stated(Protocol::Udp, config.limits.udp_sessions, FDS_PER_SESSION);
        let spare = limit.saturating_sub(base + connections.unwrap_or(0) + sessions.unwrap_or(0));
        let open_ended = connections.is_none() || sessions.is_none();
        let for_pipes = if open_ended { spare / 4 } else { spare };
        let pipes = match serves(Protocol::Tcp) {
            true => (for_pipes / (2 * workers)).min(PIPES_PER_WORKER),
            false => 0,
        };
        let left = spare - pipes * 2 * workers;
        let share = if connections.is_none() && sessions.is_none() {
            left / 2
        } else {
            left
        };
        Budget {
            limit,
            fixed: base + pipes * 2 * workers,
            pipes,
            connections: connections.unwrap_or(share) / FDS_PER_CONNECTION,
            sessions: sessions.unwrap_or(share) / FDS_PER_SESSION,
            probes,
        }
    }

    /// Why `config` cannot be served within this budget, if so: what is stated is more than may be opened, or nothing is
    /// left for a single connection or session.
    pub fn refusal(&self, config: &Config) -> Option<String> {
        let lacks = |protocol, carried: u64| carried == 0 && config.listeners.iter().any(|l| l.protocol == protocol);
        let empty = lacks(Protocol::Tcp, self.connections) || lacks(Protocol::Udp, self.sessions);
        (self.needed() > self.limit || empty).then(|| {
            format!(
                "{} descriptors are needed ({} connections of {FDS_PER_CONNECTION}, {} sessions of {FDS_PER_SESSION}, {} for listeners, pipes, probes and a reserve), and {} may be opened: {MORE_DESCRIPTORS}, or lower `limits`",
                self.needed(),
                self.connections,
                self.sessions,
                self.fixed,
                self.limit,
            )
        })
    }

    /// Descriptors that all of it takes.
    pub fn needed(&self) -> u64 {
        self.fixed + self.connections * FDS_PER_CONNECTION + self.sessions * FDS_PER_SESSION
    }
}
