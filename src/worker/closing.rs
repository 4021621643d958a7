//! Peers that are gone: noticed by looking at them, and passed on to the other side.
//!
//! A RST drops what the kernel has not delivered yet (SO_LINGER), but whatever a peer sent before its reset belongs to the
//! other side. So the reset is passed on once the other side has acknowledged everything.

use std::os::fd::AsRawFd;

use super::Context;
use super::connection::{Connection, Next, Phase};
use crate::base::Side;
use crate::config::model::Keepalive;
use crate::health::FailureKind;
use crate::relay::{By, Cause, Peer};
use crate::worker::os::socket;

/// How often a socket that waits to be reset is looked at, milliseconds.
const RESET_CHECK_MS: u64 = 5;
/// How long it may wait, milliseconds.
const RESET_WAIT_MS: u64 = 5_000;

/// Passes a reset on, as soon as everything that came before it has arrived.
pub(super) fn reset(connection: &mut Connection, context: &Context, by: Side) -> Next {
    let cause = match by {
        Side::Client => Cause::ClientReset,
        Side::Backend => Cause::BackendReset,
    };
    let early = by == Side::Backend && connection.lanes.pair.moved_from(Side::Backend) == 0;
    if let Some(reached) = connection.backend.as_ref().filter(|_| early) {
        let backend = reached.permit.backend();
        backend.stats.shards.of(context.id).failed(FailureKind::ResetEarly);
        context
            .shared
            .failed(backend.identity, FailureKind::ResetEarly, context.now);
    }
    connection.phase = Phase::Resetting {
        cause,
        by: by.into(),
        until_ms: context.now_ms() + RESET_WAIT_MS,
        check_ms: 0,
    };
    check_reset(connection, context)
}

/// Looks whether the other side has everything.
pub(super) fn check_reset(connection: &mut Connection, context: &Context) -> Next {
    let [client, backend] = connection.fds();
    let Phase::Resetting {
        cause,
        by,
        until_ms,
        check_ms,
    } = &mut connection.phase
    else {
        return Next::Wait;
    };
    let survivor = match by {
        By::Client => backend,
        _ => client,
    };
    let waiting = survivor.is_some_and(|fd| socket::unacknowledged(fd) > 0);
    if waiting && context.now_ms() < *until_ms {
        *check_ms = context.now_ms() + RESET_CHECK_MS;
        return Next::Schedule;
    }
    Next::End(*cause, *by)
}

/// Notices peers that have vanished, and gives the backend's socket of a connection that has lasted its options: a short one
/// is spared the calls.
pub(super) fn look(connection: &mut Connection, context: &Context) -> Next {
    if let Some(reached) = connection.backend.as_mut().filter(|reached| !reached.settled) {
        reached.settled = true;
        let fd = reached.fd.as_raw_fd();
        socket::keep_urgent_inline(fd);
        // A unix socket has no such option, and no need for it.
        let _ = socket::set_keepalive(fd, reached.keepalive.map(Keepalive::seconds_and_probes));
    }
    let keepalives = [
        connection.origin.listener.config.keepalive,
        connection.backend.as_ref().and_then(|reached| reached.keepalive),
    ];
    let limits_ms = keepalives.map(|keepalive| {
        let limit = keepalive.and_then(|keepalive| keepalive.user_timeout);
        limit.map(|limit| limit.as_millis() as u64)
    });
    match look_at_peers(connection, context.now_ms(), limits_ms) {
        Ok(next) => {
            connection.clocks.look_ms = next;
            Next::Schedule
        }
        Err(vanished) => Next::Reset(vanished),
    }
}

/// A look at the peers to which bytes are under way: one that has vanished, or when to look again. `limits_ms` says how long
/// each may be silent.
fn look_at_peers(connection: &Connection, now_ms: u64, limits_ms: [Option<u64>; 2]) -> Result<Option<u64>, Side> {
    let quiet_ms = now_ms.saturating_sub(connection.clocks.active_ms);
    let fds = connection.fds();
    let mut next = None;
    for side in Side::BOTH {
        let (Some(limit_ms), Some(fd)) = (limits_ms[side as usize], fds[side as usize]) else {
            continue;
        };
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
