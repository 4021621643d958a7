//! What the table says is to be done.

use crate::base::Key;

/// Which cap is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// Sessions of the process.
    Process,
    /// Sessions of the listener.
    Listener,
    /// Sessions of the source address at the listener.
    Source,
}

/// What to do with datagrams from a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// No session: check access and caps, then [`Table::open`](super::Table::open).
    Unknown,
    /// Send `take` datagrams to the session's backend, then ask again about the rest.
    Forward {
        /// The session that the datagrams belong to.
        id: Key,
        /// How many of the datagrams, at least one.
        take: u32,
        /// No reply is expected: [`Table::finish`](super::Table::finish) once they are sent.
        finishes: bool,
    },
    /// As `Forward`, but pick a backend and call [`Table::rebound`](super::Table::rebound) first. Without a backend drop the datagrams and leave
    /// the session as it is.
    Repick {
        /// The session that the datagrams belong to.
        id: Key,
        /// How many of the datagrams, at least one.
        take: u32,
        /// As in `Forward`.
        finishes: bool,
        /// The session had ended: for accounting this is a new one.
        reopened: bool,
    },
}

/// What replies mean for their session. They are delivered in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// The session goes on.
    Continue,
    /// All replies have come: account for the session, then [`Table::finish`](super::Table::finish).
    Finished,
}
