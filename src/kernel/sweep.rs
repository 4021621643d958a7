//! How much of the tables of flows is looked at, and when: a small table whole once a second, one of a million connections in parts
//! that cost a fixed share of a processor, whatever else there is to do.

use std::io;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use super::layout::{Flow, Tuple};
use super::maps::{Kind, Maps};
use crate::sys::bpf::Walk;

/// How often a table is looked at from its beginning, if it is not too large for that.
const PASS: Duration = Duration::from_secs(1);

/// From one part of a pass to the next.
pub const TICK: Duration = Duration::from_millis(100);

/// A way through one of the tables, again and again.
#[derive(Debug)]
pub struct Sweep {
    kind: Kind,
    walk: Walk,
    /// How much of a processor a part takes. Both tables together take less than 2 % of each [`TICK`], the last batch of a part
    /// included.
    share: Duration,
    began: Instant,
    due: Instant,
}

/// What this thread has had of a processor.
pub fn spent() -> Duration {
    let now = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every Linux has it");
    Duration::new(now.tv_sec() as u64, now.tv_nsec() as u32)
}

/// When the next part is due, by when this one and its pass have begun.
fn next(began: Instant, now: Instant, is_end: bool) -> Instant {
    match is_end {
        true => (began + PASS).max(now + TICK),
        false => now + TICK,
    }
}

impl Sweep {
    /// Of both tables.
    pub fn both(now: Instant) -> [Sweep; 2] {
        // Most of what is in the table of those that are not established stays for moments.
        [(Kind::Settled, 1100), (Kind::Half, 300)].map(|(kind, share_us)| Sweep {
            kind,
            walk: Walk::default(),
            share: Duration::from_micros(share_us),
            began: now,
            due: now + PASS,
        })
    }

    /// When there is something to look at.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Looks at the next part. `each` returns false when that was enough for now.
    pub fn part(&mut self, maps: &Maps, now: Instant, mut each: impl FnMut(Tuple, Flow) -> bool) -> io::Result<()> {
        if self.walk.is_at_start() {
            self.began = now;
        }
        self.due = next(self.began, now, false);
        let (before, mut goes_on) = (spent(), true);
        while goes_on && spent() - before < self.share {
            let is_end = maps.step(self.kind, &mut self.walk, |key, flow| goes_on &= each(key, flow))?;
            if is_end {
                self.due = next(self.began, now, true);
                return Ok(());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Columns: milliseconds since the pass began, whether this part was its last; milliseconds to the next part.
    #[test]
    fn small_tables_are_looked_at_once_a_second_and_large_ones_in_parts() {
        let began = Instant::now();
        for (at, is_end, wait) in [
            (0, true, 1000),
            (0, false, 100),
            (300, false, 100),
            (300, true, 700),
            (5000, true, 100),
        ] {
            let now = began + Duration::from_millis(at);
            let waits = next(began, now, is_end) - now;
            assert_eq!(waits, Duration::from_millis(wait), "{at} ms, {is_end}");
        }
    }
}
