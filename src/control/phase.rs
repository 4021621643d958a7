//! Where a process is in its life, and which operations it takes there.
//!
//! ```text
//!  started by an operator                          -> Serving <-> Upgrading -> HandedOver -> ends
//!  started by an upgrade: Waiting -> Arriving ------> Serving        |
//!  told to end, from each of them:   Stopping -> ends <--------------+
//! ```
//!
//! A process that is on its way out must not do anything that only the service does: bind an address (it would join the
//! SO_REUSEPORT group of its successor, and take connections with it when it ends), start an election, write in the
//! service's name. Such an operation is refused, with the reason in the log or in the answer.

use std::fmt;

/// Where a process is between its start and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Started by an upgrade: another process serves.
    Waiting,
    /// It serves; the process before it has not yet handed over the VIPs and the service's name.
    Arriving,
    /// It is the service.
    Serving,
    /// It is the service, and another process gets ready to be.
    Upgrading,
    /// It has been told to end and lets connections finish.
    Stopping,
    /// Another process serves; connections may finish here.
    HandedOver {
        /// Id of the process that serves.
        successor: u32,
        /// An operator has told this one to end besides: the next time it ends at once.
        told: bool,
    },
}

/// What a process can be told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// The HUP signal, `weir reload`.
    Reload,
    /// The USR2 signal, `weir upgrade`.
    Upgrade,
    /// The TERM or INT signal.
    Stop,
    /// `weir backend`.
    Backend,
    /// `weir vip`.
    Vip,
    /// `weir kill`.
    Kill,
    /// Status, connections, metrics, health, history: nothing changes.
    Look,
}

/// What comes of being told to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is carried out.
    Take,
    /// It is carried out already; the next one of its kind ends the process at once.
    Already,
    /// The process ends at once.
    End,
    /// Nothing is done.
    Refuse(Why),
}

/// Why an operation is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// This process is about to be replaced, or replaces another one.
    Upgrading,
    /// It is about to end.
    Stopping,
    /// It has been replaced by this process.
    Replaced(u32),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Why::Upgrading => f.write_str("an upgrade is under way; try again when it is over"),
            Why::Stopping => f.write_str("this process is stopping"),
            Why::Replaced(successor) => write!(f, "process {successor} serves in place of this one: tell that one"),
        }
    }
}

/// Whether an operation is taken in a phase.
pub fn answer(operation: Operation, phase: Phase) -> Answer {
    use Phase::{Arriving, HandedOver, Serving, Stopping, Upgrading, Waiting};
    let refuse = Answer::Refuse;
    match (operation, phase) {
        (Operation::Look | Operation::Kill, _) => Answer::Take,

        (Operation::Stop, Waiting | Stopping | HandedOver { told: true, .. }) => Answer::End,
        (Operation::Stop, HandedOver { told: false, .. }) => Answer::Already,
        (Operation::Stop, Arriving | Serving | Upgrading) => Answer::Take,

        (_, Serving) => Answer::Take,
        // It closes connections that are left.
        (Operation::Backend, Stopping) => Answer::Take,
        // The predecessor has told what it knew, and the pools are served here.
        (Operation::Backend, Arriving) => Answer::Take,
        // The election goes over with everything that it knows.
        (Operation::Vip, Upgrading) => Answer::Take,

        // The successor would not know of the change.
        (_, Waiting | Arriving | Upgrading) => refuse(Why::Upgrading),
        (_, Stopping) => refuse(Why::Stopping),
        (_, HandedOver { successor, .. }) => refuse(Why::Replaced(successor)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seen to fail with a reload that is taken while stopping.
    #[test]
    fn orders_by_phase() {
        const ENDS: Answer = Answer::End;
        const YES: Answer = Answer::Take;
        const BUSY: Answer = Answer::Refuse(Why::Upgrading);
        const STOPS: Answer = Answer::Refuse(Why::Stopping);
        const GONE: Answer = Answer::Refuse(Why::Replaced(7));
        let gone = |told| Phase::HandedOver { successor: 7, told };
        let phases = [
            Phase::Waiting,
            Phase::Arriving,
            Phase::Serving,
            Phase::Upgrading,
            Phase::Stopping,
            gone(false),
            gone(true),
        ];
        #[rustfmt::skip]
        let rows = [
            //               waiting arriving serving upgrading stopping handed over      and told to stop
            (Operation::Reload,  [BUSY,  BUSY,    YES,    BUSY,     STOPS,   GONE,            GONE]),
            (Operation::Upgrade, [BUSY,  BUSY,    YES,    BUSY,     STOPS,   GONE,            GONE]),
            (Operation::Stop,    [ENDS,  YES,     YES,    YES,      ENDS,    Answer::Already, ENDS]),
            (Operation::Backend, [BUSY,  YES,     YES,    BUSY,     YES,     GONE,            GONE]),
            (Operation::Vip,     [BUSY,  BUSY,    YES,    YES,      STOPS,   GONE,            GONE]),
            (Operation::Kill,    [YES,   YES,     YES,    YES,      YES,     YES,             YES]),
            (Operation::Look,    [YES,   YES,     YES,    YES,      YES,     YES,             YES]),
        ];
        for (operation, answers) in rows {
            for (phase, expected) in phases.into_iter().zip(answers) {
                assert_eq!(answer(operation, phase), expected, "{operation:?} in {phase:?}");
            }
        }
    }
}
