//! Level-triggered registration on mio's epoll instance, for listening sockets only.
//!
//! mio registers edge-triggered. For a listening socket that would mean accepting until EAGAIN on every event (one
//! accept4 too many for a lone connection) or lost connections when a budget stops earlier. Level-triggered, epoll itself
//! remembers that the queue is not empty.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

/// Registers `fd`; its events carry `token`.
pub fn add_level(poll: &mio::Poll, fd: RawFd, token: u64) -> io::Result<()> {
    control(poll, libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN as u32, token)
}

/// Stops or resumes the events of a registered `fd`.
pub fn set_level(poll: &mio::Poll, fd: RawFd, token: u64, wanted: bool) -> io::Result<()> {
    control(
        poll,
        libc::EPOLL_CTL_MOD,
        fd,
        if wanted { libc::EPOLLIN as u32 } else { 0 },
        token,
    )
}

/// Forgets `fd`, which stays open.
pub fn remove(poll: &mio::Poll, fd: RawFd) -> io::Result<()> {
    control(poll, libc::EPOLL_CTL_DEL, fd, 0, 0)
}

fn control(poll: &mio::Poll, op: i32, fd: RawFd, events: u32, token: u64) -> io::Result<()> {
    let mut event = libc::epoll_event { events, u64: token };
    // SAFETY: `event` outlives the call; the descriptors are checked by the kernel.
    let done = unsafe { libc::epoll_ctl(poll.as_raw_fd(), op, fd, &raw mut event) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
