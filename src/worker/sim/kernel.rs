//! A fake kernel: sockets, pipes and one epoll instance a worker, seen from both ends.
//!
//! It keeps the promises of the real one and no more. An edge is told once, and all that has happened until it is fetched is
//! told as one. EAGAIN re-arms; a call that fails for want of memory does not. A read stops before the urgent mark and skips
//! the byte unless it is kept in line; a splice stops at the mark for good. What was received before a RST can still be
//! read, the error is told once, and then the stream looks ended. Closing with RST drops what the peer has not acknowledged.
//!
//! Descriptors are real, each a socket that is connected to nothing, so that the shells own, drop and hand them on as they
//! do with others. A descriptor counts as closed when its number no longer stands for the socket that was made for it.
//!
//! A stream's bytes follow from the number of whoever sends it: see [`byte`]. So nothing has to be kept to check what arrives.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use crate::base::{Rng, Side};
use crate::sys::socket::ConnectError;
use crate::sys::udp::Trouble;

thread_local! {
    static KERNEL: RefCell<Kernel> = RefCell::new(Kernel::new(0));
}

/// The kernel of this thread.
pub fn with<R>(f: impl FnOnce(&mut Kernel) -> R) -> R {
    KERNEL.with_borrow_mut(f)
}

/// Bytes that say whose stream it is.
pub const NAME: usize = 4;

/// The byte at position `at` of the stream of `who`.
pub fn byte(who: u32, at: usize) -> u8 {
    match who.to_le_bytes().get(at) {
        Some(byte) => *byte,
        None => (at.wrapping_mul(31) ^ (at >> 8) ^ (who as usize).wrapping_mul(0x9d)) as u8,
    }
}

/// How a peer ends its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goodbye {
    Fin,
    Reset,
    /// It says nothing more, not even that.
    Silence,
}

/// How a connection to a backend comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake {
    Done,
    /// It answers one day.
    Under,
    /// It refuses one day.
    Refuses,
    Refused(ConnectError),
    /// Nothing is ever heard.
    Ignored,
}

/// One of weir's stream sockets, and the peer at its other end.
#[derive(Debug)]
pub struct Stream {
    pub who: u32,
    pub side: Side,
    pub local: SocketAddr,
    pub peer: SocketAddr,
    pub handshake: Handshake,
    /// Sent in front of the stream: a PROXY header.
    pub prefix: Vec<u8>,
    /// Positions `read..arrived` of what the peer sends (prefix first) are in the receive queue.
    pub arrived: usize,
    pub read: usize,
    pub to_send: usize,
    pub goodbye: Goodbye,
    pub fin: bool,
    pub reset: bool,
    error_told: bool,
    pub urgent_at: Option<usize>,
    /// Positions of the stream that were sent as urgent.
    pub marks: Vec<usize>,
    pub inline: bool,
    /// What weir has written and the peer has not read; `urgent` as positions of what was written.
    pub tx: VecDeque<u8>,
    pub acknowledged: usize,
    pub tx_room: usize,
    blocked: bool,
    pub tx_fin: bool,
    linger: bool,
    /// weir has closed it, with RST or without.
    pub closed: Option<bool>,
    /// The peer reads nothing more after so many bytes.
    pub deaf_after: usize,
    pub got: Vec<u8>,
    pub got_urgent: Vec<usize>,
    urgent_out: Vec<usize>,
    pub got_end: Option<Goodbye>,
    edge: bool,
    poller: Option<(usize, u64)>,
    /// Something failed that is no fault of either peer.
    pub disturbed: bool,
}

impl Stream {
    pub fn new(who: u32, side: Side, local: SocketAddr, peer: SocketAddr) -> Stream {
        Stream {
            who,
            side,
            local,
            peer,
            handshake: Handshake::Done,
            prefix: Vec::new(),
            arrived: 0,
            read: 0,
            to_send: 0,
            goodbye: Goodbye::Fin,
            fin: false,
            reset: false,
            error_told: false,
            urgent_at: None,
            marks: Vec::new(),
            inline: false,
            tx: VecDeque::new(),
            acknowledged: 0,
            tx_room: 1,
            blocked: false,
            tx_fin: false,
            linger: false,
            closed: None,
            deaf_after: usize::MAX,
            got: Vec::new(),
            got_urgent: Vec::new(),
            urgent_out: Vec::new(),
            got_end: None,
            edge: false,
            poller: None,
            disturbed: false,
        }
    }

    /// How it stands.
    pub fn tell(&self) -> String {
        format!(
            "{:?} {} {:?}: {} of {} read, {} to come, fin {} reset {} urgent {:?}; {} got, {} of {} queued, blocked {}, fin {} end {:?}, edge {} of {:?}{}",
            self.side,
            self.who,
            self.handshake,
            self.read,
            self.arrived,
            self.to_send,
            self.fin,
            self.reset,
            self.urgent_at,
            self.got.len(),
            self.tx.len(),
            self.tx_room,
            self.blocked,
            self.tx_fin,
            self.got_end,
            self.edge,
            self.poller,
            if self.disturbed { ", disturbed" } else { "" },
        )
    }

    fn byte(&self, at: usize) -> u8 {
        let prefix = self.prefix.len();
        self.prefix
            .get(at)
            .copied()
            .unwrap_or_else(|| byte(self.who, at.wrapping_sub(prefix)))
    }

    /// Whether the peer says something more.
    pub fn is_talking(&self) -> bool {
        self.closed.is_none() && !self.fin && !self.reset && (self.to_send > 0 || self.goodbye != Goodbye::Silence)
    }

    /// Whether the peer still hears something.
    pub fn is_listening(&self) -> bool {
        self.got_end.is_none() && self.got.len() < self.deaf_after
    }

    /// More of what the peer says arrives: a part, or all at once.
    pub fn arrive(&mut self, rng: &mut Rng, most: usize, urgent: bool) {
        if !self.is_talking() || self.handshake != Handshake::Done {
            return;
        }
        let n = match rng.below(3) {
            0 => 1 + rng.below(40) as usize,
            _ => 1 + rng.below(most as u64) as usize,
        };
        let n = n.min(self.to_send);
        if urgent && n > 0 && rng.below(24) == 0 && self.arrived >= self.prefix.len() {
            let at = self.arrived + rng.below(n as u64) as usize;
            self.urgent_at = Some(at);
            self.marks.push(at - self.prefix.len());
        }
        self.arrived += n;
        self.to_send -= n;
        if self.to_send == 0 && (n == 0 || rng.below(2) == 0) {
            self.fin = self.goodbye == Goodbye::Fin;
            self.reset = self.goodbye == Goodbye::Reset;
        }
        self.edge = true;
    }

    /// The peer resets the connection, in the middle of what it says.
    pub fn break_off(&mut self) {
        self.to_send = 0;
        self.goodbye = Goodbye::Reset;
        self.reset = true;
        self.edge = true;
    }

    /// What weir has written travels, and the peer reads some of it.
    pub fn deliver(&mut self, rng: &mut Rng, all: bool) {
        let under_way = (self.tx.len() - self.acknowledged) as u64;
        let n = if all { under_way } else { rng.below(under_way + 1) };
        self.acknowledged += n as usize;
        let readable = self.acknowledged.min(self.deaf_after.saturating_sub(self.got.len()));
        let n = if all {
            readable as u64
        } else {
            rng.below(readable as u64 + 1)
        };
        let taken = self.tx.drain(..n as usize);
        self.got.extend(taken);
        self.acknowledged -= n as usize;
        let read = self.got.len();
        let urgent = self.urgent_out.extract_if(.., |at| *at < read);
        self.got_urgent.extend(urgent);
        if self.blocked && self.tx.len() < self.tx_room {
            self.blocked = false;
            self.edge = true;
        }
        let says_end = match self.closed {
            Some(true) => Some(Goodbye::Reset),
            _ if self.tx_fin => Some(Goodbye::Fin),
            _ => None,
        };
        if let Some(end) = says_end
            && self.tx.is_empty()
            && self.got_end.is_none()
        {
            self.got_end = Some(end);
        }
    }

    /// weir has closed its socket.
    fn close(&mut self) {
        let reset = self.linger || self.reset || self.read < self.arrived;
        self.closed = Some(reset);
        if reset {
            self.tx.truncate(self.acknowledged);
        }
        self.tx_fin |= !reset;
    }

    /// What the queue of received bytes holds up to where a read has to stop.
    fn readable(&self) -> usize {
        let stop = self.urgent_at.filter(|&at| at > self.read).unwrap_or(self.arrived);
        stop - self.read
    }

    /// What SIOCINQ says: up to the urgent mark, unless urgent data stays in line.
    pub fn unread(&self) -> usize {
        let mark = self
            .urgent_at
            .filter(|at| !self.inline && (self.read..self.arrived).contains(at));
        mark.unwrap_or(self.arrived) - self.read
    }

    fn nothing_left(&mut self) -> Result<usize, i32> {
        match self.reset {
            true if !std::mem::replace(&mut self.error_told, true) => Err(libc::ECONNRESET),
            true => Ok(0),
            false if self.fin => Ok(0),
            false => Err(libc::EAGAIN),
        }
    }

    /// Reads; `take`: off the queue.
    pub fn recv(&mut self, buffer: &mut [u8], take: bool) -> Result<usize, i32> {
        let before = (self.read, self.urgent_at);
        if self.urgent_at == Some(self.read) && !self.inline && self.read < self.arrived {
            self.read += 1;
            self.urgent_at = None;
        }
        let n = self.readable().min(buffer.len());
        for (at, slot) in buffer[..n].iter_mut().enumerate() {
            *slot = self.byte(self.read + at);
        }
        if !take {
            (self.read, self.urgent_at) = before;
        } else {
            self.read += n;
            self.urgent_at = self.urgent_at.filter(|&at| at >= self.read);
        }
        if n == 0 { self.nothing_left() } else { Ok(n) }
    }

    /// What a splice takes.
    pub fn spliced(&mut self, most: usize) -> Result<Vec<u8>, i32> {
        if self.urgent_at == Some(self.read) && self.read < self.arrived {
            return if self.fin { Ok(Vec::new()) } else { Err(libc::EAGAIN) };
        }
        let n = self.readable().min(most);
        let bytes = (self.read..self.read + n).map(|at| self.byte(at)).collect();
        self.read += n;
        if n == 0 {
            return self.nothing_left().map(|_| Vec::new());
        }
        Ok(bytes)
    }

    pub fn send(&mut self, bytes: &[u8], urgent: bool) -> Result<usize, i32> {
        assert!(!self.tx_fin, "{:?} {}: a write after FIN", self.side, self.who);
        if self.reset {
            self.error_told = true;
            return Err(libc::EPIPE);
        }
        if self.handshake != Handshake::Done {
            return Err(libc::EAGAIN);
        }
        let n = bytes.len().min(self.tx_room - self.tx.len());
        self.blocked |= n < bytes.len();
        if n == 0 {
            return Err(libc::EAGAIN);
        }
        if urgent {
            self.urgent_out.push(self.got.len() + self.tx.len());
        }
        self.tx.extend(&bytes[..n]);
        Ok(n)
    }

    pub fn shut(&mut self) {
        assert!(
            !std::mem::replace(&mut self.tx_fin, true),
            "{:?} {}: FIN twice",
            self.side,
            self.who
        );
    }

    pub fn reset_on_close(&mut self) {
        self.linger = true;
    }

    /// An answer to a SYN, or none.
    pub fn shake(&mut self) {
        match self.handshake {
            Handshake::Under => self.handshake = Handshake::Done,
            Handshake::Refuses => self.handshake = Handshake::Refused(ConnectError::Refused),
            _ => return,
        }
        self.edge = true;
    }

    /// Takes the pending error.
    pub fn take_error(&mut self) -> Option<ConnectError> {
        match self.handshake {
            Handshake::Refused(error) => Some(error),
            _ if self.reset && !std::mem::replace(&mut self.error_told, true) => Some(ConnectError::Reset),
            _ => None,
        }
    }

    /// A call has found nothing, and an edge will tell when there is something: at once for a read, with the next bytes that
    /// leave for a write.
    pub fn come_soon(&mut self, call: &str) {
        match call {
            "send" | "splice out" => self.blocked = true,
            _ => self.edge = true,
        }
    }

    /// EPOLL bits.
    fn mask(&self) -> i32 {
        use libc::{EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP};
        match self.handshake {
            Handshake::Done => {}
            Handshake::Refused(_) => return EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLRDHUP,
            _ => return 0,
        }
        let urgent = if self.urgent_at.is_some() { EPOLLPRI } else { 0 };
        if self.reset {
            let error = if self.error_told { 0 } else { EPOLLERR };
            return EPOLLIN | EPOLLOUT | error | EPOLLHUP | EPOLLRDHUP | urgent;
        }
        let mut mask = urgent;
        if self.read < self.arrived {
            mask |= EPOLLIN;
        }
        if self.fin {
            mask |= EPOLLIN | EPOLLRDHUP | if self.tx_fin { EPOLLHUP } else { 0 };
        }
        if self.tx.len() < self.tx_room {
            mask |= EPOLLOUT;
        }
        mask
    }
}

/// A datagram at one of weir's sockets.
#[derive(Debug, Clone)]
pub struct Datagram {
    pub peer: SocketAddr,
    pub bytes: Vec<u8>,
}

/// One of weir's datagram sockets.
#[derive(Debug)]
pub struct Port {
    pub local: SocketAddr,
    /// Connected to.
    pub to: Option<SocketAddr>,
    pub rx: VecDeque<Datagram>,
    pub errors: VecDeque<(Trouble, Vec<u8>)>,
    error: bool,
    pub merges: bool,
    poller: Option<(usize, u64, bool)>,
}

impl Port {
    pub fn new(local: SocketAddr, to: Option<SocketAddr>, merges: bool) -> Port {
        Port {
            local,
            to,
            rx: VecDeque::new(),
            errors: VecDeque::new(),
            error: false,
            merges,
            poller: None,
        }
    }

    pub fn refuse(&mut self, trouble: Trouble, quoted: Vec<u8>) {
        self.errors.push_back((trouble, quoted));
        self.error = true;
    }

    /// The error that a call tells of instead of doing its work.
    pub fn take_error(&mut self) -> bool {
        std::mem::take(&mut self.error)
    }

    pub fn take_report(&mut self) -> Option<(Trouble, Vec<u8>)> {
        let report = self.errors.pop_front();
        self.error = !self.errors.is_empty();
        report
    }
}

/// A listening stream socket.
#[derive(Debug, Default)]
pub struct Queue {
    pub waiting: VecDeque<Stream>,
    pub inline: bool,
    poller: Option<(usize, u64, bool)>,
}

/// What a descriptor stands for.
#[derive(Debug)]
pub enum File {
    Stream(Stream),
    Queue(Queue),
    Port(Port),
}

/// What a datagram that weir has sent was: over a connected socket, or to a client.
#[derive(Debug)]
pub struct Gone {
    pub socket: RawFd,
    pub local: SocketAddr,
    pub to: SocketAddr,
    pub connected: bool,
    pub bytes: Vec<u8>,
}

/// See the module.
pub struct Kernel {
    pub rng: Rng,
    pub now: Instant,
    /// Calls fail now and then.
    pub faulty: bool,
    /// So long passes at most while nothing happens.
    pub patience: Duration,
    /// What newly opened connections to backends meet.
    pub reach: Box<dyn Fn(&mut Rng, SocketAddr, u32) -> Result<Stream, ConnectError>>,
    files: BTreeMap<RawFd, (u64, File)>,
    /// Streams whose sockets weir has closed.
    pub past: Vec<Stream>,
    pub pipes: HashMap<u64, VecDeque<u8>>,
    pub next: u64,
    pub pollers: usize,
    pub gone: Vec<Gone>,
    /// Faults that were told, by call.
    pub faults: BTreeMap<&'static str, u64>,
}

impl Kernel {
    pub fn new(seed: u64) -> Kernel {
        Kernel {
            rng: Rng::new(seed),
            now: Instant::now(),
            faulty: false,
            patience: Duration::from_millis(1),
            reach: Box::new(|_, _, _| Err(ConnectError::Unreachable)),
            files: BTreeMap::new(),
            past: Vec::new(),
            pipes: HashMap::new(),
            next: 0,
            pollers: 0,
            gone: Vec::new(),
            faults: BTreeMap::new(),
        }
    }

    /// Whether this call fails, once in so many times.
    pub fn fails(&mut self, call: &'static str, one_in: u64) -> bool {
        let fails = self.faulty && self.rng.below(one_in) == 0;
        if fails {
            *self.faults.entry(call).or_default() += 1;
        }
        fails
    }

    pub fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// A new descriptor.
    pub fn open(&mut self, file: File) -> OwnedFd {
        let kind = match file {
            File::Port(_) => socket2::Type::DGRAM,
            _ => socket2::Type::STREAM,
        };
        let fd: OwnedFd = socket2::Socket::new(socket2::Domain::UNIX, kind, None).unwrap().into();
        let raw = fd.as_raw_fd();
        // Its number may be that of one that was closed just now.
        self.close_if_closed(raw);
        self.files.insert(raw, (crate::sys::socket::identity(raw), file));
        fd
    }

    fn close_if_closed(&mut self, fd: RawFd) {
        let known = self.files.get(&fd).map(|(inode, _)| *inode);
        if known.is_none_or(|inode| crate::sys::socket::identity(fd) == inode) {
            return;
        }
        if let Some((_, File::Stream(mut stream))) = self.files.remove(&fd) {
            stream.close();
            self.past.push(stream);
        }
    }

    /// Notices which descriptors were closed.
    pub fn reap(&mut self) {
        for fd in self.files.keys().copied().collect::<Vec<_>>() {
            self.close_if_closed(fd);
        }
    }

    pub fn file(&mut self, fd: RawFd) -> Option<&mut File> {
        self.files.get_mut(&fd).map(|(_, file)| file)
    }

    pub fn stream(&mut self, fd: RawFd) -> Option<&mut Stream> {
        match self.file(fd)? {
            File::Stream(stream) => Some(stream),
            _ => None,
        }
    }

    pub fn queue(&mut self, fd: RawFd) -> Option<&mut Queue> {
        match self.file(fd)? {
            File::Queue(queue) => Some(queue),
            _ => None,
        }
    }

    pub fn port(&mut self, fd: RawFd) -> Option<&mut Port> {
        match self.file(fd)? {
            File::Port(port) => Some(port),
            _ => None,
        }
    }

    pub fn files(&mut self) -> impl Iterator<Item = (RawFd, &mut File)> {
        self.files.iter_mut().map(|(fd, (_, file))| (*fd, file))
    }

    pub fn streams(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.files.values_mut().filter_map(|(_, file)| match file {
            File::Stream(stream) => Some(stream),
            _ => None,
        })
    }

    /// Registers with a poller, or changes that; false if it is registered already and `level` does not say how.
    pub fn register(&mut self, poller: usize, fd: RawFd, token: u64, level: Option<bool>) -> Result<(), i32> {
        match self.file(fd).ok_or(libc::EBADF)? {
            File::Stream(stream) => {
                stream.poller = Some((poller, token));
                stream.edge = true;
            }
            File::Queue(Queue { poller: at, .. }) | File::Port(Port { poller: at, .. }) => match level {
                None if at.is_some() => return Err(libc::EEXIST),
                level => *at = Some((poller, token, level.unwrap_or(true))),
            },
        }
        Ok(())
    }

    pub fn unregister(&mut self, fd: RawFd) {
        match self.file(fd) {
            Some(File::Stream(stream)) => stream.poller = None,
            Some(File::Queue(Queue { poller, .. }) | File::Port(Port { poller, .. })) => *poller = None,
            None => {}
        }
    }

    /// The events that a poller has, in any order; some come later. Time passes, at most as long as the poller waits.
    pub fn fetch(&mut self, poller: usize, timeout: Duration) -> Vec<(u64, i32)> {
        let (late, rng) = (self.faulty, &mut self.rng);
        let mut events = Vec::new();
        for (_, file) in self.files.values_mut() {
            if late && rng.below(6) == 0 {
                continue;
            }
            match file {
                File::Stream(stream) => {
                    let Some((_, token)) = stream.poller.filter(|(at, _)| *at == poller) else {
                        continue;
                    };
                    let mask = stream.mask();
                    if stream.edge && mask != 0 {
                        stream.edge = false;
                        events.push((token, mask));
                    }
                }
                File::Queue(Queue {
                    poller: at, waiting, ..
                }) => {
                    if let Some((_, token, true)) = at.filter(|at| at.0 == poller)
                        && !waiting.is_empty()
                    {
                        events.push((token, libc::EPOLLIN));
                    }
                }
                File::Port(port) => {
                    if let Some((_, token, true)) = port.poller.filter(|at| at.0 == poller) {
                        let readable = if port.rx.is_empty() { 0 } else { libc::EPOLLIN };
                        let broken = if port.errors.is_empty() { 0 } else { libc::EPOLLERR };
                        if readable | broken != 0 {
                            events.push((token, readable | broken));
                        }
                    }
                }
            }
        }
        for ix in (1..events.len()).rev() {
            events.swap(ix, rng.below(ix as u64 + 1) as usize);
        }
        let longest = if events.is_empty() {
            self.patience
        } else {
            Duration::from_millis(1)
        };
        self.now += Duration::from_micros(rng.below(longest.min(timeout).as_micros() as u64 + 1));
        events
    }
}
