//! One epoll instance: streams edge-triggered (mio's way), listening sockets and sessions level-triggered.
//!
//! For a listening socket edges would mean accepting until EAGAIN on every event (one accept4 too many for a lone connection) or
//! lost connections when a budget stops earlier. Level-triggered, epoll itself remembers that the queue is not empty.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

/// What an event says of its socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Readiness {
    /// There is something to read, or the end of the stream.
    pub readable: bool,
    /// There is room to write.
    pub writable: bool,
    /// The peer has ended its stream, or is gone.
    pub read_closed: bool,
    /// Nothing can be written any more.
    pub write_closed: bool,
    /// An error is pending.
    pub error: bool,
    /// Urgent data has come.
    pub priority: bool,
}

impl From<&Event> for Readiness {
    fn from(event: &Event) -> Readiness {
        Readiness {
            readable: event.is_readable(),
            writable: event.is_writable(),
            read_closed: event.is_read_closed(),
            write_closed: event.is_write_closed(),
            error: event.is_error(),
            priority: event.is_priority(),
        }
    }
}

/// One epoll instance, with the events of its latest wait.
#[derive(Debug)]
pub struct Poller {
    poll: Poll,
    events: Events,
}

impl Poller {
    /// One that fetches so many events at once.
    pub fn new(events_max: usize) -> io::Result<Poller> {
        Ok(Poller {
            poll: Poll::new()?,
            events: Events::with_capacity(events_max),
        })
    }

    /// What wakes [`wait`](Self::wait), with an event that carries this token.
    pub fn waker(&self, token: u64) -> io::Result<Waker> {
        Waker::new(self.poll.registry(), Token(token as usize))
    }

    /// Waits for events, or until a signal comes.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    /// Those that the latest wait has fetched, with their tokens.
    pub fn events(&self) -> impl Iterator<Item = (u64, Readiness)> {
        let events = self.events.iter();
        events.map(|event| (event.token().0 as u64, Readiness::from(event)))
    }

    /// Registers `fd`, read and write, edge-triggered; its events carry `token`.
    pub fn add_edge(&self, fd: RawFd, token: u64) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        let registry = self.poll.registry();
        registry.register(&mut SourceFd(&fd), Token(token as usize), interest)
    }

    /// Registers `fd` for reading, level-triggered.
    pub fn add_level(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN as u32, token)
    }

    /// Stops or resumes the events of a level-triggered `fd`.
    pub fn set_level(&self, fd: RawFd, token: u64, wanted: bool) -> io::Result<()> {
        let events = if wanted { libc::EPOLLIN as u32 } else { 0 };
        self.control(libc::EPOLL_CTL_MOD, fd, events, token)
    }

    /// Forgets `fd`, which stays open.
    pub fn remove(&self, fd: RawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, 0)
    }

    fn control(&self, op: i32, fd: RawFd, events: u32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: `event` outlives the call; the descriptors are checked by the kernel.
        let done = unsafe { libc::epoll_ctl(self.poll.as_raw_fd(), op, fd, &raw mut event) };
        if done < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}
