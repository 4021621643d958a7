//! Connections of two kinds: streams that never pause, and sessions that say nothing for long.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::common::client::{connect, round_trip};
use super::common::{PATIENCE, wait_until};

/// What a stream sends at a time, and how often.
const CHUNK: usize = 1024;
const PACE: Duration = Duration::from_millis(10);

/// The kinds, by the byte that a client says first.
const DOWNLOAD: u8 = b'd';
const UPLOAD: u8 = b'u';
/// Sends back what it gets.
const SHELL: u8 = b's';
/// Speaks only when [`Shared::pushes`] grows, and unasked.
const NOTICES: u8 = b'n';

/// What the ends of all connections share.
#[derive(Default)]
pub struct Shared {
    stop: AtomicBool,
    pushes: AtomicU32,
    /// Chunks that have arrived, by stream.
    arrived: Vec<AtomicUsize>,
    /// Longest time between two of them since the mark, microseconds.
    stall_us: AtomicUsize,
}

fn byte_at(position: usize) -> u8 {
    (position ^ position >> 8 ^ position >> 16) as u8
}

fn send(mut stream: &TcpStream, shared: &Shared) -> usize {
    let mut sent = 0;
    while !shared.stop.load(Relaxed) {
        let chunk: Vec<u8> = (sent..sent + CHUNK).map(byte_at).collect();
        stream.write_all(&chunk).expect("a stream takes what it is given");
        sent += CHUNK;
        std::thread::sleep(PACE);
    }
    stream.shutdown(Shutdown::Write).unwrap();
    sent
}

fn receive(mut stream: &TcpStream, shared: &Shared, ix: usize) -> usize {
    let (mut received, mut last) = (0, Instant::now());
    let mut buffer = [0; 16 * CHUNK];
    loop {
        let length = stream.read(&mut buffer).expect("a stream goes on");
        shared.stall_us.fetch_max(last.elapsed().as_micros() as usize, Relaxed);
        last = Instant::now();
        if length == 0 {
            return received;
        }
        let is_right = (0..length).all(|at| buffer[at] == byte_at(received + at));
        assert!(is_right, "bytes arrive as they were sent");
        received += length;
        shared.arrived[ix].store(received / CHUNK, Relaxed);
    }
}

/// A backend's end of any of them.
fn serve(mut stream: TcpStream, shared: &Shared) {
    stream.set_nodelay(true).unwrap();
    let mut hello = [0; 2];
    if stream.read_exact(&mut hello).is_err() {
        // A probe.
        return;
    }
    match hello[0] {
        DOWNLOAD => {
            send(&stream, shared);
        }
        UPLOAD => {
            let received = receive(&stream, shared, usize::from(hello[1])) as u64;
            stream.write_all(&received.to_be_bytes()).unwrap();
        }
        NOTICES => {
            stream.write_all(b"!").unwrap();
            let mut said = 0;
            while !shared.stop.load(Relaxed) {
                let now = shared.pushes.load(Relaxed);
                for _ in said..now {
                    stream.write_all(b"!").unwrap();
                }
                said = now;
                std::thread::sleep(PACE);
            }
        }
        _ => super::common::server::echo(stream),
    }
}

/// A client's ends.
pub struct Load {
    pub shared: Arc<Shared>,
    streams: Vec<JoinHandle<()>>,
    shells: Vec<TcpStream>,
    notices: Vec<TcpStream>,
    pushed: u32,
}

/// What serves connections of a [`Load`].
pub fn server(shared: &Arc<Shared>) -> impl Fn(TcpStream) + Send + Sync + 'static {
    let shared = shared.clone();
    move |stream| serve(stream, &shared)
}

impl Shared {
    pub fn of(streams: usize) -> Arc<Shared> {
        assert!(streams < 256);
        Arc::new(Shared {
            arrived: (0..streams).map(|_| AtomicUsize::new(0)).collect(),
            ..Shared::default()
        })
    }
}

fn hello(service: &str, kind: u8, ix: usize) -> TcpStream {
    let mut stream = connect(service);
    stream.write_all(&[kind, ix as u8]).unwrap();
    stream
}

impl Load {
    /// As many streams as `shared` counts, half of them in each direction; and as many of each silent kind. To be called where the
    /// client is.
    pub fn start(shared: &Arc<Shared>, service: &str, silent: usize) -> Load {
        let stream = |ix: usize| {
            let kind = if ix.is_multiple_of(2) { DOWNLOAD } else { UPLOAD };
            let (mut stream, shared) = (hello(service, kind, ix), shared.clone());
            std::thread::spawn(move || {
                if kind == DOWNLOAD {
                    receive(&stream, &shared, ix);
                    return;
                }
                let sent = send(&stream, &shared) as u64;
                let mut received = [0; 8];
                stream.read_exact(&mut received).unwrap();
                assert_eq!(u64::from_be_bytes(received), sent);
            })
        };
        let streams = (0..shared.arrived.len()).map(stream).collect();
        let shells = (0..silent).map(|_| hello(service, SHELL, 0)).collect();
        let notices = (0..silent).map(|_| hello(service, NOTICES, 0)).collect();
        let mut load = Load {
            shared: shared.clone(),
            streams,
            shells,
            notices,
            pushed: 0,
        };
        load.shells.iter_mut().for_each(|shell| round_trip(shell, b"hello"));
        load.hear_notices();
        load.flow_on();
        load
    }

    fn hear_notices(&mut self) {
        for stream in &mut self.notices {
            stream.read_exact(&mut [0]).expect("a notice");
        }
    }

    /// Waits until each stream has got further, and forgets how long that took.
    pub fn flow_on(&self) {
        let progress = || self.shared.arrived.iter().map(|n| n.load(Relaxed));
        let before: Vec<usize> = progress().collect();
        wait_until("each stream goes on", || {
            std::iter::zip(progress(), &before).all(|(now, before)| now > before + 20)
        });
        self.shared.stall_us.store(0, Relaxed);
    }

    /// Does something, and waits until each stream has got further: the longest time that one of them stood still. Then the
    /// silent ones speak, half of them the backends first.
    pub fn across(&mut self, what: impl FnOnce()) -> Duration {
        self.flow_on();
        what();
        let mark = Instant::now();
        let progress = || self.shared.arrived.iter().map(|n| n.load(Relaxed));
        let before: Vec<usize> = progress().collect();
        wait_until("each stream goes on", || {
            std::iter::zip(progress(), &before).all(|(now, before)| now > before + 20)
        });
        assert!(mark.elapsed() < PATIENCE);
        let stall = Duration::from_micros(self.shared.stall_us.load(Relaxed) as u64);
        self.pushed += 1;
        self.shared.pushes.store(self.pushed, Relaxed);
        self.hear_notices();
        self.shells
            .iter_mut()
            .for_each(|shell| round_trip(shell, b"still there"));
        stall
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.streams.len() + self.shells.len() + self.notices.len()
    }

    /// Ends them all in an orderly way. What was received is what was sent.
    pub fn finish(self) {
        self.shared.stop.store(true, Relaxed);
        for stream in self.streams {
            stream.join().expect("a stream of right bytes");
        }
    }
}
