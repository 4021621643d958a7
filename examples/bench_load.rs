//! Load that the usual generators do not make: requests at a fixed rate with latencies counted from the moment a request
//! was due (so a stall is not hidden by the client waiting for it), thousands of idle connections, UDP flows.
//!
//! `scripts/bench` runs it; every subcommand prints one JSON object.

#[path = "bench_bare/poller.rs"]
mod poller;

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use clap::Parser;
use poller::{Poller, STREAM};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

#[derive(Parser)]
enum Command {
    /// GET requests at a fixed rate, on kept connections or with a connection each.
    Http {
        target: SocketAddr,
        #[arg(long)]
        rate: f64,
        #[arg(long, default_value_t = 64)]
        connections: usize,
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
        /// A new connection for each request, which the server ends.
        #[arg(long)]
        close: bool,
    },
    /// Opens connections, exchanges one request on each, prints `{"ready":n}`, holds them until stdin ends.
    Hold {
        target: SocketAddr,
        #[arg(long)]
        connections: usize,
    },
    /// Datagrams on many flows: at a fixed total rate, or each flow as fast as its answers come (rate 0).
    UdpFlows {
        target: SocketAddr,
        #[arg(long, default_value_t = 64)]
        flows: usize,
        #[arg(long, default_value_t = 0.0)]
        rate: f64,
        #[arg(long, default_value_t = 64)]
        size: usize,
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
    },
    /// Answers every datagram with itself, until stdin ends.
    UdpEcho { listen: SocketAddr },
    /// One flow of datagrams in GSO batches, as fast as the socket takes them.
    UdpBlast {
        target: SocketAddr,
        #[arg(long, default_value_t = 1200)]
        size: usize,
        #[arg(long, default_value_t = 40)]
        batch: usize,
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
    },
    /// Counts what arrives (with GRO) until stdin ends; a line of stdin prints the counts so far.
    UdpSink { listen: SocketAddr },
}

fn main() -> io::Result<()> {
    // Times to the nanosecond.
    nix::sys::prctl::set_timerslack(1)?;
    let answer = match Command::parse() {
        Command::Http {
            target,
            rate,
            connections,
            seconds,
            close,
        } => http(target, rate, connections, seconds, close)?,
        Command::Hold { target, connections } => hold(target, connections)?,
        Command::UdpFlows {
            target,
            flows,
            rate,
            size,
            seconds,
        } => udp_flows(target, flows, rate, size, seconds)?,
        Command::UdpEcho { listen } => udp_echo(listen)?,
        Command::UdpBlast {
            target,
            size,
            batch,
            seconds,
        } => udp_blast(target, size, batch, seconds)?,
        Command::UdpSink { listen } => udp_sink(listen)?,
    };
    println!("{answer}");
    Ok(())
}

fn percentiles(mut us: Vec<u32>) -> Value {
    us.sort_unstable();
    let at = |share: f64| us.get(((us.len() as f64 * share) as usize).min(us.len().saturating_sub(1)));
    json!({"p50_us": at(0.5), "p99_us": at(0.99), "p999_us": at(0.999), "max_us": us.last()})
}

fn merge(mut a: Value, b: Value) -> Value {
    if let (Value::Object(a), Value::Object(b)) = (&mut a, b) {
        a.extend(b);
    }
    a
}

fn us_since(due: Instant) -> u32 {
    due.elapsed().as_micros() as u32
}

/// A stream whose connection is on its way.
fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&target.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    Ok(socket.into())
}

struct Request {
    stream: TcpStream,
    due: Option<Instant>,
    got: usize,
    asked: bool,
}

/// Whether the response in `buffer` is complete: headers, then as many bytes as Content-Length says.
fn complete(head: &[u8], got: usize) -> bool {
    let Some(end) = head.windows(4).position(|w| w == b"\r\n\r\n") else {
        return false;
    };
    let text = String::from_utf8_lossy(&head[..end]).to_ascii_lowercase();
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    got >= end + 4 + length.unwrap_or(0)
}

fn http(target: SocketAddr, rate: f64, connections: usize, seconds: f64, close: bool) -> io::Result<Value> {
    let ask: &[u8] = if close {
        b"GET / HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n"
    } else {
        b"GET / HTTP/1.1\r\nHost: b\r\n\r\n"
    };
    let mut poller = Poller::new()?;
    let mut slots: Vec<Option<Request>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    for ix in 0..connections {
        free.push(ix);
        slots.push(None);
        if !close {
            let mut stream = TcpStream::connect(target)?;
            stream.set_nodelay(true)?;
            stream.write_all(ask)?;
            let _ = stream.read(&mut [0; 4096])?;
            stream.set_nonblocking(true)?;
            poller.add(stream.as_raw_fd(), STREAM, ix)?;
            slots[ix] = Some(Request {
                stream,
                due: None,
                got: 0,
                asked: false,
            });
        }
    }
    let start = Instant::now();
    let total = (rate * seconds) as u64;
    let due_at = |n: u64| start + Duration::from_secs_f64(n as f64 / rate);
    let (mut issued, mut errors) = (0u64, 0u64);
    let mut waiting: VecDeque<Instant> = VecDeque::new();
    let mut latencies: Vec<u32> = Vec::with_capacity(total as usize);
    let mut buffer = vec![0; 64 << 10];
    let give_up = due_at(total) + Duration::from_secs(2);
    while latencies.len() as u64 + errors < total && Instant::now() < give_up {
        let now = Instant::now();
        while issued < total && due_at(issued) <= now {
            waiting.push_back(due_at(issued));
            issued += 1;
        }
        while let (Some(&due), Some(&ix)) = (waiting.front(), free.last()) {
            waiting.pop_front();
            free.pop();
            if close {
                match connect(target) {
                    Ok(stream) => {
                        poller.add(stream.as_raw_fd(), STREAM, ix)?;
                        slots[ix] = Some(Request {
                            stream,
                            due: None,
                            got: 0,
                            asked: false,
                        });
                    }
                    Err(_) => {
                        errors += 1;
                        free.push(ix);
                        continue;
                    }
                }
            }
            let request = slots[ix].as_mut().expect("a free slot has its connection");
            request.due = Some(due);
            request.got = 0;
            // A connection that is not up yet asks at its first event.
            request.asked = request.stream.write(ask).is_ok();
        }
        let pause = if issued < total {
            due_at(issued).saturating_duration_since(Instant::now())
        } else {
            Duration::from_millis(100)
        };
        for (ix, _) in poller.wait(Some(pause)) {
            let Some(request) = slots[ix].as_mut() else {
                continue;
            };
            if !request.asked && request.due.is_some() {
                request.asked = request.stream.write(ask).is_ok();
            }
            let (mut over, mut failed) = (false, false);
            while !over {
                match request.stream.read(&mut buffer) {
                    Ok(0) => (over, failed) = (true, !close || request.got == 0),
                    Ok(n) => {
                        let first = request.got == 0;
                        request.got += n;
                        over = !close && first && complete(&buffer[..n], n);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => (over, failed) = (true, true),
                }
            }
            if !over {
                continue;
            }
            match request.due.take() {
                Some(due) if !failed => latencies.push(us_since(due)),
                _ => errors += 1,
            }
            if close {
                slots[ix] = None;
            } else if failed {
                return Ok(json!({"error": "a kept connection was closed"}));
            }
            free.push(ix);
        }
    }
    let done = latencies.len();
    let unfinished = total - done as u64 - errors;
    let counts =
        json!({"asked": total, "done": done, "errors": errors + unfinished, "seconds": start.elapsed().as_secs_f64()});
    Ok(merge(counts, percentiles(latencies)))
}

fn hold(target: SocketAddr, connections: usize) -> io::Result<Value> {
    let mut held = Vec::new();
    for _ in 0..connections {
        let mut stream = TcpStream::connect(target)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: b\r\n\r\n")?;
        if stream.read(&mut [0; 4096])? == 0 {
            return Err(io::Error::other("closed"));
        }
        held.push(stream);
    }
    println!("{}", json!({"ready": held.len()}));
    until_stdin_ends();
    Ok(json!({"held": held.len()}))
}

fn until_stdin_ends() {
    let _ = io::stdin().read_to_end(&mut Vec::new());
}

fn udp_flows(target: SocketAddr, flows: usize, rate: f64, size: usize, seconds: f64) -> io::Result<Value> {
    let mut poller = Poller::new()?;
    let size = size.max(16);
    let sockets = (0..flows)
        .map(|_| {
            let bind: SocketAddr = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }
                .parse()
                .expect("an address");
            let socket = UdpSocket::bind(bind)?;
            socket.connect(target)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
        .collect::<io::Result<Vec<_>>>()?;
    for (ix, socket) in sockets.iter().enumerate() {
        poller.add(socket.as_raw_fd(), STREAM, ix)?;
    }
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(seconds);
    let (mut sent, mut got, mut next) = (0u64, 0u64, 0usize);
    let mut latencies: Vec<u32> = Vec::new();
    let mut buffer = vec![0u8; 65536];
    let mut last_heard = vec![start; flows];
    let mut send = |ix: usize| {
        let mut payload = vec![0u8; size];
        payload[..8].copy_from_slice(&(start.elapsed().as_nanos() as u64).to_le_bytes());
        if sockets[ix].send(&payload).is_ok() {
            sent += 1;
        }
    };
    if rate == 0.0 {
        (0..flows).for_each(&mut send);
    }
    let mut paced = 0u64;
    loop {
        let now = Instant::now();
        if now >= end + Duration::from_millis(200) {
            break;
        }
        let sending = now < end;
        if rate > 0.0 && sending {
            let due = (now.duration_since(start).as_secs_f64() * rate) as u64;
            // A stalled generator does not burst: what is late beyond 64 datagrams is left out.
            paced = paced.max(due.saturating_sub(64));
            while paced < due {
                send(next);
                next = (next + 1) % flows;
                paced += 1;
            }
        }
        let pause = if rate > 0.0 && sending { 1.0 / rate } else { 0.02 };
        let ready: Vec<usize> = poller
            .wait(Some(Duration::from_secs_f64(pause)))
            .map(|(ix, _)| ix)
            .collect();
        for ix in ready {
            while let Ok(n) = sockets[ix].recv(&mut buffer) {
                if n < 8 {
                    continue;
                }
                let stamp = u64::from_le_bytes(buffer[..8].try_into().expect("eight bytes"));
                latencies.push(((start.elapsed().as_nanos() as u64).saturating_sub(stamp) / 1000) as u32);
                got += 1;
                last_heard[ix] = now;
                if rate == 0.0 && sending {
                    send(ix);
                }
            }
        }
        if rate == 0.0 && sending {
            // A lost datagram must not silence its flow.
            #[allow(clippy::needless_range_loop)] // the index is the flow
            for ix in 0..flows {
                if now.duration_since(last_heard[ix]) > Duration::from_millis(100) {
                    last_heard[ix] = now;
                    send(ix);
                }
            }
        }
    }
    let lost = sent.saturating_sub(got);
    let counts = json!({"sent": sent, "done": got, "lost": lost, "lost_share": lost as f64 / sent.max(1) as f64, "seconds": seconds});
    Ok(merge(counts, percentiles(latencies)))
}

fn set_int(fd: RawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: an int of its own size that outlives the call.
    match unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), 4) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn udp_echo(listen: SocketAddr) -> io::Result<Value> {
    let socket = UdpSocket::bind(listen)?;
    set_int(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 16 << 20)?;
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..n], from);
        }
    });
    until_stdin_ends();
    Ok(json!({}))
}

fn udp_blast(target: SocketAddr, size: usize, batch: usize, seconds: f64) -> io::Result<Value> {
    const UDP_SEGMENT: i32 = 103;
    let bind: SocketAddr = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }
        .parse()
        .expect("an address");
    let socket = UdpSocket::bind(bind)?;
    socket.connect(target)?;
    set_int(socket.as_raw_fd(), libc::SOL_UDP, UDP_SEGMENT, size as i32)?;
    let payload = vec![7u8; size * batch];
    let start = Instant::now();
    let mut sent = 0u64;
    while start.elapsed().as_secs_f64() < seconds {
        if socket.send(&payload).is_ok() {
            sent += batch as u64;
        }
    }
    Ok(json!({"sent": sent, "size": size, "seconds": start.elapsed().as_secs_f64()}))
}

fn udp_sink(listen: SocketAddr) -> io::Result<Value> {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    const UDP_GRO: i32 = 104;
    let socket = UdpSocket::bind(listen)?;
    set_int(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 16 << 20)?;
    set_int(socket.as_raw_fd(), libc::SOL_UDP, UDP_GRO, 1)?;
    let bytes = Arc::new(AtomicU64::new(0));
    let counted = bytes.clone();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok(n) = socket.recv(&mut buffer) {
            counted.fetch_add(n as u64, Relaxed);
        }
    });
    for line in io::stdin().lines() {
        line?;
        println!("{}", json!({"bytes": bytes.load(Relaxed)}));
    }
    Ok(json!({"bytes": bytes.load(Relaxed)}))
}
