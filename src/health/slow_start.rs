//! How much a returning backend gets: a linear ramp from almost nothing to its whole weight.
//!
//! Shares are in 1/1024ths, as `balance::Shares` takes them. A ramp moves in at most [`STEPS`] steps, so that a snapshot
//! need not be published for every connection.

use std::time::{Duration, Instant};

/// The share of a backend that does not ramp.
pub const WHOLE: u32 = 1024;

/// Steps of a ramp.
pub const STEPS: u32 = 128;

/// Shortest step: shorter ramps have fewer.
pub const STEP_MIN: Duration = Duration::from_millis(50);

fn step(ramp: Duration) -> Duration {
    (ramp / STEPS).max(STEP_MIN)
}

/// Share at `now` of a backend that returned at `since` and ramps for `ramp`; never 0.
pub fn share(since: Instant, ramp: Duration, now: Instant) -> u32 {
    let elapsed = now.saturating_duration_since(since);
    if elapsed >= ramp {
        return WHOLE;
    }
    ((elapsed.as_nanos() * u128::from(WHOLE) / ramp.as_nanos()) as u32).max(1)
}

/// When the share should be looked at again; `None` = it is whole.
pub fn next_step(since: Instant, ramp: Duration, now: Instant) -> Option<Instant> {
    let elapsed = now.saturating_duration_since(since);
    if elapsed >= ramp {
        return None;
    }
    let done = elapsed.as_nanos() / step(ramp).as_nanos();
    let next = step(ramp) * (done as u32 + 1);
    Some(since + next.min(ramp))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAMP: Duration = Duration::from_secs(10);

    #[test]
    fn the_ramp_is_linear() {
        let since = Instant::now();
        // ms since the return, share
        for (at, wanted) in [
            (0, 1),
            (1, 1),
            (2500, 256),
            (5000, 512),
            (9999, 1023),
            (10_000, 1024),
            (99_999, 1024),
        ] {
            assert_eq!(
                share(since, RAMP, since + Duration::from_millis(at)),
                wanted,
                "at {at} ms"
            );
        }
        assert_eq!(share(since, Duration::ZERO, since), WHOLE);
    }

    /// Following `next_step` visits every step, ends at the whole share and always moves on.
    /// Broken on purpose: `next` without `+ 1`.
    #[test]
    fn steps_lead_to_the_end() {
        for ramp in [
            Duration::from_millis(10),
            Duration::from_secs(1),
            RAMP,
            Duration::from_secs(3600),
        ] {
            let since = Instant::now();
            let (mut now, mut last, mut steps) = (since, share(since, ramp, since), 0);
            while let Some(next) = next_step(since, ramp, now) {
                assert!(next > now);
                now = next;
                let share = share(since, ramp, now);
                assert!(
                    share >= last && share - last <= WHOLE.div_ceil((ramp.as_millis() as u32 / 50).clamp(1, STEPS)) + 1
                );
                (last, steps) = (share, steps + 1);
            }
            assert_eq!((last, now), (WHOLE, since + ramp));
            assert!(steps <= STEPS + 1, "{steps}");
        }
    }
}
