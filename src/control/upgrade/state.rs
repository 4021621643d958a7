//! How far this process is between one that came before it and one that comes after it.

use crossbeam_channel::Sender;

use super::{Inheritance, Predecessor, Program, Successor};
use crate::control::discovery::Told;
use crate::control::phase::Phase;
use crate::control::publication::inherited::InheritedSockets;
use crate::control::publication::pools::Knowledge;
use crate::control::publication::sockets::Assigned;

/// Where this process stands between one that came before it and one that comes after it.
#[derive(Debug)]
pub struct State {
    pub(in crate::control) program: Program,
    /// Sockets of a predecessor that no listener has claimed yet.
    pub inherited: InheritedSockets,
    /// Since this process was started by another one, until it serves; with what it will serve then.
    pub(in crate::control) waiting: Option<(Successor, Assigned)>,
    /// It serves; the process before it has not let go of everything yet.
    pub(in crate::control) arriving: bool,
    /// An upgrade is under way.
    pub(in crate::control) predecessor: Option<Predecessor>,
    /// Who waits for what comes of it.
    asked: Option<Sender<Result<String, String>>>,
    /// Another process serves, and this one drains; whether somebody has told it to stop besides.
    pub(in crate::control) handed_over: Option<(u32, bool)>,
    /// Why the last upgrade failed.
    pub error: Option<String>,
}

impl State {
    /// At the start of a process.
    pub fn new(inheritance: Inheritance) -> (State, Vec<Knowledge>, Vec<Told>) {
        let state = State {
            program: Program::own(),
            inherited: inheritance.sockets,
            waiting: inheritance.successor.map(|s| (s, Assigned::new())),
            arriving: false,
            predecessor: None,
            asked: None,
            handed_over: None,
            error: None,
        };
        (state, inheritance.knowledge, inheritance.members)
    }

    /// Whether this process is the service: what bears the service's name (files of sockets) is its own.
    pub fn is_service(&self) -> bool {
        self.waiting.is_none() && self.handed_over.is_none()
    }

    /// Whether another process still serves in place of this one.
    pub fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Keeps sockets back until this process is to serve.
    pub fn hold(&mut self, assigned: Assigned) -> Assigned {
        match &mut self.waiting {
            Some((_, held)) => std::mem::replace(held, assigned),
            None => assigned,
        }
    }

    /// As far as upgrades decide it: nothing is known here of an order to stop.
    pub fn phase(&self) -> Phase {
        match self.handed_over {
            Some((successor, told)) => Phase::HandedOver { successor, told },
            None if self.waiting.is_some() => Phase::Waiting,
            None if self.predecessor.is_some() => Phase::Upgrading,
            None if self.arriving => Phase::Arriving,
            None => Phase::Serving,
        }
    }

    /// Whom to tell what comes of the upgrade that begins.
    pub fn ask(&mut self, asked: Option<Sender<Result<String, String>>>) {
        self.asked = asked;
    }

    /// Tells whoever asked for the upgrade. One who has gone does not hear it.
    pub fn tell(&mut self, outcome: Result<String, String>) {
        if let Some(asked) = self.asked.take() {
            let _ = asked.send(outcome);
        }
    }

    /// An operator has told this process to stop, which has handed over already.
    pub fn note_stop(&mut self) {
        if let Some((_, told)) = &mut self.handed_over {
            *told = true;
        }
    }

    /// Aborts an upgrade under way. It is over when its [`Event`](super::Event) comes, with the sockets that nobody serves meanwhile.
    pub fn abandon(&self) {
        if let Some(predecessor) = &self.predecessor {
            predecessor.abandon();
        }
    }

    /// Whether an upgrade may hold sockets that nobody serves.
    pub fn is_upgrading(&self) -> bool {
        self.predecessor.is_some()
    }
}
