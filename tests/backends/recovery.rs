//! Backends come back.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use super::common::{Port, Server, Weir, client, server, wait_until};
use super::{backend, backend_of, cpu_percent, lines_with, logged, metrics_sum, pool, pools, said, status};

const RAMP: Duration = Duration::from_secs(3);

/// Asks as fast as it goes from the return of `b` until its ramp is over. At no time has `b` had another part of the connections
/// than it should have had, each judged by its own time, so that pauses do not matter.
fn ramp(pool: &str, address: &str, begun: SystemTime) {
    let (mut got, mut wanted, mut asked) = (0f64, 0f64, 0f64);
    loop {
        let ramped = begun.elapsed().unwrap_or_default().as_secs_f64() / RAMP.as_secs_f64();
        if ramped >= 1.0 {
            break;
        }
        asked += 1.0;
        // For each one to `a`, so many to `b`.
        wanted += ramped / (1.0 + ramped);
        got += f64::from(client::fetch(address).expect("an answer") == "b");
        // Chance, and steps that come late.
        let tolerance = 0.06 * asked + 2.5 * asked.sqrt();
        assert!(
            (got - wanted).abs() <= tolerance,
            "{pool}: {got} of {asked} after {ramped:.3} of the ramp, not {wanted:.0}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("{pool}: {got} of {asked}, not far from {wanted:.0}");
}

/// Whatever took it away, a backend that returns gets a share of the traffic that grows in a straight line.
/// Broken on purpose: the whole share from the start; the ramp only after probes have failed; the steps
/// of a ramp not published (it stays at its first).
#[test]
fn a_returning_backend_ramps_up_in_a_straight_line() {
    let a = Server::named("a");
    let probed = Port::reserve();
    let b_probed = Server::named_on(server::bind(probed.address()), "b");
    let b_drained = Server::named("b");
    let broken = Arc::new(AtomicBool::new(false));
    let b_ejected = Server::serial({
        let broken = broken.clone();
        move |mut stream| match broken.load(Relaxed) {
            true => server::reset(stream),
            false => drop(stream.write_all(b"b")),
        }
    });
    let two = |b| [backend("a", a.address, ""), backend("b", b, "")];
    let common = "balance: round_robin, slow_start: 3s";
    let with_probes = format!("{common}, passive: off, health: {{interval: 50ms, timeout: 1s, rise: 1, fall: 1}}");
    let drained = format!("{common}, passive: off, health: {{type: none}}");
    let ejected = format!("{common}, passive: {{failures: 1, eject: 200ms}}, health: {{type: none}}");
    let weir = Weir::start(&pools(&[
        ("down", &with_probes, &two(probed.address())),
        ("drained", &drained, &two(b_drained.address)),
        ("ejected", &ejected, &two(b_ejected.address)),
    ]));
    let state = |pool: &str| {
        backend_of(&status(&weir), pool, "b")["state"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    wait_until("it is up", || state("down") == "up");
    // A backend that was never away has no ramp.
    let names: String = (0..40)
        .map(|_| client::fetch(&weir.address("drained")).unwrap())
        .collect();
    assert!(names.matches('b').count() >= 19, "{names}");

    drop(b_probed);
    wait_until("it is down", || state("down") == "down");
    said(&weir, &["backend", "drained/b", "drain"]);
    broken.store(true, Relaxed);
    wait_until("it is ejected", || {
        let _ = client::fetch(&weir.address("ejected"));
        !lines_with(&weir, &["ejected/b ", "is ejected"]).is_empty()
    });
    broken.store(false, Relaxed);
    let at_ejected = weir.wait_for_line_with(&["ejected/b ", "is up (was ejected)"]);
    let _b_probed = Server::named_on(server::bind(probed.address()), "b");
    let at_down = weir.wait_for_line_with(&["down/b ", "is up (was down)"]);
    said(&weir, &["backend", "drained/b", "ready"]);
    let at_drained = weir.wait_for_line_with(&["drained/b ", "is up (was drain)"]);

    std::thread::scope(|scope| {
        for (pool, back) in [("down", at_down), ("drained", at_drained), ("ejected", at_ejected)] {
            let address = weir.address(pool);
            scope.spawn(move || {
                ramp(pool, &address, logged(&back));
                let names: String = (0..40).map(|_| client::fetch(&address).unwrap()).collect();
                assert!(names.matches('b').count() >= 18, "{pool} afterwards: {names}");
            });
        }
    });
}

/// Nothing is up: refused, or all tried, which log and metrics say loudly; and it is over with the first that is up.
/// Broken on purpose: `try_all` without its line in the log; counted as if nobody took work.
#[test]
fn all_down_is_said_loudly() {
    let service = Server::named("x");
    for (all_down, line, eligible, serving) in [
        (
            "refuse",
            "pool main: no backend is left; new connections are refused",
            0.0,
            "none",
        ),
        (
            "try_all",
            "pool main: every backend is down; trying all of them (all_down: try_all)",
            1.0,
            "all",
        ),
    ] {
        let (checks, page) = (Port::reserve(), Port::reserve());
        let keys = format!(
            "all_down: {all_down}, passive: off, health: {{interval: 50ms, timeout: 1s, port: {}}}",
            checks.number
        );
        let yaml = pool(&keys, &[backend("one", service.address, "")]);
        let weir = Weir::start(&format!("metrics: '{}'\n{yaml}", page.address()));
        let said = weir.wait_for_line(line);
        assert!(said.contains("ERROR"), "{said}");
        let page = page.address().to_string();
        let metric = |name: &str| metrics_sum(&page, name);
        assert_eq!(metric("weir_pool_eligible{pool=\"main\"}"), eligible);
        assert_eq!(metric("weir_backend_up{"), 0.0);
        assert_eq!(status(&weir)["pools"][0]["serving"], serving);
        let answer = client::fetch(&weir.address("main"));
        assert_eq!(answer.is_ok_and(|text| text == "x"), all_down == "try_all");

        let _checks = Server::on(server::bind(checks.address()), drop);
        weir.wait_for_line_with(&["main/one ", "is up (was down)"]);
        wait_until("it serves", || status(&weir)["pools"][0]["serving"] == "primary");
        assert_eq!(metric("weir_pool_eligible{pool=\"main\"}"), 1.0);
        assert_eq!(client::fetch(&weir.address("main")).unwrap(), "x");
        // Told once, however many probes there were.
        assert_eq!(lines_with(&weir, &[line]).len(), 1);
    }
}

/// All four backends vanish and come back: meanwhile nothing spins, not even while clients knock. The first probe that is
/// answered comes in its time, and traffic resumes long before the next one would come in its time.
/// Broken on purpose: no earlier probe of a backend in doubt; workers that poll without waiting; the control thread.
#[test]
fn four_backends_down_and_back() {
    let ports = [(); 4].map(|()| Port::reserve());
    let open = || {
        ports
            .each_ref()
            .map(|port| Server::named_on(server::bind(port.address()), "x"))
    };
    let backends: Vec<String> = ports
        .iter()
        .enumerate()
        .map(|(ix, port)| backend(&format!("b{ix}"), port.address(), ""))
        .collect();
    let interval = Duration::from_secs(3);
    let mut servers = Some(open());
    let weir = Weir::start(&pool(
        "health: {interval: 3s, timeout: 1s, rise: 2, fall: 3}",
        &backends,
    ));
    let address = weir.address("main");
    assert_eq!(client::fetch(&address).unwrap(), "x");
    drop(servers.take());
    weir.wait_for_line("pool main: no backend is left");
    let quiet = cpu_percent(&weir, Duration::from_secs(2));
    // A client that is reset comes back at once, twenty times a second.
    let (ticks, begun) = (weir.cpu_ticks(), Instant::now());
    while begun.elapsed() < Duration::from_secs(1) {
        client::connect_to_reset(&address);
        std::thread::sleep(Duration::from_millis(50));
    }
    let knocked = (weir.cpu_ticks() - ticks) as f64 / begun.elapsed().as_secs_f64();
    println!("{quiet:.1} % CPU, {knocked:.1} % with clients");
    assert!(quiet < 5.0 && knocked < 10.0, "{quiet} % CPU, {knocked} % with clients");

    let (back, open) = (Instant::now(), servers.insert(open()));
    wait_until("a probe is answered", || {
        open.iter().any(|server| server.accepted() > 0)
    });
    let probed = Instant::now();
    wait_until("traffic resumes", || {
        client::fetch(&address).is_ok_and(|text| text == "x")
    });
    let (waited, took) = (probed - back, probed.elapsed());
    println!("resumed {took:?} after the first probe, which came after {waited:?}");
    // About a quarter of an interval each; nine tenths without hurry.
    assert!(waited < interval.mul_f64(1.1), "{waited:?}");
    assert!(took < interval.mul_f64(0.8), "{took:?}");
    wait_until("all serve", || status(&weir)["pools"][0]["eligible"] == 4);
    drop(servers);
}
