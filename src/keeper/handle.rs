//! The main process's end of the channel.
//!
//! A socket pair takes some 280 small packets before it is full, and a keeper may be frozen. So what is asked waits here, by state:
//! for each address the newest wish, of everything else the newest value. [`KeeperHandle::flush`] sends what fits, many wishes in
//! a packet; what a stuck keeper has not been told is never more than one configuration's worth, and never out of date.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use indexmap::IndexMap;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

use super::SUBCOMMAND;
use super::wire::{FromKeeper, Kept, PACKET_MAX, Target, ToKeeper};
use crate::failover::timers::Timers;

/// Messages in one packet.
pub(super) const PER_PACKET: usize = 256;

/// How long a hand-over waits for a keeper that has yet to read.
const PARTING_MS: u16 = 50;

/// The channel to a keeper. Dropping it ends the keeper, unless another process has it too.
#[derive(Debug)]
pub struct KeeperHandle {
    channel: OwnedFd,
    waiting: Waiting,
}

/// What the keeper has yet to be told.
#[derive(Debug, Default, PartialEq, Eq)]
struct Waiting {
    reset: Option<u64>,
    setup: Option<Timers>,
    watch: Option<(Vec<Kept>, Vec<String>)>,
    proof: Option<Duration>,
    wishes: IndexMap<Target, Wish>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Wish {
    hold: Option<bool>,
    /// With its `insist`.
    announce: Option<bool>,
}

impl Waiting {
    fn add(&mut self, message: ToKeeper) {
        match message {
            ToKeeper::Setup { timers } => self.setup = Some(timers),
            ToKeeper::Watch { kept, interfaces } => self.watch = Some((kept, interfaces)),
            ToKeeper::Prove { at } => self.proof = self.proof.max(Some(at)),
            ToKeeper::Hold { target } => self.wishes.entry(target).or_default().hold = Some(true),
            ToKeeper::Announce { target, insist } => {
                let wish = self.wishes.entry(target).or_default();
                wish.announce = Some(insist || wish.announce == Some(true));
            }
            ToKeeper::Release { target } => {
                let hold = Some(false);
                self.wishes.insert(target, Wish { hold, announce: None });
            }
            // What was asked before is void.
            ToKeeper::Reset { number } => {
                *self = Waiting {
                    reset: Some(number),
                    ..Waiting::default()
                };
            }
        }
    }

    fn is_empty(&self) -> bool {
        *self == Waiting::default()
    }

    /// All of it in the order in which it has to be read, as packets.
    fn packets(&mut self) -> VecDeque<Vec<ToKeeper>> {
        let all = std::mem::take(self);
        let mut first = Vec::new();
        first.extend(all.reset.map(|number| ToKeeper::Reset { number }));
        first.extend(all.setup.map(|timers| ToKeeper::Setup { timers }));
        first.extend(all.proof.map(|at| ToKeeper::Prove { at }));
        let mut packets = VecDeque::from([first]);
        let watch = |(kept, interfaces)| vec![ToKeeper::Watch { kept, interfaces }];
        packets.extend(all.watch.map(watch));
        let mut wishes = Vec::new();
        for (target, wish) in all.wishes {
            wishes.extend(wish.hold.map(|hold| match hold {
                true => ToKeeper::Hold { target: target.clone() },
                false => ToKeeper::Release { target: target.clone() },
            }));
            wishes.extend(wish.announce.map(|insist| ToKeeper::Announce { target, insist }));
        }
        packets.extend(wishes.chunks(PER_PACKET).map(<[ToKeeper]>::to_vec));
        packets.retain(|packet| !packet.is_empty());
        packets
    }
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
    let mut keeper = KeeperHandle::from_fd(ours);
    keeper.send(ToKeeper::Setup { timers: *timers });
    keeper.flush()?;
    Ok(keeper)
}

impl KeeperHandle {
    /// The descriptor that a new main process needs to go on with the same keeper.
    pub fn into_fd(mut self) -> OwnedFd {
        // What is still wanted must not get lost between two processes; a keeper that does not read now is found out later.
        if self.flush().is_ok() && !self.waiting.is_empty() {
            let mut writable = [PollFd::new(self.channel.as_fd(), PollFlags::POLLOUT)];
            let _ = poll(&mut writable, PollTimeout::from(PARTING_MS));
            let _ = self.flush();
        }
        self.channel
    }

    /// Goes on with the keeper of a predecessor. No other process may use the channel any more.
    pub fn from_fd(channel: OwnedFd) -> KeeperHandle {
        KeeperHandle {
            channel,
            waiting: Waiting::default(),
        }
    }

    /// Notes what the keeper shall be told with the next [`flush`](Self::flush).
    pub fn send(&mut self, message: ToKeeper) {
        self.waiting.add(message);
    }

    /// Sends without waiting what fits; the rest stays. To be called again when the channel is writable.
    ///
    /// # Errors
    /// `BrokenPipe` when the keeper has ended.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let mut packets = self.waiting.packets();
        let mut outcome = Ok(());
        while let Some(packet) = packets.front() {
            match transmit(self.channel.as_fd(), packet) {
                Ok(true) => packets.pop_front(),
                Ok(false) => break,
                Err(e) => {
                    outcome = Err(e);
                    break;
                }
            };
        }
        // Their order makes the same state again.
        packets
            .into_iter()
            .flatten()
            .for_each(|message| self.waiting.add(message));
        outcome
    }

    /// The next packet of messages; `None` if there is none yet, `UnexpectedEof` when the keeper has ended.
    pub fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<Option<Vec<FromKeeper>>> {
        receive(self.channel.as_fd(), buffer)
    }
}

/// Sends one packet without waiting; false when the channel is full.
pub(super) fn transmit<T: serde::Serialize>(channel: BorrowedFd<'_>, messages: &[T]) -> io::Result<bool> {
    let packet = serde_json::to_vec(messages)?;
    match send(
        channel.as_raw_fd(),
        &packet,
        MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
    ) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EINTR | Errno::ENOBUFS) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Reads one packet without waiting.
pub(super) fn receive<T: serde::de::DeserializeOwned>(
    channel: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<T>> {
    buffer.resize(PACKET_MAX, 0);
    match recv(channel.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn target(n: u8) -> Target {
        Target {
            net: format!("10.0.0.{n}/24").parse().unwrap(),
            interface: "eth0".into(),
        }
    }

    #[test]
    fn what_waits_is_the_newest_of_each() {
        let mut waiting = Waiting::default();
        let ms = Duration::from_millis;
        for message in [
            ToKeeper::Prove { at: ms(1) },
            ToKeeper::Hold { target: target(1) },
            ToKeeper::Announce {
                target: target(1),
                insist: true,
            },
            ToKeeper::Hold { target: target(2) },
            ToKeeper::Announce {
                target: target(2),
                insist: false,
            },
            ToKeeper::Release { target: target(1) },
            ToKeeper::Prove { at: ms(2) },
        ] {
            waiting.add(message);
        }
        let want = [
            vec![ToKeeper::Prove { at: ms(2) }],
            vec![
                ToKeeper::Release { target: target(1) },
                ToKeeper::Hold { target: target(2) },
                ToKeeper::Announce {
                    target: target(2),
                    insist: false,
                },
            ],
        ];
        assert_eq!(waiting.packets(), want);
        assert!(waiting.is_empty());
        waiting.add(ToKeeper::Hold { target: target(1) });
        waiting.add(ToKeeper::Reset { number: 3 });
        assert_eq!(waiting.packets(), [vec![ToKeeper::Reset { number: 3 }]]);
    }

    /// Issue 14, repair 4: beyond some 280 packets requests were lost, and with them addresses.
    #[test]
    fn nothing_is_lost_on_a_keeper_that_does_not_read() {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let mut handle = KeeperHandle::from_fd(ours);
        for round in 0..2_000u32 {
            let target = Target {
                net: format!("10.0.{}.{}/32", round / 250, round % 250).parse().unwrap(),
                interface: "eth0".into(),
            };
            handle.send(ToKeeper::Hold { target });
            handle.flush().unwrap();
        }
        assert!(!handle.waiting.is_empty(), "the channel was never full");
        let (mut buffer, mut seen) = (Vec::new(), 0);
        while seen < 2_000 {
            match receive::<Vec<ToKeeper>>(theirs.as_fd(), &mut buffer).unwrap() {
                Some(messages) => seen += messages.len(),
                None => handle.flush().unwrap(),
            }
        }
        assert_eq!(seen, 2_000);
        assert!(handle.waiting.is_empty());
    }
}
