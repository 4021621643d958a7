//! One pool behind listeners of both engines: each decides by what both have.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::common::client::{connect, round_trip, try_connect};
use super::common::operator::{ask, json, said, status};
use super::common::{Weir, may_make_namespaces, wait_until};
use super::ends::direct;
use super::hosts::{self, Family, Net, V4, V6, is_silent};

/// The ports of the two listeners.
const KERNEL: u16 = 80;
const PROXY: u16 = 81;

/// A listener of each engine before one pool of two backends, or of the first alone.
fn config(family: Family, pool: &str, backends: usize) -> String {
    let [backend_a, backend_b] =
        [("a", 0), ("b", 1)].map(|(name, ix)| format!("{{name: {name}, address: '{}'}}", family.backend(ix, 8080)));
    let backends = [backend_a, backend_b][..backends].join(", ");
    format!(
        "
listeners:
  fast: {{engine: kernel, bind: ['{}'], pool: web}}
  plain: {{bind: ['{}'], pool: web}}
pools: {{web: {{health: none, {pool} backends: [{backends}]}}}}
",
        family.service(KERNEL),
        family.service(PROXY),
    )
}

fn servers(net: &Net, family: Family) -> [super::common::Server; 2] {
    [0, 1].map(|ix| net.echo(ix, &family.backend(ix, 8080)))
}

/// A connection through which something has gone.
fn held_at(net: &Net, address: &str) -> TcpStream {
    let mut stream = net.client.enter(|| connect(address));
    round_trip(&mut stream, b"hello");
    stream
}

fn held(net: &Net, family: Family, port: u16) -> TcpStream {
    held_at(net, &family.service(port))
}

/// The same, or nothing if it was turned away, however that is.
fn tried(net: &Net, port: u16) -> Option<TcpStream> {
    tried_at(net, &V4.service(port))
}

fn tried_at(net: &Net, address: &str) -> Option<TcpStream> {
    let mut stream = net.client.enter(|| try_connect(address, None)).ok()?;
    let mut answer = [0; 5];
    let outcome = stream.write_all(b"hello").and_then(|()| stream.read_exact(&mut answer));
    outcome.is_ok().then_some(stream)
}

/// What is active at each backend of the pool.
fn active(weir: &Weir) -> Vec<u64> {
    let status = status(weir);
    let backends = status["pools"][0]["backends"].as_array().unwrap();
    backends
        .iter()
        .map(|backend| backend["active"].as_u64().unwrap())
        .collect()
}

/// What one engine has placed, the other makes up for.
///
/// Seen to fail where the program is not told.
#[test]
fn least_conn_goes_by_connections_of_both_engines() {
    if !may_make_namespaces() {
        return;
    }
    for family in [V4, V6] {
        let net = Net::new();
        let _servers = servers(&net, family);
        let weir = net.weir(&config(family, "", 2));
        said(&weir, &["backend", "web/b", "drain"]);
        let mut all: Vec<TcpStream> = (0..40).map(|_| held(&net, family, KERNEL)).collect();
        said(&weir, &["backend", "web/b", "ready"]);
        assert_eq!(active(&weir), [40, 0]);
        all.extend((0..30).map(|_| held(&net, family, PROXY)));
        assert_eq!(active(&weir), [40, 30], "the workers know what the program has");
        said(&weir, &["backend", "web/a", "drain"]);
        all.extend((0..30).map(|_| held(&net, family, PROXY)));
        said(&weir, &["backend", "web/a", "ready"]);
        assert_eq!(active(&weir), [40, 60]);
        all.extend((0..20).map(|_| held(&net, family, KERNEL)));
        assert_eq!(active(&weir), [60, 60], "the program knows what the workers have");
        // Both at once, where each tells the other some time later.
        let more: Vec<TcpStream> = std::thread::scope(|scope| {
            let both = [KERNEL, PROXY].map(|port| {
                let (net, family) = (&net, family);
                scope.spawn(move || (0..100).map(|_| held(net, family, port)).collect::<Vec<_>>())
            });
            both.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        let apart = active(&weir);
        assert_eq!(apart.iter().sum::<u64>(), 320);
        assert!(apart[0].abs_diff(apart[1]) <= 8, "{apart:?}");
        drop((all, more));
        wait_until("nothing is active", || active(&weir) == [0, 0]);
    }
}

/// `max_connections` is of both together. Where both come near it at once, what is over is no more than was left to each of them.
///
/// Seen to fail where the program is not told.
#[test]
fn a_cap_holds_over_both_engines() {
    const CAP: usize = 10;
    if !may_make_namespaces() {
        return;
    }
    let net = Net::new();
    let _servers = servers(&net, V4);
    let yaml = config(V4, "", 1).replace("{name: a,", &format!("{{name: a, max_connections: {CAP},"));
    let weir = net.weir(&yaml);
    let mut of_kernel: Vec<TcpStream> = (0..6).map(|_| held(&net, V4, KERNEL)).collect();
    assert_eq!(active(&weir), [6]);
    let mut of_proxy: Vec<TcpStream> = (0..4).map(|_| held(&net, V4, PROXY)).collect();
    assert!(tried(&net, PROXY).is_none(), "the program's count among the workers'");
    assert_eq!(active(&weir), [10]);
    assert!(tried(&net, KERNEL).is_none(), "the workers' count among the program's");
    drop(of_proxy.pop());
    wait_until("the program has heard of it", || {
        of_kernel.extend(tried(&net, KERNEL));
        of_kernel.len() == 7
    });
    drop(of_kernel.remove(0));
    wait_until("one of the program's has ended", || active(&weir) == [9]);
    of_proxy.push(held(&net, V4, PROXY));
    drop((of_kernel, of_proxy));
    wait_until("nothing is active", || active(&weir) == [0]);

    let served: Vec<TcpStream> = std::thread::scope(|scope| {
        let both = [KERNEL, PROXY].map(|port| {
            let net = &net;
            scope.spawn(move || (0..3 * CAP).filter_map(|_| tried(net, port)).collect::<Vec<_>>())
        });
        both.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let active = active(&weir)[0] as usize;
    println!("{active} at once with a cap of {CAP}");
    assert_eq!(active, served.len());
    assert!((CAP..=2 * CAP).contains(&active), "{active}");
    assert!(tried(&net, KERNEL).is_none() && tried(&net, PROXY).is_none());
}

/// With a cap of three: two of the program's and one of the workers' fill it, and each gets the place that the other gives back.
fn three_have_room(net: &Net, weir: &Weir, [kernel, proxy]: [&str; 2]) {
    let mut of_kernel = [held_at(net, kernel), held_at(net, kernel)].into_iter();
    let of_proxy = held_at(net, proxy);
    assert_eq!(active(weir), [3]);
    assert!(tried_at(net, proxy).is_none(), "the program's count among the workers'");
    assert!(
        tried_at(net, kernel).is_none(),
        "the workers' count among the program's"
    );
    drop(of_kernel.next());
    wait_until("one of the program's has ended", || active(weir) == [2]);
    let _in_its_place = held_at(net, proxy);
    drop(of_proxy);
    wait_until("the program has heard of it", || tried_at(net, kernel).is_some());
}

/// The same cap where backends see clients, where they answer them directly, and of UDP sessions.
///
/// Seen to fail where the program is not told.
#[test]
fn a_cap_holds_in_every_mode_and_over_sessions() {
    if !may_make_namespaces() {
        return;
    }
    let capped = |yaml: &str| yaml.replace("{name: a,", "{name: a, max_connections: 3,");
    let services = [KERNEL, PROXY].map(|port| V4.service(port));
    let services = services.each_ref().map(String::as_str);
    {
        let net = Net::new().through_balancer();
        let _servers = servers(&net, V4);
        let weir = net.weir(&capped(&config(V4, "kernel: {mode: keep},", 1)));
        three_have_room(&net, &weir, services);
    }
    {
        let (net, _bridge, service) = direct();
        let _server = net.echo(0, "0.0.0.0:80");
        let yaml = config(V4, "kernel: {mode: dsr},", 1).replace(&V4.backend(0, 8080), "10.7.0.20:80");
        let plain = service.replace(":80", ":81");
        let yaml = yaml.replace(services[0], &service).replace(services[1], &plain);
        let weir = net.weir(&capped(&yaml));
        three_have_room(&net, &weir, [&service, &plain]);
    }
    let net = Net::new();
    net.udp_echo(0, &V4.backend(0, 8080));
    let weir = net.weir(&capped(&config(V4, "", 1).replace("bind:", "protocol: udp, bind:")));
    let sessions = [0, 0, 1].map(|nth| net.udp_client(services[nth]));
    for socket in &sessions {
        // The second after an answer confirms a session.
        for _ in 0..2 {
            assert_eq!(hosts::ask(socket, b"mine"), b"mine");
        }
    }
    wait_until("all are counted", || active(&weir) == [3]);
    for service in services {
        assert!(is_silent(&net.udp_client(service), b"too many"), "{service}");
    }
}

/// A backend that returns gets as many connections as its share of what both engines have at the others says, whichever engine
/// opens them: here the other one holds most of them.
///
/// Seen to fail where the program is not told.
#[test]
fn slow_start_goes_by_connections_of_both_engines() {
    const RAMP: Duration = Duration::from_secs(20);
    const HELD: u32 = 100;
    if !may_make_namespaces() {
        return;
    }
    for (holder, opener) in [(KERNEL, PROXY), (PROXY, KERNEL)] {
        let net = Net::new();
        let _servers = servers(&net, V4);
        let weir = net.weir(&config(V4, &format!("slow_start: {}s,", RAMP.as_secs()), 2));
        said(&weir, &["backend", "web/b", "drain"]);
        let mut all: Vec<TcpStream> = (0..HELD).map(|_| held(&net, V4, holder)).collect();
        said(&weir, &["backend", "web/b", "ready"]);
        let returned = Instant::now();
        let mut wanted = [f64::from(HELD), 0.0];
        for _ in 0..60 {
            // By its own time, so that pauses do not matter.
            let share = returned.elapsed().as_secs_f64() / RAMP.as_secs_f64();
            let is_b = (wanted[1] + 1.0) / share.min(1.0) < wanted[0] + 1.0;
            wanted[usize::from(is_b)] += 1.0;
            all.push(held(&net, V4, opener));
            std::thread::sleep(Duration::from_millis(30));
        }
        let got = active(&weir);
        println!("opened at {opener}: {got:?}, wanted {wanted:?}");
        // It knows of each step a little later. Of its own connections alone it would make less than half.
        let off = (got[1] as f64 - wanted[1]).abs();
        assert!(
            off <= 2.0 + 0.3 * wanted[1],
            "opened at {opener}: {got:?}, wanted {wanted:?}"
        );
    }
}

/// What a drain closes at a time is divided by what each engine has there.
///
/// Seen to fail where all is asked of the workers first.
#[test]
fn a_drain_takes_from_both_engines_alike() {
    const EACH: usize = 40;
    if !may_make_namespaces() {
        return;
    }
    let net = Net::new();
    let _servers = servers(&net, V4);
    let weir = net.weir(&config(V4, "on_drain: {finish: 2s},", 1));
    let all: Vec<[TcpStream; 2]> = (0..EACH)
        .map(|_| [KERNEL, PROXY].map(|port| held(&net, V4, port)))
        .collect();
    said(&weir, &["backend", "web/a", "drain"]);
    let records = weir.wait_for_records(2 * EACH);
    assert!(records.iter().all(|record| record.cause == "drained"), "{records:?}");
    let of_kernel =
        |records: &[super::common::Record]| records.iter().filter(|record| record.listener == "fast").count();
    assert_eq!(of_kernel(&records), EACH);
    // Whose the odd ones are is chance.
    let half = of_kernel(&records[..EACH]);
    println!("{half} of the first {EACH} were the program's");
    assert!((EACH / 4..=EACH * 3 / 4).contains(&half), "{half} of the first {EACH}");
    drop(all);
}

/// A connection waits at the proxy for a place that one of the kernel engine gives back.
///
/// Seen to fail where nobody is called.
#[test]
fn a_place_that_the_program_frees_is_given_to_whoever_waits() {
    if !may_make_namespaces() {
        return;
    }
    let net = Net::new();
    let _servers = servers(&net, V4);
    let yaml = config(V4, "queue: {timeout: 1m},", 1).replace("{name: a,", "{name: a, max_connections: 2,");
    let weir = net.weir(&yaml);
    let mut full = vec![held(&net, V4, KERNEL), held(&net, V4, KERNEL)];
    assert_eq!(active(&weir), [2]);
    let mut waiting: Vec<TcpStream> = net
        .client
        .enter(|| (0..2).map(|_| connect(&V4.service(PROXY))).collect());
    waiting.iter_mut().for_each(|stream| stream.write_all(b"wait").unwrap());
    wait_until("both wait", || status(&weir)["pools"][0]["queue"]["length"] == 2);
    for stream in &mut waiting {
        drop(full.pop());
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
    }
}

/// Lists, orders and drains see the connections of both.
#[test]
fn orders_are_for_connections_of_both_engines() {
    if !may_make_namespaces() {
        return;
    }
    let net = Net::new();
    let _servers = servers(&net, V4);
    let weir = net.weir(&config(V4, "on_down: close,", 1));
    let rows = |weir: &Weir| {
        let rows = json(weir, &["conns"]);
        let rows = rows.as_array().unwrap().iter().map(|row| {
            assert_eq!((&row["pool"], &row["backend"]), (&"web".into(), &"a".into()));
            (row["engine"].as_str().unwrap().to_string(), row["id"].to_string())
        });
        let mut rows: Vec<(String, String)> = rows.collect();
        rows.sort_unstable();
        rows
    };
    let is_reset = |mut stream: TcpStream| {
        let outcome = stream.read(&mut [0]);
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ConnectionReset);
    };
    let [mut kernel, mut proxy] = [KERNEL, PROXY].map(|port| held(&net, V4, port));
    let listed = rows(&weir);
    assert_eq!([&*listed[0].0, &*listed[1].0], ["kernel", "proxy"]);
    for (stream, (_, id)) in [kernel, proxy].into_iter().zip(&listed) {
        said(&weir, &["kill", id]);
        is_reset(stream);
    }

    [kernel, proxy] = [KERNEL, PROXY].map(|port| held(&net, V4, port));
    let drain = |wait: &str| ask(&weir, &["backend", "web/a", "drain", "--wait", wait]);
    let left = |output: std::process::Output| {
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(left(drain("300ms")).contains("2 open"));
    drop(proxy);
    wait_until("the worker's has ended", || active(&weir) == [1]);
    assert!(left(drain("300ms")).contains("1 open"));
    drop(kernel);
    assert!(drain("30s").status.success());

    said(&weir, &["backend", "web/a", "ready"]);
    let both = [KERNEL, PROXY].map(|port| held(&net, V4, port));
    said(&weir, &["backend", "web/a", "down"]);
    both.into_iter().for_each(is_reset);
    let down = |records: &[super::common::Record]| {
        let down = records.iter().filter(|record| record.cause == "backend_down");
        let mut listeners: Vec<String> = down.map(|record| record.listener.clone()).collect();
        listeners.sort_unstable();
        listeners == ["fast", "plain"]
    };
    weir.wait_for(down);
}

/// With the process its workers' connections have ended, and take no place any more; those of the program go on.
///
/// Seen to fail with a helper that leaves the program its count.
#[test]
fn connections_of_a_killed_process_take_no_place() {
    if !may_make_namespaces() {
        return;
    }
    let net = Net::new();
    let _servers = servers(&net, V4);
    let yaml = config(V4, "", 1).replace("{name: a,", "{name: a, max_connections: 3,");
    let mut weir = net.weir(&format!("kernel: {{restart_grace: 20s}}\n{yaml}"));
    let mut kernel = held(&net, V4, KERNEL);
    let proxy = [held(&net, V4, PROXY), held(&net, V4, PROXY)];
    assert_eq!(active(&weir), [3]);
    assert!(tried(&net, KERNEL).is_none());
    weir.signal(nix::sys::signal::Signal::SIGKILL);
    weir.wait_for_end_of_process();
    drop(proxy);
    let mut meanwhile = Vec::new();
    wait_until("two have room", || {
        meanwhile.extend(tried(&net, KERNEL));
        meanwhile.len() == 2
    });
    assert!(tried(&net, KERNEL).is_none(), "the program goes on counting its own");
    let _again = net.start_after(&weir);
    round_trip(&mut kernel, b"after");
    drop(meanwhile.pop());
    let mut room = None;
    wait_until("a worker has found room", || {
        room = tried(&net, PROXY);
        room.is_some()
    });
    assert!(tried(&net, PROXY).is_none());
}
