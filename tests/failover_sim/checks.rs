//! What must hold all the time, judged by the kernels and not by what the machines believe.

use std::time::Duration;

use weir::failover::bounds;
use weir::failover::timers::Timers;
use weir::failover::words::State;

use crate::faults::Fault;
use crate::network::DELAY_MAX;
use crate::world::{MS, S, World, us};

impl World {
    /// The safe set that follows from what the node is configured with, whatever it uses.
    fn timers_of(&self, n: usize) -> Timers {
        let used = self.setups[self.nodes[n].setup][n].timers;
        Timers::derive(used.beat, used.dead_after)
    }

    /// Kernels that answer for the address.
    pub fn holders(&self, vip: usize) -> Vec<usize> {
        (0..self.nodes.len())
            .filter(|n| {
                let node = &self.nodes[*n];
                node.kernel[vip].is_some() && node.powered && !node.paused
            })
            .collect()
    }

    /// The bound for an overlap, given what has happened to its members.
    fn bound_of(&self, since: u64, who: &[usize]) -> u64 {
        if self.strict {
            return 0;
        }
        // One segment lost more than `bounds` reckons with.
        let mut hearing = us(bounds::HEARING);
        let stated = |d: Duration| us(d - bounds::HEARING);
        let slowest = |f: &dyn Fn(Timers) -> u64| who.iter().map(|n| f(self.timers_of(*n))).max().unwrap_or(0);
        if self.network.loss > 0 {
            hearing += us(self.timers.beat) + 2 * DELAY_MAX;
        }
        let recent = |t: Option<u64>| t.is_some_and(|t| t + 100 * MS >= since);
        let nodes = || who.iter().map(|n| &self.nodes[*n]);
        // What the kernel cannot do yet comes late by as much.
        let locked = nodes().map(|n| n.rtnl.saturating_sub(since)).max().unwrap_or(0);
        let hearing = hearing + locked.min(320 * MS);
        // A keeper that stood still leaves the address to the kernel.
        if nodes().any(|n| n.keeper_frozen) {
            return slowest(&|t| us(t.frozen_bound())) + hearing;
        }
        // A keeper or machine that goes on clears up by itself, when the peers speak up.
        if nodes().any(|n| recent(n.stood_still)) {
            return slowest(&|t| stated(bounds::thawed(&t))) + hearing;
        }
        // A main process that stands still leaves it to the keeper.
        if let Some(at) = nodes().filter_map(|n| n.main_frozen).max() {
            let removed = at + slowest(&|t| us(t.keeper_patience));
            return removed.saturating_sub(since) + hearing;
        }
        // A witness remembers nothing: when the split moves, it answers those on its new side before the others have lost it.
        let lapse = slowest(&|t| stated(bounds::shifted(&t)));
        if self.witnesses > 0 && self.shifted.is_some_and(|at| at + lapse + hearing >= since) {
            return lapse + hearing;
        }
        // A planned move, or one that was cut off in the middle.
        if nodes().any(|n| recent(n.yielded)) {
            return slowest(&|t| stated(bounds::broken_move(&t))) + hearing;
        }
        hearing
    }

    pub fn observe(&mut self) {
        if self.network.partition.is_some() || !self.network.lost.is_empty() {
            self.broken = Some(self.now);
        }
        if !self.network.lost.is_empty() {
            self.cut = Some(self.now);
        }
        for vip in 0..self.watches.len() {
            let who = self.holders(vip);
            if std::mem::replace(&mut self.watches[vip].held, !who.is_empty()) && who.is_empty() {
                self.gaps += 1;
            }
            self.observe_both(vip, &who);
            self.observe_nobody(vip, &who);
        }
    }

    fn observe_both(&mut self, vip: usize, who: &[usize]) {
        if who.len() == 1 && self.watches[vip].holder != Some(who[0]) {
            self.watches[vip].holder = Some(who[0]);
            self.moved += 1;
            self.note(|| format!("node {} alone holds address {vip}", who[0]));
        }
        if who.len() < 2 {
            self.watches[vip].overlap_since = None;
            self.watches[vip].bound = 0;
            return;
        }
        let same = self.watches[vip].who == who;
        self.watches[vip].who = who.to_vec();
        let since = match self.watches[vip].overlap_since.filter(|_| same) {
            Some(since) => since,
            None => {
                self.note(|| format!("nodes {who:?} hold address {vip}"));
                self.now
            }
        };
        self.watches[vip].overlap_since = Some(since);
        // Without a quorum a broken link leaves both holding, as documented; the clock starts when it is mended.
        // So does one between two nodes that both reach the witness, which answers everybody.
        let may_both = self
            .nodes
            .iter()
            .enumerate()
            .any(|(n, node)| self.setups[node.setup][n].quorum <= 1);
        let mended = match may_both {
            true => self.broken,
            false => self.cut.filter(|_| self.witnesses > 0),
        };
        let healing = |n: &usize| us(bounds::healed(&self.timers_of(*n)) - bounds::HEARING);
        let healing = who.iter().map(healing).max().unwrap_or(0);
        let from = mended.map_or(since, |at| since.max(at + healing));
        let bound = self.bound_of(since, who);
        let watch = &mut self.watches[vip];
        watch.bound = watch.bound.max(bound);
        let bound = watch.bound;
        if self.now > from + bound {
            self.fail(format!(
                "nodes {who:?} hold address {vip} for {} ms, bound {} ms",
                (self.now - from) / MS,
                bound / MS
            ));
        }
    }

    /// Whether some nodes that reach each other, and are enough, could serve.
    fn majority_serves(&self) -> bool {
        let count = self.nodes.len();
        let well = |n: usize| self.runs(n) && self.keeper_runs(n) && !self.nodes[n].keeper_bad;
        (0..count).any(|a| {
            let serves = |n: usize| {
                let node = &self.nodes[n];
                let demoted = node.table.as_ref().is_some_and(|t| t.vip(0).demoted);
                well(n)
                    && node.local.serving
                    && node.local.without_backend.is_empty()
                    && !demoted
                    && (!self.tracked || node.tracked[1])
            };
            if !serves(a) {
                return false;
            }
            let others = (0..count).filter(|b| *b != a && well(*b));
            let reached: Vec<usize> = others.filter(|b| self.network.both_ways(self.now, a, *b)).collect();
            // All of them hear each other: a chain of nodes that do not is no majority.
            let clique = reached.iter().all(|b| {
                reached
                    .iter()
                    .all(|c| b == c || self.network.both_ways(self.now, *b, *c))
            });
            let witnesses = (0..self.witnesses)
                .filter(|w| !self.refusing[*w] && self.network.both_ways(self.now, a, count + *w))
                .count();
            let quorum = self.setups[self.nodes[a].setup][a].quorum as usize;
            let arbiter = usize::from(self.arbiter && self.reaches_store(a));
            clique && self.network.down.is_empty() && 1 + reached.len() + witnesses + arbiter >= quorum
        })
    }

    /// By when somebody holds again after a fault, as [`bounds`] states it for the slowest node.
    pub fn until_held(&self, fault: &Fault) -> u64 {
        let case = match fault {
            // Who starts, listens.
            Fault::Start(_) | Fault::LinkUp(..) => "a node starts, and hears nobody",
            _ => "the holder is cut off",
        };
        // Patience that was heard of once is reckoned with for ever.
        let setups = self.used.iter().flat_map(|which| &self.setups[*which]);
        let stated = setups.map(|setup| {
            let timers = Timers::derive(setup.timers.beat, setup.timers.dead_after);
            let all = bounds::bounds(&timers, setup.startup_delay, setup.quorum, self.witnesses);
            let all = if self.strict {
                bounds::strictly(all, &timers)
            } else {
                all
            };
            let row = all.into_iter().find(|row| row.case == case).expect("a stated case");
            let listen = match fault {
                // Who goes on after it stood still listens first, and may be the only one who can.
                Fault::Thaw(_) | Fault::Unpause(..) => timers.listen,
                _ => Duration::ZERO,
            };
            us(row.until_held + listen)
        });
        let lossy = if self.network.loss > 0 {
            us(self.timers.beat) + 2 * DELAY_MAX
        } else {
            0
        };
        let pause = match fault {
            // An address that was taken away twice is left alone for a while.
            Fault::Delete(_) => 4 * S,
            Fault::LinkUp(_, later) => *later,
            _ => 0,
        };
        // The vote of a node that is gone comes back with its lease: 5 s, and what a new leader and lateness add to that.
        let lease = if self.arbiter { 9 * S } else { 0 };
        stated.max().unwrap_or(0) + lossy + pause + lease
    }

    fn observe_nobody(&mut self, vip: usize, who: &[usize]) {
        let now = self.now;
        if !who.is_empty() || !self.majority_serves() {
            self.watches[vip].free_since = now;
            return;
        }
        let since = self.watches[vip].free_since;
        if now > self.held_by.max(since + self.until_held(&Fault::Heal)) {
            let views: Vec<_> = self
                .nodes
                .iter()
                .map(|n| n.table.as_ref().map(|t| t.vip(vip)))
                .collect();
            self.fail(format!(
                "nobody holds address {vip} for {} ms although it could be held: {views:?}",
                (now - since) / MS
            ));
        }
    }

    /// After everything is well: one holder, the right one, and no more moves.
    pub fn settle(&mut self) {
        self.run_until(self.held_by + 2 * S);
        let before = self.moved;
        for _ in 0..20 {
            self.run_until(self.now + 100 * MS);
            if self.failure.is_some() {
                return;
            }
            let firsts = self.holders(0);
            for vip in 0..self.watches.len() {
                let who = self.holders(vip);
                let rule = &self.setups[0][0].vips[vip];
                let together = rule.group.is_none() || who == firsts;
                if who.len() != 1 || (rule.preempt && who != [0]) || !together {
                    let views: Vec<_> = self
                        .nodes
                        .iter()
                        .map(|n| n.table.as_ref().map(|t| t.vip(vip)))
                        .collect();
                    return self.fail(format!("settled with holders {who:?} of {vip}: {views:?}"));
                }
                if self.state(who[0], vip) != Some(State::Active) {
                    return self.fail(format!("the holder {who:?} believes otherwise"));
                }
            }
        }
        if self.moved != before {
            self.fail("the address moves although everything is well".into());
        }
        for n in 0..self.nodes.len() {
            self.check_replay(n);
        }
    }
}
