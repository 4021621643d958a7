//! Paced closing of what a drained backend still holds.
//!
//! Connections are left alone for the first half of `finish`. In the second half they are closed evenly, so that clients
//! reconnect in a trickle and not as a herd: at any moment, what is left is spread over the time that is left. If
//! connections end by themselves meanwhile, the pace slows down accordingly; it never rises unless the caller was late.

use std::time::{Duration, Instant};

/// Shortest time between two batches.
pub const BATCH_MIN: Duration = Duration::from_millis(10);

/// Fractions of a connection that are due, in 2^-32.
const ONE: u64 = 1 << 32;

/// One drain: of a backend, as far as one worker holds its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// Up to here the pace has been kept; never before the second half. Behind the end: when it was last asked.
    paced_to: Instant,
    end: Instant,
    /// Part of a connection that was due already and could not be closed.
    carried: u64,
}

impl Drain {
    /// A drain that starts now and ends in `finish`. Zero closes everything at once.
    pub fn new(now: Instant, finish: Duration) -> Drain {
        Drain {
            paced_to: now + finish / 2,
            end: now + finish,
            carried: 0,
        }
    }

    /// How many of the `live` connections to close now.
    pub fn due(&mut self, now: Instant, live: usize) -> usize {
        if now >= self.end {
            self.paced_to = now;
            return live;
        }
        let elapsed = now.saturating_duration_since(self.paced_to);
        if elapsed.is_zero() {
            return 0;
        }
        let left = (self.end - self.paced_to).as_nanos();
        let due = u128::from(self.carried) + live as u128 * u128::from(ONE) * elapsed.as_nanos() / left;
        self.paced_to = now;
        self.carried = (due % u128::from(ONE)) as u64;
        ((due / u128::from(ONE)) as usize).min(live)
    }

    /// When to ask again, with so many left alive; the end if none is. After the end, too, whoever closes them is left some
    /// time to do it.
    pub fn deadline(&self, live: usize) -> Instant {
        if live == 0 {
            return self.end;
        }
        if self.paced_to >= self.end {
            return self.paced_to + BATCH_MIN;
        }
        let left = (self.end - self.paced_to).as_nanos();
        let until_one = left * u128::from(ONE - self.carried) / (live as u128 * u128::from(ONE)) + 1;
        let pause = Duration::from_nanos(u64::try_from(until_one).unwrap_or(u64::MAX)).max(BATCH_MIN);
        (self.paced_to + pause).min(self.end)
    }

    /// When nothing may be left.
    pub fn end(&self) -> Instant {
        self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// 2,000 over 20 s: none in the first half, 200 in each second of the other, whether asked when due or all the time.
    /// Broken on purpose: no carry (asked all the time, nothing is ever due until everything is).
    #[test]
    fn two_thousand_over_twenty_seconds_close_at_a_flat_rate() {
        for eager in [false, true] {
            let start = Instant::now();
            let (mut drain, mut now, mut live, mut seconds) = (Drain::new(start, ms(20_000)), start, 2000, [0; 20]);
            while live > 0 {
                now = if eager {
                    now + ms(1)
                } else {
                    drain.deadline(live).max(now)
                };
                let closed = drain.due(now, live);
                assert!(closed <= 3, "{closed} at once");
                live -= closed;
                seconds[((now - start).as_millis() as usize / 1000).min(19)] += closed;
            }
            assert_eq!(seconds[..10], [0; 10]);
            assert!(
                seconds[10..].iter().all(|closed| (195..=205).contains(closed)),
                "eager {eager}: {seconds:?}"
            );
        }
    }

    proptest! {
        /// However irregularly it is asked, and whatever ends by itself: the rate never exceeds that of an even pace over
        /// what is left by more than one, and in the end nothing is left.
        /// Broken on purpose: the pace computed from the start instead of from the last time.
        #[test]
        fn the_pace_is_even_under_irregular_ticks(
            live in 1usize..5000,
            ticks in proptest::collection::vec((1u64..400, 0usize..20), 1..200),
        ) {
            let start = Instant::now();
            let (mut drain, mut now, mut left) = (Drain::new(start, ms(20_000)), start, live);
            let mut most = 0f64;
            let mut closed_by_now = 0;
            for (step, ended) in ticks {
                now += ms(step);
                if now >= drain.end() { break; }
                let closed = drain.due(now, left);
                closed_by_now += closed;
                let paced = now.saturating_duration_since(start + ms(10_000)).as_secs_f64();
                most = most.max(closed_by_now as f64 - live as f64 * paced / 10.0);
                left -= closed;
                left -= ended.min(left);
            }
            prop_assert!(most <= 1.0, "{} ahead of an even pace", most);
            prop_assert_eq!(drain.due(drain.end(), left), left);
        }
    }

    #[test]
    fn zero_is_at_once_and_nothing_waits_for_the_end() {
        let now = Instant::now();
        assert_eq!(Drain::new(now, Duration::ZERO).due(now, 7), 7);
        let drain = Drain::new(now, ms(1000));
        assert_eq!(drain.deadline(0), drain.end());
        assert_eq!(drain.deadline(1), drain.end(), "a single one has all the time");
    }

    /// Those that are left at the end are asked for again, but not without a pause: closing takes others a moment.
    /// Broken on purpose: the deadline never behind the end.
    #[test]
    fn the_end_is_not_waited_for_in_a_loop() {
        let now = Instant::now();
        let mut drain = Drain::new(now, ms(1000));
        for late in [1000, 1003, 1500] {
            assert_eq!(drain.due(now + ms(late), 5), 5);
            assert_eq!(drain.deadline(5), now + ms(late) + BATCH_MIN);
        }
    }
}
