//! TERM lets connections finish; a second one does not wait.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::common::{Server, Weir, client, wait_until};
use super::{UNWATCHED, balanced};

fn held_connection(more: &str) -> (Server, Weir, TcpStream) {
    let server = Server::echo();
    let weir = Weir::start(&(more.to_owned() + &balanced("", UNWATCHED, &[("one", server.address)])));
    let mut stream = client::connect(&weir.address("main"));
    client::round_trip(&mut stream, b"before");
    (server, weir, stream)
}

#[test]
fn term_accepts_nothing_new_and_lets_the_rest_finish() {
    let (_server, mut weir, mut stream) = held_connection("shutdown_grace: 10m\n");
    let address = weir.address("main");
    weir.signal(Signal::SIGTERM);
    wait_until("new connections are refused", || {
        client::try_connect(&address, None).is_err()
    });
    for _ in 0..10 {
        client::round_trip(&mut stream, &[7; 10_000]);
    }
    assert!(weir.is_running());
    drop(stream);
    assert!(weir.wait_for_end().success());
    let records = weir.access_log();
    let record = records.iter().find(|record| record.bytes_up > 0).expect("a record");
    assert_eq!((record.end(), record.bytes_up), (("finished", "client"), 100_006));
}

#[test]
fn an_idle_weir_stops_at_once() {
    let server = Server::echo();
    let weir = Weir::start(&balanced("", "", &[("one", server.address)]));
    let begun = Instant::now();
    weir.stop();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn after_the_grace_connections_are_reset() {
    let (_server, mut weir, mut stream) = held_connection("shutdown_grace: 300ms\n");
    let begun = Instant::now();
    weir.signal(Signal::SIGTERM);
    // A stream that nobody ended must not look complete.
    assert_eq!(client::read_to_reset(&mut stream), b"");
    assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
    assert!(weir.wait_for_end().success());
    assert_eq!(weir.access_log()[0].end(), ("shutdown", "weir"));
}

#[test]
fn a_second_signal_stops_at_once() {
    for second in [Signal::SIGTERM, Signal::SIGINT] {
        let (_server, mut weir, mut stream) = held_connection("shutdown_grace: 10m\n");
        weir.signal(Signal::SIGTERM);
        weir.wait_for_line("stopping");
        let begun = Instant::now();
        weir.signal(second);
        assert_eq!(client::read_to_reset(&mut stream), b"");
        assert!(weir.wait_for_end().success());
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert_eq!(weir.access_log()[0].cause, "shutdown");
    }
}

/// What was accepted by the kernel before TERM, but not yet by weir, is served: nobody is reset by a stop.
#[test]
fn connections_in_the_queue_are_served() {
    let server = Server::named("served");
    for _ in 0..20 {
        let weir = Weir::start(&balanced("", UNWATCHED, &[("one", server.address)]));
        let address = weir.address("main");
        let clients: Vec<TcpStream> = (0..50).map(|_| client::connect(&address)).collect();
        weir.signal(Signal::SIGTERM);
        for mut stream in clients {
            assert_eq!(client::read_to_end(&mut stream), b"served");
        }
    }
}
