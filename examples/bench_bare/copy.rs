//! Reads and writes. A short connection is eleven system calls, a request four, and a share of those that bring events and arrivals.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use socket2::{SockAddr, Socket, Type};

use crate::poller::{Poller, STREAM};
use crate::{check, listening};

/// Who is behind a descriptor.
#[derive(Clone, Copy)]
struct End {
    other: RawFd,
    /// A connection to the target that is not complete.
    connecting: bool,
}

pub fn run(listen: SocketAddr, target: SocketAddr, hold_ack: bool) -> io::Result<()> {
    let mut poller = Poller::new()?;
    let listener = listening(listen)?;
    let door = listener.as_raw_fd();
    poller.add(door, libc::EPOLLIN, door as usize)?;
    // By descriptor, which is the token as well: an event of one that has been closed meanwhile finds nobody, or nothing to read.
    let mut ends: Vec<Option<End>> = Vec::new();
    let mut buffer = vec![0; 32 << 10];
    let target = target.into();
    let mut ready = Vec::new();
    loop {
        ready.extend(poller.wait(None));
        for (token, flags) in ready.drain(..) {
            let fd = token as RawFd;
            if fd == door {
                while let Some(client) = accept(door) {
                    let backend = connect(&target, hold_ack)?;
                    for (fd, other, connecting) in [(client, backend, false), (backend, client, true)] {
                        poller.add(fd, STREAM, fd as usize)?;
                        ends.resize(ends.len().max(fd as usize + 1), None);
                        ends[fd as usize] = Some(End { other, connecting });
                    }
                }
                continue;
            }
            let Some(End { other, connecting }) = ends[token] else {
                continue;
            };
            let over = if connecting {
                let failed = flags & (libc::EPOLLERR | libc::EPOLLHUP) != 0;
                ends[token] = Some(End {
                    other,
                    connecting: false,
                });
                // What the client has said until now, and whatever the target said at once.
                failed || relay(other, fd, 0, &mut buffer) || relay(fd, other, flags, &mut buffer)
            } else if ends[other as usize].is_some_and(|other| other.connecting) {
                false
            } else {
                relay(fd, other, flags, &mut buffer)
            };
            if over {
                ends[token] = None;
                ends[other as usize] = None;
                close(fd, other);
            }
        }
    }
}

fn accept(door: RawFd) -> Option<RawFd> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no address is asked for.
    let fd = unsafe { libc::accept4(door, std::ptr::null_mut(), std::ptr::null_mut(), flags) };
    (fd >= 0).then_some(fd)
}

/// A connection that is on its way.
fn connect(target: &SockAddr, hold_ack: bool) -> io::Result<RawFd> {
    let socket = backend(target, hold_ack)?;
    match socket.connect(target) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket.into_raw_fd()),
    }
}

/// A socket that is to be connected.
pub fn backend(target: &SockAddr, hold_ack: bool) -> io::Result<Socket> {
    let socket = Socket::new(target.domain(), Type::STREAM.nonblocking(), None)?;
    if hold_ack {
        socket.set_tcp_quickack(false)?;
    }
    Ok(socket)
}

/// Moves what there is; true at the end. What comes together with the end leaves together with it.
fn relay(from: RawFd, to: RawFd, flags: i32, buffer: &mut [u8]) -> bool {
    let ends = flags & libc::EPOLLRDHUP != 0;
    loop {
        // SAFETY: the buffer is as long as is said.
        let got = check(unsafe { libc::recv(from, buffer.as_mut_ptr().cast(), buffer.len(), 0) });
        match got {
            Ok(0) => return true,
            Ok(bytes) => {
                let last = ends && bytes < buffer.len();
                let more = if last { libc::MSG_MORE } else { 0 };
                if send_all(to, &buffer[..bytes], more).is_err() || last {
                    return true;
                }
                if bytes < buffer.len() {
                    return false;
                }
            }
            Err(error) => return error.kind() != ErrorKind::WouldBlock,
        }
    }
}

/// Sends all of it, waiting on the spot for room.
fn send_all(to: RawFd, mut bytes: &[u8], flags: i32) -> io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the bytes are as many as is said.
        let sent = unsafe { libc::send(to, bytes.as_ptr().cast(), bytes.len(), flags | libc::MSG_NOSIGNAL) };
        match check(sent) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Closes both.
pub fn close(a: RawFd, b: RawFd) {
    // SAFETY: both are open and nobody else's.
    let [a, b] = [a, b].map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    weir::sys::socket::close_two(a, b);
}
