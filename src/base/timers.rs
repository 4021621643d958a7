//! One timer for each slot of a slab: set, move and cancel in O(1).
//!
//! A hierarchical wheel (Varghese and Lauck, 1987) of four levels of 64 slots; a slot is a doubly linked list threaded
//! through an array that is indexed like the slab, so no timer is ever allocated and a short connection leaves nothing
//! behind. Level 0 turns once in 64 ticks, each further level 64 times slower; when a level wraps, the next slot of the
//! level above is dealt out again. Deadlines beyond the top level wait in its last slot and are dealt out again.
//! A timer never fires early; it fires in the first `expire` at or after its tick.

const NONE: u32 = u32::MAX;
const BITS: u32 = 6;
const SLOTS: usize = 1 << BITS;
const LEVELS: usize = 4;

#[derive(Clone, Copy)]
struct Node {
    deadline: u64,
    prev: u32,
    next: u32,
    /// `level * SLOTS + slot`, or `UNSET`.
    list: u16,
}

const UNSET: u16 = u16::MAX;
const IDLE: Node = Node {
    deadline: 0,
    prev: NONE,
    next: NONE,
    list: UNSET,
};

/// The timers of one slab's slots. Time is in ticks; how long a tick lasts is up to the caller.
pub struct Timers {
    nodes: Vec<Node>,
    heads: [u32; SLOTS * LEVELS],
    occupied: [u64; LEVELS],
    now: u64,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            heads: [NONE; SLOTS * LEVELS],
            occupied: [0; LEVELS],
            now: 0,
        }
    }
}

impl Timers {
    /// No timer is set; the time is tick 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets or moves the timer of slot `index` to tick `deadline` (a past one fires at the next [`expire`](Self::expire)).
    pub fn set(&mut self, index: u32, deadline: u64) {
        if self.nodes.len() <= index as usize {
            self.nodes.resize(index as usize + 1, IDLE);
        }
        if self.nodes[index as usize].list != UNSET {
            if self.nodes[index as usize].deadline == deadline {
                return;
            }
            self.unlink(index);
        }
        self.link(index, deadline);
    }

    /// The tick at which slot `index` fires, if its timer is set.
    pub fn deadline(&self, index: u32) -> Option<u64> {
        self.nodes
            .get(index as usize)
            .filter(|node| node.list != UNSET)
            .map(|node| node.deadline)
    }

    /// Cancels the timer of slot `index`, if any.
    pub fn cancel(&mut self, index: u32) {
        if self.deadline(index).is_some() {
            self.unlink(index);
        }
    }

    /// The earliest tick at which [`expire`](Self::expire) has something to do (fire or deal out), if any.
    pub fn next(&self) -> Option<u64> {
        let mut soonest: Option<u64> = None;
        for level in 0..LEVELS {
            let shift = BITS * level as u32;
            let here = (self.now >> shift) as u32 & (SLOTS as u32 - 1);
            // Bit 0 after the rotation is the current slot: due now on level 0, a whole turn away above.
            let mut ahead = self.occupied[level].rotate_right(here);
            if level > 0 && ahead & 1 != 0 {
                let tick = ((self.now >> shift) + SLOTS as u64) << shift;
                soonest = Some(soonest.map_or(tick, |old| old.min(tick)));
                ahead &= !1;
            }
            if ahead != 0 {
                let tick = ((self.now >> shift) + u64::from(ahead.trailing_zeros())) << shift;
                soonest = Some(soonest.map_or(tick, |old| old.min(tick)));
            }
        }
        soonest
    }

    /// Advances to tick `now` and appends the slots whose timers are due; their timers are unset.
    pub fn expire(&mut self, now: u64, due: &mut Vec<u32>) {
        loop {
            let here = (self.now as usize) & (SLOTS - 1);
            while self.heads[here] != NONE {
                let index = self.heads[here];
                self.unlink(index);
                due.push(index);
            }
            if self.now >= now {
                return;
            }
            self.now = self.next().map_or(now, |tick| tick.clamp(self.now + 1, now));
            for level in (1..LEVELS).rev() {
                let shift = BITS * level as u32;
                if self.now & ((1 << shift) - 1) == 0 {
                    self.deal_out(level, (self.now >> shift) as usize & (SLOTS - 1));
                }
            }
        }
    }

    fn deal_out(&mut self, level: usize, slot: usize) {
        let mut index = std::mem::replace(&mut self.heads[level * SLOTS + slot], NONE);
        self.occupied[level] &= !(1 << slot);
        while index != NONE {
            let Node { deadline, next, .. } = self.nodes[index as usize];
            self.link(index, deadline);
            index = next;
        }
    }

    fn link(&mut self, index: u32, deadline: u64) {
        let due = deadline.max(self.now);
        let distance = due - self.now;
        let level = (0..LEVELS - 1)
            .find(|&level| distance >> (BITS * (level as u32 + 1)) == 0)
            .unwrap_or(LEVELS - 1);
        let shift = BITS * level as u32;
        let furthest = (self.now >> shift) + SLOTS as u64 - 1;
        let slot = (due >> shift).min(furthest) as usize & (SLOTS - 1);
        let list = level * SLOTS + slot;
        let next = std::mem::replace(&mut self.heads[list], index);
        if next != NONE {
            self.nodes[next as usize].prev = index;
        }
        self.nodes[index as usize] = Node {
            deadline,
            prev: NONE,
            next,
            list: list as u16,
        };
        self.occupied[level] |= 1 << slot;
    }

    fn unlink(&mut self, index: u32) {
        let Node { prev, next, list, .. } = std::mem::replace(&mut self.nodes[index as usize], IDLE);
        if next != NONE {
            self.nodes[next as usize].prev = prev;
        }
        if prev != NONE {
            self.nodes[prev as usize].next = next;
        } else {
            self.heads[list as usize] = next;
            if next == NONE {
                self.occupied[list as usize / SLOTS] &= !(1 << (list as usize % SLOTS));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn behaves_like_a_sorted_map(
            ops in prop::collection::vec((0u8..4, 0u32..40, prop_oneof![0u64..3, 0u64..70, 0u64..5_000, 0u64..40_000_000]), 1..400)
        ) {
            let (mut timers, mut model, mut now) = (Timers::new(), BTreeMap::new(), 0u64);
            for (op, index, delta) in ops {
                match op {
                    0 | 1 => {
                        timers.set(index, now + delta);
                        model.insert(index, now + delta);
                    }
                    2 => {
                        timers.cancel(index);
                        model.remove(&index);
                    }
                    _ => {
                        now += delta;
                        let mut fired = Vec::new();
                        timers.expire(now, &mut fired);
                        fired.sort_unstable();
                        let expected: Vec<u32> = model.iter().filter(|&(_, &tick)| tick <= now).map(|(&index, _)| index).collect();
                        model.retain(|_, tick| *tick > now);
                        prop_assert_eq!(fired, expected);
                    }
                }
                let soonest = model.values().min().copied();
                prop_assert_eq!(timers.next().is_some(), soonest.is_some());
                if let (Some(next), Some(soonest)) = (timers.next(), soonest) {
                    prop_assert!(next <= soonest.max(now), "woken at {} for a timer at {}", next, soonest);
                }
                for index in 0..40 {
                    prop_assert_eq!(timers.deadline(index), model.get(&index).copied());
                }
            }
        }
    }
}
