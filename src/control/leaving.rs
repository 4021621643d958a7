//! Who is told when an address leaves this host: whatever may have connections to it.

use std::net::IpAddr;
use std::sync::Arc;

use super::upgrade::Before;
use crate::link::{Command, EngineOrder, Finished, Shared};

/// Workers, those that finish what they have, the other engines, and a process before this one that drains.
#[derive(Debug, Clone)]
pub struct Leaving {
    shared: Arc<Shared>,
    /// The process before this one.
    pub before: Before,
}

impl Leaving {
    /// Nothing is before this process yet.
    pub fn new(shared: Arc<Shared>) -> Leaving {
        let before = Before::default();
        Leaving { shared, before }
    }

    /// Has connections to this address reset; the second is dropped when that is done. Never waits.
    pub fn leave(&self, address: IpAddr, finished: Arc<Finished>) {
        let leave = EngineOrder::Leave {
            address,
            finished: finished.clone(),
        };
        for worker in self.shared.workers().iter().chain(self.shared.retired_workers().iter()) {
            // A queue that is full belongs to a worker that does not turn.
            let _ = worker.try_send(Command::Order(leave.clone()));
        }
        for engine in self.shared.engines().iter() {
            engine.obey(leave.clone());
        }
        self.before.leave(address, finished);
    }
}
