//! `round_robin`: a smooth weighted schedule, computed once and shared by all workers.
//!
//! # How it works
//!
//! The schedule is one cycle of picks: `weight / gcd` slots a backend, a backend in each. Slot t goes to the backend whose
//! next turn is due first: turn j of a backend of weight w in a cycle of W slots may start at `floor(j * W / w)` and must
//! be served by `ceil((j + 1) * W / w)`. Earliest deadline first always keeps these windows (they are the "Pfair" windows
//! of Baruah et al., 1996, on one processor), hence after any number of picks from the start of a cycle every backend is
//! less than one pick away from its exact share.
//!
//! A cursor is a place in the cycle. Ineligible backends are skipped, which leaves the others in their order and in
//! their proportions, whatever goes down or comes back: there is no state to repair and nothing to catch up on.
//! Each cursor starts elsewhere, so workers do not send their first connections to the same backend.
//!
//! # Bounds
//!
//! A cycle has at most [`SLOTS_MAX`] slots. Weights whose cycle would be longer are rounded to one that fits: a backend's
//! share is then off by at most 1/[`SLOTS_MAX`] of the pool's traffic. A pick looks at no more than [`SKIPS_MAX`] slots;
//! when nearly all of the weight is out, the few that are left take turns by plain smooth weighted round robin.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::explain::{Note, Reason, Trace};
use super::least::rotate;
use super::{Cursor, Loads, Member, Shares, View};

/// Longest cycle.
pub const SLOTS_MAX: u64 = 1 << 17;

/// Most slots that one pick looks at.
pub const SKIPS_MAX: usize = 256;

/// One cycle of picks.
#[derive(Debug)]
pub(super) struct Schedule {
    slots: Box<[u16]>,
}

impl Schedule {
    pub(super) fn new(members: &[Member]) -> Schedule {
        let turns = turns(members);
        let total: u64 = turns.iter().sum();
        let mut slots = Vec::with_capacity(total as usize);
        // Pending turns by start, startable ones by deadline; ties by index.
        let mut pending: BinaryHeap<Reverse<(u64, usize, u64)>> = turns
            .iter()
            .enumerate()
            .filter(|&(_, &n)| n > 0)
            .map(|(ix, _)| Reverse((0, ix, 0)))
            .collect();
        let mut ready: BinaryHeap<Reverse<(u64, usize, u64)>> = BinaryHeap::new();
        for slot in 0..total {
            while let Some(&Reverse((start, ix, turn))) = pending.peek()
                && start <= slot
            {
                pending.pop();
                ready.push(Reverse((
                    ((turn + 1) * total).div_ceil(turns[ix]),
                    ix,
                    turn,
                )));
            }
            let Reverse((deadline, ix, turn)) = ready.pop().expect("total demand fills every slot");
            assert!(slot < deadline, "windows are always kept");
            slots.push(ix as u16);
            if turn + 1 < turns[ix] {
                pending.push(Reverse(((turn + 1) * total / turns[ix], ix, turn + 1)));
            }
        }
        Schedule {
            slots: slots.into(),
        }
    }
}

/// Turns of each backend in a cycle: weights by their greatest common divisor, rounded if the cycle is too long.
fn turns(members: &[Member]) -> Vec<u64> {
    let weights = || members.iter().map(|member| u64::from(member.weight));
    let divisor = weights().fold(0, gcd).max(1);
    let total: u64 = weights().sum::<u64>() / divisor;
    if total <= SLOTS_MAX {
        return weights().map(|weight| weight / divisor).collect();
    }
    let share =
        |weight: u64| u128::from(weight) * u128::from(SLOTS_MAX) / u128::from(total * divisor);
    weights()
        .map(|weight| {
            if weight == 0 {
                0
            } else {
                (share(weight) as u64).max(1)
            }
        })
        .collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[inline]
pub(super) fn pick<L: Loads, T: Trace>(
    view: &View<'_, L>,
    cursor: &mut Cursor,
    schedule: &Schedule,
    trace: &mut T,
) -> Option<(usize, Reason)> {
    let slots = &schedule.slots;
    if slots.is_empty() {
        return None;
    }
    if cursor.position >= slots.len() {
        cursor.position %= slots.len();
    }
    for _ in 0..SKIPS_MAX {
        let ix = usize::from(slots[cursor.position]);
        cursor.position += 1;
        if cursor.position == slots.len() {
            cursor.position = 0;
        }
        if !view.eligible.get(ix) {
            continue;
        }
        let share = view.shares.get(ix);
        if share == Shares::WHOLE || cursor.rng.below(u64::from(Shares::WHOLE)) < u64::from(share) {
            return Some((ix, Reason::Schedule));
        }
        trace.note(ix, Note::Ramping(share));
    }
    let among = view
        .eligible
        .iter_ones()
        .filter(|&ix| view.members[ix].weight > 0);
    rotate(view, &mut cursor.credits, among).map(|(ix, _)| (ix, Reason::Rotation))
}
