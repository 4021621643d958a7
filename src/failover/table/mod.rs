//! Who holds which address: the VIP machine of one node.
//!
//! # How it works
//! Every node runs the same machine on its own view: the last beat of each peer, its own fitness, the witnesses' answers,
//! the keeper's replies. Each beat carries one [`Claim`] a VIP: what the sender does with it, how fit it is, whom it backs.
//! After every input each VIP is decided anew; nothing depends on the order in which beats arrive.
//!
//! | state | legal here | leaves by |
//! |---|---|---|
//! | `Standby` | the kernel here does not have the address | fit, nobody holds it (or the holder yields to us), majority: `Hold`, to `Claiming` |
//! | `Claiming` | the keeper was asked to install | `Done` to `Active`; conflict lost, majority lost, unfit: `Release`, to `Releasing` |
//! | `Active` | installed and announced; possibly *yielding* to a successor | successor holds, conflict lost, majority lost, not serving, frozen: `Releasing` |
//! | `Releasing` | the keeper was asked to remove | `Done` to `Standby` |
//! | `Fault` | shown instead of `Standby` while the keeper, the link or somebody else stands in the way | time, repair, `allow` |
//!
//! * **Conflicts have one loser.** `prefer` is a total order; of two holders the later one in it releases first and asks later.
//!   The winner announces when it hears the rival and once more when the rival has gone, so the last word is its own.
//! * **Planned moves make before they break.** The holder says `Yielding(successor)`; the successor installs and announces;
//!   on hearing that it holds, the old holder removes. Both wait for `handover` at most.
//! * **Majority, if a quorum is set.** A node backs the holder that it hears; only when it has been silent for `dead_after` +
//!   `vote_hold` it backs somebody else. A holder counts the nodes that back it, and needs `quorum` of them all the time. Because a
//!   node backs one at a time, two sides that share a node cannot both hold. (Witnesses only answer; they back whoever asks.)
//! * **Self-doubt.** A gap between two steps of `doubt` or more means that *we* were frozen: release, listen for `listen`.
//!
//! # Invariants
//! * `Hold` is only emitted when fit is [`Fit::Ready`] and the quorum backs us; `Release` is emitted on every way out of
//!   `Claiming` and `Active` except those on which the keeper itself said that the address is gone.
//! * A node that does not hold never claims without a backend in the required pools; a holder without one keeps the address
//!   while no fit node wants it.
//!
//! # What it never does
//! No I/O, no clock, no randomness: the same inputs give the same actions, which is what lets a recorded incident replay.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::words::{
    Action, Claim, Effect, Fit, Input, Local, NodeView, Order, Phase, Reason, Rule, Setup, State, VipView,
};
use super::{NodeIx, VipIx};

/// Microseconds since the machine was made; kept instead of `Instant` so that a machine can be written down.
type At = u64;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Peer {
    heard: Option<At>,
    gone: bool,
    claims: Vec<Claim>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Yield {
    to: NodeIx,
    until: At,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Trouble {
    why: String,
    until: At,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Vip {
    rule: Rule,
    /// Never `Fault`: that is derived.
    state: State,
    /// Why we hold it, or why we let it go last.
    reason: Reason,
    since: At,
    shown: State,
    demoted: bool,
    link_up: bool,
    foreign: bool,
    trouble: Option<Trouble>,
    troubles: u32,
    yields: Option<Yield>,
    /// Successors that did not take it in time, and until when they are passed over.
    snubbed: Vec<(NodeIx, At)>,
    /// Since when we have been fit without a break.
    ready_since: Option<At>,
    last_holder: Option<NodeIx>,
    insist: bool,
    rivals: bool,
    /// Not claimed before this time: the address is new in the configuration.
    quiet_until: At,
}

/// The machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Table {
    #[serde(skip, default = "Instant::now")]
    epoch: Instant,
    setup: Setup,
    now: At,
    next_beat: At,
    said: Vec<Claim>,
    listening_until: At,
    listening_why: Reason,
    local: Local,
    keeper: Result<(), String>,
    stopping: bool,
    peers: Vec<Peer>,
    witnesses: Vec<Option<At>>,
    vips: Vec<Vip>,
}

impl Table {
    /// A machine that has just started: it listens first.
    pub fn new(now: Instant, setup: Setup) -> Table {
        let peer = Peer {
            heard: None,
            gone: false,
            claims: vec![Claim::NONE; setup.vips.len()],
        };
        let vips = setup
            .vips
            .iter()
            .map(|rule| Vip {
                rule: rule.clone(),
                state: State::Standby,
                reason: Reason::Starting,
                since: 0,
                shown: State::Standby,
                demoted: false,
                link_up: true,
                foreign: false,
                trouble: None,
                troubles: 0,
                yields: None,
                snubbed: Vec::new(),
                ready_since: None,
                last_holder: None,
                insist: false,
                rivals: false,
                quiet_until: 0,
            })
            .collect();
        Table {
            epoch: now,
            now: 0,
            next_beat: 0,
            said: Vec::new(),
            listening_until: micros(setup.timers.listen),
            listening_why: Reason::Starting,
            local: Local::default(),
            keeper: Ok(()),
            stopping: false,
            peers: vec![peer; setup.nodes],
            witnesses: vec![None; setup.witnesses],
            vips,
            setup,
        }
    }

    /// Takes over what `old` knew, after the configuration changed.
    ///
    /// `vips` and `nodes` give, for each index here, the index there. Addresses that `old` held and that have no index
    /// here are the caller's to release.
    pub fn carry(&mut self, old: &Table, vips: &[Option<VipIx>], nodes: &[Option<NodeIx>]) {
        let forward = |n: NodeIx| nodes.iter().position(|o| *o == Some(n));
        (self.epoch, self.now, self.next_beat) = (old.epoch, old.now, old.now);
        self.listening_until = old.listening_until;
        self.listening_why = old.listening_why.clone();
        self.local = old.local.clone();
        self.keeper = old.keeper.clone();
        self.stopping = old.stopping;
        for (new, then) in nodes.iter().enumerate() {
            let Some(then) = *then else { continue };
            let was = &old.peers[then];
            let peer = &mut self.peers[new];
            peer.heard = was.heard;
            peer.gone = was.gone;
            for (v, from) in vips.iter().enumerate() {
                let Some(mut claim) = from.and_then(|f| was.claims.get(f)).copied() else {
                    continue;
                };
                claim.backs = claim.backs.and_then(forward);
                if let Phase::Yielding(n) = claim.phase {
                    claim.phase = forward(n).map_or(Phase::Held, Phase::Yielding);
                }
                peer.claims[v] = claim;
            }
        }
        for (v, from) in vips.iter().enumerate() {
            let Some(was) = from.and_then(|f| old.vips.get(f)) else {
                // Peers may hold it already, and have not been heard on it.
                self.vips[v].quiet_until = old.now + micros(self.setup.timers.listen);
                continue;
            };
            let rule = self.vips[v].rule.clone();
            self.vips[v] = Vip {
                rule,
                reason: was.reason.renamed(forward),
                yields: None,
                snubbed: Vec::new(),
                last_holder: was.last_holder.and_then(forward),
                ..was.clone()
            };
        }
    }

    /// Continues a machine that was written down in another process: its clock starts over at `now`.
    pub fn resume(mut self, now: Instant) -> Table {
        self.epoch = now.checked_sub(Duration::from_micros(self.now)).unwrap_or(now);
        self
    }

    /// The configuration in indices.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// When it was stepped last.
    pub fn last_step(&self) -> Instant {
        self.epoch + Duration::from_micros(self.now)
    }

    /// Takes one input; appends what to do, in order.
    pub fn step(&mut self, now: Instant, input: Input, out: &mut Vec<Action>) {
        let t = micros(now.saturating_duration_since(self.epoch)).max(self.now);
        let gap = t - self.now;
        self.now = t;
        if gap >= micros(self.setup.timers.doubt) && self.has_peers() {
            self.frozen(gap / 1_000, out);
        }
        let tick = matches!(input, Input::Tick);
        self.take(input, out);
        if tick {
            out.push(Action::Prove);
        }
        self.observe();
        for v in 0..self.vips.len() {
            self.decide(v, out);
        }
        self.show(out);
        let claims = self.claims();
        if claims != self.said || t >= self.next_beat {
            if t >= self.next_beat {
                self.next_beat = t + micros(self.setup.timers.beat);
            }
            self.said = claims;
            out.push(Action::Beat);
        }
    }

    /// When the machine wants to be stepped at the latest, whatever else happens.
    pub fn deadline(&self) -> Instant {
        let timers = &self.setup.timers;
        let mut next = self.next_beat;
        let mut consider = |t: At| {
            if t > self.now {
                next = next.min(t);
            }
        };
        consider(self.listening_until);
        for peer in &self.peers {
            if let Some(heard) = peer.heard {
                consider(heard + micros(timers.dead_after));
                consider(heard + micros(timers.dead_after + timers.vote_hold));
            }
        }
        for ok in self.witnesses.iter().flatten() {
            consider(ok + micros(timers.dead_after));
        }
        for vip in &self.vips {
            if let Some(y) = &vip.yields {
                consider(y.until);
            }
            if let Some(since) = vip.ready_since {
                consider(since + micros(vip.rule.preempt_delay));
            }
            if let Some(trouble) = &vip.trouble {
                consider(trouble.until);
            }
        }
        self.epoch + Duration::from_micros(next)
    }

    /// What the next beat says, one claim a VIP.
    pub fn claims(&self) -> Vec<Claim> {
        (0..self.vips.len())
            .map(|v| Claim {
                phase: self.phase(v),
                fit: self.fit(v).0,
                wants: self.wants(v),
                backs: self.backs(v),
            })
            .collect()
    }

    /// Whether every address has been let go (after [`Order::Stop`]).
    pub fn idle(&self) -> bool {
        self.vips.iter().all(|v| v.state == State::Standby)
    }

    /// Whether this address is installed, or may be.
    pub fn may_hold(&self, vip: VipIx) -> bool {
        self.vips[vip].state != State::Standby
    }

    /// One address as shown.
    pub fn vip(&self, v: VipIx) -> VipView {
        let vip = &self.vips[v];
        let holder = match vip.state {
            State::Active => Some(self.setup.me),
            _ => self
                .holders(v)
                .filter(|(_, phase)| *phase != Phase::Claiming)
                .map(|(n, _)| n)
                .min_by_key(|n| self.rank(v, *n)),
        };
        VipView {
            state: vip.shown,
            holder,
            since: Duration::from_micros(self.now - vip.since),
            reason: self.reason(v),
            demoted: vip.demoted,
        }
    }

    /// One node as shown; this node is alive by definition.
    pub fn node(&self, n: NodeIx) -> NodeView {
        let last = self.peers[n].heard;
        NodeView {
            alive: n == self.setup.me || self.alive(n),
            last_beat: last.map(|at| Duration::from_micros(self.now - at)),
        }
    }

    /// The last claim of a live peer.
    pub fn peer_claim(&self, n: NodeIx, v: VipIx) -> Option<Claim> {
        self.claim(n, v)
    }

    /// Why the keeper is of no use, if so.
    pub fn keeper_problem(&self) -> Option<&str> {
        self.keeper.as_ref().err().map(String::as_str)
    }

    /// Whether every node is heard, so that nothing is in doubt.
    pub fn all_alive(&self) -> bool {
        (0..self.setup.nodes).all(|n| n == self.setup.me || self.alive(n))
    }

    // ---- inputs ----

    fn take(&mut self, input: Input, out: &mut Vec<Action>) {
        match input {
            Input::Tick => {}
            Input::Beat { from, claims } => {
                let now = self.now;
                if let Some(peer) = self.peers.get_mut(from)
                    && claims.len() == self.setup.vips.len()
                {
                    peer.heard = Some(now);
                    peer.gone = false;
                    peer.claims = claims;
                }
            }
            Input::Gone { node } => {
                if let Some(peer) = self.peers.get_mut(node) {
                    peer.gone = true;
                }
            }
            Input::Witness { ix, up } => {
                if let Some(witness) = self.witnesses.get_mut(ix) {
                    *witness = up.then_some(self.now);
                }
            }
            Input::Local(local) => self.local = local,
            Input::Frozen { gap } => self.frozen(gap.as_millis() as u64, out),
            Input::Done { vip, effect, result } => self.done(vip, effect, result, out),
            Input::Lost { vip, why } => {
                if self.vips[vip].state != State::Standby {
                    self.trouble(vip, why);
                }
            }
            Input::Expired { vip } => {
                if self.vips[vip].state != State::Standby {
                    self.vips[vip].state = State::Standby;
                    let gap_ms = self.setup.timers.keeper_patience.as_millis() as u64;
                    self.frozen(gap_ms, out);
                }
            }
            Input::Link { vip, up } => self.vips[vip].link_up = up,
            Input::Foreign { vip, present } => self.vips[vip].foreign = present,
            Input::Keeper(state) => {
                if state.is_err() && self.keeper.is_ok() {
                    // Nobody can remove them for us now; the leases will.
                    for vip in &mut self.vips {
                        vip.state = State::Standby;
                        vip.yields = None;
                    }
                }
                self.keeper = state;
            }
            Input::Admin(Order::Demote(v)) => self.vips[v].demoted = true,
            Input::Admin(Order::Allow(v)) => {
                let vip = &mut self.vips[v];
                vip.demoted = false;
                vip.trouble = None;
                vip.troubles = 0;
            }
            Input::Admin(Order::Stop) => self.stopping = true,
        }
    }

    fn done(&mut self, v: VipIx, effect: Effect, result: Result<(), String>, out: &mut Vec<Action>) {
        let vip = &mut self.vips[v];
        match (effect, vip.state, result) {
            (Effect::Hold, State::Claiming, Ok(())) => {
                vip.state = State::Active;
                out.push(Action::Announce {
                    vip: v,
                    insist: vip.insist,
                });
            }
            (Effect::Hold, State::Claiming, Err(why)) => self.trouble(v, why),
            // Nobody wants it any more.
            (Effect::Hold, State::Standby, Ok(())) => out.push(Action::Release { vip: v }),
            // A request that was withdrawn since, or the keeper's news of a repaired address.
            (Effect::Hold, ..) => {}
            (Effect::Release, State::Releasing, _) => vip.state = State::Standby,
            (Effect::Release, ..) => {}
        }
    }

    /// The address cannot be held here for a while: 1 s, 2 s, 4 s ... 60 s.
    fn trouble(&mut self, v: VipIx, why: String) {
        let vip = &mut self.vips[v];
        let pause = Duration::from_secs((1u64 << vip.troubles.min(6)).min(60));
        vip.troubles += 1;
        vip.state = State::Standby;
        vip.yields = None;
        vip.trouble = Some(Trouble {
            why,
            until: self.now + micros(pause),
        });
    }

    fn frozen(&mut self, gap_ms: u64, out: &mut Vec<Action>) {
        self.listening_until = self.now + micros(self.setup.timers.listen);
        self.listening_why = Reason::Frozen { gap_ms };
        for v in 0..self.vips.len() {
            if matches!(self.vips[v].state, State::Active | State::Claiming) {
                self.release(v, Reason::Frozen { gap_ms }, out);
            }
        }
    }

    /// Bookkeeping that follows from the view alone.
    fn observe(&mut self) {
        for v in 0..self.vips.len() {
            let holder = self.holders(v).map(|(n, _)| n).min_by_key(|n| self.rank(v, *n));
            let ready = self.fit(v).0 == Fit::Ready;
            let now = self.now;
            let vip = &mut self.vips[v];
            if vip.state == State::Active {
                vip.last_holder = None;
                if now.saturating_sub(vip.since) > micros(Duration::from_secs(60)) {
                    vip.troubles = 0;
                }
            } else if holder.is_some() {
                vip.last_holder = holder;
            }
            vip.ready_since = ready.then(|| vip.ready_since.unwrap_or(now));
            vip.snubbed.retain(|(_, until)| *until > now);
            if vip.trouble.as_ref().is_some_and(|t| t.until <= now) {
                vip.trouble = None;
            }
        }
    }

    // ---- decisions ----

    fn decide(&mut self, v: VipIx, out: &mut Vec<Action>) {
        match self.vips[v].state {
            State::Standby => {
                if let Some(reason) = self.may_claim(v) {
                    let vip = &mut self.vips[v];
                    vip.insist = matches!(reason, Reason::Silent(_) | Reason::Gone(_));
                    vip.state = State::Claiming;
                    vip.reason = reason;
                    vip.yields = None;
                    vip.rivals = false;
                    out.push(Action::Prove);
                    out.push(Action::Hold { vip: v });
                }
            }
            State::Claiming => {
                let (fit, why) = self.fit(v);
                if fit < Fit::Ready {
                    self.release(v, why, out);
                } else if let Some(rival) = self.better_rival(v) {
                    self.release(v, Reason::Rival(rival), out);
                } else if let Err(why) = self.backed(v) {
                    self.release(v, why, out);
                }
            }
            State::Active => self.decide_active(v, out),
            State::Releasing | State::Fault => {}
        }
    }

    fn decide_active(&mut self, v: VipIx, out: &mut Vec<Action>) {
        // A planned move that has succeeded, or a conflict that we lose.
        if let Some(to) = self.vips[v].yields.as_ref().map(|y| y.to)
            && self.holders(v).any(|(n, phase)| n == to && phase == Phase::Held)
        {
            return self.release(v, Reason::To(to), out);
        }
        if let Some(rival) = self.better_rival(v) {
            return self.release(v, Reason::Rival(rival), out);
        }
        // A conflict that we win: the neighbours must hear us, now and when the rival has gone.
        let successor = self.vips[v].yields.as_ref().map(|y| y.to);
        let yielding_to_us = Phase::Yielding(self.setup.me);
        let others: Vec<Phase> = self
            .holders(v)
            .filter(|(n, _)| Some(*n) != successor)
            .map(|(_, phase)| phase)
            .collect();
        let contested = others.iter().any(|p| ![Phase::Leaving, yielding_to_us].contains(p));
        let vip = &mut self.vips[v];
        if (contested && !vip.rivals) || (vip.rivals && others.is_empty()) {
            out.push(Action::Announce { vip: v, insist: false });
        }
        vip.rivals = !others.is_empty();

        // Reasons to let go at once.
        if !vip.link_up {
            return self.release(v, Reason::LinkDown, out);
        }
        if successor.is_none()
            && let Err(why) = self.backed(v)
        {
            return self.release(v, why, out);
        }

        // Reasons to hand over.
        let (fit, why) = self.fit(v);
        if let Some(y) = self.vips[v].yields.clone() {
            let willing = self
                .claim(y.to, v)
                .is_some_and(|c| c.fit == Fit::Ready && (fit < Fit::Ready || self.outranks(v, y.to)));
            if willing && self.now < y.until {
                return;
            }
            let until = self.now + 4 * micros(self.setup.timers.handover);
            let vip = &mut self.vips[v];
            vip.yields = None;
            vip.snubbed.push((y.to, until));
            if let Err(why) = self.backed(v) {
                return self.release(v, why, out);
            }
        }
        if let Some(to) = self.successor(v, fit) {
            self.vips[v].yields = Some(Yield {
                to,
                until: self.now + micros(self.setup.timers.handover),
            });
        } else if self.stopping || !self.local.serving {
            // Nobody to hand it to, and nothing behind it: an address without a service is worse than none.
            self.release(v, why, out);
        }
    }

    /// The node to hand the address to, if it should leave.
    fn successor(&self, v: VipIx, fit: Fit) -> Option<NodeIx> {
        (0..self.setup.nodes)
            .filter(|n| {
                self.claim(*n, v).is_some_and(|c| {
                    c.fit == Fit::Ready
                        && c.phase == Phase::Free
                        && (fit < Fit::Ready || (c.wants && self.outranks(v, *n)))
                })
            })
            .filter(|n| !self.vips[v].snubbed.iter().any(|(s, _)| s == n))
            .min_by_key(|n| self.rank(v, *n))
    }

    fn release(&mut self, v: VipIx, reason: Reason, out: &mut Vec<Action>) {
        let vip = &mut self.vips[v];
        vip.state = State::Releasing;
        vip.reason = reason;
        vip.yields = None;
        vip.rivals = false;
        out.push(Action::Release { vip: v });
    }

    /// Why we may claim now, if we may.
    fn may_claim(&self, v: VipIx) -> Option<Reason> {
        if self.fit(v).0 < Fit::Ready {
            return None;
        }
        let me = self.setup.me;
        let mut from = None;
        for (n, phase) in self.holders(v) {
            match phase {
                Phase::Yielding(to) if to == me => from = Some(n),
                _ => return None,
            }
        }
        if from.is_none() && (self.fading(v).is_some() || self.best(v) != Some(me)) {
            return None;
        }
        self.backed(v).ok()?;
        Some(match (from, self.vips[v].last_holder) {
            (Some(n), _) => Reason::From(n),
            (None, Some(n)) if self.peers[n].gone => Reason::Gone(n),
            (None, Some(n)) if !self.alive(n) => Reason::Silent(n),
            _ => Reason::First,
        })
    }

    /// A holder that comes before us in `prefer` and does not yield to us.
    fn better_rival(&self, v: VipIx) -> Option<NodeIx> {
        let successor = self.vips[v].yields.as_ref().map(|y| y.to);
        self.holders(v)
            .filter(|(n, phase)| {
                self.outranks(v, *n)
                    && Some(*n) != successor
                    && ![Phase::Leaving, Phase::Yielding(self.setup.me)].contains(phase)
            })
            .map(|(n, _)| n)
            .next()
    }

    // ---- the view ----

    fn has_peers(&self) -> bool {
        self.setup.nodes > 1
    }

    fn alive(&self, n: NodeIx) -> bool {
        let peer = &self.peers[n];
        n != self.setup.me
            && !peer.gone
            && peer
                .heard
                .is_some_and(|at| self.now - at < micros(self.setup.timers.dead_after))
    }

    /// The claim of a live peer.
    fn claim(&self, n: NodeIx, v: VipIx) -> Option<Claim> {
        self.alive(n).then(|| self.peers[n].claims[v])
    }

    /// Live peers that hold the address or are about to.
    fn holders(&self, v: VipIx) -> impl Iterator<Item = (NodeIx, Phase)> {
        (0..self.setup.nodes)
            .filter_map(move |n| self.claim(n, v).map(|c| (n, c.phase)))
            .filter(|(_, phase)| *phase != Phase::Free)
    }

    /// With a quorum: a holder that went silent so recently that votes have not left it.
    fn fading(&self, v: VipIx) -> Option<NodeIx> {
        if self.setup.quorum <= 1 {
            return None;
        }
        let keep = micros(self.setup.timers.dead_after + self.setup.timers.vote_hold);
        (0..self.setup.nodes).find(|n| {
            let peer = &self.peers[*n];
            *n != self.setup.me
                && !peer.gone
                && !self.alive(*n)
                && peer.claims[v].phase != Phase::Free
                && peer.heard.is_some_and(|at| self.now - at < keep)
        })
    }

    /// Position in `prefer`; nodes that are not in it come last.
    fn rank(&self, v: VipIx, n: NodeIx) -> (usize, NodeIx) {
        let prefer = &self.vips[v].rule.prefer;
        (prefer.iter().position(|p| *p == n).unwrap_or(usize::MAX), n)
    }

    fn outranks(&self, v: VipIx, n: NodeIx) -> bool {
        self.rank(v, n) < self.rank(v, self.setup.me)
    }

    /// The first in order of those that could take a free address.
    fn best(&self, v: VipIx) -> Option<NodeIx> {
        (0..self.setup.nodes)
            .filter(|n| {
                if *n == self.setup.me {
                    self.fit(v).0 == Fit::Ready
                } else {
                    self.claim(*n, v)
                        .is_some_and(|c| matches!(c.fit, Fit::Ready | Fit::Soon))
                }
            })
            .min_by_key(|n| self.rank(v, *n))
    }

    fn listening(&self) -> bool {
        self.now < self.listening_until && self.has_peers()
    }

    fn answering_witnesses(&self) -> u32 {
        let fresh = micros(self.setup.timers.dead_after);
        self.witnesses
            .iter()
            .flatten()
            .filter(|at| self.now - **at < fresh)
            .count() as u32
    }

    /// How fit we are, and what is in the way.
    fn fit(&self, v: VipIx) -> (Fit, Reason) {
        let (fit, why) = self.fit_when_settled(v);
        let fresh = self.now < self.vips[v].quiet_until && self.has_peers();
        match (self.listening(), fresh) {
            _ if fit == Fit::Unable => (fit, why),
            (true, _) if fit == Fit::Ready && self.listening_why == Reason::Starting => (Fit::Soon, Reason::Starting),
            (true, _) => (Fit::Unable, self.listening_why.clone()),
            (false, true) => (Fit::Unable, Reason::Starting),
            (false, false) => (fit, why),
        }
    }

    /// The same, once we have listened.
    fn fit_when_settled(&self, v: VipIx) -> (Fit, Reason) {
        let vip = &self.vips[v];
        let unable = |reason| (Fit::Unable, reason);
        if !vip.rule.prefer.contains(&self.setup.me) {
            return unable(Reason::NotListed);
        }
        if self.stopping {
            return unable(Reason::Stopping);
        }
        if let Err(why) = &self.keeper {
            return unable(Reason::Keeper(why.clone()));
        }
        if vip.foreign && vip.state == State::Standby {
            return unable(Reason::Fault(
                "somebody else has configured the address on this host".into(),
            ));
        }
        if let Some(trouble) = &vip.trouble {
            return unable(Reason::Fault(trouble.why.clone()));
        }
        if !vip.link_up {
            return unable(Reason::LinkDown);
        }
        if vip.demoted {
            return unable(Reason::Demoted);
        }
        if !self.local.serving {
            return unable(Reason::NotServing(self.local.detail.clone()));
        }
        let alive = (0..self.setup.nodes).filter(|n| self.alive(*n)).count() as u32;
        let have = 1 + alive + self.answering_witnesses();
        let need = self.setup.quorum;
        if have < need {
            return unable(Reason::NoQuorum { have, need });
        }
        let pools = &self.local.pools;
        if vip
            .rule
            .requires
            .iter()
            .any(|p| !pools.get(*p).copied().unwrap_or(false))
        {
            return (Fit::NoBackend, Reason::NoBackend);
        }
        (Fit::Ready, Reason::First)
    }

    fn phase(&self, v: VipIx) -> Phase {
        match (self.vips[v].state, &self.vips[v].yields) {
            (State::Active, Some(y)) => Phase::Yielding(y.to),
            (State::Active, None) => Phase::Held,
            (State::Releasing, _) => Phase::Leaving,
            (State::Claiming, _) => Phase::Claiming,
            (State::Standby | State::Fault, _) => Phase::Free,
        }
    }

    /// Whether we ask the present holder for the address.
    fn wants(&self, v: VipIx) -> bool {
        let vip = &self.vips[v];
        vip.state == State::Standby
            && vip.rule.preempt
            && vip
                .ready_since
                .is_some_and(|at| self.now - at >= micros(vip.rule.preempt_delay))
            && self.holders(v).any(|(n, _)| !self.outranks(v, n))
    }

    /// The node that gets our vote.
    fn backs(&self, v: VipIx) -> Option<NodeIx> {
        match self.phase(v) {
            Phase::Yielding(to) => return Some(to),
            Phase::Held | Phase::Claiming => return Some(self.setup.me),
            Phase::Free | Phase::Leaving => {}
        }
        let held = self
            .holders(v)
            .filter(|(_, phase)| *phase != Phase::Leaving)
            .min_by_key(|(n, _)| self.rank(v, *n))
            .map(|(n, phase)| match phase {
                Phase::Yielding(to) => to,
                _ => n,
            });
        if let Some(n) = held.or_else(|| self.fading(v)) {
            return Some(n);
        }
        // A node that has only just begun to listen does not know whom it backed.
        if self.listening() {
            return None;
        }
        self.best(v)
    }

    /// Whether the quorum backs us.
    fn backed(&self, v: VipIx) -> Result<(), Reason> {
        let need = self.setup.quorum;
        if need <= 1 {
            return Ok(());
        }
        let me = Some(self.setup.me);
        let peers = (0..self.setup.nodes)
            .filter(|n| self.claim(*n, v).is_some_and(|c| c.backs == me))
            .count() as u32;
        let have = u32::from(self.backs(v) == me) + peers + self.answering_witnesses();
        if have >= need {
            Ok(())
        } else {
            Err(Reason::NoQuorum { have, need })
        }
    }

    // ---- what is shown ----

    fn reason(&self, v: VipIx) -> Reason {
        let vip = &self.vips[v];
        let (fit, why) = self.fit(v);
        match vip.state {
            State::Active if fit < Fit::Ready => why,
            State::Active | State::Claiming | State::Releasing => vip.reason.clone(),
            State::Standby | State::Fault => {
                if fit <= Fit::Soon {
                    return why;
                }
                if let Some((n, _)) = self.holders(v).min_by_key(|(n, _)| self.rank(v, *n)) {
                    return Reason::HeldBy(n);
                }
                match self.best(v) {
                    _ if fit < Fit::Ready => why,
                    Some(n) if n != self.setup.me => Reason::LeftTo(n),
                    _ => match self.backed(v) {
                        Err(why) => why,
                        Ok(()) => Reason::Waiting,
                    },
                }
            }
        }
    }

    fn shown(&self, v: VipIx) -> State {
        let vip = &self.vips[v];
        match vip.state {
            State::Standby => match self.fit(v).1 {
                Reason::Keeper(_) | Reason::Fault(_) | Reason::LinkDown => State::Fault,
                _ => State::Standby,
            },
            other => other,
        }
    }

    fn show(&mut self, out: &mut Vec<Action>) {
        for v in 0..self.vips.len() {
            let to = self.shown(v);
            let from = self.vips[v].shown;
            if to != from {
                let reason = match (from, to) {
                    // Why it went is more telling than who has it now.
                    (State::Releasing, State::Standby) => self.vips[v].reason.clone(),
                    _ => self.reason(v),
                };
                self.vips[v].shown = to;
                self.vips[v].since = self.now;
                out.push(Action::Transition {
                    vip: v,
                    from,
                    to,
                    reason,
                });
            }
        }
    }
}

fn micros(d: Duration) -> u64 {
    d.as_micros() as u64
}

#[cfg(test)]
mod tests;
