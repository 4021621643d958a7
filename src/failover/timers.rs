//! Periods and patiences, and the inequalities that make them safe.
//!
//! The user chooses two numbers, `beat` and `dead_after`; everything else follows from them, so that a safe pair gives a
//! safe set. The inequalities are checked on the *whole* set all the same: `weir check` prints what is broken, and the
//! simulation breaks them one by one and must notice.
//!
//! ```text
//!  last proof, last beat            keeper removes          peers may claim
//!        |---------------- keeper_patience ---|                   |
//!        |----------------------- dead_after ---------------------|
//!        |--beat--|--beat--|--beat--|--beat--|
//! ```

use std::fmt;
use std::time::Duration;

/// The kernel removes an address at most this long after its valid lifetime has passed (measured: 0.0 to 0.6 s late).
pub const KERNEL_LATENESS: Duration = Duration::from_millis(700);

/// With a strict arbiter: the kernel removes an address at most this long after its lifetime has passed. More than has been
/// measured ([`KERNEL_LATENESS`]), for a kernel that is busy.
pub const STRICT_LATENESS: Duration = Duration::from_secs(1);

/// Shortest `beat` that an ordinary scheduler keeps.
pub const BEAT_MIN: Duration = Duration::from_millis(10);

/// Longest `dead_after`; beyond it a lease would outlive any useful failover.
pub const DEAD_AFTER_MAX: Duration = Duration::from_secs(60);

/// Every period and patience of the failover machinery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Timers {
    /// Period of beats to every node.
    pub beat: Duration,
    /// Silence after which a node counts as dead.
    pub dead_after: Duration,
    /// Period at which the machine is stepped and life is proved to the keeper.
    pub tick: Duration,
    /// How long the keeper holds addresses without a proof of life.
    pub keeper_patience: Duration,
    /// A gap between our own steps from which on we assume that we were frozen.
    pub doubt: Duration,
    /// How long a node that starts, or was frozen, only listens.
    pub listen: Duration,
    /// How much longer than `dead_after` a vote stays with a silent holder (used with a quorum).
    pub vote_hold: Duration,
    /// How long both ends of a planned move wait for each other.
    pub handover: Duration,
    /// Valid lifetime of an installed address, whole seconds.
    pub lease: Duration,
    /// Period at which the keeper renews leases.
    pub renew: Duration,
}

impl Timers {
    /// The set that follows from the two configured numbers.
    pub fn derive(beat: Duration, dead_after: Duration) -> Timers {
        let renew = Duration::from_millis(500);
        let tick = beat / 2;
        let keeper_patience = dead_after.saturating_sub(beat);
        // Whole seconds, long enough that a holder whose proofs are merely late never loses the address to the kernel.
        let lease_s = (keeper_patience + renew + tick).as_secs() + 1;
        Timers {
            beat,
            dead_after,
            tick,
            keeper_patience,
            doubt: keeper_patience,
            listen: dead_after + 2 * beat,
            vote_hold: beat,
            handover: dead_after,
            lease: Duration::from_secs(lease_s.max(2)),
            renew,
        }
    }

    /// Every inequality that does not hold.
    pub fn broken(&self) -> Vec<Broken> {
        let rules: [(bool, Broken); 10] = [
            (self.beat >= BEAT_MIN, Broken::BeatTooShort),
            (self.dead_after >= 4 * self.beat, Broken::FewBeats),
            (self.dead_after <= DEAD_AFTER_MAX, Broken::DeadAfterTooLong),
            (2 * self.tick <= self.beat, Broken::SlowTick),
            (
                self.keeper_patience + self.beat <= self.dead_after,
                Broken::KeeperTooPatient,
            ),
            (self.keeper_patience >= 3 * self.beat, Broken::KeeperImpatient),
            (self.doubt <= self.keeper_patience, Broken::NoDoubt),
            (self.listen >= self.dead_after + self.beat, Broken::ListensTooShort),
            (self.vote_hold >= self.beat, Broken::VoteMovesTooSoon),
            (
                self.lease > self.keeper_patience + self.renew
                    && self.lease.subsec_nanos() == 0
                    && self.lease <= self.dead_after + Duration::from_secs(2),
                Broken::LeaseLength,
            ),
        ];
        rules
            .into_iter()
            .filter(|(holds, _)| !holds)
            .map(|(_, broken)| broken)
            .collect()
    }

    /// Longest time from a holder's last sign of life until the next one claims, when it simply went silent.
    pub fn detection(&self, with_quorum: bool) -> Duration {
        let hold = if with_quorum { self.vote_hold } else { Duration::ZERO };
        self.dead_after + hold + self.tick
    }

    /// Longest time that a wholly frozen node (main process and keeper) keeps an address in its kernel.
    pub fn frozen_bound(&self) -> Duration {
        self.lease + KERNEL_LATENESS
    }
}

/// An inequality that does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Broken {
    /// `beat` >= 10 ms.
    BeatTooShort,
    /// `dead_after` >= 4 x `beat`: one lost segment and its retransmission are not a death.
    FewBeats,
    /// `dead_after` <= 60 s.
    DeadAfterTooLong,
    /// Two steps fit in a beat.
    SlowTick,
    /// The keeper lets go at least one beat before a peer may claim.
    KeeperTooPatient,
    /// The keeper survives two late proofs.
    KeeperImpatient,
    /// A node notices that it was frozen no later than its keeper does.
    NoDoubt,
    /// A node that joins hears every live holder before it may claim.
    ListensTooShort,
    /// A holder that lost its majority has noticed before the votes go elsewhere.
    VoteMovesTooSoon,
    /// A lease outlives the keeper's patience and one renewal, and little else.
    LeaseLength,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Broken::BeatTooShort => {
                "beat is shorter than 10ms, which no scheduler keeps under load; use 10ms or more (50ms is the default)"
            }
            Broken::FewBeats => {
                "dead_after is less than four beats, so one lost packet could move a VIP; raise dead_after or shorten beat"
            }
            Broken::DeadAfterTooLong => "dead_after is longer than 60s; use 250ms to a few seconds",
            Broken::SlowTick => "the machine is stepped less than twice a beat",
            Broken::KeeperTooPatient => {
                "the keeper would hold an address until after a peer may claim it; dead_after must exceed its patience by one beat"
            }
            Broken::KeeperImpatient => {
                "the keeper would drop an address after fewer than three missed proofs; raise dead_after or shorten beat"
            }
            Broken::NoDoubt => "a frozen node would not notice that its keeper has given the address up",
            Broken::ListensTooShort => {
                "a node that joins would claim before it can have heard the present holder"
            }
            Broken::VoteMovesTooSoon => {
                "votes would move to a new holder before the old one has noticed that it lost its majority"
            }
            Broken::LeaseLength => {
                "the lease must be whole seconds, longer than the keeper's patience plus one renewal, and at most two seconds longer than dead_after"
            }
        })
    }
}

/// How many voters a majority needs; `None` = the automatic choice, which is no quorum below three voters.
///
/// Voters are the nodes and the witnesses.
pub fn quorum(configured: Option<u32>, nodes: usize, witnesses: usize) -> u32 {
    let voters = (nodes + witnesses) as u32;
    match configured {
        Some(needed) => needed,
        None if voters >= 3 => voters / 2 + 1,
        None => 1,
    }
}

/// What `weir check` says about the number of voters: errors first (the configuration is refused), then advice.
pub fn quorum_findings(
    configured: Option<u32>,
    nodes: usize,
    witnesses: usize,
    arbiter: bool,
) -> (Vec<String>, Vec<String>) {
    let others = witnesses + usize::from(arbiter);
    let voters = (nodes + others) as u32;
    let needed = quorum(configured, nodes, others);
    let (mut errors, mut advice) = (Vec::new(), Vec::new());
    if needed == 0 {
        errors.push("quorum 0 is no quorum; use auto, or 1 to hold without a majority".into());
    }
    if needed > voters {
        errors.push(format!(
            "quorum {needed} can never be reached: there are only {voters} voters (nodes + witnesses); use auto"
        ));
    }
    if arbiter && needed <= voters / 2 && needed > 0 {
        errors.push(format!(
            "quorum {needed} is not a majority of {voters} voters: an arbiter rules out two holders only with one; use auto"
        ));
    } else if arbiter && voters.is_multiple_of(2) {
        advice.push(format!(
            "{voters} voters, the arbiter among them: an even number stands no more losses than one less; leave out a witness or the arbiter"
        ));
    }
    if arbiter {
        return (errors, advice);
    }
    if nodes == 2 && witnesses == 0 {
        if needed <= 1 {
            advice.push(
                "two nodes without a witness: if the link between them breaks while both live, BOTH hold the VIPs until it \
                 heals; add a witness, or a third node that holds nothing, to rule that out"
                    .into(),
            );
        } else {
            advice.push(
                "two nodes and quorum 2: when either node dies, the other gives its VIPs up too; that is safe, but it is not failover"
                    .into(),
            );
        }
    } else if voters >= 3 && needed >= 1 && needed <= voters / 2 {
        advice.push(format!(
            "quorum {needed} is not a majority of {voters} voters: both halves of a partition may hold the VIPs; use auto"
        ));
    }
    if witnesses > 0 && nodes + witnesses >= 3 && nodes < 3 {
        advice.push(
            "a witness only answers, so it cannot stop both nodes from holding when the link between them breaks but both still \
             reach it; a third weir node that holds nothing can"
                .into(),
        );
    }
    (errors, advice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn the_default_set() {
        let t = Timers::derive(ms(50), ms(250));
        assert_eq!(t.broken(), []);
        assert_eq!(t.keeper_patience, ms(200));
        assert_eq!(t.lease, Duration::from_secs(2));
        assert_eq!(t.frozen_bound(), ms(2700));
    }

    #[test]
    fn what_is_refused() {
        let rows = [
            (5, 250, vec![Broken::BeatTooShort]),
            (50, 150, vec![Broken::FewBeats, Broken::KeeperImpatient]),
            (250, 250, vec![Broken::FewBeats, Broken::KeeperImpatient]),
            (100, 61_000, vec![Broken::DeadAfterTooLong]),
            (50, 200, vec![]),
            (10, 40, vec![]),
            (1000, 4000, vec![]),
        ];
        for (beat, dead, want) in rows {
            assert_eq!(Timers::derive(ms(beat), ms(dead)).broken(), want, "{beat} {dead}");
        }
    }

    #[test]
    fn majorities() {
        let rows = [
            (None, 1, 0, 1),
            (None, 2, 0, 1),
            (None, 2, 1, 2),
            (None, 3, 0, 2),
            (None, 5, 0, 3),
            (None, 2, 2, 3),
            (Some(2), 2, 0, 2),
        ];
        for (configured, nodes, witnesses, want) in rows {
            assert_eq!(quorum(configured, nodes, witnesses), want);
        }
        assert!(quorum_findings(None, 2, 0, false).1[0].contains("BOTH"));
        assert_eq!(quorum_findings(Some(4), 2, 1, false).0.len(), 1);
        assert_eq!(quorum_findings(Some(2), 4, 1, false).1.len(), 1);
        assert_eq!(quorum_findings(None, 3, 0, false), (vec![], vec![]));
        assert_eq!(quorum_findings(None, 2, 0, true), (vec![], vec![]));
        assert!(quorum_findings(Some(1), 2, 0, true).0[0].contains("not a majority of 3"));
        assert_eq!(quorum_findings(None, 3, 0, true).1.len(), 1);
    }

    proptest! {
        /// Two numbers that pass the user-facing rules give a set in which nothing else is broken.
        #[test]
        fn a_safe_pair_gives_a_safe_set(beat in 10u64..2_000, factor in 4u64..20, extra in 0u64..50) {
            let dead = (beat * factor + extra).min(60_000);
            prop_assume!(dead >= 4 * beat);
            prop_assert_eq!(Timers::derive(ms(beat), ms(dead)).broken(), vec![]);
        }
    }
}
