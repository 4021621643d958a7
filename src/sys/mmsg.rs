//! Datagrams in batches: recvmmsg(2), sendmmsg(2), with packet information, GRO and GSO.
//!
//! # How it works
//!
//! A worker has one [`Inbox`] and one [`Outbox`] for all of its sockets. The inbox is an arena of slots, each of which holds
//! the largest datagram there is (or the largest GRO batch: also 64 KiB, anything smaller cuts tails off). Untouched
//! pages cost nothing: the arena comes from calloc. A turn fills slots from any number of sockets, decides, hands slices of
//! slots to the outbox in whatever grouping it likes, and clears the inbox. Payload is copied twice: out of and into the
//! kernel.
//!
//! Slots are not 64 KiB apart but a little more: small datagrams lie at the start of each slot, and equal distances of a
//! power of two would put them all into the same few sets of the cache.
//!
//! nix has these calls too, but sends the same control messages with every datagram of a batch; replies to many clients
//! leave from many addresses.
//!
//! # Invariants
//!
//! * The pointers in the C structures are written right before each call and never read after it: nothing here refers to
//!   itself, everything may move.
//! * A slot is exposed only up to the length that the kernel reported for it.

use std::io;
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::ops::Range;
use std::os::fd::RawFd;
use std::ptr::null_mut;

use super::udp::{Control, Sent};

/// Bytes of the largest datagram or GRO batch.
pub const DATAGRAM_MAX: usize = 65_535;

/// Datagrams of one segmented send at most (UDP_MAX_SEGMENTS was 64 until Linux 6.9).
pub const SEGMENTS_MAX: usize = 64;

/// Bytes of one segmented send at most: what an IPv4 packet can carry.
pub const SEGMENTED_MAX: usize = 65_507;

/// 64 KiB and five cache lines.
const STRIDE: usize = 65_536 + 5 * 64;

/// An address of either family, as small as it can be.
#[repr(C)]
#[derive(Clone, Copy)]
union Name {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Name {
    fn new(address: SocketAddr) -> (Name, libc::socklen_t) {
        match address {
            SocketAddr::V4(a) => {
                let v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: a.port().to_be(),
                    sin_addr: in_addr(*a.ip()),
                    sin_zero: [0; 8],
                };
                (Name { v4 }, size_of::<libc::sockaddr_in>() as libc::socklen_t)
            }
            SocketAddr::V6(a) => {
                let v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: a.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: in6_addr(*a.ip()),
                    sin6_scope_id: a.scope_id(),
                };
                (Name { v6 }, size_of::<libc::sockaddr_in6>() as libc::socklen_t)
            }
        }
    }

    /// # Safety
    /// The first `len` bytes were initialised, by the kernel or by zeroing.
    unsafe fn get(&self, len: libc::socklen_t) -> Option<SocketAddr> {
        // SAFETY: by contract; both variants begin with the family, and each is read only if its family says so.
        unsafe {
            match i32::from(self.v4.sin_family) {
                libc::AF_INET if len as usize >= size_of::<libc::sockaddr_in>() => {
                    let ip = Ipv4Addr::from(u32::from_be(self.v4.sin_addr.s_addr));
                    Some(SocketAddr::from((ip, u16::from_be(self.v4.sin_port))))
                }
                libc::AF_INET6 if len as usize >= size_of::<libc::sockaddr_in6>() => {
                    let a = &self.v6;
                    let ip = Ipv6Addr::from(a.sin6_addr.s6_addr);
                    Some(SocketAddrV6::new(ip, u16::from_be(a.sin6_port), 0, a.sin6_scope_id).into())
                }
                _ => None,
            }
        }
    }
}

fn in_addr(ip: Ipv4Addr) -> libc::in_addr {
    libc::in_addr {
        s_addr: u32::from(ip).to_be(),
    }
}

fn in6_addr(ip: Ipv6Addr) -> libc::in6_addr {
    libc::in6_addr { s6_addr: ip.octets() }
}

/// What came with the bytes of a slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Meta {
    /// Sender, if it was asked for.
    pub from: Option<SocketAddr>,
    /// The local address it was sent to, on a wildcard socket. For a broadcast the address that answers it.
    pub to: Option<IpAddr>,
    /// Bytes that the slot holds.
    pub len: usize,
    /// The slot holds several datagrams of this many bytes each, the last one possibly shorter; 0 = one datagram.
    pub segment: usize,
    /// Datagrams that the kernel has dropped at this socket for lack of buffer, since it exists, modulo 2^32.
    pub drops: Option<u32>,
}

impl Meta {
    /// Datagrams in the slot.
    pub fn datagrams(&self) -> usize {
        if self.segment == 0 {
            1
        } else {
            self.len.div_ceil(self.segment)
        }
    }
}

/// What a receive is asked for beside the bytes.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    /// The sender's address; pointless on a connected socket.
    pub from: bool,
    /// Control messages: local address, segment size, drops. Pointless on a socket that has switched none of them on.
    pub control: bool,
}

/// What a receive brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// The slots that were filled, in order.
    pub slots: Range<usize>,
    /// The socket had no more.
    pub drained: bool,
}

/// Slots for datagrams that are received in batches.
pub struct Inbox {
    arena: Vec<u8>,
    metas: Vec<Meta>,
    headers: Vec<libc::mmsghdr>,
    parts: Vec<libc::iovec>,
    names: Vec<Name>,
    controls: Vec<Control>,
    filled: usize,
}

// SAFETY: the raw pointers in headers and parts are written right before each call and never read after it (see the
// module), so between calls they mean nothing, in whatever thread.
unsafe impl Send for Inbox {}

impl Inbox {
    /// Room for `slots` datagrams or GRO batches.
    pub fn new(slots: usize) -> Self {
        // SAFETY: mmsghdr, iovec and the name union are plain C data for which all zero bytes are a value.
        let (header, name) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        Self {
            arena: vec![0; slots * STRIDE],
            metas: vec![Meta::default(); slots],
            headers: vec![header; slots],
            parts: vec![
                libc::iovec {
                    iov_base: null_mut(),
                    iov_len: 0
                };
                slots
            ],
            names: vec![name; slots],
            controls: vec![Control::zeroed(); slots],
            filled: 0,
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.filled = 0;
    }

    /// How many slots are free.
    pub fn room(&self) -> usize {
        self.metas.len() - self.filled
    }

    /// How many slots are filled.
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether no slot is filled.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// What came with a filled slot.
    pub fn meta(&self, slot: usize) -> &Meta {
        &self.metas[..self.filled][slot]
    }

    /// The bytes of a filled slot.
    pub fn bytes(&self, slot: usize) -> &[u8] {
        let start = slot * STRIDE;
        &self.arena[start..start + self.meta(slot).len]
    }

    /// Some of the bytes of a filled slot.
    pub fn bytes_of(&self, part: Part) -> &[u8] {
        &self.bytes(part.slot as usize)[part.start as usize..][..part.len as usize]
    }

    /// One of the datagrams in a filled slot.
    pub fn datagram(&self, slot: usize, nth: usize) -> &[u8] {
        let (bytes, segment) = (self.bytes(slot), self.meta(slot).segment);
        match segment {
            0 => bytes,
            size => &bytes[nth * size..bytes.len().min((nth + 1) * size)],
        }
    }

    /// Receives at most `max` datagrams or batches into free slots, never waiting. An error is one of the socket (that of
    /// an ICMP message on a connected one); an empty socket is an empty range.
    pub fn receive(&mut self, fd: RawFd, ask: Ask, max: usize) -> io::Result<Received> {
        let first = self.filled;
        let wanted = max.min(self.room());
        if wanted == 0 {
            return Ok(Received {
                slots: first..first,
                drained: false,
            });
        }
        if wanted == 1 && !ask.from && !ask.control {
            return self.receive_one(fd);
        }
        let arena = self.arena.as_mut_ptr();
        for slot in first..first + wanted {
            self.parts[slot] = libc::iovec {
                // SAFETY: every slot lies within the arena.
                iov_base: unsafe { arena.add(slot * STRIDE) }.cast(),
                iov_len: DATAGRAM_MAX,
            };
            let header = &mut self.headers[slot].msg_hdr;
            (header.msg_name, header.msg_namelen) = match ask.from {
                true => ((&raw mut self.names[slot]).cast(), size_of::<Name>() as libc::socklen_t),
                false => (null_mut(), 0),
            };
            (header.msg_control, header.msg_controllen) = match ask.control {
                true => ((&raw mut self.controls[slot]).cast(), size_of::<Control>()),
                false => (null_mut(), 0),
            };
            header.msg_iov = &raw mut self.parts[slot];
            header.msg_iovlen = 1;
            header.msg_flags = 0;
        }
        let headers = self.headers[first..first + wanted].as_mut_ptr();
        // SAFETY: `wanted` headers whose names, control buffers and slots are writable for the lengths given and outlive the
        // calls; the timeout may be null.
        let call =
            || unsafe { libc::recvmmsg(fd, headers, wanted as u32, libc::MSG_DONTWAIT as _, null_mut()) as isize };
        let got = unless_empty(call)?.unwrap_or(0);
        for slot in first..first + got {
            let (header, len) = (&self.headers[slot].msg_hdr, self.headers[slot].msg_len as usize);
            // SAFETY: the kernel wrote `msg_namelen` bytes of name, the rest was zero or an older name.
            let from = ask
                .from
                .then(|| unsafe { self.names[slot].get(header.msg_namelen) })
                .flatten();
            let mut meta = Meta {
                from,
                len,
                ..Meta::default()
            };
            if header.msg_controllen > 0 {
                read_control(header, &mut meta);
            }
            self.metas[slot] = meta;
        }
        self.filled += got;
        Ok(Received {
            slots: first..first + got,
            drained: got < wanted,
        })
    }

    /// One datagram without anything beside it: most sessions' answers, for which recv(2) has less to prepare.
    fn receive_one(&mut self, fd: RawFd) -> io::Result<Received> {
        let slot = self.filled;
        let bytes = &mut self.arena[slot * STRIDE..][..DATAGRAM_MAX];
        // SAFETY: the slot is writable for as many bytes as are told, and outlives the calls.
        let call = || unsafe { libc::recv(fd, bytes.as_mut_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT) };
        let len = unless_empty(call)?;
        if let Some(len) = len {
            self.metas[slot] = Meta { len, ..Meta::default() };
            self.filled += 1;
        }
        Ok(Received {
            slots: slot..self.filled,
            drained: len.is_none(),
        })
    }
}

/// What a receive returned, `None` from an empty socket; tried again when a signal came.
fn unless_empty(mut call: impl FnMut() -> isize) -> io::Result<Option<usize>> {
    loop {
        if let Ok(n) = usize::try_from(call()) {
            return Ok(Some(n));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN) => return Ok(None),
            _ => return Err(error),
        }
    }
}

fn read_control(header: &libc::msghdr, meta: &mut Meta) {
    // SAFETY: the kernel has filled the control buffer for `msg_controllen` bytes; CMSG_* stay within that, and each payload
    // is read, unaligned, as the type that its level and type promise.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(header);
        while let Some(message) = at.as_ref() {
            let data = libc::CMSG_DATA(at);
            match (message.cmsg_level, message.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    // The address that a reply has to leave from: the destination, or for a broadcast the address of
                    // the interface it came in on (ip(7)).
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    meta.to = Some(Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    meta.to = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                }
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    meta.segment = data.cast::<libc::c_int>().read_unaligned().max(0) as usize;
                }
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => meta.drops = Some(data.cast::<u32>().read_unaligned()),
                _ => {}
            }
            at = libc::CMSG_NXTHDR(header, at);
        }
    }
}

/// Bytes of a filled slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Index of the slot.
    pub slot: u32,
    /// Offset of the first byte within the slot.
    pub start: u32,
    /// How many bytes it is long.
    pub len: u32,
}

/// One send: a datagram, or with `segment` many of them at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its bytes: a range of the parts given to [`Outbox::send`], in order.
    pub parts: Range<usize>,
    /// Where to; `None` on a connected socket.
    pub to: Option<SocketAddr>,
    /// Where from, on a wildcard socket.
    pub from: Option<IpAddr>,
    /// Cut the bytes into datagrams of this many bytes, the last one possibly shorter; 0 = one datagram.
    pub segment: usize,
}

/// Headers of datagrams that are sent in batches, reused from call to call.
#[derive(Default)]
pub struct Outbox {
    headers: Vec<libc::mmsghdr>,
    parts: Vec<libc::iovec>,
    names: Vec<Name>,
    controls: Vec<Control>,
}

// SAFETY: as for `Inbox`.
unsafe impl Send for Outbox {}

impl Outbox {
    /// Buffers grow to the largest batch and stay.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends messages in order until all are gone or one fails; never waits. Returns how many are gone and what became of
    /// the one after them.
    pub fn send(&mut self, fd: RawFd, inbox: &Inbox, parts: &[Part], messages: &[Message]) -> (usize, Sent) {
        self.prepare(inbox, parts, messages);
        let mut gone = 0;
        while gone < messages.len() {
            let rest = &mut self.headers[gone..messages.len()];
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            // SAFETY: `prepare` made each header point at names, parts and control buffers of this outbox and at filled slots
            // of the inbox, which are all borrowed until after the call. The kernel only reads through them.
            let n = unsafe { libc::sendmmsg(fd, rest.as_mut_ptr(), rest.len() as u32, flags as _) };
            if n > 0 {
                gone += n as usize;
                continue;
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return (gone, Sent::from_error(&error, messages[gone].segment > 0));
            }
        }
        (gone, Sent::Gone)
    }

    fn prepare(&mut self, inbox: &Inbox, parts: &[Part], messages: &[Message]) {
        self.parts.clear();
        self.parts.extend(parts.iter().map(|part| {
            let bytes = inbox.bytes_of(*part);
            libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            }
        }));
        // SAFETY: mmsghdr and the name union are plain C data for which all zero bytes are a value.
        let (header, name) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        if self.headers.len() < messages.len() {
            self.headers.resize(messages.len(), header);
            self.names.resize(messages.len(), name);
            self.controls.resize(messages.len(), Control::zeroed());
        }
        for (ix, message) in messages.iter().enumerate() {
            let header = &mut self.headers[ix].msg_hdr;
            (header.msg_name, header.msg_namelen) = match message.to {
                Some(address) => {
                    let (name, len) = Name::new(address);
                    self.names[ix] = name;
                    ((&raw mut self.names[ix]).cast(), len)
                }
                None => (null_mut(), 0),
            };
            let used = write_control(&mut self.controls[ix], message);
            (header.msg_control, header.msg_controllen) = match used {
                0 => (null_mut(), 0),
                used => ((&raw mut self.controls[ix]).cast(), used),
            };
            let parts = &mut self.parts[message.parts.clone()];
            header.msg_iov = parts.as_mut_ptr();
            header.msg_iovlen = parts.len();
            header.msg_flags = 0;
        }
    }
}

/// Control messages of a send; returns the bytes used.
fn write_control(control: &mut Control, message: &Message) -> usize {
    let mut used = 0;
    match message.from {
        Some(IpAddr::V4(ip)) => {
            // Interface 0 leaves the route to the routing table; only the source address is ours to say.
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: in_addr(ip),
                ipi_addr: in_addr(ip),
            };
            used += put(control, used, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
        }
        Some(IpAddr::V6(ip)) => {
            let info = libc::in6_pktinfo {
                ipi6_addr: in6_addr(ip),
                ipi6_ifindex: 0,
            };
            used += put(control, used, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
        }
        None => {}
    }
    if message.segment > 0 {
        used += put(control, used, libc::SOL_UDP, libc::UDP_SEGMENT, message.segment as u16);
    }
    used
}

fn put<T: Copy>(control: &mut Control, at: usize, level: i32, kind: i32, value: T) -> usize {
    let size = size_of::<T>() as u32;
    // SAFETY: CMSG_SPACE and CMSG_LEN only compute.
    let (space, len) = unsafe { (libc::CMSG_SPACE(size) as usize, libc::CMSG_LEN(size) as usize) };
    assert!(
        at + space <= size_of::<Control>(),
        "control messages of one datagram fit their buffer"
    );
    // SAFETY: `at` is a sum of CMSG_SPACEs, hence aligned for a header in an aligned buffer, and header and value end
    // before `at + space`, which was checked.
    unsafe {
        let header = control.0.as_mut_ptr().add(at).cast::<libc::cmsghdr>();
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        (*header).cmsg_len = len;
        libc::CMSG_DATA(header).cast::<T>().write_unaligned(value);
    }
    space
}
