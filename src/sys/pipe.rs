//! Pipes and splice(2).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Capacity asked for. A pipe of 1 MiB moves bulk data for about half the CPU of the default 64 KiB.
pub const WANTED_BYTES: i32 = 1 << 20;

/// A pipe and its capacity.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
}

impl Pipe {
    /// Opens a pipe and sizes it up as far as the kernel allows (an unprivileged process beyond
    /// `fs.pipe-user-pages-soft` gets less).
    pub fn open() -> io::Result<Pipe> {
        let mut fds = [0; 2];
        // SAFETY: `fds` has room for the two descriptors that pipe2 writes.
        if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: both descriptors are new and nobody else owns them.
        let (read, write) = unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) };
        // SAFETY: F_SETPIPE_SZ takes an int and touches no memory of ours.
        let got = unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, WANTED_BYTES) };
        let capacity = if got > 0 { got as usize } else { 64 << 10 };
        Ok(Pipe { read, write, capacity })
    }

    /// splice(2) of up to `most` bytes from `source` into the pipe; 0 is the end of the stream.
    pub fn fill(&self, source: RawFd, most: usize) -> io::Result<usize> {
        splice(source, self.write.as_raw_fd(), self.capacity.min(most))
    }

    /// splice(2) of up to `bytes` from the pipe into `sink`.
    pub fn drain(&self, sink: RawFd, bytes: usize) -> io::Result<usize> {
        splice(self.read.as_raw_fd(), sink, bytes)
    }
}

fn splice(from: RawFd, to: RawFd, bytes: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MOVE;
    // SAFETY: null offsets; the kernel checks the descriptors and touches no memory of ours.
    let n = unsafe { libc::splice(from, std::ptr::null_mut(), to, std::ptr::null_mut(), bytes, flags) };
    if n < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(n as usize)
    }
}
