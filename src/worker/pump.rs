//! Moving the bytes of one connection, under a budget.

use std::os::fd::AsRawFd;

use super::Context;
use super::connection::{Connection, Next};
use super::io::{Pipes, SCRATCH_BYTES, SocketIo};
use crate::base::{Side, Weight};
use crate::relay::{self, Budget, Cause, Outcome, Pumped};

/// Bytes that a lane may fill in one pump, spliced or copied: about 50 us of work. A request that arrives beside bulk streams
/// waits for one such pump; docs/performance.md has what other sizes do.
const PUMP_BYTES: usize = 128 << 10;
/// A connection is heavy while each of its pumps moves as much: more than any request or answer that fits the buffer.
const HEAVY_BYTES: u64 = SCRATCH_BYTES as u64;
/// How long a connection rests for which the kernel had no memory, milliseconds.
const STARVED_REST_MS: u64 = 10;

/// What a worker's connections share to move bytes.
pub(super) struct Tools {
    pub scratch: Box<[u8]>,
    pub pipes: Pipes,
}

impl Tools {
    pub(super) fn new(pipes_max: usize) -> Tools {
        Tools {
            scratch: vec![0; SCRATCH_BYTES].into(),
            pipes: Pipes::new(pipes_max),
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
    let budget = Side::BOTH.map(|side| {
        let left = lane_limit(side).map(|lane| lane.throttle.budget(lane.refill, context.now));
        Budget {
            bytes: left.map_or(PUMP_BYTES, |left| left.min(PUMP_BYTES as u64) as usize),
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
    if after != before {
        lanes.charge(context.now, moved);
        connection.clocks.active_ms = context.now_ms();
        connection.account_moved(context, before, spliced);
    }
    match pumped {
        Pumped::Idle | Pumped::More if starved => {
            context.shared.exhausted(&"no memory for sockets");
            connection.lanes.starved = true;
            connection.clocks.rest_until(context.now_ms() + STARVED_REST_MS);
            Next::Schedule
        }
        Pumped::Idle if !connection.lanes.pair.half_closed() => Next::Wait,
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

/// A rest is over.
pub(super) fn resume(connection: &mut Connection) {
    connection.clocks.resume_ms = None;
    let lanes = &mut connection.lanes;
    if std::mem::take(&mut lanes.starved) {
        for side in Side::BOTH {
            lanes.pair.mark_readable(side);
            lanes.pair.mark_writable(side);
        }
    }
}
