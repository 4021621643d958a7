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
use votes::Vote;

mod arbiter;
mod carry;
mod decide;
mod rank;
mod show;
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
    /// One a VIP.
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

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Yield {
    to: NodeIx,
    /// Until then it must have begun.
    until: At,
    /// Until then it must hold.
    finish: At,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Trouble {
    why: String,
    until: At,
}

/// An address within its unit.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Member {
    vip: VipIx,
    link_up: bool,
    foreign: bool,
    /// The keeper has it installed.
    installed: bool,
    /// The keeper was asked to remove it, and has not answered.
    leaving: bool,
}

/// Addresses that are held together; most have one.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Unit {
    members: Vec<Member>,
    /// Of the first member, requiring what any of them does.
    rule: Rule,
    /// See [`Claim::rules`].
    mark: u32,
    /// Never `Fault`: that is derived.
    state: State,
    /// Why we hold it, or why we let it go last.
    reason: Reason,
    since: At,
    shown: State,
    demoted: bool,
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
    /// Some live node has other rules for it.
    disputed: bool,
    /// When we began to listen on it: process started, link came up, address configured.
    began: At,
    /// When a peer was heard first after that.
    heard: Option<At>,
    vote: Option<Vote>,
    /// What the vote of the last step said.
    backs: Option<NodeIx>,
    /// Number of the first beat that says that we back ourselves.
    candidate_since: Option<u64>,
    /// Votes may be lacking until then: a planned move to this node has failed, and they are on their way back.
    excused: Option<(NodeIx, At)>,
    /// When the keeper was asked first, and last.
    asked: (At, At),
    /// Since when enough have backed us without a break; kept only with `strict`.
    backed_since: Option<At>,
    /// Until then our kernel may have it although nobody here holds it; kept only with `strict`.
    lingers_until: At,
}

/// Which units an input concerns.
#[derive(Clone, Copy)]
enum Scope {
    All,
    One(UnitIx),
}

/// The machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Table {
    #[serde(skip, default = "Instant::now")]
    epoch: Instant,
    setup: Setup,
    /// See [`Beat::settings`].
    settings: u64,
    now: At,
    /// Of the newest beat.
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

    // ---- inputs ----

    fn scope(&self, input: &Input) -> Scope {
        match input {
            Input::Done { vip, .. }
            | Input::Lost { vip, .. }
            | Input::Link { vip, .. }
            | Input::Foreign { vip, .. }
            | Input::Admin(Order::Demote(vip) | Order::Allow(vip)) => Scope::One(self.unit_of[*vip]),
            _ => Scope::All,
        }
    }

    fn take(&mut self, input: Input, out: &mut Vec<Action>) {
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
    fn trouble(&mut self, vip: VipIx, why: String, out: &mut Vec<Action>) {
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

    fn frozen(&mut self, gap_ms: u64, out: &mut Vec<Action>) {
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
    fn rejoin(&mut self) {
        let apart = self.reached() < self.setup.quorum;
        if std::mem::replace(&mut self.apart, apart) && !apart {
            let me = self.setup.me;
            let missing = |n: usize| n != me && !self.alive(n) && self.peers[n].gone.is_none();
            if (0..self.peers.len()).any(missing) {
                self.rejoins_until = self.now + 3 * micros(self.setup.timers.beat);
            }
        }
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

impl Unit {
    fn new(rule: Rule, mark: u32) -> Unit {
        Unit {
            members: Vec::new(),
            rule,
            mark,
            state: State::Standby,
            reason: Reason::Starting,
            since: 0,
            shown: State::Standby,
            demoted: false,
            trouble: None,
            troubles: 0,
            yields: None,
            snubbed: Vec::new(),
            ready_since: None,
            last_holder: None,
            insist: false,
            rivals: false,
            disputed: false,
            began: 0,
            heard: None,
            vote: None,
            backs: None,
            candidate_since: None,
            excused: None,
            asked: (0, 0),
            backed_since: None,
            lingers_until: 0,
        }
    }

    /// Whether other nodes may hold it at the same time.
    fn is_shared(&self) -> bool {
        self.rule.hold == Holders::All
    }

    /// Listens from now on.
    fn begin(&mut self, now: At) {
        self.began = now;
        self.heard = None;
        self.ready_since = None;
    }
}

impl Member {
    fn forget(&mut self) {
        self.installed = false;
        self.leaving = false;
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
