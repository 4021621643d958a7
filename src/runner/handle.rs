//! The main process's end of the channel.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

use super::{Commands, PACKET_MAX, Ran, Run, SUBCOMMAND, ToRunner};

/// The channel to a runner.
#[derive(Debug)]
pub struct RunnerHandle {
    channel: OwnedFd,
}

/// Starts a runner of these commands, which it reads again from `file`. To be called before the process gives anything up.
pub fn spawn(commands: &Commands, file: Option<&Path>) -> io::Result<RunnerHandle> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    // The link, not what it points to: the file may have been replaced since we were started.
    Command::new("/proc/self/exe")
        .arg(SUBCOMMAND)
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()?;
    let runner = RunnerHandle { channel: ours };
    runner.introduce(commands, file)?;
    Ok(runner)
}

impl RunnerHandle {
    /// The descriptor that a new main process needs to go on with the same runner.
    pub fn into_fd(self) -> OwnedFd {
        self.channel
    }

    /// Goes on with the runner of a predecessor.
    pub fn from_fd(channel: OwnedFd) -> RunnerHandle {
        RunnerHandle { channel }
    }

    /// A second one for the same runner; answers go to whoever reads first.
    pub fn try_clone(&self) -> io::Result<RunnerHandle> {
        let channel = self.channel.try_clone()?;
        Ok(RunnerHandle { channel })
    }

    /// Tells it the commands, and where to read them again. It listens to that once.
    pub fn introduce(&self, commands: &Commands, file: Option<&Path>) -> io::Result<()> {
        self.send(&ToRunner::Commands {
            commands: commands.clone(),
            file: file.map(std::path::absolute).transpose()?,
        })
    }

    /// Has the commands read again from the configuration file.
    pub fn reload(&self) -> io::Result<()> {
        self.send(&ToRunner::Reload)
    }

    /// Has a command run; its [`Ran`] comes when it has ended.
    pub fn run(&self, run: Run) -> io::Result<()> {
        self.send(&ToRunner::Run(run))
    }

    /// Never waits: `WouldBlock` when the runner does not read.
    fn send(&self, message: &ToRunner) -> io::Result<()> {
        let packet = serde_json::to_vec(message)?;
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        send(self.channel.as_raw_fd(), &packet, flags)?;
        Ok(())
    }

    /// The next answer; `None` if there is none yet, `UnexpectedEof` when the runner has ended.
    pub fn receive(&self) -> io::Result<Option<Ran>> {
        receive(self.channel.as_fd())
    }
}

impl AsFd for RunnerHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

/// Reads one packet without waiting.
pub(super) fn receive<T: serde::de::DeserializeOwned>(channel: BorrowedFd<'_>) -> io::Result<Option<T>> {
    let mut buffer = vec![0; PACKET_MAX];
    match recv(channel.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
        Ok(0) | Err(Errno::ECONNRESET) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(length) => Ok(Some(serde_json::from_slice(&buffer[..length])?)),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}
