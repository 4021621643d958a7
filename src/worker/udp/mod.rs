//! UDP listeners and sessions of one worker: carries out what [`crate::flow`] decides.
//!
//! # A turn
//!
//! 1. *Replies*: every session whose socket has something is read into the inbox, its datagrams become messages to its client.
//!    All replies of the turn leave through the listening sockets, one sendmmsg for each socket.
//! 2. *Requests*: every listening socket that has something is read into the inbox once. Datagrams are sorted by session,
//!    each session's leave with one call on its own socket.
//!
//! Everything is level-triggered (see [`crate::sys::epoll`]): a budget can end anywhere, poll tells again, and a lone reply
//! costs one receive, without a second one to learn that there is no more. Reads of a session start at one datagram and
//! double while that is not enough; from then on the kernel merges equal datagrams for us (GRO), and the buffers grow.
//!
//! # Workers
//!
//! Every worker has a socket of its own for each bound address, and the kernel's hash over both endpoints keeps a flow on its
//! socket (SO_REUSEPORT). Fewer workers change nothing: a socket moves on with its sessions. More workers mean more sockets,
//! hence another division: flows then begin anew, at the same backend only if that is chosen by `source_hash`.
//!
//! # Errors
//!
//! Connected sockets have their error queue switched on. An entry quotes the datagram that it is about; what that proves is
//! decided by the table. Nothing that arrives on a session's socket can touch another session or the listener. Listening
//! sockets are not connected, so ICMP errors about replies do not reach them at all.
//!
//! # Shortages
//!
//! Without a descriptor or a port, parked sessions are given up one by one, oldest first; then the new session is shed.
//! A full send buffer drops datagrams, as a full queue anywhere on the way would. All of it is counted by reason
//! ([`Dropped`]).

mod life;
mod migrate;
mod plan;
mod replies;
mod requests;
mod session;
mod stash;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Context;
use super::sockets::set::{LINGER_MS, Set};
use crate::base::{Key, Kind, Side, Token};
use crate::config::model::Protocol;
use crate::flow::{Dropped, ListenerIx, SessionLimits, SessionView, Table, Tally};
use crate::link::LiveConnection;
use crate::relay::{By, Cause};
use crate::snapshot::{Listener, Listeners, Owner};
use crate::worker::os::epoll::Readiness;
use crate::worker::os::mmsg::{Inbox, Outbox};
use crate::worker::os::udp::Sent;

use plan::Plan;
use requests::Item;
use session::Session;
use stash::Stash;

/// Datagrams or GRO batches in hand at once.
const SLOTS: usize = 64;
/// Fewest reads asked for at once.
const BURST_MIN: usize = 4;
/// Error-queue entries read from one session in one turn.
const REPORTS_MAX: usize = 16;

/// What is kept with a listening socket.
pub(super) struct Datagram {
    address: SocketAddr,
    /// Index of the interface that it is limited to; 0 = none.
    device: u32,
    /// Bound to the wildcard: each datagram says which address it was sent to.
    wildcard: bool,
    /// What the kernel has dropped.
    drops: Tally,
    /// Reads at once: follows the load, because preparing a read costs something for each.
    burst: usize,
}

impl Datagram {
    /// `drops`: as far as somebody has counted them.
    pub(super) fn new(address: SocketAddr, device: u32, wildcard: bool, drops: Tally) -> Datagram {
        Datagram {
            address,
            device,
            wildcard,
            drops,
            burst: BURST_MIN,
        }
    }

    fn adapt(&mut self, got: usize) {
        if got == self.burst {
            self.burst = (self.burst * 2).min(SLOTS);
        } else if got * 4 <= self.burst {
            self.burst = (self.burst / 2).max(BURST_MIN);
        }
    }
}

/// The UDP listeners and sessions of one worker.
pub(super) struct Udp {
    table: Table<Session>,
    /// The newest known listeners by id; those that are gone stay for the sessions that still count in them.
    listeners: HashMap<u32, Arc<Listener>>,
    /// Some of them are gone.
    outdated: bool,
    inbox: Inbox,
    outbox: Outbox,
    plan: Plan,
    /// Session and listening socket of each message of the plan.
    owners: Vec<(Key, Key)>,
    items: Vec<Item>,
    ready_sockets: Vec<Key>,
    ready_sessions: Vec<(Key, bool)>,
    stash: Stash,
    next_id: u64,
    /// When interim records are next looked for.
    interim_at: Option<Instant>,
}

fn token(kind: Kind, key: Key) -> u64 {
    Token {
        kind,
        side: Side::Client,
        key,
    }
    .pack()
}

impl Udp {
    pub(super) fn new(worker: usize, context: &Context) -> Udp {
        Udp {
            table: Table::new(context.shared.epoch),
            listeners: HashMap::new(),
            outdated: false,
            // Nothing of the arena is touched, hence resident, before the first datagram.
            inbox: Inbox::new(SLOTS),
            outbox: Outbox::new(),
            plan: Plan::default(),
            owners: Vec::new(),
            items: Vec::new(),
            ready_sockets: Vec::new(),
            ready_sessions: Vec::new(),
            stash: Stash::default(),
            // Apart from the ids of connections, which count from the same place.
            next_id: (worker as u64) << 40 | 1 << 39,
            interim_at: None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// When [`expire`](Self::expire) has something to do, milliseconds since the epoch.
    pub(super) fn next_timer(&self, context: &Context) -> Option<u64> {
        let timers = [self.table.deadline(), self.interim_at];
        let next = timers.into_iter().flatten().min()?;
        let at = next.saturating_duration_since(context.shared.epoch);
        Some(at.as_micros().div_ceil(1000) as u64)
    }

    /// Notes what an event says; does nothing yet.
    pub(super) fn mark(&mut self, kind: Kind, key: Key, event: Readiness) {
        match kind {
            Kind::Datagram => self.ready_sockets.push(key),
            _ => self.ready_sessions.push((key, event.error)),
        }
    }

    /// The listeners are others than before.
    pub(super) fn adopt(&mut self, listeners: &Listeners) {
        for listener in listeners.iter() {
            if listener.config.protocol == Protocol::Udp {
                self.know(listener);
            }
        }
        self.outdated = true;
    }

    /// A listener, new or as it is now.
    pub(super) fn know(&mut self, listener: &Arc<Listener>) {
        let wanted = &listener.config.udp;
        let known = self.listeners.get(&listener.id);
        if known.is_none_or(|known| known.config.udp != *wanted) {
            let policy = SessionLimits {
                idle: wanted.idle,
                requests: wanted.requests,
                replies: wanted.replies,
            };
            self.table.set_limits(ListenerIx(listener.id), policy);
        }
        self.listeners.insert(listener.id, listener.clone());
    }

    /// Forgets listeners that are gone, as soon as neither a socket nor a session of theirs is left.
    fn forget_outdated(&mut self, current: &Listeners, sockets: &Set<Datagram>) {
        let Self { table, listeners, .. } = self;
        let bound = sockets.listeners();
        let is_gone = |id: &u32| current.get(*id).is_none();
        listeners.retain(|id, _| !is_gone(id) || bound.contains(id) || !table.forget(ListenerIx(*id)));
        self.outdated = listeners.keys().any(is_gone);
    }

    /// A listening socket is not read any more. Its sessions stay for the replies that are under way, if there were requests
    /// lately; unless another socket has its address, to which their clients' next datagrams go.
    pub(super) fn mute(&mut self, context: &mut Context, socket: Key, succeeded: bool) {
        let now = context.now - context.shared.epoch;
        let silent_since = now.saturating_sub(Duration::from_millis(LINGER_MS));
        self.end_sessions(context, socket, |view| succeeded || view.last < silent_since);
    }

    /// A listening socket goes.
    pub(super) fn close(&mut self, context: &mut Context, socket: Key) {
        self.end_sessions(context, socket, |_| true);
    }

    fn end_sessions(&mut self, context: &mut Context, socket: Key, which: impl Fn(&SessionView<Session>) -> bool) {
        let of_socket = |view: &SessionView<Session>| view.data.socket == socket && which(view);
        let sessions = self.table.iter().filter(|(_, view)| of_socket(view));
        for session in sessions.map(|(session, _)| session).collect::<Vec<_>>() {
            self.retire(context, session, Cause::Shutdown, By::Weir);
        }
    }

    /// Moves datagrams both ways, replies first.
    pub(super) fn pump(&mut self, context: &mut Context, sockets: &mut Set<Datagram>) {
        if !self.ready_sessions.is_empty() {
            self.replies(context, sockets);
        }
        let mut ready = std::mem::take(&mut self.ready_sockets);
        for key in ready.drain(..) {
            self.requests(context, sockets, key);
        }
        self.ready_sockets = ready;
    }

    /// Does what is due: ends silent sessions, forgets listeners that are gone, writes interim records.
    pub(super) fn expire(&mut self, context: &mut Context, sockets: &Set<Datagram>) {
        while let Some(key) = self.table.expire(context.now) {
            self.retire(context, key, Cause::IdleTimeout, By::Weir);
        }
        if self.outdated {
            self.forget_outdated(&context.snapshot.listeners, sockets);
        }
        let Some(period) = context.snapshot.interim else {
            self.interim_at = None;
            return;
        };
        let at = *self.interim_at.get_or_insert(context.now + period / 8);
        if at <= context.now {
            self.interim_at = Some(context.now + period / 8);
            self.interim(context, period);
        }
    }

    /// Describes live sessions.
    pub(super) fn list(&self, context: &Context, limit: usize) -> Vec<LiveConnection> {
        let live = self.table.iter().filter(|(_, view)| !view.data.story.ended);
        live.take(limit)
            .map(|(_, view)| LiveConnection {
                id: view.data.story.id,
                protocol: "udp",
                listener: view.data.story.listener.config.name.clone(),
                client: view.ends.client().to_string(),
                pool: view.data.bound.backend.pool.to_string(),
                backend: view.data.bound.backend.config.name.clone(),
                engine: Owner::WORKERS.0,
                worker: context.id,
                state: match view.data.bound.permit {
                    Some(_) => "open",
                    None => "connecting",
                },
                age_ms: context
                    .now
                    .saturating_duration_since(view.data.story.opened)
                    .as_millis() as u64,
                idle_ms: (context.now - context.shared.epoch)
                    .saturating_sub(view.last)
                    .as_millis() as u64,
                bytes_up: view.data.story.bytes_up,
                bytes_down: view.data.story.bytes_down,
            })
            .collect()
    }

    /// Ends the session with this id, if it is here.
    pub(super) fn kill(&mut self, context: &mut Context, id: u64) -> bool {
        let found = self
            .table
            .iter()
            .find(|(_, view)| view.data.story.id == id && !view.data.story.ended)
            .map(|(key, _)| key);
        if let Some(key) = found {
            self.retire(context, key, Cause::Killed, By::Weir);
        }
        found.is_some()
    }

    /// Up to `count` sessions of a backend go to another one with their next datagram. If it is only down, they keep their
    /// place there until then: should there be no other backend, they go on where they are.
    pub(super) fn shed(&mut self, backend: u64, count: usize, cause: Cause) {
        let of_backend = self
            .table
            .iter()
            .filter(|(_, view)| view.data.bound.backend.identity == backend && view.data.bound.permit.is_some());
        let keys: Vec<Key> = of_backend.map(|(key, _)| key).take(count).collect();
        for key in keys {
            self.table.astray(key);
            if let Some(session) = self.table.get_mut(key).filter(|_| cause != Cause::BackendDown) {
                session.bound.permit = None;
            }
        }
    }

    /// Ends every session whose client uses this address.
    pub(super) fn end_at(&mut self, context: &mut Context, address: IpAddr) {
        let meant = self
            .table
            .iter()
            .filter(|(_, view)| view.ends.local().ip().to_canonical() == address);
        let keys: Vec<Key> = meant.map(|(key, _)| key).collect();
        for key in keys {
            self.retire(context, key, Cause::VipMoved, By::Weir);
        }
    }

    /// Ends everything.
    pub(super) fn end_all(&mut self, context: &mut Context, cause: Cause) {
        let keys: Vec<Key> = self.table.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.retire(context, key, cause, By::Weir);
        }
    }
}

/// Under which reason a datagram that was not sent is counted.
fn reason(sent: Sent) -> Option<Dropped> {
    match sent {
        Sent::Gone => None,
        Sent::Full => Some(Dropped::SendBuffer),
        Sent::TooBig | Sent::NoSegmentation | Sent::SegmentTooBig => Some(Dropped::TooBig),
        Sent::Unreachable => Some(Dropped::Unreachable),
    }
}

/// The longest datagrams to be grouped after a group of `segment` bytes each was refused.
fn lower(segment: usize, why: Sent) -> u16 {
    match why {
        Sent::NoSegmentation => 0,
        _ => segment.saturating_sub(1) as u16,
    }
}
