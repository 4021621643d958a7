//! TCP connections of one worker: each in its slot, with its timer and its turn, from accepting to its end.
//!
//! # Life of a connection
//!
//! | phase | sockets | timer | leaves by |
//! |---|---|---|---|
//! | header | client | five seconds | a PROXY header from a source that must send one |
//! | hello | client | `timeouts.hello` | a server name, or the certainty that there is none |
//! | queued | client | `queue.timeout` | its turn, the client going away |
//! | connecting | client, one attempt | the attempt's share of `connect.timeout` | established, next attempt, no attempt left |
//! | open | both | idle, half-close, age | the pair's outcome, a timer, an order |
//! | resetting | the surviving side | a look every few milliseconds | everything acknowledged, or five seconds |
//!
//! Every step (an event, a timer, an order) works on one connection and says what is [`Next`]; [`Tcp::follow`] does that. So
//! all ends go through [`Tcp::retire`]: it is the only place that closes sockets, gives back places and writes records.

use std::net::IpAddr;
use std::os::fd::AsRawFd;

use super::Context;
use super::account::account_refusal;
use super::clocks::Due;
use super::connection::{Connection, Next, Phase, Reached};
use super::pump::Tools;
use super::queue::Waiting;
use super::{closing, connect, pump};
use crate::base::{Key, RunQueue, Side, Slab, Timers};
use crate::link::{Accepted, LiveConnection};
use crate::relay::{By, Cause, Ending};
use crate::worker::os::epoll::Readiness;
use crate::worker::os::socket::{self, ConnectError};

/// The TCP connections of one worker.
pub(super) struct Tcp {
    connections: Slab<Connection>,
    run: RunQueue,
    timers: Timers,
    due: Vec<u32>,
    tools: Tools,
    waiting: Waiting,
    next_id: u64,
}

impl Tcp {
    pub(super) fn new(worker: usize, pipes_max: usize) -> Tcp {
        Tcp {
            connections: Slab::new(),
            run: RunQueue::default(),
            timers: Timers::new(),
            due: Vec::new(),
            tools: Tools::new(pipes_max),
            waiting: Waiting::default(),
            next_id: (worker as u64) << 40,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    pub(super) fn has_work(&self) -> bool {
        !self.run.is_empty()
    }

    /// When the next timer is due, milliseconds since the epoch.
    pub(super) fn next_timer(&self) -> Option<u64> {
        self.timers.next()
    }

    /// Notes that others than streams have something to do.
    pub(super) fn note_others(&mut self, now_ms: u64) {
        self.tools.light_ms = now_ms;
    }

    /// Notes what an event says; does nothing yet.
    pub(super) fn mark(&mut self, key: Key, side: Side, event: Readiness) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let pair = &mut connection.lanes.pair;
        let broken = event.error;
        if event.priority {
            pair.mark_urgent(side);
        }
        if broken {
            pair.mark_broken(side);
        } else {
            if event.readable {
                pair.mark_readable(side);
            }
            if event.read_closed {
                pair.mark_fin(side);
            }
            if event.writable {
                pair.mark_writable(side);
            }
        }
        match (&mut connection.phase, side) {
            (Phase::Connecting(attempt), Side::Backend) => {
                attempt.broken |= broken || event.write_closed;
                attempt.writable |= event.writable;
            }
            (_, Side::Client) => {
                connection.client_broken |= broken;
                connection.client_ended |= event.read_closed;
            }
            _ => {}
        }
        self.run.push(key, connection.weight, &mut connection.queued);
    }

    /// Runs the connections whose turn it is, of those that were queued when the phase began.
    pub(super) fn pump(&mut self, context: &mut Context) {
        for (weight, count) in self.run.turn() {
            for _ in 0..count {
                let Some(key) = self.run.pop(weight) else {
                    break;
                };
                if let Some(connection) = self.connections.get_mut(key) {
                    connection.queued = false;
                    self.pump_one(context, key);
                }
            }
        }
    }

    fn pump_one(&mut self, context: &mut Context, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let next = match &connection.phase {
            Phase::Header { .. } => connect::read_header(connection, context, &mut self.tools.scratch),
            Phase::Hello { .. } => Next::ReadHello,
            Phase::Queued { .. } => connect::wait_on(connection),
            Phase::Connecting(_) => connect::proceed(connection, context),
            Phase::Open => Next::Relay,
            Phase::Resetting { .. } => Next::Wait,
        };
        self.follow(context, key, next);
    }

    /// Takes over an accepted connection (already counted in the worker's and the process's gauges) and starts
    /// connecting it.
    pub(super) fn open(&mut self, context: &mut Context, accepted: Accepted) {
        self.next_id += 1;
        let mut connection = Connection::new(self.next_id, accepted, context);
        if connect::expects_header(&connection) {
            let key = self.connections.insert(connection);
            self.watch_client(context, key);
            self.follow(context, key, Next::Schedule);
        } else {
            let next = connect::admit(&mut connection, context);
            let key = self.connections.insert(connection);
            self.follow(context, key, next);
            // Registered last: the fewer calls between accept4 and socket, the surer their descriptors are neighbours.
            self.watch_client(context, key);
        }
    }

    fn watch_client(&mut self, context: &mut Context, key: Key) {
        let watched = self
            .connections
            .get(key)
            .map(|c| connect::watch_client(c, context, key));
        if let Some(Err(next)) = watched {
            self.follow(context, key, next);
        }
    }

    /// Does what a step has left to be done.
    fn follow(&mut self, context: &mut Context, key: Key, mut next: Next) {
        while let Some(connection) = self.connections.get_mut(key) {
            next = match next {
                Next::Wait => return,
                Next::Schedule => return schedule(&mut self.timers, key, connection),
                Next::Requeue => return self.run.push(key, connection.weight, &mut connection.queued),
                Next::ReadHello => connect::read_hello(connection, context, &mut self.tools.scratch),
                Next::Enqueue => connect::enqueue(connection, context, key, &mut self.waiting),
                Next::LeaveQueue => connect::leave_queue(connection, context, key),
                Next::Connect => connect::start(connection, context, key),
                Next::Serve => {
                    schedule(&mut self.timers, key, connection);
                    Next::Relay
                }
                Next::Resume => {
                    schedule(&mut self.timers, key, connection);
                    Next::Requeue
                }
                Next::Relay => pump::relay(connection, context, &mut self.tools),
                Next::Reset(by) => closing::reset(connection, context, by),
                Next::End(cause, by) => return self.retire(context, key, cause, by),
            };
        }
    }

    /// Serves those that are first in their queues and have been called. The snapshot of the turn before was `version`: a newer one
    /// may have made room.
    pub(super) fn serve_waiting(&mut self, context: &mut Context, version: u64) {
        if self.waiting.is_empty() {
            return;
        }
        let connections = &self.connections;
        self.waiting.tidy(|key, ticket| {
            let phase = connections.get(key).map(|connection| &connection.phase);
            matches!(phase, Some(Phase::Queued { place, .. }) if place.ticket() == ticket)
        });
        if context.snapshot.version != version {
            self.waiting.call_all();
        }
        for key in self.waiting.called() {
            self.follow(context, key, Next::LeaveQueue);
        }
    }

    /// Does what is due. Activity does not move timers, so a timer that comes early is set again.
    pub(super) fn expire(&mut self, context: &mut Context) {
        let now_ms = context.now_ms();
        let mut due = std::mem::take(&mut self.due);
        self.timers.expire(now_ms, &mut due);
        for index in due.drain(..) {
            let Some(key) = self.connections.key_at(index) else {
                continue;
            };
            let Some(connection) = self.connections.get_mut(key) else {
                continue;
            };
            let why = connection.due().filter(|&(at, _)| at <= now_ms).map(|(_, why)| why);
            let next = match why {
                None => Next::Schedule,
                Some(Due::End(cause)) => Next::End(cause, By::Weir),
                Some(Due::NextAttempt) => connect::failed(connection, context, ConnectError::TimedOut),
                Some(Due::Hello) => connect::miss_hello(connection, context),
                Some(Due::Reset) => closing::check_reset(connection, context),
                Some(Due::Look) => closing::look(connection, context),
                Some(Due::Ack) => {
                    connect::acknowledge(connection);
                    Next::Schedule
                }
                Some(Due::Resume) => pump::resume(connection),
                Some(Due::Gather) => pump::look(connection, now_ms),
                Some(Due::Interim) => {
                    let interval = context.snapshot.interim;
                    connection.clocks.interim_ms = interval.map(|i| now_ms + i.as_millis() as u64);
                    let mut record = connection.record(context.now, Cause::Finished, By::Weir);
                    record.interim = true;
                    context.shared.record(record);
                    Next::Schedule
                }
            };
            self.follow(context, key, next);
        }
        self.due = due;
    }

    /// Ends a connection: the only place that closes sockets, gives back places and writes records.
    fn retire(&mut self, context: &mut Context, key: Key, cause: Cause, closed_by: By) {
        let Some(mut connection) = self.connections.remove(key) else {
            return;
        };
        self.timers.cancel(key.index);
        if connection.ending(cause) == Ending::Reset {
            for fd in connection.fds().into_iter().flatten() {
                socket::reset_on_close(fd);
            }
        }
        for held in &mut connection.lanes.held {
            self.tools.pipes.discard(held);
        }
        connection.account_end(context, cause, closed_by);
        match connection.backend {
            Some(Reached { fd, .. }) => socket::close_two(connection.client, fd),
            None => drop(connection.client),
        }
    }

    /// Turns an accepted connection away before it takes any place.
    pub(super) fn refuse(&mut self, context: &mut Context, accepted: Accepted, cause: Cause) {
        self.next_id += 1;
        socket::reset_on_close(accepted.fd.as_raw_fd());
        account_refusal(context, accepted, self.next_id, cause);
    }

    /// Describes live connections.
    pub(super) fn list(&self, context: &Context, limit: usize) -> Vec<LiveConnection> {
        let now_ms = context.now_ms();
        let describe = |(_, connection): (Key, &Connection)| connection.describe(context, now_ms);
        self.connections.iter().take(limit).map(describe).collect()
    }

    /// Ends the connection with this id, if it is here.
    pub(super) fn kill(&mut self, context: &mut Context, id: u64) -> bool {
        self.end_some(context, Cause::Killed, 1, |connection| connection.id == id) > 0
    }

    /// Ends up to `count` connections of a backend.
    pub(super) fn shed(&mut self, context: &mut Context, backend: u64, count: usize, cause: Cause) {
        self.end_some(context, cause, count, |connection| connection.is_at(backend));
    }

    /// Ends every connection whose client uses this address, while the host still has it: a reset must come from there.
    pub(super) fn end_at(&mut self, context: &mut Context, address: IpAddr) {
        self.end_some(context, Cause::VipMoved, usize::MAX, |connection| {
            connection.uses(address)
        });
    }

    /// Ends everything.
    pub(super) fn end_all(&mut self, context: &mut Context, cause: Cause) {
        self.end_some(context, cause, usize::MAX, |_| true);
    }

    /// Ends at most `count` connections; returns how many those were.
    fn end_some(
        &mut self,
        context: &mut Context,
        cause: Cause,
        count: usize,
        which: impl Fn(&Connection) -> bool,
    ) -> usize {
        let meant = self.connections.iter().filter(|(_, connection)| which(connection));
        let keys: Vec<Key> = meant.map(|(key, _)| key).take(count).collect();
        for &key in &keys {
            self.retire(context, key, cause, By::Weir);
        }
        keys.len()
    }
}

#[cfg(test)]
impl Tcp {
    /// Whoever waits is owed an event or has a timer, and pipes add up.
    pub(super) fn assert_consistent(&self) {
        let mut held = 0;
        for (key, connection) in self.connections.iter() {
            held += connection.lanes.held.iter().filter(|held| held.is_pipe()).count();
            let timer = self.timers.deadline(key.index);
            match connection.phase {
                Phase::Open if connection.queued || connection.clocks.resume_ms.is_some() => {}
                Phase::Open => assert!(connection.lanes.pair.is_owed_an_edge(), "{}", self.tell()),
                _ => assert!(timer.is_some() || connection.queued, "{}", self.tell()),
            }
            if connection.due().is_some() {
                assert!(timer.is_some(), "{}", self.tell());
            }
        }
        self.tools.pipes.assert_consistent(held);
    }

    /// What is open.
    pub(super) fn tell(&self) -> String {
        let connections = self.connections.iter();
        let tell = |(key, c): (Key, &Connection)| {
            let timer = self.timers.deadline(key.index);
            format!(
                "{:?} {:?} timer {timer:?}, queued {}, {:?}",
                c.id,
                c.due(),
                c.queued,
                c.lanes.pair
            )
        };
        connections.map(tell).collect::<Vec<_>>().join("\n")
    }
}

fn schedule(timers: &mut Timers, key: Key, connection: &Connection) {
    match connection.due() {
        Some((at, _)) => timers.set(key.index, at),
        None => timers.cancel(key.index),
    }
}
