//! What survives a reload and an upgrade.

use super::*;

impl Table {
    /// Takes over what `old` knew, after the configuration changed.
    ///
    /// `vips`, `nodes`, `witnesses` and `tracks` give, for each index here, the index there. Addresses that `old` held and that
    /// have no index here are the caller's to release.
    pub fn carry(
        &mut self,
        old: &Table,
        vips: &[Option<VipIx>],
        nodes: &[Option<NodeIx>],
        witnesses: &[Option<usize>],
        tracks: &[Option<usize>],
    ) {
        let forward = |n: NodeIx| nodes.iter().position(|o| *o == Some(n));
        (self.epoch, self.now, self.next_beat) = (old.epoch, old.now, old.now);
        (self.number, self.sent, self.born) = (old.number, old.sent.clone(), old.born);
        (self.frozen_until, self.frozen_ms) = (old.frozen_until, old.frozen_ms);
        (self.apart, self.rejoins_until) = (old.apart, old.rejoins_until);
        self.scores_since = old.scores_since;
        self.local = old.local.clone();
        self.keeper = old.keeper.clone();
        self.stopping = old.stopping;
        // Votes that are on their way were promised for as long as we said then.
        let short = micros(old.setup.timers.dead_after);
        let (before, until) = old.short_votes;
        let short = if old.now < until { short.min(before) } else { short };
        self.short_votes = (short, old.now + micros(self.setup.timers.dead_after));
        for (new, from) in nodes.iter().enumerate() {
            let Some(was) = from.and_then(|from| old.peers.get(from)) else {
                continue;
            };
            let claims = vips.iter().map(|from| {
                let Some(mut claim) = from.and_then(|from| was.claims.get(from)).copied() else {
                    return Claim::NONE;
                };
                claim.backs = claim.backs.and_then(forward);
                if let Phase::Yielding(n) = claim.phase {
                    claim.phase = forward(n).map_or(Phase::Held, Phase::Yielding);
                }
                claim
            });
            self.peers[new] = Peer {
                claims: claims.collect(),
                ..was.clone()
            };
        }
        for (new, from) in witnesses.iter().enumerate() {
            self.witnesses[new] = from.and_then(|from| old.witnesses.get(from).copied()).flatten();
        }
        for (new, from) in tracks.iter().enumerate() {
            // What is new is taken to hold until the answers say otherwise: writing it down moves nothing.
            self.tracks[new] = from.and_then(|from| old.tracks.get(from).copied()).unwrap_or(true);
        }
        self.carry_arbiter(old, vips);
        for u in 0..self.units.len() {
            self.carry_unit(u, old, vips, forward);
        }
    }

    fn carry_unit(
        &mut self,
        u: UnitIx,
        old: &Table,
        vips: &[Option<VipIx>],
        forward: impl Fn(NodeIx) -> Option<NodeIx> + Copy,
    ) {
        let was_in = |vip: VipIx| {
            let from = vips.get(vip).copied().flatten()?;
            old.unit_of.get(from).map(|unit| (from, &old.units[*unit]))
        };
        let known: Vec<&Unit> = self.units[u]
            .members
            .iter()
            .filter_map(|m| was_in(m.vip).map(|(_, unit)| unit))
            .collect();
        // The one that holds most speaks for those that were put together.
        let order = |state: State| match state {
            State::Active => 3,
            State::Claiming => 2,
            State::Releasing => 1,
            State::Standby | State::Fault => 0,
        };
        let Some(lead) = known.iter().max_by_key(|unit| order(unit.state)) else {
            // Peers may hold it already, and have not been heard on it.
            self.units[u].begin(old.now);
            return;
        };
        let members = self.units[u].members.iter().map(|m| {
            let was = was_in(m.vip).and_then(|(from, unit)| unit.members.iter().find(|o| o.vip == from));
            Member {
                vip: m.vip,
                ..was.unwrap_or(m).clone()
            }
        });
        let candidates: Option<Vec<u64>> = known.iter().map(|unit| unit.candidate_since).collect();
        let vote = lead.vote.and_then(|vote| {
            Some(Vote {
                to: forward(vote.to)?,
                ..vote
            })
        });
        self.units[u] = Unit {
            members: members.collect(),
            rule: self.units[u].rule.clone(),
            mark: self.units[u].mark,
            reason: lead.reason.renamed(forward),
            yields: None,
            snubbed: Vec::new(),
            last_holder: lead.last_holder.and_then(forward),
            vote,
            backs: lead.backs.and_then(forward),
            candidate_since: candidates.and_then(|all| all.into_iter().max()),
            // A planned move that was under way has been broken off.
            excused: match &lead.yields {
                Some(y) => forward(y.to).map(|to| (to, old.now + micros(self.setup.timers.dead_after))),
                None => lead.excused.and_then(|(by, until)| Some((forward(by)?, until))),
            },
            demoted: known.iter().any(|unit| unit.demoted),
            ..(*lead).clone()
        };
    }
}
