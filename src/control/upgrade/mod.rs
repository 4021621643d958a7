//! Upgrade: the binary on disk takes over every listening socket, then this process drains.
//!
//! # How it works
//!
//! ```text
//! predecessor                                             successor
//!   duplicates every listening socket
//!   starts the binary with one end of a channel         ->  reads the file, meets the same checks as any start
//!   Socket.. (descriptors), Everything                  ->  binds what it did not inherit, starts its threads
//!   (serves all the while)                              <-  Ready {unused}, or Refused {reason}
//!   workers let go of the sockets, Sessions.., Go       ->  workers take the sockets, with their UDP sessions
//!   stops the election, names the successor             <-  Serving
//!   VipsPart.., Vips (keeper, beats, state)             ->  goes on with the election
//!   Main                                                ->  speaks for the service from now on
//!   drains within shutdown_grace, ends                <-> Leaves, Left: addresses that leave this host meanwhile
//! ```
//!
//! # Invariants
//!
//! 1. *No listening socket is closed.* The predecessor keeps a duplicate until the successor serves. The members
//!    of a SO_REUSEPORT group stay the same sockets, so the kernel neither moves nor resets a queued connection.
//! 2. *Until Go the predecessor alone accepts*, and until Serving it can take everything back. Whatever fails before that
//!    (no such file, a refused configuration, a crash, silence for [`START_MAX`]) leaves it as it was, with the reason in
//!    log and status. That one of them is of a version which cannot go on with what the other hands over is noticed before Ready
//!    (`forms`). What cannot be read after Ready is left out, with a word.
//! 3. *Exactly one speaks* to the service manager: see [`Notifier`](super::notifier::Notifier).
//! 4. *A UDP session goes with its listening socket*, in one step: see the workers' `udp::migrate`. Datagrams wait in the
//!    kernel meanwhile.
//! 5. A socket that the successor has no use for is served until empty, and closed, by the predecessor.
//!
//! If the predecessor dies before Go, the successor has every socket and nobody else will serve: it goes on by itself. It
//! gives up only when it is told to ([`Note::Abandon`]).
//!
//! What it never does: hand over TCP connections (they end where they began), or run two upgrades, or a reload, at once.
//!
//! # Registrations
//!
//! An epoll registration belongs to the open file, which the duplicate keeps open. A worker that lets a socket go
//! therefore deregisters it by hand before it closes its descriptor.

mod before;
mod forms;
mod inheritance;
mod predecessor;
mod state;

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::control::amend;
use crate::control::discovery::Told;
use crate::control::election::Detached;
use crate::control::publication::inherited::Label;
use crate::control::publication::pools::Knowledge;
use crate::link::{Address, Finished, HandedSession, ListenSocket, SessionState};
use crate::sys::handover::{Channel, MESSAGE_MAX};

pub use before::Before;
pub use inheritance::{Inheritance, Successor};
pub use predecessor::{Handover, KNOWLEDGE_MAX, Predecessor, Program};
pub use state::State;

/// How long a new process may take to get ready.
pub const START_MAX: Duration = Duration::from_secs(15);
/// How long each later step may take.
const STEP_MAX: Duration = Duration::from_secs(5);
/// The variable that names the inherited end of the channel.
const VARIABLE: &str = "WEIR_UPGRADE_FD";
/// Bytes of the election's state in one message: a thousand addresses take many. As a string in JSON a byte takes six at most.
const VIPS_PART_MAX: usize = MESSAGE_MAX / 8;

/// What is said on the channel. Both ends may be of different versions: a note that one does not know ends the upgrade before
/// Ready, and is left out later; a field that it does not know is ignored.
#[derive(Debug, Serialize, Deserialize)]
enum Note {
    /// Sockets; the descriptors are in the message, in this order.
    Sockets(Vec<Label>),
    /// What is known of backends.
    Knowledge(Vec<Knowledge>),
    /// What is known of sources of members; said only if there are some.
    Members(Vec<Told>),
    /// Backends that operators have added and removed; said only if there are some.
    Amended(Vec<amend::Told>),
    /// Everything has been said; sessions come later.
    Everything,
    /// UDP sessions; the descriptors are in the message, in this order.
    Sessions(Vec<SessionState>),
    /// The successor is to serve.
    Go,
    /// The election's state begins like this, or goes on; the end comes with `Vips`.
    VipsPart(String),
    /// The election's state, or the rest of it; the descriptors are the keeper's channel and the socket for beats.
    Vips(String),
    /// You speak for the service now.
    Main,
    /// End without having served.
    Abandon,
    /// The successor could serve; it closed these without having accepted anything.
    Ready {
        /// Sockets that it closed, as `Sockets` named them.
        unused: Vec<Label>,
    },
    /// The successor ends, because of this.
    Refused(String),
    /// The successor serves.
    Serving,
    /// An address leaves this host: reset the connections to it that have stayed.
    Leaves(IpAddr),
    /// Those connections have been reset.
    Left(IpAddr),
}

/// What control learns about an upgrade, on either side.
#[derive(Debug)]
pub enum Event {
    /// Predecessor: the successor serves.
    Done(Done),
    /// Predecessor: nothing came of it.
    Failed {
        /// What went wrong, in words.
        reason: String,
        /// What workers have let go and have to serve again.
        back: Back,
    },
    /// Successor: serve, and go on with these sessions.
    Go(Vec<HandedSession>),
    /// Successor: go on with the election.
    Vips(Detached),
    /// Successor: speak for the service.
    Main,
    /// Successor: end without having served.
    Abandoned,
}

/// What the predecessor has and nobody serves at the moment.
#[derive(Debug, Default)]
pub struct Back {
    /// Listening sockets that no worker reads.
    pub sockets: Vec<ListenSocket>,
    /// UDP sessions of those sockets.
    pub sessions: Vec<HandedSession>,
}

/// See [`Event::Done`].
#[derive(Debug)]
pub struct Done {
    /// The successor's process id.
    pub pid: u32,
    /// Addresses that it has no use for.
    pub unused: Vec<(u32, Address)>,
    /// The same of our own sockets.
    pub unused_own: Vec<String>,
    line: Line,
}

impl Done {
    /// Hands the election over. Until the successor takes it up nobody proves life to the keeper, so nothing may come between.
    pub fn hand_vips(&self, election: Detached) {
        let state = String::from_utf8_lossy(&election.state);
        let mut fds = vec![election.keeper.as_fd(), election.listener.as_fd()];
        fds.extend(election.runner.as_ref().map(AsFd::as_fd));
        if let Err(error) = self.say_vips(&state, &fds) {
            log::error!("upgrade: the VIPs cannot be handed over, and come back when weir is restarted: {error}");
        }
    }

    fn say_vips(&self, mut state: &str, fds: &[BorrowedFd]) -> io::Result<()> {
        while state.len() > VIPS_PART_MAX {
            let (part, rest) = state.split_at(state.floor_char_boundary(VIPS_PART_MAX));
            self.line.say(&Note::VipsPart(part.into()))?;
            state = rest;
        }
        self.line.say_with(&Note::Vips(state.into()), fds)
    }

    /// Tells the successor that it speaks for the service now, and does what it says of addresses that leave.
    pub fn tell(self, leave: impl Fn(IpAddr, Arc<Finished>) + Send + 'static) {
        let line = self.line;
        let outcome = line.say(&Note::Main).and_then(|()| {
            let attend = move || drop(before::attend(&line, leave));
            std::thread::Builder::new().name("upgrade".into()).spawn(attend)
        });
        if let Err(error) = outcome {
            log::warn!("upgrade: {error}");
        }
    }
}

/// A channel that carries [`Note`]s.
#[derive(Debug, Clone)]
struct Line(Arc<Channel>);

impl Line {
    fn say(&self, note: &Note) -> io::Result<()> {
        self.say_with(note, &[])
    }

    fn say_with(&self, note: &Note, fds: &[BorrowedFd]) -> io::Result<()> {
        self.0.send(&serde_json::to_vec(note)?, fds)
    }

    /// The same without waiting for room.
    fn try_say(&self, note: &Note) -> io::Result<()> {
        self.0.try_send(&serde_json::to_vec(note)?)
    }

    /// The next note with its descriptors; `None` = the peer has gone. `InvalidData` = one that this version does not understand.
    fn hear(&self) -> io::Result<Option<(Note, Vec<OwnedFd>)>> {
        let Some(message) = self.0.receive()? else {
            return Ok(None);
        };
        let note = serde_json::from_slice(&message.bytes).map_err(|error| {
            let why = format!(
                "the version that serves and the new one do not understand each other ({error}): restart weir instead"
            );
            io::Error::new(io::ErrorKind::InvalidData, why)
        })?;
        Ok(Some((note, message.descriptors)))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::Duration;

    use super::*;

    /// In parts, and whatever is said between them that this version does not know.
    ///
    /// Seen to fail with the state in one message.
    #[test]
    fn the_state_of_many_addresses_goes_over_whole() {
        let (near, far) = Channel::pair().unwrap();
        let (tell, told) = crossbeam_channel::unbounded();
        let line = Line(Arc::new(near));
        let done = Done {
            pid: 0,
            unused: Vec::new(),
            unused_own: Vec::new(),
            line: line.clone(),
        };
        let hears = std::thread::spawn(move || {
            let far = Line(Arc::new(far));
            inheritance::listen(&far, &Before::default(), |event| tell.send(event).is_ok());
        });
        let descriptor = || File::open("/dev/null").unwrap().into();
        for length in [0, 1, VIPS_PART_MAX, VIPS_PART_MAX + 1, 1 << 20] {
            line.0.send(br#"{"Later":{"by":3}}"#, &[]).unwrap();
            // As long in JSON as they get, and none that may be cut.
            let state: String = "\u{1}\"\u{fc}".chars().cycle().take(length).collect();
            done.hand_vips(Detached {
                keeper: descriptor(),
                listener: descriptor(),
                runner: None,
                state: state.clone().into_bytes(),
            });
            match told.recv_timeout(Duration::from_secs(10)) {
                Ok(Event::Vips(detached)) => assert!(detached.state == state.as_bytes(), "{length}"),
                other => panic!("{length}: {other:?}"),
            }
        }
        drop((done, line));
        hears.join().unwrap();
    }
}
