//! From an accepted connection to one that is open: PROXY header, gate, TLS hello, attempts.
//!
//! *Held ACK*: in a crowd, where clients of this listener have been the first to speak lately, the ACK that completes the
//! handshake with the backend waits for the request and travels with it: a packet and a wake-up of the backend less. Should
//! the client stay silent, it is sent after [`HELD_ACK_MS`]. A lone connection is served with one system call less instead.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::Context;
use super::attempt::{Attempt, Started};
use super::connection::{Connection, Next, Phase, Reached};
use super::io::Nagle;
use super::origin::Origin;
use super::queue::Waiting;
use crate::base::{Key, Kind, Side, Token};
use crate::config::model::BackendAddress;
use crate::relay::hello::{self, Hello};
use crate::relay::proxy_header::{self, Parsed};
use crate::relay::{By, Cause};
use crate::worker::os::socket::{self, ConnectError, Transfer};

/// How long the ACK that completes the handshake with a backend waits for the client's first bytes, milliseconds.
const HELD_ACK_MS: u64 = 5;
/// A connection that lives for so long gets all its socket options, milliseconds.
const SETTLED_MS: u64 = 1_000;

/// Whether the client begins with a PROXY header.
pub(super) fn expects_header(connection: &Connection) -> bool {
    let client = connection.origin.client.map(|address| address.ip());
    connection.origin.listener.gate.expects_header(client)
}

/// Has events of the client's socket told.
pub(super) fn watch_client(connection: &Connection, context: &Context, key: Key) -> Result<(), Next> {
    register(context, key, Side::Client, &connection.client)
}

/// Looks for a complete PROXY header and takes it, and nothing else, from the socket.
pub(super) fn read_header(connection: &mut Connection, context: &mut Context, scratch: &mut [u8]) -> Next {
    if connection.client_broken {
        return Next::End(Cause::ClientReset, By::Client);
    }
    let fd = connection.client.as_raw_fd();
    let bytes = match socket::peek(fd, &mut scratch[..proxy_header::HEADER_MAX]) {
        Transfer::Bytes(n) => &scratch[..n],
        Transfer::Blocked => return Next::Wait,
        Transfer::Starved => return Next::End(Cause::LimitProcess, By::Weir),
        Transfer::Eof | Transfer::Failed => return Next::End(Cause::BadProxyHeader, By::Weir),
    };
    match proxy_header::parse(bytes) {
        Parsed::Incomplete => Next::Wait,
        Parsed::Invalid => Next::End(Cause::BadProxyHeader, By::Weir),
        Parsed::Header { len, addresses } => {
            // An urgent mark that has come meanwhile cuts it short.
            if socket::recv(fd, &mut scratch[..len]) != Transfer::Bytes(len) {
                return Next::End(Cause::BadProxyHeader, By::Weir);
            }
            if let Some((source, destination)) = addresses {
                connection.origin.client = Some(source);
                connection.origin.destination = Some(destination);
            }
            admit(connection, context)
        }
    }
}

/// Judges the client and begins to connect it.
pub(super) fn admit(connection: &mut Connection, context: &mut Context) -> Next {
    let origin = &mut connection.origin;
    let ip = origin.client.map(|address| address.ip());
    match origin.listener.gate.admit(ip, context.now) {
        Ok(permit) => {
            origin.permit = Some(permit);
            match origin.listener.routing.is_some() {
                true => {
                    let wait_ms = origin.listener.config.timeouts.hello.as_millis() as u64;
                    // Times are whole milliseconds, cut off.
                    let until_ms = context.now_ms() + wait_ms + 1;
                    connection.phase = Phase::Hello { until_ms };
                    Next::ReadHello
                }
                false => begin(connection, context),
            }
        }
        Err(cause) => Next::End(cause, By::Weir),
    }
}

/// Looks for a server name in what the client has sent, which stays in the socket. One that sends nothing more has sent all.
pub(super) fn read_hello(connection: &mut Connection, context: &mut Context, scratch: &mut [u8]) -> Next {
    if connection.client_broken {
        return Next::End(Cause::ClientReset, By::Client);
    }
    let most = scratch.len().min(hello::HELLO_MAX);
    let said = match socket::peek(connection.client.as_raw_fd(), &mut scratch[..most]) {
        Transfer::Bytes(n) => hello::read(&scratch[..n]),
        Transfer::Blocked => return Next::Schedule,
        Transfer::Eof => Hello::Nameless,
        Transfer::Starved => return Next::End(Cause::LimitProcess, By::Weir),
        Transfer::Failed => return Next::End(Cause::ClientReset, By::Client),
    };
    match said {
        Hello::Incomplete if !connection.client_ended => Next::Schedule,
        Hello::Incomplete | Hello::Nameless => send_by_name(connection, context, None, Cause::NoRoute),
        Hello::TooLarge => send_by_name(connection, context, None, Cause::HelloTooLarge),
        Hello::Name(name) => send_by_name(connection, context, Some(name), Cause::NoRoute),
    }
}

/// The client has taken too long to say which server it wants.
pub(super) fn miss_hello(connection: &mut Connection, context: &mut Context) -> Next {
    send_by_name(connection, context, None, Cause::HelloTimeout)
}

/// Finds the pool for the name that was asked for, by the newest configuration. `otherwise` is why there is none.
fn send_by_name(connection: &mut Connection, context: &mut Context, name: Option<String>, otherwise: Cause) -> Next {
    let origin = &mut connection.origin;
    let listener = context
        .snapshot
        .listener(origin.listener.id)
        .unwrap_or(&origin.listener);
    if let Some(routing) = &listener.routing {
        let way = routing.of(name.as_deref()).cloned();
        origin.asked.server_name = name.map(Arc::from);
        let Some(way) = way else {
            return Next::End(otherwise, By::Weir);
        };
        way.connections.of(context.id).add(1);
        origin.asked.way = Some(way);
    }
    begin(connection, context)
}

/// Begins to look for a backend.
fn begin(connection: &mut Connection, context: &mut Context) -> Next {
    connection.phase = Phase::Connecting(Box::new(before_first(&connection.origin, context)));
    Next::Connect
}

/// Nothing was tried yet, and there is all of `connect.timeout`.
fn before_first(origin: &Origin, context: &mut Context) -> Attempt {
    let timeout = origin
        .pool(context)
        .map_or(Duration::ZERO, |(pool, _)| pool.config.connect.timeout);
    let deadline_ms = context.now_ms() + timeout.as_millis() as u64;
    let held_ack = context.crowded && origin.speaks_first(context.id);
    Attempt::before_first(deadline_ms, held_ack)
}

/// Starts the next attempt, to a backend that was not tried yet, or gives up.
pub(super) fn start(connection: &mut Connection, context: &mut Context, key: Key) -> Next {
    loop {
        let Phase::Connecting(attempt) = &mut connection.phase else {
            return Next::Wait;
        };
        let started = attempt.start(context, &connection.origin);
        if let Some(next) = after_start(connection, context, key, started) {
            return next;
        }
    }
}

/// What comes after starting an attempt; `None` = another one.
fn after_start(connection: &mut Connection, context: &Context, key: Key, started: Started) -> Option<Next> {
    let cause = match started {
        Started::Connecting(permit, fd) => {
            connection.lanes.pair.replace_backend();
            let registered = register(context, key, Side::Backend, &fd);
            connection.backend = Some(Reached {
                fd,
                permit,
                since: context.now,
                keepalive: None,
                settled: false,
            });
            return Some(registered.err().unwrap_or(Next::Schedule));
        }
        Started::Failed => return None,
        Started::MustWait => return Some(Next::Enqueue),
        Started::NoBackend { full } => {
            let shard = connection.origin.listener.stats.shards.of(context.id);
            shard.no_backend[usize::from(full)].add(1);
            Cause::NoBackend
        }
        Started::GaveUp(cause) => cause,
    };
    let by = match cause {
        Cause::BackendReset => By::Backend,
        _ => By::Weir,
    };
    Some(Next::End(cause, by))
}

/// Takes its place at the end of the queue. Whoever is alone there looks once more.
pub(super) fn enqueue(connection: &mut Connection, context: &mut Context, key: Key, waiting: &mut Waiting) -> Next {
    let Some((pool, _)) = connection.origin.pool(context) else {
        return Next::End(Cause::NoBackend, By::Weir);
    };
    let Some(queue) = pool.config.queue else {
        return Next::End(Cause::NoBackend, By::Weir);
    };
    let Some(place) = pool.queue.join(context.now, &context.waker, queue.length) else {
        return Next::End(Cause::QueueFull, By::Weir);
    };
    waiting.add(&place, key);
    let next = match place.is_first() {
        true => Next::LeaveQueue,
        false => Next::Schedule,
    };
    let until_ms = context.now_ms() + queue.timeout.as_millis() as u64;
    connection.phase = Phase::Queued { place, until_ms };
    next
}

/// Looks for room, and waits on if there is none. The place in the queue is given up after the one at a backend is taken, so
/// that whoever is called next finds what is left.
pub(super) fn leave_queue(connection: &mut Connection, context: &mut Context, key: Key) -> Next {
    let mut attempt = before_first(&connection.origin, context);
    attempt.called = true;
    let Phase::Queued { place, .. } = &connection.phase else {
        return Next::Wait;
    };
    place.answer();
    let started = attempt.start(context, &connection.origin);
    if let Started::MustWait = started {
        return Next::Schedule;
    }
    place.observe(context.now);
    connection.phase = Phase::Connecting(Box::new(attempt));
    after_start(connection, context, key, started).unwrap_or(Next::Connect)
}

/// Goes on waiting, unless the client has gone. One that has ended its stream and sent nothing before is taken to be gone, as by
/// HAProxy; one that has sent a request may wait for the answer.
pub(super) fn wait_on(connection: &Connection) -> Next {
    let is_gone = connection.client_ended && socket::unread(connection.client.as_raw_fd()) == 0;
    match connection.client_broken || is_gone {
        true => Next::End(Cause::ClientReset, By::Client),
        false => Next::Wait,
    }
}

/// The current attempt has failed.
pub(super) fn failed(connection: &mut Connection, context: &mut Context, error: ConnectError) -> Next {
    if let (Some(reached), Phase::Connecting(attempt)) = (connection.backend.take(), &mut connection.phase) {
        attempt.note_failure(context, reached.permit.backend(), error);
    }
    Next::Connect
}

/// Goes on by what events have said of the attempt.
pub(super) fn proceed(connection: &mut Connection, context: &mut Context) -> Next {
    if connection.client_broken {
        return Next::End(Cause::ClientReset, By::Client);
    }
    let (Phase::Connecting(attempt), Some(reached)) = (&connection.phase, &connection.backend) else {
        return Next::Wait;
    };
    if !attempt.broken && !attempt.writable {
        return Next::Wait;
    }
    // A backend that has written and closed at once looks broken, too (EPOLLHUP of a unix socket), but there is no error, and
    // there are bytes to read.
    let failure = match attempt.broken {
        true => socket::take_connect_error(reached.fd.as_raw_fd()),
        false => None,
    };
    match failure {
        Some(error) => failed(connection, context, error),
        None => established(connection, context),
    }
}

/// The backend has answered. It may be lost again before the PROXY header is on its way.
fn established(connection: &mut Connection, context: &mut Context) -> Next {
    let (Phase::Connecting(attempt), Some(reached)) = (&connection.phase, &mut connection.backend) else {
        return Next::Wait;
    };
    let (fd, backend) = (reached.fd.as_raw_fd(), reached.permit.backend().clone());
    let header = connection.origin.header_for(&backend);
    // The send buffer of a new socket holds far more than a header.
    if !header.is_empty() && socket::send(fd, &header) != Transfer::Bytes(header.len()) {
        let error = socket::connect_error(fd);
        return failed(connection, context, error);
    }
    let now_ms = context.now_ms();
    connection.story.attempts = attempt.tried.len() as u16;
    connection.clocks.ack_ms = attempt.held_ack.then_some(now_ms + HELD_ACK_MS);
    connection.clocks.active_ms = now_ms;
    connection.clocks.look_ms = Some(now_ms + SETTLED_MS);
    connection.phase = Phase::Open;
    let pool = connection.origin.pool(context);
    reached.keepalive = pool.and_then(|(pool, _)| pool.config.connect.keepalive);
    connection.account_connected(context);
    if matches!(backend.config.address, BackendAddress::Unix(_)) {
        connection.lanes.pair.mark_inconclusive(Side::Backend);
        connection.lanes.nagle = Nagle::Off;
    } else if !header.is_empty() {
        connection.lanes.nagle = Nagle::On;
    }
    Next::Serve
}

/// The time of a held ACK is over.
pub(super) fn acknowledge(connection: &mut Connection) {
    connection.clocks.ack_ms = None;
    let silent = connection.lanes.pair.moved_from(Side::Client) == 0;
    if let Some(reached) = connection.backend.as_ref().filter(|_| silent) {
        socket::acknowledge(reached.fd.as_raw_fd());
    }
}

/// Watches a socket, read and write, edge-triggered, once and for all.
fn register(context: &Context, key: Key, side: Side, fd: &OwnedFd) -> Result<(), Next> {
    let token = Token {
        kind: Kind::Pair,
        side,
        key,
    }
    .pack();
    context.poller.add_edge(fd.as_raw_fd(), token).map_err(|error| {
        context.shared.exhausted(&error);
        Next::End(Cause::LimitProcess, By::Weir)
    })
}
