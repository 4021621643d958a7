//! Descriptors run out: clients wait, nobody is harmed, nobody is told lies about backends, and it passes by itself.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::common::operator::{said, status};
use super::common::{self, Launch, Server, Weir, client, run, wait_until};
use super::{Heard, askers, cpu_percent, listen_in, one_backend};

fn limit_descriptors(weir: &Weir, soft: u32) {
    run(common::command("prlimit").args(["--pid", &weir.pid().to_string(), &format!("--nofile={soft}:")]));
}

/// Takes those that have heard an answer out of `waiting`. Nobody may hear anything else.
#[track_caller]
fn take_served(waiting: &mut Vec<TcpStream>) -> Vec<TcpStream> {
    let (mut served, mut left) = (Vec::new(), Vec::new());
    for mut stream in waiting.drain(..) {
        match listen_in(&mut stream) {
            Heard::Nothing => left.push(stream),
            Heard::Answer => served.push(stream),
            other => panic!("a waiting client got {other:?}"),
        }
    }
    *waiting = left;
    served
}

/// Break tried: clients beyond the limit refused at once (they are reset).
#[test]
fn a_thousand_clients_at_256_descriptors() {
    common::raise_descriptor_limit();
    let backend = Server::echo();
    let weir = Launch::new(&one_backend(backend.address, ""))
        .behind(&["prlimit", "--nofile=256:256"])
        .start();
    let mut waiting = askers(&weir.address("web"), 1000);

    let mut served = Vec::new();
    wait_until("as many are served as fit", || {
        served.extend(take_served(&mut waiting));
        served.len() >= 60
    });
    std::thread::sleep(Duration::from_millis(200));
    served.extend(take_served(&mut waiting));
    assert!(served.len() < 128, "{} served by 256 descriptors", served.len());

    // Starved: quiet, and those who are served do not notice.
    let lines = weir.stderr().len();
    let cpu = cpu_percent(&weir, Duration::from_secs(2));
    assert!(cpu < 5.0, "{cpu} % CPU while starved");
    let lines = weir.stderr().len() - lines;
    assert!(lines < 10, "{lines} log lines in 2 s");
    let one = served.last_mut().unwrap();
    one.set_nonblocking(false).unwrap();
    client::round_trip(one, b"still here");

    // Released: all get their turn.
    let mut total = served.len();
    wait_until("all are served", || {
        served = take_served(&mut waiting);
        total += served.len();
        waiting.is_empty()
    });
    assert_eq!(total, 1000);
    drop(served);
    let records = weir.wait_for_records(1000);
    assert!(records.iter().all(|record| record.cause != "limit_process"));
}

/// A reload removes a listener whose clients wait for room.
///
/// Break tried: its socket closed as it is (they are reset).
#[test]
fn who_waits_is_served_although_the_listener_is_removed() {
    common::raise_descriptor_limit();
    let backend = Server::echo();
    let yaml = |listeners: &str| {
        format!(
            "workers: 2\nlisteners: {{{listeners}}}\n\
             pools: {{web: {{backends: '{}', health: none}}}}\n",
            backend.address
        )
    };
    let other = "other: {bind: '127.0.0.1:0', pool: web}";
    let both = format!("web: {{bind: '127.0.0.1:0', pool: web}}, {other}");
    let weir = Launch::new(&yaml(&both))
        .behind(&["prlimit", "--nofile=256:256"])
        .start();
    let mut waiting = askers(&weir.address("web"), 200);
    let mut served = Vec::new();
    wait_until("as many are served as fit", || {
        served.extend(take_served(&mut waiting));
        served.len() >= 60
    });
    weir.wait_for_line("new connections wait");
    weir.rewrite(&yaml(other));
    said(&weir, &["reload"]);
    assert_eq!(status(&weir)["listeners"].as_array().unwrap().len(), 1);
    let mut total = served.len();
    wait_until("all are served", || {
        served = take_served(&mut waiting);
        total += served.len();
        waiting.is_empty()
    });
    assert_eq!(total, 200);
    drop(served);
    let records = weir.wait_for_records(200);
    assert!(records.iter().all(|record| record.cause != "limit_process"));
}

/// The budget holds until something else takes descriptors; then accept4 itself says EMFILE.
/// Break tried: whoever is taken out of the queue refused at once.
#[test]
fn descriptors_that_vanish_while_serving() {
    let backend = Server::echo();
    let weir = Weir::start(&format!(
        "listeners: {{web: {{bind: '127.0.0.1:0', pool: web}}}}\n\
         pools: {{web: {{backends: '{}', health: {{interval: 100ms, timeout: 1s, fall: 1}}, passive: off}}}}\n",
        backend.address
    ));
    let address = weir.address("web");
    let mut established = client::connect(&address);
    client::round_trip(&mut established, b"before");

    limit_descriptors(&weir, 8);
    let mut waiting = askers(&address, 50);
    weir.wait_for_line("new connections wait");
    let lines = weir.stderr().len();
    let cpu = cpu_percent(&weir, Duration::from_secs(2));
    assert!(cpu < 5.0, "{cpu} % CPU while starved");
    let lines = weir.stderr().len() - lines;
    assert!(lines < 10, "{lines} log lines in 2 s");
    client::round_trip(&mut established, b"during");
    assert_eq!(take_served(&mut waiting).len(), 0);

    limit_descriptors(&weir, 1000);
    wait_until("all are served", || {
        take_served(&mut waiting);
        waiting.is_empty()
    });
    client::round_trip(&mut established, b"after");
    let text = weir.stderr().join("\n");
    assert!(!text.contains("is down") && !text.contains(" down:"), "{text}");
}

/// How many connections are carried follows from the limit of the time when the configuration came into force: a shortage that
/// passes leaves nothing behind, and a reload asks again.
/// Break tried: asked whenever workers are told something.
#[test]
fn another_limit_counts_from_the_next_reload() {
    let backend = Server::echo();
    let weir = Weir::start(&format!(
        "listeners: {{web: {{bind: '127.0.0.1:0', pool: web}}}}\n\
         pools: {{web: {{backends: [{{name: one, address: '{}'}}], health: {{type: none}}}}}}\n",
        backend.address
    ));
    let carried = || status(&weir)["process"]["connections_max"].as_u64();
    let before = carried();
    limit_descriptors(&weir, 500);
    said(&weir, &["backend", "web/one", "weight", "2"]);
    assert_eq!(carried(), before);
    said(&weir, &["reload"]);
    assert!(carried() < before && carried() < Some(250), "{:?}", carried());
}

/// Who has waited 15 seconds is told, not left to hang.
#[test]
fn who_waits_too_long_is_reset() {
    let backend = Server::echo();
    let weir = Launch::new(&one_backend(backend.address, ""))
        .behind(&["prlimit", "--nofile=128:128"])
        .start();
    let mut waiting = askers(&weir.address("web"), 150);
    let mut served = Vec::new();
    std::thread::sleep(Duration::from_secs(3));
    served.extend(take_served(&mut waiting));
    assert!(!waiting.is_empty() && !served.is_empty());
    let mut shed = 0;
    wait_until("the others are reset", || {
        let mut left = Vec::new();
        for mut stream in waiting.drain(..) {
            match listen_in(&mut stream) {
                Heard::Nothing => left.push(stream),
                Heard::Reset => shed += 1,
                // Late, on a busy machine.
                Heard::Answer => served.push(stream),
                Heard::End => panic!("a waiting client got an end"),
            }
        }
        waiting = left;
        waiting.is_empty()
    });
    assert!(shed > 0);
    let records = weir.wait_for_records(shed);
    assert!(records.iter().all(|r| r.end() == ("limit_process", "weir")));
    // Not those who are served.
    let one = served.last_mut().unwrap();
    one.set_nonblocking(false).unwrap();
    client::round_trip(one, b"still here");
}

/// A limit that the file states is the operator's word, not a shortage: it is kept at once.
#[test]
fn a_stated_limit_turns_away_at_once() {
    let backend = Server::echo();
    let yaml = format!("limits: {{connections: 3}}\n{}", one_backend(backend.address, ""));
    let weir = Weir::start(&yaml);
    let mut heard = [0; 4];
    let ask = |_| {
        // A reset may come before connect returns.
        let Ok(mut stream) = client::try_connect(&weir.address("web"), None) else {
            heard[Heard::Reset as usize] += 1;
            return None;
        };
        // Or before this, and then it is told once.
        if stream.write_all(b"x").is_err() {
            heard[Heard::Reset as usize] += 1;
            return None;
        }
        stream.set_nonblocking(true).unwrap();
        Some(stream)
    };
    let mut streams: Vec<TcpStream> = (0..5).filter_map(ask).collect();
    wait_until("all hear something", || {
        streams.retain_mut(|stream| {
            let what = listen_in(stream);
            heard[what as usize] += 1;
            what == Heard::Nothing || what == Heard::Answer
        });
        heard[Heard::Answer as usize] == 3 && heard[Heard::Reset as usize] == 2
    });
}

#[test]
fn a_configuration_that_cannot_fit_is_refused_with_the_numbers() {
    let backend = Server::echo();
    let large = format!("limits: {{connections: 5000}}\n{}", one_backend(backend.address, ""));
    let mut weir = Launch::new(&large).behind(&["prlimit", "--nofile=1000:1000"]).spawn();
    assert_eq!(weir.wait_for_end().code(), Some(3));
    let text = weir.stderr().join("\n");
    assert!(text.contains("descriptors are needed (5000 connections of 2"), "{text}");
    assert!(text.contains("and 1000 may be opened"), "{text}");

    // On reload the old one stays.
    let small = one_backend(backend.address, "");
    let weir = Launch::new(&small).behind(&["prlimit", "--nofile=1000:1000"]).start();
    weir.rewrite(&large);
    weir.signal(Signal::SIGHUP);
    weir.wait_for_line("reload refused");
    client::round_trip(&mut client::connect(&weir.address("web")), b"as before");
}
