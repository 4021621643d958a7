//! What ends a connection on which nothing happens, and what does not.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use super::common::{Blackhole, Server, Weir, client};
use super::{UNWATCHED, balanced};

fn ms(limit: u64) -> Duration {
    Duration::from_millis(limit)
}

#[test]
fn an_idle_connection_ends_with_fin() {
    let server = Server::holder();
    let weir = Weir::start(&balanced(
        "timeouts: {idle: 300ms}",
        UNWATCHED,
        &[("one", server.address)],
    ));
    let begun = Instant::now();
    let mut stream = client::connect(&weir.address("main"));
    assert_eq!(client::read_to_end(&mut stream), b"");
    assert!(begun.elapsed() >= ms(300), "{:?}", begun.elapsed());
    assert_eq!(weir.wait_for_records(1)[0].end(), ("idle_timeout", "weir"));
}

/// A byte in either direction counts for both: a download is not idle because its client says nothing.
#[test]
fn a_byte_in_either_direction_postpones_the_idle_timeout() {
    let trickle = Server::each(|mut stream| {
        for _ in 0..10 {
            std::thread::sleep(ms(400));
            let _ = stream.write_all(b"x");
        }
    });
    let sink = Server::sink();
    let goes_on = |server: &Server, bytes: usize| {
        // Longer than each silence, and shorter than all of them.
        let weir = Weir::start(&balanced("timeouts: {idle: 3s}", UNWATCHED, &[("one", server.address)]));
        let mut stream = client::connect(&weir.address("main"));
        if bytes == 0 {
            for _ in 0..10 {
                std::thread::sleep(ms(400));
                stream.write_all(b"x").unwrap();
            }
            stream.shutdown(Shutdown::Write).unwrap();
        }
        assert_eq!(client::read_to_end(&mut stream).len(), bytes);
        drop(stream);
        assert_eq!(weir.wait_for_records(1)[0].cause, "finished");
    };
    std::thread::scope(|scope| {
        scope.spawn(|| goes_on(&trickle, 10));
        goes_on(&sink, 0);
    });
}

/// 30 MB towards a client that has stopped reading: a part of it arrives, and then not an end but a reset. `half_close` is the
/// same after the client's own end.
#[test]
fn a_stalled_transfer_ends_with_a_reset() {
    for (half_closed, listener, cause) in [
        (false, "timeouts: {idle: 1s}", "idle_timeout"),
        (true, "timeouts: {idle: 10m, half_close: 1s}", "half_close_timeout"),
    ] {
        let server = Server::source(vec![7; 30 << 20]);
        let weir = Weir::start(&balanced(listener, UNWATCHED, &[("one", server.address)]));
        let mut stream = client::connect(&weir.address("main"));
        if half_closed {
            stream.shutdown(Shutdown::Write).unwrap();
        }
        let record = &weir.wait_for_records(1)[0];
        assert_eq!(record.end(), (cause, "weir"));
        let bytes = client::read_to_reset(&mut stream);
        assert!(bytes.len() < 30 << 20);
    }
}

/// The same towards a backend.
#[test]
fn a_stalled_upload_ends_with_a_reset() {
    let (sender, streams) = std::sync::mpsc::channel();
    let server = Server::serial(move |stream| drop(sender.send(stream)));
    let weir = Weir::start(&balanced("timeouts: {idle: 1s}", UNWATCHED, &[("one", server.address)]));
    let mut stream = client::connect(&weir.address("main"));
    let mut backend = streams.recv_timeout(super::common::PATIENCE).expect("a connection");
    let error = std::iter::repeat_with(|| stream.write_all(&[7; 64 << 10]))
        .find_map(Result::err)
        .unwrap();
    let resets = [std::io::ErrorKind::ConnectionReset, std::io::ErrorKind::BrokenPipe];
    assert!(resets.contains(&error.kind()), "{error}");
    assert_eq!(weir.wait_for_records(1)[0].end(), ("idle_timeout", "weir"));
    client::read_to_reset(&mut backend);
}

/// A transfer that waits for its bandwidth limit is not idle, and the limit holds from the first byte: a tenth of a second's worth
/// at once. With a whole buffer read at once, the rest after it is longer than `idle`.
#[test]
fn a_throttled_transfer_is_not_idle() {
    let server = Server::source(vec![7; 40_000]);
    let listener = "limits: {download: 10KB/s}, timeouts: {idle: 1s}";
    let weir = Weir::start(&balanced(listener, UNWATCHED, &[("one", server.address)]));
    let begun = Instant::now();
    let mut stream = client::connect(&weir.address("main"));
    let (mut bytes, mut buffer) = (0, [0; 4_096]);
    loop {
        let got = stream.read(&mut buffer).unwrap();
        if got == 0 {
            break;
        }
        bytes += got;
        let most = 10_000.0 * (begun.elapsed().as_secs_f64() + 0.1) + 1.0;
        assert!(bytes as f64 <= most, "{bytes} bytes after {:?}", begun.elapsed());
    }
    assert_eq!(bytes, 40_000);
    drop(stream);
    assert_eq!(weir.wait_for_records(1)[0].end(), ("finished", "backend"));
}

/// After one direction has ended, silence of the other ends the connection, although `idle` is much longer. The time
/// counts from that end: before it, the connection was silent for longer than that.
#[test]
fn a_half_closed_connection_has_less_time() {
    let server = Server::holder();
    let listener = "timeouts: {idle: 10m, half_close: 300ms}";
    let weir = Weir::start(&balanced(listener, UNWATCHED, &[("one", server.address)]));
    let mut stream = client::connect(&weir.address("main"));
    std::thread::sleep(ms(400));
    let begun = Instant::now();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client::read_to_end(&mut stream), b"");
    assert!((ms(300)..ms(5_000)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_eq!(weir.wait_for_records(1)[0].end(), ("half_close_timeout", "weir"));
}

#[test]
fn max_age_ends_even_a_busy_connection() {
    let server = Server::echo();
    let weir = Weir::start(&balanced(
        "timeouts: {max_age: 1s}",
        UNWATCHED,
        &[("one", server.address)],
    ));
    let begun = Instant::now();
    let mut stream = client::connect(&weir.address("main"));
    let mut byte = [0];
    while stream.write_all(b"x").is_ok() && matches!(stream.read(&mut byte), Ok(1)) {}
    // Jittered by up to a tenth.
    assert!((ms(900)..ms(5_000)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_eq!(weir.wait_for_records(1)[0].end(), ("max_age", "weir"));
}

#[test]
fn a_backend_that_does_not_answer_leaves_time_for_another() {
    let (hole, server) = (Blackhole::new(), Server::named("good"));
    let pool = format!("balance: round_robin, connect: {{timeout: 3s}}, {UNWATCHED}");
    let weir = Weir::start(&balanced(
        "",
        &pool,
        &[("hole", hole.address), ("good", server.address)],
    ));
    let address = weir.address("main");
    let begun = Instant::now();
    // One more than workers: of two connections of one worker, one begins with the other backend.
    for _ in 0..3 {
        assert_eq!(client::fetch(&address).unwrap(), "good");
    }
    let records = weir.wait_for_records(3);
    let retried: Vec<_> = records.iter().filter(|record| record.attempts == 2).collect();
    assert!(!retried.is_empty(), "the other backend was never tried");
    // Two attempts share the time evenly.
    assert!(
        retried
            .iter()
            .all(|record| (1_490.0..2_900.0).contains(&record.duration_ms)),
        "{retried:?}"
    );
    assert!(begun.elapsed() < ms(3 * 3_000), "{:?}", begun.elapsed());
}
