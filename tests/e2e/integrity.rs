//! Transfers of every size and speed arrive exactly: nothing lost, repeated, reordered, or cut at the end.
//!
//! A transfer is described by its number alone: sizes of both directions, who waits for whom, sizes of writes and reads,
//! pauses, socket buffers. The server learns it from the first eight bytes, so both ends know what to expect. Seen to fail
//! with a byte dropped every 1,000,000 in the copying path, and with `shutdown` before the pipe is empty.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use super::common::{PATIENCE, Weir, in_parallel, seed, server};
use super::{UNWATCHED, balanced};
use weir::base::Rng;

/// Random bytes; a transfer sends a part of them, so that any shift or repetition shows.
pub(super) static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut rng = Rng::new(11);
    std::iter::repeat_with(|| rng.next_u64().to_le_bytes())
        .take(1 << 20)
        .flatten()
        .collect()
});

/// One direction of a transfer.
#[derive(Debug, Clone, Copy)]
struct Way {
    from: usize,
    bytes: usize,
    /// Largest write and largest read.
    write: usize,
    read: usize,
    /// Every so many reads a pause; 0 = never.
    slow: u64,
}

#[derive(Debug)]
struct Transfer {
    up: Way,
    down: Way,
    /// Receive buffers of client and server, send buffers of both; `None` = the kernel's choice.
    buffer: Option<usize>,
    /// The server answers only after the client's end of stream, instead of at the same time.
    answer_last: bool,
}

impl Transfer {
    fn new(number: u64) -> Transfer {
        let rng = &mut Rng::new(number);
        let slow = rng.below(20) == 0;
        let mut way = || {
            let bytes = match rng.below(20) {
                0 => 0,
                1 => rng.below(4) as usize,
                // Around the sizes of segments, copy buffers and pipes.
                2..=6 => [1_448, 4_096, 16_384, 32_768, 65_536][rng.below(5) as usize] - 2 + rng.below(5) as usize,
                7..=18 => rng.below(30_000) as usize,
                _ => rng.below(if slow { 100_000 } else { 2_000_000 }) as usize,
            };
            let step = |rng: &mut Rng| match rng.below(4) {
                0 => 1 + rng.below(300) as usize,
                1 => 1 + rng.below(5_000) as usize,
                _ => 64 << 10,
            };
            Way {
                from: rng.below((BYTES.len() - bytes) as u64) as usize,
                bytes,
                write: step(rng).max(bytes / 500),
                read: step(rng).max(bytes / 500),
                slow: if slow { 10 } else { 0 },
            }
        };
        let (up, down) = (way(), way());
        let buffer = (rng.below(4) == 0).then(|| 4_096 + rng.below(20_000) as usize);
        Transfer {
            up,
            down,
            buffer,
            answer_last: rng.below(2) == 0,
        }
    }
}

fn send(mut stream: &TcpStream, way: Way) -> std::io::Result<()> {
    for piece in BYTES[way.from..way.from + way.bytes].chunks(way.write) {
        stream.write_all(piece)?;
    }
    // FIN right behind the last byte.
    stream.shutdown(Shutdown::Write)
}

/// Reads to the end and compares.
fn receive(mut stream: &TcpStream, way: Way) -> Result<(), String> {
    let expected = &BYTES[way.from..way.from + way.bytes];
    let mut buffer = vec![0; way.read];
    let (mut at, mut reads) = (0, 0_u64);
    loop {
        let got = stream
            .read(&mut buffer)
            .map_err(|error| format!("{error} after {at} bytes"))?;
        if got == 0 {
            return if at == way.bytes {
                Ok(())
            } else {
                Err(format!("cut after {at} bytes"))
            };
        }
        if expected.get(at..at + got) != Some(&buffer[..got]) {
            return Err(format!("other bytes between {at} and {}", at + got));
        }
        at += got;
        reads += 1;
        if way.slow > 0 && reads.is_multiple_of(way.slow) {
            std::thread::sleep(Duration::from_micros(500));
        }
    }
}

/// Both directions at once on one stream.
fn exchange(stream: &TcpStream, out: Way, into: Way) -> Result<(), String> {
    // Small enough for the kernel's buffers: no second thread is needed.
    if out.bytes <= 2_048 {
        send(stream, out).map_err(|error| error.to_string())?;
        return receive(stream, into);
    }
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| send(stream, out));
        receive(stream, into)?;
        sender.join().unwrap().map_err(|error| error.to_string())
    })
}

fn serve(stream: &TcpStream) -> Result<(), String> {
    let mut number = [0; 8];
    (&mut &*stream)
        .read_exact(&mut number)
        .map_err(|error| error.to_string())?;
    let transfer = Transfer::new(u64::from_le_bytes(number));
    if transfer.answer_last {
        receive(stream, transfer.up)?;
        send(stream, transfer.down).map_err(|error| error.to_string())
    } else {
        exchange(stream, transfer.down, transfer.up)
    }
}

fn transfer(address: SocketAddr, number: u64) -> Result<(), String> {
    let transfer = Transfer::new(number);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    if let Some(bytes) = transfer.buffer {
        socket.set_recv_buffer_size(bytes).unwrap();
        socket.set_send_buffer_size(bytes).unwrap();
    }
    socket.connect(&address.into()).map_err(|error| error.to_string())?;
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    (&stream)
        .write_all(&number.to_le_bytes())
        .map_err(|error| error.to_string())?;
    if transfer.answer_last {
        send(&stream, transfer.up).map_err(|error| error.to_string())?;
        receive(&stream, transfer.down)
    } else {
        exchange(&stream, transfer.up, transfer.down)
    }
    .map_err(|error| format!("{error}: {transfer:?}"))
}

/// Makes `count` transfers, some at a time.
fn transfers(count: u64) {
    const AT_A_TIME: usize = 16;
    let seed = seed(1);
    let listener = server::bind((Ipv4Addr::LOCALHOST, 0));
    // Every fourth transfer has tiny buffers on the client's side; on the server's side all of one in two servers.
    let tiny = server::bind((Ipv4Addr::LOCALHOST, 0));
    SockRef::from(&tiny).set_recv_buffer_size(8 << 10).unwrap();
    SockRef::from(&tiny).set_send_buffer_size(8 << 10).unwrap();
    let backends = [
        ("plain", listener.local_addr().unwrap()),
        ("tiny", tiny.local_addr().unwrap()),
    ];
    let failures = Arc::new(std::sync::Mutex::new(Vec::new()));
    let noting = |failures: &Arc<std::sync::Mutex<Vec<String>>>| {
        let failures = failures.clone();
        move |stream: TcpStream| {
            if let Err(error) = serve(&stream) {
                failures.lock().unwrap().push(format!("server: {error}"));
            }
        }
    };
    let _servers = [listener, tiny].map(|listener| super::common::Server::each_on(listener, noting(&failures)));
    let weir = Weir::start(&balanced("", UNWATCHED, &backends));
    let address: SocketAddr = weir.address("main").parse().unwrap();
    in_parallel(AT_A_TIME, count as usize, |number| {
        if failures.lock().unwrap().len() > 10 {
            return;
        }
        let number = (seed << 32) + number as u64;
        if let Err(error) = transfer(address, number) {
            failures
                .lock()
                .unwrap()
                .push(format!("client: transfer {number}: {error}"));
        }
    });
    let failures = failures.lock().unwrap();
    assert!(failures.is_empty(), "{failures:#?}");
    drop(failures);
    let records = weir.wait_for_records(count as usize);
    let (mut up, mut down) = (0, 0);
    for number in 0..count {
        let transfer = Transfer::new((seed << 32) + number);
        up += 8 + transfer.up.bytes as u64;
        down += transfer.down.bytes as u64;
    }
    let logged = records
        .iter()
        .fold((0, 0), |sum, r| (sum.0 + r.bytes_up, sum.1 + r.bytes_down));
    assert_eq!(logged, (up, down));
    let bad = records.iter().find(|record| record.cause != "finished");
    assert_eq!(bad, None);
}

#[test]
fn ten_thousand_transfers_are_exact() {
    transfers(10_000);
}

#[test]
#[ignore = "takes minutes"]
fn two_hundred_thousand_transfers_are_exact() {
    transfers(200_000);
}

/// The sources of fast streams are not told of every byte: what ends a burst, and what is small behind it, arrives all the same, though
/// no end of the stream follows. Seen to fail without the look at a quiet source.
#[test]
fn the_last_bytes_of_a_burst_arrive_without_an_end() {
    const WORD: &[u8] = b"that was all";
    let server = server::Server::each(|mut stream| {
        let mut go_on = [0];
        while stream.read_exact(&mut go_on).is_ok() {
            // As fast as it goes, for as long as it takes to be found fast; then not a byte more.
            let began = std::time::Instant::now();
            while began.elapsed() < Duration::from_millis(400) {
                stream.write_all(&BYTES[..256 << 10]).unwrap();
            }
            stream.write_all(WORD).unwrap();
            for _ in 0..3 {
                if stream.read_exact(&mut go_on).is_err() || stream.write_all(WORD).is_err() {
                    return;
                }
            }
        }
    });
    let weir = Weir::start(&balanced("", UNWATCHED, &[("one", server.address)]));
    let mut stream = super::common::client::connect(&weir.address("main"));
    let mut buffer = vec![0; 1 << 20];
    let mut longest = Duration::ZERO;
    for _ in 0..3 {
        stream.write_all(b"?").unwrap();
        let mut bytes = 0;
        let mut last = Vec::new();
        while last != WORD {
            let n = stream.read(&mut buffer).expect("the last bytes come");
            assert_ne!(n, 0);
            bytes += n;
            last.extend_from_slice(&buffer[n.saturating_sub(WORD.len())..n]);
            last.drain(..last.len().saturating_sub(WORD.len()));
        }
        println!("a burst of {} MB", bytes / 1_000_000);
        for _ in 0..3 {
            let asked = std::time::Instant::now();
            stream.write_all(b"?").unwrap();
            stream.read_exact(&mut buffer[..WORD.len()]).expect("an answer comes");
            longest = longest.max(asked.elapsed());
        }
    }
    println!("the longest of nine answers took {longest:?}");
    assert!(longest < PATIENCE / 4, "{longest:?}");
}
