//! Listening sockets of one worker: accepting under a budget, and placing new connections.
//!
//! Listening sockets are level-triggered (see [`crate::sys::epoll`]): one accept4 serves a lone connection, and a queue
//! that is not empty is told of again. The number of accepts a turn follows the load: it doubles while the queue is told of
//! turn after turn, and falls back to one when it runs dry.
//!
//! The kernel spreads connections over the workers by hash, blindly. Where that piles live connections on this worker, a
//! new one goes to the least busy worker instead. Handing over costs a wake-up, so the difference that is put up with
//! grows with the rate of arrivals: long-lived connections end up even, a storm of short ones stays where it lands.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use mio::Poll;

use super::Context;
use super::tcp::Tcp;
use crate::base::{Key, Kind, Side, Slab, Token};
use crate::link::{self, Accepted, Command, ListenSocket, Local};
use crate::relay::Cause;
use crate::snapshot::{Listener, Snapshot};
use crate::sys::epoll;
use crate::sys::socket::{self, AcceptError};

/// Most accepts of one socket in one turn.
const BURST_MAX: u32 = 64;
/// How long accepting pauses when descriptors or memory are exhausted, milliseconds.
const PAUSE_MS: u64 = 50;
/// Recent arrivals (see [`WINDOW_MS`]) that make a crowd: a thousand a second.
const CROWD: u64 = 64;
/// Arrivals are counted over about so long, milliseconds.
const WINDOW_MS: u64 = 64;

struct Listening {
    socket: ListenSocket,
    local: Arc<Local>,
    /// `None` while the snapshot that knows the listener has not arrived.
    listener: Option<Arc<Listener>>,
    ready: bool,
    burst: u32,
    /// The turn that last exhausted its burst.
    full_at: u64,
}

/// See the module.
#[derive(Default)]
pub(super) struct Listeners {
    sockets: Slab<Listening>,
    ready: Vec<Key>,
    /// Accepting pauses until then, milliseconds.
    paused_until: Option<u64>,
    arrivals: Arrivals,
}

/// An exponentially decaying count of recent arrivals.
#[derive(Default)]
struct Arrivals {
    count: u64,
    since_ms: u64,
}

impl Arrivals {
    fn note(&mut self, now_ms: u64) -> u64 {
        let windows = (now_ms - self.since_ms) / WINDOW_MS;
        if windows > 0 {
            self.count >>= windows.min(63);
            self.since_ms = now_ms;
        }
        self.count += 1;
        self.count
    }
}

fn token(key: Key) -> u64 {
    Token {
        kind: Kind::Listen,
        side: Side::Client,
        key,
    }
    .pack()
}

impl Listeners {
    pub(super) fn mark(&mut self, key: Key) {
        if let Some(listening) = self.sockets.get_mut(key)
            && !std::mem::replace(&mut listening.ready, true)
        {
            self.ready.push(key);
        }
    }

    pub(super) fn next_timer(&self) -> Option<u64> {
        self.paused_until
    }

    pub(super) fn adopt(&mut self, snapshot: &Snapshot) {
        for key in self.sockets.keys() {
            if let Some(listening) = self.sockets.get_mut(key) {
                let known = snapshot.listener(listening.socket.listener).cloned();
                listening.listener = known.or(listening.listener.take());
            }
        }
    }

    pub(super) fn add(&mut self, poll: &Poll, context: &Context, socket: ListenSocket) {
        let fd = socket.fd.as_raw_fd();
        let listening = Listening {
            local: Arc::new(socket.local.clone()),
            listener: context.snapshot.listener(socket.listener).cloned(),
            socket,
            ready: false,
            burst: 1,
            full_at: 0,
        };
        let key = self.sockets.insert(listening);
        if let Err(error) = epoll::add_level(poll, fd, token(key)) {
            log::error!(
                "worker {}: cannot watch a listening socket: {error}",
                context.id
            );
        }
        if self.paused_until.is_some() {
            let _ = epoll::set_level(poll, fd, token(key), false);
        }
    }

    /// Serves what is queued on the sockets of `listener` at `local`, then closes them.
    pub(super) fn remove(
        &mut self,
        poll: &Poll,
        context: &mut Context,
        tcp: &mut Tcp,
        listener: u32,
        local: &Local,
    ) {
        for key in self.sockets.keys() {
            let matches = |l: &Listening| l.socket.listener == listener && l.socket.local == *local;
            if self.sockets.get(key).is_some_and(matches) {
                while self.accept_from(poll, context, tcp, key, u32::MAX) {}
                self.close(poll, key);
            }
        }
    }

    /// Closes the sockets of these listeners and addresses, whose queues another process serves.
    pub(super) fn release(&mut self, poll: &Poll, places: &[(u32, Local)]) {
        for key in self.sockets.keys() {
            let matches = |l: &Listening| {
                let is_it = |(id, local): &(u32, Local)| {
                    *id == l.socket.listener && *local == l.socket.local
                };
                places.iter().any(is_it)
            };
            if self.sockets.get(key).is_some_and(matches) {
                self.close(poll, key);
            }
        }
    }

    /// Duplicates of all sockets.
    pub(super) fn share(&self) -> std::io::Result<Vec<ListenSocket>> {
        let duplicates = self.sockets.iter().map(|(_, l)| l.socket.duplicate());
        duplicates.collect()
    }

    /// Deregisters before closing: a registration lives as long as the open file, which a duplicate may keep open.
    fn close(&mut self, poll: &Poll, key: Key) {
        if let Some(listening) = self.sockets.remove(key) {
            let _ = epoll::remove(poll, listening.socket.fd.as_raw_fd());
        }
    }

    /// Gives every socket to another worker, queue and all.
    pub(super) fn hand_over(&mut self, poll: &Poll, to: &link::Worker) {
        for key in self.sockets.keys() {
            if let Some(listening) = self.sockets.remove(key) {
                let _ = epoll::remove(poll, listening.socket.fd.as_raw_fd());
                to.send(Command::Listen(listening.socket));
            }
        }
    }

    pub(super) fn accept(&mut self, poll: &Poll, context: &mut Context, tcp: &mut Tcp) {
        let turn = context.stats.turns.get() + 1;
        for key in std::mem::take(&mut self.ready) {
            let Some(listening) = self.sockets.get_mut(key) else {
                continue;
            };
            listening.ready = false;
            if listening.full_at + 1 == turn {
                listening.burst = (listening.burst * 2).min(BURST_MAX);
            }
            let burst = listening.burst;
            let full = self.accept_from(poll, context, tcp, key, burst);
            if let Some(listening) = self.sockets.get_mut(key) {
                if full {
                    listening.full_at = turn;
                } else {
                    listening.burst = 1;
                }
            }
        }
    }

    /// Accepts up to `burst` connections; false if the queue ran dry or accepting paused before that.
    fn accept_from(
        &mut self,
        poll: &Poll,
        context: &mut Context,
        tcp: &mut Tcp,
        key: Key,
        burst: u32,
    ) -> bool {
        if self.paused_until.is_some() {
            return false;
        }
        let Some(listening) = self.sockets.get(key) else {
            return false;
        };
        let Some(listener) = listening.listener.clone() else {
            return false;
        };
        let (fd, local) = (listening.socket.fd.as_raw_fd(), listening.local.clone());
        for _ in 0..burst {
            match socket::accept(fd) {
                Ok((fd, client)) => {
                    let (listener, local) = (listener.clone(), local.clone());
                    let recent = self.arrivals.note(context.now_ms());
                    context.crowded = recent >= CROWD;
                    place(
                        context,
                        tcp,
                        Accepted {
                            listener,
                            client,
                            local,
                            fd,
                        },
                        recent,
                    );
                }
                Err(AcceptError::Gone) => {}
                Err(AcceptError::Empty) => return false,
                Err(AcceptError::Exhausted(error)) => {
                    self.pause(poll, context, &error);
                    return false;
                }
                Err(AcceptError::Broken(error)) => {
                    log::error!("listener {}: {local}: {error}", listener.config.name);
                    self.sockets.remove(key);
                    return false;
                }
            }
        }
        true
    }

    fn pause(&mut self, poll: &Poll, context: &Context, error: &std::io::Error) {
        self.paused_until = Some(context.now_ms() + PAUSE_MS);
        context.shared.exhausted(error);
        for (key, listening) in self.sockets.iter() {
            let _ = epoll::set_level(poll, listening.socket.fd.as_raw_fd(), token(key), false);
        }
    }

    pub(super) fn resume(&mut self, poll: &Poll, context: &Context) {
        if self.paused_until.is_some_and(|at| at <= context.now_ms()) {
            self.paused_until = None;
            for (key, listening) in self.sockets.iter() {
                let _ = epoll::set_level(poll, listening.socket.fd.as_raw_fd(), token(key), true);
            }
        }
    }
}

/// Serves a new connection here or at the least busy worker.
fn place(context: &mut Context, tcp: &mut Tcp, accepted: Accepted, recent: u64) {
    let stats = accepted.listener.stats.shards.of(context.id);
    stats.accepted.add(1);
    if !context
        .shared
        .process
        .connections
        .try_raise(Some(context.snapshot.connections_max))
    {
        tcp.refuse(context, accepted, Cause::LimitProcess);
        return;
    }
    let workers = context.shared.workers();
    let mine = u64::from(context.stats.connections.get());
    let idlest = workers
        .iter()
        .filter(|worker| worker.id != context.id)
        .min_by_key(|worker| worker.stats.connections.get());
    if let Some(other) = idlest
        && mine > u64::from(other.stats.connections.get()) + recent / 8
    {
        other.stats.connections.raise();
        let Err(Command::Adopt(accepted)) = other.try_send(Command::Adopt(Box::new(accepted)))
        else {
            return;
        };
        other.stats.connections.lower();
        drop(workers);
        context.stats.connections.raise();
        tcp.open(context, *accepted);
        return;
    }
    drop(workers);
    context.stats.connections.raise();
    tcp.open(context, accepted);
}
