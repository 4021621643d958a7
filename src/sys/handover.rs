//! Passing descriptors to another process of the same program: a socket pair that carries messages with descriptors in
//! them (unix(7), SCM_RIGHTS), and starting the program that inherits one end of it.

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr,
    accept4, bind, connect, getsockopt, listen, recvmsg, sendmsg, setsockopt, shutdown, socket, socketpair, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// Most descriptors in one message (the kernel takes 253).
pub const DESCRIPTORS_MAX: usize = 128;
/// Longest message. Each message is one packet, so it has to fit into the socket's send buffer.
pub const MESSAGE_MAX: usize = 128 << 10;

/// One end of the pair.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl From<OwnedFd> for Channel {
    fn from(fd: OwnedFd) -> Channel {
        Channel(fd)
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> OwnedFd {
        channel.0
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A message and the descriptors that came with it.
#[derive(Debug)]
pub struct Message {
    /// At most [`MESSAGE_MAX`] bytes.
    pub bytes: Vec<u8>,
    /// The descriptors that came with the message, in the sender's order.
    pub descriptors: Vec<OwnedFd>,
}

impl Channel {
    /// Two connected ends, closed on exec.
    pub fn pair() -> io::Result<(Channel, Channel)> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        for end in [&a, &b] {
            setsockopt(end, sockopt::SndBuf, &(2 * MESSAGE_MAX))?;
        }
        Ok((Channel(a), Channel(b)))
    }

    /// The end that the parent passed as descriptor `fd`. Only the first call gets it.
    pub fn inherited(fd: RawFd) -> io::Result<Channel> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if TAKEN.swap(true, Ordering::Relaxed) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        // SAFETY: F_SETFD touches no memory; the kernel checks the descriptor.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the parent passed it to this process for this purpose, so nothing else in it refers to the descriptor,
        // and the flag above makes it change hands once.
        Ok(Channel(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// One that waits for peers at an abstract address, which leaves no file behind.
    pub fn listen_abstract(name: &str) -> io::Result<OwnedFd> {
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        bind(socket.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
        listen(&socket, Backlog::new(4)?)?;
        Ok(socket)
    }

    /// The next peer of a socket of [`listen_abstract`](Self::listen_abstract), if it belongs to this user or to root.
    pub fn accept(socket: &OwnedFd) -> io::Result<Channel> {
        let fd = accept4(socket.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: the kernel has just made it; nobody else knows it.
        Channel(unsafe { OwnedFd::from_raw_fd(fd) }).trusted()
    }

    /// A connection to a peer that waits at an abstract address, if it belongs to this user or to root.
    pub fn connect_abstract(name: &str) -> io::Result<Channel> {
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        connect(socket.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
        Channel(socket).trusted()
    }

    /// Anybody may use an abstract address.
    fn trusted(self) -> io::Result<Channel> {
        let peer = getsockopt(&self.0, sockopt::PeerCredentials)?.uid();
        if peer != 0 && peer != nix::unistd::geteuid().as_raw() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("the peer belongs to user {peer}"),
            ));
        }
        setsockopt(&self.0, sockopt::SndBuf, &(2 * MESSAGE_MAX))?;
        Ok(self)
    }

    /// How long [`send`](Self::send) and [`receive`](Self::receive) wait; zero = for ever.
    pub fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        let time = TimeVal::milliseconds(timeout.as_millis() as i64);
        setsockopt(&self.0, sockopt::ReceiveTimeout, &time)?;
        setsockopt(&self.0, sockopt::SendTimeout, &time)?;
        Ok(())
    }

    /// Sends one message; the peer gets duplicates of the descriptors.
    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd]) -> io::Result<()> {
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[ControlMessage] = if raw.is_empty() { &[] } else { &rights };
        self.send_with(bytes, control, MsgFlags::MSG_NOSIGNAL)
    }

    /// Sends one message if there is room for it.
    pub fn try_send(&self, bytes: &[u8]) -> io::Result<()> {
        self.send_with(bytes, &[], MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT)
    }

    fn send_with(&self, bytes: &[u8], control: &[ControlMessage], flags: MsgFlags) -> io::Result<()> {
        // A socket with a timeout is interrupted by signals even if their handlers ask for a restart (signal(7)).
        uninterrupted(|| {
            let parts = [IoSlice::new(bytes)];
            sendmsg::<()>(self.0.as_raw_fd(), &parts, control, flags, None)
        })?;
        Ok(())
    }

    /// Hears no more: [`receive`](Self::receive) says that the peer has gone, also to whoever waits in it.
    pub fn stop_listening(&self) -> io::Result<()> {
        Ok(shutdown(self.0.as_raw_fd(), Shutdown::Read)?)
    }

    /// Waits for a message; `None` = the peer has gone. `WouldBlock` = the timeout has passed.
    pub fn receive(&self) -> io::Result<Option<Message>> {
        self.receive_with(MsgFlags::empty())
    }

    /// The same without waiting.
    pub fn try_receive(&self) -> io::Result<Option<Message>> {
        self.receive_with(MsgFlags::MSG_DONTWAIT)
    }

    fn receive_with(&self, flags: MsgFlags) -> io::Result<Option<Message>> {
        let mut bytes = vec![0; MESSAGE_MAX];
        let mut space = nix::cmsg_space!([RawFd; DESCRIPTORS_MAX]);
        let (length, flags, descriptors) = {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let fd = self.0.as_raw_fd();
            let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
            let message = loop {
                match recvmsg::<()>(fd, &mut parts, Some(&mut space), flags) {
                    Err(Errno::EINTR) => {}
                    // It has gone without having read everything.
                    Err(Errno::ECONNRESET) => return Ok(None),
                    other => break other?,
                }
            };
            let mut descriptors = Vec::new();
            for control in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(raw) = control {
                    // SAFETY: the kernel has just installed them in this process; nobody else knows them.
                    let own = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
                    descriptors.extend(raw.into_iter().map(own));
                }
            }
            (message.bytes, message.flags, descriptors)
        };
        if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
            return Err(io::Error::other("a message was cut short"));
        }
        if length == 0 {
            return Ok(None);
        }
        bytes.truncate(length);
        Ok(Some(Message { bytes, descriptors }))
    }
}

fn uninterrupted<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// Starts `program` with `arguments` and this process's environment, less the variables `without`. It finds the number
/// of its inherited end in the variable `variable`. Returns its process id.
///
/// The new process is no child of ours: it is started by a process in between that ends at once, so it belongs to the
/// service manager (or init), which then learns of its end although we live on.
///
/// # Errors
/// fork(2), execve(2): the program does not exist, is not executable, and so on.
pub fn spawn(
    program: &OsString,
    arguments: impl IntoIterator<Item = OsString>,
    variable: &str,
    without: &[&str],
    end: Channel,
) -> io::Result<u32> {
    let (pid_reader, pid_writer) = io::pipe()?;
    let (end, pid_fd) = (end.0, pid_writer.as_raw_fd());
    let end_fd = end.as_raw_fd();
    let mut command = Command::new(program);
    command.args(arguments).env(variable, end_fd.to_string());
    for name in without {
        command.env_remove(name);
    }
    let between = move || {
        // SAFETY: between fork and exec of a program with threads only async-signal-safe calls are allowed: fork, _exit,
        // fcntl, getpid and write are. The descriptors are open until `command` and the pipe are dropped below.
        unsafe {
            match libc::fork() {
                -1 => return Err(io::Error::last_os_error()),
                0 => {}
                _ => libc::_exit(0),
            }
            if libc::fcntl(end_fd, libc::F_SETFD, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            let pid = libc::getpid().to_ne_bytes();
            if libc::write(pid_fd, pid.as_ptr().cast(), pid.len()) != pid.len() as isize {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: see there.
    unsafe { command.pre_exec(between) };
    let mut child = command.spawn()?;
    let _ = child.wait();
    drop((pid_writer, end));
    let mut pid = [0; 4];
    io::Read::read_exact(&mut &pid_reader, &mut pid)?;
    Ok(u32::from_ne_bytes(pid))
}

/// Ends a process that did not answer.
pub fn kill(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(pid as i32);
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn descriptors_arrive_in_order_and_work() {
        let (near, far) = Channel::pair().unwrap();
        let pipes: Vec<_> = (0..DESCRIPTORS_MAX).map(|_| io::pipe().unwrap()).collect();
        let readers: Vec<BorrowedFd> = pipes.iter().map(|(reader, _)| reader.as_fd()).collect();
        near.send(b"hello", &readers).unwrap();
        let message = far.receive().unwrap().unwrap();
        assert_eq!(message.bytes, b"hello");
        for (ix, (fd, (_, mut writer))) in message.descriptors.into_iter().zip(pipes).enumerate() {
            writer.write_all(&[ix as u8]).unwrap();
            let mut byte = [0];
            io::PipeReader::from(fd).read_exact(&mut byte).unwrap();
            assert_eq!(byte, [ix as u8]);
        }
        near.send(&vec![7; MESSAGE_MAX], &[]).unwrap();
        assert_eq!(far.receive().unwrap().unwrap().bytes.len(), MESSAGE_MAX);
        drop(near);
        assert!(far.receive().unwrap().is_none());
    }

    #[test]
    fn a_silent_peer_is_told_from_a_gone_one() {
        let (near, _far) = Channel::pair().unwrap();
        near.set_timeout(Duration::from_millis(1)).unwrap();
        let error = near.receive().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    /// Break tried: returning from the process in between instead of ending it.
    #[test]
    fn a_spawned_program_is_no_child_of_ours_and_inherits_the_channel() {
        let (near, far) = Channel::pair().unwrap();
        near.set_timeout(Duration::from_secs(10)).unwrap();
        let script = "eval \"exec 9>&$END\"; printf '%s %s' $$ \"$(cut -d' ' -f4 /proc/$$/stat)\" >&9";
        let arguments = ["-c", script].map(OsString::from);
        // Not sh: dash knows descriptors of one digit only.
        let pid = spawn(&"/bin/bash".into(), arguments, "END", &[], far).unwrap();
        let said = near.receive().unwrap().unwrap().bytes;
        let said = String::from_utf8(said).unwrap();
        let (own, parent) = said.split_once(' ').unwrap();
        assert_eq!(own, pid.to_string());
        assert_ne!(parent, std::process::id().to_string());
        assert!(near.receive().unwrap().is_none(), "the shell has ended");
    }

    #[test]
    fn a_program_that_is_missing_is_an_error() {
        let (_near, far) = Channel::pair().unwrap();
        let error = spawn(&"/does/not/exist".into(), [], "END", &[], far).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
