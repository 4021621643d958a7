//! What an ICMP error means for its session: the table of the module's page.

use std::time::Duration;

use super::line::nanos;

/// An ICMP error counts only when the session sent something this recently. Covers the 3 s after which the kernel gives
/// up on a neighbour that does not answer ARP.
pub const RECENT: Duration = Duration::from_secs(5);

/// How long errors that prove little must go on, without one reply, before they move a session whose backend has replied
/// before. RFC 1122 4.2.3.9 calls "unreachable" soft because routes flap; what quotes nothing may be forged.
pub const CONFIRM: Duration = Duration::from_secs(3);

/// How well an ICMP error proves itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Quotes a datagram that the session sent lately and says that nobody listens there.
    Firm,
    /// Quotes a datagram that the session sent lately and says that host or network cannot be reached.
    Soft,
    /// As `Firm`, but the datagram is so short that it can have been guessed.
    Short,
    /// Quotes nothing that could be checked.
    Bare,
}

/// What an ICMP error means for its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// Nothing: nothing was sent lately, or forged for all we know.
    Ignored,
    /// Noted; what confirms it is in the table of the module's page.
    Suspected,
    /// The session is astray.
    Failed {
        /// Whether this counts against the backend.
        blame: bool,
        /// Whether the refused datagram may be sent again (to another backend, after [`Table::rebound`](super::Table::rebound)).
        resend: bool,
    },
}

/// What speaks for a session's backend, and against it.
#[derive(Debug, Default)]
pub(super) struct Trust {
    /// The backend has replied.
    pub proven: bool,
    /// A request has been sent since the last reply.
    pub asked: bool,
    /// First error since the last reply that was not believed.
    suspect: Option<Suspicion>,
}

#[derive(Debug, Clone, Copy)]
struct Suspicion {
    since: u64,
    /// How many had been sent by then.
    requests: u32,
}

/// What an error means for the session's backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judgement {
    Ignored,
    Suspected,
    Failed { blame: bool },
}

impl Trust {
    /// Of a session whose backend has replied, or not.
    pub(super) fn new(proven: bool) -> Trust {
        Trust {
            proven,
            ..Trust::default()
        }
    }

    /// The backend has replied.
    pub(super) fn note_reply(&mut self) {
        *self = Trust::new(true);
    }

    /// What was suspected is of no account any more.
    pub(super) fn clear(&mut self) {
        self.suspect = None;
    }

    /// An error that may be believed, `now` in nanoseconds, after so many requests.
    pub(super) fn judge(&mut self, now: u64, proof: Proof, requests: u32) -> Judgement {
        if self.proven && proof != Proof::Firm {
            // Whoever has answered everything is not suspected of anything by an error that proves next to nothing.
            if proof != Proof::Soft && !self.asked {
                return Judgement::Ignored;
            }
            let Some(suspect) = self.suspect else {
                self.suspect = Some(Suspicion { since: now, requests });
                return Judgement::Suspected;
            };
            let lasts = now - suspect.since >= nanos(CONFIRM);
            let again = proof == Proof::Short && requests > suspect.requests;
            if !lasts && !again {
                return Judgement::Suspected;
            }
        }
        self.suspect = None;
        let blame = match proof {
            Proof::Firm | Proof::Soft => true,
            Proof::Short => self.proven,
            Proof::Bare => false,
        };
        Judgement::Failed { blame }
    }
}
