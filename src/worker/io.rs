//! Carries out what lanes ask for, on real sockets.
//!
//! Copying goes through the worker's one scratch buffer: a fill is followed by its drain at once, and only what the sink
//! did not take is kept, in a buffer of exactly that size that lives until it is delivered. Splicing goes through a pipe
//! from the worker's pool, which returns there as soon as it is empty. So an idle connection holds neither.

use std::os::fd::RawFd;

use crate::base::Side;
use crate::relay::{Conduit, Done, Io};
use crate::worker::os::pipe::Pipe;
use crate::worker::os::socket::{self, Transfer};

/// Bytes of the scratch buffer. In the simulation it is small, so that a few hundred kilobytes are bulk.
pub(super) const SCRATCH_BYTES: usize = if cfg!(test) { 4 << 10 } else { 32 << 10 };
/// Empty pipes kept for reuse.
const IDLE_PIPES_MAX: usize = 32;

/// What a lane holds between two operations.
#[derive(Debug, Default)]
pub(super) enum Held {
    #[default]
    Nothing,
    /// `bytes[at..]` waits for the sink.
    Bytes { bytes: Box<[u8]>, at: usize },
    /// The content of this pipe waits for the sink.
    Pipe(Pipe),
}

/// Empty pipes. One with data in it is closed, never pooled.
#[derive(Debug, Default)]
pub(super) struct Pipes {
    idle: Vec<Pipe>,
    /// Opened and not closed, whether idle or in use.
    open: usize,
    max: usize,
}

impl Pipes {
    pub(super) fn new(max: usize) -> Self {
        Self { max, ..Self::default() }
    }

    fn take(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.idle.pop() {
            return Some(pipe);
        }
        if self.open >= self.max {
            return None;
        }
        let pipe = Pipe::open().ok()?;
        self.open += 1;
        Some(pipe)
    }

    fn give_back(&mut self, pipe: Pipe) {
        if self.idle.len() < IDLE_PIPES_MAX {
            self.idle.push(pipe);
        } else {
            self.open -= 1;
        }
    }

    /// Drops what a lane holds.
    pub(super) fn discard(&mut self, held: &mut Held) {
        if let Held::Pipe(_) = std::mem::take(held) {
            self.open -= 1;
        }
    }
}

#[cfg(test)]
impl Held {
    pub(super) fn is_pipe(&self) -> bool {
        matches!(self, Held::Pipe(_))
    }
}

#[cfg(test)]
impl Pipes {
    /// So many are in use.
    pub(super) fn assert_consistent(&self, in_use: usize) {
        assert_eq!(self.open, self.idle.len() + in_use, "pipes");
        assert!(self.open <= self.max, "pipes");
    }
}

/// The sockets and conduits of one connection for the duration of one pump.
pub(super) struct SocketIo<'a> {
    pub(super) fds: [RawFd; 2],
    pub(super) held: &'a mut [Held; 2],
    pub(super) scratch: &'a mut [u8],
    pub(super) pipes: &'a mut Pipes,
    pub(super) spliced: u64,
    /// The kernel had no memory for some operation: it must be tried again after a while, unasked.
    pub(super) starved: bool,
    pub(super) nagle: &'a mut Nagle,
    /// Lanes under a bandwidth limit are copied: a pipe would take a second's worth at once.
    pub(super) copy_only: [bool; 2],
}

/// Nagle's algorithm on the backend's socket is turned off before the second write: the first segment of a connection
/// is sent at once anyway, so a short connection saves the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nagle {
    /// Nothing was written yet.
    Untouched,
    /// One write was made.
    On,
    /// Turned off, or not a TCP socket.
    Off,
}

impl SocketIo<'_> {
    fn before_write(&mut self, sink: Side) {
        if sink == Side::Backend && *self.nagle != Nagle::Off {
            if *self.nagle == Nagle::On {
                socket::set_nodelay(self.fds[Side::Backend as usize]);
                *self.nagle = Nagle::Off;
            } else {
                *self.nagle = Nagle::On;
            }
        }
    }
}

fn done(transfer: Transfer, asked: usize, starved: &mut bool) -> Done {
    *starved |= transfer == Transfer::Starved;
    match transfer {
        Transfer::Bytes(bytes) => Done::Moved {
            bytes,
            short: bytes < asked,
        },
        Transfer::Eof => Done::Eof,
        Transfer::Blocked | Transfer::Starved => Done::Blocked,
        Transfer::Failed => Done::Failed,
    }
}

impl Io for SocketIo<'_> {
    fn copy_buffer(&self) -> usize {
        self.scratch.len()
    }

    fn acquire_pipe(&mut self, lane: Side) -> bool {
        if self.copy_only[lane as usize] {
            return false;
        }
        match self.pipes.take() {
            Some(pipe) => {
                self.held[lane as usize] = Held::Pipe(pipe);
                true
            }
            None => false,
        }
    }

    fn unread(&mut self, lane: Side) -> usize {
        socket::unread(self.fds[lane as usize])
    }

    fn has_urgent(&mut self, lane: Side) -> bool {
        socket::has_urgent(self.fds[lane as usize])
    }

    fn at_mark(&mut self, lane: Side) -> bool {
        socket::at_urgent_mark(self.fds[lane as usize])
    }

    fn fill(&mut self, lane: Side, conduit: Conduit, most: usize, unread: usize) -> Done {
        let source = self.fds[lane as usize];
        if conduit != Conduit::Pipe {
            if conduit == Conduit::Urgent {
                socket::keep_urgent_inline(source);
            }
            let asked = most.min(self.scratch.len());
            let filled = match unread {
                // What has come meanwhile is told of by an event.
                0 => match socket::peek(source, &mut self.scratch[..1]) {
                    Transfer::Bytes(_) => Transfer::Blocked,
                    nothing => nothing,
                },
                _ => socket::recv(source, &mut self.scratch[..asked.min(unread)]),
            };
            return done(filled, asked, &mut self.starved);
        }
        let held = &mut self.held[lane as usize];
        let Held::Pipe(pipe) = held else {
            unreachable!("a pipe was acquired")
        };
        let filled = Transfer::from_result(pipe.fill(source, most));
        if let Transfer::Bytes(n) = filled {
            self.spliced += n as u64;
        } else if let Held::Pipe(pipe) = std::mem::take(held) {
            self.pipes.give_back(pipe);
        }
        done(filled, usize::MAX, &mut self.starved)
    }

    fn drain(&mut self, lane: Side, conduit: Conduit, bytes: usize, last: bool) -> Done {
        self.before_write(lane.other());
        let sink = self.fds[lane.other() as usize];
        let held = &mut self.held[lane as usize];
        let send = match (conduit, last) {
            (Conduit::Urgent, _) => socket::send_urgent,
            (_, true) => socket::send_before_fin,
            (_, false) => socket::send,
        };
        match held {
            Held::Nothing => {
                let sent = send(sink, &self.scratch[..bytes]);
                let taken = if let Transfer::Bytes(n) = sent { n } else { 0 };
                if taken < bytes && sent != Transfer::Failed {
                    *held = Held::Bytes {
                        bytes: self.scratch[taken..bytes].into(),
                        at: 0,
                    };
                }
                done(sent, bytes, &mut self.starved)
            }
            Held::Bytes { bytes: kept, at } => {
                let sent = send(sink, &kept[*at..]);
                if let Transfer::Bytes(n) = sent {
                    *at += n;
                    if *at == kept.len() {
                        *held = Held::Nothing;
                    }
                }
                done(sent, bytes, &mut self.starved)
            }
            Held::Pipe(pipe) => {
                let sent = Transfer::from_result(pipe.drain(sink, bytes));
                if sent == Transfer::Bytes(bytes)
                    && let Held::Pipe(pipe) = std::mem::take(held)
                {
                    self.pipes.give_back(pipe);
                }
                done(sent, bytes, &mut self.starved)
            }
        }
    }

    fn shut(&mut self, lane: Side) -> Done {
        socket::shut_write(self.fds[lane.other() as usize]);
        Done::Eof
    }

    fn discard(&mut self, lane: Side) {
        self.pipes.discard(&mut self.held[lane as usize]);
    }
}
