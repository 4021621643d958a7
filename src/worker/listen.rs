//! Accepting connections under a budget, and placing them.
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
//! # Who opens them
//!
//! [`Accepting::next`] returns one connection at a time, and knows nothing of what becomes of it: the fewer calls lie
//! between accept4 and the backend's socket, the surer their descriptors are neighbours.

use std::collections::VecDeque;
use std::os::fd::AsRawFd;

use super::Context;
use super::sockets::set::{Listening, Set};
use crate::base::Key;
use crate::config::model::Keepalive;
use crate::link::{Accepted, Command, InTransit};
use crate::relay::Cause;
use crate::worker::os::limits::Reserve;
use crate::worker::os::socket::{self, AcceptError};

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

/// What accepting keeps with a listening socket.
pub(super) struct Stream {
    ready: bool,
    burst: u32,
    /// The turn that last exhausted its burst.
    full_at: u64,
    /// What the socket was last set to, for accepted ones to inherit.
    keepalive: Option<Option<Keepalive>>,
    /// How long its queue was last made.
    backlog: Option<Option<u32>>,
}

impl Default for Stream {
    fn default() -> Stream {
        Stream {
            ready: false,
            burst: 1,
            full_at: 0,
            keepalive: None,
            backlog: None,
        }
    }
}

impl Stream {
    /// Sets a socket up as the configuration says: how many may wait at it, and what accepted sockets inherit: keep-alive, and
    /// that urgent data stays in its place. A socket that weir has made has all that from its beginning; others, and changes of the
    /// configuration, come by here.
    pub(super) fn set_up(listening: &mut Listening<Stream>) {
        if let Some(listener) = &listening.listener
            && listening.own.backlog != Some(listener.config.backlog)
        {
            // Also of a socket that somebody else has made: the file rules.
            let wanted = listener.config.backlog;
            if let Err(error) = socket::set_backlog(listening.fd.as_raw_fd(), wanted) {
                log::warn!("{}: cannot set the backlog: {error}", listening.local);
            }
            listening.own.backlog = Some(wanted);
        }
        let (Some(listener), Some(_)) = (&listening.listener, listening.local.ip()) else {
            return;
        };
        let wanted = listener.config.keepalive;
        if listening.own.keepalive != Some(wanted) {
            let fd = listening.fd.as_raw_fd();
            if let Err(error) = socket::set_keepalive(fd, wanted.map(Keepalive::seconds_and_probes)) {
                log::warn!("{}: cannot set keep-alive: {error}", listening.local);
            }
            socket::keep_urgent_inline(fd);
            listening.own.keepalive = Some(wanted);
        }
    }
}

/// What is to be done with a connection that has been accepted.
#[derive(Debug)]
pub(super) enum Arrival {
    /// Serve it; its places in the gauges of process and worker are taken.
    Serve(Accepted),
    /// Turn it away; it has no place.
    Refuse(Accepted, Cause),
}

/// The listening side of a worker: which sockets it accepts from, and how many connections at a time.
#[derive(Default)]
pub(super) struct Accepting {
    /// Sockets whose queues are not empty.
    ready: Vec<Key>,
    /// Sockets whose listeners are gone: served until empty, then closed.
    closing: Vec<Key>,
    current: Option<Current>,
    /// Accepted and not returned yet.
    arrived: VecDeque<Arrival>,
    /// Accepting pauses until then, milliseconds.
    paused_until: Option<u64>,
    waiting: Option<Waiting>,
    reserve: Reserve,
    /// The reserve is to be filled up again, with the descriptor of one that is being turned away.
    refill: bool,
    arrivals: Arrivals,
}

/// The socket that is being accepted from.
struct Current {
    key: Key,
    /// How many more connections may be taken from it now.
    left: u32,
    share: Share,
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
    /// Another worker might know already that the listener is gone.
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

/// How accepting from one socket went.
enum Step {
    /// One has been taken out of the queue; there may be more.
    More,
    /// The queue is empty, or the socket is gone.
    Dry,
}

impl Accepting {
    /// Notes that a queue is not empty.
    pub(super) fn mark(&mut self, sockets: &mut Set<Stream>, key: Key) {
        if let Some(listening) = sockets.get_mut(key)
            && !std::mem::replace(&mut listening.own.ready, true)
        {
            self.ready.push(key);
        }
    }

    pub(super) fn next_timer(&self) -> Option<u64> {
        self.paused_until
    }

    /// These sockets are closed when their queues have been served: at once, unless accepting is paused, and then when that is
    /// over.
    pub(super) fn close(&mut self, context: &Context, sockets: &mut Set<Stream>, keys: Vec<Key>) {
        for key in keys {
            if let Some(listening) = sockets.get_mut(key) {
                listening.closes_ms = Some(context.now_ms() + WAIT_MAX_MS);
                self.closing.push(key);
            }
        }
    }

    /// The next connection; `None` when this turn's budget is used up or nobody waits.
    pub(super) fn next(&mut self, context: &mut Context, sockets: &mut Set<Stream>) -> Option<Arrival> {
        loop {
            if let Some(arrival) = self.arrived.pop_front() {
                return Some(arrival);
            }
            if std::mem::take(&mut self.refill) {
                let _ = self.reserve.refill();
            }
            let current = match self.current.take() {
                Some(current) => current,
                None => self.next_socket(context, sockets)?,
            };
            let is_over = self.paused_until.is_some() || current.left == 0;
            if is_over || matches!(self.step(context, sockets, &current), Step::Dry) {
                self.leave(context, sockets, &current);
            } else {
                self.current = Some(Current {
                    left: current.left - 1,
                    ..current
                });
            }
        }
    }

    fn next_socket(&mut self, context: &Context, sockets: &mut Set<Stream>) -> Option<Current> {
        if let Some(key) = self.closing.pop() {
            return Some(Current {
                key,
                left: u32::MAX,
                share: Share::No,
            });
        }
        loop {
            let key = self.ready.pop()?;
            let Some(listening) = sockets.get_mut(key) else {
                continue;
            };
            let stream = &mut listening.own;
            stream.ready = false;
            if stream.full_at + 1 == turn(context) {
                stream.burst = (stream.burst * 2).min(BURST_MAX);
            }
            return Some(Current {
                key,
                left: stream.burst,
                share: Share::Yes,
            });
        }
    }

    /// A socket is done with for this turn.
    fn leave(&mut self, context: &Context, sockets: &mut Set<Stream>, current: &Current) {
        let Some(listening) = sockets.get_mut(current.key) else {
            return;
        };
        match listening.closes_ms {
            None if current.left == 0 => listening.own.full_at = turn(context),
            None => listening.own.burst = 1,
            Some(closes_ms) => {
                if self.paused_until.is_none() || context.now_ms() >= closes_ms {
                    sockets.take(&context.poller, current.key);
                }
            }
        }
    }

    /// Takes one out of a queue.
    fn step(&mut self, context: &mut Context, sockets: &mut Set<Stream>, current: &Current) -> Step {
        match accept(context, sockets, current.key) {
            Ok(accepted) => {
                let recent = self.arrivals.note(context.now_ms());
                context.crowded = recent >= CROWD;
                match place(context, accepted, recent, current.share) {
                    Placed::Here(arrival) => self.arrived.push_back(arrival),
                    Placed::Elsewhere => {}
                    Placed::Nowhere(accepted) => {
                        let why = "as many are open as the limit on open files carries";
                        context.shared.exhausted(&why);
                        if self.keep_waiting(context, accepted, Shortage::Places) {
                            self.pause(context, sockets);
                        }
                    }
                }
            }
            Err(AcceptError::Gone) => {}
            Err(AcceptError::Empty) => return Step::Dry,
            Err(AcceptError::Exhausted(error)) => {
                context.shared.exhausted(&error);
                if !self.shed_one(context, sockets, current.key) {
                    self.pause(context, sockets);
                }
            }
            Err(AcceptError::Broken(error)) => {
                if let Some(Listening { local, .. }) = sockets.take(&context.poller, current.key) {
                    log::error!("worker {}: {local}: {error}", context.id);
                }
                return Step::Dry;
            }
        }
        Step::More
    }

    /// Takes the one that has waited longest out of a queue, with the descriptor in reserve. True if it had waited too
    /// long and is turned away, so the next one may be looked at.
    fn shed_one(&mut self, context: &Context, sockets: &Set<Stream>, key: Key) -> bool {
        if self.waiting.is_some() || !self.reserve.spend() {
            return false;
        }
        let accepted = accept(context, sockets, key);
        let shed = accepted.is_ok_and(|accepted| !self.keep_waiting(context, accepted, Shortage::Descriptors));
        self.refill |= self.waiting.is_none();
        shed
    }

    /// Keeps a client until there is room. False if it has waited too long already or another one is before it: it is
    /// turned away then.
    fn keep_waiting(&mut self, context: &Context, accepted: Accepted, shortage: Shortage) -> bool {
        let waited_ms = socket::waited_ms(accepted.fd.as_raw_fd());
        if self.waiting.is_some() || waited_ms >= WAIT_MAX_MS {
            self.arrived.push_back(Arrival::Refuse(accepted, Cause::LimitProcess));
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

    fn pause(&mut self, context: &Context, sockets: &mut Set<Stream>) {
        self.paused_until = Some(context.now_ms() + PAUSE_MS);
        sockets.pause(&context.poller);
    }

    /// Serves the one that waits if there is room, sheds it if it has waited too long, and goes on accepting when the
    /// pause is over; [`next`](Self::next) returns who that lets in.
    pub(super) fn resume(&mut self, context: &mut Context, sockets: &mut Set<Stream>) {
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
                match place(context, waiting.accepted, recent, Share::Yes) {
                    Placed::Here(arrival) => self.arrived.push_back(arrival),
                    Placed::Elsewhere => {}
                    Placed::Nowhere(accepted) => self.waiting = Some(Waiting { accepted, ..waiting }),
                }
            } else if now_ms >= waiting.until_ms {
                self.arrived
                    .push_back(Arrival::Refuse(waiting.accepted, Cause::LimitProcess));
                // Its descriptor takes the next one out.
                self.refill = true;
            } else {
                self.waiting = Some(waiting);
            }
            if self.waiting.is_some() {
                if now_ms >= paused_until {
                    self.paused_until = Some(now_ms + PAUSE_MS);
                    self.close_rest(sockets);
                }
                return;
            }
        } else if now_ms < paused_until {
            return;
        } else {
            let _ = self.reserve.refill();
        }
        self.paused_until = None;
        sockets.unpause(&context.poller, now_ms);
        self.close_rest(sockets);
    }

    /// Goes on with sockets whose listeners were removed while accepting was paused.
    fn close_rest(&mut self, sockets: &Set<Stream>) {
        let closing = sockets.iter().filter(|(_, l)| l.closes_ms.is_some());
        self.closing.extend(closing.map(|(key, _)| key));
    }

    /// The one that waits, to be turned away: this worker ends.
    pub(super) fn end(&mut self) -> Option<Arrival> {
        let waiting = self.waiting.take()?;
        Some(Arrival::Refuse(waiting.accepted, Cause::Shutdown))
    }
}

fn turn(context: &Context) -> u64 {
    context.stats.turns.get() + 1
}

fn accept(context: &Context, sockets: &Set<Stream>, key: Key) -> Result<Accepted, AcceptError> {
    // While the snapshot that knows the listener has not arrived, its queue is left alone.
    let known = sockets.get(key).and_then(|listening| {
        let listener = listening.listener.clone()?;
        Some((listening, listener))
    });
    let Some((listening, listener)) = known else {
        return Err(AcceptError::Empty);
    };
    let (fd, client) = socket::accept(listening.fd.as_raw_fd())?;
    listener.stats.shards.of(context.id).accepted.add(1);
    Ok(Accepted {
        local: listening.local.clone(),
        listener,
        client,
        fd,
    })
}

/// Live connections of the process at most.
fn most(context: &Context) -> u32 {
    context.snapshot.most(&context.shared.process.elsewhere)[0]
}

fn has_place(context: &Context) -> bool {
    context.shared.process.connections.get() < most(context)
}

/// Where a connection goes.
enum Placed {
    Here(Arrival),
    /// At a less busy worker.
    Elsewhere,
    /// It has to wait for a place.
    Nowhere(Accepted),
}

/// Finds a new connection a place here or, if it may go there, at the least busy worker.
fn place(context: &Context, accepted: Accepted, recent: u64, share: Share) -> Placed {
    let connections = &context.shared.process.connections;
    if !connections.try_raise(Some(most(context))) {
        return match context.snapshot.connections_stated {
            true => Placed::Here(Arrival::Refuse(accepted, Cause::LimitProcess)),
            false => Placed::Nowhere(accepted),
        };
    }
    let workers = context.shared.workers();
    let mine = u64::from(context.stats.connections.get());
    let idlest = workers
        .iter()
        .filter(|worker| worker.id != context.id)
        .min_by_key(|worker| worker.stats.connections.get());
    let mut accepted = accepted;
    if let (Some(other), Share::Yes) = (idlest, share)
        && mine > u64::from(other.stats.connections.get()) + recent / 8
    {
        let transit = InTransit::to(other, &context.shared);
        let Err(Command::Adopt(back, transit)) = other.try_send(Command::Adopt(Box::new(accepted), transit)) else {
            return Placed::Elsewhere;
        };
        other.stats.connections.lower();
        transit.arrived();
        accepted = *back;
    }
    context.stats.connections.raise();
    Placed::Here(Arrival::Serve(accepted))
}
