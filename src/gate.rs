//! Who may come in: a listener's access list, caps and rates, exact over all workers.
//!
//! What is counted (live connections, sources) belongs to the listener's name and survives reloads; what is allowed is
//! the configuration's and is replaced with it. Sources are spread over several locks by hash, so workers rarely meet.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::balance::acl::{Acl, NetSet};
use crate::balance::limits::{Admission, Limit, SourceLimits, SourceTable, shard};
use crate::config::model;
use crate::relay::Cause;
use crate::stats::ListenerStats;

/// Locks that the sources of one listener are spread over.
const SHARDS: usize = 16;
/// Sources remembered by one listener: 16 shards of 64 Ki entries, at most about 100 MB when millions come.
const SOURCES_PER_SHARD: usize = 64 << 10;

/// Live connections and rates of a listener's sources.
#[derive(Debug)]
pub struct Sources(Box<[Mutex<SourceTable>]>);

/// One listener's access list, caps and rates, with what they count.
#[derive(Debug)]
pub struct Gate {
    acl: Acl,
    connections_max: Option<u32>,
    /// Whether sources are counted at all.
    counts_sources: bool,
    sources: Arc<Sources>,
    proxies: NetSet,
    stats: Arc<ListenerStats>,
}

impl Gate {
    /// The gate of a listener; `predecessor` is the one that it replaces.
    pub fn new(config: &model::Listener, stats: Arc<ListenerStats>, predecessor: Option<&Gate>) -> Arc<Gate> {
        let limits = SourceLimits {
            connections: config.limits.per_source,
            new: config.limits.new_per_source,
            exempt: NetSet::new(&config.limits.exempt),
        };
        let counts_sources = limits.connections.is_some() || limits.new.is_some();
        let sources = match predecessor {
            Some(gate) => {
                for table in &gate.sources.0 {
                    table.lock().set_limits(limits.clone());
                }
                gate.sources.clone()
            }
            None => {
                let table = |_| Mutex::new(SourceTable::new(limits.clone(), SOURCES_PER_SHARD));
                Arc::new(Sources((0..SHARDS).map(table).collect()))
            }
        };
        Arc::new(Gate {
            acl: Acl::new(&config.allow, &config.deny),
            connections_max: config.limits.connections,
            counts_sources,
            sources,
            proxies: NetSet::new(&config.accept_proxy),
            stats,
        })
    }

    /// Whether connections from this address must start with a PROXY header.
    pub fn expects_header(&self, peer: Option<IpAddr>) -> bool {
        !self.proxies.is_empty() && peer.is_some_and(|ip| self.proxies.contains(ip))
    }

    /// Lets a client in and counts it for as long as the permit lives, or says what is against it. Clients of unix sockets
    /// (`None`) have no address to judge.
    pub fn admit(self: &Arc<Self>, client: Option<IpAddr>, now: Instant) -> Result<ListenerPermit, Cause> {
        self.enter(client, |sources, ip| sources.admit(now, ip))
    }

    /// As [`admit`](Self::admit) for a client that was let in by another process: it counts, but it is not new.
    pub fn readmit(self: &Arc<Self>, client: Option<IpAddr>, now: Instant) -> Result<ListenerPermit, Cause> {
        self.enter(client, |sources, ip| sources.readmit(now, ip))
    }

    fn enter(
        self: &Arc<Self>,
        client: Option<IpAddr>,
        count: impl FnOnce(&mut SourceTable, IpAddr) -> Result<Admission, Limit>,
    ) -> Result<ListenerPermit, Cause> {
        if client.is_some_and(|ip| !self.acl.permits(ip)) {
            return Err(Cause::Denied);
        }
        if !self.stats.active.try_raise(self.connections_max) {
            return Err(Cause::LimitListener);
        }
        let mut pass = ListenerPermit {
            gate: self.clone(),
            source: None,
        };
        if let Some(ip) = client.filter(|_| self.counts_sources) {
            let lock = shard(ip, SHARDS) as u8;
            let admitted = count(&mut self.sources.0[usize::from(lock)].lock(), ip);
            match admitted {
                Ok(admission) => pass.source = Some((lock, admission)),
                Err(Limit::Connections | Limit::Table) => return Err(Cause::LimitSource),
                Err(Limit::Rate(_)) => return Err(Cause::LimitRate),
            }
        }
        Ok(pass)
    }
}

/// A client that was let in; leaving is dropping it.
#[derive(Debug)]
pub struct ListenerPermit {
    gate: Arc<Gate>,
    source: Option<(u8, Admission)>,
}

impl Drop for ListenerPermit {
    fn drop(&mut self) {
        self.gate.stats.active.lower();
        if let Some((lock, admission)) = self.source {
            self.gate.sources.0[usize::from(lock)].lock().release(admission);
        }
    }
}
