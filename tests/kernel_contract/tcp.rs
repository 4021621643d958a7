//! What the TCP data path believes of the kernel.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, getsockopt, send, sockopt};
use socket2::SockRef;
use weir::sys::pipe::Pipe;
use weir::sys::socket::{self, Transfer};

/// Two ends of a connection over the loopback device; the second one does not block.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    near.set_nodelay(true).unwrap();
    let (far, _) = listener.accept().unwrap();
    far.set_nonblocking(true).unwrap();
    (near, far)
}

fn urgent(stream: &TcpStream, byte: u8) {
    let sent = send(stream.as_raw_fd(), &[byte], MsgFlags::MSG_OOB);
    assert_eq!(sent, Ok(1));
}

/// Waits for a condition that the kernel brings about by itself.
fn until(what: &str, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn recv(stream: &impl AsRawFd, most: usize) -> Result<Vec<u8>, Transfer> {
    let mut bytes = vec![0; most];
    match socket::recv(stream.as_raw_fd(), &mut bytes) {
        Transfer::Bytes(n) => Ok(bytes[..n].to_vec()),
        other => Err(other),
    }
}

/// What an event would say of a socket now.
fn events(socket: &impl AsFd) -> PollFlags {
    let asked = PollFlags::POLLIN | PollFlags::POLLOUT | PollFlags::POLLPRI;
    let mut ready = [PollFd::new(socket.as_fd(), asked)];
    poll(&mut ready, PollTimeout::ZERO).unwrap();
    ready[0].revents().unwrap()
}

fn is_blocked(result: &std::io::Result<usize>) -> bool {
    matches!(result, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

/// Splice stops before the mark and stays there: EAGAIN, and once FIN is queued 0, which looks like the end. The socket
/// says which it is. A read in line takes the urgent byte, one that asks for a byte takes nothing else, and what follows
/// can be spliced again.
#[test]
fn splice_stops_at_the_urgent_mark_for_good() {
    let (mut near, far) = pair();
    let (pipe, fd) = (Pipe::open().unwrap(), far.as_raw_fd());
    near.write_all(b"head").unwrap();
    urgent(&near, b'!');
    near.write_all(b"tail").unwrap();
    until("everything is here", || socket::unacknowledged(near.as_raw_fd()) == 0);
    assert!(!socket::at_urgent_mark(fd));
    assert_eq!(pipe.fill(fd, 100).unwrap(), 4);
    let stopped = pipe.fill(fd, 100);
    assert!(is_blocked(&stopped), "{stopped:?}");
    near.shutdown(Shutdown::Write).unwrap();
    until("FIN looks like the end", || matches!(pipe.fill(fd, 100), Ok(0)));
    assert!(socket::at_urgent_mark(fd));

    socket::keep_urgent_inline(fd);
    assert_eq!(recv(&far, 1).unwrap(), b"!");
    assert!(!socket::at_urgent_mark(fd));
    assert_eq!(pipe.fill(fd, 100).unwrap(), 4);
    assert_eq!(pipe.fill(fd, 100).unwrap(), 0);
    assert!(!socket::at_urgent_mark(fd));
}

/// A reset behind the mark: splice reports it although bytes before the reset are still there, and reports it once.
#[test]
fn splice_at_the_mark_reports_a_reset_before_its_bytes() {
    let (near, far) = pair();
    let (pipe, fd) = (Pipe::open().unwrap(), far.as_raw_fd());
    urgent(&near, b'!');
    (&near).write_all(b"tail").unwrap();
    until("everything is here", || socket::unacknowledged(near.as_raw_fd()) == 0);
    SockRef::from(&near).set_linger(Some(Duration::ZERO)).unwrap();
    drop(near);
    until("the reset is here", || events(&far).contains(PollFlags::POLLERR));
    let stopped = pipe.fill(fd, 100).unwrap_err();
    assert_eq!(stopped.kind(), ErrorKind::ConnectionReset);
    assert!(socket::at_urgent_mark(fd));
    socket::keep_urgent_inline(fd);
    assert_eq!(
        (recv(&far, 1).unwrap(), recv(&far, 100).unwrap()),
        (b"!".to_vec(), b"tail".to_vec())
    );
    assert_eq!(recv(&far, 100), Err(Transfer::Eof));
}

/// A read stops before the mark, and runs over it when it begins there.
#[test]
fn a_read_stops_before_the_mark() {
    let (mut near, far) = pair();
    socket::keep_urgent_inline(far.as_raw_fd());
    near.write_all(b"head").unwrap();
    urgent(&near, b'!');
    near.write_all(b"tail").unwrap();
    until("everything is here", || socket::unread(far.as_raw_fd()) == 9);
    assert_eq!(recv(&far, 100).unwrap(), b"head");
    assert_eq!(recv(&far, 100).unwrap(), b"!tail");
}

/// A lone urgent byte is told of by POLLPRI, without POLLIN unless urgent data is kept in line.
#[test]
fn urgent_data_has_an_event_of_its_own() {
    for inline in [false, true] {
        let (near, far) = pair();
        if inline {
            socket::keep_urgent_inline(far.as_raw_fd());
        }
        assert_eq!(events(&far), PollFlags::POLLOUT);
        urgent(&near, b'!');
        until("it is told of", || events(&far).contains(PollFlags::POLLPRI));
        assert_eq!(events(&far).contains(PollFlags::POLLIN), inline);
    }
}

/// The kernel knows one mark. Of two urgent bytes in a row, the first is an ordinary one when urgent data is kept in line,
/// and else it is lost: that is why listening sockets keep it in line.
#[test]
fn a_second_urgent_byte_takes_the_mark_of_the_first() {
    for inline in [true, false] {
        let (near, far) = pair();
        let fd = far.as_raw_fd();
        if inline {
            socket::keep_urgent_inline(fd);
        }
        urgent(&near, b'1');
        until("the first is here", || socket::at_urgent_mark(fd));
        urgent(&near, b'2');
        until("both are here", || socket::unacknowledged(near.as_raw_fd()) == 0);
        if inline {
            assert_eq!(recv(&far, 100).unwrap(), b"1");
            assert!(socket::at_urgent_mark(fd));
        }
        socket::keep_urgent_inline(fd);
        assert_eq!(recv(&far, 100).unwrap(), b"2");
    }
}

/// Neither says which it is, so a fill begins with an empty pipe only.
#[test]
fn splice_says_the_same_of_a_full_pipe_and_an_empty_socket() {
    let (mut near, far) = pair();
    let (pipe, fd) = (Pipe::open().unwrap(), far.as_raw_fd());
    assert!(is_blocked(&pipe.fill(fd, 100)));
    near.set_nonblocking(true).unwrap();
    let block = vec![0; 64 << 10];
    until("the pipe is full", || {
        while near.write(&block).is_ok() {}
        is_blocked(&pipe.fill(fd, 1 << 20)) && socket::unread(fd) > 0
    });
}

/// Whoever writes and closes at once is seen as gone (POLLHUP) before the connection was ever used, and is not to be
/// mistaken for one that refused: there is no error, and there is something to read.
#[test]
fn a_unix_peer_that_has_closed_shows_hup_without_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    let mut near = UnixStream::connect(dir.path().join("s")).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    far.write_all(b"hello").unwrap();
    drop(far);
    let seen = events(&near);
    assert!(
        seen.contains(PollFlags::POLLHUP | PollFlags::POLLIN | PollFlags::POLLOUT),
        "{seen:?}"
    );
    assert!(!seen.contains(PollFlags::POLLERR), "{seen:?}");
    assert_eq!(getsockopt(&near, sockopt::SocketError), Ok(0));
    let mut bytes = Vec::new();
    near.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"hello");
}

#[test]
fn fin_is_no_hup() {
    let (mut near, far) = pair();
    near.write_all(b"bye").unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    until("everything is here", || socket::unacknowledged(near.as_raw_fd()) == 0);
    assert_eq!(recv(&far, 100).unwrap(), b"bye");
    until("the end is here", || recv(&far, 100) == Err(Transfer::Eof));
    assert_eq!(events(&far), PollFlags::POLLIN | PollFlags::POLLOUT);
}

/// So a connection may be closed with FIN only when nothing is left to read.
#[test]
fn closing_with_unread_input_sends_a_reset() {
    let (mut near, far) = pair();
    near.write_all(b"question").unwrap();
    until("it is here", || socket::unread(far.as_raw_fd()) == 8);
    drop(far);
    let end = near.read(&mut [0]).unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
}

/// What came before a reset can be read after it, then the error is told once, then it looks like an end.
#[test]
fn bytes_before_a_reset_survive_it() {
    let (mut near, far) = pair();
    near.write_all(b"last words").unwrap();
    until("they are here", || socket::unread(far.as_raw_fd()) == 10);
    SockRef::from(&near).set_linger(Some(Duration::ZERO)).unwrap();
    drop(near);
    until("the reset is here", || events(&far).contains(PollFlags::POLLERR));
    assert_eq!(recv(&far, 100).unwrap(), b"last words");
    assert_eq!(recv(&far, 100), Err(Transfer::Failed));
    assert_eq!(recv(&far, 100), Err(Transfer::Eof));
}

/// The kernel ends a connection whose reader merely pauses, although it answers each question about its window: the reason
/// for not using that option.
#[test]
fn a_full_window_counts_against_tcp_user_timeout() {
    let (mut near, far) = pair();
    near.set_nonblocking(true).unwrap();
    SockRef::from(&near)
        .set_tcp_user_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    while near.write(&[0; 64 << 10]).is_ok() {}
    let begun = Instant::now();
    let mut heard = Duration::ZERO;
    until("it is ended", || {
        if let Some((silent_ms, _)) = socket::silence(near.as_raw_fd()) {
            heard = begun
                .elapsed()
                .saturating_sub(Duration::from_millis(silent_ms))
                .max(heard);
        }
        SockRef::from(&near).take_error().unwrap().is_some()
    });
    assert!(heard > Duration::from_millis(200), "answered last after {heard:?}");
    drop(far);
}

/// So a listening socket is set once, and a connection costs nothing for it. What it is given later is too late for those that wait.
#[test]
fn accepted_sockets_inherit_their_options() {
    let place = socket::Place::new("127.0.0.1:0".parse().unwrap(), false);
    let fd = socket::listen_tcp(place, None, Some([77, 7, 3])).unwrap();
    let _near = TcpStream::connect(socket::local_address(&fd).unwrap()).unwrap();
    until("its handshake is over", || {
        let mut waits = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        poll(&mut waits, PollTimeout::ZERO).unwrap() == 1
    });
    socket::set_keepalive(fd.as_raw_fd(), Some([88, 8, 4])).unwrap();
    let mut accepted = None;
    until("it is accepted", || {
        accepted = socket::accept(fd.as_raw_fd()).ok();
        accepted.is_some()
    });
    let (far, _) = accepted.unwrap();
    let far = SockRef::from(&far);
    assert!(far.keepalive().unwrap() && far.out_of_band_inline().unwrap() && far.tcp_nodelay().unwrap());
    assert_eq!(far.tcp_keepalive_time().unwrap(), Duration::from_secs(77));
    assert_eq!(far.tcp_keepalive_interval().unwrap(), Duration::from_secs(7));
    assert_eq!(far.tcp_keepalive_retries().unwrap(), 3);
}
