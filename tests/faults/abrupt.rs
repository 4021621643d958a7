//! Client, backend or balancer die without a word, in each phase of a connection: the others learn of it, and nothing is
//! left behind: no descriptor, no count, no socket in CLOSE_WAIT.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::common::server::Blackhole;
use super::common::{Port, Server, Weir, client, wait_until};
use super::{Heard, counts_settle, listen_in, one_backend, prompt, settles_at, wait_for_sockets};

/// How far a connection has come when somebody dies.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// A PROXY header is awaited.
    Header,
    /// The backend does not answer.
    Connecting,
    /// Open, nothing sent.
    Idle,
    /// Bytes pour from the backend, the client reads none.
    Pouring,
    /// The client has ended its stream, the backend has not.
    HalfClosed,
}

#[derive(Debug, Clone, Copy)]
enum Death {
    /// The client's machine sends RST.
    ClientResets,
    /// The client's process ends: close.
    ClientCloses,
    /// The backend's process is killed with bytes unread or not.
    BackendResets,
}

fn backend(phase: Phase) -> Server {
    Server::each(move |mut stream| {
        match phase {
            Phase::Pouring => {
                let chunk = [7; 16 << 10];
                while stream.write_all(&chunk).is_ok() {}
            }
            // Held until the test says so by a byte, or the other side goes.
            _ => {
                let mut byte = [0];
                while let Ok(1) = stream.read(&mut byte) {
                    if byte == *b"!" {
                        client::reset(stream);
                        return;
                    }
                }
                if phase == Phase::HalfClosed {
                    // The client's end has come; ours has not, until it resets or a second passes.
                    std::thread::sleep(Duration::from_millis(300));
                }
            }
        }
    })
}

/// Breaks tried: a client's reset ignored while connecting (its sockets stay); the place at a listener not given back.
#[test]
fn whoever_dies_nothing_is_left() {
    use Death::*;
    use Phase::*;
    let rows = [
        (Header, ClientResets, "client_reset"),
        (Header, ClientCloses, "bad_proxy_header"),
        (Connecting, ClientResets, "client_reset"),
        (Idle, ClientResets, "client_reset"),
        (Idle, ClientCloses, "finished"),
        (Idle, BackendResets, "backend_reset"),
        (Pouring, ClientResets, "client_reset"),
        (Pouring, ClientCloses, "client_reset"),
        (HalfClosed, ClientResets, "client_reset"),
        (HalfClosed, ClientCloses, "finished"),
    ];
    for (phase, death, cause) in rows {
        let blackhole = (phase == Connecting).then(Blackhole::new);
        let server = backend(phase);
        let address = blackhole.as_ref().map_or(server.address, |hole| hole.address);
        let header = if phase == Header {
            ", accept_proxy: {from: [127.0.0.0/8]}"
        } else {
            ""
        };
        let weir = Weir::start(&one_backend(address, header));
        let baseline = weir.sockets();
        let pipes = |weir: &Weir| weir.descriptors().iter().filter(|d| d.starts_with("pipe")).count();
        let clients: Vec<TcpStream> = (0..20)
            .map(|_| {
                let mut stream = client::connect(&weir.address("web"));
                match phase {
                    Header => stream.write_all(b"PROXY TCP").unwrap(),
                    Pouring => stream.read_exact(&mut [0; 100]).unwrap(),
                    HalfClosed => stream.shutdown(Shutdown::Write).unwrap(),
                    Connecting | Idle => {}
                }
                stream
            })
            .collect();
        let expected = if matches!(phase, Header) { 20 } else { 40 };
        if phase != HalfClosed {
            wait_for_sockets(&weir, "all are open", |n| n == baseline + expected);
        }
        for mut stream in clients {
            match death {
                ClientResets => client::reset(stream),
                ClientCloses => drop(stream),
                BackendResets => {
                    stream.write_all(b"!").unwrap();
                    wait_until("the client hears of it", || {
                        stream.set_nonblocking(true).unwrap();
                        listen_in(&mut stream) == Heard::Reset
                    });
                }
            }
        }
        settles_at(&weir, baseline);
        counts_settle(&weir);
        let records = weir.wait_for_records(20);
        let other = records.iter().find(|record| record.cause != cause);
        // Whether a backend that closes meanwhile or the client's reset comes first is a race that both may win.
        let either = phase == HalfClosed && other.is_some_and(|record| record.cause == "finished");
        assert!(other.is_none() || either, "{phase:?} {death:?}: {other:?}");
        assert!(pipes(&weir) <= 2 * 32 + 8, "{phase:?} {death:?}: pipes leak");
        // Still in good health.
        if phase == Idle {
            let mut stream = client::connect(&weir.address("web"));
            stream.write_all(b"!").unwrap();
            assert_eq!(client::read_to_reset(&mut stream), b"");
        }
        weir.stop();
    }
}

/// In whatever phase: every client and every backend is told by the kernel, nothing waits for anything, and the next process
/// has the address at once.
///
/// Break tried: the process stopped instead of killed (nobody hears of it).
#[test]
fn when_the_balancer_is_killed_both_sides_learn_at_once() {
    use Phase::*;
    for phase in [Header, Connecting, Idle, Pouring, HalfClosed] {
        let blackhole = (phase == Connecting).then(Blackhole::new);
        let serving = Arc::new(AtomicUsize::new(0));
        let guard = serving.clone();
        let server = Server::each(move |mut stream| {
            guard.fetch_add(1, Ordering::SeqCst);
            match phase {
                Pouring => while stream.write_all(&[7; 16 << 10]).is_ok() {},
                // Reads on after the client's end, so that only the balancer's death ends it.
                HalfClosed => {
                    while stream.write_all(b".").is_ok() {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
                _ => while let Ok(1..) = stream.read(&mut [0; 64]) {},
            }
            guard.fetch_sub(1, Ordering::SeqCst);
        });
        let address = blackhole.as_ref().map_or(server.address, |hole| hole.address);
        let header = if phase == Header {
            ", accept_proxy: {from: [127.0.0.0/8]}"
        } else {
            ""
        };
        let port = Port::reserve();
        let yaml = one_backend(address, header).replace("127.0.0.1:0", &port.address().to_string());
        let mut weir = Weir::start(&yaml);
        let baseline = weir.sockets();
        let mut clients: Vec<TcpStream> = (0..30)
            .map(|_| {
                let mut stream = client::connect(&weir.address("web"));
                match phase {
                    Header => stream.write_all(b"PROXY TCP").unwrap(),
                    HalfClosed => stream.shutdown(Shutdown::Write).unwrap(),
                    Pouring => stream.read_exact(&mut [0; 100]).unwrap(),
                    Connecting | Idle => stream.write_all(b"hello").unwrap(),
                }
                stream.set_nonblocking(true).unwrap();
                stream
            })
            .collect();
        let expected = if phase == Header { 30 } else { 60 };
        wait_for_sockets(&weir, "all are open", |n| n == baseline + expected);
        let both = if matches!(phase, Header | Connecting) { 0 } else { 30 };
        wait_until("backends serve", || serving.load(Ordering::SeqCst) == both);
        weir.signal(Signal::SIGKILL);
        prompt("learning of it", Duration::from_secs(5), || {
            wait_until("every client hears of it", || {
                clients.retain_mut(|stream| {
                    // What was on its way is read first.
                    let mut heard = listen_in(stream);
                    while heard == Heard::Answer {
                        heard = listen_in(stream);
                    }
                    heard == Heard::Nothing
                });
                clients.is_empty()
            });
            wait_until("every backend hears of it", || serving.load(Ordering::SeqCst) == 0);
        });
        wait_until("it is gone", || !weir.is_running());
        let next = Weir::start(&yaml);
        assert_eq!(next.sockets(), baseline, "{phase:?}");
        if phase == Idle {
            let mut stream = client::connect(&next.address("web"));
            stream.write_all(b"served").unwrap();
            wait_until("it serves", || serving.load(Ordering::SeqCst) == 1);
        }
    }
}

/// A frozen process wakes up and goes on: no timer fires for time that nobody could have used.
#[test]
fn a_balancer_that_was_stopped_goes_on() {
    let backend = Server::echo();
    let weir = Weir::start(&format!(
        "listeners: {{web: {{bind: '127.0.0.1:0', pool: web}}}}\n\
         pools: {{web: {{backends: '{}', health: {{interval: 100ms, timeout: 200ms, fall: 2}}}}}}\n",
        backend.address
    ));
    let mut open = client::connect(&weir.address("web"));
    client::round_trip(&mut open, b"before");
    weir.signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_millis(1500));
    let mut queued = client::connect(&weir.address("web"));
    weir.signal(Signal::SIGCONT);
    client::round_trip(&mut open, b"after");
    client::round_trip(&mut queued, b"queued");
    assert!(!weir.stderr().join("\n").contains("is down"));
}
