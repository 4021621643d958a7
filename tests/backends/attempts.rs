//! Attempts to connect: to different backends, at once, bounded in number and in time as a whole.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::common::{Blackhole, Port, Weir, client};
use super::{UNWATCHED, backend, backend_of, in_parallel, pool, status};

fn refused_by(backends: usize, attempts: usize) -> (Weir, Vec<u64>, f64) {
    let ports: Vec<Port> = (0..backends).map(|_| Port::reserve()).collect();
    let list: Vec<String> = (0..backends)
        .map(|ix| backend(&format!("b{ix}"), ports[ix].address(), ""))
        .collect();
    let keys = format!("balance: random, connect: {{timeout: 5s, attempts: {attempts}}}, {UNWATCHED}");
    let weir = Weir::start(&pool(&keys, &list));
    let address = weir.address("main");
    in_parallel(2, 60, |_| client::connect_to_reset(&address));
    let records = weir.wait_for_records(60);
    assert!(records.iter().all(|record| record.end() == ("connect_failed", "weir")));
    assert!(
        records
            .iter()
            .all(|record| record.attempts as usize == attempts.min(backends))
    );
    let fastest = records.iter().map(|record| record.duration_ms).fold(f64::MAX, f64::min);
    let now = status(&weir);
    let failed = (0..backends).map(|ix| backend_of(&now, "main", &format!("b{ix}"))["failed"].as_u64().unwrap());
    let failed = failed.collect();
    (weir, failed, fastest)
}

/// Three backends refuse, three attempts: every connection meets each of them once, without a pause.
/// Broken on purpose: the tried ones not left out of the next choice (`Pool::choose`).
#[test]
fn attempts_go_to_different_backends_at_once() {
    let (_weir, failed, fastest) = refused_by(3, 3);
    assert_eq!(failed, [60, 60, 60]);
    assert!(fastest < 200.0, "{fastest} ms");
    // More attempts than backends do not go round again.
    let (_weir, failed, _) = refused_by(3, 10);
    assert_eq!(failed, [60, 60, 60]);
}

/// Broken on purpose: the number of attempts not looked at.
#[test]
fn attempts_are_bounded_in_number() {
    let (_weir, failed, _) = refused_by(5, 3);
    assert_eq!(failed.iter().sum::<u64>(), 180, "{failed:?}");
}

/// Three backends that never answer share the time that one would have had.
/// Broken on purpose: each attempt given all of the timeout (9 s).
#[test]
fn the_timeout_is_that_of_all_attempts() {
    let holes = [0; 4].map(|_| Blackhole::new());
    let list: Vec<String> = holes
        .iter()
        .map(|hole| backend(&format!("b{}", hole.address.port()), hole.address, ""))
        .collect();
    let keys = format!("connect: {{timeout: 3s, attempts: 3}}, {UNWATCHED}");
    let weir = Weir::start(&pool(&keys, &list));
    let address: SocketAddr = weir.address("main").parse().unwrap();
    let begun = Instant::now();
    client::connect_to_reset(&address.to_string());
    let took = begun.elapsed();
    let record = &weir.wait_for_records(1)[0];
    assert_eq!((record.end(), record.attempts), (("connect_timeout", "weir"), 3));
    let bounds = Duration::from_millis(2_990)..Duration::from_millis(8_900);
    assert!(bounds.contains(&took), "{took:?}");
}
