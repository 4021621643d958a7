//! What people see.

use super::*;
use crate::failover::words::Lack;

impl Table {
    /// One address as shown.
    pub fn vip(&self, vip: VipIx) -> VipView {
        let u = self.unit_of[vip];
        let unit = &self.units[u];
        let holder = match unit.state {
            State::Active => Some(self.setup.me),
            _ => self
                .holders(u)
                .filter(|(_, phase)| *phase != Phase::Claiming)
                .map(|(n, _)| n)
                .min_by_key(|n| self.rank(u, *n)),
        };
        let nobody = holder.is_none() && unit.state == State::Standby && self.holders(u).next().is_none();
        VipView {
            state: unit.shown,
            holder,
            since: Duration::from_micros(self.now - unit.since),
            reason: self.reason(u),
            demoted: unit.demoted,
            nobody: nobody.then(|| self.plight(u)),
        }
    }

    /// For every node, what keeps it from holding the address; `None` = it is not heard.
    fn plight(&self, u: UnitIx) -> Vec<(NodeIx, Option<Lack>)> {
        (0..self.peers.len())
            .map(|n| {
                let lacks = match n == self.setup.me {
                    true => Some(self.fit(u).1.lack()),
                    false => self.claim(n, u).map(|c| c.lacks),
                };
                (n, lacks)
            })
            .collect()
    }

    /// One node as shown; this node is alive by definition.
    pub fn node(&self, n: NodeIx) -> NodeView {
        let last = self.peers[n].heard;
        NodeView {
            alive: n == self.setup.me || self.alive(n),
            last_beat: last.map(|at| Duration::from_micros(self.now - at)),
            mismatch: self.mismatch(n),
        }
    }

    /// What a live peer is configured with that differs from here.
    fn mismatch(&self, n: NodeIx) -> Option<String> {
        if !self.alive(n) {
            return None;
        }
        let (peer, timers) = (&self.peers[n], &self.setup.timers);
        let ms = |us: At| us / 1_000;
        let mut says = Vec::new();
        if peer.beat != micros(timers.beat) {
            says.push(format!(
                "beat is {} ms there, {} ms here",
                ms(peer.beat),
                timers.beat.as_millis()
            ));
        }
        if peer.dead_after != micros(timers.dead_after) {
            let (there, here) = (ms(peer.dead_after), timers.dead_after.as_millis());
            says.push(format!("dead_after is {there} ms there, {here} ms here"));
        }
        let marks = |m: &Member, unit: &Unit| peer.claims[m.vip].rules != unit.mark;
        let differs = self
            .units
            .iter()
            .filter(|u| u.members.iter().any(|m| marks(m, u)))
            .count();
        if differs > 0 {
            says.push(format!(
                "`prefer`, the group or the weights in `track` differ for {differs} addresses"
            ));
        }
        if says.is_empty() && peer.settings != self.settings {
            says.push("quorum, witnesses, nodes, or what is said of the addresses differs".into());
        }
        (!says.is_empty()).then(|| says.join("; "))
    }

    fn reason(&self, u: UnitIx) -> Reason {
        let unit = &self.units[u];
        let (fit, why) = self.fit(u);
        match unit.state {
            State::Active if fit < Fit::Ready => why,
            State::Active | State::Claiming | State::Releasing => unit.reason.clone(),
            State::Standby | State::Fault => {
                if fit <= Fit::Soon || unit.is_shared() {
                    return why;
                }
                if let Some((n, _)) = self.holders(u).min_by_key(|(n, _)| self.rank(u, *n)) {
                    return Reason::HeldBy(n);
                }
                match self.best(u) {
                    _ if fit < Fit::Ready => why,
                    Some(n) if n != self.setup.me => Reason::LeftTo(n),
                    _ => match self.backed(u) {
                        Err(why) => self.arbitration(u).unwrap_or(why),
                        Ok(()) if self.now < self.strictly_quiet_until(u) => Reason::Quiet,
                        Ok(()) => Reason::Waiting,
                    },
                }
            }
        }
    }

    fn shown(&self, u: UnitIx) -> State {
        match self.units[u].state {
            State::Standby => match self.fit(u).1 {
                Reason::Keeper(_) | Reason::Fault(_) | Reason::LinkDown => State::Fault,
                _ => State::Standby,
            },
            other => other,
        }
    }

    pub(super) fn show(&mut self, u: UnitIx, out: &mut Vec<Action>) {
        let to = self.shown(u);
        let from = self.units[u].shown;
        if to == from {
            return;
        }
        let reason = match (from, to) {
            // Why it went is more telling than who has it now.
            (State::Releasing, State::Standby) => self.units[u].reason.clone(),
            _ => self.reason(u),
        };
        let now = self.now;
        let unit = &mut self.units[u];
        unit.shown = to;
        unit.since = now;
        out.extend(unit.members.iter().map(|m| Action::Transition {
            vip: m.vip,
            from,
            to,
            reason: reason.clone(),
        }));
    }
}
