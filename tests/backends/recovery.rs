//! Backends come back.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::common::{Port, Server, Weir, client, server, wait_until};
use super::{backend, backend_of, cpu_percent, lines_with, metrics_sum, pool, pools, said, status};

const RAMP: Duration = Duration::from_secs(3);

/// Asks as fast as it goes from the return of `b` until its ramp is over: per quarter of the ramp, connections to `b` for each
/// one to `a`.
fn ramp(address: &str, begun: Instant) -> [(f64, usize); 4] {
    let mut counts = [[0usize; 2]; 4];
    loop {
        let quarter = begun.elapsed().as_secs_f64() / RAMP.as_secs_f64() * 4.0;
        let Some(counts) = counts.get_mut(quarter as usize) else {
            break;
        };
        let name = client::fetch(address).expect("an answer");
        counts[usize::from(name == "b")] += 1;
        std::thread::sleep(Duration::from_millis(1));
    }
    counts.map(|[a, b]| (b as f64 / a as f64, a + b))
}

/// Whatever took it away, a backend that returns gets a share of the traffic that grows in a straight line: in the quarters of
/// its ramp an eighth, three, five and seven eighths of what its equal gets.
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
    let with_probes = format!(
        "{common}, passive: off, health: {{interval: 50ms, timeout: 1s, rise: 1, fall: 1}}"
    );
    let drained = format!("{common}, passive: off, health: {{type: none}}");
    let ejected =
        format!("{common}, passive: {{failures: 1, eject: 200ms}}, health: {{type: none}}");
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
    weir.wait_for_line_with(&["ejected/b ", "is up (was ejected)"]);
    let at_ejected = Instant::now();
    let _b_probed = Server::named_on(server::bind(probed.address()), "b");
    weir.wait_for_line_with(&["down/b ", "is up (was down)"]);
    let at_down = Instant::now();
    said(&weir, &["backend", "drained/b", "ready"]);
    let at_drained = Instant::now();

    std::thread::scope(|scope| {
        for (pool, begun) in [
            ("down", at_down),
            ("drained", at_drained),
            ("ejected", at_ejected),
        ] {
            let address = weir.address(pool);
            scope.spawn(move || {
                let quarters = ramp(&address, begun);
                println!("{pool}: {quarters:.3?}");
                for ((ratio, asked), wanted) in
                    std::iter::zip(quarters, [0.125, 0.375, 0.625, 0.875])
                {
                    assert!(asked >= 40, "{pool}: only {asked} connections");
                    // Chance, and a start that was seen late.
                    let tolerance = 0.06 + 4.0 * (wanted / asked as f64).sqrt();
                    assert!(
                        (ratio - wanted).abs() <= tolerance,
                        "{pool}: {ratio:.3} of {asked}, not {wanted}"
                    );
                }
                let names: String = (0..40).map(|_| client::fetch(&address).unwrap()).collect();
                assert!(
                    names.matches('b').count() >= 18,
                    "{pool} afterwards: {names}"
                );
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
        wait_until("it serves", || {
            status(&weir)["pools"][0]["serving"] == "primary"
        });
        assert_eq!(metric("weir_pool_eligible{pool=\"main\"}"), 1.0);
        assert_eq!(client::fetch(&weir.address("main")).unwrap(), "x");
        // Told once, however many probes there were.
        assert_eq!(lines_with(&weir, &[line]).len(), 1);
    }
}

/// All four backends vanish and come back: meanwhile nothing spins, not even while clients knock, and traffic resumes within
/// one interval of the probes.
/// Broken on purpose: no earlier probe of a backend in doubt (2.2 s); workers that poll without waiting; the control thread.
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
    let interval = Duration::from_secs(2);
    let mut servers = Some(open());
    let weir = Weir::start(&pool(
        "health: {interval: 2s, timeout: 1s, rise: 2, fall: 3}",
        &backends,
    ));
    let address = weir.address("main");
    assert_eq!(client::fetch(&address).unwrap(), "x");
    drop(servers.take());
    weir.wait_for_line("pool main: no backend is left");
    let quiet = cpu_percent(&weir, interval);
    // A client that is reset comes back at once, twenty times a second.
    let (ticks, begun) = (weir.cpu_ticks(), Instant::now());
    while begun.elapsed() < Duration::from_secs(1) {
        client::connect_to_reset(&address);
        std::thread::sleep(Duration::from_millis(50));
    }
    let knocked = (weir.cpu_ticks() - ticks) as f64 / begun.elapsed().as_secs_f64();
    println!("{quiet:.1} % CPU, {knocked:.1} % with clients");
    assert!(
        quiet < 5.0 && knocked < 10.0,
        "{quiet} % CPU, {knocked} % with clients"
    );

    servers = Some(open());
    let back = Instant::now();
    wait_until("traffic resumes", || {
        client::fetch(&address).is_ok_and(|text| text == "x")
    });
    let took = back.elapsed();
    println!("resumed after {took:?}");
    assert!(took < interval, "{took:?}");
    wait_until("all serve", || status(&weir)["pools"][0]["eligible"] == 4);
    drop(servers);
}
