//! A count of live things that several threads raise and lower, with a cap that holds exactly over all of them.
//!
//! `models/` runs this file under loom.

use super::atomic::{AtomicU32, Ordering::Relaxed};

/// Live things, with an optional cap that holds exactly over all threads.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU32);

impl Gauge {
    /// Adds one unless that would exceed `cap`.
    pub fn try_raise(&self, cap: Option<u32>) -> bool {
        match cap {
            None => {
                self.0.fetch_add(1, Relaxed);
                true
            }
            Some(cap) => self
                .0
                .fetch_update(Relaxed, Relaxed, |n| (n < cap).then_some(n + 1))
                .is_ok(),
        }
    }
    /// Adds one.
    pub fn raise(&self) {
        self.0.fetch_add(1, Relaxed);
    }
    /// Takes one off.
    pub fn lower(&self) {
        let before = self.0.fetch_sub(1, Relaxed);
        debug_assert!(before > 0, "a gauge fell below zero");
    }
    /// Has a part that is counted elsewhere, `was` when it was last looked at, follow what it `is` now.
    pub fn follow(&self, was: u32, is: u32) {
        self.0.fetch_add(is.wrapping_sub(was), Relaxed);
    }
    /// The value now; other threads may already have changed it.
    pub fn get(&self) -> u32 {
        self.0.load(Relaxed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Beside a part that is counted here. Seen to fail with the two arguments the wrong way round.
    #[test]
    fn a_part_that_is_counted_elsewhere_rises_and_falls() {
        let gauge = Gauge::default();
        gauge.raise();
        let seen = [0, 7, 7, 2, u32::MAX - 1, 0].windows(2).map(|pair| {
            gauge.follow(pair[0], pair[1]);
            gauge.get() - 1
        });
        assert_eq!(seen.collect::<Vec<_>>(), [7, 7, 2, u32::MAX - 1, 0]);
    }

    #[test]
    fn a_capped_gauge_is_exact_over_threads() {
        let gauge = Gauge::default();
        let admitted = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        if gauge.try_raise(Some(777)) {
                            admitted.fetch_add(1, Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!((gauge.get(), admitted.into_inner()), (777, 777));
    }
}
