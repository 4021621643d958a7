//! Writing to a descriptor that others read, or do not: standard error, standard output, a log file.
//!
//! A pipe whose reader has stopped makes write(2) wait for ever, and its open file is shared with other processes, so
//! O_NONBLOCK is not ours to set. Instead a write is made only where poll(2) promises room, and to a pipe never more than
//! that promise covers. Whoever else writes to the same pipe may be quicker: threads that must not wait at all leave
//! writing to another one.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{SFlag, fstat};

/// A pipe that poll(2) calls writable takes so much (pipe(7): a page).
const PIPE_ROOM: usize = 4096;

/// Writes `bytes`, waiting for room no longer than `patience` each time there is none. Says how much was written, and what
/// went wrong if that is not all: `TimedOut` if there was no room for so long.
pub fn write_within(fd: BorrowedFd, bytes: &[u8], patience: Duration) -> (usize, Option<io::Error>) {
    let kind = fstat(fd).map_or(SFlag::empty(), |found| {
        SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT
    });
    let mut done = 0;
    let mut since = Instant::now();
    while done < bytes.len() {
        let rest = &bytes[done..];
        let written = match kind {
            SFlag::S_IFSOCK => {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                send(fd.as_raw_fd(), rest, flags)
            }
            _ if !is_writable(fd, Duration::ZERO) => Err(Errno::EAGAIN),
            SFlag::S_IFIFO => nix::unistd::write(fd, &rest[..rest.len().min(PIPE_ROOM)]),
            _ => nix::unistd::write(fd, rest),
        };
        match written {
            Ok(0) => return (done, Some(ErrorKind::WriteZero.into())),
            Ok(n) => (done, since) = (done + n, Instant::now()),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => match patience.checked_sub(since.elapsed()) {
                Some(left) if !left.is_zero() => drop(is_writable(fd, left)),
                _ => return (done, Some(io::Error::new(ErrorKind::TimedOut, "nobody reads it"))),
            },
            Err(error) => return (done, Some(error.into())),
        }
    }
    (done, None)
}

/// Waits until there is room, or a reader has gone and a write would say so.
fn is_writable(fd: BorrowedFd, patience: Duration) -> bool {
    // Rounded up, or the last fraction of a millisecond would be spent spinning.
    let ms = patience.as_micros().div_ceil(1_000).min(60_000) as u32;
    let timeout = PollTimeout::try_from(ms).unwrap_or(PollTimeout::ZERO);
    let mut fds = [PollFd::new(fd, PollFlags::POLLOUT)];
    // What cannot be asked is written to, as it would have been without this.
    poll(&mut fds, timeout).map_or(true, |ready| ready > 0)
}

/// One line on standard error, at once or never: for processes that have no thread to write, and for last words.
pub fn last_words(text: &str) -> bool {
    let mut line = text.as_bytes()[..text.len().min(PIPE_ROOM - 1)].to_vec();
    line.push(b'\n');
    write_within(io::stderr().as_fd(), &line, Duration::ZERO).1.is_none()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Break tried: writing whole to a pipe (never returns).
    #[test]
    fn a_reader_that_does_not_read_costs_the_patience_and_no_more() {
        let patience = Duration::from_millis(20);
        let much = vec![b'x'; 1 << 20];
        let (mut pipe, writer) = io::pipe().unwrap();
        let (mut far, near) = UnixStream::pair().unwrap();
        let rows: [(&str, BorrowedFd, &mut dyn Read); 2] =
            [("pipe", writer.as_fd(), &mut pipe), ("socket", near.as_fd(), &mut far)];
        for (what, fd, reader) in rows {
            let begun = Instant::now();
            let (done, error) = write_within(fd, &much, patience);
            assert_eq!(error.unwrap().kind(), ErrorKind::TimedOut, "{what}");
            assert!(done > 0 && done < much.len(), "{what}: {done}");
            assert!(begun.elapsed() >= patience, "{what}");
            assert_eq!(write_within(fd, b"y", Duration::ZERO).0, 0, "{what}");
            // What was taken is there, and there is room again.
            let mut read = vec![0; done];
            reader.read_exact(&mut read).unwrap();
            let (done, error) = write_within(fd, b"line\n", Duration::ZERO);
            assert!(done == 5 && error.is_none(), "{what}: {error:?}");
        }
    }

    #[test]
    fn a_reader_that_has_gone_is_an_error_at_once() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let (done, error) = write_within(writer.as_fd(), b"x", Duration::from_secs(60));
        assert_eq!((done, error.unwrap().kind()), (0, ErrorKind::BrokenPipe));
    }
}
