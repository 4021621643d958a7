//! Sessions that go to another process or worker together with their listening socket, or come back because that process
//! failed.
//!
//! A datagram of a known client must never meet a worker that has its listening socket but not its session: it would open
//! another session, perhaps at another backend. So both leave in one step ([`Udp::leave`]) and arrive in one
//! ([`Udp::arrive`]); in between datagrams of both directions wait in the kernel's buffers.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::life::{leave_seat, take_seat};
use super::session::{Bound, Session, Story, Wire};
use super::{Context, Datagram, Udp, token};
use crate::base::{Key, Kind};
use crate::flow::{Dropped, Endpoints, ListenerIx, State, Tally};
use crate::link::{Address, HandedSession, SessionState};
use crate::relay::{By, Cause};
use crate::snapshot::{BackendPermit, Listener};
use crate::worker::os::{socket, udp};
use crate::worker::sockets::set::Set;

impl Udp {
    /// Takes the sessions of a listening socket out of the table. Of those that go on elsewhere nothing is accounted for but
    /// what the kernel has dropped so far. Those without a place at a backend end here: their clients' next datagrams open
    /// others.
    pub(in crate::worker) fn leave(
        &mut self,
        context: &Context,
        sockets: &mut Set<Datagram>,
        socket: Key,
    ) -> Vec<HandedSession> {
        let lost = |listener: &Listener, drops: &mut Tally, fd| {
            let lost = drops.rise(udp::dropped(fd));
            let shard = listener.stats.shards.of(context.id);
            shard.dropped[Dropped::KernelBuffer as usize].add(u64::from(lost));
        };
        let mut sessions = Vec::new();
        let Some(listening) = sockets.get_mut(socket) else {
            return sessions;
        };
        let fd = listening.fd.as_raw_fd();
        let identity = socket::identity(fd);
        if let Some(listener) = &listening.listener {
            lost(listener, &mut listening.own.drops, fd);
        }
        let here = self.table.iter().filter(|(_, view)| view.data.socket == socket);
        let here: Vec<(Key, SessionState)> = here
            .map(|(key, view)| {
                let session = view.data;
                let state = SessionState {
                    socket: identity,
                    client: view.ends.client(),
                    local: view.ends.local(),
                    backend: session.bound.backend.identity,
                    age: context.now.saturating_duration_since(session.story.opened),
                    requests: view.requests,
                    replies: view.replies,
                    bytes_up: session.story.bytes_up,
                    bytes_down: session.story.bytes_down,
                    attempts: session.story.attempts,
                    introduce: session.bound.introduce,
                    merges: session.wire.gro,
                    grown: session.wire.grown,
                    astray: view.state == State::Astray,
                };
                (key, state)
            })
            .collect();
        for (key, state) in here {
            if self
                .table
                .view(key)
                .is_some_and(|view| view.data.bound.permit.is_none())
            {
                self.account_end(context, key, Cause::Shutdown, By::Weir);
            }
            let Some(mut session) = self.table.remove(key) else {
                continue;
            };
            if session.wire.gro {
                lost(
                    &session.story.listener,
                    &mut session.wire.drops,
                    session.wire.fd.as_raw_fd(),
                );
            }
            leave_seat(context);
            if !session.story.ended
                && let (Some(permit), Some(at_backend)) = (session.story.permit, session.bound.permit)
            {
                let _ = context.poller.remove(session.wire.fd.as_raw_fd());
                sessions.push(HandedSession {
                    state,
                    fd: session.wire.fd,
                    held: Some((permit, at_backend)),
                });
            }
        }
        sessions
    }

    /// Goes on with the sessions of a listening socket that has come here.
    pub(in crate::worker) fn arrive(
        &mut self,
        context: &mut Context,
        sockets: &Set<Datagram>,
        socket: Key,
        sessions: Vec<HandedSession>,
    ) {
        let Some(listening) = sockets.get(socket) else {
            return;
        };
        let Some(listener) = &listening.listener else {
            return;
        };
        for handed in sessions {
            self.go_on(context, (listener, socket, &listening.local), handed);
        }
    }

    /// Goes on with one session. One from another process whose backend is not configured any more, or that no limit leaves
    /// room for, ends here: its client's next datagram opens another.
    fn go_on(
        &mut self,
        context: &mut Context,
        (listener, socket, local): (&Arc<Listener>, Key, &Arc<Address>),
        handed: HandedSession,
    ) {
        let HandedSession { state, fd, held } = handed;
        if !take_seat(context) {
            return;
        }
        let is_new_here = held.is_none();
        let admitted = held.or_else(|| {
            let (pool, _) = context.pool_of(listener)?;
            let mut known = pool.backends.iter();
            let at_backend = BackendPermit::take(known.find(|b| b.identity == state.backend)?)?;
            let gate = listener.gate.readmit(Some(state.client.ip()), context.now);
            Some((gate.ok()?, at_backend))
        });
        let Some((permit, at_backend)) = admitted else {
            return leave_seat(context);
        };
        self.next_id += 1;
        let raw = fd.as_raw_fd();
        let mut wire = Wire::new(fd);
        if state.merges {
            // Of others nothing has been counted yet.
            wire.drops = Tally::starting_at(udp::dropped(raw));
        }
        wire.gro = state.merges;
        wire.grown = state.grown;
        let mut bound = Bound::new(at_backend, context.now, state.introduce);
        bound.heard = state.replies > 0;
        let mut story = Story::new(self.next_id, listener.clone(), permit, context.now);
        story.opened = context.now.checked_sub(state.age).unwrap_or(context.now);
        story.bytes_up = state.bytes_up;
        story.bytes_down = state.bytes_down;
        story.attempts = state.attempts;
        let session = Session::new(socket, local, wire, bound, story);
        let device = local.device().map_or(0, |device| device.index);
        let ends = Endpoints::new(ListenerIx(listener.id), state.client, state.local).on_device(device);
        let counted = listener.config.limits.per_source.is_some();
        // What was counted before counts: a session of one request must not get a second one.
        let had = [state.requests, state.replies];
        let key = self.table.resume(context.now, ends, counted, had, session);
        if state.astray {
            self.table.astray(key);
        }
        if is_new_here {
            listener.stats.shards.of(context.id).accepted.add(1);
        }
        if let Err(error) = context.poller.add_level(raw, token(Kind::Session, key)) {
            context.shared.exhausted(&error);
            if self.table.remove(key).is_some() {
                leave_seat(context);
            }
        }
    }
}
