//! Listening sockets of one worker: accepting under a budget, and placing new connections.
//!
//! Listening sockets are level-triggered (see [`crate::sys::epoll`]): one accept4 serves a lone connection, and a queue
//! that is not empty is told of again. The number of accepts a turn follows the load: it doubles while the queue is told of
//! turn after turn, and falls back to one when it runs dry.
//!
//! The kernel spreads connections over the workers by hash, blindly. Where that piles live connections on this worker, a
//! new one goes to the least busy worker instead. Handing over costs a wake-up, so the difference that is put up with
//! grows with the rate of arrivals: long-lived connections end up even, a storm of short ones stays where it lands.
//!
//! # When descriptors or memory run out
//!
//! Accepting pauses, whether because accept4 says so or because as many connections are open as the descriptors carry, and
//! is tried again on a timer. New clients wait in the kernel's queue, up to [`WAIT_MAX_MS`]; who has waited longer is reset
//! rather than left to hang. The head of the queue, the one that has waited longest, is therefore taken out ([`Waiting`]):
//! for that a descriptor is kept in reserve. It is served first when there is room again. A limit that the configuration
//! states is no shortage: who exceeds it is turned away at once.
//!
//! A listener may be removed meanwhile. Its sockets stay until their queues have been served, or until nobody who waited
//! there then can be left ([`WAIT_MAX_MS`]).
//!
//! The same pause ends with another try if a listening socket could not be registered with epoll.

use std::io::ErrorKind;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use mio::Poll;

use super::Context;
use super::tcp::Tcp;
use crate::base::{Key, Kind, Side, Slab, Token};
use crate::config::model::Keepalive;
use crate::link::{self, Accepted, Command, ListenSocket, Local, Seat};
use crate::relay::Cause;
use crate::snapshot::{Listener, Snapshot};
use crate::sys::epoll;
use crate::sys::limits::Reserve;
use crate::sys::socket::{self, AcceptError};

/// Most accepts of one socket in one turn.
const BURST_MAX: u32 = 64;
/// How long accepting pauses when descriptors or memory are exhausted, milliseconds.
const PAUSE_MS: u64 = 50;
/// How long a client may wait for room, milliseconds.
const WAIT_MAX_MS: u64 = 15_000;
/// Recent arrivals (see [`WINDOW_MS`]) that make a crowd: a thousand a second.
const CROWD: u64 = 64;
/// Arrivals are counted over about so long, milliseconds.
const WINDOW_MS: u64 = 64;

struct Listening {
    socket: ListenSocket,
    local: Arc<Local>,
    /// `None` while the snapshot that knows the listener has not arrived.
    listener: Option<Arc<Listener>>,
    /// The listener is gone: closed when its queue is empty, or then, milliseconds since the epoch.
    closes_ms: Option<u64>,
    ready: bool,
    burst: u32,
    /// The turn that last exhausted its burst.
    full_at: u64,
    /// What the socket was last set to, for accepted ones to inherit.
    keepalive: Option<Option<Keepalive>>,
}

impl Listening {
    /// Makes accepted sockets inherit what the configuration says of keep-alive, and that urgent data stays in its place.
    fn bequeath(&mut self) {
        let (Some(listener), Local::Ip(_)) = (&self.listener, &self.socket.local) else {
            return;
        };
        let wanted = listener.config.keepalive;
        if self.keepalive != Some(wanted) {
            let fd = self.socket.fd.as_raw_fd();
            if let Err(error) = socket::set_keepalive(fd, wanted.map(seconds_and_probes)) {
                log::warn!("{}: cannot set keep-alive: {error}", self.socket.local);
            }
            socket::keep_urgent_inline(fd);
            self.keepalive = Some(wanted);
        }
    }
}

/// As [`socket::set_keepalive`] wants it.
pub(super) fn seconds_and_probes(keepalive: Keepalive) -> [u32; 3] {
    let seconds = |time: Duration| time.as_secs().clamp(1, i32::MAX as u64) as u32;
    [seconds(keepalive.idle), seconds(keepalive.interval), keepalive.probes]
}

/// See the module.
#[derive(Default)]
pub(super) struct Listeners {
    sockets: Slab<Listening>,
    ready: Vec<Key>,
    /// Accepting pauses until then, milliseconds.
    paused_until: Option<u64>,
    waiting: Option<Waiting>,
    reserve: Reserve,
    arrivals: Arrivals,
}

/// The client that has waited longest for room.
struct Waiting {
    accepted: Accepted,
    /// Until when, milliseconds since the epoch.
    until_ms: u64,
    shortage: Shortage,
}

/// What there is not enough of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shortage {
    /// As many connections are open as the descriptors carry.
    Places,
    /// No descriptor is left.
    Descriptors,
}

/// Whether a connection may go to a less busy worker.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Share {
    Yes,
    No,
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
                listening.bequeath();
            }
        }
    }

    pub(super) fn add(&mut self, poll: &Poll, context: &Context, socket: ListenSocket) {
        let fd = socket.fd.as_raw_fd();
        let mut listening = Listening {
            local: Arc::new(socket.local.clone()),
            listener: context.snapshot.listener(socket.listener).cloned(),
            socket,
            closes_ms: None,
            ready: false,
            burst: 1,
            full_at: 0,
            keepalive: None,
        };
        listening.bequeath();
        let key = self.sockets.insert(listening);
        if let Err(error) = epoll::add_level(poll, fd, token(key)) {
            log::error!(
                "worker {}: cannot watch a listening socket, trying again: {error}",
                context.id
            );
            self.pause(poll, context);
        }
        if self.paused_until.is_some() {
            let _ = epoll::set_level(poll, fd, token(key), false);
        }
    }

    /// Serves what is queued on the sockets of `listener` at `local`, then closes them.
    pub(super) fn remove(&mut self, poll: &Poll, context: &mut Context, tcp: &mut Tcp, listener: u32, local: &Local) {
        for key in self.sockets.keys() {
            let matches = |l: &Listening| l.socket.listener == listener && l.socket.local == *local;
            if self.sockets.get(key).is_some_and(matches) {
                self.serve_and_close(poll, context, tcp, key);
            }
        }
    }

    /// Serves what is queued on a socket, then closes it: now, or when accepting goes on.
    fn serve_and_close(&mut self, poll: &Poll, context: &mut Context, tcp: &mut Tcp, key: Key) {
        // Here: another worker might know already that the listener is gone.
        while self.accept_from(poll, context, tcp, key, u32::MAX, Share::No) {}
        let now_ms = context.now_ms();
        let Some(listening) = self.sockets.get_mut(key) else {
            return;
        };
        let closes_ms = *listening.closes_ms.get_or_insert(now_ms + WAIT_MAX_MS);
        if self.paused_until.is_none() || now_ms >= closes_ms {
            self.close(poll, key);
        }
    }

    /// Goes on with sockets whose listeners were removed while accepting was paused.
    fn close_rest(&mut self, poll: &Poll, context: &mut Context, tcp: &mut Tcp) {
        let closing = self.sockets.iter().filter(|(_, l)| l.closes_ms.is_some());
        for key in closing.map(|(key, _)| key).collect::<Vec<_>>() {
            self.serve_and_close(poll, context, tcp, key);
        }
    }

    /// Closes the sockets of these listeners and addresses, whose queues another process serves.
    pub(super) fn release(&mut self, poll: &Poll, places: &[(u32, Local)]) {
        for key in self.sockets.keys() {
            let matches = |l: &Listening| {
                let is_it = |(id, local): &(u32, Local)| *id == l.socket.listener && *local == l.socket.local;
                places.iter().any(is_it)
            };
            if self.sockets.get(key).is_some_and(matches) {
                self.close(poll, key);
            }
        }
    }

    /// Whether no socket is left to be served.
    pub(super) fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// Duplicates of the sockets that are meant, by listener and address, and whose listeners are there.
    pub(super) fn share(&self, is_meant: impl Fn(u32, &Local) -> bool) -> std::io::Result<Vec<ListenSocket>> {
        let served = self.sockets.iter().filter(|(_, l)| l.closes_ms.is_none());
        let sockets = served.map(|(_, listening)| &listening.socket);
        let meant = sockets.filter(|socket| is_meant(socket.listener, &socket.local));
        meant.map(ListenSocket::duplicate).collect()
    }

    /// Deregisters before closing: a registration lives as long as the open file, which a duplicate may keep open.
    fn close(&mut self, poll: &Poll, key: Key) {
        if let Some(listening) = self.sockets.remove(key) {
            let _ = epoll::remove(poll, listening.socket.fd.as_raw_fd());
        }
    }

    /// Gives every socket to another worker, queue and all. What is about to be closed is closed here.
    pub(super) fn hand_over(&mut self, poll: &Poll, to: &link::Worker) {
        for key in self.sockets.keys() {
            if self.sockets.get(key).is_some_and(|l| l.closes_ms.is_none()) {
                self.give(poll, key, to);
            }
        }
    }

    /// Gives all sockets of `listener` at `local` but one away.
    pub(super) fn spread(&mut self, poll: &Poll, listener: u32, local: &Local, to: &link::Recipients) {
        let matches =
            |l: &Listening| l.closes_ms.is_none() && l.socket.listener == listener && l.socket.local == *local;
        let mut keys = self.sockets.keys();
        keys.retain(|key| self.sockets.get(*key).is_some_and(matches));
        for key in keys.into_iter().skip(1) {
            let Some(worker) = to.next() else { return };
            self.give(poll, key, worker);
        }
    }

    fn give(&mut self, poll: &Poll, key: Key, to: &link::Worker) {
        if let Some(listening) = self.sockets.remove(key) {
            let _ = epoll::remove(poll, listening.socket.fd.as_raw_fd());
            to.send(Command::Listen(listening.socket));
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
            let full = self.accept_from(poll, context, tcp, key, burst, Share::Yes);
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
        share: Share,
    ) -> bool {
        for _ in 0..burst {
            if self.paused_until.is_some() {
                return false;
            }
            match self.accept_one(context, key) {
                Ok(accepted) => {
                    let recent = self.arrivals.note(context.now_ms());
                    context.crowded = recent >= CROWD;
                    if let Err(accepted) = place(context, tcp, accepted, recent, share) {
                        context
                            .shared
                            .exhausted(&"as many are open as the limit on open files carries");
                        if self.keep_waiting(context, tcp, accepted, Shortage::Places) {
                            self.pause(poll, context);
                        }
                    }
                }
                Err(AcceptError::Gone) => {}
                Err(AcceptError::Empty) => return false,
                Err(AcceptError::Exhausted(error)) => {
                    context.shared.exhausted(&error);
                    if !self.shed_one(context, tcp, key) {
                        self.pause(poll, context);
                    }
                }
                Err(AcceptError::Broken(error)) => {
                    if let Some(Listening { socket, .. }) = self.sockets.remove(key) {
                        log::error!("worker {}: {}: {error}", context.id, socket.local);
                    }
                    return false;
                }
            }
        }
        true
    }

    fn accept_one(&mut self, context: &Context, key: Key) -> Result<Accepted, AcceptError> {
        // While the snapshot that knows the listener has not arrived, its queue is left alone.
        let known = self.sockets.get(key).and_then(|listening| {
            let listener = listening.listener.clone()?;
            Some((listening, listener))
        });
        let Some((listening, listener)) = known else {
            return Err(AcceptError::Empty);
        };
        let (fd, client) = socket::accept(listening.socket.fd.as_raw_fd())?;
        listener.stats.shards.of(context.id).accepted.add(1);
        Ok(Accepted {
            local: listening.local.clone(),
            listener,
            client,
            fd,
        })
    }

    /// Takes the one that has waited longest out of a queue, with the descriptor in reserve. True if it had waited too
    /// long and is gone, so the next one may be looked at.
    fn shed_one(&mut self, context: &mut Context, tcp: &mut Tcp, key: Key) -> bool {
        if self.waiting.is_some() || !self.reserve.spend() {
            return false;
        }
        let accepted = self.accept_one(context, key);
        let shed = accepted.is_ok_and(|accepted| !self.keep_waiting(context, tcp, accepted, Shortage::Descriptors));
        if self.waiting.is_none() {
            let _ = self.reserve.refill();
        }
        shed
    }

    /// Keeps a client until there is room. False if it has waited too long already or another one is before it: it is
    /// reset then.
    fn keep_waiting(&mut self, context: &mut Context, tcp: &mut Tcp, accepted: Accepted, shortage: Shortage) -> bool {
        let waited_ms = socket::waited_ms(accepted.fd.as_raw_fd());
        if self.waiting.is_some() || waited_ms >= WAIT_MAX_MS {
            tcp.refuse(context, accepted, Cause::LimitProcess);
            return false;
        }
        let until_ms = context.now_ms() + WAIT_MAX_MS - waited_ms;
        self.waiting = Some(Waiting {
            accepted,
            until_ms,
            shortage,
        });
        true
    }

    fn pause(&mut self, poll: &Poll, context: &Context) {
        self.paused_until = Some(context.now_ms() + PAUSE_MS);
        for (key, listening) in self.sockets.iter() {
            let _ = epoll::set_level(poll, listening.socket.fd.as_raw_fd(), token(key), false);
        }
    }

    /// Serves the one that waits if there is room, sheds it if it has waited too long, and goes on accepting when the
    /// pause is over.
    pub(super) fn resume(&mut self, poll: &Poll, context: &mut Context, tcp: &mut Tcp) {
        let Some(paused_until) = self.paused_until else {
            return;
        };
        let now_ms = context.now_ms();
        if let Some(waiting) = self.waiting.take() {
            let room = match waiting.shortage {
                // Noticed at once when it was this worker's connection that made the room.
                Shortage::Places => has_place(context),
                Shortage::Descriptors => now_ms >= paused_until && self.reserve.refill(),
            };
            if room {
                let recent = self.arrivals.note(now_ms);
                if let Err(accepted) = place(context, tcp, waiting.accepted, recent, Share::Yes) {
                    self.waiting = Some(Waiting { accepted, ..waiting });
                }
            } else if now_ms >= waiting.until_ms {
                tcp.refuse(context, waiting.accepted, Cause::LimitProcess);
                // Its descriptor takes the next one out.
                let _ = self.reserve.refill();
            } else {
                self.waiting = Some(waiting);
            }
            if self.waiting.is_some() {
                if now_ms >= paused_until {
                    self.paused_until = Some(now_ms + PAUSE_MS);
                    self.close_rest(poll, context, tcp);
                }
                return;
            }
        } else if now_ms < paused_until {
            return;
        } else {
            let _ = self.reserve.refill();
        }
        self.paused_until = None;
        let mut deaf = false;
        for (key, listening) in self.sockets.iter() {
            deaf |= watch(poll, listening.socket.fd.as_raw_fd(), token(key)).is_err();
        }
        if deaf {
            self.pause(poll, context);
        }
        self.close_rest(poll, context, tcp);
    }

    /// Resets the one that waits: this worker ends.
    pub(super) fn end(&mut self, context: &mut Context, tcp: &mut Tcp) {
        if let Some(waiting) = self.waiting.take() {
            tcp.refuse(context, waiting.accepted, Cause::Shutdown);
        }
    }
}

/// Events of a listening socket come from now on, whether they did before, were paused, or could not be registered.
fn watch(poll: &Poll, fd: RawFd, token: u64) -> std::io::Result<()> {
    match epoll::set_level(poll, fd, token, true) {
        Err(error) if error.kind() == ErrorKind::NotFound => epoll::add_level(poll, fd, token),
        done => done,
    }
}

fn has_place(context: &Context) -> bool {
    context.shared.process.connections.get() < context.snapshot.connections_max
}

/// Serves a new connection here or, if it may go there, at the least busy worker. Gives it back if it has to wait for a place.
fn place(context: &mut Context, tcp: &mut Tcp, accepted: Accepted, recent: u64, share: Share) -> Result<(), Accepted> {
    let connections = &context.shared.process.connections;
    if !connections.try_raise(Some(context.snapshot.connections_max)) {
        if !context.snapshot.connections_stated {
            return Err(accepted);
        }
        tcp.refuse(context, accepted, Cause::LimitProcess);
        return Ok(());
    }
    let workers = context.shared.workers();
    let mine = u64::from(context.stats.connections.get());
    let idlest = workers
        .iter()
        .filter(|worker| worker.id != context.id)
        .min_by_key(|worker| worker.stats.connections.get());
    if let (Some(other), Share::Yes) = (idlest, share)
        && mine > u64::from(other.stats.connections.get()) + recent / 8
    {
        let seat = Seat::at(other, &context.shared);
        let Err(Command::Adopt(accepted, seat)) = other.try_send(Command::Adopt(Box::new(accepted), seat)) else {
            return Ok(());
        };
        other.stats.connections.lower();
        seat.keep();
        drop(workers);
        context.stats.connections.raise();
        tcp.open(context, *accepted);
        return Ok(());
    }
    drop(workers);
    context.stats.connections.raise();
    tcp.open(context, accepted);
    Ok(())
}
