//! Carries out health probes: one thread, one epoll instance, any number of probes at once.
//!
//! When a probe is due and what its outcome means is decided elsewhere ([`crate::health`]); here one probe is one
//! socket, from connecting to verdict. A verdict is final when it is sent; after that a TCP socket lingers until the
//! backend has answered our FIN with its own (or the time is up), because closing with a greeting unread would send RST,
//! and servers such as MySQL count that against the client's address.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Waker};

use super::Input;
use crate::base::{Key, Slab, Timers};
use crate::config::model::ProbeKind;
use crate::sys::socket::{self, ConnectError, Target, Transfer};

/// Bytes of an answer that are looked at.
const ANSWER_MAX: usize = 16 << 10;
/// How long a decided probe waits for the backend's FIN.
const LINGER: Duration = Duration::from_millis(500);
const WAKE: mio::Token = mio::Token(usize::MAX);

/// One probe to carry out.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Handed back with the verdict.
    pub backend: u64,
    /// Where.
    pub target: Target,
    /// How; `ProbeKind::None` is never probed.
    pub kind: ProbeKind,
    /// Local address.
    pub source: Option<std::net::IpAddr>,
    /// From start to verdict.
    pub timeout: Duration,
    /// What to send; empty = nothing.
    pub send: Arc<[u8]>,
    /// What the answer must contain; empty = anything (for UDP: any answer).
    pub expect: Arc<[u8]>,
}

/// What came of a probe.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// As in the [`Probe`].
    pub backend: u64,
    /// A few words: what was seen.
    pub result: Result<String, String>,
    /// From start to verdict.
    pub took: Duration,
}

/// The probing thread.
#[derive(Debug)]
pub struct Prober {
    probes: Sender<Probe>,
    waker: Waker,
}

impl Prober {
    /// Starts the thread. Verdicts go to `inputs`.
    pub fn start(inputs: Sender<Input>) -> io::Result<Prober> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        let (probes, queue) = unbounded();
        let running = Running {
            poll,
            queue,
            inputs,
            probes: Slab::new(),
            timers: Timers::new(),
            epoch: Instant::now(),
        };
        std::thread::Builder::new()
            .name("prober".into())
            .spawn(move || running.run())?;
        Ok(Prober { probes, waker })
    }

    /// Starts a probe.
    pub fn start_probe(&self, probe: Probe) {
        let _ = self.probes.send(probe);
        let _ = self.waker.wake();
    }
}

struct Running {
    poll: Poll,
    queue: Receiver<Probe>,
    inputs: Sender<Input>,
    probes: Slab<Live>,
    timers: Timers,
    epoch: Instant,
}

struct Live {
    probe: Probe,
    fd: OwnedFd,
    started: Instant,
    sent: bool,
    answer: Vec<u8>,
    /// The verdict is out; only the end of the stream is waited for.
    decided: bool,
}

/// What a look at a probe's socket found.
enum Seen {
    Wait,
    Verdict(Result<String, String>),
    Over,
}

impl Running {
    fn run(mut self) {
        let mut events = Events::with_capacity(256);
        let mut due = Vec::new();
        loop {
            let now_ms = self.epoch.elapsed().as_millis() as u64;
            let timeout = self
                .timers
                .next()
                .map(|at| Duration::from_millis(at.saturating_sub(now_ms)));
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != io::ErrorKind::Interrupted
            {
                log::error!("prober: {error}");
                return;
            }
            for event in &events {
                if event.token() != WAKE {
                    let bits = event.token().0 as u64;
                    let key = Key {
                        index: bits as u32,
                        generation: (bits >> 32) as u32,
                    };
                    self.look(key, event.is_error());
                }
            }
            self.timers
                .expire(self.epoch.elapsed().as_millis() as u64, &mut due);
            for index in due.drain(..) {
                if let Some(key) = self.probes.key_at(index) {
                    self.time_out(key);
                }
            }
            while let Ok(probe) = self.queue.try_recv() {
                self.start(probe);
            }
            if self.queue.is_empty() && self.inputs_gone() {
                return;
            }
        }
    }

    /// The control thread has ended when nobody can send probes any more.
    fn inputs_gone(&self) -> bool {
        matches!(
            self.queue.try_recv(),
            Err(crossbeam_channel::TryRecvError::Disconnected)
        )
    }

    fn start(&mut self, probe: Probe) {
        let started = Instant::now();
        let opened = match (&probe.target, probe.kind) {
            (Target::Ip(address), ProbeKind::Udp) => connect_udp(*address, &probe),
            _ => socket::connect(&probe.target, probe.source).map_err(words),
        };
        let fd = match opened {
            Ok(fd) => fd,
            Err(reason) => {
                let verdict = Verdict {
                    backend: probe.backend,
                    result: Err(reason),
                    took: started.elapsed(),
                };
                let _ = self.inputs.send(Input::Verdict(verdict));
                return;
            }
        };
        let deadline = started + probe.timeout;
        let sent = probe.kind == ProbeKind::Udp;
        let live = Live {
            probe,
            fd,
            started,
            sent,
            answer: Vec::new(),
            decided: false,
        };
        let raw = live.fd.as_raw_fd();
        let key = self.probes.insert(live);
        let token = mio::Token((u64::from(key.generation) << 32 | u64::from(key.index)) as usize);
        let interest = Interest::READABLE | Interest::WRITABLE;
        match self
            .poll
            .registry()
            .register(&mut SourceFd(&raw), token, interest)
        {
            Ok(()) => self.set_timer(key, deadline),
            Err(error) => self.decide(key, Err(error.to_string())),
        }
    }

    fn set_timer(&mut self, key: Key, at: Instant) {
        let ms = at.duration_since(self.epoch).as_micros().div_ceil(1000) as u64;
        self.timers.set(key.index, ms);
    }

    fn look(&mut self, key: Key, error: bool) {
        let Some(live) = self.probes.get_mut(key) else {
            return;
        };
        match live.look(error) {
            Seen::Wait => {}
            Seen::Verdict(result) => self.decide(key, result),
            Seen::Over => self.remove(key),
        }
    }

    fn time_out(&mut self, key: Key) {
        match self.probes.get(key) {
            Some(live) if !live.decided => {
                let waited = humantime::format_duration(live.probe.timeout);
                let what = if live.sent || live.probe.expect.is_empty() {
                    "no answer"
                } else {
                    "no connection"
                };
                let reason = if live.answer.is_empty() {
                    format!("{what} within {waited}")
                } else {
                    format!("unexpected answer {}", excerpt(&live.answer))
                };
                self.decide(key, Err(reason));
                self.remove(key);
            }
            _ => self.remove(key),
        }
    }

    fn decide(&mut self, key: Key, result: Result<String, String>) {
        let Some(live) = self.probes.get_mut(key) else {
            return;
        };
        live.decided = true;
        let lingers = result.is_ok() && live.probe.kind == ProbeKind::Tcp;
        let verdict = Verdict {
            backend: live.probe.backend,
            result,
            took: live.started.elapsed(),
        };
        let _ = self.inputs.send(Input::Verdict(verdict));
        if lingers {
            socket::shut_write(live.fd.as_raw_fd());
            if matches!(live.look(false), Seen::Over) {
                self.remove(key);
            } else {
                self.set_timer(key, Instant::now() + LINGER);
            }
        } else {
            self.remove(key);
        }
    }

    fn remove(&mut self, key: Key) {
        self.timers.cancel(key.index);
        self.probes.remove(key);
    }
}

impl Live {
    fn look(&mut self, error: bool) -> Seen {
        let fd = self.fd.as_raw_fd();
        if error && !self.decided {
            return Seen::Verdict(Err(words(socket::connect_error(fd))));
        }
        if !self.sent && !self.decided {
            if !self.probe.send.is_empty() {
                match socket::send(fd, &self.probe.send) {
                    Transfer::Bytes(n) if n == self.probe.send.len() => {}
                    Transfer::Blocked => return Seen::Wait,
                    _ => return Seen::Verdict(Err("connection lost while sending".into())),
                }
            }
            self.sent = true;
            if self.probe.expect.is_empty() && self.probe.kind == ProbeKind::Tcp {
                return Seen::Verdict(Ok("connect ok".into()));
            }
        }
        self.read(fd)
    }

    fn read(&mut self, fd: i32) -> Seen {
        let mut buffer = [0; 4096];
        loop {
            match socket::recv(fd, &mut buffer) {
                Transfer::Bytes(_) if self.decided => {}
                Transfer::Bytes(n) => {
                    let room = ANSWER_MAX - self.answer.len();
                    self.answer.extend_from_slice(&buffer[..n.min(room)]);
                    let expect = &*self.probe.expect;
                    if expect.is_empty()
                        || self.answer.windows(expect.len()).any(|part| part == expect)
                    {
                        return Seen::Verdict(Ok("answer ok".into()));
                    }
                    if self.answer.len() == ANSWER_MAX {
                        return Seen::Verdict(Err(format!(
                            "unexpected answer {}",
                            excerpt(&self.answer)
                        )));
                    }
                }
                Transfer::Blocked => return Seen::Wait,
                Transfer::Eof | Transfer::Failed if self.decided => return Seen::Over,
                Transfer::Eof
                    if self.probe.kind == ProbeKind::Udp && self.probe.expect.is_empty() =>
                {
                    return Seen::Verdict(Ok("answer ok".into()));
                }
                Transfer::Eof => {
                    let got = excerpt(&self.answer);
                    return Seen::Verdict(Err(format!(
                        "closed before the expected answer, got {got}"
                    )));
                }
                Transfer::Failed => {
                    return Seen::Verdict(Err(words(socket::connect_error(fd))));
                }
            }
        }
    }
}

fn connect_udp(address: SocketAddr, probe: &Probe) -> Result<OwnedFd, String> {
    let open = || -> io::Result<OwnedFd> {
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new(domain, socket2::Type::DGRAM.nonblocking(), None)?;
        if let Some(ip) = probe.source {
            socket.bind(&SocketAddr::new(ip, 0).into())?;
        }
        socket.connect(&address.into())?;
        socket.send(&probe.send)?;
        Ok(socket.into())
    };
    open().map_err(|error| error.to_string())
}

fn words(error: ConnectError) -> String {
    match error {
        ConnectError::Refused => "connection refused",
        ConnectError::TimedOut => "connection timed out",
        ConnectError::Unreachable => "no route to the backend",
        ConnectError::NoPorts => "no local port is free",
        ConnectError::Exhausted => "out of descriptors or memory",
    }
    .into()
}

/// The first bytes of an answer, safe to print.
fn excerpt(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(32)];
    format!(
        "\"{}\"{}",
        shown.escape_ascii(),
        if bytes.len() > 32 { "..." } else { "" }
    )
}
