//! One TCP connection of a worker: what is known of it, grouped by what changes together.
//!
//! | group | is replaced or changes |
//! |---|---|
//! | [`Origin`] | with a PROXY header, with a TLS hello, then never |
//! | [`Reached`] | with every attempt to reach a backend |
//! | [`Lanes`] | with every pump |
//! | [`Clocks`] | with what happened when, and what comes next |
//! | [`Story`] | with what the access record tells |
//!
//! Steps ([`super::connect`], [`super::pump`], [`super::closing`]) work on a connection and return what is [`Next`]; they never
//! end it: [`super::tcp`] does.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Context;
use super::attempt::Attempt;
use super::clocks::{Clocks, Due};
use super::io::{Held, Nagle};
use super::origin::Origin;
use crate::balance::limits::{Refill, Throttle};
use crate::base::{Side, Weight};
use crate::config::model::Keepalive;
use crate::link::{Accepted, Address};
use crate::queue::Queued;
use crate::relay::{self, By, Cause, Ending, Gather, Pair, Source};
use crate::routing::Asked;
use crate::snapshot::{BackendPermit, Listener};
use crate::worker::os::socket;

/// How long a PROXY header may take to arrive, milliseconds.
const HEADER_WAIT_MS: u64 = 5_000;

pub(super) struct Connection {
    pub id: u64,
    pub origin: Origin,
    pub client: OwnedFd,
    /// An event has said that the client is gone.
    pub client_broken: bool,
    /// An event has said that the client sends nothing more.
    pub client_ended: bool,
    pub backend: Option<Reached>,
    pub phase: Phase,
    pub lanes: Lanes,
    pub clocks: Clocks,
    pub story: Story,
    /// It stands in the run queue.
    pub queued: bool,
    /// Its weight by the latest pump.
    pub weight: Weight,
}

/// A backend that is being reached or was, with its socket.
pub(super) struct Reached {
    pub fd: OwnedFd,
    pub permit: BackendPermit,
    /// When the attempt began: response times count from there.
    pub since: Instant,
    /// What the pool said of vanished backends when the connection was made.
    pub keepalive: Option<Keepalive>,
    /// The socket has its options for a long life.
    pub settled: bool,
}

/// What bytes go through.
pub(super) struct Lanes {
    pub pair: Pair,
    pub held: [Held; 2],
    pub nagle: Nagle,
    /// Bandwidth limits, if any.
    pub throttles: Option<Box<[Option<Throttled>; 2]>>,
    /// Whether their sources let bytes gather, once one was spliced.
    pub gathers: Option<Box<[Gather; 2]>>,
    /// The kernel had no memory: no event will tell when to go on.
    pub starved: bool,
}

/// What the access record tells beside names.
pub(super) struct Story {
    pub opened: Instant,
    pub connect_us: Option<u32>,
    pub first_byte_us: Option<u32>,
    pub spliced: u64,
    /// Of the time before the connection was open, [`Attempt::tried`] tells.
    pub attempts: u16,
}

pub(super) enum Phase {
    /// A PROXY header is awaited.
    Header {
        until_ms: u64,
    },
    /// A TLS hello is awaited, for the name in it.
    Hello {
        until_ms: u64,
    },
    /// Every eligible backend is full.
    Queued {
        place: Queued,
        until_ms: u64,
    },
    Connecting(Box<Attempt>),
    Open,
    /// A reset is passed on once the other side has everything that came before it.
    Resetting {
        cause: Cause,
        by: By,
        until_ms: u64,
        /// When the other side is looked at next.
        check_ms: u64,
    },
}

/// What a step leaves to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Next {
    /// Nothing: an event or the timer that is set goes on with it.
    Wait,
    /// As `Wait`, but the timer is to be set anew.
    Schedule,
    /// There is more to move than this turn's share.
    Requeue,
    /// See which server the client asks for.
    ReadHello,
    /// Wait for room at a backend.
    Enqueue,
    /// It is the turn of this one, which waits: look for room.
    LeaveQueue,
    /// Try the next backend.
    Connect,
    /// A backend is reached: set the timer and relay.
    Serve,
    /// It has waited long enough: set the timer, and relay when it is its turn.
    Resume,
    /// Move bytes.
    Relay,
    /// This side is gone: the other one hears of it after what came before.
    Reset(Side),
    /// It is over.
    End(Cause, By),
}

/// A bandwidth limit and where it stands.
pub(super) struct Throttled {
    pub throttle: Throttle,
    pub refill: Refill,
}

impl Connection {
    /// One that has just been accepted.
    pub(super) fn new(id: u64, accepted: Accepted, context: &mut Context) -> Connection {
        let Accepted {
            listener,
            client: client_address,
            local,
            fd,
        } = accepted;
        let now_ms = context.now_ms();
        let local = match &*local {
            Address::Ip(address) | Address::Device(address, _) if address.ip().is_unspecified() => {
                socket::local_address(&fd).map_or(local, |used| Arc::new(Address::Ip(used)))
            }
            Address::Device(address, _) => Arc::new(Address::Ip(*address)),
            _ => local,
        };
        let max_age_ms = listener.config.timeouts.max_age.map(|age| {
            let age = age.as_millis() as u64;
            now_ms + age - context.rng.below(age / 10 + 1)
        });
        let interval = context.snapshot.interim;
        Connection {
            id,
            client: fd,
            client_broken: false,
            client_ended: false,
            backend: None,
            phase: Phase::Header {
                until_ms: now_ms + HEADER_WAIT_MS,
            },
            lanes: Lanes {
                pair: Pair::new(client_address.is_some()),
                held: Default::default(),
                nagle: Nagle::Untouched,
                throttles: throttles(&listener),
                gathers: None,
                starved: false,
            },
            clocks: Clocks {
                active_ms: now_ms,
                max_age_ms,
                interim_ms: interval.map(|interval| now_ms + interval.as_millis() as u64),
                ..Clocks::default()
            },
            story: Story {
                opened: context.now,
                connect_us: None,
                first_byte_us: None,
                spliced: 0,
                attempts: 0,
            },
            origin: Origin {
                listener,
                local,
                client: client_address,
                destination: None,
                permit: None,
                asked: Asked::default(),
            },
            queued: false,
            weight: Weight::Light,
        }
    }

    /// When the connection must be looked at again, and why.
    pub(super) fn due(&self) -> Option<(u64, Due)> {
        match &self.phase {
            Phase::Header { until_ms } => Some((*until_ms, Due::End(Cause::BadProxyHeader))),
            Phase::Hello { until_ms } => Some((*until_ms, Due::Hello)),
            Phase::Queued { until_ms, .. } => Some((*until_ms, Due::End(Cause::QueueTimeout))),
            Phase::Connecting(attempt) => Some((attempt.until_ms, Due::NextAttempt)),
            Phase::Resetting { check_ms, .. } => Some((*check_ms, Due::Reset)),
            Phase::Open => {
                let timeouts = &self.origin.listener.config.timeouts;
                self.clocks.due(timeouts, self.lanes.pair.half_closed())
            }
        }
    }

    /// The sockets that it has.
    pub(super) fn fds(&self) -> [Option<RawFd>; 2] {
        let backend = self.backend.as_ref().map(|reached| reached.fd.as_raw_fd());
        [Some(self.client.as_raw_fd()), backend]
    }

    /// Whether it is bound to this backend.
    pub(super) fn is_at(&self, backend: u64) -> bool {
        let reached = self.backend.as_ref();
        reached.is_some_and(|reached| reached.permit.backend().identity == backend)
    }

    /// Whether its client uses this address of the host.
    pub(super) fn uses(&self, address: IpAddr) -> bool {
        match self.origin.local.ip() {
            None => false,
            Some(bound) if !bound.ip().is_unspecified() => bound.ip() == address,
            Some(_) => socket::local_address(&self.client).is_ok_and(|used| used.ip().to_canonical() == address),
        }
    }

    /// How long to rest before the next pump: not at all unless every lane that could go on is out of bandwidth.
    pub(super) fn rest(&self, now: Instant) -> Option<Duration> {
        let lanes = self.lanes.throttles.as_deref()?;
        let waits = Side::BOTH
            .into_iter()
            .filter(|&side| self.lanes.pair.next(side) != relay::Op::Wait)
            .map(|side| {
                let throttled = lanes[side as usize].as_ref();
                throttled.map_or(Duration::ZERO, |lane| lane.throttle.wait(lane.refill, now))
            });
        waits.min().filter(|wait| !wait.is_zero())
    }

    /// How the sockets are to be closed. What came after the events of this turn were fetched counts as well: a look at the
    /// sockets is worth it where their silence decides.
    pub(super) fn ending(&self, cause: Cause) -> Ending {
        let Phase::Open = self.phase else {
            return Ending::Reset;
        };
        let fds = self.fds();
        cause.ending(Side::BOTH.map(|side| {
            let mut lane = self.lanes.pair.lane(side).state();
            let arrived = |fd: RawFd| socket::unread(fd) > 0;
            if lane.source == Source::Quiet && fds[side as usize].is_some_and(arrived) {
                lane.source = Source::Readable;
            }
            lane
        }))
    }
}

impl Lanes {
    /// Bytes that each lane has moved so far.
    pub(super) fn moved(&self) -> [u64; 2] {
        Side::BOTH.map(|side| self.pair.moved_from(side))
    }

    /// Accounts for the bytes that each lane moved under its bandwidth limit.
    pub(super) fn charge(&mut self, now: Instant, moved: [u64; 2]) {
        let lanes = self.throttles.iter_mut().flat_map(|lanes| lanes.iter_mut());
        for (lane, bytes) in lanes.zip(moved) {
            if let Some(Throttled { throttle, refill }) = lane {
                throttle.charge(refill, now, bytes);
            }
        }
    }
}

/// The bandwidth limits of a listener's connections; `upload` is what clients send.
fn throttles(listener: &Listener) -> Option<Box<[Option<Throttled>; 2]>> {
    let limits = &listener.config.limits;
    let throttled = |limit: Option<u64>| {
        limit.map(|bytes| Throttled {
            throttle: Throttle::new(bytes),
            refill: None,
        })
    };
    (limits.upload.is_some() || limits.download.is_some())
        .then(|| Box::new([throttled(limits.upload), throttled(limits.download)]))
}

/// Whole microseconds between two moments.
pub(super) fn us(from: Instant, to: Instant) -> u32 {
    to.saturating_duration_since(from).as_micros().min(u128::from(u32::MAX)) as u32
}
