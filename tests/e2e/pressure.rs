//! A slow reader slows its own sender, and nobody else, and weir holds no pile of bytes for it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use super::common::{PATIENCE, Server, Weir, client, server};
use super::{UNWATCHED, balanced};

const STREAMS: usize = 16;
const BYTES: usize = 32 << 20;

fn pattern() -> Vec<u8> {
    let mut rng = weir::base::Rng::new(5);
    std::iter::repeat_with(|| rng.next_u64().to_le_bytes())
        .take(BYTES / 8)
        .flatten()
        .collect()
}

/// Writes until the peer has taken nothing for a while; returns how much it took.
fn write_until_blocked(streams: &[TcpStream], bytes: &[u8]) -> Vec<usize> {
    let mut sent = vec![0; streams.len()];
    let mut progress = Instant::now();
    for stream in streams {
        stream.set_nonblocking(true).unwrap();
    }
    while progress.elapsed() < Duration::from_millis(500) {
        for (mut stream, sent) in std::iter::zip(streams, &mut sent) {
            match stream.write(&bytes[*sent..]) {
                Ok(0) => {}
                Ok(more) => {
                    *sent += more;
                    progress = Instant::now();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    for stream in streams {
        stream.set_nonblocking(false).unwrap();
    }
    sent
}

/// Senders and receivers of `STREAMS` connections, with small buffers on the receiving side.
fn connections(weir: &Weir, accepted: &mpsc::Receiver<TcpStream>, upload: bool) -> (Vec<TcpStream>, Vec<TcpStream>) {
    let address: SocketAddr = weir.address("main").parse().unwrap();
    let mut ends = Vec::new();
    for _ in 0..STREAMS {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(8 << 10).unwrap();
        socket.connect(&address.into()).unwrap();
        let near: TcpStream = socket.into();
        let far = accepted.recv_timeout(PATIENCE).expect("a connection");
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
        }
        ends.push(if upload { (near, far) } else { (far, near) });
    }
    ends.into_iter().unzip()
}

#[test]
fn stopped_readers_stop_their_senders_and_cost_no_memory() {
    let bytes = pattern();
    for upload in [true, false] {
        let (sender, accepted) = mpsc::channel();
        let listener = server::bind((Ipv4Addr::LOCALHOST, 0));
        SockRef::from(&listener).set_recv_buffer_size(8 << 10).unwrap();
        let slow = Server::on(listener, move |stream| drop(sender.send(stream)));
        let echo = Server::echo();
        let mut yaml = balanced("", UNWATCHED, &[("slow", slow.address)]);
        yaml = yaml.replace("pools:", "  echo: {bind: ['127.0.0.1:0'], pool: echo}\npools:");
        yaml += &format!("  echo: {{backends: [{{name: echo, address: '{}'}}]}}\n", echo.address);
        let weir = Weir::start(&yaml);
        let mut brisk = client::connect(&weir.address("echo"));
        client::round_trip(&mut brisk, b"warm");

        let before = weir.memory_kib("RssAnon");
        let (senders, receivers) = connections(&weir, &accepted, upload);
        let sent = write_until_blocked(&senders, &bytes);
        assert!(
            sent.iter().all(|&sent| sent < BYTES),
            "a sender was never slowed: {sent:?}"
        );
        // In user space a connection holds at most one copy buffer a direction.
        let grown = weir.memory_kib("RssAnon").saturating_sub(before);
        assert!(
            grown < STREAMS as u64 * 80 + 1024,
            "{grown} KiB for {STREAMS} stopped readers"
        );

        // The neighbour does not notice, and nothing spins.
        let (ticks, begun) = (weir.cpu_ticks(), Instant::now());
        for _ in 0..50 {
            client::round_trip(&mut brisk, &[1; 1_000]);
        }
        std::thread::sleep(Duration::from_millis(500));
        let busy = (weir.cpu_ticks() - ticks) as f64 / 100.0 / begun.elapsed().as_secs_f64();
        assert!(busy < 0.3, "{busy:.2} of a processor with nothing to do");

        // Everything arrives once the readers go on.
        std::thread::scope(|scope| {
            for ((mut sender, mut receiver), sent) in senders.into_iter().zip(receivers).zip(sent) {
                let bytes = &bytes;
                scope.spawn(move || {
                    sender.write_all(&bytes[sent..]).unwrap();
                    drop(sender);
                });
                scope.spawn(move || {
                    let (mut at, mut buffer) = (0, vec![0; 256 << 10]);
                    loop {
                        let got = receiver.read(&mut buffer).unwrap();
                        if got == 0 {
                            break;
                        }
                        assert!(buffer[..got] == bytes[at..at + got], "bytes differ after {at}");
                        at += got;
                    }
                    assert_eq!(at, BYTES);
                });
            }
        });
        drop(brisk);
        let records = weir.wait_for_records(STREAMS + 1);
        assert!(records.iter().all(|record| record.cause == "finished"), "{records:?}");
    }
}
