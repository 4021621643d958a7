//! What each unit does next.

use super::*;

/// What was asked of the keeper is asked again after this time, until it is answered.
pub(super) const ASK_AGAIN: Duration = Duration::from_millis(200);
/// A keeper that is alive but has not done it by then will not: an address that cannot be installed is given up for a
/// while, and a keeper that does not remove one is reset.
pub(super) const ASK_MAX: Duration = Duration::from_secs(5);
/// How long a planned move may take whose successor is at it.
const HANDOVER_MAX: Duration = Duration::from_secs(2);

impl Table {
    /// Bookkeeping that follows from the view alone.
    pub(super) fn observe(&mut self, u: UnitIx) {
        let now = self.now;
        let disputed = self.disputed(u);
        self.units[u].disputed = disputed;
        let began = self.units[u].began;
        // A closed port is an answer too: the way there is open. But what is heard after a freeze may have waited.
        let frozen_until = self.frozen_until;
        let gone = |p: &Peer| p.gone.filter(|at| *at >= frozen_until);
        let heard = |p: &Peer| p.proved.max(gone(p)).is_some_and(|at| at >= began);
        let heard = self.peers.iter().any(heard);
        let holder = self.holders(u).map(|(n, _)| n).min_by_key(|n| self.rank(u, *n));
        let unit = &mut self.units[u];
        if heard {
            unit.heard.get_or_insert(now);
        }
        if unit.state == State::Active {
            unit.last_holder = None;
            if now.saturating_sub(unit.since) > micros(Duration::from_secs(60)) {
                unit.troubles = 0;
            }
        } else if holder.is_some() {
            unit.last_holder = holder;
        }
        unit.snubbed.retain(|(_, until)| *until > now);
        if unit.trouble.as_ref().is_some_and(|t| t.until <= now) {
            unit.trouble = None;
        }
        let ready = self.fit(u).0 == Fit::Ready;
        let unit = &mut self.units[u];
        unit.ready_since = ready.then(|| unit.ready_since.unwrap_or(now));
    }

    /// Returns whether the unit's state or intent may have changed.
    pub(super) fn decide(&mut self, u: UnitIx, out: &mut Vec<Action>) -> bool {
        let before = (self.units[u].state, self.units[u].yields.clone());
        match self.units[u].state {
            State::Standby => self.decide_standby(u, out),
            State::Active if self.units[u].is_shared() => self.decide_shared(u, out),
            State::Claiming => self.decide_claiming(u, out),
            State::Active => self.decide_active(u, out),
            State::Releasing | State::Fault => self.decide_releasing(u, out),
        }
        before != (self.units[u].state, self.units[u].yields.clone())
    }

    fn decide_standby(&mut self, u: UnitIx, out: &mut Vec<Action>) {
        let Some(reason) = self.may_claim(u) else { return };
        let now = self.now;
        let unit = &mut self.units[u];
        unit.insist = matches!(reason, Reason::Silent(_) | Reason::Gone(_));
        unit.state = State::Claiming;
        unit.reason = reason;
        unit.yields = None;
        unit.rivals = false;
        unit.asked = (now, now);
        out.push(Action::Prove);
        out.extend(unit.members.iter().map(|m| Action::Hold { vip: m.vip }));
    }

    fn decide_claiming(&mut self, u: UnitIx, out: &mut Vec<Action>) {
        let (fit, why) = self.fit(u);
        if fit < Fit::Ready {
            return self.release(u, why, out);
        }
        let shared = self.units[u].is_shared();
        if let Some(rival) = self.better_rival(u).filter(|_| !shared) {
            return self.release(u, Reason::Rival(rival), out);
        }
        if let Err(why) = self.backed(u) {
            return self.release(u, why, out);
        }
        if self.overdue(u) {
            let missing = self.units[u].members.iter().find(|m| !m.installed).map(|m| m.vip);
            let why = format!("the keeper has not installed it within {ASK_MAX:?}");
            if let Some(vip) = missing {
                self.trouble(vip, why, out);
                // It may still do it.
                out.push(Action::Release { vip });
            }
            return;
        }
        self.ask_to_hold(u, out);
    }

    fn decide_releasing(&mut self, u: UnitIx, out: &mut Vec<Action>) {
        if self.overdue(u) {
            self.units[u].asked = (self.now, self.now);
            let vip = self.units[u].members[0].vip;
            return out.push(Action::Distrust { vip });
        }
        if self.is_time_to_ask(u) {
            let leaving = self.units[u].members.iter().filter(|m| m.leaving);
            out.extend(leaving.map(|m| Action::Release { vip: m.vip }));
        }
    }

    fn ask_to_hold(&mut self, u: UnitIx, out: &mut Vec<Action>) {
        if self.units[u].members.iter().any(|m| !m.installed) && self.is_time_to_ask(u) {
            let missing = self.units[u].members.iter().filter(|m| !m.installed);
            out.extend(missing.map(|m| Action::Hold { vip: m.vip }));
        }
    }

    fn is_time_to_ask(&mut self, u: UnitIx) -> bool {
        let (first, last) = self.units[u].asked;
        let due = self.now >= last + micros(ASK_AGAIN);
        if due {
            self.units[u].asked = (first, self.now);
        }
        due
    }

    fn overdue(&self, u: UnitIx) -> bool {
        self.now >= self.units[u].asked.0 + micros(ASK_MAX)
    }

    fn decide_active(&mut self, u: UnitIx, out: &mut Vec<Action>) {
        // A planned move that has succeeded, or a conflict that we lose.
        if let Some(to) = self.units[u].yields.as_ref().map(|y| y.to)
            && self.holders(u).any(|(n, phase)| n == to && phase == Phase::Held)
        {
            return self.release(u, Reason::To(to), out);
        }
        if let Some(rival) = self.better_rival(u) {
            return self.release(u, Reason::Rival(rival), out);
        }
        // A conflict that we win: the neighbours must hear us, now and when the rival has gone.
        let successor = self.units[u].yields.as_ref().map(|y| y.to);
        let yielding_to_us = Phase::Yielding(self.setup.me);
        let others: Vec<Phase> = self
            .holders(u)
            .filter(|(n, _)| Some(*n) != successor)
            .map(|(_, phase)| phase)
            .collect();
        let contested = others.iter().any(|p| ![Phase::Leaving, yielding_to_us].contains(p));
        let unit = &mut self.units[u];
        if (contested && !unit.rivals) || (unit.rivals && others.is_empty()) {
            let announce = |m: &Member| Action::Announce {
                vip: m.vip,
                insist: false,
            };
            out.extend(unit.members.iter().map(announce));
        }
        unit.rivals = !others.is_empty();

        // Reasons to let go at once.
        if unit.members.iter().any(|m| !m.link_up) {
            return self.release(u, Reason::LinkDown, out);
        }
        if successor.is_none()
            && !self.excused(u)
            && let Err(why) = self.backed(u)
        {
            return self.release(u, why, out);
        }

        // Reasons to hand over.
        let (fit, why) = self.fit(u);
        if let Some(y) = self.units[u].yields.clone() {
            if self.still_willing(u, &y, fit) {
                return;
            }
            self.take_back(u, y.to);
        }
        if let Some(to) = self.successor(u, fit) {
            if self.strict() {
                return self.release(u, Reason::To(to), out);
            }
            self.units[u].yields = Some(Yield {
                to,
                until: self.now + micros(self.setup.timers.handover),
                finish: self.now + micros(self.setup.timers.handover.max(HANDOVER_MAX)),
            });
        } else if self.stopping || !self.local.serving || self.lacks().is_some() {
            // Nobody to hand it to, and nothing behind it: an address without a service is worse than none.
            self.release(u, why, out);
        } else {
            self.ask_to_hold(u, out);
        }
    }

    /// An address that every node holds which serves: there is nobody to hand it to, and nothing to wait for.
    fn decide_shared(&mut self, u: UnitIx, out: &mut Vec<Action>) {
        let (fit, why) = self.fit(u);
        match fit {
            Fit::Ready => self.ask_to_hold(u, out),
            _ => self.release(u, why, out),
        }
    }

    /// Whether the successor may still take it.
    fn still_willing(&self, u: UnitIx, y: &Yield, fit: Fit) -> bool {
        let Some(claim) = self.claim(y.to, u) else { return false };
        let at_it = claim.phase == Phase::Claiming && self.now < y.finish;
        let wanted = fit < Fit::Ready || self.outranks(u, y.to);
        claim.fit == Fit::Ready && self.fresh(y.to) && wanted && (self.now < y.until || at_it)
    }

    /// A planned move has failed. The votes went with it and need a moment to come back. That is excused while the successor is
    /// fresh: as long as we are to it, it does not take the address for our silence.
    fn take_back(&mut self, u: UnitIx, from: NodeIx) {
        let timers = &self.setup.timers;
        let pause = 4 * micros(timers.handover);
        let excuse = micros(timers.dead_after);
        let now = self.now;
        let unit = &mut self.units[u];
        unit.yields = None;
        unit.snubbed.push((from, now + pause));
        unit.excused = Some((from, now + excuse));
    }

    fn excused(&self, u: UnitIx) -> bool {
        self.units[u]
            .excused
            .is_some_and(|(by, until)| self.now < until && self.fresh(by))
    }

    /// The node to hand the address to, if it should leave.
    fn successor(&self, u: UnitIx, fit: Fit) -> Option<NodeIx> {
        (0..self.peers.len())
            .filter(|n| {
                self.claim(*n, u).is_some_and(|c| {
                    c.fit == Fit::Ready
                        && c.phase == Phase::Free
                        && self.fresh(*n)
                        && (fit < Fit::Ready || (c.wants && self.outranks(u, *n)))
                })
            })
            .filter(|n| !self.units[u].snubbed.iter().any(|(s, _)| s == n))
            .min_by_key(|n| self.rank(u, *n))
    }

    pub(super) fn release(&mut self, u: UnitIx, reason: Reason, out: &mut Vec<Action>) {
        self.release_but(u, None, reason, out);
    }

    /// Lets every address of the unit go, apart from one that the keeper itself has said to be gone.
    pub(super) fn release_but(&mut self, u: UnitIx, gone: Option<VipIx>, reason: Reason, out: &mut Vec<Action>) {
        let now = self.now;
        let unit = &mut self.units[u];
        unit.state = State::Releasing;
        unit.reason = reason;
        unit.yields = None;
        unit.rivals = false;
        unit.excused = None;
        unit.asked = (now, now);
        for member in unit.members.iter_mut().filter(|m| Some(m.vip) != gone) {
            member.leaving = true;
            out.push(Action::Release { vip: member.vip });
        }
    }

    /// Rests once every address of the unit is gone.
    pub(super) fn settle(&mut self, u: UnitIx) {
        let unit = &mut self.units[u];
        if unit.state == State::Releasing && !unit.members.iter().any(|m| m.leaving) {
            unit.state = State::Standby;
            unit.members.iter_mut().for_each(Member::forget);
        }
    }

    /// Why we may claim now, if we may.
    fn may_claim(&self, u: UnitIx) -> Option<Reason> {
        let reason = self.would_claim(u)?;
        let quiet_until = self.strictly_quiet_until(u).max(self.keeper_clears_until(u));
        let backed = self.backed_to_claim(u).is_ok() && self.now >= quiet_until;
        let may = backed || self.units[u].is_shared();
        may.then_some(reason)
    }

    /// Why we would claim now, had we the votes.
    pub(super) fn would_claim(&self, u: UnitIx) -> Option<Reason> {
        if self.fit(u).0 < Fit::Ready {
            return None;
        }
        if self.units[u].is_shared() {
            return Some(Reason::Serves);
        }
        let me = self.setup.me;
        let mut from = None;
        for (n, phase) in self.holders(u) {
            match phase {
                // An old offer may have been taken back.
                Phase::Yielding(to) if to == me && self.fresh(n) => from = Some(n),
                _ => return None,
            }
        }
        if from.is_none() && (self.fading(u).is_some() || self.best(u) != Some(me)) {
            return None;
        }
        Some(match (from, self.units[u].last_holder) {
            (Some(n), _) => Reason::From(n),
            (None, Some(n)) if self.peers[n].gone.is_some() => Reason::Gone(n),
            (None, Some(n)) if !self.alive(n) => Reason::Silent(n),
            _ => Reason::First,
        })
    }

    /// A holder that comes before us in the order and does not yield to us. What is not fresh may long be over.
    fn better_rival(&self, u: UnitIx) -> Option<NodeIx> {
        let successor = self.units[u].yields.as_ref().map(|y| y.to);
        self.holders(u)
            .filter(|(n, phase)| {
                self.outranks(u, *n)
                    && Some(*n) != successor
                    && self.fresh(*n)
                    && ![Phase::Leaving, Phase::Yielding(self.setup.me)].contains(phase)
            })
            .map(|(n, _)| n)
            .next()
    }
}
