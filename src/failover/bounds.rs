//! How long two nodes may hold an address, and how long nobody does: computed from the configuration.
//!
//! Pure arithmetic on [`Timers`]. `weir check` prints it, `docs/failover.md` has the table for the defaults, and the simulation
//! holds every run against the same numbers. What they rest on:
//!
//! * a message between nodes that reach each other takes 5 ms at most, a thread that is due runs 10 ms later at most ([`HEARING`] is
//!   two crossings and two such delays, with as much again);
//! * the kernel does at once what it is asked. While something holds its lock for changes (RTNL), all of it is late by as much;
//! * clocks of different nodes run equally fast, within `vote_hold` in `dead_after`.

use std::fmt;
use std::time::Duration;

use super::timers::{STRICT_LATENESS, Timers};

/// What two nodes that hear each other need to act upon what the other does.
pub const HEARING: Duration = Duration::from_millis(40);

/// How long a failure, or a planned move, may take at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// What happens, in words for a table.
    pub case: &'static str,
    /// For how long two nodes may hold the address at once; `None` = until the fault is mended.
    pub both: Option<Duration>,
    /// How long it may be until another node holds it, if one can.
    pub until_held: Duration,
}

/// Every case, for these times. `quorum` > 1 means that a majority is needed.
pub fn bounds(timers: &Timers, startup_delay: Duration, quorum: u32, witnesses: usize) -> Vec<Bound> {
    let majority = quorum > 1;
    let detected = timers.detection(majority) + HEARING;
    let row = |case, both, until_held| Bound { case, both, until_held };
    let zero = Duration::ZERO;
    let mut rows = vec![
        row("a planned move", Some(HEARING), zero),
        row("the process ends", Some(HEARING), 2 * HEARING),
        row("the process stands still", Some(HEARING), detected),
        row(
            "process and keeper stand still",
            Some(timers.frozen_bound() + HEARING),
            detected,
        ),
        row("the holder is cut off", majority.then_some(HEARING), detected),
        row(
            "a planned move is cut off",
            majority.then(|| broken_move(timers)),
            detected,
        ),
        row("a machine goes on that had stood still", Some(thawed(timers)), zero),
        row("the network is whole again", Some(healed(timers)), zero),
        row("a node starts, and hears others", Some(zero), timers.listen + HEARING),
        row(
            "a node starts, and hears nobody",
            Some(zero),
            startup_delay.max(timers.listen) + HEARING,
        ),
    ];
    if witnesses > 0 {
        // It answers everybody, and remembers nothing.
        rows.push(row(
            "the network splits otherwise than before",
            Some(shifted(timers)),
            detected,
        ));
        rows.push(row(
            "the nodes lose each other, all reach the witnesses",
            None,
            detected,
        ));
    }
    rows
}

/// The same with a strict arbiter: never both, and every claim that is not told of the release waits for the kernels.
pub fn strictly(rows: Vec<Bound>, timers: &Timers) -> Vec<Bound> {
    let wait = timers.lease + STRICT_LATENESS;
    let row = |row: Bound| Bound {
        both: Some(Duration::ZERO),
        until_held: match row.until_held {
            Duration::ZERO => HEARING,
            length => length + wait,
        },
        ..row
    };
    rows.into_iter().map(row).collect()
}

/// A planned move that is broken off: the old holder waits for the new one, and then for its votes.
pub fn broken_move(timers: &Timers) -> Duration {
    timers.handover + timers.dead_after + HEARING
}

/// A machine or a keeper that goes on clears up when it hears its peers.
pub fn thawed(timers: &Timers) -> Duration {
    timers.dead_after + timers.beat + HEARING
}

/// Connections are made anew once a beat.
pub fn healed(timers: &Timers) -> Duration {
    timers.beat * 3 / 2 + Duration::from_millis(30) + HEARING
}

/// The answer of a witness counts for `dead_after`, whoever else it answers meanwhile.
pub fn shifted(timers: &Timers) -> Duration {
    timers.dead_after + HEARING
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.case)?;
        match self.both {
            None => f.write_str("two nodes hold the address until it is mended")?,
            Some(both) if both.is_zero() => f.write_str("never two holders")?,
            Some(both) => write!(f, "two nodes hold the address for {} ms at most", both.as_millis())?,
        }
        match self.until_held.is_zero() {
            true => f.write_str(", never nobody"),
            false => write!(f, ", held again within {} ms", self.until_held.as_millis()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table in docs/failover.md.
    #[test]
    fn the_defaults() {
        let ms = Duration::from_millis;
        let timers = Timers::derive(ms(50), ms(250));
        let of = |quorum, witnesses, case: &str| {
            let all = bounds(&timers, ms(3_000), quorum, witnesses);
            let bound = all.into_iter().find(|b| b.case == case).unwrap();
            (bound.both.map(|d| d.as_millis()), bound.until_held.as_millis())
        };
        let rows = [
            (1, 0, "a planned move", (Some(40), 0)),
            (2, 0, "the process ends", (Some(40), 80)),
            (1, 0, "the process stands still", (Some(40), 315)),
            (2, 0, "the process stands still", (Some(40), 365)),
            (2, 0, "process and keeper stand still", (Some(2_740), 365)),
            (1, 0, "the holder is cut off", (None, 315)),
            (2, 0, "the holder is cut off", (Some(40), 365)),
            (2, 0, "a planned move is cut off", (Some(540), 365)),
            (1, 0, "the network is whole again", (Some(145), 0)),
            (1, 0, "a node starts, and hears nobody", (Some(0), 3_040)),
            (2, 1, "the network splits otherwise than before", (Some(290), 365)),
            (2, 1, "the nodes lose each other, all reach the witnesses", (None, 365)),
        ];
        for (quorum, witnesses, case, want) in rows {
            assert_eq!(of(quorum, witnesses, case), want, "{case}");
        }
        let said = bounds(&timers, ms(3_000), 1, 0)[4].to_string();
        assert_eq!(
            said,
            "the holder is cut off: two nodes hold the address until it is mended, held again within 315 ms"
        );
    }
}
