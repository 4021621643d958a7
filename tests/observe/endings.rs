//! The ways in which a connection or session ends, each with the cause, the culprit and the bytes that the access log says.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::common::server::Blackhole;
use super::common::{Port, Server, Weir, client, wait_until};
use super::{all_up, json, said};

/// What stands behind weir.
enum Back {
    /// Echoes; ends its stream when the client has ended its own.
    Echo,
    /// Reads five bytes, sends three, closes.
    Closing,
    /// Reads five bytes, sends three, resets.
    Resetting,
    /// Reads, says nothing, never ends.
    Silent,
    /// Refuses.
    Nobody,
    /// Does not answer a SYN.
    Blackhole,
    /// Echoes datagrams.
    Udp,
}

struct Row {
    cause: &'static str,
    by: &'static str,
    /// Bytes from and to the client.
    bytes: (u64, u64),
    /// Lines of the configuration: top level, listener, pool.
    top: &'static str,
    listener: &'static str,
    pool: &'static str,
    back: Back,
    script: fn(&Weir, &str),
}

/// Sends five bytes, gets them back.
fn five(address: &str) -> TcpStream {
    let mut stream = client::connect(address);
    client::round_trip(&mut stream, b"12345");
    stream
}

fn end_of(mut stream: TcpStream) {
    let _ = stream.read_to_end(&mut Vec::new());
}

fn datagrams(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    socket
}

/// Sends a datagram of five bytes, gets it back.
fn five_datagrams(address: &str) -> UdpSocket {
    let socket = datagrams(address);
    socket.send(b"12345").unwrap();
    wait_until("the echo", || socket.recv(&mut [0; 5]).is_ok());
    socket
}

/// Connects; being reset before that is noticed is all right as well.
fn turned_away(address: &str) {
    if let Ok(stream) = client::try_connect(address, None) {
        end_of(stream);
    }
}

const ROW: Row = Row {
    cause: "",
    by: "weir",
    bytes: (5, 5),
    top: "",
    listener: "",
    pool: "",
    back: Back::Echo,
    script: |_, _| (),
};

const ROWS: [Row; 23] = [
    Row {
        cause: "finished",
        by: "client",
        script: |_, address| {
            let stream = five(address);
            stream.shutdown(Shutdown::Write).unwrap();
            end_of(stream);
        },
        ..ROW
    },
    Row {
        cause: "finished",
        by: "backend",
        bytes: (5, 3),
        back: Back::Closing,
        script: |_, address| {
            let mut stream = client::connect(address);
            stream.write_all(b"12345").unwrap();
            end_of(stream);
        },
        ..ROW
    },
    Row {
        cause: "client_reset",
        by: "client",
        script: |_, address| client::reset(five(address)),
        ..ROW
    },
    Row {
        cause: "backend_reset",
        by: "backend",
        bytes: (5, 3),
        back: Back::Resetting,
        script: |_, address| {
            let mut stream = client::connect(address);
            stream.write_all(b"12345").unwrap();
            end_of(stream);
        },
        ..ROW
    },
    Row {
        cause: "idle_timeout",
        listener: "timeouts: {idle: 3s}",
        script: |_, address| end_of(five(address)),
        ..ROW
    },
    Row {
        cause: "half_close_timeout",
        bytes: (4, 0),
        listener: "timeouts: {half_close: 1s}",
        back: Back::Silent,
        script: |_, address| {
            let mut stream = client::connect(address);
            stream.write_all(b"1234").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            end_of(stream);
        },
        ..ROW
    },
    Row {
        cause: "connect_failed",
        bytes: (0, 0),
        pool: "health: {type: none}, passive: off",
        back: Back::Nobody,
        script: |_, address| turned_away(address),
        ..ROW
    },
    Row {
        cause: "connect_timeout",
        bytes: (0, 0),
        pool: "health: {type: none}, passive: off, connect: {timeout: 500ms}",
        back: Back::Blackhole,
        script: |_, address| turned_away(address),
        ..ROW
    },
    Row {
        cause: "no_backend",
        bytes: (0, 0),
        script: |weir, address| {
            said(weir, &["backend", "main/one", "down"]);
            turned_away(address);
        },
        ..ROW
    },
    Row {
        cause: "denied",
        bytes: (0, 0),
        listener: "deny: [127.0.0.0/8]",
        script: |_, address| turned_away(address),
        ..ROW
    },
    Row {
        cause: "limit_listener",
        bytes: (0, 0),
        listener: "limits: {connections: 1}",
        script: |_, address| {
            let _first = five(address);
            turned_away(address);
        },
        ..ROW
    },
    Row {
        cause: "limit_source",
        bytes: (0, 0),
        listener: "limits: {per_source: 1}",
        script: |_, address| {
            let _first = five(address);
            turned_away(address);
        },
        ..ROW
    },
    Row {
        cause: "limit_rate",
        bytes: (0, 0),
        listener: "limits: {new_per_source: 1/h}",
        script: |_, address| {
            let _first = five(address);
            turned_away(address);
        },
        ..ROW
    },
    Row {
        cause: "limit_process",
        bytes: (0, 0),
        top: "limits: {connections: 1}",
        script: |_, address| {
            let _first = five(address);
            turned_away(address);
        },
        ..ROW
    },
    Row {
        cause: "bad_proxy_header",
        bytes: (0, 0),
        listener: "accept_proxy: {from: [127.0.0.0/8]}",
        script: |_, address| {
            let mut stream = client::connect(address);
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            end_of(stream);
        },
        ..ROW
    },
    Row {
        cause: "max_age",
        listener: "timeouts: {max_age: 3s}",
        script: |_, address| end_of(five(address)),
        ..ROW
    },
    Row {
        cause: "backend_down",
        pool: "on_down: close",
        script: |weir, address| {
            let stream = five(address);
            said(weir, &["backend", "main/one", "down"]);
            end_of(stream);
        },
        ..ROW
    },
    Row {
        cause: "drained",
        pool: "on_drain: {finish: 1s}",
        script: |weir, address| {
            let stream = five(address);
            said(weir, &["backend", "main/one", "drain"]);
            end_of(stream);
        },
        ..ROW
    },
    Row {
        cause: "killed",
        script: |weir, address| {
            let stream = five(address);
            let id = json(weir, &["conns"])[0]["id"].to_string();
            said(weir, &["kill", &id]);
            end_of(stream);
        },
        ..ROW
    },
    Row {
        cause: "shutdown",
        top: "shutdown_grace: 1s",
        script: |weir, address| {
            let stream = five(address);
            weir.signal(Signal::SIGTERM);
            end_of(stream);
        },
        ..ROW
    },
    Row {
        cause: "idle_timeout",
        listener: "protocol: udp, udp: {idle: 3s}",
        back: Back::Udp,
        script: |_, address| drop(five_datagrams(address)),
        ..ROW
    },
    Row {
        cause: "finished",
        by: "backend",
        listener: "protocol: udp, udp: {replies: 1}",
        back: Back::Udp,
        script: |_, address| drop(five_datagrams(address)),
        ..ROW
    },
    Row {
        cause: "evicted",
        // A worker makes room among its own sessions.
        top: "workers: 1",
        listener: "protocol: udp, udp: {idle: 8s}, limits: {connections: 1}",
        back: Back::Udp,
        script: |_, address| {
            let _first = five_datagrams(address);
            // Turned away until the first one has been silent for long enough.
            let second = datagrams(address);
            wait_until("the second has taken the place of the first", || {
                second.send(b"12345").unwrap();
                second.recv(&mut [0; 5]).is_ok()
            });
        },
        ..ROW
    },
];

fn read_five(stream: &mut TcpStream) {
    let _ = stream.read_exact(&mut [0; 5]);
}

fn run(row: &Row) {
    let (server, port, hole);
    let back = match row.back {
        Back::Nobody => {
            port = Port::reserve();
            port.address()
        }
        Back::Blackhole => {
            hole = Blackhole::new();
            hole.address
        }
        Back::Udp => {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let address = socket.local_addr().unwrap();
            std::thread::spawn(move || {
                let mut datagram = [0; 100];
                while let Ok((bytes, from)) = socket.recv_from(&mut datagram) {
                    let _ = socket.send_to(&datagram[..bytes], from);
                }
            });
            address
        }
        ref back => {
            server = match back {
                Back::Closing => Server::each(|mut stream| {
                    read_five(&mut stream);
                    let _ = stream.write_all(b"123");
                }),
                Back::Resetting => Server::each(|mut stream| {
                    read_five(&mut stream);
                    let _ = stream.write_all(b"123");
                    client::reset(stream);
                }),
                Back::Silent => Server::holder(),
                _ => Server::echo(),
            };
            server.address
        }
    };
    let workers = if row.top.contains("workers") { "" } else { "workers: 2" };
    let top = format!("{workers}\n{}", row.top);
    let weir = Weir::start(&format!(
        "
{}
listeners:
  main: {{bind: ['127.0.0.1:0'], pool: main, {}}}
pools:
  main: {{backends: [{{name: one, address: '{back}'}}], {}}}
",
        top, row.listener, row.pool
    ));
    if !row.pool.contains("none") {
        all_up(&weir);
    }
    let before = weir.access_log().len();
    (row.script)(&weir, &weir.address("main"));
    let records = weir.wait_for(|records| records.iter().any(|record| record.cause == row.cause));
    let record = records[before.min(records.len() - 1)..]
        .iter()
        .find(|record| record.cause == row.cause)
        .unwrap();
    assert_eq!(record.end(), (row.cause, row.by), "{record:?}");
    assert_eq!((record.bytes_up, record.bytes_down), row.bytes, "{record:?}");
    assert_eq!(record.listener, "main", "{record:?}");
    assert_eq!(record.pool, "main", "{record:?}");
    let served = row.bytes != (0, 0);
    assert_eq!(record.backend.as_deref(), served.then_some("one"), "{record:?}");
    let connected = served && record.protocol == "tcp";
    assert_eq!(record.connect_ms.is_some(), connected, "{record:?}");
    assert_eq!(record.first_byte_ms.is_some(), row.bytes.1 > 0, "{record:?}");
}

/// Fails when a cause or a culprit in a row is exchanged for another.
#[test]
fn endings_say_why_who_and_how_much() {
    for row in &ROWS {
        println!("{} by {}", row.cause, row.by);
        run(row);
    }
    let mut causes: Vec<&str> = ROWS.iter().map(|row| row.cause).collect();
    causes.dedup();
    // An address that moves takes two nodes: `tests/vip`.
    causes.push("vip_moved");
    // A primary that comes back takes a backup: `tests/backends/questions`. Queues take a crowd: `tests/backends/queue`.
    causes.extend(["primary_back", "queue_timeout", "queue_full"]);
    // Hellos have a listener without a pool: `tests/e2e/server_names`.
    causes.extend(["hello_timeout", "hello_too_large", "no_route"]);
    let all: Vec<&str> = weir::relay::Cause::ALL.iter().map(|cause| cause.as_str()).collect();
    assert!(all.iter().all(|cause| causes.contains(cause)), "{causes:?} of {all:?}");
}
