//! The arbiter among the voters, and what `strict` adds.
//!
//! # When it is asked
//! While the nodes hear each other their own votes suffice, and nothing is asked of it. When the votes of others will not last
//! for another half of `dead_after`, and one more would do, the arbiter's is wanted: so whoever holds has asked before the last
//! vote of a peer ends. Another node asks after that, because it keeps its word to a silent holder for longer than the
//! holder counts on it. A vote that would not make a majority is not asked for: somebody else may need it.
//!
//! # Strict
//! A node that stands still, keeper and all, cannot let go; its kernel does, when the lease has run out. Votes may have moved long
//! before. With `strict` nothing is claimed before every kernel has had that time, unless the others have just said that theirs
//! does not have it; and planned moves break before they make.

use super::*;
use crate::failover::arbiter::{View, Voter, Wish};
use crate::failover::bounds::HEARING;
use crate::failover::timers::{STRICT_LATENESS, Timers};

impl Table {
    /// Until when the keeper of a holder whose process has ended may still be about its work: it is quick, but on a busy machine our
    /// claim can be quicker, and who has an arbiter wants one holder rather than some milliseconds.
    pub(super) fn keeper_clears_until(&self, u: UnitIx) -> At {
        let holder = self.units[u].last_holder.filter(|_| self.arbiter.is_some());
        let ended = holder.and_then(|n| self.peers[n].gone);
        ended.map_or(0, |at| at + micros(HEARING))
    }

    /// Says what is wanted of the arbiter, and puts the questions that are due.
    pub(super) fn consult(&mut self, out: &mut Vec<Action>) {
        if self.arbiter.is_none() {
            return;
        }
        let wishes: Vec<Wish> = (0..self.units.len()).map(|u| self.wish_for_arbiter(u)).collect();
        let Some(voter) = &mut self.arbiter else { return };
        for (u, wish) in wishes.into_iter().enumerate() {
            voter.wish(self.now, u, wish);
        }
        let mut questions = Vec::new();
        voter.step(self.now, &mut questions);
        out.extend(questions.into_iter().map(Action::Ask));
    }

    fn wish_for_arbiter(&self, u: UnitIx) -> Wish {
        let unit = &self.units[u];
        // Not given back before the address is gone.
        let otherwise = match unit.state {
            State::Standby | State::Fault => Wish::Drop,
            _ => Wish::Keep,
        };
        let candidate = match unit.state {
            State::Claiming | State::Active => true,
            State::Standby => self.would_claim(u).is_some(),
            State::Releasing | State::Fault => false,
        };
        if !candidate || unit.backs != Some(self.setup.me) {
            return otherwise;
        }
        let soon = self.now + self.foresight();
        let lasting = self.answers(u).filter(|end| soon < *end).count() as u32;
        let with_ours_and_the_arbiters = lasting + 2;
        match with_ours_and_the_arbiters.cmp(&self.setup.quorum) {
            std::cmp::Ordering::Greater => Wish::Spare,
            std::cmp::Ordering::Equal => Wish::Have,
            std::cmp::Ordering::Less => otherwise,
        }
    }

    /// So long before the votes of others end the arbiter is asked.
    fn foresight(&self) -> At {
        micros(self.setup.timers.dead_after) / 2
    }

    /// When the votes of others will be about to end.
    pub(super) fn asks_arbiter_at(&self, u: UnitIx) -> At {
        let ends = self.answers(u).map(|end| end.saturating_sub(self.foresight()));
        ends.filter(|at| *at > self.now).min().unwrap_or(0)
    }

    /// When the arbiter's vote for us ends.
    pub(super) fn arbitrated(&self, u: UnitIx) -> Option<At> {
        self.arbiter.as_ref()?.counts_until(u)
    }

    /// What stands in the way of a node that only lacks the arbiter's vote.
    pub(super) fn arbitration(&self, u: UnitIx) -> Option<Reason> {
        let voter = self.arbiter.as_ref()?;
        if !matches!(voter.view(self.now, u), View::Asking { .. }) {
            return None;
        }
        Some(Reason::Arbiter(match (voter.up(), voter.taken_by(u)) {
            (Some(Err(why)), _) => why.to_owned(),
            (_, Some(by)) => format!("its vote is {by}'s"),
            _ => "asked".into(),
        }))
    }

    /// Leaves out some numbers of questions.
    pub fn skip_questions(&mut self, some: u32) {
        if let Some(voter) = &mut self.arbiter {
            voter.skip(1 + u64::from(some));
        }
    }

    /// The arbiter as this node sees it.
    pub fn arbiter(&self) -> Option<&Voter> {
        self.arbiter.as_ref()
    }

    /// Whether the arbiter's vote on an address counts for us now.
    pub fn has_arbiters_vote(&self, vip: VipIx) -> bool {
        self.arbitrated(self.unit_of[vip]).is_some_and(|until| self.now < until)
    }

    /// Whether nothing of what the arbiter has given us needs to be given back any more.
    pub fn owes_nothing(&self) -> bool {
        let rests = |voter: &Voter| (0..self.units.len()).all(|u| voter.view(self.now, u) == View::Idle);
        self.arbiter.as_ref().is_none_or(rests)
    }

    /// For each unit the first of its addresses, by which it is known to the arbiter unless it has a name.
    pub fn units(&self) -> impl Iterator<Item = (VipIx, Option<&str>)> {
        self.units
            .iter()
            .map(|unit| (unit.members[0].vip, unit.rule.group.as_deref()))
    }

    /// Votes stay with their units, unless the arbiter is another one.
    pub(super) fn carry_arbiter(&mut self, old: &Table, vips: &[Option<VipIx>]) {
        let place = |table: &Table| table.setup.arbiter.as_ref().map(|a| (a.place.clone(), a.terms));
        if place(self) != place(old) {
            return;
        }
        let (Some(new), Some(was)) = (&mut self.arbiter, &old.arbiter) else {
            return;
        };
        let units: Vec<Option<UnitIx>> = self
            .units
            .iter()
            .map(|unit| {
                let from = vips.get(unit.members[0].vip).copied().flatten()?;
                let then = *old.unit_of.get(from)?;
                // Known to the arbiter by another name, it is another matter.
                let name = |unit: &Unit, first: VipIx| (unit.rule.group.clone(), unit.members[0].vip == first);
                (name(unit, unit.members[0].vip) == name(&old.units[then], from)).then_some(then)
            })
            .collect();
        new.carry(was, &units);
    }

    // ---- strict ----

    pub(super) fn strict(&self) -> bool {
        self.setup.arbiter.as_ref().is_some_and(|a| a.strict)
    }

    /// How long a kernel may have an address that nobody renews: the longest lease that any node gives.
    fn kernel_lifetime(&self) -> At {
        let mut longest = self.setup.timers.lease;
        for peer in &self.peers {
            let times = [peer.beat, peer.dead_after].map(Duration::from_micros);
            longest = longest.max(Timers::derive(times[0], times[1]).lease);
        }
        micros(longest + STRICT_LATENESS)
    }

    /// Until when our own kernel may have what we have lost sight of.
    pub(super) fn lingering(&self) -> At {
        match self.strict() {
            true => self.now + self.kernel_lifetime(),
            false => 0,
        }
    }

    /// A process before this one may have left what its keeper has not swept yet.
    pub(super) fn lingering_from_before(mut self) -> Table {
        let linger = self.lingering();
        for unit in &mut self.units {
            unit.lingers_until = linger;
        }
        self
    }

    /// Before an input is taken: a majority that has ended since the last one has been broken, whatever comes now.
    pub(super) fn lose_majorities(&mut self, units: std::ops::Range<UnitIx>) {
        let strict = self.strict();
        for u in units.filter(|_| strict) {
            if self.backed(u).is_err() {
                self.units[u].backed_since = None;
            }
        }
    }

    pub(super) fn note_majority(&mut self, u: UnitIx) {
        if self.strict() {
            let backed = self.backed(u).is_ok();
            let unit = &mut self.units[u];
            unit.backed_since = backed.then(|| unit.backed_since.unwrap_or(self.now));
        }
    }

    /// With `strict`: until when nothing may be claimed, because another kernel may still have it.
    ///
    /// Whoever held it had a majority then. We have had one since `backed_since`, so nobody else had, and nobody renewed it.
    pub(super) fn strictly_quiet_until(&self, u: UnitIx) -> At {
        if !self.strict() || self.told_free(u) {
            return 0;
        }
        let since = self.units[u].backed_since;
        since.map_or(At::MAX, |since| since + self.kernel_lifetime())
    }

    /// Every other node has just said that its kernel does not have it.
    fn told_free(&self, u: UnitIx) -> bool {
        let me = self.setup.me;
        let mut others = (0..self.peers.len()).filter(|n| *n != me);
        others.all(|n| {
            let claim = self.last_claim(n, u);
            self.fresh(n) && claim.phase == Phase::Free && claim.rules != 0
        })
    }
}
