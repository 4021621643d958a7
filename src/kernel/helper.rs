//! The process that loads and attaches, `weir kernel-helper`: what it holds lives as long as it does.
//!
//! # How it works
//! `weir run` starts it before it gives its privileges up, with one end of a socket pair as standard input. It makes the maps,
//! loads the program, and sends the descriptors of the maps back; from then on the main process works on those, and this one
//! attaches the program to interfaces that appear. When the main process has gone, however it went, this one waits for
//! `restart_grace` on an abstract socket for another one of the same user and the same admin socket, and ends then: links,
//! program and maps go with it, and nothing is left. An upgrade hands the socket pair on, so it notices nothing.
//!
//! # What it never does
//! It decides nothing about connections; frames that reset connections are made by the main process. Nor does it look into the
//! maps, but for one thing: when the main process has gone, its workers' connections have, and the program counts them no more.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use caps::{CapSet, Capability, CapsHashSet};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::socket::{SockType, getsockopt, sockopt};
use serde::{Deserialize, Serialize};

use super::program::{Injected, Program, Sizes};
use crate::sys::handover::Channel;
use crate::sys::output;

/// The hidden subcommand under which the binary becomes a helper.
pub const SUBCOMMAND: &str = "kernel-helper";

/// How often interfaces are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How long the end of another process may take to come through.
const PARTING: Duration = Duration::from_secs(2);

/// What loading and attaching takes. CAP_PERFMON: without it the kernel guards every branch against speculation, at a cost for
/// each packet, and finds the loops too complex.
const NEEDED: [Capability; 3] = [Capability::CAP_NET_ADMIN, Capability::CAP_BPF, Capability::CAP_PERFMON];

/// A message from the main process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ToHelper {
    /// First of all, once.
    Load {
        /// How many entries the maps are to have.
        sizes: Sizes,
        /// Name of the abstract socket at which a later process finds this one.
        name: String,
        /// What may change later, as in `Follow`.
        wishes: Wishes,
    },
    /// Wishes that have changed.
    Follow(Wishes),
    /// Have these come in.
    Inject(Vec<Injected>),
    /// The helper is to end at once.
    End,
}

/// What may change while the program runs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Wishes {
    /// Where to attach; empty = every Ethernet interface.
    pub interfaces: Vec<String>,
    /// How long to wait for another main process.
    pub grace: Duration,
}

/// To the main process, with the descriptors of the maps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromHelper {
    /// The program is loaded and attached; the maps' descriptors come with it.
    Ready {
        /// [`digest`](super::program::digest) of the program.
        digest: String,
    },
    /// The program cannot be loaded or attached.
    Failed {
        /// Why, and what would help.
        reason: String,
    },
    /// Something about interfaces that is worth a line in the log.
    Says {
        /// The line, without level or time.
        line: String,
    },
}

/// The whole life of a helper.
pub fn main() -> ExitCode {
    let stdin = io::stdin();
    if !matches!(getsockopt(&stdin.as_fd(), sockopt::SockType), Ok(SockType::SeqPacket)) {
        output::last_words("weir kernel-helper: is started by weir run, not by hand");
        return ExitCode::from(2);
    }
    // Signals to the group are for the main process, whose end is what ends us; and it may end without us.
    let _ = nix::unistd::setsid();
    let _ = SigSet::all().thread_block();
    let _ = nix::sys::prctl::set_name(c"weir-kernel");
    match Channel::inherited(0).and_then(serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::last_words(&format!("weir kernel-helper: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// What this process has not of what loading and attaching takes.
pub fn missing() -> Result<Vec<String>, String> {
    let now = caps::read(None, CapSet::Permitted).map_err(|error| error.to_string())?;
    let missing = NEEDED.iter().filter(|capability| !now.contains(capability));
    Ok(missing.map(ToString::to_string).collect())
}

/// Gives up what is not needed; says what is missing.
fn settle_privileges() -> Result<(), String> {
    let needed: CapsHashSet = NEEDED.into_iter().collect();
    let now = caps::read(None, CapSet::Permitted).map_err(|error| error.to_string())?;
    let missing = missing()?;
    for set in [
        CapSet::Ambient,
        CapSet::Effective,
        CapSet::Inheritable,
        CapSet::Permitted,
    ] {
        let kept = match set {
            CapSet::Ambient | CapSet::Inheritable => CapsHashSet::new(),
            _ => now.intersection(&needed).copied().collect(),
        };
        caps::set(None, set, &kept).map_err(|error| error.to_string())?;
    }
    let _ = nix::sys::prctl::set_no_new_privs();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "{} missing: add it to AmbientCapabilities= and CapabilityBoundingSet= of the unit (docs/kernel-engine.md), or write `engine: proxy`",
            missing.join(" and ")
        )),
    }
}

fn say(channel: &Channel, what: &FromHelper, descriptors: &[BorrowedFd]) -> io::Result<()> {
    channel.send(&serde_json::to_vec(what)?, descriptors)
}

fn serve(channel: Channel) -> io::Result<()> {
    let Some(first) = channel.receive()? else { return Ok(()) };
    let ToHelper::Load { sizes, name, wishes } = serde_json::from_slice(&first.bytes)? else {
        return Err(io::Error::other("the first message is not understood"));
    };
    let loaded = settle_privileges().and_then(|()| Program::load(&sizes));
    let program = match loaded {
        Ok(program) => program,
        Err(reason) => return say(&channel, &FromHelper::Failed { reason }, &[]),
    };
    Helper {
        program,
        name,
        wishes,
        told: Vec::new(),
    }
    .run(channel)
}

struct Helper {
    program: Program,
    name: String,
    wishes: Wishes,
    /// What was said about interfaces last.
    told: Vec<String>,
}

impl Helper {
    fn run(&mut self, channel: Channel) -> io::Result<()> {
        let waiting = match self.listen() {
            Ok(socket) => socket,
            Err(error) => {
                let reason = format!("another helper of the kernel engine serves this admin socket ({error})");
                return say(&channel, &FromHelper::Failed { reason }, &[]);
            }
        };
        // Before anybody is told that all is ready.
        let (before, trouble) = (Vec::new(), self.program.follow(&self.wishes.interfaces));
        self.introduce(&channel)?;
        self.tell(&channel, before, trouble);
        let mut channel = channel;
        loop {
            if !self.attend(&channel, &waiting)? {
                return Ok(());
            }
            drop(channel);
            let _ = self.program.forget_workers();
            match self.wait(&waiting)? {
                Some(next) => channel = next,
                None => return Ok(()),
            }
            // One that has gone meanwhile is noticed at once.
            let _ = self.introduce(&channel);
        }
    }

    /// Where later processes find this one. Another helper that was told to end may need a moment.
    fn listen(&self) -> io::Result<OwnedFd> {
        let until = Instant::now() + PARTING;
        loop {
            match Channel::listen_abstract(&self.name) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                other => return other,
            }
        }
    }

    fn introduce(&self, channel: &Channel) -> io::Result<()> {
        let descriptors = self.program.descriptors()?;
        let descriptors: Vec<BorrowedFd> = descriptors.iter().map(AsFd::as_fd).collect();
        let ready = FromHelper::Ready {
            digest: super::program::digest(),
        };
        say(channel, &ready, &descriptors)
    }

    /// Follows interfaces and what the main process says, until that has gone (true) or says that this is the end.
    fn attend(&mut self, channel: &Channel, waiting: &OwnedFd) -> io::Result<bool> {
        let mut due = Instant::now() + LOOK;
        loop {
            let left = due.saturating_duration_since(Instant::now());
            let [heard, asked] = readable([channel.as_fd(), waiting.as_fd()], left)?;
            if asked && !heard {
                // Either that one is wrong, or this one's end has not come through yet.
                if !readable([channel.as_fd()], PARTING)?[0] {
                    let reason = "another weir with the same admin socket is running".into();
                    if let Ok(other) = Channel::accept(waiting) {
                        let _ = say(&other, &FromHelper::Failed { reason }, &[]);
                    }
                }
                continue;
            }
            if heard {
                match channel.receive() {
                    Ok(None) => return Ok(true),
                    Ok(Some(message)) => match serde_json::from_slice(&message.bytes)? {
                        ToHelper::Follow(wishes) => {
                            self.wishes = wishes;
                            self.told.clear();
                            due = Instant::now();
                        }
                        ToHelper::Inject(frames) => self.inject(channel, &frames),
                        ToHelper::End => return Ok(false),
                        ToHelper::Load { .. } => {}
                    },
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return Ok(true),
                }
                continue;
            }
            due = Instant::now() + LOOK;
            let before = self.program.attached();
            let trouble = self.program.follow(&self.wishes.interfaces);
            self.tell(channel, before, trouble);
        }
    }

    fn inject(&mut self, channel: &Channel, frames: &[Injected]) {
        let outcome = frames.iter().try_for_each(|frame| self.program.inject(frame));
        if let Err(error) = outcome {
            let line = format!("connections cannot be reset: {error}");
            let _ = say(channel, &FromHelper::Says { line }, &[]);
        }
    }

    /// Tells what has changed about interfaces.
    fn tell(&mut self, channel: &Channel, before: Vec<String>, trouble: Vec<String>) {
        let after = self.program.attached();
        if before != after {
            let line = format!("attached to {}", after.join(", "));
            let _ = say(channel, &FromHelper::Says { line }, &[]);
        }
        for line in trouble.iter().filter(|line| !self.told.contains(line)) {
            let line = format!("cannot attach to {line}");
            let _ = say(channel, &FromHelper::Says { line }, &[]);
        }
        self.told = trouble;
    }

    /// Waits for another main process; `None` = in vain.
    fn wait(&mut self, waiting: &OwnedFd) -> io::Result<Option<Channel>> {
        // Standard error is the pipe of a process that has gone; whoever reads it waits for its end.
        if let Ok(null) = std::fs::File::options().write(true).open("/dev/null") {
            let _ = nix::unistd::dup2_stderr(&null);
        }
        let until = Instant::now() + self.wishes.grace;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            if readable([waiting.as_fd()], left)?[0]
                && let Ok(channel) = Channel::accept(waiting)
            {
                return Ok(Some(channel));
            }
        }
    }
}

fn readable<const N: usize>(fds: [BorrowedFd; N], within: Duration) -> io::Result<[bool; N]> {
    let mut polled = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    let ms = within.as_millis().min(i32::MAX as u128) as i32;
    match poll(&mut polled, PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX)) {
        Ok(_) => Ok(polled.map(|fd| fd.any().unwrap_or(true))),
        Err(nix::errno::Errno::EINTR) => Ok([false; N]),
        Err(error) => Err(error.into()),
    }
}
