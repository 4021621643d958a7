//! epoll, edge-triggered, with times of nanoseconds (mio rounds up to milliseconds).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// What there is to know of a stream.
pub const STREAM: i32 = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP;

pub struct Poller {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Poller {
    pub fn new() -> io::Result<Poller> {
        // SAFETY: a plain system call.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and owned here.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let events = vec![libc::epoll_event { events: 0, u64: 0 }; 512];
        Ok(Poller { fd, events })
    }

    pub fn add(&self, fd: RawFd, flags: i32, token: usize) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: (flags | libc::EPOLLET) as u32,
            u64: token as u64,
        };
        // SAFETY: `event` outlives the call.
        match unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Tokens and flags of what is ready; waits for `timeout`, or until something is.
    pub fn wait(&mut self, timeout: Option<Duration>) -> impl Iterator<Item = (usize, i32)> + '_ {
        let timeout = timeout.map(|timeout| libc::timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: `events` has room for what is asked; the time outlives the call; no signal mask.
        let n = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.fd.as_raw_fd(),
                self.events.as_mut_ptr(),
                self.events.len(),
                timeout,
                std::ptr::null::<libc::sigset_t>(),
                0,
            )
        };
        let ready = &self.events[..n.max(0) as usize];
        ready.iter().map(|event| (event.u64 as usize, event.events as i32))
    }
}
