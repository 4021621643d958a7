//! The main process's end of the channel.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

use super::SUBCOMMAND;
use super::wire::{FromKeeper, PACKET_MAX, ToKeeper};
use crate::failover::timers::Timers;

/// The channel to a keeper. Dropping it ends the keeper, unless another process has it too.
#[derive(Debug)]
pub struct KeeperHandle {
    channel: OwnedFd,
}

/// Starts a keeper. To be called before there are threads, and while this process still has the privileges to hand on.
///
/// # Errors
/// The socket pair cannot be made or this binary cannot be executed again. Missing privileges are not an error here: the
/// keeper says so in [`FromKeeper::Ready`], and the VIPs are shown as `fault`.
pub fn spawn(timers: &Timers) -> io::Result<KeeperHandle> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    nix::fcntl::fcntl(&ours, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    // The link, not what it points to: the file may have been replaced since we were started.
    let child = Command::new("/proc/self/exe")
        .arg(SUBCOMMAND)
        .env_clear()
        .envs(std::env::vars().filter(|(name, _)| name == "RUST_BACKTRACE"))
        .current_dir("/")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()?;
    log::debug!("keeper started, process {}", child.id());
    let keeper = KeeperHandle { channel: ours };
    keeper.send(&ToKeeper::Setup { timers: *timers })?;
    Ok(keeper)
}

impl KeeperHandle {
    /// The descriptor that a new main process needs to go on with the same keeper.
    pub fn into_fd(self) -> OwnedFd {
        self.channel
    }

    /// Goes on with the keeper of a predecessor. No other process may use the channel any more.
    pub fn from_fd(channel: OwnedFd) -> KeeperHandle {
        KeeperHandle { channel }
    }

    /// Sends without waiting; `WouldBlock` when the keeper has stopped reading, `BrokenPipe` when it has ended.
    pub fn send(&self, message: &ToKeeper) -> io::Result<()> {
        let packet = serde_json::to_vec(message)?;
        send(
            self.channel.as_raw_fd(),
            &packet,
            MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
        )?;
        Ok(())
    }

    /// The next message; `None` if there is none yet, `UnexpectedEof` when the keeper has ended.
    pub fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<Option<FromKeeper>> {
        receive(self.channel.as_fd(), buffer, MsgFlags::MSG_DONTWAIT)
    }
}

/// Reads one packet.
pub(super) fn receive<T: serde::de::DeserializeOwned>(
    channel: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
    flags: MsgFlags,
) -> io::Result<Option<T>> {
    buffer.resize(PACKET_MAX, 0);
    match recv(channel.as_raw_fd(), buffer, flags) {
        Ok(0) | Err(Errno::ECONNRESET) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(length) => Ok(Some(serde_json::from_slice(&buffer[..length])?)),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

impl AsFd for KeeperHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}
