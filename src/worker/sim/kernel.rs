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
//! A stream's bytes follow from the number of whoever sends it: see [`super::stream::byte`]. So nothing has to be kept to check what arrives.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use super::stream::Stream;
use crate::base::Rng;
use crate::sys::socket::ConnectError;
use crate::sys::udp::Trouble;

thread_local! {
    static KERNEL: RefCell<Kernel> = RefCell::new(Kernel::new(0));
}

/// The kernel of this thread.
pub fn with<R>(f: impl FnOnce(&mut Kernel) -> R) -> R {
    KERNEL.with_borrow_mut(f)
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

    pub fn take_queued_error(&mut self) -> Option<(Trouble, Vec<u8>)> {
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

/// The fake kernel of one simulation.
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
