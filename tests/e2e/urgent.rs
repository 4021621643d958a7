//! Urgent data (MSG_OOB) through weir looks as it does without weir, in both directions, copied and spliced, to receivers
//! that read it in line and to those that read it apart.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::mpsc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};

use super::common::{PATIENCE, Server, Weir, client};
use super::{UNWATCHED, balanced};
use weir::sys::socket::{at_urgent_mark, keep_urgent_inline, unread};

/// A part of a stream.
#[derive(Debug, Clone, Copy)]
enum Part {
    /// So many bytes.
    Plain(usize),
    /// One urgent byte; the sender goes on when the receiver has seen it, or at once.
    Seen(u8),
    AtOnce(u8),
}
use Part::{AtOnce, Plain, Seen};

/// What a receiver got.
#[derive(Debug, Default, PartialEq, Eq)]
struct Got {
    bytes: Vec<u8>,
    urgent: Vec<u8>,
}

fn plain(from: usize, bytes: usize) -> Vec<u8> {
    (from..from + bytes).map(|at| (at % 251) as u8 | 0x80).collect()
}

/// What a receiver must get.
fn expected(parts: &[Part], inline: bool) -> Got {
    let mut got = Got::default();
    for part in parts {
        match *part {
            Plain(bytes) => got.bytes.extend(plain(got.bytes.len(), bytes)),
            Seen(byte) | AtOnce(byte) => {
                got.urgent.push(byte);
                if inline {
                    got.bytes.push(byte);
                }
            }
        }
    }
    got
}

fn send_parts(mut stream: &TcpStream, parts: &[Part], inline: bool, seen: &mpsc::Receiver<()>) {
    stream.set_nodelay(true).unwrap();
    let mut at = 0;
    for part in parts {
        match *part {
            Plain(bytes) => {
                stream.write_all(&plain(at, bytes)).unwrap();
                at += bytes;
            }
            Seen(byte) | AtOnce(byte) => {
                assert_eq!(send(stream.as_raw_fd(), &[byte], MsgFlags::MSG_OOB), Ok(1));
                at += usize::from(inline);
                if matches!(part, Seen(_)) {
                    seen.recv_timeout(PATIENCE).expect("the urgent byte is seen");
                }
            }
        }
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

/// Reads to a clean end, and never over a mark. An urgent byte that was taken apart counts as seen once all before it is read:
/// until then the next urgent byte would turn it into a plain one (`tcp_check_urg` of Linux).
fn receive_parts(mut stream: &TcpStream, inline: bool, seen: &mpsc::Sender<()>) -> Got {
    let (mut got, mut block, mut taken) = (Got::default(), vec![0; 64 << 10], false);
    let fd = stream.as_raw_fd();
    loop {
        if taken && at_urgent_mark(fd) {
            taken = false;
            let _ = seen.send(());
        }
        let mut ready = [PollFd::new(stream.as_fd(), PollFlags::POLLIN | PollFlags::POLLPRI)];
        let timeout = PollTimeout::try_from(PATIENCE.as_millis() as i32).unwrap();
        assert_eq!(
            poll(&mut ready, timeout),
            Ok(1),
            "{} bytes, then nothing",
            got.bytes.len()
        );
        let priority = ready[0].revents().unwrap().contains(PollFlags::POLLPRI);
        if !inline && priority && recv(fd, &mut block[..1], MsgFlags::MSG_OOB) == Ok(1) {
            got.urgent.push(block[0]);
            taken = true;
            // What poll said is old now.
            continue;
        }
        let (there, mark) = (unread(fd), at_urgent_mark(fd));
        if inline && mark {
            stream.read_exact(&mut block[..1]).unwrap();
            got.bytes.push(block[0]);
            got.urgent.push(block[0]);
            let _ = seen.send(());
            continue;
        }
        let most = if there == 0 {
            block.len()
        } else {
            there.min(block.len())
        };
        match stream.read(&mut block[..most]).unwrap() {
            0 => return got,
            n => got.bytes.extend(&block[..n]),
        }
    }
}

/// Both ends of a connection to `address`, behind which `server` hands out its streams.
fn ends(address: &str, streams: &mpsc::Receiver<TcpStream>) -> (TcpStream, TcpStream) {
    let client = client::connect(address);
    (client, streams.recv_timeout(PATIENCE).expect("a connection"))
}

fn exchange(ends: &(TcpStream, TcpStream), upwards: bool, parts: &[Part], inline: bool) -> Got {
    let (from, to) = if upwards {
        (&ends.0, &ends.1)
    } else {
        (&ends.1, &ends.0)
    };
    if inline {
        // Before the first byte comes: until then, of urgent bytes in a row all but the last are lost, also without weir.
        keep_urgent_inline(to.as_raw_fd());
    }
    let (sender, seen) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || send_parts(from, parts, inline, &seen));
        receive_parts(to, inline, &sender)
    })
}

fn in_hand() -> (Server, mpsc::Receiver<TcpStream>) {
    let (sender, streams) = mpsc::channel();
    (Server::serial(move |stream| drop(sender.send(stream))), streams)
}

/// 8 MiB is spliced long before its end. Without the look at the mark, the spliced rows end early with a clean FIN, and the
/// copied ones lose the urgent bytes.
#[test]
fn urgent_data_looks_as_without_a_balancer() {
    let (server, streams) = in_hand();
    let weir = Weir::start(&balanced("", UNWATCHED, &[("one", server.address)]));
    let direct: SocketAddr = server.address;
    let rows: &[(&str, &[Part])] = &[
        ("in the middle", &[Plain(100), Seen(1), Plain(100)]),
        ("the first byte", &[Seen(1), Plain(100)]),
        ("the last byte", &[Plain(100), Seen(1)]),
        ("the only byte", &[Seen(1)]),
        ("the last byte, with FIN", &[Plain(100), AtOnce(1)]),
        (
            "several",
            &[Plain(9), Seen(1), Seen(2), Plain(40_000), Seen(3), Plain(1), Seen(4)],
        ),
        ("behind whole reads", &[Plain(3 * (32 << 10)), AtOnce(1), Plain(4)]),
        ("behind a bulk", &[Plain(8 << 20), AtOnce(1), Plain(4)]),
        ("behind a bulk, without FIN", &[Plain(8 << 20), Seen(1), Plain(4)]),
        (
            "amid a bulk",
            &[Plain(8 << 20), Seen(1), Plain(8 << 20), Seen(2), Plain(1 << 20)],
        ),
        ("amid a bulk in motion", &[Plain(8 << 20), AtOnce(1), Plain(8 << 20)]),
        (
            "while copying turns into splicing",
            &[Plain(5 << 18), AtOnce(1), Plain(8 << 20)],
        ),
    ];
    for (name, parts) in rows {
        for inline in [true, false] {
            for upwards in [true, false] {
                let expected = expected(parts, inline);
                for (way, address) in [("direct", direct.to_string()), ("weir", weir.address("main"))] {
                    println!("{name}, {way}, inline: {inline}, upwards: {upwards}");
                    let got = exchange(&ends(&address, &streams), upwards, parts, inline);
                    assert_eq!(got.bytes.len(), expected.bytes.len());
                    assert!(got == expected, "urgent: {:?}", got.urgent);
                }
            }
        }
    }
    assert!(weir.access_log().iter().all(|record| record.cause == "finished"));
}

/// Of urgent bytes in a row the kernel marks the last one only, wherever it is; for a receiver in line none is lost.
#[test]
fn urgent_bytes_in_a_row_all_arrive() {
    let (server, streams) = in_hand();
    let weir = Weir::start(&balanced("", UNWATCHED, &[("one", server.address)]));
    let bytes: Vec<u8> = (1..100).collect();
    let parts: Vec<Part> = bytes.iter().map(|byte| AtOnce(*byte)).collect();
    for _ in 0..50 {
        let got = exchange(&ends(&weir.address("main"), &streams), true, &parts, true);
        assert_eq!(got.bytes, bytes);
        assert_eq!(got.urgent.last(), bytes.last());
    }
}
