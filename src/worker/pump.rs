//! Moving the bytes of one connection, under a budget.

use std::os::fd::AsRawFd;

use super::Context;
use super::connection::{Connection, Next};
use super::io::{Pipes, SCRATCH_BYTES, SocketIo};
use crate::base::{Side, Weight};
use crate::relay::{self, Budget, Cause, GATHER_BYTES, Gather, Outcome, Pumped};
use crate::worker::os::socket;

/// Bytes that a lane may fill in one pump, spliced or copied, while others than bulk streams are served: 10 to 30 us of work, for which
/// a request that arrives beside bulk streams has to wait. docs/performance.md has what other sizes do.
const PUMP_SHARED: usize = 64 << 10;
/// The same while there are only bulk streams: as much as a pipe holds.
const PUMP_ALONE: usize = 1 << 20;
/// Bulk streams are alone when nobody else was heard for so long, milliseconds.
const ALONE_AFTER_MS: u64 = 20;
/// A connection is heavy while each of its pumps moves as much: more than any request or answer that fits the buffer.
const HEAVY_BYTES: u64 = SCRATCH_BYTES as u64;
/// How long a connection rests for which the kernel had no memory, milliseconds.
const STARVED_REST_MS: u64 = 10;

/// What a worker's connections share to move bytes.
pub(super) struct Tools {
    pub scratch: Box<[u8]>,
    pub pipes: Pipes,
    /// When somebody was last served who was not a bulk stream, milliseconds since the epoch.
    pub light_ms: u64,
}

/// Bytes that a lane may fill in one pump.
fn pump_bytes(now_ms: u64, light_ms: u64) -> usize {
    match now_ms.saturating_sub(light_ms) < ALONE_AFTER_MS {
        true => PUMP_SHARED,
        false => PUMP_ALONE,
    }
}

impl Tools {
    pub(super) fn new(pipes_max: usize) -> Tools {
        Tools {
            scratch: vec![0; SCRATCH_BYTES].into(),
            pipes: Pipes::new(pipes_max),
            light_ms: 0,
        }
    }
}

/// Moves what can be moved.
pub(super) fn relay(connection: &mut Connection, context: &Context, tools: &mut Tools) -> Next {
    let Some(reached) = &connection.backend else {
        return Next::Wait;
    };
    let lanes = &mut connection.lanes;
    let before = lanes.moved();
    let was_half_closed = lanes.pair.half_closed();
    let limited = lanes.throttles.as_deref();
    let lane_limit = |side: Side| limited.and_then(|lanes| lanes[side as usize].as_ref());
    let most = pump_bytes(context.now_ms(), tools.light_ms);
    let budget = Side::BOTH.map(|side| {
        let left = lane_limit(side).map(|lane| lane.throttle.budget(lane.refill, context.now));
        Budget {
            bytes: left.map_or(most, |left| left.min(most as u64) as usize),
            exact: left.is_some(),
        }
    });
    let copy_only = Side::BOTH.map(|side| lane_limit(side).is_some());
    let mut io = SocketIo {
        fds: [connection.client.as_raw_fd(), reached.fd.as_raw_fd()],
        held: &mut lanes.held,
        scratch: &mut tools.scratch,
        pipes: &mut tools.pipes,
        spliced: 0,
        starved: false,
        nagle: &mut lanes.nagle,
        copy_only,
    };
    let pumped = relay::pump(&mut lanes.pair, &mut io, budget);
    let (spliced, starved) = (io.spliced, io.starved);
    let after = lanes.moved();
    let moved = [after[0] - before[0], after[1] - before[1]];
    connection.weight = match moved[0] + moved[1] {
        HEAVY_BYTES.. => Weight::Heavy,
        _ => Weight::Light,
    };
    if connection.weight == Weight::Light && !lanes.pair.is_bulk() {
        tools.light_ms = context.now_ms();
    }
    if after != before {
        lanes.charge(context.now, moved);
        connection.clocks.active_ms = context.now_ms();
        connection.account_moved(context, before, spliced);
    }
    gather(connection, context.now_ms(), moved);
    match pumped {
        Pumped::Idle | Pumped::More if starved => {
            context.shared.exhausted(&"no memory for sockets");
            connection.lanes.starved = true;
            connection.clocks.rest_until(context.now_ms() + STARVED_REST_MS);
            Next::Schedule
        }
        Pumped::Idle if !connection.lanes.pair.half_closed() && connection.clocks.gather_ms.is_none() => Next::Wait,
        Pumped::Idle => {
            if !was_half_closed {
                // The end of a direction is activity: a connection that was idle before it has all its time.
                connection.clocks.active_ms = context.now_ms();
            }
            Next::Schedule
        }
        Pumped::More => match connection.rest(context.now) {
            None => Next::Requeue,
            Some(rest) => {
                let rest_ms = rest.as_millis().max(1) as u64;
                connection.clocks.rest_until(context.now_ms() + rest_ms);
                Next::Schedule
            }
        },
        Pumped::Ended(Outcome::Finished { first }) => Next::End(Cause::Finished, first.into()),
        Pumped::Ended(Outcome::Reset { by }) => Next::Reset(by),
    }
}

/// Lets the sources of fast streams gather, and those of others no more. Under a bandwidth limit nothing is spliced.
fn gather(connection: &mut Connection, now_ms: u64, moved: [u64; 2]) {
    let lanes = &mut connection.lanes;
    if lanes.gathers.is_none() && !lanes.pair.is_bulk() {
        return;
    }
    let fds = [
        Some(&connection.client),
        connection.backend.as_ref().map(|reached| &reached.fd),
    ];
    let gathers = lanes.gathers.get_or_insert_with(|| Box::new([Gather::new(now_ms); 2]));
    for side in Side::BOTH {
        let piped = lanes.pair.is_spliced(side);
        let change = gathers[side as usize].learn(now_ms, moved[side as usize], piped);
        if let (Some(gathers), Some(fd)) = (change, fds[side as usize]) {
            socket::wake_at(fd.as_raw_fd(), if gathers { GATHER_BYTES } else { 1 });
        }
    }
    connection.clocks.gather_ms = gathers.iter().filter_map(Gather::due_ms).min();
}

/// A source that lets bytes gather was quiet: what is there is moved, told of or not.
pub(super) fn look(connection: &mut Connection, now_ms: u64) -> Next {
    connection.clocks.gather_ms = None;
    let lanes = &mut connection.lanes;
    for (side, gather) in Side::BOTH
        .into_iter()
        .zip(lanes.gathers.iter_mut().flat_map(|gathers| gathers.iter_mut()))
    {
        if gather.look(now_ms) {
            lanes.pair.mark_readable(side);
        }
    }
    Next::Resume
}

/// A rest is over.
pub(super) fn resume(connection: &mut Connection) -> Next {
    connection.clocks.resume_ms = None;
    let lanes = &mut connection.lanes;
    if std::mem::take(&mut lanes.starved) {
        for side in Side::BOTH {
            lanes.pair.mark_readable(side);
            lanes.pair.mark_writable(side);
        }
    }
    Next::Resume
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bulk_streams_take_more_at_a_time_when_they_are_alone() {
        for (now_ms, light_ms, kib) in [
            (0, 0, 64),
            (19, 0, 64),
            (20, 0, 1024),
            (1_000, 981, 64),
            (1_000, 980, 1024),
        ] {
            assert_eq!(pump_bytes(now_ms, light_ms), kib << 10, "{now_ms}, {light_ms}");
        }
    }
}
