//! Many idle or slow clients of one origin: others are unharmed, memory is bounded, nobody occupies a place for ever.

use std::io::Write;
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

use super::common::{self, Server, Weir, client, wait_until};
use super::{Heard, listen_in};

fn crowd(weir: &Weir, clients: u32) -> Vec<TcpStream> {
    let address = weir.address("web");
    let connect = |n: u32| {
        let source = IpAddr::from([127, 1, 0, (n % 250) as u8 + 1]);
        let stream = client::try_connect(&address, Some(source)).ok()?;
        stream.set_nonblocking(true).unwrap();
        Some(stream)
    };
    (0..clients).filter_map(connect).collect()
}

fn limited(backend: std::net::SocketAddr) -> String {
    format!(
        "listeners: {{web: {{bind: '127.0.0.1:0', pool: web, limits: {{per_source: 10}}}}}}\n\
         pools: {{web: {{backends: '{backend}', health: {{type: none}}}}}}\n"
    )
}

fn idle_clients_of_one_prefix(clients: u32) {
    common::raise_descriptor_limit();
    let backend = Server::echo();
    let weir = Weir::start(&limited(backend.address));
    let before_kib = weir.memory_kib("RssAnon");
    let idle = crowd(&weir, clients);
    let admitted = 250 * 10;
    wait_until("the crowd has its share", || {
        weir.wait_for_records((clients - admitted) as usize).len() == (clients - admitted) as usize
    });
    let records = weir.access_log();
    assert!(records.iter().all(|record| record.cause == "limit_source"));

    // A neighbour is served as if nothing were.
    let wait = |_| {
        let start = Instant::now();
        let mut stream = client::connect(&weir.address("web"));
        client::round_trip(&mut stream, b"hello");
        start.elapsed()
    };
    let mut waits: Vec<Duration> = (0..200).map(wait).collect();
    waits.sort_unstable();
    let median = waits[100];
    assert!(median < Duration::from_secs(1), "a neighbour waited {median:?}");
    let grown = weir.memory_kib("RssAnon").saturating_sub(before_kib);
    assert!(grown < 16 << 10, "{grown} KiB for {admitted} idle connections");
    drop(idle);
}

#[test]
fn four_thousand_idle_clients_of_one_prefix() {
    idle_clients_of_one_prefix(4_000);
}

#[test]
#[ignore = "long: 10,000 clients, beyond the usual limit on open files"]
fn ten_thousand_idle_clients_of_one_prefix() {
    idle_clients_of_one_prefix(10_000);
}

/// Break tried: no timer for the header phase (the clients stay).
#[test]
fn a_proxy_header_that_trickles_in_does_not_hold_its_place() {
    let backend = Server::echo();
    let weir = Weir::start(&format!(
        "listeners: {{web: {{bind: '127.0.0.1:0', pool: web, accept_proxy: {{from: [127.1.0.0/16]}}}}}}\n\
         pools: {{web: {{backends: '{}', health: {{type: none}}}}}}\n",
        backend.address
    ));
    let mut slow = crowd(&weir, 100);
    let header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n";
    let start = Instant::now();
    for byte in header.iter().cycle() {
        for stream in &mut slow {
            let _ = stream.write(std::slice::from_ref(byte));
        }
        slow.retain_mut(|stream| listen_in(stream) == Heard::Nothing);
        let took = start.elapsed();
        if slow.is_empty() {
            break;
        }
        assert!(took < Duration::from_secs(10), "{} are still there", slow.len());
        // One byte at a time, 36 of them in 7 seconds.
        std::thread::sleep(Duration::from_millis(200));
        client::round_trip(&mut client::connect(&weir.address("web")), b"unharmed");
    }
    let records = weir.wait_for(|records| records.iter().filter(|r| r.cause == "bad_proxy_header").count() == 100);
    let bad = records.iter().find(|r| r.cause == "bad_proxy_header").unwrap();
    assert_eq!((bad.closed_by.as_str(), bad.backend.as_deref()), ("weir", None));
}
