//! TCP connections of one worker: open, connect, pump, time out, retire.
//!
//! # Life of a connection
//!
//! | phase | sockets | timer | leaves by |
//! |---|---|---|---|
//! | header | client | [`HEADER_WAIT_MS`] | a PROXY header from a source that must send one |
//! | connecting | client, one attempt | the attempt's share of `connect.timeout` | established, next attempt, no attempt left |
//! | open | both | idle, half-close, age | the pair's outcome, a timer, an order |
//! | resetting | the surviving side | [`RESET_CHECK_MS`] | everything acknowledged, [`RESET_WAIT_MS`] |
//!
//! *Held ACK*: in a crowd, where clients of this listener have been the first to speak lately, the ACK that completes the
//! handshake with the backend waits for the request and travels with it: a packet and a wake-up of the backend less. Should
//! the client stay silent, it is sent after [`HELD_ACK_MS`]. A lone connection is served with one system call less instead.
//!
//! *Resetting*: a RST drops what the kernel has not delivered yet (SO_LINGER), but whatever a peer sent before its reset
//! belongs to the other side. So the reset is passed on once the other side has acknowledged everything.
//!
//! All ends go through [`Tcp::retire`]: it is the only place that closes sockets, gives back places and writes records.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Token as MioToken};

use super::Context;
use super::attempt::{Attempt, Started};
use super::connection::{Connection, Due, Phase, charge, moved, throttles, us};
use super::io::{Nagle, Pipes, SCRATCH_BYTES, SocketIo};
use super::listen::seconds_and_probes;
use crate::base::{Key, Kind, RunQueue, Side, Slab, Timers, Token, Weight};
use crate::config::model::BackendAddress;
use crate::link::{Accepted, Address, FailureKind, LiveConnection, Record};
use crate::relay::proxy_header::{self, Parsed};
use crate::relay::{self, Budget, By, Cause, Ending, Outcome, Pair, Pumped};
use crate::sys::socket::{self, ConnectError, Transfer};

/// Bytes that a lane may fill in one pump, spliced or copied: about 50 us of work. A request that arrives beside bulk streams
/// waits for one such pump; docs/performance.md has what other sizes do.
const PUMP_BYTES: usize = 128 << 10;
/// A connection is heavy while each of its pumps moves as much: more than any request or answer that fits the buffer.
const HEAVY_BYTES: u64 = SCRATCH_BYTES as u64;
/// How long the ACK that completes the handshake with a backend waits for the client's first bytes, milliseconds.
const HELD_ACK_MS: u64 = 5;
/// A connection that lives for so long gets all its socket options, milliseconds.
const SETTLED_MS: u64 = 1_000;
/// How often a socket that waits to be reset is looked at, milliseconds.
const RESET_CHECK_MS: u64 = 5;
/// How long it may wait, milliseconds.
const RESET_WAIT_MS: u64 = 5_000;
/// How long a PROXY header may take to arrive, milliseconds.
const HEADER_WAIT_MS: u64 = 5_000;
/// How long a connection rests for which the kernel had no memory, milliseconds.
const STARVED_REST_MS: u64 = 10;

/// See the module.
pub(super) struct Tcp {
    connections: Slab<Connection>,
    run: RunQueue,
    timers: Timers,
    due: Vec<u32>,
    scratch: Box<[u8]>,
    pipes: Pipes,
    next_id: u64,
}

impl Tcp {
    pub(super) fn new(worker: usize, pipes_max: usize) -> Tcp {
        Tcp {
            connections: Slab::new(),
            run: RunQueue::default(),
            timers: Timers::new(),
            due: Vec::new(),
            scratch: vec![0; SCRATCH_BYTES].into(),
            pipes: Pipes::new(pipes_max),
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

    /// Notes what an event says; does nothing yet.
    pub(super) fn mark(&mut self, key: Key, side: Side, event: &Event) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let pair = &mut connection.pair;
        let broken = event.is_error();
        if event.is_priority() {
            pair.mark_urgent(side);
        }
        if broken {
            pair.mark_broken(side);
        } else {
            if event.is_readable() {
                pair.mark_readable(side);
            }
            if event.is_read_closed() {
                pair.mark_fin(side);
            }
            if event.is_writable() {
                pair.mark_writable(side);
            }
        }
        match (&mut connection.phase, side) {
            (Phase::Connecting(attempt), Side::Backend) => {
                attempt.broken |= broken || event.is_write_closed();
                attempt.writable |= event.is_writable();
            }
            (_, Side::Client) => connection.client_broken |= broken,
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
        match &connection.phase {
            Phase::Connecting(attempt) => {
                if connection.client_broken {
                    self.retire(context, key, Cause::ClientReset, By::Client);
                    return;
                }
                let Some(fd) = connection
                    .backend
                    .as_ref()
                    .filter(|_| attempt.broken || attempt.writable)
                else {
                    return;
                };
                // A backend that has written and closed at once looks broken, too (EPOLLHUP of a unix socket), but there
                // is no error, and there are bytes to read.
                let failure = match attempt.broken {
                    true => socket::take_connect_error(fd.as_raw_fd()),
                    false => None,
                };
                if let Some(error) = failure {
                    return self.attempt_failed(context, key, error);
                }
                if !self.established(context, key) {
                    return;
                }
            }
            Phase::Open => {}
            Phase::Header { .. } => return self.read_header(context, key),
            Phase::Resetting { .. } => return,
        }
        self.relay(context, key);
    }

    /// Moves bytes.
    fn relay(&mut self, context: &mut Context, key: Key) {
        let Self {
            connections,
            scratch,
            pipes,
            run,
            ..
        } = self;
        let Some(connection) = connections.get_mut(key) else {
            return;
        };
        let (Some(backend), Some(place)) = (&connection.backend, &connection.place) else {
            return;
        };
        let before = moved(&connection.pair);
        let was_half_closed = connection.pair.half_closed();
        let limited = connection.throttles.as_deref();
        let lane_limit = |side: Side| limited.and_then(|lanes| lanes[side as usize].as_ref());
        let budget = Side::BOTH.map(|side| {
            let left = lane_limit(side).map(|lane| lane.throttle.budget(lane.refill, context.now));
            Budget {
                bytes: left.map_or(PUMP_BYTES, |left| left.min(PUMP_BYTES as u64) as usize),
                exact: left.is_some(),
            }
        });
        let copy_only = Side::BOTH.map(|side| lane_limit(side).is_some());
        let mut io = SocketIo {
            fds: [connection.client.as_raw_fd(), backend.as_raw_fd()],
            held: &mut connection.held,
            scratch,
            pipes,
            spliced: 0,
            starved: false,
            nagle: &mut connection.nagle,
            copy_only,
        };
        let pumped = relay::pump(&mut connection.pair, &mut io, budget);
        let (spliced, starved) = (io.spliced, io.starved);
        let after = moved(&connection.pair);
        let (up, down) = (after[0] - before[0], after[1] - before[1]);
        connection.weight = match up + down {
            HEAVY_BYTES.. => Weight::Heavy,
            _ => Weight::Light,
        };
        if after != before {
            charge(&mut connection.throttles, context.now, [up, down]);
            connection.active_ms = context.now_ms();
            let listener = connection.listener.stats.shards.of(context.id);
            let shard = place.backend().stats.shards.of(context.id);
            if up > 0 {
                listener.bytes_in.add(up);
                shard.bytes_in.add(up);
            }
            if down > 0 {
                listener.bytes_out.add(down);
                shard.bytes_out.add(down);
            }
            if after[1] > 0 && connection.first_byte_us.is_none() {
                connection.note_first_speaker(context.id);
                connection.first_byte_us = Some(us(connection.opened, context.now));
                let waited = context.now.saturating_duration_since(connection.connected);
                place
                    .backend()
                    .stats
                    .observe_latency(waited, context.now - context.shared.epoch);
            }
            if spliced > 0 {
                connection.spliced += spliced;
                context.stats.spliced.add(spliced);
            }
        }
        match pumped {
            Pumped::Idle | Pumped::More if starved => {
                context.shared.exhausted(&"no memory for sockets");
                connection.starved = true;
                connection.rest_until(context.now_ms() + STARVED_REST_MS);
                self.set_timer(key);
            }
            Pumped::Idle => {
                if connection.pair.half_closed() {
                    if !was_half_closed {
                        // The end of a direction is activity: a connection that was idle before it has all its time.
                        connection.active_ms = context.now_ms();
                    }
                    self.set_timer(key);
                }
            }
            Pumped::More => match connection.rest(context.now) {
                None => run.push(key, connection.weight, &mut connection.queued),
                Some(rest) => {
                    connection.rest_until(context.now_ms() + rest.as_millis().max(1) as u64);
                    self.set_timer(key);
                }
            },
            Pumped::Ended(Outcome::Finished { first }) => {
                self.retire(context, key, Cause::Finished, first.into());
            }
            Pumped::Ended(Outcome::Reset { by }) => self.reset(context, key, by),
        }
    }

    /// Passes a reset on, as soon as everything that came before it has arrived.
    fn reset(&mut self, context: &mut Context, key: Key, by: Side) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let cause = match by {
            Side::Client => Cause::ClientReset,
            Side::Backend => Cause::BackendReset,
        };
        let early = by == Side::Backend && connection.pair.moved_from(Side::Backend) == 0;
        if let Some(place) = connection.place.as_ref().filter(|_| early) {
            let backend = place.backend();
            backend.stats.shards.of(context.id).reset_early.add(1);
            context
                .shared
                .failed(backend.identity, FailureKind::ResetEarly, context.now);
        }
        let until_ms = context.now_ms() + RESET_WAIT_MS;
        connection.phase = Phase::Resetting {
            cause,
            by: by.into(),
            until_ms,
        };
        self.check_reset(context, key);
    }

    fn check_reset(&mut self, context: &mut Context, key: Key) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        let Phase::Resetting { cause, by, until_ms } = connection.phase else {
            return;
        };
        let survivor = match by {
            By::Client => connection.backend.as_ref(),
            _ => Some(&connection.client),
        };
        let waiting = survivor.is_some_and(|fd| socket::unacknowledged(fd.as_raw_fd()) > 0);
        if waiting && context.now_ms() < until_ms {
            self.timers.set(key.index, context.now_ms() + RESET_CHECK_MS);
        } else {
            self.retire(context, key, cause, by);
        }
    }

    /// Takes over an accepted connection (already counted in the worker's and the process's gauges) and starts
    /// connecting it.
    pub(super) fn open(&mut self, context: &mut Context, accepted: Accepted) {
        let Accepted {
            listener,
            client: client_address,
            local,
            fd,
        } = accepted;
        let now_ms = context.now_ms();
        self.next_id += 1;
        let id = self.next_id;
        let header = listener.gate.expects_header(client_address.map(|address| address.ip()));
        let max_age_ms = listener.config.timeouts.max_age.map(|age| {
            let age = age.as_millis() as u64;
            now_ms + age - context.rng.below(age / 10 + 1)
        });
        let local = match &*local {
            Address::Ip(address) if address.ip().is_unspecified() => {
                socket::local_address(&fd).map_or(local, |used| Arc::new(Address::Ip(used)))
            }
            _ => local,
        };
        let interval = context.snapshot.interim;
        let key = self.connections.insert(Connection {
            id,
            throttles: throttles(&listener),
            listener,
            local,
            client_address,
            client: fd,
            backend: None,
            place: None,
            pair: Pair::new(client_address.is_some()),
            held: Default::default(),
            phase: Phase::Header {
                until_ms: now_ms + HEADER_WAIT_MS,
            },
            pass: None,
            destination: None,
            resume_ms: None,
            ack_ms: None,
            look_ms: None,
            keepalive: None,
            settled: false,
            interim_ms: interval.map(|interval| now_ms + interval.as_millis() as u64),
            opened: context.now,
            active_ms: now_ms,
            connect_us: None,
            first_byte_us: None,
            connected: context.now,
            spliced: 0,
            max_age_ms,
            attempts: 0,
            nagle: Nagle::Untouched,
            queued: false,
            weight: Weight::Light,
            client_broken: false,
            starved: false,
        });
        if header {
            if self.watch_client(context, key) {
                self.set_timer(key);
            }
        } else if self.admit(context, key) {
            // Registered last: the fewer calls between accept4 and socket, the surer their descriptors are neighbours.
            self.connect_next(context, key);
            self.watch_client(context, key);
        }
    }

    /// Registers the client's socket; false if that ended the connection.
    fn watch_client(&mut self, context: &mut Context, key: Key) -> bool {
        let Some(connection) = self.connections.get(key) else {
            return false;
        };
        let registered = register(context, key, Side::Client, &connection.client);
        if let Err(error) = &registered {
            context.shared.exhausted(error);
            self.retire(context, key, Cause::LimitProcess, By::Weir);
        }
        registered.is_ok()
    }

    /// Judges the client and begins to connect it; false if that ended the connection.
    fn admit(&mut self, context: &mut Context, key: Key) -> bool {
        let Some(connection) = self.connections.get_mut(key) else {
            return false;
        };
        let ip = connection.client_address.map(|address| address.ip());
        match connection.listener.gate.admit(ip, context.now) {
            Ok(pass) => {
                connection.pass = Some(pass);
                let timeout = context
                    .pool_of(&connection.listener)
                    .map_or(Duration::ZERO, |(pool, _)| pool.config.connect.timeout);
                let deadline_ms = context.now_ms() + timeout.as_millis() as u64;
                let held_ack = context.crowded && connection.client_speaks_first(context.id);
                let attempt = Attempt::before_first(deadline_ms, held_ack);
                connection.phase = Phase::Connecting(Box::new(attempt));
                true
            }
            Err(cause) => {
                self.retire(context, key, cause, By::Weir);
                false
            }
        }
    }

    /// Looks for a complete PROXY header and takes it, and nothing else, from the socket.
    fn read_header(&mut self, context: &mut Context, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        if connection.client_broken {
            return self.retire(context, key, Cause::ClientReset, By::Client);
        }
        let fd = connection.client.as_raw_fd();
        let bytes = match socket::peek(fd, &mut self.scratch[..proxy_header::HEADER_MAX]) {
            Transfer::Bytes(n) => &self.scratch[..n],
            Transfer::Blocked => return,
            Transfer::Starved => return self.retire(context, key, Cause::LimitProcess, By::Weir),
            Transfer::Eof | Transfer::Failed => {
                return self.retire(context, key, Cause::BadProxyHeader, By::Weir);
            }
        };
        match proxy_header::parse(bytes) {
            Parsed::Incomplete => {}
            Parsed::Invalid => self.retire(context, key, Cause::BadProxyHeader, By::Weir),
            Parsed::Header { len, addresses } => {
                let taken = socket::recv(fd, &mut self.scratch[..len]);
                debug_assert_eq!(taken, Transfer::Bytes(len));
                if let Some((source, destination)) = addresses {
                    connection.client_address = Some(source);
                    connection.destination = Some(destination);
                }
                if self.admit(context, key) {
                    self.connect_next(context, key);
                }
            }
        }
    }

    /// Starts the next attempt, to a backend that was not tried yet, or gives up.
    fn connect_next(&mut self, context: &mut Context, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let Phase::Connecting(attempt) = &mut connection.phase else {
            return;
        };
        let cause = loop {
            match attempt.start(
                context,
                &connection.listener,
                connection.client_address,
                &connection.local,
            ) {
                Started::Connecting(place, fd) => {
                    connection.pair.replace_backend();
                    connection.connected = context.now;
                    let registered = register(context, key, Side::Backend, &fd);
                    connection.place = Some(place);
                    connection.backend = Some(fd);
                    match registered {
                        Ok(()) => return self.set_timer(key),
                        Err(error) => {
                            context.shared.exhausted(&error);
                            break Cause::LimitProcess;
                        }
                    }
                }
                Started::Failed => {}
                Started::NoBackend { full } => {
                    let shard = connection.listener.stats.shards.of(context.id);
                    shard.no_backend[usize::from(full)].add(1);
                    break Cause::NoBackend;
                }
                Started::GaveUp(cause) => break cause,
            }
        };
        let by = if cause == Cause::BackendReset {
            By::Backend
        } else {
            By::Weir
        };
        self.retire(context, key, cause, by);
    }

    fn attempt_failed(&mut self, context: &mut Context, key: Key, error: ConnectError) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        connection.backend = None;
        if let (Some(place), Phase::Connecting(attempt)) = (connection.place.take(), &mut connection.phase) {
            attempt.note_failure(context, place.backend(), error);
        }
        self.connect_next(context, key);
    }

    /// The backend has answered. False if it was lost again before the PROXY header was on its way.
    fn established(&mut self, context: &mut Context, key: Key) -> bool {
        let Some(connection) = self.connections.get_mut(key) else {
            return false;
        };
        let (Some(place), Some(fd)) = (&connection.place, &connection.backend) else {
            return false;
        };
        let backend = place.backend().clone();
        let header = connection.header_for_backend(&backend);
        // The send buffer of a new socket holds far more than a header.
        if !header.is_empty() && socket::send(fd.as_raw_fd(), &header) != Transfer::Bytes(header.len()) {
            let error = socket::connect_error(fd.as_raw_fd());
            self.attempt_failed(context, key, error);
            return false;
        }
        if let Phase::Connecting(attempt) = &connection.phase {
            connection.attempts = attempt.tried.len() as u16;
            connection.ack_ms = attempt.held_ack.then(|| context.now_ms() + HELD_ACK_MS);
        }
        connection.phase = Phase::Open;
        connection.active_ms = context.now_ms();
        connection.look_ms = Some(context.now_ms() + SETTLED_MS);
        let pool = context.pool_of(&connection.listener);
        connection.keepalive = pool.and_then(|(pool, _)| pool.config.connect.keepalive);
        let connect_us = us(connection.connected, context.now);
        connection.connect_us = Some(connect_us);
        let shard = backend.stats.shards.of(context.id);
        shard.total.add(1);
        shard.connect.observe_us(u64::from(connect_us));
        if matches!(backend.config.address, BackendAddress::Unix(_)) {
            connection.pair.mark_inconclusive(Side::Backend);
            connection.nagle = Nagle::Off;
        } else if !header.is_empty() {
            connection.nagle = Nagle::On;
        }
        self.set_timer(key);
        true
    }

    fn set_timer(&mut self, key: Key) {
        match self.connections.get(key).and_then(Connection::due) {
            Some((at, _)) => self.timers.set(key.index, at),
            None => self.timers.cancel(key.index),
        }
    }

    /// Ends what is due. Activity does not move timers, so a timer that comes early is set again.
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
            match connection.due() {
                Some((at, why)) if at <= now_ms => match why {
                    Due::End(cause) => self.retire(context, key, cause, By::Weir),
                    Due::NextAttempt => self.attempt_failed(context, key, ConnectError::TimedOut),
                    Due::Reset => self.check_reset(context, key),
                    Due::Ack => {
                        connection.ack_ms = None;
                        let silent = connection.pair.moved_from(Side::Client) == 0;
                        if let Some(backend) = connection.backend.as_ref().filter(|_| silent) {
                            socket::acknowledge(backend.as_raw_fd());
                        }
                        self.set_timer(key);
                    }
                    Due::Resume => {
                        connection.resume_ms = None;
                        if std::mem::take(&mut connection.starved) {
                            for side in Side::BOTH {
                                connection.pair.mark_readable(side);
                                connection.pair.mark_writable(side);
                            }
                        }
                        self.run.push(key, connection.weight, &mut connection.queued);
                        self.set_timer(key);
                    }
                    Due::Look => self.look(context, key),
                    Due::Interim => {
                        let interval = context.snapshot.interim;
                        connection.interim_ms = interval.map(|i| now_ms + i.as_millis() as u64);
                        let mut record = connection.record(context.now, Cause::Finished, By::Weir);
                        record.interim = true;
                        context.shared.record(record);
                        self.set_timer(key);
                    }
                },
                _ => self.set_timer(key),
            }
        }
        self.due = due;
    }

    /// Notices peers that have vanished, and gives the backend's socket of a connection that has lasted its options: a
    /// short one is spared the calls.
    fn look(&mut self, context: &mut Context, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        if let Some(fd) = connection.backend.as_ref().filter(|_| !connection.settled) {
            connection.settled = true;
            let fd = fd.as_raw_fd();
            socket::keep_urgent_inline(fd);
            // A unix socket has no such option, and no need for it.
            let _ = socket::set_keepalive(fd, connection.keepalive.map(seconds_and_probes));
        }
        let limits_ms = [connection.listener.config.keepalive, connection.keepalive].map(|keepalive| {
            let limit = keepalive.and_then(|keepalive| keepalive.user_timeout);
            limit.map(|limit| limit.as_millis() as u64)
        });
        match connection.look(context.now_ms(), limits_ms) {
            Ok(next) => {
                connection.look_ms = next;
                self.set_timer(key);
            }
            Err(vanished) => self.reset(context, key, vanished),
        }
    }

    /// Ends a connection: the only place that closes sockets, gives back places and writes records.
    fn retire(&mut self, context: &mut Context, key: Key, cause: Cause, closed_by: By) {
        let Some(mut connection) = self.connections.remove(key) else {
            return;
        };
        self.timers.cancel(key.index);
        if connection.ending(cause) == Ending::Reset {
            for fd in [Some(&connection.client), connection.backend.as_ref()]
                .into_iter()
                .flatten()
            {
                socket::reset_on_close(fd.as_raw_fd());
            }
        }
        for held in &mut connection.held {
            self.pipes.discard(held);
        }
        context.stats.connections.lower();
        context.shared.process.connections.lower();
        let shard = connection.listener.stats.shards.of(context.id);
        shard.closed[cause as usize].add(1);
        shard.seconds.observe_us(u64::from(us(connection.opened, context.now)));
        if context.shared.wants_records() {
            context.shared.record(connection.record(context.now, cause, closed_by));
        }
        match connection.backend {
            Some(backend) => socket::close_two(connection.client, backend),
            None => drop(connection.client),
        }
    }

    /// Turns an accepted connection away before it takes any place.
    pub(super) fn refuse(&mut self, context: &mut Context, accepted: Accepted, cause: Cause) {
        let Accepted {
            listener,
            client,
            local,
            fd,
        } = accepted;
        self.next_id += 1;
        socket::reset_on_close(fd.as_raw_fd());
        listener.stats.shards.of(context.id).closed[cause as usize].add(1);
        context.shared.record(Record {
            time: SystemTime::now(),
            id: self.next_id,
            listener,
            client,
            local,
            backend: None,
            attempts: 0,
            bytes_up: 0,
            bytes_down: 0,
            connect_us: None,
            first_byte_us: None,
            duration_us: 0,
            spliced: 0,
            closed_by: By::Weir,
            cause,
            interim: false,
        });
    }

    /// Describes live connections.
    pub(super) fn list(&self, context: &Context, limit: usize) -> Vec<LiveConnection> {
        let now_ms = context.now_ms();
        let describe = |(_, connection): (Key, &Connection)| connection.describe(context, now_ms);
        self.connections.iter().take(limit).map(describe).collect()
    }

    /// Ends the connection with this id, if it is here.
    pub(super) fn kill(&mut self, context: &mut Context, id: u64) -> bool {
        let found = self.connections.iter().find(|(_, c)| c.id == id).map(|(key, _)| key);
        if let Some(key) = found {
            self.retire(context, key, Cause::Killed, By::Weir);
        }
        found.is_some()
    }

    /// Ends up to `count` connections of a backend.
    pub(super) fn shed(&mut self, context: &mut Context, backend: u64, count: usize, cause: Cause) {
        let of_backend = |c: &Connection| {
            c.place
                .as_ref()
                .is_some_and(|place| place.backend().identity == backend)
        };
        let keys: Vec<Key> = self
            .connections
            .iter()
            .filter(|(_, connection)| of_backend(connection))
            .map(|(key, _)| key)
            .take(count)
            .collect();
        for key in keys {
            self.retire(context, key, cause, By::Weir);
        }
    }

    /// Ends every connection whose client uses this address, while the host still has it: a reset must come from there.
    pub(super) fn end_at(&mut self, context: &mut Context, address: IpAddr) {
        let is_meant = |connection: &Connection| match &*connection.local {
            Address::Unix(_) => false,
            Address::Ip(bound) if !bound.ip().is_unspecified() => bound.ip() == address,
            Address::Ip(_) => {
                socket::local_address(&connection.client).is_ok_and(|used| used.ip().to_canonical() == address)
            }
        };
        let meant = self.connections.iter().filter(|(_, connection)| is_meant(connection));
        let keys: Vec<Key> = meant.map(|(key, _)| key).collect();
        for key in keys {
            self.retire(context, key, Cause::VipMoved, By::Weir);
        }
    }

    /// Ends everything.
    pub(super) fn end_all(&mut self, context: &mut Context, cause: Cause) {
        for key in self.connections.keys() {
            self.retire(context, key, cause, By::Weir);
        }
    }
}

/// Watches a socket, read and write, edge-triggered, once and for all.
fn register(context: &Context, key: Key, side: Side, fd: &OwnedFd) -> std::io::Result<()> {
    let token = Token {
        kind: Kind::Pair,
        side,
        key,
    }
    .pack();
    let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
    context
        .registry
        .register(&mut SourceFd(&fd.as_raw_fd()), MioToken(token as usize), interest)
}
