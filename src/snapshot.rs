//! The immutable view that workers act on. Control publishes a new one on every change; a connection keeps what it
//! needs of the one that it was opened under (its listener and its backend) alive by itself.

use std::sync::Arc;
use std::time::Duration;

use std::borrow::Cow;
use std::net::SocketAddr;

use crate::balance::{Cursor, Loads, Mask, Picker, Shares, source_key};
use crate::config::model;
use crate::gate::Gate;
use crate::stats::{BackendStats, ListenerStats};

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Grows with every publication.
    pub version: u64,
    /// Grows with every configuration.
    pub generation: u64,
    /// Listeners in configuration order.
    pub listeners: Vec<Arc<Listener>>,
    /// Pools in configuration order.
    pub pools: Vec<Arc<Pool>>,
    /// Live TCP connections of the process at most.
    pub connections_max: u32,
    /// What `connections_max` comes from: a limit that the file states turns clients away, one that the descriptors set lets
    /// them wait for a while.
    pub connections_stated: bool,
    /// Live UDP sessions of the process at most.
    pub sessions_max: u32,
    /// Period of interim access records; `None` = off.
    pub interim: Option<Duration>,
}

/// A listener.
#[derive(Debug)]
pub struct Listener {
    /// Stable over reloads as long as the name lives.
    pub id: u32,
    /// What the file says; `config.pool` indexes [`Snapshot::pools`].
    pub config: model::Listener,
    /// Name of the pool it sends to.
    pub pool: Arc<str>,
    /// Its statistics.
    pub stats: Arc<ListenerStats>,
    /// Who may come in.
    pub gate: Arc<Gate>,
}

/// A pool as it is right now.
#[derive(Debug, Clone)]
pub struct Pool {
    /// What the file says.
    pub config: Arc<model::Pool>,
    /// Backends in configuration order.
    pub backends: Vec<Arc<Backend>>,
    /// The algorithm with its tables.
    pub picker: Picker,
    /// Effective share of each backend (slow start).
    pub shares: Shares,
    /// Eligible backends by tier: primaries, then backups. The first tier that has one left is used.
    pub tiers: [Mask; 2],
    /// Nothing is up and the pool tries all: the tiers hold every backend.
    pub desperate: bool,
    /// Backends that are known to be up and take work.
    pub healthy: usize,
}

/// A backend.
#[derive(Debug)]
pub struct Backend {
    /// Stable hash of pool name and address.
    pub identity: u64,
    /// Name of its pool.
    pub pool: Arc<str>,
    /// What the file says.
    pub config: model::Backend,
    /// The PROXY header that its pool wants it to see.
    pub send_proxy: model::SendProxy,
    /// Its statistics.
    pub stats: Arc<BackendStats>,
}

impl Snapshot {
    /// The listener with this id.
    pub fn listener(&self, id: u32) -> Option<&Arc<Listener>> {
        self.listeners.iter().find(|listener| listener.id == id)
    }

    /// The pool that a listener sends to.
    pub fn pool_of(&self, listener: &Listener) -> Option<&Arc<Pool>> {
        self.pools.get(listener.config.pool)
    }
}

/// The loads of a pool's backends at one moment (time since the workers' epoch).
pub struct LoadsAt<'a>(pub &'a Pool, pub Duration);

impl Loads for LoadsAt<'_> {
    fn active(&self, ix: usize) -> u32 {
        self.0.backends[ix].stats.active.get()
    }

    fn latency_ns(&self, ix: usize) -> u64 {
        self.0.backends[ix].stats.latency_ns(self.1)
    }
}

/// A place taken at a backend: its gauge is up for as long as this lives.
#[derive(Debug)]
pub struct Place(Arc<Backend>);

impl Place {
    /// Takes a place, unless `max_connections` are taken.
    pub fn take(backend: &Arc<Backend>) -> Option<Place> {
        backend
            .stats
            .active
            .try_raise(backend.config.max_connections)
            .then(|| Place(backend.clone()))
    }

    /// The backend.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.stats.active.lower();
    }
}

impl Pool {
    /// Chooses a backend that is not in `tried` (identities) and has room, and takes a place there.
    pub fn choose(&self, cursor: &mut Cursor, key: u64, tried: &[u64], now: Duration) -> Option<Place> {
        for tier in &self.tiers {
            let mut mask = Cow::Borrowed(tier);
            for ix in (0..self.backends.len()).filter(|_| !tried.is_empty()) {
                if tried.contains(&self.backends[ix].identity) {
                    mask.to_mut().clear(ix);
                }
            }
            while let Some(ix) = self.picker.pick(cursor, key, &LoadsAt(self, now), &self.shares, &mask) {
                if let Some(place) = Place::take(&self.backends[ix]) {
                    return Some(place);
                }
                mask.to_mut().clear(ix);
            }
        }
        None
    }

    /// The hash key of a client for this pool; only source hash looks at it.
    pub fn key_of(&self, client: Option<SocketAddr>) -> u64 {
        match (self.config.balance, client) {
            (model::Balance::SourceHash, Some(client)) => source_key(&self.config.source_hash, client),
            _ => 0,
        }
    }
}
