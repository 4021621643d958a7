//! Carries out health probes: one thread, one epoll instance, any number of probes at once.
//!
//! | file | |
//! |---|---|
//! | [`question`] | what is asked of whom |
//! | [`wire`] | its bytes on a socket, as they are or within TLS |
//! | [`tls`] | by whose word a certificate is taken |
//!
//! What an answer means is [`crate::health::answer`]'s.
//!
//! When a probe is due and what its outcome means is decided elsewhere ([`crate::health`]); here one probe runs from
//! connecting to verdict. One lost packet must not fail it, and the kernel repeats a SYN only after a second: while nothing
//! answers, further sockets try beside the first ([`tries`]), unless the backend is down anyway. A verdict is final when it
//! is sent; after that a TCP socket lingers until the
//! backend has answered our FIN with its own (or the time is up, or descriptors are wanted for other probes), because
//! closing with a greeting unread would send RST, and servers such as MySQL count that against the client's address.
//!
//! The schedule bounds the probes, and so the orders that wait here; the sockets are bounded once more where they are
//! opened ([`Prober::set_sockets_max`]), because those that linger are not the schedule's.

mod question;
pub mod tls;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Waker};

use crate::base::{Key, Slab, Timers};
use crate::config::PROBES_MAX;
use crate::health::answer::{ANSWER_MAX, Expected, Judged, unexpected};
use crate::health::schedule::{Run, tries};
use crate::health::{Reason, Remark};
use crate::sys::route::{Manner, Target};
use crate::sys::socket::{self, ConnectError, Transfer};
pub use question::Probe;
use wire::{Got, Sent, Wire, reason};

/// Orders that wait at most. Twice what may run: those of a prober that hangs are given up and made again.
const QUEUE_MAX: usize = 2 * PROBES_MAX as usize;
/// How long a decided probe waits for the backend's FIN.
const LINGER: Duration = Duration::from_millis(500);
/// Bytes that are thrown away while a decided probe waits: a backend that never stops is not listened to for ever.
const DISCARD_MAX: usize = 256 << 10;
const WAKE: mio::Token = mio::Token(usize::MAX);

/// What came of a probe.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// As in the [`Probe`].
    pub run: Run,
    /// What was seen.
    pub result: Result<Remark, Remark>,
    /// It failed for want of descriptors, memory or ports here, and says nothing of the backend.
    pub untried: bool,
    /// Time from the start of the probe to its verdict.
    pub took: Duration,
}

impl Verdict {
    /// Of a probe that was not even begun.
    pub fn untried(run: Run) -> Verdict {
        Verdict {
            run,
            result: Err(Reason::NotTried.into()),
            untried: true,
            took: Duration::ZERO,
        }
    }
}

/// Why a probe could not be ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotStarted {
    /// The thread does not keep up.
    Busy,
    /// The thread has ended, and with it every probe.
    Gone,
}

/// The probing thread.
#[derive(Debug)]
pub struct Prober<I> {
    probes: Sender<Probe>,
    waker: Waker,
    inputs: Sender<I>,
    sockets_max: Arc<AtomicUsize>,
}

impl<I: From<Verdict> + Send + 'static> Prober<I> {
    /// Starts the thread, which opens so many sockets at most. Verdicts go to `inputs`.
    pub fn start(inputs: Sender<I>, sockets_max: usize) -> io::Result<Prober<I>> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        let (probes, queue) = bounded(QUEUE_MAX);
        let sockets_max = Arc::new(AtomicUsize::new(sockets_max));
        let running = Running {
            poll,
            queue,
            inputs: inputs.clone(),
            probes: Slab::new(),
            timers: Timers::new(),
            epoch: Instant::now(),
            sockets_max: sockets_max.clone(),
        };
        std::thread::Builder::new()
            .name("prober".into())
            .spawn(move || running.run())?;
        Ok(Prober {
            probes,
            waker,
            inputs,
            sockets_max,
        })
    }

    /// Starts another thread in place of one that has ended.
    pub fn restart(&mut self) -> io::Result<()> {
        *self = Prober::start(self.inputs.clone(), self.sockets_max.load(Relaxed))?;
        Ok(())
    }

    /// Changes how many sockets it may have open.
    pub fn set_sockets_max(&self, sockets_max: usize) {
        self.sockets_max.store(sockets_max, Relaxed);
    }

    /// Starts a probe.
    pub fn start_probe(&self, probe: Probe) -> Result<(), NotStarted> {
        self.probes.try_send(probe).map_err(|error| match error {
            TrySendError::Full(_) => NotStarted::Busy,
            TrySendError::Disconnected(_) => NotStarted::Gone,
        })?;
        // Whatever keeps it from being woken, its next timer or the schedule's alarm brings it back to the queue.
        let _ = self.waker.wake();
        Ok(())
    }
}

struct Running<I> {
    poll: Poll,
    queue: Receiver<Probe>,
    inputs: Sender<I>,
    probes: Slab<Live>,
    timers: Timers,
    epoch: Instant,
    sockets_max: Arc<AtomicUsize>,
}

struct Live {
    probe: Probe,
    /// Attempts under way; one is left once something has answered.
    sockets: Vec<OwnedFd>,
    /// Times of the further attempts, latest first.
    tries: Vec<Instant>,
    started: Instant,
    /// What goes over the socket that has answered first.
    wire: Option<Wire>,
    sent: Sent,
    answer: Vec<u8>,
    discarded: usize,
    /// The verdict is out; only the end of the stream is waited for.
    decided: bool,
}

/// What a look at a probe's socket found.
enum Seen {
    Wait,
    Verdict(Result<Remark, Remark>),
    Over,
}

impl<I: From<Verdict>> Running<I> {
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
                let bits = event.token().0 as u64;
                // No probe starts before the whole batch is worked off, so a slot is still the same probe's or empty.
                if let Some(key) = self.probes.key_at(bits as u32) {
                    self.look(key, (bits >> 32) as RawFd, event.is_error());
                }
            }
            self.timers.expire(self.epoch.elapsed().as_millis() as u64, &mut due);
            for index in due.drain(..) {
                if let Some(key) = self.probes.key_at(index) {
                    self.time_out(key);
                }
            }
            loop {
                match self.queue.try_recv() {
                    Ok(probe) => self.start(probe),
                    Err(TryRecvError::Empty) => break,
                    // Control has ended when nobody can send probes any more.
                    Err(TryRecvError::Disconnected) => return,
                }
            }
        }
    }

    fn start(&mut self, probe: Probe) {
        let started = Instant::now();
        let mut later: Vec<Instant> = tries(probe.timeout)
            .filter(|_| probe.insists)
            .map(|after| started + after)
            .collect();
        later.reverse();
        let key = self.probes.insert(Live {
            // A datagram is sent as its socket is opened.
            sent: if probe.datagram { Sent::All } else { Sent::Blocked },
            probe,
            sockets: Vec::new(),
            tries: later,
            started,
            wire: None,
            answer: Vec::new(),
            discarded: 0,
            decided: false,
        });
        self.attempt(key);
    }

    /// Opens one more socket, and sets the timer for the next or for the end.
    fn attempt(&mut self, key: Key) {
        let room = self.make_room(key);
        let Some(live) = self.probes.get_mut(key) else {
            return;
        };
        let next = live.tries.pop().unwrap_or(live.started + live.probe.timeout);
        if !room {
            return self.set_timer(key, next);
        }
        let opened = match (&live.probe.route.target, live.probe.datagram) {
            (Target::Ip(address), true) => connect_udp(*address, &live.probe),
            _ => socket::connect(&live.probe.route).map_err(io::Error::from),
        };
        let registered = opened.and_then(|fd| {
            let raw = fd.as_raw_fd();
            live.sockets.push(fd);
            let token = mio::Token(((raw as u64) << 32 | u64::from(key.index)) as usize);
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut SourceFd(&raw), token, interest)
        });
        match registered {
            // The first socket is on its way: that there is none for another try takes nothing from it.
            _ if live.sockets.len() > 1 => self.set_timer(key, next),
            Ok(()) => self.set_timer(key, next),
            Err(error) => {
                let error = ConnectError::from(error);
                let untried = matches!(error, ConnectError::Exhausted | ConnectError::NoPorts);
                self.decide(key, Err(reason(error).into()), untried);
            }
        }
    }

    /// Whether one more socket may be opened for this probe. The first one of a probe always may: the oldest that merely
    /// lingers makes room for it.
    fn make_room(&mut self, key: Key) -> bool {
        let open: usize = self.probes.iter().map(|(_, live)| live.sockets.len()).sum();
        if open < self.sockets_max.load(Relaxed) {
            return true;
        }
        let first = self.probes.get(key).is_some_and(|live| live.sockets.is_empty());
        if first {
            let lingering = self.probes.iter().filter(|(_, live)| live.decided);
            let oldest = lingering.min_by_key(|(_, live)| live.started).map(|(key, _)| key);
            oldest.inspect(|&key| self.remove(key));
        }
        first
    }

    fn set_timer(&mut self, key: Key, at: Instant) {
        let ms = at.duration_since(self.epoch).as_micros().div_ceil(1000) as u64;
        self.timers.set(key.index, ms);
    }

    fn look(&mut self, key: Key, fd: RawFd, error: bool) {
        let Some(live) = self.probes.get_mut(key) else {
            return;
        };
        if !live.sockets.iter().any(|socket| socket.as_raw_fd() == fd) {
            return;
        }
        match live.look(fd, error) {
            // Connected, and waiting for an answer: no need to try on.
            Seen::Wait if live.sent != Sent::Blocked && !live.probe.datagram => {
                live.tries.clear();
                let end = live.started + live.probe.timeout;
                self.set_timer(key, end);
            }
            Seen::Wait => {}
            Seen::Verdict(result) => self.decide(key, result, false),
            Seen::Over => self.remove(key),
        }
    }

    fn time_out(&mut self, key: Key) {
        match self.probes.get(key) {
            Some(live) if !live.decided && live.started.elapsed() < live.probe.timeout => self.attempt(key),
            Some(live) if !live.decided => {
                let waited = humantime::format_duration(live.probe.timeout);
                let remark = match live.answer.is_empty() {
                    true => Reason::NoAnswer.says(format!("no answer within {waited}")),
                    false => unexpected(&live.answer),
                };
                self.decide(key, Err(remark), false);
            }
            _ => self.remove(key),
        }
    }

    fn decide(&mut self, key: Key, result: Result<Remark, Remark>, untried: bool) {
        let Some(live) = self.probes.get_mut(key) else {
            return;
        };
        live.decided = true;
        // Whoever has answered, whatever it was, sees FIN.
        let lingers = !live.probe.datagram && (result.is_ok() || !live.answer.is_empty());
        let verdict = Verdict {
            run: live.probe.run,
            result,
            untried,
            took: live.started.elapsed(),
        };
        let _ = self.inputs.send(verdict.into());
        match live.sockets.first().map(AsRawFd::as_raw_fd).filter(|_| lingers) {
            Some(fd) => {
                match &mut live.wire {
                    Some(wire) => wire.finish(fd),
                    None => socket::shut_write(fd),
                }
                if matches!(live.look(fd, false), Seen::Over) {
                    self.remove(key);
                } else {
                    self.set_timer(key, Instant::now() + LINGER);
                }
            }
            None => self.remove(key),
        }
    }

    fn remove(&mut self, key: Key) {
        self.timers.cancel(key.index);
        self.probes.remove(key);
    }
}

impl Live {
    fn look(&mut self, fd: RawFd, error: bool) -> Seen {
        if self.decided {
            return self.discard(fd);
        }
        if error {
            return Seen::Verdict(Err(reason(socket::connect_error(fd)).into()));
        }
        if !self.probe.datagram {
            // This one is connected; the others are not needed any more.
            self.sockets.retain(|socket| socket.as_raw_fd() == fd);
        }
        match self.converse(fd) {
            Ok(None) => Seen::Wait,
            Ok(Some(remark)) => Seen::Verdict(Ok(remark)),
            Err(remark) => Seen::Verdict(Err(remark)),
        }
    }

    /// Sends and receives until there is a verdict, or nothing more for now.
    fn converse(&mut self, fd: RawFd) -> Result<Option<Remark>, Remark> {
        let mut buffer = [0; 4096];
        if self.wire.is_none() {
            self.wire = Some(self.probe.wire()?);
        }
        let wire = self.wire.as_mut().expect("made above");
        loop {
            if self.sent != Sent::All {
                self.sent = wire.send(fd)?;
            }
            match self.sent {
                Sent::Blocked => return Ok(None),
                Sent::All if self.probe.expected == Expected::Connection => {
                    let reason = match self.probe.tls.is_some() {
                        true => Reason::TlsOk,
                        false => Reason::ConnectOk,
                    };
                    return Ok(Some(reason.into()));
                }
                Sent::All | Sent::Begun => {}
            }
            let ended = match wire.receive(fd, &mut buffer) {
                // TLS has moved on, and may have something to say.
                Got::Bytes(0) => continue,
                Got::Bytes(n) => {
                    let room = ANSWER_MAX - self.answer.len();
                    self.answer.extend_from_slice(&buffer[..n.min(room)]);
                    false
                }
                Got::Blocked => return Ok(None),
                Got::End => true,
                Got::Lost => return Err(reason(socket::connect_error(fd)).into()),
                Got::Broken(remark) => return Err(remark),
            };
            match self.probe.expected.judge(&self.answer, ended) {
                Judged::More => {}
                Judged::Passed(remark) => return Ok(Some(remark)),
                Judged::Failed(remark) => return Err(remark),
            }
        }
    }

    /// Waits for the end of the stream.
    fn discard(&mut self, fd: RawFd) -> Seen {
        let mut buffer = [0; 4096];
        while self.discarded < DISCARD_MAX {
            match socket::recv(fd, &mut buffer) {
                Transfer::Bytes(n) => self.discarded += n,
                Transfer::Blocked | Transfer::Starved => return Seen::Wait,
                Transfer::Eof | Transfer::Failed => return Seen::Over,
            }
        }
        Seen::Over
    }
}

impl Probe {
    fn wire(&self) -> Result<Wire, Remark> {
        match &self.tls {
            Some(tls) => {
                let address = match &self.route.target {
                    Target::Ip(address) => Some(address.ip()),
                    Target::Unix(_) => None,
                };
                Wire::secured(tls.connect(address)?, &self.send).map_err(tls::failed)
            }
            None if self.datagram => Ok(Wire::Plain([].into(), 0)),
            None => Ok(Wire::Plain(self.send.clone(), 0)),
        }
    }
}

fn connect_udp(address: SocketAddr, probe: &Probe) -> io::Result<OwnedFd> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::DGRAM.nonblocking(), None)?;
    probe.route.prepare(&socket, Manner::Datagrams)?;
    socket.connect(&address.into())?;
    socket.send(&probe.send)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each verdict is answered by the next probe, after a pause of any length up to the time that the prober takes to look
    /// at its queue once more. Broken on purpose: the queue asked whether it is empty, and then for a probe (the code of
    /// before: a probe that arrived in between was dropped).
    #[test]
    fn every_probe_gets_a_verdict() {
        let (sender, inputs) = crossbeam_channel::unbounded::<Verdict>();
        let prober = Prober::start(sender, 4).unwrap();
        let mut rng = crate::base::Rng::new(1);
        for number in 0..100_000 {
            let probe = Probe {
                run: Run { key: 1, number },
                route: crate::sys::route::Route::to(Target::Unix("/nonexistent/socket".into())),
                datagram: false,
                tls: None,
                timeout: Duration::from_secs(60),
                insists: false,
                send: [].into(),
                expected: Expected::Connection,
            };
            prober.start_probe(probe).unwrap();
            let sent = Instant::now();
            while inputs.try_recv().is_err() {
                assert!(sent.elapsed() < Duration::from_secs(20), "probe {number} was lost");
                std::hint::spin_loop();
            }
            (0..rng.below(100)).for_each(|_| std::hint::spin_loop());
        }
    }
}
