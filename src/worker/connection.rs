//! One TCP connection of a worker: what is known of it, when it is due, how it is told.
//!
//! Holds its sockets and its place at the backend, and does nothing to them: [`super::tcp`] acts.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::Context;
use super::attempt::Attempt;
use super::io::{Held, Nagle};
use crate::balance::limits::{Refill, Throttle};
use crate::base::{Side, Weight};
use crate::config::model::{Keepalive, Protocol, SendProxy};
use crate::gate::ListenerPermit;
use crate::link::{Address, LiveConnection, Record};
use crate::relay::{self, By, Cause, Ending, Pair, Peer, Source, proxy_header};
use crate::snapshot::{Backend, BackendPermit, Listener};
use crate::sys::socket;

pub(super) struct Connection {
    pub(super) id: u64,
    pub(super) listener: Arc<Listener>,
    pub(super) local: Arc<Address>,
    pub(super) client_address: Option<SocketAddr>,
    pub(super) client: OwnedFd,
    pub(super) backend: Option<OwnedFd>,
    pub(super) place: Option<BackendPermit>,
    pub(super) pair: Pair,
    pub(super) held: [Held; 2],
    pub(super) phase: Phase,
    /// Its place among the listener's connections, once it was let in.
    pub(super) pass: Option<ListenerPermit>,
    /// What a PROXY header said that the client connected to.
    pub(super) destination: Option<SocketAddr>,
    /// Bandwidth limits of the lanes, if any.
    pub(super) throttles: Option<Box<[Option<Throttled>; 2]>>,
    /// The lanes rest until then, milliseconds since the epoch: for bandwidth or for memory.
    pub(super) resume_ms: Option<u64>,
    /// When the ACK of the backend's handshake is sent without the client's first bytes, milliseconds since the epoch.
    pub(super) ack_ms: Option<u64>,
    /// When the peers are looked at next: whether they are still there.
    pub(super) look_ms: Option<u64>,
    /// What the pool said of vanished backends when the connection was made.
    pub(super) keepalive: Option<Keepalive>,
    /// The backend's socket has its options for a long life.
    pub(super) settled: bool,
    /// When the next interim record is due.
    pub(super) interim_ms: Option<u64>,
    pub(super) opened: Instant,
    /// Last byte in either direction, or the end of a rest that weir itself imposes, milliseconds since the epoch.
    pub(super) active_ms: u64,
    pub(super) connect_us: Option<u32>,
    pub(super) first_byte_us: Option<u32>,
    /// When the current attempt began: response times count from there.
    pub(super) connected: Instant,
    pub(super) spliced: u64,
    pub(super) max_age_ms: Option<u64>,
    pub(super) attempts: u16,
    pub(super) nagle: Nagle,
    pub(super) queued: bool,
    /// By its latest pump.
    pub(super) weight: Weight,
    pub(super) client_broken: bool,
    /// The kernel had no memory: no event will tell when to go on.
    pub(super) starved: bool,
}

pub(super) enum Phase {
    /// A PROXY header is awaited.
    Header {
        until_ms: u64,
    },
    Connecting(Box<Attempt>),
    Open,
    Resetting {
        cause: Cause,
        by: By,
        until_ms: u64,
    },
}

/// So many connections of a listener in a row, on one worker, whose client spoke first: the next one will, too.
const CLIENTS_FIRST: u64 = 64;

/// Why a connection's timer is due.
pub(super) enum Due {
    End(Cause),
    NextAttempt,
    Reset,
    Resume,
    Ack,
    Look,
    Interim,
}

/// A bandwidth limit and where it stands.
pub(super) struct Throttled {
    pub(super) throttle: Throttle,
    pub(super) refill: Refill,
}

impl Connection {
    /// When the connection must be looked at again, and why.
    pub(super) fn due(&self) -> Option<(u64, Due)> {
        let timeouts = &self.listener.config.timeouts;
        // Times are whole milliseconds, cut off: one more, so that nothing ends too soon.
        let quiet = |limit: Option<Duration>, cause| {
            limit.map(|limit| (self.active_ms + limit.as_millis() as u64 + 1, Due::End(cause)))
        };
        match &self.phase {
            Phase::Header { until_ms } => Some((*until_ms, Due::End(Cause::BadProxyHeader))),
            Phase::Connecting(attempt) => Some((attempt.until_ms, Due::NextAttempt)),
            Phase::Resetting { .. } => Some((0, Due::Reset)),
            Phase::Open => {
                let half = timeouts.half_close.filter(|_| self.pair.half_closed());
                [
                    quiet(half, Cause::HalfCloseTimeout),
                    quiet(timeouts.idle, Cause::IdleTimeout),
                    self.max_age_ms.map(|at| (at, Due::End(Cause::MaxAge))),
                    self.resume_ms.map(|at| (at, Due::Resume)),
                    self.ack_ms.map(|at| (at, Due::Ack)),
                    self.look_ms.map(|at| (at, Due::Look)),
                    self.interim_ms.map(|at| (at, Due::Interim)),
                ]
                .into_iter()
                .flatten()
                .min_by_key(|&(at, _)| at)
            }
        }
    }

    /// Whether clients of its listener have been the first to speak lately.
    pub(super) fn client_speaks_first(&self, worker: usize) -> bool {
        let shard = self.listener.stats.shards.of(worker);
        shard.clients_first.get() >= CLIENTS_FIRST
    }

    /// Notes who spoke first, when the backend has spoken.
    pub(super) fn note_first_speaker(&self, worker: usize) {
        let shard = self.listener.stats.shards.of(worker);
        match self.pair.moved_from(Side::Client) {
            0 => shard.clients_first.set(0),
            _ => shard.clients_first.add(1),
        }
    }

    /// How long to rest before the next pump: not at all unless every lane that could go on is out of bandwidth.
    pub(super) fn rest(&self, now: Instant) -> Option<Duration> {
        let lanes = self.throttles.as_deref()?;
        let waits = Side::BOTH
            .into_iter()
            .filter(|&side| self.pair.next(side) != relay::Op::Wait)
            .map(|side| {
                let throttled = lanes[side as usize].as_ref();
                throttled.map_or(Duration::ZERO, |lane| lane.throttle.wait(lane.refill, now))
            });
        waits.min().filter(|wait| !wait.is_zero())
    }

    /// Rests. What waits for weir is not idle.
    pub(super) fn rest_until(&mut self, at_ms: u64) {
        self.resume_ms = Some(at_ms);
        self.active_ms = self.active_ms.max(at_ms);
    }

    /// A look at the peers to which bytes are under way: one that has vanished, or when to look again. `limits_ms` says how long
    /// each may be silent.
    pub(super) fn look(&self, now_ms: u64, limits_ms: [Option<u64>; 2]) -> Result<Option<u64>, Side> {
        let quiet_ms = now_ms.saturating_sub(self.active_ms);
        let fds = [Some(&self.client), self.backend.as_ref()];
        let mut next = None;
        for side in Side::BOTH {
            let (Some(limit_ms), Some(fd)) = (limits_ms[side as usize], fds[side as usize]) else {
                continue;
            };
            let fd = fd.as_raw_fd();
            let wait_ms = match quiet_ms {
                _ if quiet_ms < limit_ms => limit_ms - quiet_ms,
                // More cannot come under way without a write.
                _ if socket::unacknowledged(fd) == 0 => limit_ms,
                _ => match socket::silence(fd) {
                    Some((silent_ms, unanswered)) => {
                        let unacknowledged = socket::unacknowledged(fd);
                        let peer = Peer {
                            unacknowledged,
                            unanswered,
                            silent_ms,
                        };
                        if peer.has_vanished(quiet_ms, limit_ms) {
                            return Err(side);
                        }
                        limit_ms / 4
                    }
                    // A unix socket: its peer cannot vanish unseen.
                    None => continue,
                },
            };
            let at = now_ms + wait_ms.max(1);
            next = Some(next.map_or(at, |next: u64| next.min(at)));
        }
        Ok(next)
    }

    /// How the sockets are to be closed. What came after the events of this turn were fetched counts as well: a look at the
    /// sockets is worth it where their silence decides.
    pub(super) fn ending(&self, cause: Cause) -> Ending {
        let Phase::Open = self.phase else {
            return Ending::Reset;
        };
        let fds = [Some(&self.client), self.backend.as_ref()];
        cause.ending(Side::BOTH.map(|side| {
            let mut lane = self.pair.lane(side).state();
            let arrived = |fd: &OwnedFd| socket::unread(fd.as_raw_fd()) > 0;
            if lane.source == Source::Quiet && fds[side as usize].is_some_and(arrived) {
                lane.source = Source::Readable;
            }
            lane
        }))
    }

    /// The PROXY header that the pool wants its backends to see.
    pub(super) fn header_for_backend(&self, backend: &Backend) -> Vec<u8> {
        if backend.send_proxy == SendProxy::Off {
            return Vec::new();
        }
        let used = self.destination.or(match &*self.local {
            Address::Ip(address) => Some(*address),
            Address::Unix(_) => None,
        });
        proxy_header::build(backend.send_proxy, Protocol::Tcp, self.client_address.zip(used))
    }

    pub(super) fn attempts(&self) -> u32 {
        match &self.phase {
            Phase::Connecting(attempt) => attempt.tried.len() as u32,
            _ => u32::from(self.attempts),
        }
    }

    pub(super) fn record(&self, now: Instant, cause: Cause, closed_by: By) -> Record {
        Record {
            time: SystemTime::now(),
            id: self.id,
            listener: self.listener.clone(),
            client: self.client_address,
            local: self.local.clone(),
            backend: self.place.as_ref().map(|place| place.backend().clone()),
            attempts: self.attempts(),
            bytes_up: self.pair.moved_from(Side::Client),
            bytes_down: self.pair.moved_from(Side::Backend),
            connect_us: self.connect_us.map(u64::from),
            first_byte_us: self.first_byte_us.map(u64::from),
            duration_us: now.saturating_duration_since(self.opened).as_micros() as u64,
            spliced: self.spliced,
            closed_by,
            cause,
            interim: false,
        }
    }

    pub(super) fn describe(&self, context: &Context, now_ms: u64) -> LiveConnection {
        let backend = self.place.as_ref().map(BackendPermit::backend);
        LiveConnection {
            id: self.id,
            protocol: "tcp",
            listener: self.listener.config.name.clone(),
            client: self
                .client_address
                .map_or_else(|| "unix".into(), |address| address.to_string()),
            pool: backend.map_or_else(String::new, |backend| backend.pool.to_string()),
            backend: backend.map_or_else(String::new, |backend| backend.config.name.clone()),
            worker: context.id,
            state: match &self.phase {
                Phase::Header { .. } => "proxy_header",
                Phase::Connecting(_) => "connecting",
                Phase::Open if self.pair.half_closed() => "half_closed",
                Phase::Open => "open",
                Phase::Resetting { .. } => "closing",
            },
            age_ms: context.now.saturating_duration_since(self.opened).as_millis() as u64,
            idle_ms: now_ms.saturating_sub(self.active_ms),
            bytes_up: self.pair.moved_from(Side::Client),
            bytes_down: self.pair.moved_from(Side::Backend),
        }
    }
}

/// The bandwidth limits of a listener's connections; `upload` is what clients send.
pub(super) fn throttles(listener: &Listener) -> Option<Box<[Option<Throttled>; 2]>> {
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

/// Accounts for the bytes that each lane moved.
pub(super) fn charge(throttles: &mut Option<Box<[Option<Throttled>; 2]>>, now: Instant, moved: [u64; 2]) {
    for (lane, bytes) in throttles.iter_mut().flat_map(|lanes| lanes.iter_mut()).zip(moved) {
        if let Some(Throttled { throttle, refill }) = lane {
            throttle.charge(refill, now, bytes);
        }
    }
}

/// Bytes that each lane has moved so far.
pub(super) fn moved(pair: &Pair) -> [u64; 2] {
    Side::BOTH.map(|side| pair.moved_from(side))
}

/// Whole microseconds between two moments.
pub(super) fn us(from: Instant, to: Instant) -> u32 {
    to.saturating_duration_since(from).as_micros().min(u128::from(u32::MAX)) as u32
}
