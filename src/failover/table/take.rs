//! What each input changes in the view. What follows from it is decided afterwards, in `decide`.

use super::*;

impl Table {
    pub(super) fn scope(&self, input: &Input) -> Scope {
        match input {
            Input::Done { vip, .. }
            | Input::Lost { vip, .. }
            | Input::Link { vip, .. }
            | Input::Foreign { vip, .. }
            | Input::Admin(Order::Demote(vip) | Order::Allow(vip)) => Scope::One(self.unit_of[*vip]),
            _ => Scope::All,
        }
    }

    pub(super) fn take(&mut self, input: Input, out: &mut Vec<Action>) {
        let now = self.now;
        match input {
            Input::Tick => {}
            Input::Beat { from, beat, age_max } => self.heard(from, beat, micros(age_max)),
            Input::Gone { node } => {
                if let Some(peer) = self.peers.get_mut(node) {
                    peer.gone = Some(now);
                    // Another process numbers its beats anew.
                    peer.number = None;
                }
            }
            Input::Witness { ix, asked } => {
                let asked = now.saturating_sub(micros(asked));
                if let Some(witness) = self.witnesses.get_mut(ix) {
                    *witness = (*witness).max(Some(asked));
                }
            }
            Input::Track { ix, holds } => {
                let changed = |track: &mut bool| std::mem::replace(track, holds) != holds;
                if self.tracks.get_mut(ix).is_some_and(changed) {
                    self.scores_since = now;
                    if holds {
                        // In good health only from now on, as `preempt_delay` counts it.
                        self.units.iter_mut().for_each(|unit| unit.ready_since = None);
                    }
                }
            }
            Input::Local(local) => self.local = local,
            Input::Frozen { gap } => {
                if let Some(arbiter) = &mut self.arbiter {
                    arbiter.stood_still(micros(gap));
                }
                self.frozen(gap.as_millis() as u64, out);
            }
            Input::Done { vip, effect, result } => self.done(vip, effect, result, out),
            Input::Lost { vip, why } => {
                if self.installed(vip) {
                    self.trouble(vip, why, out);
                }
            }
            Input::Expired { vip } => {
                if self.installed(vip) {
                    let proofs_stopped = micros(self.setup.timers.keeper_patience) / 1_000;
                    self.member(vip).forget();
                    let unit = &mut self.units[self.unit_of[vip]];
                    if !unit.members.iter().any(|m| m.installed || m.leaving) {
                        unit.state = State::Standby;
                        unit.yields = None;
                    }
                    self.frozen(proofs_stopped, out);
                    self.settle(self.unit_of[vip]);
                }
            }
            Input::Link { vip, up } => {
                let member = self.member(vip);
                let came_up = up && !member.link_up;
                member.link_up = up;
                if came_up {
                    self.units[self.unit_of[vip]].begin(now);
                }
            }
            Input::Foreign { vip, present } => self.member(vip).foreign = present,
            Input::Keeper(state) => {
                if state.is_err() && self.keeper.is_ok() {
                    // Nobody can remove them for us now; the leases will.
                    let linger = self.lingering();
                    for unit in &mut self.units {
                        if unit.state != State::Standby {
                            unit.lingers_until = linger;
                        }
                        unit.members.iter_mut().for_each(Member::forget);
                        unit.state = State::Standby;
                        unit.yields = None;
                    }
                }
                self.keeper = state;
            }
            Input::Arbiter(answer) => {
                if let Some(arbiter) = &mut self.arbiter {
                    arbiter.answer(now, answer);
                }
            }
            Input::Admin(Order::Demote(v)) => self.units[self.unit_of[v]].demoted = true,
            Input::Admin(Order::Allow(v)) => {
                let unit = &mut self.units[self.unit_of[v]];
                unit.demoted = false;
                unit.trouble = None;
                unit.troubles = 0;
            }
            Input::Admin(Order::Stop) => self.stopping = true,
        }
    }

    fn heard(&mut self, from: NodeIx, beat: Beat, age_max: At) {
        let now = self.now;
        let me = self.setup.me;
        let echoed = beat
            .echo
            .and_then(|echo| self.sent.iter().rev().find(|(number, _)| *number == echo))
            .map(|(_, at)| *at);
        let Some(peer) = self.peers.get_mut(from) else {
            return;
        };
        if from == me || beat.claims.len() != self.setup.vips.len() || peer.number.is_some_and(|n| beat.number < n) {
            return;
        }
        let runs = |claims: &[Claim], v: VipIx| claims[v].backs == Some(from);
        // Who has just begun to ask for votes waits for the answer.
        self.beat_now |=
            self.setup.quorum > 1 && (0..beat.claims.len()).any(|v| runs(&beat.claims, v) && !runs(&peer.claims, v));
        peer.heard = Some(now);
        peer.proved = peer.proved.max(echoed).max(now.checked_sub(age_max));
        peer.gone = None;
        peer.number = Some(beat.number);
        (peer.echo, peer.echoed) = (beat.echo, echoed);
        peer.beat = micros(beat.beat);
        peer.dead_after = micros(beat.dead_after);
        peer.patience = micros(beat.patience).max(peer.patience);
        if std::mem::replace(&mut peer.score, beat.score) != beat.score {
            self.scores_since = now;
        }
        peer.settings = beat.settings;
        peer.claims = beat.claims;
    }

    fn done(&mut self, vip: VipIx, effect: Effect, result: Result<(), String>, out: &mut Vec<Action>) {
        let u = self.unit_of[vip];
        match (effect, self.units[u].state, result) {
            (Effect::Hold, State::Claiming, Ok(())) => {
                self.member(vip).installed = true;
                let unit = &mut self.units[u];
                if unit.members.iter().all(|m| m.installed) {
                    unit.state = State::Active;
                    let insist = unit.insist;
                    // The routing daemon sees it by itself, and no neighbour asks for it.
                    let told = unit.members.iter().filter(|_| !unit.is_shared());
                    out.extend(told.map(|m| Action::Announce { vip: m.vip, insist }));
                }
            }
            // One that has joined a group, or the keeper's news of a repaired address.
            (Effect::Hold, State::Active, Ok(())) => {
                if !std::mem::replace(&mut self.member(vip).installed, true) {
                    out.push(Action::Announce { vip, insist: false });
                }
            }
            (Effect::Hold, State::Claiming | State::Active, Err(why)) => self.trouble(vip, why, out),
            // Nobody wants it any more.
            (Effect::Hold, State::Standby, Ok(())) => out.push(Action::Release { vip }),
            // A request that was withdrawn since.
            (Effect::Hold, ..) => {}
            (Effect::Release, State::Releasing, _) => {
                self.member(vip).forget();
                self.settle(u);
            }
            (Effect::Release, ..) => {}
        }
    }

    /// The address cannot be held here for a while: 1 s, 2 s, 4 s ... 60 s. Those of its group go with it.
    pub(super) fn trouble(&mut self, vip: VipIx, why: String, out: &mut Vec<Action>) {
        let u = self.unit_of[vip];
        let now = self.now;
        let unit = &mut self.units[u];
        let pause = Duration::from_secs((1u64 << unit.troubles.min(6)).min(60));
        unit.troubles += 1;
        unit.trouble = Some(Trouble {
            why: why.clone(),
            until: now + micros(pause),
        });
        self.member(vip).forget();
        self.release_but(u, Some(vip), Reason::Fault(why), out);
        self.settle(u);
    }

    pub(super) fn frozen(&mut self, gap_ms: u64, out: &mut Vec<Action>) {
        self.frozen_until = self.now + self.listen();
        self.frozen_ms = gap_ms;
        for u in 0..self.units.len() {
            if matches!(self.units[u].state, State::Active | State::Claiming) && !self.units[u].is_shared() {
                self.release(u, Reason::Frozen { gap_ms }, out);
            }
        }
    }

    /// A witness answers a node that comes out of isolation at once; the nodes that live have to find it first. Those whose
    /// process has ended say so, and are not waited for.
    pub(super) fn rejoin(&mut self) {
        let apart = self.reached() < self.setup.quorum;
        if std::mem::replace(&mut self.apart, apart) && !apart {
            let me = self.setup.me;
            let missing = |n: usize| n != me && !self.alive(n) && self.peers[n].gone.is_none();
            if (0..self.peers.len()).any(missing) {
                self.rejoins_until = self.now + 3 * micros(self.setup.timers.beat);
            }
        }
    }
}
