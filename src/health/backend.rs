//! One backend as everybody sees it: probes, real traffic and the operator's orders in one state.
//!
//! Four machines run side by side and never look at each other: the [`Verdict`] of the probes, the [`Outlier`] of real
//! traffic, what the backend's agent said last ([`Report`]), and the last [`AdminState`] of the operator. The state word is derived
//! from them, most binding first:
//!
//! | state | when | new work |
//! |---|---|---|
//! | `disabled` | the operator, or the agent, said down | none |
//! | `drain` | the operator, or the agent, said drain | none, what it has goes on |
//! | `down` | probes fail, or the agent said so | none |
//! | `ejected` | real traffic fails | none |
//! | `starting` | no probe result yet | yes |
//! | `up` | otherwise | yes |
//!
//! Probes go on in every state, so that an order taken back finds the truth at once. A backend that returns to `up` from
//! anything but `starting` ramps up, if the pool has a slow start: a new backend is not a returning one. One that comes to
//! others that serve, because a source has named it, is probed before it takes work, and ramps up.
//!
//! What this file never does: decide for the pool. Whether an ejection would take the last one is the caller's knowledge
//! and comes in as a parameter; who of a pool takes its work is [`super::eligibility`].

use std::time::{Duration, Instant};

pub use super::admin_state::AdminState;
use super::agent::Report;
use super::outlier::Outlier;
use super::reason::{FailureKind, Reason, Remark};
use super::slow_start;
use super::verdict::{Condition, Verdict};
use crate::base::words;
use crate::config::model::{Passive, PoolPolicy, ProbeKind};

words! {
    /// The contract's state words.
    pub enum State {
        /// Takes new work.
        Up = "up",
        /// Probes fail.
        Down = "down",
        /// Real traffic failed.
        Ejected = "ejected",
        /// Not probed yet.
        Starting = "starting",
        /// Takes no new work by order; what it has goes on.
        Drain = "drain",
        /// Out of service by order.
        Disabled = "disabled",
    }
}

impl State {
    /// Whether nothing is known against it.
    pub fn is_healthy(self) -> bool {
        matches!(self, State::Up | State::Starting)
    }
}

/// Largest weight, as in the configuration.
const WEIGHT_MAX: u32 = 65_535;

/// What becomes of the operator's orders when a pool changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orders {
    /// They hold: only the members have changed.
    Stand,
    /// They end: a reload.
    End,
}

/// Whether a backend may take new work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    /// It may take new work.
    Ready,
    /// Nobody knows yet: as if it were ready.
    Untested,
    /// The same of a newcomer: others first.
    New,
    /// Unhealthy: only by `all_down: try_all`.
    Unhealthy,
    /// The operator said no.
    Withdrawn,
}

/// The part of a pool's configuration that concerns health.
#[derive(Debug, Clone, PartialEq)]
pub struct Criteria {
    /// Whether there are probes at all.
    pub probed: bool,
    /// Whether it has an agent.
    pub agent: bool,
    /// Time between probes.
    pub interval: Duration,
    /// Successes in a row that bring a backend up.
    pub rise: u32,
    /// Failures in a row that take it down.
    pub fall: u32,
    /// Ejection; `None` = off.
    pub passive: Option<Passive>,
    /// Ramp of a returning backend; `None` = off.
    pub slow_start: Option<Duration>,
}

impl From<&PoolPolicy> for Criteria {
    fn from(pool: &PoolPolicy) -> Criteria {
        Criteria {
            probed: pool.health.kind != ProbeKind::None,
            agent: pool.health.agent.is_some(),
            interval: pool.health.interval,
            rise: pool.health.rise,
            fall: pool.health.fall,
            passive: pool.passive.clone(),
            slow_start: pool.slow_start,
        }
    }
}

/// A change of state, for the log, for counters and for whoever publishes snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The state before.
    pub from: State,
    /// The state from now on.
    pub to: State,
    /// What made it change.
    pub reason: Remark,
}

/// What an agent has said so far.
#[derive(Debug, Clone, PartialEq)]
struct Agent {
    /// What it said when it said that the backend is not fit.
    unfit: Option<Remark>,
    order: AdminState,
    percent: u32,
}

impl Default for Agent {
    fn default() -> Agent {
        let (unfit, order, percent) = (None, AdminState::Ready, 100);
        Agent { unfit, order, percent }
    }
}

/// State of one backend. Survives reloads: call [`BackendState::adopt`] with the new policy.
#[derive(Debug, Clone)]
pub struct BackendState {
    policy: Criteria,
    verdict: Verdict,
    outlier: Outlier,
    order: AdminState,
    agent: Agent,
    /// What the probes, and the traffic that ejected it, said last.
    probe_reason: Remark,
    eject_reason: Remark,
    since: Instant,
    /// When it last returned; the ramp starts here.
    returned: Option<Instant>,
    /// It has come to others that serve: it is probed first, and ramps up.
    is_newcomer: bool,
}

impl BackendState {
    /// A backend nobody has heard of before.
    pub fn new(now: Instant, policy: Criteria) -> BackendState {
        let mut state = BackendState {
            policy,
            verdict: Verdict::default(),
            outlier: Outlier::default(),
            order: AdminState::Ready,
            agent: Agent::default(),
            probe_reason: Reason::NotProbed.into(),
            eject_reason: Reason::NotProbed.into(),
            since: now,
            returned: None,
            is_newcomer: false,
        };
        state.start_over();
        state
    }

    /// The same of one that comes to others that serve.
    pub fn newcomer(now: Instant, policy: Criteria) -> BackendState {
        let unprobed = !policy.probed;
        BackendState {
            is_newcomer: true,
            returned: unprobed.then_some(now),
            ..BackendState::new(now, policy)
        }
    }

    /// The state word.
    pub fn state(&self) -> State {
        match (self.order.max(self.agent.order), self.verdict.condition()) {
            (AdminState::Down, _) => State::Disabled,
            (AdminState::Drain, _) => State::Drain,
            (AdminState::Ready, Condition::Down) => State::Down,
            (AdminState::Ready, _) if self.agent.unfit.is_some() => State::Down,
            (AdminState::Ready, _) if self.outlier.is_ejected() => State::Ejected,
            (AdminState::Ready, Condition::Starting) => State::Starting,
            (AdminState::Ready, Condition::Up) => State::Up,
        }
    }

    /// Why it is in this state.
    pub fn reason(&self) -> Remark {
        match self.state() {
            State::Disabled | State::Drain if self.order >= self.agent.order => Reason::Order.into(),
            State::Disabled | State::Drain => Reason::Agent.into(),
            State::Ejected => self.eject_reason.clone(),
            State::Down if self.verdict.condition() != Condition::Down => match &self.agent.unfit {
                Some(remark) => remark.clone(),
                None => self.probe_reason.clone(),
            },
            State::Up | State::Down | State::Starting => self.probe_reason.clone(),
        }
    }

    /// Since when it has been in this state.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Whether it may take new work.
    pub fn standing(&self) -> Standing {
        match self.state() {
            State::Up => Standing::Ready,
            State::Starting if self.is_newcomer => Standing::New,
            State::Starting => Standing::Untested,
            State::Down | State::Ejected => Standing::Unhealthy,
            State::Drain | State::Disabled => Standing::Withdrawn,
        }
    }

    /// Its share of its weight in 1/1024ths: less than the whole while it ramps up, or if its agent wants less.
    pub fn share(&self, now: Instant) -> u32 {
        let ramped = match (self.state(), self.returned, self.policy.slow_start) {
            (State::Up, Some(returned), Some(ramp)) => slow_start::share(returned, ramp, now),
            _ => slow_start::WHOLE,
        };
        (ramped * self.agent.percent.min(100) / 100).max(1)
    }

    /// The weight that its agent makes of this one: none, or more than it has. Less of it is a matter of
    /// [`share`](Self::share), which is finer.
    pub fn weight(&self, weight: u32) -> u32 {
        match self.agent.percent {
            0 => 0,
            1..=100 => weight,
            percent => (u64::from(weight) * u64::from(percent) / 100).min(u64::from(WEIGHT_MAX)) as u32,
        }
    }

    /// What the operator said last.
    pub fn ordered(&self) -> AdminState {
        self.order
    }

    /// What the probes say.
    pub fn condition(&self) -> Condition {
        self.verdict.condition()
    }

    /// When [`tick`](BackendState::tick) has something to do or the share has moved on; `None` = not before something
    /// happens.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let ramp = match (self.state(), self.returned, self.policy.slow_start) {
            (State::Up, Some(returned), Some(ramp)) => slow_start::next_step(returned, ramp, now),
            _ => None,
        };
        let end_of_ejection = self.outlier.until().filter(|_| !self.policy.probed);
        ramp.into_iter().chain(end_of_ejection).min()
    }

    /// When the next probe should start, counted from when the last one did.
    pub fn next_probe_in(&self) -> Duration {
        self.verdict.next_in(self.policy.interval)
    }

    /// Whether the next probe shall try more than once before it fails.
    pub fn probe_insists(&self) -> bool {
        self.verdict.insists()
    }

    /// While ejected: when a probe may bring it back. Have it probed then (`Schedule::hurry`).
    pub fn ejected_until(&self) -> Option<Instant> {
        self.outlier.until()
    }

    /// A probe has ended; `remark` says how ("connect ok", "connection refused").
    pub fn probed(&mut self, now: Instant, passed: bool, remark: &Remark) -> Option<Change> {
        if !self.policy.probed {
            return None;
        }
        self.change(now, |state| {
            let turned = state.verdict.observe(passed, state.policy.rise, state.policy.fall);
            // Words of a result that has not changed the condition would contradict it.
            if turned || passed == (state.verdict.condition() == Condition::Up) {
                remark.clone_into(&mut state.probe_reason);
            }
            if passed {
                state.outlier.probe_passed(now);
            }
        })
    }

    /// Real work went well, so many times.
    pub fn succeeded(&mut self, count: u64) {
        self.outlier.succeeded(count);
    }

    /// Real work failed. `may_eject`: another backend of the pool could take the work.
    pub fn failed(&mut self, now: Instant, kind: FailureKind, may_eject: bool) -> Option<Change> {
        let passive = self.policy.passive.clone()?;
        self.change(now, |state| {
            // A backend that takes no work anyway is not ejected for what it still had.
            let may_eject = may_eject && matches!(state.state(), State::Up | State::Starting);
            if let Some(length) = state.outlier.failed(now, &passive, may_eject) {
                state.eject_reason = Reason::from(kind).says(format!(
                    "{} failures within {:?}, last: {kind}; ejected for {length:?}",
                    passive.failures, passive.window
                ));
            }
        })
    }

    /// The operator spoke. `Ready` also takes back an ejection; the probes' verdict stands.
    pub fn order(&mut self, now: Instant, order: AdminState) -> Option<Change> {
        self.change(now, |state| {
            state.order = order;
            if order == AdminState::Ready {
                state.outlier.reset();
            }
        })
    }

    /// The agent spoke; `words` are what it said.
    pub fn agent_said(&mut self, now: Instant, report: Report, words: &str) -> Option<Change> {
        if !self.policy.agent {
            return None;
        }
        self.change(now, |state| {
            match report.fit {
                Some(true) => state.agent.unfit = None,
                Some(false) => state.agent.unfit = Some(Reason::Agent.says(format!("its agent says: {words}"))),
                None => {}
            }
            state.agent.order = report.order.unwrap_or(state.agent.order);
            state.agent.percent = report.percent.unwrap_or(state.agent.percent);
        })
    }

    /// Time has come ([`deadline`](BackendState::deadline)).
    pub fn tick(&mut self, now: Instant) -> Option<Change> {
        self.change(now, |state| {
            state.outlier.tick(now, state.policy.probed);
        })
    }

    /// A new policy. What is known of the backend stays, unless probes were switched on or off.
    pub fn adopt(&mut self, now: Instant, policy: Criteria, orders: Orders) -> Option<Change> {
        self.change(now, |state| {
            let switched = state.policy.probed != policy.probed;
            state.policy = policy;
            if orders == Orders::End {
                state.order = AdminState::Ready;
            }
            if state.policy.passive.is_none() {
                state.outlier.reset();
            }
            if switched {
                state.start_over();
            }
            if !state.policy.agent {
                state.agent = Agent::default();
            }
        })
    }

    fn start_over(&mut self) {
        let (verdict, reason) = if self.policy.probed {
            (Verdict::default(), Reason::NotProbedYet)
        } else {
            (Verdict::unprobed(), Reason::NotProbed)
        };
        self.verdict = verdict;
        self.probe_reason = reason.into();
    }

    fn change(&mut self, now: Instant, act: impl FnOnce(&mut BackendState)) -> Option<Change> {
        let from = self.state();
        act(self);
        let to = self.state();
        if from == to {
            return None;
        }
        self.since = now;
        if to == State::Up {
            self.returned = (from != State::Starting || self.is_newcomer).then_some(now);
        }
        Some(Change {
            from,
            to,
            reason: self.reason(),
        })
    }
}

#[cfg(test)]
mod tests;
