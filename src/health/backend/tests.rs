//! One backend through its life.

use super::*;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

/// A newcomer is probed before it counts, and ramps up; one that begins with its pool does neither. Seen to fail: the
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
        let policy = Criteria {
            slow_start: Some(10 * SECOND),
            ..policy(probed)
        };
        let mut backend = match newcomer {
            true => BackendState::newcomer(start, policy),
            false => BackendState::new(start, policy),
        };
        assert_eq!(backend.standing(), before, "{probed} {newcomer}");
        backend.probed(start, true, &Reason::ConnectOk.into());
        assert_eq!(backend.standing(), Standing::Ready);
        let found = backend.share(start + SECOND);
        assert!(share.contains(&found), "{probed} {newcomer}: {found}");
    }
}

fn policy(probed: bool) -> Criteria {
    Criteria {
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
        Pass => backend.probed(*now, true, &Reason::ConnectOk.into()),
        Fail => backend.probed(*now, false, &Reason::Refused.into()),
        Broken | BrokenLast => {
            let first = backend.failed(*now, FailureKind::ResetEarly, matches!(event, Broken));
            first.or(backend.failed(*now, FailureKind::ResetEarly, matches!(event, Broken)))
        }
        Drain => backend.order(*now, AdminState::Drain),
        Down => backend.order(*now, AdminState::Down),
        Ready => backend.order(*now, AdminState::Ready),
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
    assert_eq!((backend.state(), backend.reason().text()), (State::Up, "not probed"));
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
        (
            &[Pass, Broken],
            "2 failures within 10s, last: reset_early; ejected for 10s",
        ),
        (&[Pass, Drain], "by order"),
    ];
    for (path, wanted) in rows {
        let mut now = Instant::now();
        let mut backend = BackendState::new(now, policy(true));
        path.iter()
            .for_each(|&event| drop(apply(&mut backend, &mut now, event)));
        assert_eq!(backend.reason().text(), wanted, "{path:?}");
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
    backend.probed(now, false, &Reason::Refused.into());
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
            prop_assert!(!backend.reason().text().is_empty());
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
/// Seen to fail with `max` of the orders replaced by the operator's, and with `unfit` looked at before the probes.
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
        let remark = backend.reason();
        let seen = (backend.state(), backend.share(now), backend.weight(10), remark.text());
        assert_eq!(seen, (state, share, weight, reason), "{line} {change:?}");
    }
    // Of both the probes are heard.
    backend.agent_said(now, parse("down"), "down");
    for _ in 0..3 {
        apply(&mut backend, &mut now, Fail);
    }
    assert_eq!(
        (backend.state(), backend.reason().text()),
        (State::Down, "connection refused")
    );
    backend.agent_said(now, parse("up"), "up");
    for _ in 0..2 {
        apply(&mut backend, &mut now, Pass);
    }
    backend.agent_said(now, parse("drain"), "drain");
    backend.order(now, AdminState::Down);
    assert_eq!(
        (backend.state(), backend.reason().text()),
        (State::Disabled, "by order")
    );
    backend.order(now, AdminState::Ready);
    assert_eq!(backend.state(), State::Drain, "the agent has not changed its mind");
    backend.adopt(
        now,
        Criteria {
            agent: false,
            ..policy(true)
        },
        Orders::End,
    );
    assert_eq!(backend.state(), State::Up, "there is no agent any more");
}
