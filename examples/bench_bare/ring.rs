//! Relays by io_uring(7) instead of a system call for each step.
//!
//! One accept and one receive for each socket are handed over once and answer again and again (multishot), into buffers that the kernel
//! takes from a ring (io_uring_register_buf_ring(3)). What is to be sent is collected until all that has come was looked at, and handed
//! over by the same call that waits for more.

use std::alloc::{Layout, alloc_zeroed};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode};
use socket2::SockAddr;

use crate::copy::{backend, close};
use crate::listening;

/// Buffers, a power of two, and bytes of one.
const BUFFERS: u16 = 1024;
const BUFFER: usize = 4096;

/// What an answer belongs to, in its `user_data`: the kind, how often the descriptor was used before, a buffer, the descriptor.
#[derive(Clone, Copy)]
struct Tag {
    kind: u8,
    generation: u8,
    buffer: u16,
    fd: RawFd,
}

const ACCEPT: u8 = 0;
const CONNECT: u8 = 1;
const RECEIVE: u8 = 2;
const SEND: u8 = 3;

impl Tag {
    fn pack(self) -> u64 {
        u64::from(self.kind) << 56
            | u64::from(self.generation) << 48
            | u64::from(self.buffer) << 32
            | u64::from(self.fd as u32)
    }

    fn unpack(word: u64) -> Tag {
        Tag {
            kind: (word >> 56) as u8,
            generation: (word >> 48) as u8,
            buffer: (word >> 32) as u16,
            fd: word as u32 as RawFd,
        }
    }
}

/// One side of a connection, by descriptor.
#[derive(Default)]
struct End {
    open: bool,
    generation: u8,
    other: RawFd,
    connected: bool,
    /// What it is to be sent: buffer and bytes. The first is under way if `sending`.
    queue: VecDeque<(u16, u32)>,
    sending: bool,
    /// Nothing comes after that.
    last: bool,
    /// Waits for the end of the turn.
    listed: bool,
}

/// The ring of buffers that the kernel receives into.
struct Buffers {
    entries: *mut BufRingEntry,
    bytes: Vec<u8>,
    tail: u16,
}

impl Buffers {
    fn new(ring: &IoUring) -> io::Result<Buffers> {
        let layout = Layout::from_size_align(usize::from(BUFFERS) * size_of::<BufRingEntry>(), 4096).expect("a page");
        // SAFETY: the size is not zero; it is never freed, and so outlives the ring.
        let entries = unsafe { alloc_zeroed(layout) }.cast::<BufRingEntry>();
        // SAFETY: as above.
        unsafe {
            ring.submitter()
                .register_buf_ring_with_flags(entries as u64, BUFFERS, 0, 0)?;
        }
        let bytes = vec![0; usize::from(BUFFERS) * BUFFER];
        let mut buffers = Buffers {
            entries,
            bytes,
            tail: 0,
        };
        (0..BUFFERS).for_each(|ix| buffers.give(ix));
        Ok(buffers)
    }

    fn at(&self, buffer: u16) -> *const u8 {
        self.bytes[usize::from(buffer) * BUFFER..].as_ptr()
    }

    /// Gives a buffer to the kernel.
    fn give(&mut self, buffer: u16) {
        let addr = self.at(buffer) as u64;
        // SAFETY: the entry is within the ring, and not the kernel's before the tail has passed it; the tail lies in the first entry.
        unsafe {
            let entry = &mut *self.entries.add(usize::from(self.tail & (BUFFERS - 1)));
            entry.set_addr(addr);
            entry.set_len(BUFFER as u32);
            entry.set_bid(buffer);
            self.tail = self.tail.wrapping_add(1);
            AtomicU16::from_ptr(BufRingEntry::tail(self.entries).cast_mut()).store(self.tail, Ordering::Release);
        }
    }
}

struct Loop {
    ring: IoUring,
    buffers: Buffers,
    ends: Vec<End>,
    /// Those with something to send, or to end.
    touched: Vec<RawFd>,
    door: RawFd,
    target: SockAddr,
    hold_ack: bool,
}

pub fn run(listen: SocketAddr, target: SocketAddr, hold_ack: bool) -> io::Result<()> {
    let listener = listening(listen)?;
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_cqsize(8192)
        .build(2048)?;
    let mut relay = Loop {
        buffers: Buffers::new(&ring)?,
        ring,
        ends: Vec::new(),
        touched: Vec::new(),
        door: listener.as_raw_fd(),
        target: target.into(),
        hold_ack,
    };
    relay.accept()?;
    let mut answers = Vec::new();
    loop {
        relay.ring.submit_and_wait(1)?;
        answers.extend(
            relay
                .ring
                .completion()
                .map(|answer| (Tag::unpack(answer.user_data()), answer.result(), answer.flags())),
        );
        for (tag, result, flags) in answers.drain(..) {
            relay.answer(tag, result, flags)?;
        }
        relay.flush()?;
    }
}

impl Loop {
    fn push(&mut self, entry: &Entry, tag: Tag) -> io::Result<()> {
        let entry = entry.clone().user_data(tag.pack());
        loop {
            // SAFETY: buffers and the address live as long as the ring.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            self.ring.submit()?;
        }
    }

    fn tag(&self, kind: u8, fd: RawFd) -> Tag {
        let generation = self.ends.get(fd as usize).map_or(0, |end| end.generation);
        Tag {
            kind,
            generation,
            buffer: 0,
            fd,
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        let entry = opcode::AcceptMulti::new(Fd(self.door)).build();
        self.push(&entry, self.tag(ACCEPT, self.door))
    }

    fn receive(&mut self, fd: RawFd) -> io::Result<()> {
        let entry = opcode::RecvMulti::new(Fd(fd), 0).build();
        self.push(&entry, self.tag(RECEIVE, fd))
    }

    fn answer(&mut self, tag: Tag, result: i32, flags: u32) -> io::Result<()> {
        let fd = tag.fd;
        if tag.kind == ACCEPT {
            if result >= 0 {
                self.arrived(result)?;
            }
            return if cqueue::more(flags) { Ok(()) } else { self.accept() };
        }
        let known = self.ends[fd as usize].open && self.ends[fd as usize].generation == tag.generation;
        match (tag.kind, known) {
            (CONNECT, true) if result < 0 => self.end(fd),
            (CONNECT, true) => {
                self.ends[fd as usize].connected = true;
                self.touch(fd);
            }
            (RECEIVE, true) => {
                let other = self.ends[fd as usize].other;
                if let Some(buffer) = cqueue::buffer_select(flags).filter(|_| result > 0) {
                    self.ends[other as usize].queue.push_back((buffer, result as u32));
                }
                if result == 0 || (result < 0 && result != -libc::ENOBUFS) {
                    self.ends[other as usize].last = true;
                } else if !cqueue::more(flags) {
                    self.receive(fd)?;
                }
                self.touch(other);
            }
            (RECEIVE, false) => {
                if let Some(buffer) = cqueue::buffer_select(flags) {
                    self.buffers.give(buffer);
                }
            }
            (SEND, known) => {
                self.buffers.give(tag.buffer);
                if known {
                    self.ends[fd as usize].sending = false;
                    self.ends[fd as usize].queue.pop_front();
                    if result < 0 {
                        self.end(fd);
                    } else {
                        self.touch(fd);
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn arrived(&mut self, client: RawFd) -> io::Result<()> {
        let backend = backend(&self.target, self.hold_ack)?.into_raw_fd();
        let room = client.max(backend) as usize + 1;
        if self.ends.len() < room {
            self.ends.resize_with(room, End::default);
        }
        for (fd, other, connected) in [(client, backend, true), (backend, client, false)] {
            let end = &mut self.ends[fd as usize];
            (end.open, end.other, end.connected) = (true, other, connected);
            (end.sending, end.last) = (false, false);
        }
        let entry = opcode::Connect::new(Fd(backend), self.target.as_ptr().cast(), self.target.len()).build();
        self.push(&entry.flags(Flags::IO_LINK), self.tag(CONNECT, backend))?;
        self.receive(backend)?;
        self.receive(client)
    }

    fn touch(&mut self, fd: RawFd) {
        let end = &mut self.ends[fd as usize];
        if !std::mem::replace(&mut end.listed, true) {
            self.touched.push(fd);
        }
    }

    /// Sends what was collected. What comes together with the end leaves together with it.
    fn flush(&mut self) -> io::Result<()> {
        let mut touched = std::mem::take(&mut self.touched);
        for fd in touched.drain(..) {
            let end = &mut self.ends[fd as usize];
            end.listed = false;
            if !end.open || end.sending {
                continue;
            }
            let Some(&(buffer, len)) = end.queue.front().filter(|_| end.connected) else {
                if end.last && end.queue.is_empty() {
                    self.end(fd);
                }
                continue;
            };
            end.sending = true;
            let more = if end.last && end.queue.len() == 1 {
                libc::MSG_MORE
            } else {
                0
            };
            let entry = opcode::Send::new(Fd(fd), self.buffers.at(buffer), len)
                .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL | more)
                .build();
            self.push(
                &entry,
                Tag {
                    buffer,
                    ..self.tag(SEND, fd)
                },
            )?;
        }
        self.touched = touched;
        Ok(())
    }

    /// Ends a connection. A receive that is under way keeps its socket open: it is told of the end first.
    fn end(&mut self, fd: RawFd) {
        let other = self.ends[fd as usize].other;
        for fd in [fd, other] {
            // SAFETY: a plain system call on a descriptor that is open.
            unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
            let end = &mut self.ends[fd as usize];
            (end.open, end.generation) = (false, end.generation.wrapping_add(1));
            // The one under way comes back with its answer.
            let kept = usize::from(end.sending);
            for (buffer, _) in end.queue.drain(kept..) {
                self.buffers.give(buffer);
            }
            end.queue.clear();
        }
        close(fd, other);
    }
}
