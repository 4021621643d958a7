//! Faults: what the outside world, the machine and its operator do to a balancer, one file a subject. Each test names the
//! promise of docs/security.md that it holds, and a naive proxy fails it.
//!
//! The whole runs in well under 90 seconds; what takes longer, or a quiet machine, is behind `#[ignore]`:
//! `cargo test --test faults -- --ignored --test-threads 1`.

#[path = "../common/mod.rs"]
mod common;

mod abrupt;
mod clock;
mod crowd;
mod flood;
mod injected;
mod limits;
mod logs;
mod neighbours;
mod ports;
mod rights;
mod shortage;
mod stopped;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{Weir, client, wait_until};

/// A pool of one backend without probes behind one listener; `more` is added to the listener. No attempt to connect ends by
/// itself while a test goes on.
fn one_backend(backend: std::net::SocketAddr, more: &str) -> String {
    format!(
        "listeners: {{web: {{bind: '127.0.0.1:0', pool: web{more}}}}}\n\
         pools: {{web: {{backends: '{backend}', health: {{type: none}}, passive: off, connect: {{timeout: 1m}}}}}}\n"
    )
}

/// What became of a client that asks and listens without waiting.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Heard {
    Nothing,
    Answer,
    Reset,
    End,
}

fn listen_in(stream: &mut TcpStream) -> Heard {
    match stream.read(&mut [0; 64]) {
        Ok(0) => Heard::End,
        Ok(_) => Heard::Answer,
        Err(error) if error.kind() == ErrorKind::WouldBlock => Heard::Nothing,
        Err(_) => Heard::Reset,
    }
}

/// Clients that have connected and sent one byte, and never wait.
fn askers(address: &str, count: usize) -> Vec<TcpStream> {
    let ask = |_| {
        let mut stream = client::connect(address);
        stream.write_all(b"x").unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    };
    (0..count).map(ask).collect()
}

/// Share of one CPU that weir uses during `time`, percent.
fn cpu_percent(weir: &Weir, time: Duration) -> f64 {
    let (before, start) = (weir.cpu_ticks(), Instant::now());
    std::thread::sleep(time);
    let ticks = (weir.cpu_ticks() - before) as f64;
    ticks / start.elapsed().as_secs_f64()
}

/// Waits until weir holds `expected` sockets again: nothing has leaked, nothing is stuck in CLOSE_WAIT.
#[track_caller]
fn settles_at(weir: &Weir, expected: usize) {
    let mut seen = usize::MAX;
    let deadline = Instant::now() + common::PATIENCE;
    while seen != expected {
        seen = weir.sockets();
        assert!(
            Instant::now() < deadline,
            "{seen} sockets are open, {expected} should be"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until nothing is counted as live any more: no connection at a listener, none at a backend.
#[track_caller]
fn counts_settle(weir: &Weir) {
    let deadline = Instant::now() + common::PATIENCE;
    loop {
        let mut status = common::command(env!("CARGO_BIN_EXE_weir"));
        status.args(["status", "--json", "--socket"]);
        let text = common::run(status.arg(weir.admin()));
        let status: serde_json::Value = serde_json::from_str(&text).unwrap();
        let pools = status["pools"].as_array().unwrap().iter();
        let backends = pools.flat_map(|pool| pool["backends"].as_array().unwrap());
        let all = backends.chain(status["listeners"].as_array().unwrap());
        let live: Vec<&serde_json::Value> = all.filter(|part| part["active"] != 0).collect();
        if live.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "still counted: {live:?}");
    }
}

/// The system under load or a shortage still does this promptly.
#[track_caller]
fn prompt(what: &str, most: Duration, action: impl FnOnce()) {
    let start = Instant::now();
    action();
    let took = start.elapsed();
    assert!(took < most, "{what} took {took:?}");
}

#[track_caller]
fn wait_for_sockets(weir: &Weir, what: &str, condition: impl Fn(usize) -> bool) {
    wait_until(what, || condition(weir.sockets()));
}
