//! The least that relaying through sockets can cost: loops of one thread that move bytes and do nothing else. No health, no limits, no
//! time-outs, no accounts, no fairness, no system call filter; errors end a connection, and a loop is ended from outside.
//!
//! `scripts/bench` measures them as `bare`, so that a figure of a balancer can be held against what its kind of system calls allows on
//! that kernel.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use clap::Parser;
use socket2::SockAddr;

#[derive(Parser)]
enum Command {
    /// TCP through a buffer of 32 KiB. A backend and a full socket are waited for on the spot: for requests, not for bulk.
    Copy { listen: SocketAddr, target: SocketAddr },
    /// TCP through a pipe for each direction, as long as there is anything to move.
    Splice {
        listen: SocketAddr,
        target: SocketAddr,
        /// Size of a pipe, and the most that one splice asks for.
        #[arg(long, default_value_t = 1 << 20)]
        pipe: usize,
        /// SO_RCVLOWAT of a source once a splice brought 64 KiB: a wake-up for as many bytes (socket(7)). What follows the last of them
        /// comes with the end of the stream.
        #[arg(long)]
        lowat: Option<i32>,
        /// TCP_NOTSENT_LOWAT of both sockets: writable while less than this is unsent.
        #[arg(long)]
        unsent: Option<i32>,
    },
    /// Datagrams, a connected socket for each flow, in batches of 32 where a call takes several.
    Udp { listen: SocketAddr, target: SocketAddr },
}

fn main() -> io::Result<()> {
    match Command::parse() {
        Command::Copy { listen, target } => copy(listen, target),
        Command::Splice {
            listen,
            target,
            pipe,
            lowat,
            unsent,
        } => splice(listen, target, &Bulk { pipe, lowat, unsent }),
        Command::Udp { listen, target } => udp(listen, target),
    }
}

/// epoll, edge-triggered, without timeouts. A token is a descriptor.
struct Poller {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Poller {
    fn new() -> io::Result<Poller> {
        // SAFETY: a plain system call; the descriptor is new and owned here.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        check(fd as isize)?;
        // SAFETY: as above.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let events = vec![libc::epoll_event { events: 0, u64: 0 }; 512];
        Ok(Poller { fd, events })
    }

    fn add(&self, fd: RawFd, flags: i32) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: (flags | libc::EPOLLET) as u32,
            u64: fd as u64,
        };
        // SAFETY: `event` outlives the call.
        check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) } as isize)?;
        Ok(())
    }

    fn wait(&mut self) -> Vec<RawFd> {
        // SAFETY: `events` has room for what is asked.
        let n = unsafe {
            let room = self.events.len() as i32;
            libc::epoll_wait(self.fd.as_raw_fd(), self.events.as_mut_ptr(), room, -1)
        };
        self.events[..n.max(0) as usize]
            .iter()
            .map(|event| event.u64 as RawFd)
            .collect()
    }
}

fn check(returned: isize) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}

const STREAM: i32 = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP;

/// Every client that waits, connected to the target.
fn arrivals(
    listener: &TcpListener,
    target: SocketAddr,
    mut made: impl FnMut(TcpStream, TcpStream) -> io::Result<()>,
) -> io::Result<()> {
    while let Ok((client, _)) = listener.accept() {
        let backend = TcpStream::connect(target)?;
        for stream in [&client, &backend] {
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
        }
        made(client, backend)?;
    }
    Ok(())
}

fn listening(listen: SocketAddr, poller: &Poller) -> io::Result<(TcpListener, RawFd)> {
    let listener = TcpListener::bind(listen)?;
    listener.set_nonblocking(true)?;
    let fd = listener.as_raw_fd();
    poller.add(fd, libc::EPOLLIN)?;
    Ok((listener, fd))
}

fn copy(listen: SocketAddr, target: SocketAddr) -> io::Result<()> {
    let mut poller = Poller::new()?;
    let (listener, door) = listening(listen, &poller)?;
    // By descriptor: the stream, and the descriptor of the other side.
    let mut streams: HashMap<RawFd, (TcpStream, RawFd)> = HashMap::new();
    let mut buffer = vec![0; 32 << 10];
    loop {
        for fd in poller.wait() {
            if fd == door {
                arrivals(&listener, target, |client, backend| {
                    let (a, b) = (client.as_raw_fd(), backend.as_raw_fd());
                    for (stream, of, other) in [(client, a, b), (backend, b, a)] {
                        poller.add(of, STREAM)?;
                        streams.insert(of, (stream, other));
                    }
                    Ok(())
                })?;
                continue;
            }
            let Some((stream, other)) = streams.get(&fd) else {
                continue;
            };
            let other = *other;
            let ended = loop {
                match (&*stream).read(&mut buffer) {
                    Ok(0) => break true,
                    Ok(bytes) => {
                        if write_out(&streams[&other].0, &buffer[..bytes]).is_err() {
                            break true;
                        }
                        if bytes < buffer.len() {
                            break false;
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break false,
                    Err(_) => break true,
                }
            };
            if ended {
                streams.remove(&fd);
                streams.remove(&other);
            }
        }
    }
}

/// Writes all of it, waiting on the spot for room.
fn write_out(mut to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

struct Bulk {
    pipe: usize,
    lowat: Option<i32>,
    unsent: Option<i32>,
}

/// One direction.
struct Lane {
    source: RawFd,
    sink: RawFd,
    /// Write end, read end.
    pipe: Option<(OwnedFd, OwnedFd)>,
    held: usize,
    /// A splice brought 64 KiB.
    bulk: bool,
    ended: bool,
}

struct Pair {
    // Keep the descriptors.
    _streams: [TcpStream; 2],
    lanes: [Lane; 2],
}

impl Lane {
    /// Moves until the source has no more or the sink has no room.
    fn pump(&mut self, bulk: &Bulk) -> io::Result<()> {
        loop {
            let mut idle = true;
            if !self.ended && self.held < bulk.pipe {
                let pipe = match &mut self.pipe {
                    Some(pipe) => pipe,
                    none => {
                        set(self.sink, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, bulk.unsent)?;
                        none.insert(new_pipe(bulk.pipe)?)
                    }
                };
                match move_pages(self.source, pipe.0.as_raw_fd(), bulk.pipe - self.held) {
                    Ok(0) => self.ended = true,
                    Ok(moved) => {
                        (self.held, idle) = (self.held + moved, false);
                        if moved >= 64 << 10 && !std::mem::replace(&mut self.bulk, true) {
                            set(self.source, libc::SOL_SOCKET, libc::SO_RCVLOWAT, bulk.lowat)?;
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            if self.held > 0 {
                let pipe = self.pipe.as_ref().expect("it holds something");
                match move_pages(pipe.1.as_raw_fd(), self.sink, self.held) {
                    Ok(moved) => (self.held, idle) = (self.held - moved, false),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
            if idle {
                if self.ended && self.held == 0 {
                    // SAFETY: the descriptor is open as long as its pair.
                    unsafe { libc::shutdown(self.sink, libc::SHUT_WR) };
                }
                return Ok(());
            }
        }
    }
}

fn set(fd: RawFd, level: i32, name: i32, value: Option<i32>) -> io::Result<()> {
    let Some(value) = value else { return Ok(()) };
    // SAFETY: the value outlives the call, and its size is given.
    check(unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), 4) } as isize)?;
    Ok(())
}

fn new_pipe(bytes: usize) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK)?;
    // SAFETY: plain system call on a descriptor that is open.
    check(unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, bytes as libc::c_int) } as isize)?;
    Ok((write, read))
}

fn move_pages(from: RawFd, to: RawFd, most: usize) -> io::Result<usize> {
    let none = std::ptr::null_mut;
    // SAFETY: no offsets are passed.
    check(unsafe {
        libc::splice(
            from,
            none(),
            to,
            none(),
            most,
            libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MOVE,
        )
    })
}

fn splice(listen: SocketAddr, target: SocketAddr, bulk: &Bulk) -> io::Result<()> {
    let mut poller = Poller::new()?;
    let (listener, door) = listening(listen, &poller)?;
    let mut pairs: HashMap<RawFd, Pair> = HashMap::new();
    let mut of_backend: HashMap<RawFd, RawFd> = HashMap::new();
    loop {
        for fd in poller.wait() {
            if fd == door {
                arrivals(&listener, target, |client, backend| {
                    let (a, b) = (client.as_raw_fd(), backend.as_raw_fd());
                    let lane = |source, sink| Lane {
                        source,
                        sink,
                        pipe: None,
                        held: 0,
                        bulk: false,
                        ended: false,
                    };
                    pairs.insert(
                        a,
                        Pair {
                            _streams: [client, backend],
                            lanes: [lane(a, b), lane(b, a)],
                        },
                    );
                    of_backend.insert(b, a);
                    poller.add(a, STREAM)?;
                    poller.add(b, STREAM)
                })?;
                continue;
            }
            let client = of_backend.get(&fd).copied().unwrap_or(fd);
            let Some(pair) = pairs.get_mut(&client) else { continue };
            let failed = pair.lanes.iter_mut().any(|lane| lane.pump(bulk).is_err());
            if failed || pair.lanes.iter().all(|lane| lane.ended && lane.held == 0) {
                of_backend.remove(&pair.lanes[1].source);
                pairs.remove(&client);
            }
        }
    }
}

const BATCH: usize = 32;
const DATAGRAM: usize = 2048;

/// Buffers for `recvmmsg` and `sendmmsg`, as recvmmsg(2) shows.
struct Batch {
    bytes: Vec<[u8; DATAGRAM]>,
    addresses: Vec<libc::sockaddr_storage>,
    parts: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

impl Batch {
    fn new() -> Batch {
        // SAFETY: all zeroes is a valid value of each of these.
        let (address, part, header) = unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        Batch {
            bytes: vec![[0; DATAGRAM]; BATCH],
            addresses: vec![address; BATCH],
            parts: vec![part; BATCH],
            headers: vec![header; BATCH],
        }
    }

    /// Says of header `ix` where its `len` bytes and its address are.
    fn lay(&mut self, ix: usize, len: usize, address_len: u32) {
        self.parts[ix] = libc::iovec {
            iov_base: self.bytes[ix].as_mut_ptr().cast(),
            iov_len: len,
        };
        let header = &mut self.headers[ix].msg_hdr;
        header.msg_iov = &raw mut self.parts[ix];
        header.msg_iovlen = 1;
        header.msg_name = (&raw mut self.addresses[ix]).cast();
        header.msg_namelen = address_len;
    }

    fn receive(&mut self, fd: RawFd) -> usize {
        (0..BATCH).for_each(|ix| self.lay(ix, DATAGRAM, size_of::<libc::sockaddr_storage>() as u32));
        // SAFETY: every header was laid out just now, and nothing has moved since.
        let n = unsafe {
            libc::recvmmsg(
                fd,
                self.headers.as_mut_ptr(),
                BATCH as u32,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        n.max(0) as usize
    }

    fn from(&self, ix: usize) -> SocketAddr {
        // SAFETY: the kernel has written the address.
        let address = unsafe {
            SockAddr::new(
                std::mem::transmute_copy(&self.addresses[ix]),
                self.headers[ix].msg_hdr.msg_namelen,
            )
        };
        address.as_socket().expect("an address of the internet")
    }
}

fn udp(listen: SocketAddr, target: SocketAddr) -> io::Result<()> {
    let mut poller = Poller::new()?;
    let door = UdpSocket::bind(listen)?;
    door.set_nonblocking(true)?;
    let listener = door.as_raw_fd();
    poller.add(listener, libc::EPOLLIN)?;
    let mut flows: HashMap<SocketAddr, UdpSocket> = HashMap::new();
    let mut clients: HashMap<RawFd, SockAddr> = HashMap::new();
    let (mut batch, mut answers) = (Batch::new(), Batch::new());
    loop {
        let mut waiting = 0;
        for fd in poller.wait() {
            if fd != listener {
                let Some(client) = clients.get(&fd) else { continue };
                // SAFETY: the buffer outlives the call, and its size is given. A second answer on the way would raise another event.
                let n = unsafe {
                    libc::recv(
                        fd,
                        answers.bytes[waiting].as_mut_ptr().cast(),
                        DATAGRAM,
                        libc::MSG_DONTWAIT,
                    )
                };
                if n >= 0 {
                    // SAFETY: both are valid for the length that is copied.
                    unsafe {
                        std::ptr::copy_nonoverlapping(
                            client.as_ptr().cast::<u8>(),
                            (&raw mut answers.addresses[waiting]).cast(),
                            client.len() as usize,
                        )
                    };
                    answers.lay(waiting, n as usize, client.len());
                    waiting += 1;
                }
                if waiting == BATCH {
                    send(listener, &mut answers, &mut waiting);
                }
                continue;
            }
            loop {
                let n = batch.receive(listener);
                for ix in 0..n {
                    let client = batch.from(ix);
                    let len = batch.headers[ix].msg_len as usize;
                    let flow = match flows.entry(client) {
                        std::collections::hash_map::Entry::Occupied(found) => found.into_mut(),
                        std::collections::hash_map::Entry::Vacant(new) => {
                            let socket = UdpSocket::bind("0.0.0.0:0")?;
                            socket.connect(target)?;
                            poller.add(socket.as_raw_fd(), libc::EPOLLIN)?;
                            clients.insert(socket.as_raw_fd(), client.into());
                            new.insert(socket)
                        }
                    };
                    let _ = flow.send(&batch.bytes[ix][..len]);
                }
                if n < BATCH {
                    break;
                }
            }
        }
        send(listener, &mut answers, &mut waiting);
    }
}

fn send(listener: RawFd, answers: &mut Batch, waiting: &mut usize) {
    if *waiting > 0 {
        // SAFETY: as many headers were laid out, and nothing has moved since.
        unsafe { libc::sendmmsg(listener, answers.headers.as_mut_ptr(), *waiting as u32, 0) };
        *waiting = 0;
    }
}
