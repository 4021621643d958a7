//! Failures of real traffic.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use super::common::netns::{Netns, link};
use super::common::{self, Blackhole, Launch, Port, Server, Weir, client, run, wait_until};
use super::{backend, backend_of, in_parallel, lines_with, logged, pool, pools, status};

/// One connection, whatever becomes of it.
fn knock(address: &str) {
    let _ = client::fetch(address);
}

/// From one line of the event log to another.
fn between(line: &str, other: &str) -> Duration {
    let time = logged(other).duration_since(logged(line));
    time.unwrap_or_default()
}

/// Each kind of failure ejects, for 500 ms, 1 s, 2 s if it fails again soon after its return: the backend is left alone
/// meanwhile, and comes back by itself as nothing probes it. The good one stays.
/// Broken on purpose: no back-off (500 ms each time); resets before the first byte not reported.
#[test]
fn failures_eject_with_back_off() {
    let (good, refusing) = (Server::named("good"), Port::reserve());
    let (hole, resetting) = (Blackhole::new(), Server::resetting());
    let with = |bad: std::net::SocketAddr| [backend("good", good.address, ""), backend("bad", bad, "")];
    let keys = "balance: round_robin, connect: {timeout: 100ms}, health: {type: none}, \
                passive: {failures: 3, window: 10s, eject: 500ms}";
    let eject = Duration::from_millis(500);
    let weir = Weir::start(&pools(&[
        ("refused", keys, &with(refusing.address())),
        ("timed_out", keys, &with(hole.address)),
        ("reset_early", keys, &with(resetting.address)),
    ]));
    let kinds = ["refused", "timed_out", "reset_early"];
    let said = |kind: &str, what: &str| lines_with(&weir, &[&format!("backend {kind}/bad "), what]);
    std::thread::scope(|scope| {
        for kind in kinds {
            let (weir, said) = (&weir, &said);
            scope.spawn(move || {
                let address = weir.address(kind);
                let (mut steps, mut served, mut back) = (0, 0, String::new());
                for nth in 0..3 {
                    // Quickly, before time spent well takes a step of the back-off back.
                    wait_until("it is ejected", || {
                        in_parallel(6, 6, |_| knock(&address));
                        said(kind, "is ejected").len() > nth
                    });
                    let ejected = said(kind, "is ejected")[nth].clone();
                    // A slow machine may not have been quick enough. What was decided may be logged a little later.
                    let well = match nth {
                        0 => Duration::ZERO,
                        _ => between(&back, &ejected),
                    };
                    let late = Duration::from_millis(100);
                    let possible = [well.saturating_sub(late), well, well + late].map(|well| {
                        let forgiven = (well.as_millis() / eject.as_millis()) as u32;
                        let steps = u32::saturating_sub(steps, forgiven);
                        (steps, eject * (1 << steps))
                    });
                    let says = |length: Duration| {
                        let length = humantime::format_duration(length);
                        let words = format!("3 failures within 10s, last: {kind}; ejected for {length}");
                        ejected.ends_with(&words)
                    };
                    let Some((taken, length)) = possible.into_iter().find(|(_, l)| says(*l)) else {
                        panic!("{ejected}, after {well:?}: {possible:?}")
                    };
                    steps = taken + 1;
                    let failed = || {
                        let now = status(weir);
                        backend_of(&now, kind, "bad")["failed"].as_u64().unwrap()
                    };
                    let before = failed();
                    back = loop {
                        if let Some(line) = said(kind, "is up (was ejected)").get(nth) {
                            break line.clone();
                        }
                        let answer = client::fetch(&address);
                        served += usize::from(answer.is_ok_and(|text| text == "good"));
                    };
                    // A turn of a worker that was under way may not have known of it, nor this test of the return, not
                    // even until it is ejected once more.
                    let tried = failed() - before;
                    assert!(tried <= 8, "{kind}: {tried} failed while it was ejected");
                    let away = between(&ejected, &back);
                    assert!(away > length / 2, "{away:?}, not {length:?}");
                }
                // Else every other connection would have met it.
                println!("{kind}: {served} served while it was ejected");
                assert!(served >= 60, "{kind}: only {served} served");
            });
        }
    });
    assert_eq!(lines_with(&weir, &["/good ", "ejected"]), [""; 0]);
}

/// Two backends, both refuse: one is ejected, the other is all there is. It stays and is tried each time.
/// Broken on purpose: ejecting although no other backend is left.
#[test]
fn the_last_one_is_never_ejected() {
    let ports = [Port::reserve(), Port::reserve()];
    let backends = [
        backend("a", ports[0].address(), ""),
        backend("b", ports[1].address(), ""),
    ];
    let keys = "health: {type: none}, passive: {failures: 2, window: 10s, eject: 1m}";
    let weir = Weir::start(&pool(keys, &backends));
    let address = weir.address("main");
    wait_until("one is ejected", || {
        knock(&address);
        !lines_with(&weir, &["is ejected"]).is_empty()
    });
    let before = weir.access_log().len();
    for _ in 0..50 {
        knock(&address);
    }
    let records = weir.wait_for_records(before + 50);
    assert!(records.iter().all(|r| r.cause == "connect_failed"), "{records:?}");
    assert_eq!(lines_with(&weir, &["is ejected"]).len(), 1);
    let now = status(&weir);
    let mut states = ["a", "b"].map(|name| backend_of(&now, "main", name)["state"].as_str().unwrap().to_owned());
    states.sort();
    assert_eq!(states, ["ejected", "up"]);
}

/// A probe ends the ejection of a probed backend, and is not waited for until its next turn, a minute later.
/// Broken on purpose: the probe not hurried.
#[test]
fn a_probe_brings_an_ejected_backend_back() {
    let broken = Arc::new(AtomicBool::new(true));
    let (good, bad) = (Server::named("good"), {
        let broken = broken.clone();
        // A probe sends nothing; a client does.
        Server::each(move |mut stream: TcpStream| {
            let asked = std::io::Read::read(&mut stream, &mut [0; 16]).unwrap_or(0) > 0;
            if asked && broken.load(Relaxed) {
                common::server::reset(stream);
            } else if asked {
                let _ = stream.write_all(b"bad");
            }
        })
    });
    let backends = [backend("good", good.address, ""), backend("bad", bad.address, "")];
    let keys = "balance: round_robin, health: {interval: 1m, timeout: 5s}, \
                passive: {failures: 2, window: 10s, eject: 500ms}";
    let weir = Weir::start(&pool(keys, &backends));
    let address = weir.address("main");
    let ask = || {
        let mut stream = client::connect(&address);
        let _ = stream.write_all(b"?");
        let mut answer = String::new();
        let _ = std::io::Read::read_to_string(&mut stream, &mut answer);
        answer
    };
    weir.wait_for_line_with(&["main/good ", "is up"]);
    wait_until("it is ejected", || {
        ask();
        !lines_with(&weir, &["main/bad ", "is ejected"]).is_empty()
    });
    broken.store(false, Relaxed);
    let back = weir.wait_for_line_with(&["main/bad ", "(was ejected)", "connect ok"]);
    let after = between(&weir.wait_for_line_with(&["main/bad ", "is ejected"]), &back);
    let bounds = Duration::from_millis(490)..Duration::from_secs(10);
    assert!(bounds.contains(&after), "{after:?}");
    wait_until("it serves again", || ask() == "bad");
}

/// No route, no local address, no descriptor: this machine's fault, and no backend is ejected for it.
/// Broken on purpose: such failures reported like a refusal.
#[test]
fn our_own_shortages_eject_nobody() {
    if !common::may_make_namespaces() {
        return;
    }
    let (host, peer) = (Netns::new("host"), Netns::new("peer"));
    link("eth0", [(&host, "10.97.0.1/24"), (&peer, "10.97.0.2/24")]);
    let servers = peer.enter(|| [(); 2].map(|()| Server::named_on(common::server::bind(([10, 97, 0, 2], 0)), "x")));
    let keys = "balance: round_robin, health: {type: none}, passive: {failures: 1, window: 10s, eject: 1m}";
    let good = backend("good", servers[0].address, "");
    let unrouted = [good.clone(), backend("far", "192.0.2.1:80", "")];
    let here = [good, backend("other", servers[1].address, "")];
    let unbound = format!("{keys}, source_address: 198.51.100.1");
    let yaml = pools(&[
        ("unrouted", keys, &unrouted),
        ("unbound", &unbound, &here),
        ("starved", keys, &here),
    ]);
    let weir = Launch::new(&yaml).inside(&host).start();
    let reached = |listener: &str| host.enter(|| client::fetch(&weir.address(listener)));
    for _ in 0..20 {
        assert_eq!(reached("unrouted").unwrap(), "x");
        assert!(!matches!(reached("unbound"), Ok(text) if !text.is_empty()));
    }
    let limit = |soft: &str| {
        run(common::command("prlimit").args(["--pid", &weir.pid().to_string(), &format!("--nofile={soft}:")]))
    };
    let open = weir.descriptors().len();
    // Room for the client's descriptor, not for the backend's; how many the next calls find free is not known exactly.
    let starved = |records: &[common::Record]| {
        records
            .iter()
            .any(|r| r.listener == "starved" && r.cause == "limit_process")
    };
    wait_until("a connection lacks a descriptor", || {
        for room in 0..8 {
            limit(&(open + room).to_string());
            for _ in 0..3 {
                // Those that wait for a descriptor get one later.
                let stream = host.enter(|| client::try_connect(&weir.address("starved"), None));
                std::thread::sleep(Duration::from_millis(20));
                drop(stream);
            }
        }
        limit("1000");
        starved(&weir.access_log())
    });
    let now = status(&weir);
    // Half of the twenty, and one less where each of the two workers had an odd number of them.
    assert!(
        backend_of(&now, "unrouted", "far")["failed"].as_u64() >= Some(9),
        "{now:#}"
    );
    assert!(
        backend_of(&now, "unbound", "good")["failed"].as_u64() >= Some(10),
        "{now:#}"
    );
    assert_eq!(lines_with(&weir, &["is ejected"]), [""; 0]);
}
