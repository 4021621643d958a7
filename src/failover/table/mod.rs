//! Who holds which address: the machine of one node.
//!
//! # How it works
//! Every node runs the same machine on its own view: the last beat of each peer, its own fitness, the witnesses' answers,
//! the keeper's replies. Each beat carries one [`Claim`] a VIP: what the sender does with it, how fit it is, whom it backs.
//! Addresses of one group are one [`Unit`]: they are decided together. After every input the units concerned are decided anew;
//! nothing depends on the order in which beats arrive.
//!
//! | state | legal here | leaves by |
//! |---|---|---|
//! | `Standby` | the kernel here does not have the address | fit, nobody holds it (or the holder yields to us), majority: `Hold`, to `Claiming` |
//! | `Claiming` | the keeper was asked to install | all `Done`: `Active`; conflict lost, majority lost, unfit, no answer for [`decide::ASK_MAX`]: `Releasing` |
//! | `Active` | installed and announced; possibly *yielding* to a successor | successor holds, conflict lost, majority lost, not serving, frozen: `Releasing` |
//! | `Releasing` | the keeper was asked to remove | all `Done`: `Standby`; no answer for [`decide::ASK_MAX`]: the keeper is reset |
//! | `Fault` | shown instead of `Standby` while the keeper, the link or somebody else stands in the way | time, repair, `allow` |
//!
//! What was asked of the keeper is asked again every [`decide::ASK_AGAIN`] until it is answered: both sides compare states, and no
//! single message matters.
//!
//! | file | decides |
//! |---|---|
//! | `arbiter` | when a voter with a memory of its own is asked, and what `strict` adds |
//! | `take` | what each input changes in the view |
//! | `unit` | nothing: what is known of addresses that are held together |
//! | `votes` | whom this node backs, and whether enough back it: who may promise what, and until when |
//! | `rank` | who comes first, and how fit this node is |
//! | `decide` | what each unit does next |
//! | `carry` | what survives a reload and an upgrade |
//! | `show` | what people see |
//!
//! # Two ages of a beat
//! TCP delivers late what it could not deliver in time, so a beat that arrives need not be news. Beats are numbered, and each
//! echoes the newest number that its sender has heard of the receiver. That gives two bounds for the time at which it was sent:
//!
//! * not later than it arrived (`heard`): a node is *silent*, and may be replaced, `dead_after` after that;
//! * not earlier than we sent what it echoes (`proved`): only until `dead_after` after that is a beat *fresh*. A rival, an offer to
//!   hand over, a holder to vote for, a vote: all of them need a fresh beat.
//!
//! `dead_after` is the sender's: it comes with the beat, because that is what the sender's keeper and its votes go by.
//!
//! # Rules
//! * **Conflicts have one loser.** Tracked weights, then `prefer`, give a total order; of two holders the later one releases first and
//!   asks later. While nodes have different rules for an address their names decide instead, and nobody preempts.
//!   The winner announces when it hears the rival and once more when the rival has gone, so the last word is its own.
//! * **Planned moves make before they break.** The holder says `Yielding(successor)`; the successor installs and announces;
//!   on hearing that it holds, the old holder removes. Both wait for `handover`, and longer while the successor is at it.
//! * **Majority, if a quorum is set**: see `votes`.
//! * **Who begins, listens.** A node that has started, or whose link has come up, claims nothing for `listen`, and if it hears nobody,
//!   not for `startup_delay`: its port may not forward yet. What it hears then is asked for as by any other node: with `preempt`.
//! * **Self-doubt.** A gap between two steps of `doubt` or more means that *we* were frozen: release, listen for `listen`.
//!
//! * **Addresses with `hold: all`** are outside of all this: this node's own fitness alone decides, and what others say of them, votes,
//!   listening and self-doubt mean nothing. Two holders are no conflict, so there is nothing to agree on.
//!
//! # Invariants
//! * `Hold` is only emitted when fit is [`Fit::Ready`] and the quorum backs us, or again for what was asked already; `Release` is
//!   emitted on every way out of `Claiming` and `Active` except those on which the keeper itself said that the address is gone.
//! * A node that does not hold never claims without a backend in the required pools; a holder without one keeps the address
//!   while no fit node wants it.
//! * No state without a time-out, apart from `Standby` and `Active`.
//!
//! # What it never does
//! No I/O, no clock, no randomness: the same inputs give the same actions, which is what lets a recorded incident replay.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::arbiter::Voter;
use super::words::{
    Action, Beat, Claim, Effect, Fit, Holders, Input, Local, NodeView, Order, Phase, Reason, Rule, Setup, State,
    VipView,
};
use super::{NodeIx, VipIx};
use unit::{Member, Trouble, Unit, Yield};
use votes::Vote;

mod arbiter;
mod carry;
mod decide;
mod rank;
mod show;
mod take;
mod unit;
mod votes;

/// Microseconds since the machine was made; kept instead of `Instant` so that a machine can be written down.
type At = u64;
/// Index of a [`Unit`].
type UnitIx = usize;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Peer {
    /// When its newest beat arrived: it was not sent later.
    heard: Option<At>,
    /// When the newest beat of ours that it echoes was sent: its newest beat was not sent earlier.
    proved: Option<At>,
    /// Its process is known to have ended, since then.
    gone: Option<At>,
    number: Option<u64>,
    echo: Option<u64>,
    /// When we sent the beat of this number.
    echoed: Option<At>,
    beat: At,
    dead_after: At,
    patience: At,
    settings: u64,
    score: u32,
    /// What its last beat said of each VIP, by index.
    claims: Vec<Claim>,
}

impl Peer {
    /// Not heard yet: it is judged by what is configured here.
    fn unheard(setup: &Setup) -> Peer {
        Peer {
            heard: None,
            proved: None,
            gone: None,
            number: None,
            echo: None,
            echoed: None,
            beat: micros(setup.timers.beat),
            dead_after: micros(setup.timers.dead_after),
            patience: micros(setup.timers.dead_after),
            settings: 0,
            score: 0,
            claims: vec![Claim::NONE; setup.vips.len()],
        }
    }
}

/// Which units an input concerns.
#[derive(Clone, Copy)]
enum Scope {
    All,
    One(UnitIx),
}

/// The state machine of one node; time and everything else comes with its inputs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Table {
    #[serde(skip, default = "Instant::now")]
    epoch: Instant,
    setup: Setup,
    /// See [`Beat::settings`].
    settings: u64,
    now: At,
    /// Number of the newest beat that was sent.
    number: u64,
    /// Number and time of the beats of late.
    sent: VecDeque<(u64, At)>,
    next_beat: At,
    beat_now: bool,
    said: Vec<Claim>,
    /// When the process started: before that it may have promised what it does not remember.
    born: At,
    frozen_until: At,
    frozen_ms: u64,
    /// Too few voters were within reach.
    apart: bool,
    /// Some are again, but others that live may not have been heard yet.
    rejoins_until: At,
    /// Votes that were given for a shorter `dead_after`, and until when such are about.
    short_votes: (At, At),
    local: Local,
    keeper: Result<(), String>,
    stopping: bool,
    peers: Vec<Peer>,
    /// When each was asked what it answered last.
    witnesses: Vec<Option<At>>,
    arbiter: Option<Voter>,
    tracks: Vec<bool>,
    /// When a sum of weights changed last, here or elsewhere.
    scores_since: At,
    units: Vec<Unit>,
    unit_of: Vec<UnitIx>,
}

impl Table {
    /// A machine that has just started: it listens first.
    pub fn new(now: Instant, setup: Setup) -> Table {
        let mut units: Vec<Unit> = Vec::new();
        let mut unit_of = Vec::new();
        for (vip, rule) in setup.vips.iter().enumerate() {
            let mates = |unit: &Unit| rule.group.is_some() && unit.rule.group == rule.group;
            let u = units.iter().position(mates).unwrap_or_else(|| {
                let mark = rank::mark(&setup, rule);
                units.push(Unit::new(rule.clone(), mark));
                units.len() - 1
            });
            units[u].members.push(Member {
                vip,
                link_up: true,
                foreign: false,
                installed: false,
                leaving: false,
            });
            for pool in &rule.requires {
                if !units[u].rule.requires.contains(pool) {
                    units[u].rule.requires.push(pool.clone());
                }
            }
            unit_of.push(u);
        }
        let table = Table {
            epoch: now,
            now: 0,
            number: setup.boot,
            sent: VecDeque::new(),
            next_beat: 0,
            beat_now: false,
            said: Vec::new(),
            born: 0,
            frozen_until: 0,
            frozen_ms: 0,
            apart: false,
            rejoins_until: 0,
            short_votes: (0, 0),
            local: Local::default(),
            keeper: Ok(()),
            stopping: false,
            peers: vec![Peer::unheard(&setup); setup.names.len()],
            witnesses: vec![None; setup.witnesses],
            arbiter: setup.arbiter.as_ref().map(|a| Voter::new(a.terms, units.len())),
            tracks: vec![false; setup.tracks.len()],
            scores_since: 0,
            units,
            unit_of,
            settings: rank::settings(&setup),
            setup,
        };
        table.lingering_from_before()
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
        let mut scope = self.scope(&input);
        if gap >= micros(self.setup.timers.doubt) && self.has_peers() {
            self.frozen(gap / 1_000, out);
            scope = Scope::All;
        }
        let tick = matches!(input, Input::Tick);
        let all = 0..self.units.len();
        let units = match scope {
            Scope::All => all,
            Scope::One(u) => u..u + 1,
        };
        self.lose_majorities(units.clone());
        self.take(input, out);
        if tick {
            out.push(Action::Prove);
        }
        self.rejoin();
        for u in units.clone() {
            self.observe(u);
            self.cast(u);
            self.note_majority(u);
            if self.decide(u, out) {
                self.cast(u);
            }
        }
        for u in units.clone() {
            self.show(u, out);
        }
        if matches!(scope, Scope::All) {
            self.consult(out);
        }
        self.speak(units, out);
    }

    /// A beat if it is time to, if what it says has changed, or if somebody waits for it.
    fn speak(&mut self, units: std::ops::Range<UnitIx>, out: &mut Vec<Action>) {
        let mut changed = std::mem::take(&mut self.beat_now) || self.said.len() != self.units.len();
        self.said.resize(self.units.len(), Claim::NONE);
        for u in units {
            let claim = self.own_claim(u);
            changed |= std::mem::replace(&mut self.said[u], claim) != claim;
        }
        let due = self.now >= self.next_beat;
        if due {
            self.next_beat = self.now + self.pace();
        }
        if changed || due {
            self.number += 1;
            let old = self.now.saturating_sub(2 * micros(self.setup.timers.dead_after));
            while self.sent.front().is_some_and(|(_, at)| *at < old) {
                self.sent.pop_front();
            }
            self.sent.push_back((self.number, self.now));
            out.push(Action::Beat);
        }
    }

    /// The period of the fastest node that is heard: what it counts on must come as often as it needs.
    fn pace(&self) -> At {
        let live = (0..self.peers.len()).filter(|n| self.alive(*n));
        let fastest = live.map(|n| self.peers[n].beat).min();
        micros(self.setup.timers.beat).min(fastest.unwrap_or(At::MAX))
    }

    /// When the machine wants to be stepped at the latest, whatever else happens.
    pub fn deadline(&self) -> Instant {
        let mut next = self.next_beat;
        let mut consider = |t: At| {
            if t > self.now {
                next = next.min(t);
            }
        };
        consider(self.frozen_until);
        consider(self.rejoins_until);
        for (n, peer) in self.peers.iter().enumerate() {
            if let Some(heard) = peer.heard {
                consider(heard + peer.dead_after);
                consider(heard + peer.dead_after + self.vote_hold(n));
            }
            if let Some(proved) = peer.proved {
                consider(proved + peer.dead_after);
            }
        }
        for (u, unit) in self.units.iter().enumerate() {
            if let Some(y) = &unit.yields {
                consider(y.until);
                consider(y.finish);
            }
            if let Some(since) = unit.ready_since {
                consider(since + micros(unit.rule.preempt_delay));
            }
            if let Some(trouble) = &unit.trouble {
                consider(trouble.until);
            }
            if let Some(vote) = &unit.vote {
                consider(vote.until);
            }
            if matches!(unit.state, State::Claiming | State::Releasing) {
                consider(unit.asked.1 + micros(decide::ASK_AGAIN));
            }
            consider(unit.excused.map_or(0, |(_, until)| until));
            consider(self.listens_until(u));
            if let Some(end) = self.backed_until(u) {
                consider(end);
            }
            if self.arbiter.is_some() {
                consider(self.asks_arbiter_at(u));
                consider(self.strictly_quiet_until(u));
                consider(self.keeper_clears_until(u));
                consider(unit.lingers_until);
            }
        }
        if let Some(due) = self.arbiter.as_ref().and_then(|a| a.deadline(self.now)) {
            consider(due);
        }
        self.epoch + Duration::from_micros(next)
    }

    /// What we say of each VIP.
    pub fn claims(&self) -> Vec<Claim> {
        self.unit_of.iter().map(|u| self.own_claim(*u)).collect()
    }

    /// What the newest beat says to this node.
    pub fn beat_to(&self, n: NodeIx) -> Beat {
        let timers = &self.setup.timers;
        let known = self.peers.iter().map(|p| p.patience).max().unwrap_or(0);
        Beat {
            number: self.number,
            echo: self.peers[n].number,
            beat: timers.beat,
            dead_after: timers.dead_after,
            patience: timers.dead_after.max(Duration::from_micros(known)),
            settings: self.settings,
            score: self.score(self.setup.me),
            claims: self.claims(),
        }
    }

    fn own_claim(&self, u: UnitIx) -> Claim {
        let (fit, why) = self.fit(u);
        Claim {
            phase: self.phase(u),
            fit,
            lacks: why.lack(),
            wants: self.wants(u),
            backs: self.units[u].backs,
            rules: self.units[u].mark,
        }
    }

    /// Whether every address has been let go (after [`Order::Stop`]).
    pub fn idle(&self) -> bool {
        self.units.iter().all(|u| u.state == State::Standby)
    }

    /// Whether this address is installed, or may be.
    pub fn may_hold(&self, vip: VipIx) -> bool {
        self.unit(vip).state != State::Standby
    }

    /// The last claim of a live peer.
    pub fn peer_claim(&self, n: NodeIx, vip: VipIx) -> Option<Claim> {
        self.claim(n, self.unit_of[vip])
    }

    /// Whether something that is tracked holds, or has to be taken to.
    pub fn track_holds(&self, ix: usize) -> bool {
        self.tracks[ix]
    }

    /// Why the keeper is of no use, if so.
    pub fn keeper_problem(&self) -> Option<&str> {
        self.keeper.as_ref().err().map(String::as_str)
    }

    /// Whether every node is heard, and heard lately, and votes are enough: no witness is needed.
    pub fn calm(&self) -> bool {
        let pace = micros(self.setup.timers.beat);
        self.backed_by_nodes()
            && (0..self.peers.len()).all(|n| {
                // A slower node keeps the pace of the fastest.
                let late = self.peers[n].beat.min(pace) * 17 / 10;
                n == self.setup.me || self.alive(n) && self.peers[n].heard.is_some_and(|at| self.now - at < late)
            })
    }

    /// Whether this node does not hear us, as far as its beats tell: the connection may be dead in one direction.
    pub fn unheard_by(&self, n: NodeIx) -> bool {
        let late = 3 * micros(self.setup.timers.beat).max(self.peers[n].beat);
        self.peers[n].proved.is_none_or(|at| self.now - at > late)
    }

    // ---- the view ----

    fn unit(&self, vip: VipIx) -> &Unit {
        &self.units[self.unit_of[vip]]
    }

    fn member(&mut self, vip: VipIx) -> &mut Member {
        let unit = &mut self.units[self.unit_of[vip]];
        let member = unit.members.iter_mut().find(|m| m.vip == vip);
        member.expect("every address is a member of its unit")
    }

    fn installed(&self, vip: VipIx) -> bool {
        self.unit(vip).members.iter().any(|m| m.vip == vip && m.installed)
    }

    fn has_peers(&self) -> bool {
        self.peers.len() > 1
    }

    /// Whether it is to be reckoned with: it may have sent something within its `dead_after`.
    fn alive(&self, n: NodeIx) -> bool {
        let peer = &self.peers[n];
        n != self.setup.me && peer.gone.is_none() && peer.heard.is_some_and(|at| self.now - at < peer.dead_after)
    }

    /// Whether it can be relied upon: it has surely sent something within its `dead_after`.
    fn fresh(&self, n: NodeIx) -> bool {
        let peer = &self.peers[n];
        self.alive(n) && peer.proved.is_some_and(|at| self.now - at < peer.dead_after)
    }

    /// The claim of a live peer.
    fn claim(&self, n: NodeIx, u: UnitIx) -> Option<Claim> {
        self.alive(n).then(|| self.last_claim(n, u))
    }

    /// What a peer said last of a unit: for a group, the strongest hold, the weakest fitness, and what all agree on.
    fn last_claim(&self, n: NodeIx, u: UnitIx) -> Claim {
        let claims = &self.peers[n].claims;
        let members = &self.units[u].members;
        let mut all = claims[members[0].vip];
        for other in members[1..].iter().map(|m| claims[m.vip]) {
            if strength(other.phase) > strength(all.phase) {
                all.phase = other.phase;
            }
            if other.fit < all.fit {
                (all.fit, all.lacks) = (other.fit, other.lacks);
            }
            all.wants &= other.wants;
            all.backs = all.backs.filter(|_| other.backs == all.backs);
            if other.rules != self.units[u].mark {
                all.rules = other.rules;
            }
        }
        all
    }

    /// Live peers that hold the address or are about to.
    fn holders(&self, u: UnitIx) -> impl Iterator<Item = (NodeIx, Phase)> {
        (0..self.peers.len())
            .filter_map(move |n| self.claim(n, u).map(|c| (n, c.phase)))
            .filter(|(_, phase)| *phase != Phase::Free)
    }

    fn phase(&self, u: UnitIx) -> Phase {
        match (self.units[u].state, &self.units[u].yields) {
            (State::Active, Some(y)) => Phase::Yielding(y.to),
            (State::Active, None) => Phase::Held,
            (State::Releasing, _) => Phase::Leaving,
            (State::Claiming, _) => Phase::Claiming,
            // The address may be there, and nobody will say when it goes.
            (State::Standby | State::Fault, _) if self.now < self.units[u].lingers_until => Phase::Leaving,
            (State::Standby | State::Fault, _) => Phase::Free,
        }
    }
}

fn strength(phase: Phase) -> u8 {
    match phase {
        Phase::Free => 0,
        Phase::Leaving => 1,
        Phase::Claiming => 2,
        Phase::Yielding(_) => 3,
        Phase::Held => 4,
    }
}

fn micros(d: Duration) -> u64 {
    d.as_micros() as u64
}

#[cfg(test)]
mod arbiter_tests;
#[cfg(test)]
mod tests;
