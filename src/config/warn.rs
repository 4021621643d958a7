//! What a machine can carry, and warnings about a configuration that asks for more. Pure: the facts are parameters.

use super::Diagnostic;
use super::model::*;

/// What is known of the machine and of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// RLIMIT_NOFILE, soft.
    pub fd_soft: u64,
    /// RLIMIT_NOFILE, hard: up to this the program raises its own limit.
    pub fd_hard: u64,
    /// CPUs that this process may use.
    pub cpus: usize,
}

/// Descriptors a connection holds: its two sockets.
pub const FDS_PER_CONNECTION: u64 = 2;
/// Descriptors a UDP session holds: its socket towards the backend.
pub const FDS_PER_SESSION: u64 = 1;
/// Pipes that a worker keeps for bulk connections, two descriptors each.
pub const PIPES_PER_WORKER: u64 = 64;
/// Probes that run at the same time.
pub const PROBES_MAX: u64 = 64;
/// A worker's own: epoll, waker.
pub const FDS_PER_WORKER: u64 = 4;
/// Standard streams, logs, admin and metrics clients, beats, and room to shed work with.
pub const FDS_RESERVE: u64 = 64;

/// How the descriptors are spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The limit.
    pub limit: u64,
    /// Spent before the first connection.
    pub fixed: u64,
    /// For connections.
    pub connections: u64,
    /// For UDP sessions.
    pub sessions: u64,
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
        let listening: u64 = config
            .listeners
            .iter()
            .flat_map(|l| &l.bind)
            .map(ports)
            .sum();
        let probed = config
            .pools
            .iter()
            .filter(|p| p.health.kind != ProbeKind::None);
        let probes = probed
            .map(|p| p.backends.len() as u64)
            .sum::<u64>()
            .min(PROBES_MAX);
        let peers = config
            .failover
            .as_ref()
            .map_or(0, |f| 2 * (f.nodes.len() + f.witnesses.len()) as u64);
        let fixed = workers * (listening + FDS_PER_WORKER + 2 * PIPES_PER_WORKER)
            + probes
            + peers
            + FDS_RESERVE;
        let serves = |protocol| config.listeners.iter().any(|l| l.protocol == protocol);
        let stated = |protocol, limit: Option<u32>, each| match (serves(protocol), limit) {
            (false, _) => Some(0),
            (true, limit) => limit.map(|n| n as u64 * each),
        };
        let connections = stated(Protocol::Tcp, config.limits.connections, FDS_PER_CONNECTION);
        let sessions = stated(Protocol::Udp, config.limits.udp_sessions, FDS_PER_SESSION);
        let left = limit.saturating_sub(fixed + connections.unwrap_or(0) + sessions.unwrap_or(0));
        let share = if connections.is_none() && sessions.is_none() {
            left / 2
        } else {
            left
        };
        Budget {
            limit,
            fixed,
            connections: connections.unwrap_or(share) / FDS_PER_CONNECTION,
            sessions: sessions.unwrap_or(share) / FDS_PER_SESSION,
        }
    }

    /// Descriptors that all of it takes.
    pub fn needed(&self) -> u64 {
        self.fixed + self.connections * FDS_PER_CONNECTION + self.sessions * FDS_PER_SESSION
    }
}

/// Warnings that depend on the machine, to be shown beside [`Loaded::warnings`](super::Loaded::warnings).
pub fn facts_warnings(file_name: &str, config: &Config, facts: &Facts) -> Vec<Diagnostic> {
    /// Fewer connections than this are surely not what somebody wants of a balancer.
    const FEW: u64 = 500;
    let limit = facts.fd_soft.max(facts.fd_hard);
    let budget = Budget::new(config, limit, facts.cpus);
    let mut warnings = Vec::new();
    let mut warn = |path: &str, message: String| {
        let (file, path) = (file_name.to_string(), path.to_string());
        warnings.push(Diagnostic {
            file,
            line: 0,
            column: 0,
            path,
            message,
        });
    };
    let remedy = "raise the limit (LimitNOFILE= in the unit, or ulimit -n)";
    if budget.needed() > limit {
        warn(
            "limits",
            format!(
                "{} descriptors are needed ({} connections of {FDS_PER_CONNECTION}, {} sessions of {FDS_PER_SESSION}, {} for listeners, pipes, probes and a reserve), and {limit} may be opened: {remedy}, or lower `limits`",
                budget.needed(),
                budget.connections,
                budget.sessions,
                budget.fixed,
            ),
        );
    } else if config.limits.connections.is_none()
        && budget.connections < FEW
        && config.listeners.iter().any(|l| l.protocol == Protocol::Tcp)
    {
        warn(
            "limits.connections",
            format!(
                "{limit} descriptors carry {} connections only: {remedy}",
                budget.connections
            ),
        );
    }
    if let Some(workers) = config.workers
        && workers > facts.cpus
    {
        warn(
            "workers",
            format!(
                "{workers} event loops share {} CPUs: `auto` is faster",
                facts.cpus
            ),
        );
    }
    warnings
}
