//! `queue`: connections wait for room at a full backend.

use std::collections::VecDeque;
use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use super::common::{Port, Server, Weir, client, wait_until};
use super::{UNWATCHED, backend, hold, metrics_sum, pool, said, status};

/// So many wait.
const CROWD: u64 = 40;

/// Answers its name and keeps the connection until the client ends it.
fn holding(name: &'static str) -> Server {
    Server::each(move |mut stream| {
        let _ = std::io::Write::write_all(&mut stream, name.as_bytes());
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    })
}

fn weir(server: &Server, cap: u32, queue: &str, workers: u32) -> Weir {
    let backends = [backend("a", server.address, &format!("max_connections: {cap}"))];
    let keys = format!("{UNWATCHED}, queue: {queue}");
    let workers = format!("workers: {workers}");
    Weir::start(&pool(&keys, &backends).replace("workers: 2", &workers))
}

/// Whether the backend has answered; an error is the end.
fn answered(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    match stream.read(&mut [0]) {
        Ok(n) => n == 1,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => false,
        Err(error) => panic!("a client that waits: {error}"),
    }
}

fn waiting(weir: &Weir) -> u64 {
    status(weir)["pools"][0]["queue"]["length"].as_u64().unwrap()
}

/// One client holds the only place, the others wait, with four workers. Whenever one leaves, the one that has waited longest is
/// next.
///
/// Meant to notice: newcomers that do not stand behind those who wait (`Attempt::start`); a place that wakes nobody
/// (`BackendPermit`): times out.
#[test]
fn places_go_to_those_who_have_waited_longest() {
    let server = holding("a");
    let weir = weir(&server, 1, "{length: 1000, timeout: 60s}", 4);
    let address = weir.address("main");
    let (_, first) = hold(&address, None);
    let mut crowd: VecDeque<TcpStream> = VecDeque::new();
    for n in 1..=CROWD {
        crowd.push_back(client::try_connect(&address, None).unwrap());
        // The order of arrival is the order of accepting: one after the other.
        wait_until("it waits", || waiting(&weir) == n);
    }
    let mut leaving = first;
    while let Some(mut next) = crowd.pop_front() {
        drop(leaving);
        wait_until("the one that has waited longest is served", || answered(&mut next));
        let before_its_turn = crowd.iter_mut().position(answered);
        assert_eq!(before_its_turn, None, "of {} that wait", crowd.len());
        leaving = next;
    }
}

/// Meant to notice: `queue.length` not looked at; no timer for those who wait; a client that has gone and still stands there.
#[test]
fn leaving_the_queue_before_ones_turn() {
    let server = holding("a");
    let metrics = Port::reserve();
    let backends = [backend("a", server.address, "max_connections: 1")];
    let keys = format!("{UNWATCHED}, queue: {{length: 2, timeout: 700ms}}");
    let weir = Weir::start(&(pool(&keys, &backends) + &format!("metrics: {}\n", metrics.address())));
    let address = weir.address("main");
    let (_, held) = hold(&address, None);
    let connect = || client::try_connect(&address, None).unwrap();
    let ends = |n: usize| -> Vec<(String, String)> {
        let records = weir.wait_for_records(n);
        records
            .iter()
            .map(|r| (r.end().0.to_owned(), r.end().1.to_owned()))
            .collect()
    };
    let end = |cause: &str, by: &str| (cause.to_owned(), by.to_owned());

    // One that goes away, by FIN and by RST.
    for reset in [false, true] {
        let stream = connect();
        wait_until("it waits", || waiting(&weir) == 1);
        if reset {
            socket2::SockRef::from(&stream)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
        }
        drop(stream);
        wait_until("it has left", || waiting(&weir) == 0);
    }
    assert_eq!(ends(2), [end("client_reset", "client"), end("client_reset", "client")]);

    // Two wait, a third finds the queue full; both run out of time.
    let began = Instant::now();
    let crowd = [connect(), connect()];
    wait_until("they wait", || waiting(&weir) == 2);
    // It may be reset before it has seen that it is connected.
    let third = client::try_connect(&address, None);
    assert_eq!(ends(3)[2], end("queue_full", "weir"));
    assert_eq!(
        ends(5)[3..],
        [end("queue_timeout", "weir"), end("queue_timeout", "weir")]
    );
    assert!(began.elapsed() >= Duration::from_millis(700));
    drop((crowd, third));
    let metric = |name: &str| metrics_sum(&metrics.address().to_string(), name);
    assert_eq!(metric("weir_queue_length{pool=\"main\"}"), 0.0);
    assert_eq!(metric("weir_queue_seconds_count{pool=\"main\"}"), 4.0);
    for (reason, wanted) in [("queue_full", 1.0), ("queue_timeout", 2.0)] {
        let name = format!("weir_connections_refused_total{{listener=\"main\",reason=\"{reason}\"");
        assert_eq!(metric(&name), wanted, "{reason}");
    }

    // One that has sent a request and ended its stream waits on.
    let mut asks = connect();
    std::io::Write::write_all(&mut asks, b"?").unwrap();
    asks.shutdown(Shutdown::Write).unwrap();
    wait_until("it waits", || waiting(&weir) == 1);
    drop(held);
    let mut answer = Vec::new();
    asks.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"a");
}

/// Room that no connection has left: the cap is raised by a reload, a backend is let back in.
///
/// Meant to notice: nobody called when a snapshot arrives (`Waiting::call_all`): times out.
#[test]
fn room_that_comes_with_a_reload_or_a_backend() {
    let server = holding("a");
    let text = |cap: u32| {
        let backends = [backend("a", server.address, &format!("max_connections: {cap}"))];
        pool(&format!("{UNWATCHED}, queue: {{timeout: 60s}}"), &backends)
    };
    let weir = Weir::start(&text(1));
    let address = weir.address("main");
    let (_, _held) = hold(&address, None);
    // One after the other: the workers accept beside each other.
    let mut crowd: Vec<TcpStream> = Vec::new();
    for stand in 1..=3 {
        crowd.push(client::try_connect(&address, None).unwrap());
        wait_until("it waits", || waiting(&weir) == stand);
    }
    weir.rewrite(&text(3));
    said(&weir, &["reload"]);
    wait_until("two are served", || waiting(&weir) == 1);
    for served in &mut crowd[..2] {
        served.read_exact(&mut [0]).unwrap();
    }
    // Nobody is left to take new work: whoever waits is refused like newcomers.
    said(&weir, &["backend", "main/a", "drain"]);
    let record = &weir.wait_for_records(1)[0];
    assert_eq!(record.end(), ("no_backend", "weir"));
}
