//! What people are shown.

use super::*;

impl Driver {
    fn arbiter_status(&self) -> Option<ArbiterStatus> {
        let voter = self.table.arbiter()?;
        let ours = |(unit, (vip, _)): (String, (VipIx, _))| self.table.has_arbiters_vote(vip).then_some(unit);
        Some(ArbiterStatus {
            up: voter.up().map(|up| up.is_ok()),
            problem: voter.up().and_then(Result::err).map(str::to_owned),
            votes: self
                .units()
                .into_iter()
                .zip(self.table.units())
                .filter_map(ours)
                .collect(),
        })
    }

    pub(super) fn publish(&mut self, now: Instant) {
        let me = self.plan.identity.me;
        let nodes: Vec<NodeStatus> = (0..self.plan.names.len())
            .map(|n| {
                let view = self.table.node(n);
                let other_secret = !view.alive && self.refusals.signs_otherwise(now, n);
                NodeStatus {
                    name: self.plan.names[n].clone(),
                    alive: view.alive,
                    last_beat_ms: view.last_beat.filter(|_| n != me).map(|d| d.as_millis() as u64),
                    mismatch: match other_secret {
                        true => Some("signs with another secret; see `secret_files`".into()),
                        false => view.mismatch,
                    },
                }
            })
            .collect();
        let witnesses: Vec<WitnessStatus> = self
            .witnesses
            .up(now)
            .map(|(address, up)| WitnessStatus { address, up })
            .collect();
        let status = Status {
            vips: (0..self.plan.targets.len()).map(|v| self.vip_status(v)).collect(),
            nodes,
            witnesses,
            arbiter: self.arbiter_status(),
            tracks: (0..self.tracks.len()).map(|ix| self.tracks.status(ix)).collect(),
            rejected: self.refusals.by_reason(),
            keeper: self.table.keeper_problem().map(str::to_string),
            // Whatever it held has lapsed by then, and is elsewhere if there is anybody to take it.
            useless: self.trust.ended_before(now, self.plan.setup.timers.frozen_bound()),
        };
        for event in self.told.news(me, &status) {
            self.tell(event);
        }
        self.status.store(Arc::new(status));
    }

    fn vip_status(&self, v: VipIx) -> VipStatus {
        let names = &self.plan.names;
        let view = self.table.vip(v);
        let obstacles = view.nobody.map(|all| {
            let one = |(n, lacks): (NodeIx, Option<Lack>)| {
                let why = lacks.map_or("is not heard", Lack::text);
                format!("{} {why}", names[n])
            };
            all.into_iter().map(one).collect()
        });
        VipStatus {
            address: self.plan.targets[v].net.to_string(),
            interface: self.plan.targets[v].interface.clone(),
            hold: self.plan.setup.vips[v].hold,
            state: view.state,
            holder: view.holder.map(|n| names[n].clone()),
            since_s: view.since.as_secs(),
            reason: view.reason.text(|n| names[n].as_str()),
            demoted: view.demoted,
            obstacles,
            transitions: self.transitions[v],
        }
    }
}
