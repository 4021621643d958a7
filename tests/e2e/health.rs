//! Backends that go away and come back.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::common::{PATIENCE, Port, Server, Weir, client, server, wait_until};
use super::{balanced, configuration};

const QUICK: &str = "interval: 50ms, timeout: 100ms, rise: 2, fall: 2";

#[test]
fn a_down_backend_gets_nothing_new_and_comes_back() {
    let names = ["a", "b", "c"];
    let ports = names.map(|_| Port::reserve());
    let serve = |ix: usize| Server::named_on(server::bind(ports[ix].address()), names[ix]);
    let mut servers: Vec<Server> = (0..3).map(serve).collect();
    let backends: Vec<_> = std::iter::zip(names, &ports)
        .map(|(name, port)| (name, port.address()))
        .collect();
    let pool = format!("balance: round_robin, health: {{{QUICK}}}, passive: off");
    let weir = Weir::start(&balanced("", &pool, &backends));
    let address = weir.address("main");
    let ask = || client::fetch(&address).expect("an answer");

    weir.wait_for_line_with(&["main/c ", "is up"]);
    drop(servers.pop());
    // The reason is said, once.
    weir.wait_for_line_with(&["main/c ", "is down", "refused"]);
    let before = weir.access_log().len();
    for _ in 0..300 {
        assert_ne!(ask(), "c");
    }
    let records = weir.wait_for_records(before + 300);
    assert!(
        records[before..].iter().all(|record| record.attempts == 1),
        "a down backend was tried"
    );
    let said = |word: &str| {
        let lines = weir.stderr();
        let fits = |line: &&String| line.contains("main/c ") && line.contains(word);
        lines.iter().filter(fits).count()
    };
    assert_eq!((said("is up"), said("is down")), (1, 1));

    servers.push(serve(2));
    wait_until("the backend serves again", || ask() == "c");
    wait_until("it is told", || (said("is up"), said("is down")) == (2, 1));
}

/// Live connections stay with a backend whose probes fail (`keep`), or are ended (`close`).
#[test]
fn live_connections_of_a_down_backend() {
    for (on_down, kept) in [("keep", true), ("close", false)] {
        let port = Port::reserve();
        let echo = Server::each_on(server::bind(port.address()), server::echo);
        let pool = format!("on_down: {on_down}, health: {{{QUICK}}}, passive: off");
        let weir = Weir::start(&balanced("", &pool, &[("one", port.address())]));
        let mut stream = client::connect(&weir.address("main"));
        client::round_trip(&mut stream, b"hello");
        // Its listening socket closes; connections live on.
        drop(echo);
        weir.wait_for_line_with(&["main/one ", "is down"]);
        if kept {
            client::round_trip(&mut stream, b"still there");
        } else {
            client::read_to_reset(&mut stream);
            assert_eq!(weir.wait_for_records(1)[0].end(), ("backend_down", "weir"));
        }
    }
}

#[test]
fn when_all_are_down_clients_are_refused_or_all_are_tried() {
    // Probed on a port where nobody listens, while the service itself works.
    let (server, nobody) = (Server::named("one"), Port::reserve());
    for (all_down, served) in [("refuse", false), ("try_all", true)] {
        let pool = format!("all_down: {all_down}, health: {{{QUICK}, port: {}}}", nobody.number);
        let weir = Weir::start(&balanced("", &pool, &[("one", server.address)]));
        weir.wait_for_line_with(&["main/one ", "is down"]);
        if served {
            let mut stream = client::connect(&weir.address("main"));
            assert_eq!(client::read_to_end(&mut stream), b"one");
        } else {
            client::connect_to_reset(&weir.address("main"));
            assert_eq!(weir.wait_for_records(1)[0].end(), ("no_backend", "weir"));
        }
    }
}

/// A server that listens but does not answer as it should is down.
#[test]
fn send_and_expect() {
    let answering = |answer: &'static str| {
        Server::each(move |mut stream| {
            let mut line = [0; 6];
            if stream.read_exact(&mut line).is_ok() && &line == b"PING\r\n" {
                let _ = stream.write_all(answer.as_bytes());
            }
            // So that it is known to be the whole answer.
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        })
    };
    let (good, bad) = (answering("+PONG\r\n"), answering("-LOADING\r\n"));
    // Nothing is decided by time.
    let pool = "health: {interval: 50ms, timeout: 10s, send: \"PING\\r\\n\", expect: \"+PONG\"}";
    let weir = Weir::start(&balanced("", pool, &[("good", good.address), ("bad", bad.address)]));
    weir.wait_for_line_with(&["main/bad ", "is down", "LOADING"]);
    assert!(
        !weir
            .stderr()
            .iter()
            .any(|line| line.contains("main/good ") && line.contains("is down")),
        "{:?}",
        weir.stderr()
    );
}

/// One prober, whatever the number of workers; and its probes end with FIN, so that no server logs a reset.
#[test]
fn probes_are_few_and_polite() {
    let (sender, ends) = mpsc::channel();
    let server = Server::serial(move |mut stream| {
        let _ = sender.send((Instant::now(), stream.read(&mut [0]).map_err(|error| error.kind())));
    });
    let backend = [format!("{{name: one, address: '{}'}}", server.address)];
    let yaml = configuration("", "health: {interval: 100ms, timeout: 100ms}", &backend);
    let _weir = Weir::start(&yaml.replace("workers: 2", "workers: 4"));
    let seen: Vec<(Instant, Result<usize, ErrorKind>)> =
        (0..21).map(|_| ends.recv_timeout(PATIENCE).expect("a probe")).collect();
    assert!(seen.iter().all(|(_, end)| *end == Ok(0)), "{seen:?}");
    let (first, last) = (seen[0].0, seen[20].0);
    let period = (last - first) / 20;
    // Jitter shortens a period by a fraction at most, and the first may be seen late; four probers would show 25 ms.
    assert!(period > Duration::from_millis(40), "{period:?}");
}
