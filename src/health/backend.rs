//! One backend as everybody sees it: probes, real traffic and the operator's orders in one state.
//!
//! Four machines run side by side and never look at each other: the [`Verdict`] of the probes, the [`Outlier`] of real
//! traffic, what the backend's agent said last ([`Report`]), and the last [`Order`] of the operator. The state word is derived
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

use super::agent::Report;
pub use super::order::Order;
use super::outlier::Outlier;
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
    /// Yes.
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
pub struct Policy {
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

impl From<&PoolPolicy> for Policy {
    fn from(pool: &PoolPolicy) -> Policy {
        Policy {
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
    /// Before.
    pub from: State,
    /// Now.
    pub to: State,
    /// Why, in words.
    pub reason: String,
}

/// What an agent has said so far.
#[derive(Debug, Clone, PartialEq)]
struct Agent {
    /// Its words when it said that the backend is not fit.
    unfit: Option<String>,
    order: Order,
    percent: u32,
}

impl Default for Agent {
    fn default() -> Agent {
        let (unfit, order, percent) = (None, Order::Ready, 100);
        Agent { unfit, order, percent }
    }
}

/// State of one backend. Survives reloads: call [`BackendState::adopt`] with the new policy.
#[derive(Debug, Clone)]
pub struct BackendState {
    policy: Policy,
    verdict: Verdict,
    outlier: Outlier,
    order: Order,
    agent: Agent,
    /// Last words of the probes and of the traffic.
    probe_reason: String,
    eject_reason: String,
    since: Instant,
    /// When it last returned; the ramp starts here.
    returned: Option<Instant>,
    /// It has come to others that serve: it is probed first, and ramps up.
    is_newcomer: bool,
}

impl BackendState {
    /// A backend nobody has heard of before.
    pub fn new(now: Instant, policy: Policy) -> BackendState {
        let mut state = BackendState {
            policy,
            verdict: Verdict::default(),
            outlier: Outlier::default(),
            order: Order::Ready,
            agent: Agent::default(),
            probe_reason: String::new(),
            eject_reason: String::new(),
            since: now,
            returned: None,
            is_newcomer: false,
        };
        state.start_over();
        state
    }

    /// The same of one that comes to others that serve.
    pub fn newcomer(now: Instant, policy: Policy) -> BackendState {
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
            (Order::Down, _) => State::Disabled,
            (Order::Drain, _) => State::Drain,
            (Order::Ready, Condition::Down) => State::Down,
            (Order::Ready, _) if self.agent.unfit.is_some() => State::Down,
            (Order::Ready, _) if self.outlier.is_ejected() => State::Ejected,
            (Order::Ready, Condition::Starting) => State::Starting,
            (Order::Ready, Condition::Up) => State::Up,
        }
    }

    /// Why it is in this state, in words.
    pub fn reason(&self) -> &str {
        match self.state() {
            State::Disabled | State::Drain if self.order >= self.agent.order => "by order",
            State::Disabled | State::Drain => "its agent says so",
            State::Ejected => &self.eject_reason,
            State::Down if self.verdict.condition() != Condition::Down => match &self.agent.unfit {
                Some(words) => words,
                None => &self.probe_reason,
            },
            State::Up | State::Down | State::Starting => &self.probe_reason,
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
    pub fn ordered(&self) -> Order {
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

    /// A probe has ended; `reason` says how ("connect ok", "connection refused").
    pub fn probed(&mut self, now: Instant, passed: bool, reason: &str) -> Option<Change> {
        if !self.policy.probed {
            return None;
        }
        self.change(now, |state| {
            let turned = state.verdict.observe(passed, state.policy.rise, state.policy.fall);
            // Words of a result that has not changed the condition would contradict it.
            if turned || passed == (state.verdict.condition() == Condition::Up) {
                reason.clone_into(&mut state.probe_reason);
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
    pub fn failed(&mut self, now: Instant, reason: &str, may_eject: bool) -> Option<Change> {
        let passive = self.policy.passive.clone()?;
        self.change(now, |state| {
            // A backend that takes no work anyway is not ejected for what it still had.
            let may_eject = may_eject && matches!(state.state(), State::Up | State::Starting);
            if let Some(length) = state.outlier.failed(now, &passive, may_eject) {
                state.eject_reason = format!(
                    "{} failures within {:?}, last: {reason}; ejected for {length:?}",
                    passive.failures, passive.window
                );
            }
        })
    }

    /// The operator spoke. `Ready` also takes back an ejection; the probes' verdict stands.
    pub fn order(&mut self, now: Instant, order: Order) -> Option<Change> {
        self.change(now, |state| {
            state.order = order;
            if order == Order::Ready {
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
                Some(false) => state.agent.unfit = Some(format!("its agent says: {words}")),
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
    pub fn adopt(&mut self, now: Instant, policy: Policy, orders: Orders) -> Option<Change> {
        self.change(now, |state| {
            let switched = state.policy.probed != policy.probed;
            state.policy = policy;
            if orders == Orders::End {
                state.order = Order::Ready;
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
            (Verdict::default(), "not probed yet")
        } else {
            (Verdict::unprobed(), "not probed")
        };
        self.verdict = verdict;
        reason.clone_into(&mut self.probe_reason);
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
            reason: self.reason().to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A newcomer is probed before it counts, and ramps up; one that begins with its pool does neither. Meant to notice: the
    /// newcomer ready at once; without a ramp.
    #[test]
    fn newcomers_are_probed_first() {
        let start = Instant::now();
        for (probed, newcomer, before, share) in [
            (true, true, Standing::New, 0..512),
            (true, false, Standing::Untested, 1024..1025),
            (false, true, Standing::Ready, 0..512),
            (false, false, Standing::Ready, 1024..1025),
        ] {
            let policy = Policy {
                slow_start: Some(10 * SECOND),
                ..policy(probed)
            };
            let mut backend = match newcomer {
                true => BackendState::newcomer(start, policy),
                false => BackendState::new(start, policy),
            };
            assert_eq!(backend.standing(), before, "{probed} {newcomer}");
            backend.probed(start, true, "connect ok");
            assert_eq!(backend.standing(), Standing::Ready);
            let found = backend.share(start + SECOND);
            assert!(share.contains(&found), "{probed} {newcomer}: {found}");
        }
    }

    fn policy(probed: bool) -> Policy {
        Policy {
            probed,
            agent: true,
            interval: 2 * SECOND,
            rise: 2,
            fall: 3,
            passive: Some(Passive {
                failures: 2,
                window: 10 * SECOND,
                eject: 10 * SECOND,
            }),
            slow_start: Some(10 * SECOND),
        }
    }

    /// What may happen to a backend, each one second after the one before.
    #[derive(Debug, Clone, Copy)]
    enum Event {
        Pass,
        Fail,
        /// As many failures of traffic as eject, if another backend is left.
        Broken,
        /// The same of the last backend.
        BrokenLast,
        Drain,
        Down,
        Ready,
        /// Ten seconds pass.
        Wait,
        Reload,
    }
    use Event::*;

    fn apply(backend: &mut BackendState, now: &mut Instant, event: Event) -> Option<Change> {
        *now += SECOND;
        match event {
            Pass => backend.probed(*now, true, "connect ok"),
            Fail => backend.probed(*now, false, "connection refused"),
            Broken | BrokenLast => {
                let first = backend.failed(*now, "reset", matches!(event, Broken));
                first.or(backend.failed(*now, "reset", matches!(event, Broken)))
            }
            Drain => backend.order(*now, Order::Drain),
            Down => backend.order(*now, Order::Down),
            Ready => backend.order(*now, Order::Ready),
            Wait => {
                *now += 10 * SECOND;
                backend.tick(*now)
            }
            Reload => {
                let policy = backend.policy.clone();
                backend.adopt(*now, policy, Orders::End)
            }
        }
    }

    /// The shortest way into each state, and then every event. rise 2 / fall 3, two failures eject for 10 s.
    /// Broken on purpose: `Wait` ending the ejection of a probed backend; `Ready` not taking an ejection back.
    #[test]
    fn every_event_in_every_state() {
        use State::{Disabled, Down as IsDown, Drain as Draining, Ejected, Starting, Up};
        let events = [Pass, Fail, Broken, BrokenLast, Drain, Down, Ready, Wait, Reload];
        #[rustfmt::skip]
        let rows: [(&[Event], State, [State; 9]); 11] = [
            //                            Pass      Fail      Broken    BrokenLast Drain    Down      Ready     Wait      Reload
            (&[], Starting,              [Up,       IsDown,   Ejected,  Starting, Draining, Disabled, Starting, Starting, Starting]),
            (&[Pass], Up,                [Up,       Up,       Ejected,  Up,       Draining, Disabled, Up,       Up,       Up]),
            (&[Pass, Fail, Fail], Up,    [Up,       IsDown,   Ejected,  Up,       Draining, Disabled, Up,       Up,       Up]),
            (&[Fail], IsDown,            [IsDown,   IsDown,   IsDown,   IsDown,   Draining, Disabled, IsDown,   IsDown,   IsDown]),
            (&[Fail, Pass], IsDown,      [Up,       IsDown,   IsDown,   IsDown,   Draining, Disabled, IsDown,   IsDown,   IsDown]),
            (&[Pass, Broken], Ejected,   [Ejected,  Ejected,  Ejected,  Ejected,  Draining, Disabled, Up,       Ejected,  Ejected]),
            (&[Pass, Broken, Wait], Ejected, [Up,   Ejected,  Ejected,  Ejected,  Draining, Disabled, Up,       Ejected,  Ejected]),
            (&[Pass, Drain], Draining,   [Draining, Draining, Draining, Draining, Draining, Disabled, Up,       Draining, Up]),
            (&[Fail, Drain], Draining,   [Draining, Draining, Draining, Draining, Draining, Disabled, IsDown,   Draining, IsDown]),
            (&[Pass, Down], Disabled,    [Disabled, Disabled, Disabled, Disabled, Draining, Disabled, Up,       Disabled, Up]),
            (&[Down], Disabled,          [Disabled, Disabled, Disabled, Disabled, Draining, Disabled, Starting, Disabled, Starting]),
        ];
        for (path, state, wanted) in rows {
            for (event, wanted) in events.into_iter().zip(wanted) {
                let mut now = Instant::now();
                let mut backend = BackendState::new(now, policy(true));
                path.iter()
                    .for_each(|&event| drop(apply(&mut backend, &mut now, event)));
                assert_eq!(backend.state(), state, "{path:?}");
                let change = apply(&mut backend, &mut now, event);
                assert_eq!(backend.state(), wanted, "{path:?} then {event:?}");
                let reported = change.map(|change| (change.from, change.to));
                assert_eq!(
                    reported,
                    (state != wanted).then_some((state, wanted)),
                    "{path:?} then {event:?}"
                );
            }
        }
    }

    /// Without probes: always up but for ejections, which time alone ends.
    #[test]
    fn without_probes() {
        let mut now = Instant::now();
        let mut backend = BackendState::new(now, policy(false));
        let rows = [
            (Fail, State::Up),
            (Broken, State::Ejected),
            (Pass, State::Ejected),
            (Wait, State::Up),
            (Drain, State::Drain),
            (Ready, State::Up),
        ];
        assert_eq!((backend.state(), backend.reason()), (State::Up, "not probed"));
        for (event, wanted) in rows {
            apply(&mut backend, &mut now, event);
            assert_eq!(backend.state(), wanted, "{event:?}");
        }
    }

    /// Columns: way there, reason.
    #[test]
    fn reasons_are_those_of_the_state() {
        let rows: [(&[Event], &str); 7] = [
            (&[], "not probed yet"),
            (&[Pass], "connect ok"),
            (&[Pass, Fail], "connect ok"),
            (&[Pass, Fail, Fail, Fail], "connection refused"),
            (&[Fail, Pass], "connection refused"),
            (&[Pass, Broken], "2 failures within 10s, last: reset; ejected for 10s"),
            (&[Pass, Drain], "by order"),
        ];
        for (path, wanted) in rows {
            let mut now = Instant::now();
            let mut backend = BackendState::new(now, policy(true));
            path.iter()
                .for_each(|&event| drop(apply(&mut backend, &mut now, event)));
            assert_eq!(backend.reason(), wanted, "{path:?}");
        }
    }

    /// Columns: way there, whether it ramps. Broken on purpose: a ramp after `starting`.
    #[test]
    fn returning_backends_ramp_up_and_new_ones_do_not() {
        let rows: [(&[Event], bool); 7] = [
            (&[Pass], false),
            (&[Fail, Pass, Pass], true),
            (&[Pass, Broken, Wait, Pass], true),
            (&[Pass, Drain, Ready], true),
            (&[Pass, Down, Ready], true),
            (&[Down, Ready, Pass], false),
            (&[Pass, Fail, Pass], false),
        ];
        for (path, wanted) in rows {
            let mut now = Instant::now();
            let mut backend = BackendState::new(now, policy(true));
            path.iter()
                .for_each(|&event| drop(apply(&mut backend, &mut now, event)));
            assert_eq!(backend.state(), State::Up);
            assert_eq!(backend.share(now) < slow_start::WHOLE, wanted, "{path:?}");
            assert_eq!(backend.deadline(now).is_some(), wanted, "{path:?}");
            let halfway = backend.share(now + 5 * SECOND);
            assert_eq!(halfway, if wanted { 512 } else { 1024 }, "{path:?}");
            assert_eq!(backend.share(now + 10 * SECOND), 1024, "{path:?}");
            assert_eq!(backend.deadline(now + 10 * SECOND), None, "{path:?}");
        }
    }

    #[test]
    fn probes_come_sooner_in_doubt() {
        let mut now = Instant::now();
        let mut backend = BackendState::new(now, policy(true));
        for (event, wanted_ms) in [
            (Pass, 2000),
            (Fail, 500),
            (Fail, 500),
            (Fail, 2000),
            (Pass, 500),
            (Pass, 2000),
        ] {
            apply(&mut backend, &mut now, event);
            assert_eq!(backend.next_probe_in().as_millis(), wanted_ms, "after {event:?}");
        }
    }

    #[test]
    fn switching_probes_on_starts_over() {
        let now = Instant::now();
        let mut backend = BackendState::new(now, policy(true));
        backend.probed(now, false, "connection refused");
        assert_eq!(
            backend.adopt(now, policy(false), Orders::End).map(|change| change.to),
            Some(State::Up)
        );
        assert_eq!(
            backend.adopt(now, policy(true), Orders::End).map(|change| change.to),
            Some(State::Starting)
        );
    }

    proptest! {
        /// Any sequence: changes are reported exactly when the word changes, `since` moves with them, a share is whole
        /// unless up, and following deadlines ends.
        #[test]
        fn reports_are_complete(path in proptest::collection::vec(0usize..9, 0..60), probed in any::<bool>()) {
            let events = [Pass, Fail, Broken, BrokenLast, Drain, Down, Ready, Wait, Reload];
            let mut now = Instant::now();
            let mut backend = BackendState::new(now, policy(probed));
            for at in path {
                let (before, since) = (backend.state(), backend.since());
                let change = apply(&mut backend, &mut now, events[at]);
                prop_assert_eq!(change.is_some(), backend.state() != before);
                prop_assert_eq!(backend.since(), if change.is_some() { now } else { since });
                let share = backend.share(now);
                prop_assert!((1..=1024).contains(&share) && (backend.state() == State::Up || share == 1024));
                prop_assert!(!backend.reason().is_empty());
            }
            let mut steps = 0;
            while let Some(at) = backend.deadline(now) {
                now = now.max(at);
                backend.tick(now);
                steps += 1;
                prop_assert!(steps < 300);
            }
        }
    }

    /// What an agent says holds until it says something else, beside the probes and below the operator.
    /// Meant to fail with `max` of the orders replaced by the operator's, and with `unfit` looked at before the probes.
    #[test]
    fn agents() {
        use crate::health::agent::parse;
        let mut now = Instant::now();
        let mut backend = BackendState::new(now, policy(true));
        apply(&mut backend, &mut now, Pass);
        for (line, state, share, weight, reason) in [
            ("up", State::Up, 1024, 10, "connect ok"),
            ("down # disk", State::Down, 1024, 10, "its agent says: down # disk"),
            ("75%", State::Down, 768, 10, "its agent says: down # disk"),
            ("up", State::Up, 768, 10, "connect ok"),
            ("drain", State::Drain, 768, 10, "its agent says so"),
            ("maint 200%", State::Disabled, 1024, 20, "its agent says so"),
            ("nonsense", State::Disabled, 1024, 20, "its agent says so"),
            ("ready 0%", State::Up, 1, 0, "connect ok"),
            ("100%", State::Up, 1024, 10, "connect ok"),
        ] {
            let change = backend.agent_said(now, parse(line), line);
            // Beyond the ramp of a backend that returns.
            now += 20 * SECOND;
            let seen = (
                backend.state(),
                backend.share(now),
                backend.weight(10),
                backend.reason(),
            );
            assert_eq!(seen, (state, share, weight, reason), "{line} {change:?}");
        }
        backend.agent_said(now, parse("drain"), "drain");
        backend.order(now, Order::Down);
        assert_eq!((backend.state(), backend.reason()), (State::Disabled, "by order"));
        backend.order(now, Order::Ready);
        assert_eq!(backend.state(), State::Drain, "the agent has not changed its mind");
        backend.adopt(
            now,
            Policy {
                agent: false,
                ..policy(true)
            },
            Orders::End,
        );
        assert_eq!(backend.state(), State::Up, "there is no agent any more");
    }
}
