//! Stream sockets: listening, accepting, connecting, reading, writing, ending.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::option::{get_int, set_device, set_freebind, set_int};
use super::route::{Manner, Route, Source, Target};

/// Where a listening socket is bound.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Address and port.
    pub address: SocketAddr,
    /// Index of the interface to which it is limited; `None` = all.
    pub device: Option<u32>,
    /// The address comes and goes, and need not be there now.
    pub moves: bool,
}

impl Place {
    /// On all interfaces.
    pub fn new(address: SocketAddr, moves: bool) -> Place {
        Place {
            address,
            device: None,
            moves,
        }
    }

    /// A socket that can be bound there, and shares the port with others that say so too. IPv6 sockets are IPv6 only, so that
    /// `[::]:80` stands beside `0.0.0.0:80`.
    pub(super) fn socket(self, kind: Type) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(self.address), kind.nonblocking(), None)?;
        socket.set_reuse_port(true)?;
        if self.address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if let Some(index) = self.device {
            set_device(socket.as_raw_fd(), index)?;
        }
        if self.moves {
            set_freebind(socket.as_raw_fd(), self.address.is_ipv6())?;
        }
        Ok(socket)
    }
}

/// Index of the interface to which a socket is limited, if it is and the kernel tells (Linux 5.0). One that is bound to a
/// link-local address counts as limited.
pub fn device(fd: RawFd) -> Option<u32> {
    let index = get_int(fd, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX).ok()?;
    u32::try_from(index).ok().filter(|index| *index > 0)
}

/// A TCP listening socket that shares its port (SO_REUSEPORT) with the other workers' ones. Accepted sockets inherit
/// TCP_NODELAY, SO_OOBINLINE and `keepalive` (as [`set_keepalive`] takes it) from it: what it has when their handshakes end, which may be
/// before anybody accepts.
pub fn listen_tcp(place: Place, backlog: Option<u32>, keepalive: Option<[u32; 3]>) -> io::Result<OwnedFd> {
    let socket = place.socket(Type::STREAM)?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    keep_urgent_inline(socket.as_raw_fd());
    set_keepalive(socket.as_raw_fd(), keepalive)?;
    socket.bind(&place.address.into())?;
    socket.listen(length(backlog))?;
    Ok(socket.into())
}

/// As listen(2) takes it; the kernel cuts what is beyond net.core.somaxconn.
fn length(backlog: Option<u32>) -> i32 {
    backlog.and_then(|most| i32::try_from(most).ok()).unwrap_or(i32::MAX)
}

/// Changes how many connections may wait at a listening socket. Those that wait stay, however many they are.
pub fn set_backlog(fd: RawFd, backlog: Option<u32>) -> io::Result<()> {
    with_socket(fd, |socket| socket.listen(length(backlog)))
}

/// A unix listening socket. A socket file that nobody listens on any more is replaced; anything else is an error.
pub fn listen_unix(path: &Path, backlog: Option<u32>) -> io::Result<OwnedFd> {
    use std::os::unix::fs::FileTypeExt;
    let address = SockAddr::unix(path)?;
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "exists and is not a socket",
            ));
        }
        match Socket::new(Domain::UNIX, Type::STREAM, None)?.connect(&address) {
            Ok(()) => {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    "another process listens there",
                ));
            }
            Err(_) => std::fs::remove_file(path)?,
        }
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.bind(&address)?;
    socket.listen(length(backlog))?;
    Ok(socket.into())
}

/// The address that a TCP socket is bound to.
pub fn local_address(fd: &OwnedFd) -> io::Result<SocketAddr> {
    SockRef::from(fd)
        .local_addr()?
        .as_socket()
        .ok_or_else(|| io::Error::other("not an internet socket"))
}

/// Whether other sockets can be bound to the same address (SO_REUSEPORT).
pub fn shares_port(fd: &OwnedFd) -> io::Result<bool> {
    SockRef::from(fd).reuse_port()
}

/// What tells a socket from all others of this host, whatever descriptor or process it is seen through; 0 = unknown.
pub fn identity(fd: RawFd) -> u64 {
    // SAFETY: callers pass descriptors of sockets that they own and keep open for the duration of the call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    nix::sys::stat::fstat(fd).map_or(0, |stat| stat.st_ino)
}

/// Why no connection was accepted.
#[derive(Debug)]
pub enum AcceptError {
    /// The queue is empty.
    Empty,
    /// The connection ended while it waited (ECONNABORTED and the network errors that accept(2) passes on): try the next.
    Gone,
    /// No descriptor or no memory (EMFILE, ENFILE, ENOBUFS, ENOMEM): pause.
    Exhausted(io::Error),
    /// The listening socket is of no use any more.
    Broken(io::Error),
}

/// Accepts one connection, non-blocking; the peer is `None` on a unix socket.
pub fn accept(listener: RawFd) -> Result<(OwnedFd, Option<SocketAddr>), AcceptError> {
    let mut storage = MaybeUninit::<libc::sockaddr_storage>::uninit();
    let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: `storage` is writable for `len` bytes and both outlive the call.
    let fd = unsafe {
        libc::accept4(
            listener,
            storage.as_mut_ptr().cast(),
            &mut len,
            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        )
    };
    if fd < 0 {
        let error = io::Error::last_os_error();
        return Err(match error.raw_os_error().unwrap_or(0) {
            libc::EAGAIN => AcceptError::Empty,
            libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => AcceptError::Exhausted(error),
            libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EOPNOTSUPP | libc::EFAULT => AcceptError::Broken(error),
            _ => AcceptError::Gone,
        });
    }
    // SAFETY: accept4 returned a new descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the kernel has written a socket address of its family; it is read only as that family.
    let peer = unsafe { internet_address(storage.as_ptr()) };
    Ok((fd, peer))
}

/// # Safety
/// `storage` points at a `sockaddr_storage` whose family is initialised, and the rest as the family demands.
unsafe fn internet_address(storage: *const libc::sockaddr_storage) -> Option<SocketAddr> {
    // SAFETY: by contract; each cast matches the family just read.
    unsafe {
        match i32::from((*storage.cast::<libc::sockaddr>()).sa_family) {
            libc::AF_INET => {
                let a = &*storage.cast::<libc::sockaddr_in>();
                let ip = Ipv4Addr::from(u32::from_be(a.sin_addr.s_addr));
                Some(SocketAddr::from((ip, u16::from_be(a.sin_port))))
            }
            libc::AF_INET6 => {
                let a = &*storage.cast::<libc::sockaddr_in6>();
                let ip = Ipv6Addr::from(a.sin6_addr.s6_addr);
                Some(std::net::SocketAddrV6::new(ip, u16::from_be(a.sin6_port), 0, a.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

/// Why a connection attempt failed. The first three are the backend's fault, the rest ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConnectError {
    /// The backend's host refused the connection.
    Refused,
    /// Accepted and reset at once.
    Reset,
    /// No answer in time.
    TimedOut,
    /// No route, network down.
    Unreachable,
    /// The mode of a unix socket's file, a firewall or a `prohibit` route does not let this process through.
    Denied,
    /// No free local port or address.
    NoPorts,
    /// The client's address, which the backend shall see, cannot be used towards it.
    NotKept,
    /// No descriptor or memory.
    Exhausted,
}

impl ConnectError {
    /// The word in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            ConnectError::Refused => "refused",
            ConnectError::Reset => "reset",
            ConnectError::TimedOut => "timed_out",
            ConnectError::Unreachable => "unreachable",
            ConnectError::Denied => "permission denied (EACCES)",
            ConnectError::NoPorts => "no_ports",
            ConnectError::NotKept => "the client's address cannot be kept",
            ConnectError::Exhausted => "exhausted",
        }
    }

    fn from_errno(errno: i32) -> ConnectError {
        match errno {
            libc::ETIMEDOUT => ConnectError::TimedOut,
            libc::ECONNRESET | libc::EPIPE => ConnectError::Reset,
            libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EHOSTDOWN => ConnectError::Unreachable,
            libc::EACCES | libc::EPERM => ConnectError::Denied,
            // On a unix socket EAGAIN means that the listener's queue is full, on an internet one that no port is free.
            libc::EADDRNOTAVAIL | libc::EADDRINUSE | libc::EAGAIN => ConnectError::NoPorts,
            libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => ConnectError::Exhausted,
            _ => ConnectError::Refused,
        }
    }
}

impl From<ConnectError> for io::Error {
    fn from(error: ConnectError) -> io::Error {
        io::Error::from_raw_os_error(match error {
            ConnectError::Refused => libc::ECONNREFUSED,
            ConnectError::Reset => libc::ECONNRESET,
            ConnectError::TimedOut => libc::ETIMEDOUT,
            ConnectError::Unreachable => libc::EHOSTUNREACH,
            ConnectError::Denied => libc::EACCES,
            ConnectError::NoPorts | ConnectError::NotKept => libc::EADDRNOTAVAIL,
            ConnectError::Exhausted => libc::EMFILE,
        })
    }
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> ConnectError {
        ConnectError::from_errno(error.raw_os_error().unwrap_or(0))
    }
}

/// Starts a non-blocking connection; a writable event without an error completes it.
pub fn connect(route: &Route) -> Result<OwnedFd, ConnectError> {
    start_connection(route, false)
}

/// [`connect`] for when bytes will be written as soon as it is up: the ACK that completes the handshake waits for them, up
/// to 200 ms (TCP_QUICKACK off before the SYN puts the socket into interactive mode, tcp(7)), so they travel together.
pub fn connect_to_write(route: &Route) -> Result<OwnedFd, ConnectError> {
    start_connection(route, true)
}

fn start_connection(route: &Route, hold_ack: bool) -> Result<OwnedFd, ConnectError> {
    let started = |socket: Socket, outcome: io::Result<()>| match outcome {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket.into()),
    };
    match &route.target {
        _ if route.source == Source::Nobody => Err(ConnectError::NotKept),
        Target::Ip(address) => Ok(route.by_best_source(|route| {
            let socket = Socket::new(Domain::for_address(*address), Type::STREAM.nonblocking(), None)?;
            route.prepare(&socket, Manner::Streams)?;
            if hold_ack {
                set_int(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_QUICKACK, 0)?;
            }
            let outcome = socket.connect(&(*address).into());
            started(socket, outcome)
        })?),
        Target::Unix(path) => {
            let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
            let outcome = socket.connect(&SockAddr::unix(path).map_err(|_| ConnectError::Unreachable)?);
            Ok(started(socket, outcome)?)
        }
    }
}

/// Sends the ACK that waits, if one does (TCP_QUICKACK, tcp(7)).
pub fn acknowledge(fd: RawFd) {
    // What cannot be hurried comes in its own time.
    let _ = set_int(fd, libc::IPPROTO_TCP, libc::TCP_QUICKACK, 1);
}

/// Takes the pending error of a socket, if it has one (SO_ERROR).
pub fn take_connect_error(fd: RawFd) -> Option<ConnectError> {
    match with_socket(fd, |socket| socket.take_error()) {
        Ok(pending) => pending.map(ConnectError::from),
        Err(error) => Some(error.into()),
    }
}

/// Takes the pending error of a socket whose connection failed.
pub fn connect_error(fd: RawFd) -> ConnectError {
    take_connect_error(fd).unwrap_or(ConnectError::Refused)
}

fn with_socket<R>(fd: RawFd, f: impl FnOnce(&SockRef) -> R) -> R {
    // SAFETY: callers pass descriptors of sockets that they own and keep open for the duration of the call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    f(&SockRef::from(&fd))
}

/// What became of a read or write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// So many bytes were moved, at least 1.
    Bytes(usize),
    /// End of stream (reads only).
    Eof,
    /// Nothing can be transferred now (EAGAIN).
    Blocked,
    /// The kernel has no memory for it now (ENOBUFS, ENOMEM), or a signal came: no event will tell when to try again.
    Starved,
    /// The connection is gone.
    Failed,
}

impl Transfer {
    /// From the result of a system call that moves bytes.
    pub fn from_result(result: io::Result<usize>) -> Transfer {
        match result {
            Ok(0) => Transfer::Eof,
            Ok(n) => Transfer::Bytes(n),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => Transfer::Blocked,
                Some(libc::EINTR | libc::ENOBUFS | libc::ENOMEM) => Transfer::Starved,
                _ => Transfer::Failed,
            },
        }
    }
}

/// recv(2).
pub fn recv(fd: RawFd, buffer: &mut [u8]) -> Transfer {
    // SAFETY: `buffer` is writable for its length during the call.
    let n = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    Transfer::from_result(if n < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(n as usize)
    })
}

/// recv(2) that leaves the bytes where they are.
pub fn peek(fd: RawFd, buffer: &mut [u8]) -> Transfer {
    // SAFETY: `buffer` is writable for its length during the call.
    let n = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_PEEK) };
    Transfer::from_result(if n < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(n as usize)
    })
}

/// send(2) without SIGPIPE.
pub fn send(fd: RawFd, bytes: &[u8]) -> Transfer {
    send_with(fd, bytes, libc::MSG_NOSIGNAL)
}

/// [`send`] for the last bytes of a stream: the tail waits up to 200 ms for the FIN that the caller sends next, to leave
/// in the same segment (MSG_MORE). A write that does not take everything holds nothing back.
pub fn send_before_fin(fd: RawFd, bytes: &[u8]) -> Transfer {
    send_with(fd, bytes, libc::MSG_NOSIGNAL | libc::MSG_MORE)
}

/// [`send`] of one byte as urgent data (MSG_OOB), or as any other where the socket knows no such thing.
pub fn send_urgent(fd: RawFd, bytes: &[u8]) -> Transfer {
    debug_assert_eq!(bytes.len(), 1);
    match send_with(fd, bytes, libc::MSG_NOSIGNAL | libc::MSG_OOB) {
        Transfer::Failed => send(fd, bytes),
        sent => sent,
    }
}

/// Makes reads take urgent data at its place in the stream (SO_OOBINLINE, socket(7)); accepted sockets inherit it.
pub fn keep_urgent_inline(fd: RawFd) {
    let _ = set_int(fd, libc::SOL_SOCKET, libc::SO_OOBINLINE, 1);
}

/// Whether urgent data has arrived and was not read (POLLPRI, poll(2)). If the kernel does not say, it counts as there.
pub fn has_urgent(fd: RawFd) -> bool {
    let mut ready = libc::pollfd {
        fd,
        events: libc::POLLPRI,
        revents: 0,
    };
    // SAFETY: `ready` is one entry, as said, and outlives the call.
    let done = unsafe { libc::poll(&raw mut ready, 1, 0) };
    done < 0 || ready.revents & libc::POLLPRI != 0
}

/// Whether the next byte to be read is the urgent one (SIOCATMARK, tcp(7)).
pub fn at_urgent_mark(fd: RawFd) -> bool {
    query(fd, SIOCATMARK).is_some_and(|at| at > 0)
}

/// Bytes that can be read, at least (SIOCINQ, tcp(7)); as good as endless if the kernel does not say, so that nobody takes
/// the socket for an empty one.
pub fn unread(fd: RawFd) -> usize {
    query(fd, libc::FIONREAD).unwrap_or(usize::MAX)
}

/// asm-generic/sockios.h; not in the libc crate.
const SIOCATMARK: libc::Ioctl = 0x8905;

/// An ioctl that writes one int.
fn query(fd: RawFd, request: libc::Ioctl) -> Option<usize> {
    let mut value: libc::c_int = 0;
    // SAFETY: callers pass requests that write one int, which outlives the call.
    let done = unsafe { libc::ioctl(fd, request, &raw mut value) };
    (done >= 0).then(|| value.max(0) as usize)
}

fn send_with(fd: RawFd, bytes: &[u8], flags: i32) -> Transfer {
    // SAFETY: `bytes` is readable for its length during the call.
    let n = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) };
    Transfer::from_result(if n < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(n as usize)
    })
}

/// Sends FIN. A socket whose peer is gone already is fine.
pub fn shut_write(fd: RawFd) {
    // SAFETY: shutdown touches no memory.
    unsafe { libc::shutdown(fd, libc::SHUT_WR) };
}

/// Turns off Nagle's algorithm.
pub fn set_nodelay(fd: RawFd) {
    let _ = set_int(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
}

/// The kernel tells that there is something to read when there are so many bytes (SO_RCVLOWAT; socket(7)), the stream has ended or its
/// buffer is full. What it refuses changes only what reading costs.
pub fn wake_at(fd: RawFd, bytes: usize) {
    let _ = set_int(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT, bytes as libc::c_int);
}

/// What the kernel asks a silent peer: after how many seconds, how often, and how many times (SO_KEEPALIVE, TCP_KEEPIDLE,
/// TCP_KEEPINTVL, TCP_KEEPCNT; tcp(7)). Accepted sockets inherit it.
pub fn set_keepalive(fd: RawFd, wanted: Option<[u32; 3]>) -> io::Result<()> {
    let options = [libc::TCP_KEEPIDLE, libc::TCP_KEEPINTVL, libc::TCP_KEEPCNT];
    for (option, value) in options.into_iter().zip(wanted.into_iter().flatten()) {
        set_int(fd, libc::IPPROTO_TCP, option, value.try_into().unwrap_or(i32::MAX))?;
    }
    set_int(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, i32::from(wanted.is_some()))
}

/// Makes the coming close send RST (SO_LINGER with zero time, socket(7)); unsent bytes are dropped.
pub fn reset_on_close(fd: RawFd) {
    let _ = with_socket(fd, |socket| socket.set_linger(Some(Duration::ZERO)));
}

/// How long a connection that was just accepted has waited since its client was last heard of, milliseconds (TCP_INFO,
/// tcp(7)). 0 for sockets that do not tell.
pub fn waited_ms(fd: RawFd) -> u64 {
    tcp_info(fd).map_or(0, |info| u64::from(info.tcpi_last_ack_recv))
}

/// Since when the peer was not heard of, milliseconds, and how many segments in a row it has not answered (TCP_INFO).
pub fn silence(fd: RawFd) -> Option<(u64, u8)> {
    let info = tcp_info(fd)?;
    Some((
        u64::from(info.tcpi_last_ack_recv),
        info.tcpi_retransmits.max(info.tcpi_probes),
    ))
}

fn tcp_info(fd: RawFd) -> Option<libc::tcp_info> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: `info` is writable for `len` bytes and both outlive the call.
    let done = unsafe {
        libc::getsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    // SAFETY: tcp_info is made of integers, for which any bytes, and the zeroes that a short answer leaves, are valid.
    (done >= 0).then(|| unsafe { info.assume_init() })
}

/// Bytes written and not yet acknowledged by the peer (SIOCOUTQ, tcp(7)).
pub fn unacknowledged(fd: RawFd) -> usize {
    query(fd, libc::TIOCOUTQ).unwrap_or(0)
}

/// Closes both descriptors, in one call when their numbers are neighbours (they usually are: one was opened right after
/// the other).
pub fn close_two(a: OwnedFd, b: OwnedFd) {
    let (low, high) = if a.as_raw_fd() < b.as_raw_fd() { (a, b) } else { (b, a) };
    if low.as_raw_fd() + 1 != high.as_raw_fd() {
        return;
    }
    let (low, high) = (low.into_raw_fd(), high.into_raw_fd());
    // SAFETY: the range holds exactly the two descriptors whose ownership was just given up.
    let done = unsafe { libc::syscall(libc::SYS_close_range, low, high, 0) };
    if done < 0 {
        // SAFETY: nothing was closed, so both are still ours (close_range is missing before Linux 5.9).
        drop(unsafe { (OwnedFd::from_raw_fd(low), OwnedFd::from_raw_fd(high)) });
    }
}
