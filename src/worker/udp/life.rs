//! Opening sessions, binding them to backends, losing backends, ending.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::session::{Bound, Session, Story, Wire};
use super::{Context, REPORTS_MAX, Udp, reason, token};
use crate::base::{Key, Kind};
use crate::config::model::{ClientAddress, SendProxy};
use crate::flow::{Dropped, Endpoints, Full, OnError};
use crate::gate::ListenerPermit;
use crate::health::FailureKind;
use crate::link::Address;
use crate::relay::{By, Cause};
use crate::route::{self, Purpose};
use crate::snapshot::{BackendPermit, Choice, Listener};
use crate::sys::route::{Route, Source};
use crate::worker::os::socket::ConnectError;
use crate::worker::os::udp::{self, Trouble};

/// Why a session gets a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rebind {
    /// It had ended: for everybody else it is a new one.
    Reopened,
    /// Its backend has failed or left.
    Astray,
    /// Nothing can be sent on its socket.
    Unsendable,
}

/// A backend and a socket connected to it; `None`: the session has it already.
struct Found {
    permit: BackendPermit,
    fd: Option<OwnedFd>,
    attempts: u16,
    introduce: bool,
}

impl Udp {
    /// Lets a new session in: a transit in the process, unless it has one already, and a pass of its listener. Where a cap is
    /// reached, the session that has been idle for too long makes room.
    fn admit(
        &mut self,
        context: &mut Context,
        listener: &Listener,
        ends: &Endpoints,
        seated: bool,
    ) -> Result<ListenerPermit, Dropped> {
        if !seated && !take_seat(context) {
            self.evict(context, Full::Process, ends);
            if !take_seat(context) {
                return Err(Dropped::LimitProcess);
            }
        }
        let client = Some(ends.client().ip());
        let mut admitted = listener.gate.admit(client, context.now);
        let full = match admitted {
            Err(Cause::LimitListener) => Some(Full::Listener),
            Err(Cause::LimitSource) => Some(Full::Source),
            _ => None,
        };
        if full.is_some_and(|full| self.evict(context, full, ends)) {
            admitted = listener.gate.admit(client, context.now);
        }
        admitted.map_err(|cause| {
            if !seated {
                leave_seat(context);
            }
            match cause {
                Cause::Denied => Dropped::Denied,
                Cause::LimitSource => Dropped::LimitSource,
                Cause::LimitRate => Dropped::LimitRate,
                _ => Dropped::LimitListener,
            }
        })
    }

    /// Ends the session that makes room at a cap, if there is one.
    fn evict(&mut self, context: &mut Context, full: Full, ends: &Endpoints) -> bool {
        let victim = self.table.victim(context.now, full, ends);
        if let Some(victim) = victim {
            self.retire(context, victim, Cause::Evicted, By::Weir);
        }
        victim.is_some()
    }

    /// Opens a session: place, backend, socket.
    pub(super) fn open(
        &mut self,
        context: &mut Context,
        (listener, socket, local): (&Arc<Listener>, Key, &Arc<Address>),
        ends: &Endpoints,
    ) -> Result<(), Dropped> {
        let permit = self.admit(context, listener, ends, false)?;
        let found = self.find_backend(context, listener, ends, None, None);
        let found = found.inspect_err(|_| leave_seat(context))?;
        let Some(fd) = found.fd else {
            leave_seat(context);
            return Err(Dropped::Unreachable);
        };
        self.next_id += 1;
        let mut story = Story::new(self.next_id, listener.clone(), permit, context.now);
        story.attempts = found.attempts;
        let raw = fd.as_raw_fd();
        let bound = Bound::new(found.permit, context.now, found.introduce);
        let session = Session::new(socket, local, Wire::new(fd), bound, story);
        let counted = listener.config.limits.per_source.is_some();
        let key = self.table.open(context.now, *ends, counted, session);
        listener.stats.shards.of(context.id).accepted.add(1);
        if let Err(error) = context.poller.add_level(raw, token(Kind::Session, key)) {
            context.shared.exhausted(&error);
            self.retire(context, key, Cause::LimitProcess, By::Weir);
            return Err(Dropped::NoDescriptor);
        }
        Ok(())
    }

    /// Chooses a backend, not the one that has just failed if there is another, and connects a socket to it, unless it is
    /// the one that the session's socket is `bound` to already.
    fn find_backend(
        &mut self,
        context: &mut Context,
        listener: &Listener,
        ends: &Endpoints,
        failed: Option<u64>,
        bound: Option<u64>,
    ) -> Result<Found, Dropped> {
        let (now, worker) = (context.now, context.id);
        let clock = now - context.shared.epoch;
        let Some((pool, cursor)) = context.pool_of(listener) else {
            return Err(Dropped::NoBackend);
        };
        let key = pool.key_of(Some(ends.client()));
        let mut tried: Vec<u64> = failed.into_iter().collect();
        let mut chosen = pool.choose(cursor, key, &tried, clock);
        if failed.is_some() && !matches!(chosen, Choice::Backend(_)) {
            // It is the only one that has room; it may have come back.
            tried.clear();
            chosen = pool.choose(cursor, key, &tried, clock);
        }
        let mut attempts = 0;
        loop {
            let permit = match chosen {
                Choice::Backend(permit) => permit,
                Choice::Full => return Err(Dropped::Full),
                Choice::Nobody => return Err(Dropped::NoBackend),
            };
            attempts += 1;
            let backend = permit.backend().clone();
            let shard = backend.stats.shards.of(worker);
            if attempts > 1 || failed.is_some() {
                shard.retries.add(1);
            }
            let connected = match bound {
                Some(bound) if bound == backend.identity => Ok(None),
                _ => {
                    let purpose = Purpose::Serve {
                        port: Some(ends.local().port()),
                        client: Some(ends.client()),
                    };
                    let route = route::resolve(&backend.config, &pool.config, purpose);
                    self.connect(context, &route).map(Some)
                }
            };
            match connected {
                Ok(fd) => {
                    shard.total.add(1);
                    let introduce = pool.config.send_proxy != SendProxy::Off;
                    return Ok(Found {
                        permit,
                        fd,
                        attempts,
                        introduce,
                    });
                }
                Err(ConnectError::Exhausted) => return Err(Dropped::NoDescriptor),
                Err(ConnectError::NoPorts) => return Err(Dropped::NoPort),
                Err(error) => {
                    shard.failed(FailureKind::LocalError);
                    context.shared.trouble(&backend, error);
                }
            }
            tried.push(backend.identity);
            let Some((_, cursor)) = context.pool_of(listener) else {
                return Err(Dropped::NoBackend);
            };
            chosen = match u32::from(attempts) < pool.config.connect.attempts {
                true => pool.choose(cursor, key, &tried, clock),
                false => Choice::Nobody,
            };
        }
    }

    /// Connects a socket, giving up parked sessions for a descriptor or a port.
    fn connect(&mut self, context: &mut Context, route: &Route) -> Result<OwnedFd, ConnectError> {
        if route.source == Source::Nobody {
            return Err(ConnectError::NotKept);
        }
        loop {
            let error = match udp::connect(route) {
                Ok(fd) => return Ok(fd),
                Err(error) => error,
            };
            let short = ConnectError::from(io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(0)));
            if !matches!(short, ConnectError::Exhausted | ConnectError::NoPorts) {
                return Err(short);
            }
            let Some(spare) = self.table.spare() else {
                context.shared.exhausted(&error);
                return Err(short);
            };
            self.retire(context, spare, Cause::Finished, By::Weir);
        }
    }

    /// Gives a session a backend.
    pub(super) fn rebind(&mut self, context: &mut Context, key: Key, why: Rebind) -> Result<(), Dropped> {
        let Some(view) = self.table.view(key) else {
            return Err(Dropped::NoBackend);
        };
        let (ends, bound) = (*view.ends, view.data.bound.backend.identity);
        let wire = view.data.wire.fd.as_raw_fd();
        let Some(listener) = self.listeners.get(&ends.listener().0).cloned() else {
            return Err(Dropped::NoBackend);
        };
        let permit = match why {
            Rebind::Reopened => Some(self.admit(context, &listener, &ends, true)?),
            _ => None,
        };
        let pool = context.pool_of(&listener);
        let keeps = pool.is_some_and(|(pool, _)| pool.config.client_address == ClientAddress::Keep);
        if keeps {
            // The client's port goes from this socket to the next.
            udp::share_address(wire, true);
        }
        let failed = (why != Rebind::Reopened).then_some(bound);
        let bound = (why != Rebind::Unsendable).then_some(bound);
        let found = self.find_backend(context, &listener, &ends, failed, bound);
        if keeps && !matches!(found, Ok(Found { fd: Some(_), .. })) {
            udp::share_address(wire, false);
        }
        let found = found?;
        let Some(session) = self.table.get_mut(key) else {
            return Err(Dropped::NoBackend);
        };
        if let Some(permit) = permit {
            self.next_id += 1;
            session.story = Story::new(self.next_id, listener.clone(), permit, context.now);
            listener.stats.shards.of(context.id).accepted.add(1);
        }
        session.story.attempts += found.attempts;
        session.bound = Bound::new(found.permit, context.now, found.introduce);
        let Some(fd) = found.fd else {
            self.table.rebound(key);
            return Ok(());
        };
        let raw = fd.as_raw_fd();
        session.wire = Wire::new(fd);
        self.table.rebound(key);
        context
            .poller
            .add_level(raw, token(Kind::Session, key))
            .map_err(|error| {
                context.shared.exhausted(&error);
                self.retire(context, key, Cause::LimitProcess, By::Weir);
                Dropped::NoDescriptor
            })
    }

    /// This host cannot send on a session's socket (no route, prohibited, its address is gone), which says nothing of the
    /// backend: tries another one, or the same anew, since a new socket gets another source address.
    pub(super) fn rebind_unsendable(&mut self, context: &mut Context, key: Key) -> Result<(), Dropped> {
        let Some(session) = self.table.get_mut(key) else {
            return Err(Dropped::Unreachable);
        };
        session.bound.permit = None;
        let stats = &session.bound.backend.stats;
        stats.shards.of(context.id).failed(FailureKind::LocalError);
        context
            .shared
            .trouble(&session.bound.backend, ConnectError::Unreachable);
        self.table.astray(key);
        self.rebind(context, key, Rebind::Unsendable)
    }

    /// Reads a session's error queue; true if there was anything in it.
    pub(super) fn read_errors(&mut self, context: &mut Context, key: Key) -> bool {
        let mut quote = [0; 2048];
        for nth in 0..REPORTS_MAX {
            let Some(session) = self.table.get_mut(key) else {
                return nth > 0;
            };
            let Some(report) = udp::take_error(session.wire.fd.as_raw_fd(), &mut quote) else {
                return nth > 0;
            };
            if report.trouble == Trouble::Other {
                continue;
            }
            let quoted = &quote[..report.quoted];
            let proof = session.proof(report.trouble, quoted);
            let kind = match report.trouble {
                Trouble::Closed => FailureKind::Refused,
                _ => FailureKind::TimedOut,
            };
            let Some(OnError::Failed { blame, resend }) = self.table.on_error(context.now, key, proof) else {
                continue;
            };
            let Some(session) = self.table.get_mut(key) else {
                return true;
            };
            session.bound.permit = None;
            if blame {
                let shard = session.bound.backend.stats.shards.of(context.id);
                shard.failed(kind);
                context.shared.failed(session.bound.backend.identity, kind, context.now);
            }
            if let Some((again, introduces)) = session.refused(quoted, &self.stash).filter(|_| resend) {
                self.send_again(context, key, &again, introduces);
            }
            return true;
        }
        true
    }

    /// Sends a refused datagram to another backend, if there is one.
    pub(super) fn send_again(&mut self, context: &mut Context, key: Key, again: &[u8], introduces: bool) {
        let Some(refused) = self.table.get_mut(key).map(|session| session.bound.backend.identity) else {
            return;
        };
        if self.rebind(context, key, Rebind::Astray).is_err() {
            return;
        }
        let Some(session) = self.table.get_mut(key) else {
            return;
        };
        if session.bound.backend.identity == refused {
            return;
        }
        if session.bound.introduce && !introduces {
            return self.send_introduced(context, key, again);
        }
        session.bound.introduce = false;
        session.note_sent(again, introduces);
        if let Some(why) = reason(udp::send(session.wire.fd.as_raw_fd(), again)) {
            self.count_drop(context, key, why);
        }
    }

    /// A session has all its replies, or expects none.
    pub(super) fn finish(&mut self, context: &mut Context, key: Key, by: By) {
        self.account_end(context, key, Cause::Finished, by);
        if self.table.finish(context.now, key).is_some() {
            leave_seat(context);
        }
    }

    /// Ends a session: the only place that removes one before its time.
    pub(super) fn retire(&mut self, context: &mut Context, key: Key, cause: Cause, by: By) {
        self.account_end(context, key, cause, by);
        if self.table.remove(key).is_some() {
            leave_seat(context);
        }
    }

    /// Writes the record and gives the backend's place back, once.
    pub(super) fn account_end(&mut self, context: &Context, key: Key, cause: Cause, by: By) {
        let Some(view) = self.table.view(key) else {
            return;
        };
        if view.data.story.ended {
            return;
        }
        let (ends, now) = (*view.ends, context.now);
        let record = context
            .shared
            .wants_records()
            .then(|| view.data.record(&ends, now, cause, by));
        let shard = view.data.story.listener.stats.shards.of(context.id);
        shard.closed[cause as usize].add(1);
        shard
            .seconds
            .observe_us(now.saturating_duration_since(view.data.story.opened).as_micros() as u64);
        if let Some(record) = record {
            context.shared.record(record);
        }
        if let Some(session) = self.table.get_mut(key) {
            session.story.ended = true;
            session.story.permit = None;
            session.bound.permit = None;
        }
    }

    /// Writes the records of sessions that have lived on for `period` since their last one.
    pub(super) fn interim(&mut self, context: &Context, period: Duration) {
        let now = context.now;
        let due = |data: &Session| !data.story.ended && now - data.story.recorded >= period;
        let sessions = self.table.iter().filter(|(_, view)| due(view.data));
        for key in sessions.map(|(key, _)| key).collect::<Vec<_>>() {
            if let Some(view) = self.table.view(key) {
                let mut record = view.data.record(view.ends, now, Cause::Finished, By::Weir);
                record.interim = true;
                context.shared.record(record);
            }
            if let Some(session) = self.table.get_mut(key) {
                session.story.recorded = now;
            }
        }
    }
}

/// A session's place in the process: parked sessions keep it, because they keep a descriptor.
pub(super) fn take_seat(context: &Context) -> bool {
    let [_, max] = context.snapshot.most(&context.shared.process.elsewhere);
    let taken = context.shared.process.udp_sessions.try_raise(Some(max));
    if taken {
        context.stats.udp_sessions.raise();
    }
    taken
}

pub(super) fn leave_seat(context: &Context) {
    context.shared.process.udp_sessions.lower();
    context.stats.udp_sessions.lower();
}
