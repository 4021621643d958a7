//! What carries connections and sessions: the workers, and whatever stands beside them.
//!
//! An engine is a handle: its methods are called by the control thread, [`Engine::obey`] by the election as well, and return
//! soon, whatever the engine itself does meanwhile on threads of its own or in the kernel. It sees configuration as a
//! [`Snapshot`] and tells what it does in four ways:
//!
//! - counters: into the shard [`Sharded::kept_elsewhere`](crate::stats::Sharded::kept_elsewhere) of its listeners and their
//!   backends, when asked to [`collect`](Engine::collect);
//! - what is open: into the gauges of listeners, backends and process, by [`Gauge::follow`](crate::base::Gauge::follow), so
//!   that caps, least_conn, drains and the end of the process see the sum over all engines;
//! - endings: a [`Record`](super::Record) each, to [`Shared::record`];
//! - failures of backends: to [`Shared::failed`].
//!
//! Each listener has one owner ([`Owner`](crate::snapshot::Owner)): the first engine that [`carries`](Engine::carries) it, else the
//! workers. Its addresses are bound as sockets only if those are the workers.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{EngineOrder, Shared};
use crate::config::Config;
use crate::config::model::Listener;
use crate::snapshot::Snapshot;

/// A handle on whatever carries connections and sessions of some listeners.
pub trait Engine: fmt::Debug + Send + Sync {
    /// As a listener's `engine` names it.
    fn name(&self) -> &'static str;

    /// Whether what comes to this listener is its business.
    fn carries(&self, listener: &Listener) -> bool;

    /// Gets hold of everything that `config` asks of it and that may fail, and changes nothing of what it does. The error is a
    /// sentence; the configuration is refused with it. What was prepared and is not [adopted](Engine::adopt), because another
    /// part has refused, is given up with the next call.
    fn prepare(&self, config: &Config) -> Result<(), String>;

    /// Acts on this snapshot from now on: its listeners are those whose owner bears its name. Connections of listeners that
    /// have gone may finish. Called on every change of health, weight or configuration; versions only grow.
    fn adopt(&self, snapshot: &Arc<Snapshot>);

    /// Does as it is told, now or soon, one order after the other.
    fn obey(&self, order: EngineOrder);

    /// How many connections and sessions it has at the backend with this identity.
    fn live_at(&self, backend: u64) -> usize;

    /// Brings counters and gauges up to date: once a second, and before somebody looks.
    fn collect(&self);

    /// What it counts besides, if it works on packets.
    fn figures(&self) -> Option<PacketFigures> {
        None
    }

    /// Takes nothing new from now on. What is open may finish.
    fn close(&self);

    /// What a successor needs to carry on, each under a name that begins with the engine's: it finds them in [`Inherit`].
    /// This process goes on as before until it is told to [let go](Engine::let_go).
    fn hand_over(&self) -> io::Result<Vec<(String, OwnedFd)>>;

    /// Another process carries on: touches nothing of what is shared with it any more, and ends nothing.
    fn let_go(&self);
}

/// What an engine counts that works on packets. Its own totals: they outlive a process whose flows do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PacketFigures {
    /// Connections and sessions that both sides have confirmed.
    pub flows: u32,
    /// The limit on `flows`.
    pub flows_max: u32,
    /// Packets passed on from clients, and to them.
    pub packets: [u64; 2],
    /// Packets not passed on, or not as they should have been, by reason.
    pub dropped: Vec<(&'static str, u64)>,
}

/// What a process before this one handed over under a name, once.
pub type Inherit<'a> = &'a mut dyn FnMut(&str) -> Option<OwnedFd>;

/// Makes the handle on an engine, at the start of the process. In an upgrade, the process before this one still carries what it
/// did: nothing of it is touched before the first [`Engine::adopt`].
pub type StartEngine = Box<dyn FnOnce(&Arc<Shared>, Inherit) -> io::Result<Arc<dyn Engine>>>;
