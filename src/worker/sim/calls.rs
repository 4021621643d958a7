//! The calls of [`crate::sys`] over the fake kernel, under the same names.

use std::time::Instant;

use super::kernel::with;

pub fn now() -> Instant {
    with(|kernel| kernel.now)
}

pub mod socket {
    use std::io;
    use std::net::SocketAddr;
    use std::os::fd::{AsRawFd, OwnedFd, RawFd};

    use crate::sys::route::{Route, Target};
    pub use crate::sys::socket::{AcceptError, ConnectError, Transfer, identity};
    use crate::worker::sim::kernel::{File, Kernel, with};
    use crate::worker::sim::stream::Stream;

    pub fn local_address(fd: &OwnedFd) -> io::Result<SocketAddr> {
        let address = with(|kernel| kernel.stream(fd.as_raw_fd()).map(|stream| stream.local));
        address.ok_or_else(|| io::Error::other("not an internet socket"))
    }

    pub fn accept(listener: RawFd) -> Result<(OwnedFd, Option<SocketAddr>), AcceptError> {
        with(|kernel| {
            if kernel.fails("accept4: EMFILE", 40) {
                return Err(AcceptError::Exhausted(io::Error::from_raw_os_error(libc::EMFILE)));
            }
            if kernel.fails("accept4: ECONNABORTED", 40) {
                return Err(AcceptError::Gone);
            }
            let queue = kernel.queue(listener).expect("a listening socket");
            let inline = queue.inline;
            let mut stream = queue.waiting.pop_front().ok_or(AcceptError::Empty)?;
            stream.inline |= inline;
            let peer = stream.peer;
            Ok((kernel.open(File::Stream(stream)), Some(peer)))
        })
    }

    pub fn connect(route: &Route) -> Result<OwnedFd, ConnectError> {
        with(|kernel| {
            if kernel.fails("socket: EMFILE", 60) {
                return Err(ConnectError::Exhausted);
            }
            if kernel.fails("connect: EADDRNOTAVAIL", 60) {
                return Err(ConnectError::NoPorts);
            }
            let Target::Ip(to) = route.target else {
                return Err(ConnectError::Unreachable);
            };
            let who = kernel.number() as u32;
            let Kernel { reach, rng, .. } = kernel;
            let stream = reach(rng, to, who)?;
            Ok(kernel.open(File::Stream(stream)))
        })
    }

    pub fn connect_to_write(route: &Route) -> Result<OwnedFd, ConnectError> {
        connect(route)
    }

    pub fn acknowledge(_: RawFd) {}

    pub fn take_connect_error(fd: RawFd) -> Option<ConnectError> {
        with(|kernel| kernel.stream(fd).and_then(Stream::take_error))
    }

    pub fn connect_error(fd: RawFd) -> ConnectError {
        take_connect_error(fd).unwrap_or(ConnectError::Refused)
    }

    /// A call that moves bytes: what may come between is told by its name.
    pub fn moving(fd: RawFd, call: &'static str, f: impl FnOnce(&mut Stream) -> Result<usize, i32>) -> Transfer {
        let result = with(|kernel| {
            if kernel.fails("ENOBUFS", 60) {
                return Err(libc::ENOBUFS);
            }
            let again = kernel.fails("EAGAIN", 12);
            let reset = kernel.fails("ECONNRESET", 2_000);
            let stream = kernel
                .stream(fd)
                .unwrap_or_else(|| panic!("{call} on a descriptor that is closed"));
            if reset {
                stream.break_off();
                stream.disturbed = true;
            }
            if again && !stream.reset {
                // Right after it there is what was not there before.
                stream.come_soon(call);
                return Err(libc::EAGAIN);
            }
            f(stream)
        });
        Transfer::from_result(result.map_err(io::Error::from_raw_os_error))
    }

    pub fn recv(fd: RawFd, buffer: &mut [u8]) -> Transfer {
        moving(fd, "recv", |stream| stream.recv(buffer, true))
    }

    pub fn peek(fd: RawFd, buffer: &mut [u8]) -> Transfer {
        moving(fd, "peek", |stream| stream.recv(buffer, false))
    }

    pub fn send(fd: RawFd, bytes: &[u8]) -> Transfer {
        moving(fd, "send", |stream| stream.send(bytes, false))
    }

    pub fn send_before_fin(fd: RawFd, bytes: &[u8]) -> Transfer {
        send(fd, bytes)
    }

    pub fn send_urgent(fd: RawFd, bytes: &[u8]) -> Transfer {
        moving(fd, "send", |stream| stream.send(bytes, true))
    }

    pub fn keep_urgent_inline(fd: RawFd) {
        with(|kernel| match kernel.file(fd) {
            Some(File::Stream(stream)) => stream.inline = true,
            Some(File::Queue(queue)) => queue.inline = true,
            _ => {}
        });
    }

    pub fn has_urgent(fd: RawFd) -> bool {
        with(|kernel| kernel.stream(fd).is_some_and(|stream| stream.urgent_at.is_some()))
    }

    pub fn at_urgent_mark(fd: RawFd) -> bool {
        with(|kernel| {
            kernel
                .stream(fd)
                .is_some_and(|stream| stream.urgent_at == Some(stream.read))
        })
    }

    pub fn unread(fd: RawFd) -> usize {
        with(|kernel| kernel.stream(fd).map_or(0, |stream| stream.unread()))
    }

    pub fn shut_write(fd: RawFd) {
        with(|kernel| kernel.stream(fd).expect("shutdown of an open socket").shut());
    }

    pub fn set_nodelay(_: RawFd) {}

    pub fn wake_at(fd: RawFd, bytes: usize) {
        with(|kernel| {
            if let Some(stream) = kernel.stream(fd) {
                stream.wake_at(bytes);
            }
        });
    }

    pub fn set_backlog(_: RawFd, _: Option<u32>) -> io::Result<()> {
        Ok(())
    }

    pub fn set_keepalive(_: RawFd, _: Option<[u32; 3]>) -> io::Result<()> {
        Ok(())
    }

    pub fn reset_on_close(fd: RawFd) {
        with(|kernel| {
            if let Some(stream) = kernel.stream(fd) {
                stream.reset_on_close();
            }
        });
    }

    pub fn waited_ms(_: RawFd) -> u64 {
        with(|kernel| if kernel.faulty { kernel.rng.below(20_000) } else { 0 })
    }

    pub fn silence(_: RawFd) -> Option<(u64, u8)> {
        Some((0, 0))
    }

    pub fn unacknowledged(fd: RawFd) -> usize {
        with(|kernel| {
            kernel
                .stream(fd)
                .map_or(0, |stream| stream.tx.len() - stream.acknowledged)
        })
    }

    pub fn close_two(a: OwnedFd, b: OwnedFd) {
        drop((a, b));
    }
}

pub mod pipe {
    use std::io;
    use std::os::fd::RawFd;

    use super::socket::{Transfer, moving};
    use crate::worker::sim::kernel::with;

    /// Bytes that a pipe takes, unless its few slots are used up before.
    const CAPACITY: u64 = 60_000;

    #[derive(Debug)]
    pub struct Pipe(u64);

    impl Pipe {
        pub fn open() -> io::Result<Pipe> {
            with(|kernel| {
                if kernel.fails("pipe2: EMFILE", 4) {
                    return Err(io::Error::from_raw_os_error(libc::EMFILE));
                }
                let number = kernel.number();
                kernel.pipes.insert(number, Default::default());
                Ok(Pipe(number))
            })
        }

        pub fn fill(&self, source: RawFd, most: usize) -> io::Result<usize> {
            let (held, room) = with(|kernel| (kernel.pipes[&self.0].len(), 1 + kernel.rng.below(CAPACITY) as usize));
            let mut bytes = Vec::new();
            let moved = moving(source, "splice in", |stream| {
                if held > 0 && room < CAPACITY as usize / 2 {
                    return Err(libc::EAGAIN);
                }
                bytes = stream.spliced(room.min(most))?;
                Ok(bytes.len())
            });
            with(|kernel| kernel.pipes.get_mut(&self.0).expect("an open pipe").extend(bytes));
            result(moved)
        }

        pub fn drain(&self, sink: RawFd, bytes: usize) -> io::Result<usize> {
            let most = with(|kernel| 1 + kernel.rng.below(bytes as u64) as usize);
            let held: Vec<u8> = with(|kernel| kernel.pipes[&self.0].iter().take(most).copied().collect());
            let moved = moving(sink, "splice out", |stream| stream.send(&held, false));
            if let Transfer::Bytes(n) = moved {
                with(|kernel| drop(kernel.pipes.get_mut(&self.0).expect("an open pipe").drain(..n)));
            }
            result(moved)
        }
    }

    impl Drop for Pipe {
        fn drop(&mut self) {
            with(|kernel| kernel.pipes.remove(&self.0));
        }
    }

    fn result(moved: Transfer) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(match moved {
            Transfer::Bytes(n) => return Ok(n),
            Transfer::Eof => return Ok(0),
            Transfer::Blocked => libc::EAGAIN,
            Transfer::Starved => libc::ENOBUFS,
            Transfer::Failed => libc::ECONNRESET,
        }))
    }
}

pub mod udp {
    use std::io;
    use std::net::SocketAddr;
    use std::os::fd::{OwnedFd, RawFd};

    use crate::sys::route::{Route, Target};
    pub use crate::sys::udp::{LISTEN_BUFFER, Listening, Sent, SocketError, Trouble};
    use crate::worker::sim::kernel::{File, Gone, Port, with};

    pub fn prepare(fd: OwnedFd, address: SocketAddr, buffer: usize) -> io::Result<Listening> {
        Ok(Listening {
            fd,
            wildcard: address.ip().is_unspecified(),
            receive_buffer: buffer,
            gro: true,
        })
    }

    pub fn grow_buffers(_: RawFd, _: usize) {}

    pub fn enable_bulk(fd: RawFd) -> bool {
        with(|kernel| {
            let merges = kernel.rng.below(2) == 0;
            kernel.port(fd).is_some_and(|port| {
                port.merges = merges;
                merges
            })
        })
    }

    pub fn dropped(_: RawFd) -> u32 {
        0
    }

    pub fn share_address(_: RawFd, _: bool) {}

    pub fn connect(route: &Route) -> io::Result<OwnedFd> {
        with(|kernel| {
            if kernel.fails("udp socket: EMFILE", 40) {
                return Err(io::Error::from_raw_os_error(libc::EMFILE));
            }
            if kernel.fails("udp connect: ENETUNREACH", 40) {
                return Err(io::Error::from_raw_os_error(libc::ENETUNREACH));
            }
            let Target::Ip(to) = route.target else {
                return Err(io::Error::from_raw_os_error(libc::EHOSTUNREACH));
            };
            let local = SocketAddr::from(([10, 9, 9, 9], kernel.number() as u16));
            Ok(kernel.open(File::Port(Port::new(local, Some(to), false))))
        })
    }

    pub fn send(fd: RawFd, bytes: &[u8]) -> Sent {
        with(|kernel| {
            if kernel.fails("udp send: ENOBUFS", 40) {
                return Sent::Full;
            }
            let port = kernel.port(fd).expect("send on an open socket");
            if port.take_error() {
                return Sent::Unreachable;
            }
            let gone = Gone {
                socket: fd,
                local: port.local,
                to: port.to.expect("a connected socket"),
                connected: true,
                bytes: bytes.to_vec(),
            };
            kernel.gone.push(gone);
            Sent::Gone
        })
    }

    pub fn take_error(fd: RawFd, buffer: &mut [u8]) -> Option<SocketError> {
        let (trouble, quoted) = with(|kernel| kernel.port(fd)?.take_queued_error())?;
        let len = quoted.len().min(buffer.len()).min(528);
        buffer[..len].copy_from_slice(&quoted[..len]);
        Some(SocketError { trouble, quoted: len })
    }
}

pub mod mmsg {
    use std::io;
    use std::net::SocketAddr;
    use std::os::fd::{AsRawFd, RawFd};

    use super::udp::Sent;
    pub use crate::sys::mmsg::{Ask, Message, Meta, Part, Received};
    use crate::worker::sim::kernel::{Gone, with};

    pub struct Inbox {
        slots: usize,
        filled: Vec<(Meta, Vec<u8>)>,
    }

    impl Inbox {
        pub fn new(slots: usize) -> Inbox {
            Inbox {
                slots,
                filled: Vec::new(),
            }
        }

        pub fn clear(&mut self) {
            self.filled.clear();
        }

        pub fn room(&self) -> usize {
            self.slots - self.filled.len()
        }

        pub fn len(&self) -> usize {
            self.filled.len()
        }

        pub fn meta(&self, slot: usize) -> &Meta {
            &self.filled[slot].0
        }

        pub fn bytes_of(&self, part: Part) -> &[u8] {
            &self.filled[part.slot as usize].1[part.start as usize..][..part.len as usize]
        }

        pub fn receive(&mut self, fd: impl AsRawFd, ask: Ask, max: usize) -> io::Result<Received> {
            let first = self.filled.len();
            let wanted = max.min(self.room());
            with(|kernel| {
                if kernel.fails("recvmmsg: ENOMEM", 40) {
                    return Err(io::Error::from_raw_os_error(libc::ENOMEM));
                }
                let port = kernel.port(fd.as_raw_fd()).expect("receive on an open socket");
                if port.take_error() {
                    return Err(io::Error::from_raw_os_error(libc::ECONNREFUSED));
                }
                while self.filled.len() < first + wanted
                    && let Some(datagram) = port.rx.pop_front()
                {
                    let mut meta = Meta {
                        from: ask.from.then_some(datagram.peer),
                        to: None,
                        len: datagram.bytes.len(),
                        segment: 0,
                        drops: None,
                    };
                    let mut bytes = datagram.bytes;
                    while port.merges
                        && let Some(next) = port.rx.front()
                        && next.peer == datagram.peer
                        && !bytes.is_empty()
                        && next.bytes.len() == if meta.segment == 0 { bytes.len() } else { meta.segment }
                        && bytes.len() + next.bytes.len() < 60_000
                    {
                        meta.segment = next.bytes.len();
                        bytes.extend(&next.bytes);
                        meta.len = bytes.len();
                        port.rx.pop_front();
                    }
                    self.filled.push((meta, bytes));
                }
                Ok(Received {
                    slots: first..self.filled.len(),
                    drained: port.rx.is_empty(),
                })
            })
        }
    }

    #[derive(Default)]
    pub struct Outbox;

    impl Outbox {
        pub fn new() -> Outbox {
            Outbox
        }

        pub fn send(&mut self, fd: RawFd, inbox: &Inbox, parts: &[Part], messages: &[Message]) -> (usize, Sent) {
            with(|kernel| {
                for (nth, message) in messages.iter().enumerate() {
                    if kernel.fails("sendmmsg: ENOBUFS", 60) {
                        return (nth, Sent::Full);
                    }
                    if message.segment > 0 && kernel.fails("sendmmsg: EIO", 20) {
                        return (nth, Sent::NoSegmentation);
                    }
                    let port = kernel.port(fd).expect("send on an open socket");
                    if port.take_error() {
                        return (nth, Sent::Unreachable);
                    }
                    let (local, connected) = (port.local, port.to);
                    let to: SocketAddr = message.to.or(connected).expect("a destination");
                    let bytes: Vec<u8> = parts[message.parts.clone()]
                        .iter()
                        .flat_map(|part| inbox.bytes_of(*part))
                        .copied()
                        .collect();
                    let step = if message.segment == 0 {
                        bytes.len().max(1)
                    } else {
                        message.segment
                    };
                    let mut datagrams: Vec<Vec<u8>> = bytes.chunks(step).map(<[u8]>::to_vec).collect();
                    if datagrams.is_empty() {
                        datagrams.push(Vec::new());
                    }
                    kernel.gone.extend(datagrams.into_iter().map(|bytes| Gone {
                        socket: fd,
                        local: message.from.map_or(local, |ip| SocketAddr::new(ip, local.port())),
                        to,
                        connected: connected.is_some(),
                        bytes,
                    }));
                }
                (messages.len(), Sent::Gone)
            })
        }
    }
}

pub mod epoll {
    use std::io;
    use std::os::fd::RawFd;
    use std::time::Duration;

    pub use crate::sys::epoll::Readiness;
    use crate::worker::sim::kernel::with;

    /// Its waker is real, and wakes nobody: whoever turns the workers does not wait.
    pub struct Poller {
        number: usize,
        poll: mio::Poll,
        events: Vec<(u64, Readiness)>,
    }

    impl Poller {
        pub fn new(_: usize) -> io::Result<Poller> {
            let number = with(|kernel| {
                kernel.pollers += 1;
                kernel.pollers
            });
            Ok(Poller {
                number,
                poll: mio::Poll::new()?,
                events: Vec::new(),
            })
        }

        pub fn waker(&self, token: u64) -> io::Result<mio::Waker> {
            mio::Waker::new(self.poll.registry(), mio::Token(token as usize))
        }

        pub fn wait(&mut self, timeout: Duration) -> io::Result<()> {
            let fetched = with(|kernel| kernel.fetch(self.number, timeout));
            self.events = fetched
                .into_iter()
                .map(|(token, mask)| (token, readiness(mask)))
                .collect();
            Ok(())
        }

        pub fn events(&self) -> impl Iterator<Item = (u64, Readiness)> {
            self.events.iter().copied()
        }

        pub fn add_edge(&self, fd: RawFd, token: u64) -> io::Result<()> {
            self.register(fd, token, None)
        }

        pub fn add_level(&self, fd: RawFd, token: u64) -> io::Result<()> {
            self.register(fd, token, None)
        }

        pub fn set_level(&self, fd: RawFd, token: u64, wanted: bool) -> io::Result<()> {
            self.register(fd, token, Some(wanted))
        }

        pub fn remove(&self, fd: RawFd) -> io::Result<()> {
            with(|kernel| kernel.unregister(fd));
            Ok(())
        }

        fn register(&self, fd: RawFd, token: u64, level: Option<bool>) -> io::Result<()> {
            let done = with(
                |kernel| match level.is_none() && kernel.fails("epoll_ctl: ENOSPC", 60) {
                    true => Err(libc::ENOSPC),
                    false => kernel.register(self.number, fd, token, level),
                },
            );
            done.map_err(io::Error::from_raw_os_error)
        }
    }

    /// As mio reads the bits.
    fn readiness(mask: i32) -> Readiness {
        use libc::{EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP};
        let has = |bits: i32| mask & bits != 0;
        Readiness {
            readable: has(EPOLLIN | EPOLLPRI),
            writable: has(EPOLLOUT),
            read_closed: has(EPOLLHUP) || has(EPOLLIN) && has(EPOLLRDHUP),
            write_closed: has(EPOLLHUP) || has(EPOLLOUT) && has(EPOLLERR) || mask == EPOLLERR,
            error: has(EPOLLERR),
            priority: has(EPOLLPRI),
        }
    }
}

pub mod limits {
    use crate::worker::sim::kernel::with;

    /// A descriptor in reserve.
    pub struct Reserve(bool);

    impl Reserve {
        pub fn spend(&mut self) -> bool {
            std::mem::take(&mut self.0)
        }

        pub fn refill(&mut self) -> bool {
            self.0 |= !with(|kernel| kernel.fails("reserve: EMFILE", 3));
            self.0
        }
    }

    impl Default for Reserve {
        fn default() -> Reserve {
            Reserve(true)
        }
    }
}
