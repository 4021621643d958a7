//! Log lines that the network can cause: one a period, with a count of those that were left out.
//!
//! `models/` runs this file under loom.

use super::atomic::{AtomicU64, Ordering::Relaxed};
use std::fmt;
use std::time::Duration;

/// Lets one line a second through. Shared by threads; any clock that does not run backwards will do.
#[derive(Debug, Default)]
pub struct LogLimit {
    /// The second of the last line, from 1.
    second: AtomicU64,
    left_out: AtomicU64,
}

/// Lines that were left out before this one; shown as nothing when there were none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeftOut(pub u64);

impl LogLimit {
    /// `Some` if a line may be written at `now`, to which the count belongs; else the line is counted.
    pub fn admit(&self, now: Duration) -> Option<LeftOut> {
        let second = now.as_secs() + 1;
        let last = self.second.load(Relaxed);
        let mine = last < second && self.second.compare_exchange(last, second, Relaxed, Relaxed).is_ok();
        if mine {
            Some(LeftOut(self.left_out.swap(0, Relaxed)))
        } else {
            self.left_out.fetch_add(1, Relaxed);
            None
        }
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            n => write!(f, " ({n} more like this were left out)"),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_that_counts_the_others() {
        let rows: &[(u64, Option<u64>)] = &[
            (0, Some(0)),
            (10, None),
            (999, None),
            (1_000, Some(2)),
            (1_500, None),
            (9_000, Some(1)),
            (9_000, None),
            (10_000, Some(1)),
        ];
        let limit = LogLimit::default();
        for &(ms, expected) in rows {
            let admitted = limit.admit(Duration::from_millis(ms));
            assert_eq!(admitted, expected.map(LeftOut), "at {ms} ms");
        }
        assert_eq!(LeftOut(0).to_string(), "");
        assert_eq!(LeftOut(3).to_string(), " (3 more like this were left out)");
    }

    #[test]
    fn threads_share_the_one_line_and_lose_no_count() {
        let limit = LogLimit::default();
        let lines = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        let admitted = limit.admit(Duration::ZERO);
                        lines.fetch_add(u64::from(admitted.is_some()), Relaxed);
                    }
                });
            }
        });
        let later = limit.admit(Duration::from_secs(1)).map(|LeftOut(n)| n);
        let (Some(before), 1) = (later, lines.into_inner()) else {
            panic!("{later:?}")
        };
        assert_eq!(before, 3_999);
    }
}
