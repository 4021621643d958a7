//! UDP sockets: listening ones, connected ones towards backends, single datagrams, the error queue.
//!
//! Batches are in [`mmsg`](super::mmsg).

use std::io;
use std::mem::size_of;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use socket2::{Domain, SockRef, Socket, Type};

use super::option::{get_int, set_freebind, set_int};
use super::route::{Manner, Route, Target};
use super::socket::Place;

/// Receive and send buffer of a listening socket, bytes: a few thousand clients may speak at the same moment.
pub const LISTEN_BUFFER: usize = 8 << 20;

/// A bound UDP socket of a listener.
#[derive(Debug)]
pub struct Listening {
    /// The socket, non-blocking.
    pub fd: OwnedFd,
    /// Bound to the wildcard: each datagram says which address it was sent to, each reply says which it leaves from.
    pub wildcard: bool,
    /// Receive buffer in force, bytes as the kernel counts them (about half of it is bookkeeping).
    pub receive_buffer: usize,
    /// Whether the kernel merges datagrams of one flow (UDP_GRO).
    pub gro: bool,
}

/// A UDP socket that shares its port (SO_REUSEPORT) with the other workers' ones. The kernel's hash over both endpoints
/// keeps a flow on its socket. `buffer` bytes are asked for in each direction, by SO_RCVBUFFORCE where that is allowed
/// (CAP_NET_ADMIN), else up to net.core.rmem_max.
pub fn listen(place: Place, buffer: usize) -> io::Result<Listening> {
    let socket = place.socket(Type::DGRAM)?;
    // Before anything can arrive: a datagram says where it was sent to only if that was asked for by then.
    let listening = prepare(socket.into(), place.address, buffer)?;
    SockRef::from(&listening.fd).bind(&place.address.into())?;
    Ok(listening)
}

/// Sets up a UDP socket that is, or will be, bound to `address`, also one that another process has made.
pub fn prepare(fd: OwnedFd, address: SocketAddr, buffer: usize) -> io::Result<Listening> {
    let raw = fd.as_raw_fd();
    let wildcard = address.ip().is_unspecified();
    if wildcard {
        match address {
            SocketAddr::V4(_) => set_int(raw, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?,
            SocketAddr::V6(_) => {
                set_int(raw, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
                // A client that came to an address which has been withdrawn since is answered from it.
                set_freebind(raw, true)?;
            }
        }
    }
    set_int(raw, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1)?;
    let receive_buffer = raise_buffer(raw, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, buffer)?;
    raise_buffer(raw, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, buffer)?;
    Ok(Listening {
        fd,
        wildcard,
        receive_buffer,
        gro: enable_gro(raw),
    })
}

/// Raises a buffer, never lowers it: what was forced while that was allowed stays. Returns the size in force.
fn raise_buffer(fd: RawFd, force: i32, polite: i32, bytes: usize) -> io::Result<usize> {
    let in_force = || get_int(fd, libc::SOL_SOCKET, polite).map(|bytes| bytes.max(0) as usize);
    // The kernel doubles what it is asked for (socket(7)).
    if in_force()? < 2 * bytes {
        let wanted = i32::try_from(bytes).unwrap_or(i32::MAX / 2);
        if set_int(fd, libc::SOL_SOCKET, force, wanted).is_err() {
            set_int(fd, libc::SOL_SOCKET, polite, wanted)?;
        }
    }
    in_force()
}

/// Buffers of a session that carries bulk.
pub fn grow_buffers(fd: RawFd, bytes: usize) {
    // What is refused is not needed.
    let _ = raise_buffer(fd, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, bytes);
    let _ = raise_buffer(fd, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, bytes);
}

/// Sets a session's socket up for bulk: merged datagrams, and the count of dropped ones; false where the kernel cannot
/// merge.
pub fn enable_bulk(fd: RawFd) -> bool {
    let _ = set_int(fd, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1);
    enable_gro(fd)
}

/// Lets the kernel merge datagrams of one flow into one read; false where it cannot.
pub fn enable_gro(fd: RawFd) -> bool {
    set_int(fd, libc::SOL_UDP, libc::UDP_GRO, 1).is_ok()
}

/// Datagrams that the kernel has dropped at a socket for lack of buffer, since the socket exists (SO_MEMINFO); what SO_RXQ_OVFL
/// says with each datagram, but as of now. 0 where the kernel does not tell.
pub fn dropped(fd: RawFd) -> u32 {
    // SK_MEMINFO_DROPS of linux/sock_diag.h is the last of these words.
    const DROPS: usize = 8;
    let mut words = [0u32; DROPS + 1];
    let mut len = std::mem::size_of_val(&words) as libc::socklen_t;
    // SAFETY: `words` is writable for `len` bytes and both outlive the call.
    let done = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            words.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if done < 0 { 0 } else { words[DROPS] }
}

/// A socket connected to a backend, so that it hears that backend alone, with the error queue switched on.
///
/// Errors worth telling apart: EMFILE and ENFILE (no descriptor), EAGAIN (no free local port: inet_autobind says so),
/// ENETUNREACH and EADDRNOTAVAIL (our own network).
pub fn connect(route: &Route) -> io::Result<OwnedFd> {
    let Target::Ip(to) = route.target else {
        return Err(io::Error::from_raw_os_error(libc::EHOSTUNREACH));
    };
    route.by_best_source(|route| {
        let socket = Socket::new(Domain::for_address(to), Type::DGRAM.nonblocking(), None)?;
        let raw = socket.as_raw_fd();
        match to {
            SocketAddr::V4(_) => set_int(raw, libc::IPPROTO_IP, libc::IP_RECVERR, 1)?,
            SocketAddr::V6(_) => set_int(raw, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?,
        }
        route.prepare(&socket, Manner::Datagrams)?;
        socket.connect(&to.into())?;
        Ok(socket.into())
    })
}

/// Whether another socket may have the address and port that this one keeps of a client: one that will take its place.
pub fn share_address(fd: RawFd, yes: bool) {
    // If it cannot, the other one gets another port.
    let _ = set_int(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, i32::from(yes));
}

/// What became of a datagram handed to the kernel. A connected socket reports the ICMP error of an *earlier* datagram
/// instead of sending, with the same codes as its own troubles, and once: anything but `Gone` and `Full` deserves one more
/// try after the error queue has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// On its way.
    Gone,
    /// The send buffer is full; dropped.
    Full,
    /// Not sent: larger than the protocol or an interface without fragmentation can carry.
    TooBig,
    /// Not sent: the kernel or the device cannot segment at all (EIO: no checksum offload).
    NoSegmentation,
    /// Not sent: segments of this size do not fit the path (EINVAL).
    SegmentTooBig,
    /// Not sent: an earlier datagram's error, no route, interface down, filtered, or the local address is no longer ours (a
    /// VIP has moved away).
    Unreachable,
}

impl Sent {
    /// Names the error of a send. `segmented`: it asked for UDP_SEGMENT.
    pub fn from_error(error: &io::Error, segmented: bool) -> Sent {
        match error.raw_os_error().unwrap_or(0) {
            libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM => Sent::Full,
            libc::EIO if segmented => Sent::NoSegmentation,
            libc::EINVAL | libc::EMSGSIZE if segmented => Sent::SegmentTooBig,
            libc::EMSGSIZE => Sent::TooBig,
            _ => Sent::Unreachable,
        }
    }
}

/// Sends one datagram on a connected socket.
pub fn send(fd: RawFd, bytes: &[u8]) -> Sent {
    loop {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: `bytes` is readable for its length during the call.
        let n = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) };
        if n >= 0 {
            return Sent::Gone;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Sent::from_error(&error, false);
        }
    }
}

/// What an ICMP error says of the place it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Nobody listens there (port or protocol unreachable).
    Closed,
    /// Host or network cannot be reached, or forbids it, or the hop limit ran out.
    Unreachable,
    /// Nothing about its health: packet too big (the kernel has noted the path MTU), parameter problem, or a local error.
    Other,
}

impl Trouble {
    /// RFC 792 and RFC 1812 5.2.7.1 for IPv4, RFC 4443 section 3 for IPv6.
    pub fn of(origin: u8, kind: u8, code: u8) -> Trouble {
        match (origin, kind, code) {
            (libc::SO_EE_ORIGIN_ICMP, 3, 2 | 3) => Trouble::Closed,
            (libc::SO_EE_ORIGIN_ICMP, 3, 4) => Trouble::Other,
            (libc::SO_EE_ORIGIN_ICMP, 3 | 11, _) => Trouble::Unreachable,
            (libc::SO_EE_ORIGIN_ICMP6, 1, 4) | (libc::SO_EE_ORIGIN_ICMP6, 4, 1) => Trouble::Closed,
            (libc::SO_EE_ORIGIN_ICMP6, 1 | 3, _) => Trouble::Unreachable,
            _ => Trouble::Other,
        }
    }
}

/// One entry of a socket's error queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketError {
    /// What it says.
    pub trouble: Trouble,
    /// How many bytes of the datagram it quotes; they are at the start of the buffer. Linux quotes up to 528 bytes over IPv4
    /// and 1,184 over IPv6, some systems none at all.
    pub quoted: usize,
}

/// Takes one entry from a socket's error queue, if there is one. The error that the next send or receive would report goes
/// with the last entry.
pub fn take_error(fd: RawFd, buffer: &mut [u8]) -> Option<SocketError> {
    let mut control = Control::zeroed();
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all fields of a msghdr may be zero.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = size_of::<Control>();
    // SAFETY: header, iovec, buffer and control buffer are writable for the lengths given, and outlive the call.
    let n = unsafe { libc::recvmsg(fd, &raw mut header, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) };
    if n < 0 {
        return None;
    }
    let mut trouble = Trouble::Other;
    // SAFETY: the kernel has filled in header and control buffer; CMSG_* stay within msg_controllen.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(&raw const header);
        while let Some(message) = at.as_ref() {
            let ours = (message.cmsg_level == libc::IPPROTO_IP && message.cmsg_type == libc::IP_RECVERR)
                || (message.cmsg_level == libc::IPPROTO_IPV6 && message.cmsg_type == libc::IPV6_RECVERR);
            if ours {
                let error = libc::CMSG_DATA(at).cast::<libc::sock_extended_err>().read_unaligned();
                trouble = Trouble::of(error.ee_origin, error.ee_type, error.ee_code);
            }
            at = libc::CMSG_NXTHDR(&raw const header, at);
        }
    }
    Some(SocketError {
        trouble,
        quoted: n as usize,
    })
}

/// Room for the control messages of one datagram: at most packet information, segment size, drop count, or one extended
/// error with an address.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(super) struct Control(pub [u8; 128]);

impl Control {
    pub const fn zeroed() -> Control {
        Control([0; 128])
    }
}
