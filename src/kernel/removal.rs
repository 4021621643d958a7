//! The removal of a flow that counts: out of the table, and then out of each of what counts it. Each step is noted in a map before the
//! next, so whoever comes after a process that was killed meanwhile does the rest, and nothing twice; but if it was killed between the
//! very instruction that lowers a count and that which notes it.

use std::collections::HashSet;
use std::sync::atomic::Ordering::Release;

use super::layout::{FLOW_ENDED, FLOW_OPEN, Flow, Plain, REMOVAL_STEP, Removal, Tuple};
use super::maps::{GAUGES, Maps};
use crate::sys::bpf;

/// It is to be taken out of the table. What follows are the gauges.
const TAKE: u32 = 1;

/// Whether it counts.
fn is_counted(flags: u32) -> bool {
    flags & (FLOW_OPEN | FLOW_ENDED) == FLOW_OPEN
}

impl Maps {
    fn note(&self, step: u32) {
        self.removal.words(0)[REMOVAL_STEP].store(step, Release);
    }

    /// What is left of a removal, from a step on.
    fn go_on(&self, removal: &Removal, step: u32) {
        for gauge in step - TAKE - 1..GAUGES {
            self.lower(removal, gauge);
            self.note(gauge + TAKE + 2);
        }
    }

    /// Takes a flow out, by its client's entry as it was seen last. What it has come to be, if it was there.
    pub fn take_out(&self, key: &Tuple, seen: &Flow) -> Option<Flow> {
        let mut removal = Removal {
            key: *key,
            id: seen.id,
            listener: seen.listener,
            backend: seen.backend,
            flags: seen.flags,
            step: 0,
        };
        self.removal.put(0, &removal.bytes());
        bpf::publish();
        self.note(TAKE);
        let up = self.take(key);
        if let Some(up) = up.filter(|up| is_counted(up.flags)) {
            removal.flags = up.flags;
            self.note(TAKE + 1);
            self.go_on(&removal, TAKE + 1);
        }
        self.note(0);
        up
    }

    /// Does what a process before this one has left undone. `told`: flows of whose end the program has told since; it counts them no more.
    pub fn finish_removal(&self, told: &HashSet<u64>) {
        let removal = Removal::of(&self.removal.get(0));
        let is_there = || self.flow(&removal.key).is_some_and(|up| up.id == removal.id);
        match removal.step {
            0 => return,
            // It was taken, or not, or it has ended by itself: then it may have gone by now.
            TAKE if !is_counted(removal.flags) || told.contains(&removal.id) || is_there() => {}
            TAKE => self.go_on(&removal, TAKE + 1),
            step => self.go_on(&removal, step),
        }
        self.note(0);
    }
}
