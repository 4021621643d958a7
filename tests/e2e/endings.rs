//! How connections end: FIN as FIN, RST as RST after the bytes before it, and what the access log says of it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc;

use super::common::netns::{Netns, at, counted, link};
use super::common::server::{bind, close, reset};
use super::common::{Blackhole, Launch, Port, Server, Weir, client, have, may_make_namespaces, wait_until};
use super::{UNWATCHED, balanced};

/// A backend that sends all its streams to the test.
fn in_hand() -> (Server, mpsc::Receiver<TcpStream>) {
    let (sender, receiver) = mpsc::channel();
    let server = Server::serial(move |stream| drop(sender.send(stream)));
    (server, receiver)
}

/// A connection through a fresh weir, both ends in hand.
fn through_weir(listener: &str) -> (Weir, TcpStream, TcpStream) {
    let (server, streams) = in_hand();
    let weir = Weir::start(&balanced(listener, UNWATCHED, &[("one", server.address)]));
    let client = client::connect(&weir.address("main"));
    let backend = streams.recv_timeout(super::common::PATIENCE).expect("a connection");
    (weir, client, backend)
}

/// Everything that was sent before a reset arrives before the reset, however late it is read.
#[test]
fn a_reset_travels_after_the_bytes_before_it() {
    for client_resets in [true, false] {
        let (weir, client, backend) = through_weir("");
        let (mut from, mut to) = if client_resets {
            (client, backend)
        } else {
            (backend, client)
        };
        let bytes: Vec<u8> = (0..100_000_u32).map(|n| (n * 7) as u8).collect();
        from.write_all(&bytes).unwrap();
        // What the own kernel has not sent yet, a reset throws away.
        client::wait_until_acknowledged(&from);
        reset(from);
        assert!(
            client::read_to_reset(&mut to) == bytes,
            "client resets: {client_resets}"
        );
        let record = &weir.wait_for_records(1)[0];
        let (end, up, down) = if client_resets {
            (("client_reset", "client"), 100_000, 0)
        } else {
            (("backend_reset", "backend"), 0, 100_000)
        };
        assert_eq!((record.end(), record.bytes_up, record.bytes_down), (end, up, down));
    }
}

/// A reset of a peer that still gets data passes on at once.
#[test]
fn a_reset_in_the_middle_of_a_stream() {
    let (weir, client, mut backend) = through_weir("");
    let writer = std::thread::spawn(move || {
        let block = vec![0; 64 << 10];
        loop {
            if let Err(error) = backend.write_all(&block) {
                return error.kind();
            }
        }
    });
    let mut stream = client;
    stream.read_exact(&mut vec![0; 3 << 20]).unwrap();
    reset(stream);
    let seen = writer.join().unwrap();
    let resets = [std::io::ErrorKind::ConnectionReset, std::io::ErrorKind::BrokenPipe];
    assert!(resets.contains(&seen), "{seen}");
    assert_eq!(weir.wait_for_records(1)[0].end(), ("client_reset", "client"));
}

/// Such a backend is gone (HUP) before weir has looked at the connection for the first time. That is no refusal: what it has
/// written is the client's.
#[test]
fn a_unix_backend_that_writes_and_closes_at_once_is_heard() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backend");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let accepting = std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let _ = (&stream).write_all(b"good day");
        }
    });
    let backend = format!("{{name: one, address: 'unix:{}'}}", path.display());
    let weir = Weir::start(&super::configuration("", UNWATCHED, &[backend]));
    let address = weir.address("main");
    for _ in 0..300 {
        assert_eq!(client::fetch(&address).unwrap(), "good day");
    }
    let records = weir.wait_for_records(300);
    let other = records.iter().find(|record| record.end() != ("finished", "backend"));
    assert_eq!(other, None);
    drop(accepting);
}

#[test]
fn half_closed_connections_go_on_in_the_other_direction() {
    for client_first in [true, false] {
        let (weir, client, backend) = through_weir("");
        let (mut early, mut late) = if client_first {
            (client, backend)
        } else {
            (backend, client)
        };
        early.write_all(b"early").unwrap();
        early.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client::read_to_end(&mut late), b"early");
        // Several round trips after the end of the other direction.
        for round in 0..10 {
            late.write_all(&[round]).unwrap();
            let mut byte = [0];
            early.read_exact(&mut byte).unwrap();
            assert_eq!(byte[0], round);
        }
        late.write_all(b"late").unwrap();
        drop(late);
        assert_eq!(client::read_to_end(&mut early), b"late");
        let by = if client_first { "client" } else { "backend" };
        assert_eq!(weir.wait_for_records(1)[0].end(), ("finished", by));
    }
}

/// A backend that resets right after accepting, before it has sent anything.
#[test]
fn an_early_reset_reaches_the_client() {
    let server = Server::resetting();
    let weir = Weir::start(&balanced("", UNWATCHED, &[("one", server.address)]));
    client::connect_to_reset(&weir.address("main"));
    assert_eq!(weir.wait_for_records(1)[0].end(), ("backend_reset", "backend"));
}

#[test]
fn a_client_without_a_backend_is_reset() {
    let (one, two) = (Port::reserve(), Port::reserve());
    let hole = Blackhole::new();
    let refusing = [("one", one.address()), ("two", two.address())];
    for (yaml, cause, attempts) in [
        (balanced("", UNWATCHED, &refusing), "connect_failed", 2),
        (
            balanced(
                "",
                &format!("connect: {{timeout: 300ms}}, {UNWATCHED}"),
                &[("hole", hole.address)],
            ),
            "connect_timeout",
            1,
        ),
    ] {
        let weir = Weir::start(&yaml);
        client::connect_to_reset(&weir.address("main"));
        let record = &weir.wait_for_records(1)[0];
        assert_eq!((record.end(), record.attempts), ((cause, "weir"), attempts));
    }

    let full = Server::named_holder("x");
    let backend = format!("{{name: one, address: '{}', max_connections: 1}}", full.address);
    let weir = Weir::start(&super::configuration("", UNWATCHED, &[backend]));
    let mut first = client::connect(&weir.address("main"));
    first.read_exact(&mut [0]).unwrap();
    client::connect_to_reset(&weir.address("main"));
    let record = &weir.wait_for_records(1)[0];
    assert_eq!((record.end(), record.attempts), (("no_backend", "weir"), 0));
}

/// One record tells the whole story, with the names that the documentation promises.
#[test]
fn the_record_of_a_connection() {
    let promised = [
        "time",
        "id",
        "listener",
        "protocol",
        "client",
        "local",
        "pool",
        "backend",
        "address",
        "attempts",
        "bytes_up",
        "bytes_down",
        "connect_ms",
        "first_byte_ms",
        "duration_ms",
        "spliced",
        "closed_by",
        "cause",
    ];
    for format in ["text", "json"] {
        let server = Server::source(b"welcome".to_vec());
        let yaml = balanced("", UNWATCHED, &[("one", server.address)]);
        let log = format!("log: {{access: stdout, format: {format}}}\n");
        let weir = Weir::start(&(log + &yaml));
        let mut stream = client::connect(&weir.address("main"));
        let from = stream.local_addr().unwrap().to_string();
        stream.write_all(b"hello").unwrap();
        assert_eq!(client::read_to_end(&mut stream), b"welcome");
        drop(stream);
        let record = &weir.wait_for_records(1)[0];
        assert!(
            weir.stdout()[0].starts_with('{') == (format == "json"),
            "{}",
            weir.stdout()[0]
        );
        assert_eq!(record.fields, promised, "{format}");
        assert!(humantime::parse_rfc3339(&record.time).is_ok(), "{}", record.time);
        assert_eq!(
            (
                &*record.listener,
                &*record.protocol,
                &*record.pool,
                &*record.client,
                &record.local
            ),
            ("main", "tcp", "main", &*from, &weir.address("main"))
        );
        assert_eq!(
            (record.backend.as_deref(), record.address.as_ref()),
            (Some("one"), Some(&server.address.to_string()))
        );
        assert_eq!(
            (record.attempts, record.bytes_up, record.bytes_down, record.spliced),
            (1, 5, 7, 0)
        );
        assert_eq!(record.end(), ("finished", "backend"));
        let (connect, first) = (record.connect_ms.unwrap(), record.first_byte_ms.unwrap());
        assert!(
            0.0 < connect && connect <= first && first <= record.duration_ms,
            "{record:?}"
        );
    }
}

/// 10,000 connections that end in order, in every order, counted by the kernel's packet filter on the client's host. The
/// last connection is reset on purpose, to see that the filter counts.
#[test]
fn a_clean_end_never_sends_a_reset() {
    if !may_make_namespaces() || !have(&["nft"]) {
        return;
    }
    let (near, far) = (Netns::new("client"), Netns::new("weir"));
    link("eth0", [(&near, "10.1.0.1/24"), (&far, "10.1.0.2/24")]);
    near.nft(
        "table inet weir { counter resets { }; chain input { type filter hook input priority 0;
         tcp flags & rst == rst counter name resets; }; }",
    );
    far.nft(
        "table inet weir { counter resets { }; chain output { type filter hook output priority 0;
         tcp flags & rst == rst counter name resets; }; }",
    );
    // The first byte says who ends first.
    let listener = far.enter(|| bind(at("10.1.0.2", 0)));
    let server = Server::on(listener, |mut stream| {
        let mut order = [0];
        if stream.read_exact(&mut order).is_err() {
            return;
        }
        if order[0] == b'c' {
            let _ = stream.read_to_end(&mut Vec::new());
        }
        let _ = stream.write_all(b"answer");
        match order[0] {
            b'r' => reset(stream),
            b's' => close(stream),
            _ => {}
        }
    });
    let yaml = format!(
        "
workers: 2
listeners: {{main: {{bind: ['10.1.0.2:0'], pool: main}}}}
pools: {{main: {{backends: [{{name: one, address: '{}'}}], {UNWATCHED}}}}}
",
        server.address
    );
    let weir = Launch::new(&yaml).inside(&far).start();
    let address = weir.address("main");
    let connections = 10_000;
    near.enter(|| {
        for number in 0..connections {
            let mut stream = client::connect(&address);
            let order = b"csb"[number % 3];
            stream.write_all(&[order]).unwrap();
            if order == b'c' {
                stream.shutdown(Shutdown::Write).unwrap();
            }
            assert_eq!(client::read_to_end(&mut stream), b"answer");
        }
    });
    let records = weir.wait_for_records(connections);
    assert!(records.iter().all(|record| record.cause == "finished"));
    assert_eq!((counted(&near, "resets"), counted(&far, "resets")), (0, 0));

    near.enter(|| {
        let mut stream = client::connect(&address);
        stream.write_all(b"r").unwrap();
        client::read_to_reset(&mut stream);
    });
    wait_until("the deliberate reset is counted", || counted(&near, "resets") == 1);
}
