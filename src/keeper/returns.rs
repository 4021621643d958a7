//! The process that has answers of backends come to this host although they are addressed to clients: `client_address: keep`.
//!
//! # How it works
//! A backend that sees its client's address sends its answers there. They pass this host, because it is the backend's way to the
//! client, and a [`Rule`] for each backend's address, protocol and port has them delivered here instead of forwarded. So no packet
//! filter is needed, nothing of what the host filters is touched, and what other hosts send is not looked at.
//!
//! `weir run` starts `weir keeper --returns` before it gives its privileges up, with one end of a socket pair as standard input.
//! Each main process has a channel of its own: in an upgrade the predecessor asks for another one ([`ReturnsHandle::share`]) and
//! hands that on. What any of them needs is there.
//!
//! # Invariants
//! * The channels are the only ties: the rules of a main process go when its channel closes, however it ended, and with the last
//!   one this process ends.
//! * A rule has no lease. If this process is killed too, rules stay until the next weir with the same admin socket, or
//!   `weir keeper --sweep`, removes them: they are told by the number of their table ([`table`]).
//!
//! # What it never does
//! It decides nothing, opens no file on request, executes nothing, and listens on no network.

mod run;

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::SUBCOMMAND;
use crate::sys::handover::Channel;
use crate::sys::rules::Rule;
use crate::sys::ways;

pub use run::main;

/// How the hidden subcommand is told what it is for.
pub const FLAG: &str = "--returns";

/// How long the process may take to start.
const START_MAX: Duration = Duration::from_secs(10);

/// How long a change may take: whoever deletes a namespace with a thousand interfaces holds the kernel's lock for a quarter of a
/// second.
const CHANGE_MAX: Duration = Duration::from_secs(2);

/// Rules in one message.
const PER_MESSAGE: usize = 256;

/// Tables of routes get numbers from here on, `TABLES` of them.
const TABLE_FIRST: u32 = 7_400_000;
const TABLES: u64 = 100_000;

/// The table of the weir with this admin socket: another one on the same host has another.
pub fn table(admin: &Path) -> u32 {
    TABLE_FIRST + (ways::instance(admin) % TABLES) as u32
}

/// From a main process. Each is answered, except the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Ask {
    /// First of all, once: the table, what a predecessor may have left in it goes.
    Begin { table: u32 },
    /// This process needs these rules.
    Add(Vec<Rule>),
    /// It does not need these any more.
    Remove(Vec<Rule>),
    /// The descriptor in this message is the channel of one more main process.
    Join,
}

/// With the number of the question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Question {
    number: u64,
    ask: Ask,
}

/// An answer to the main process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    number: u64,
    /// Why it was not done, if so.
    problem: Option<String>,
}

/// The main process's end.
#[derive(Debug)]
pub struct ReturnsHandle {
    channel: Channel,
    asked: Cell<u64>,
}

/// Starts the process. To be called before there are threads, and while this process still has the privileges to hand on.
///
/// # Errors
/// The binary cannot be executed again, privileges are missing, or the kernel does not take such rules.
pub fn spawn(table: u32) -> io::Result<ReturnsHandle> {
    let (ours, theirs) = Channel::pair()?;
    let child = Command::new("/proc/self/exe")
        .args([SUBCOMMAND, FLAG])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()?;
    log::debug!("keeper of return rules started, process {}", child.id());
    let handle = ReturnsHandle::from(OwnedFd::from(ours));
    handle.ask(Ask::Begin { table }, START_MAX).map_err(io::Error::other)?;
    Ok(handle)
}

impl From<OwnedFd> for ReturnsHandle {
    /// The channel that a predecessor has asked for.
    fn from(channel: OwnedFd) -> ReturnsHandle {
        ReturnsHandle {
            channel: channel.into(),
            asked: Cell::new(0),
        }
    }
}

impl ReturnsHandle {
    /// Has these rules made; they are there when this returns.
    ///
    /// # Errors
    /// In words. Those that could be made are there.
    pub fn add(&self, rules: &[Rule]) -> Result<(), String> {
        rules
            .chunks(PER_MESSAGE)
            .try_for_each(|part| self.ask(Ask::Add(part.to_vec()), CHANGE_MAX))
    }

    /// Has these rules removed, unless another main process needs them.
    ///
    /// # Errors
    /// What the kernel refused, in words.
    pub fn remove(&self, rules: &[Rule]) -> Result<(), String> {
        rules
            .chunks(PER_MESSAGE)
            .try_for_each(|part| self.ask(Ask::Remove(part.to_vec()), CHANGE_MAX))
    }

    /// A channel for one more main process.
    pub fn share(&self) -> io::Result<OwnedFd> {
        let (ours, theirs) = Channel::pair()?;
        self.send(Ask::Join, &[theirs.as_fd()])?;
        Ok(ours.into())
    }

    /// Whether the process is gone.
    pub fn has_ended(&self) -> bool {
        // What comes unasked is the late answer to a question that was given up.
        loop {
            match self.channel.try_receive() {
                Ok(Some(_)) => {}
                Ok(None) => return true,
                Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
            }
        }
    }

    fn send(&self, ask: Ask, descriptors: &[std::os::fd::BorrowedFd]) -> io::Result<u64> {
        let number = self.asked.get() + 1;
        self.asked.set(number);
        let question = serde_json::to_vec(&Question { number, ask })?;
        self.channel.send(&question, descriptors)?;
        Ok(number)
    }

    fn ask(&self, ask: Ask, patience: Duration) -> Result<(), String> {
        let outcome = self.channel.set_timeout(patience).and_then(|()| {
            let number = self.send(ask, &[])?;
            loop {
                let Some(message) = self.channel.receive()? else {
                    return Err(io::Error::other("the keeper of return rules has ended"));
                };
                let answer: Answer = serde_json::from_slice(&message.bytes)?;
                if answer.number == number {
                    return Ok(answer.problem);
                }
            }
        });
        match outcome {
            Ok(None) => Ok(()),
            Ok(Some(problem)) => Err(problem),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err("the keeper of return rules does not answer".into())
            }
            Err(error) => Err(error.to_string()),
        }
    }
}
