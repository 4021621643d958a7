//! Reaching a backend: attempts to different backends, at once after a failure, bounded as a whole.

use std::os::fd::OwnedFd;

use super::Context;
use super::origin::Origin;
use crate::config::model::SendProxy;
use crate::health::FailureKind;
use crate::link::Address;
use crate::relay::Cause;
use crate::route::{self, Purpose};
use crate::snapshot::{Backend, BackendPermit, Choice};
use crate::worker::os::socket::{self, ConnectError};

/// Where the current attempt to reach a backend stands.
pub(super) struct Attempt {
    /// Identities of the backends that were tried, the current one last.
    pub(super) tried: Vec<u64>,
    /// End of this attempt, milliseconds since the epoch.
    pub(super) until_ms: u64,
    /// End of all attempts.
    pub(super) deadline_ms: u64,
    /// What events said of the current socket.
    pub(super) writable: bool,
    pub(super) broken: bool,
    pub(super) last_error: Option<ConnectError>,
    /// The ACK that completes the handshake waits for the client's first bytes.
    pub(super) held_ack: bool,
    /// It has waited for its turn: those who wait now come after it.
    pub(super) called: bool,
}

/// What came of starting an attempt.
pub(super) enum Started {
    /// On its way: a writable event completes it.
    Connecting(BackendPermit, OwnedFd),
    /// Failed at once; the next may do better.
    Failed,
    /// Nobody was tried, because there is nobody or because those that could serve are `full`.
    NoBackend { full: bool },
    /// Those that could serve are full, and the pool has connections wait.
    MustWait,
    /// Nothing is left to try.
    GaveUp(Cause),
}

impl Attempt {
    /// Nothing was tried yet.
    pub(super) fn before_first(deadline_ms: u64, held_ack: bool) -> Attempt {
        Attempt {
            tried: Vec::new(),
            until_ms: deadline_ms,
            deadline_ms,
            writable: false,
            broken: false,
            last_error: None,
            held_ack,
            called: false,
        }
    }

    /// Chooses a backend that was not tried yet and starts to connect to it. Attempts share what is left of
    /// `connect.timeout` evenly, so one that gets no answer leaves time for the others.
    pub(super) fn start(&mut self, context: &mut Context, origin: &Origin) -> Started {
        let (worker, now_ms, now) = (context.id, context.now_ms(), context.now);
        let clock = now - context.shared.epoch;
        let Some((pool, cursor)) = origin.pool(context) else {
            return Started::NoBackend { full: false };
        };
        let spent = self.tried.len() as u32;
        let left = pool.config.connect.attempts.saturating_sub(spent);
        let out_of_time = spent > 0 && now_ms >= self.deadline_ms;
        let is_behind = spent == 0 && !self.called && pool.config.queue.is_some() && pool.queue.length() > 0;
        let choice = match left {
            _ if is_behind => Choice::Full,
            0 => Choice::Nobody,
            _ if out_of_time => Choice::Nobody,
            _ => pool.choose(cursor, pool.key_of(origin.client), &self.tried, clock),
        };
        let Choice::Backend(permit) = choice else {
            return match self.last_error {
                None if matches!(choice, Choice::Full) && pool.config.queue.is_some() => Started::MustWait,
                None => Started::NoBackend {
                    full: matches!(choice, Choice::Full),
                },
                Some(ConnectError::TimedOut) => Started::GaveUp(Cause::ConnectTimeout),
                Some(ConnectError::Reset) => Started::GaveUp(Cause::BackendReset),
                Some(_) => Started::GaveUp(Cause::ConnectFailed),
            };
        };
        let backend = permit.backend().clone();
        if spent > 0 {
            backend.stats.shards.of(worker).retries.add(1);
        }
        self.tried.push(backend.identity);
        let others = pool.backends.len().saturating_sub(self.tried.len()) as u64;
        let share = self.deadline_ms.saturating_sub(now_ms) / others.min(u64::from(left - 1)).saturating_add(1);
        self.until_ms = now_ms + share.max(1);
        self.writable = false;
        self.broken = false;
        let used = match &*origin.local {
            Address::Ip(used) | Address::Device(used, _) => Some(used.port()),
            Address::Unix(_) => None,
        };
        let purpose = Purpose::Serve {
            port: used,
            client: origin.client,
        };
        let connect = if self.held_ack || backend.send_proxy != SendProxy::Off {
            socket::connect_to_write
        } else {
            socket::connect
        };
        match connect(&route::resolve(&backend.config, &pool.config, purpose)) {
            Ok(fd) => Started::Connecting(permit, fd),
            Err(error) => {
                self.note_failure(context, &backend, error);
                if error == ConnectError::Exhausted {
                    return Started::GaveUp(Cause::LimitProcess);
                }
                Started::Failed
            }
        }
    }

    /// Counts a failed attempt and tells control of it if the backend is to blame.
    pub(super) fn note_failure(&mut self, context: &mut Context, backend: &Backend, error: ConnectError) {
        self.last_error = Some(error);
        let shard = backend.stats.shards.of(context.id);
        let kind = match error {
            ConnectError::Refused => FailureKind::Refused,
            ConnectError::Reset => FailureKind::ResetEarly,
            ConnectError::TimedOut => FailureKind::TimedOut,
            _ => FailureKind::LocalError,
        };
        shard.failed(kind);
        match kind {
            FailureKind::LocalError => context.shared.trouble(backend, error),
            kind => context.shared.failed(backend.identity, kind, context.now),
        }
    }
}
