use super::*;

fn table(idle_s: u64) -> (Table<()>, Instant, Endpoints) {
    let now = Instant::now();
    let mut table = Table::new(now);
    let idle = Duration::from_secs(idle_s);
    table.set_limits(
        ListenerIx(0),
        SessionLimits {
            idle,
            requests: None,
            replies: None,
        },
    );
    (table, now, ends(1))
}

fn ends(port: u16) -> Endpoints {
    let client = ([192, 0, 2, 1], port).into();
    Endpoints::new(ListenerIx(0), client, ([198, 51, 100, 1], 53).into())
}

/// The table of the module's page.
#[test]
fn an_error_moves_a_session_only_as_far_as_it_proves_itself() {
    let failed = |blame| OnError::Failed { blame, resend: true };
    let rows = [
        (false, Proof::Firm, failed(true)),
        (false, Proof::Soft, failed(true)),
        (false, Proof::Short, failed(false)),
        (false, Proof::Bare, failed(false)),
        (true, Proof::Firm, failed(true)),
        (true, Proof::Soft, OnError::Suspected),
        (true, Proof::Short, OnError::Ignored),
        (true, Proof::Bare, OnError::Ignored),
    ];
    for (proven, proof, expected) in rows {
        let (mut table, now, ends) = table(30);
        let id = table.open(now, ends, false, ());
        table.on_client(now, &ends, 1);
        if proven {
            table.on_backend(now, id, 1);
        }
        assert_eq!(table.on_error(now, id, proof), Some(expected), "{proven} {proof:?}");
    }
}

#[test]
fn unreachable_is_believed_when_it_lasts_and_nothing_is_heard() {
    let (mut table, now, ends) = table(60);
    let id = table.open(now, ends, false, ());
    table.on_client(now, &ends, 1);
    table.on_backend(now, id, 1);
    let mut error_at = |seconds: u64, reply: bool| {
        let now = now + Duration::from_secs(seconds);
        table.on_client(now, &ends, 1);
        if reply {
            table.on_backend(now, id, 1);
        }
        table.on_error(now, id, Proof::Soft)
    };
    let failed = Some(OnError::Failed {
        blame: true,
        resend: true,
    });
    assert_eq!(error_at(1, false), Some(OnError::Suspected));
    assert_eq!(error_at(3, false), Some(OnError::Suspected));
    assert_eq!(
        error_at(10, true),
        Some(OnError::Suspected),
        "a reply clears the suspicion"
    );
    assert_eq!(error_at(12, false), Some(OnError::Suspected));
    assert_eq!(error_at(13, false), failed);
}

/// A backend that is gone refuses everything that it is sent; what an error proves says how long that is watched.
///
/// Each row: seconds, what happens then, what comes of it.
#[test]
fn errors_that_could_be_forged_are_believed_when_nothing_contradicts_them() {
    #[derive(Debug, Clone, Copy)]
    enum Event {
        Ask,
        Reply,
        Error(Proof),
    }
    use Event::{Ask, Error, Reply};
    let failed = |blame| Some(OnError::Failed { blame, resend: true });
    let (ignored, suspected) = (Some(OnError::Ignored), Some(OnError::Suspected));
    let stories: [(&str, &[(u64, Event, Option<OnError>)]); 6] = [
        (
            "two short requests are refused",
            &[
                (0, Ask, None),
                (0, Error(Proof::Short), suspected),
                (0, Error(Proof::Short), suspected),
                (1, Ask, None),
                (1, Error(Proof::Short), failed(true)),
            ],
        ),
        (
            "a reply contradicts",
            &[
                (0, Ask, None),
                (0, Error(Proof::Short), suspected),
                (0, Reply, None),
                (0, Error(Proof::Short), ignored),
                (1, Ask, None),
                (1, Error(Proof::Short), suspected),
            ],
        ),
        (
            "nothing is quoted, and nothing is heard for long enough",
            &[
                (0, Ask, None),
                (0, Error(Proof::Bare), suspected),
                (2, Ask, None),
                (2, Error(Proof::Bare), suspected),
                (3, Ask, None),
                (3, Error(Proof::Bare), failed(false)),
            ],
        ),
        (
            "forged beside a flow that is answered",
            &[
                (0, Error(Proof::Bare), ignored),
                (4, Ask, None),
                (4, Error(Proof::Bare), suspected),
                (4, Reply, None),
                (8, Error(Proof::Bare), ignored),
                (8, Ask, None),
                (8, Error(Proof::Bare), suspected),
            ],
        ),
        (
            "unreachable first, then refused",
            &[
                (0, Ask, None),
                (0, Error(Proof::Soft), suspected),
                (1, Ask, None),
                (1, Error(Proof::Short), failed(true)),
            ],
        ),
        (
            "one short request, again and again",
            &[
                (0, Ask, None),
                (0, Error(Proof::Short), suspected),
                (3, Error(Proof::Short), failed(true)),
            ],
        ),
    ];
    for (story, events) in stories {
        let (mut table, start, ends) = table(60);
        let id = table.open(start, ends, false, ());
        table.on_client(start, &ends, 1);
        table.on_backend(start, id, 1);
        for (seconds, event, expected) in events {
            let now = start + Duration::from_secs(*seconds);
            let got = match event {
                Ask => {
                    table.on_client(now, &ends, 1);
                    None
                }
                Reply => {
                    table.on_backend(now, id, 1);
                    None
                }
                Error(proof) => table.on_error(now, id, *proof),
            };
            assert_eq!(got, *expected, "{story}: {event:?} at {seconds} s");
        }
    }
}

#[test]
fn a_forgotten_listener_leaves_nothing() {
    let (mut table, now, ends) = table(60);
    let id = table.open(now, ends, false, ());
    assert!(!table.forget(ListenerIx(0)), "it has a session");
    table.remove(id);
    for listener in 0..1000 {
        assert!(table.forget(ListenerIx(listener)));
        let policy = SessionLimits {
            idle: Duration::from_secs(1),
            requests: None,
            replies: None,
        };
        table.set_limits(ListenerIx(listener + 1), policy);
    }
    assert_eq!((table.lines.len(), table.line_of.len()), (1, 1));
}

#[test]
fn an_error_long_after_the_last_datagram_means_nothing() {
    let (mut table, now, ends) = table(60);
    let id = table.open(now, ends, false, ());
    table.on_client(now, &ends, 1);
    let late = now + RECENT + Duration::from_millis(1);
    assert_eq!(table.on_error(late, id, Proof::Firm), Some(OnError::Ignored));
}

#[test]
fn a_refused_datagram_is_sent_again_once() {
    let (mut table, now, ends) = table(60);
    let id = table.open(now, ends, false, ());
    for _ in 0..2 {
        table.on_client(now, &ends, 1);
        for resend in [true, false] {
            let failed = Some(OnError::Failed { blame: true, resend });
            assert_eq!(table.on_error(now, id, Proof::Firm), failed);
            table.rebound(id);
        }
    }
}

#[test]
fn the_longest_idle_makes_room_once_it_is_past_half_of_its_idle_time() {
    let (mut table, now, _) = table(10);
    let ids = [1, 2, 3].map(|port| table.open(now, ends(port), true, ()));
    let at = |seconds| now + Duration::from_secs(seconds);
    table.on_client(at(3), &ends(1), 1);
    for full in [Full::Process, Full::Listener, Full::Source] {
        assert_eq!(table.victim(at(4), full, &ends(9)), None, "{full:?}");
        assert_eq!(table.victim(at(5), full, &ends(9)), Some(ids[1]), "{full:?}");
    }
}
