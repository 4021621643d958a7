//! What the service manager hears.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::Service;
use super::common::Server;

fn yaml(server: &Server) -> String {
    format!(
        "workers: 2\nlisteners: {{main: {{bind: '127.0.0.1:0', pool: main}}}}\n\
         pools: {{main: {{backends: ['{}']}}}}\n",
        server.address
    )
}

/// Break tried: leaving out MONOTONIC_USEC; leaving out READY after a reload that was refused.
#[test]
fn start_reload_refused_reload_and_stop_are_told() {
    let server = Server::echo();
    let service = Service::start(&yaml(&server), |launch| launch);
    let ready = service.told("READY=1");
    assert!(ready.contains("STATUS=generation 1: 1 listeners"), "{ready}");

    service.weir.signal(Signal::SIGHUP);
    let reloading = service.told("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    let ready = service.told("READY=1");
    assert!(ready.contains("STATUS=generation 2"), "{ready}");

    service.weir.rewrite("nonsense: 1\n");
    service.weir.signal(Signal::SIGHUP);
    service.told("RELOADING=1");
    let ready = service.told("READY=1");
    assert!(ready.contains("STATUS=reload refused: "), "{ready}");

    service.weir.signal(Signal::SIGTERM);
    service.told("STOPPING=1");
}

/// Break tried: feeding once only.
#[test]
fn the_watchdog_is_fed_in_time() {
    let server = Server::echo();
    let limit = Duration::from_secs(4);
    let service = Service::start(&yaml(&server), |launch| {
        launch.env("WATCHDOG_USEC", &limit.as_micros().to_string())
    });
    service.told("WATCHDOG=1");
    for _ in 0..3 {
        let before = Instant::now();
        service.told("WATCHDOG=1");
        assert!(before.elapsed() < limit, "{:?}", before.elapsed());
    }
}

/// Break tried: feeding without asking for whom the watchdog is.
#[test]
fn a_watchdog_for_another_process_is_not_fed() {
    let server = Server::echo();
    let service = Service::start(&yaml(&server), |launch| {
        launch.env("WATCHDOG_USEC", "100000").env("WATCHDOG_PID", "1")
    });
    service.told("READY=1");
    // It would be fed for the first time at once, before anything that is asked for.
    service.weir.signal(Signal::SIGHUP);
    let heard = service.told_until("STATUS=generation 2");
    assert!(!heard.concat().contains("WATCHDOG=1"), "{heard:#?}");
}
