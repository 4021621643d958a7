//! What control tells an engine, and what it tells the workers besides.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::Sender;

use super::{Address, Endpoint, HandedSession, ListenSocket, LiveConnection, Shared, Worker};
use crate::config::model::Protocol;
use crate::relay::Cause;
use crate::snapshot::Listener;
use crate::stats::WorkerStats;

/// What any engine can be told about the connections and sessions that it carries.
#[derive(Debug, Clone)]
pub enum EngineOrder {
    /// Describe live connections and sessions.
    List {
        /// How many each part of the engine describes at most.
        limit: usize,
        /// Where the answers go; each part of the engine gives one.
        reply: Sender<Vec<LiveConnection>>,
    },
    /// End one connection or session.
    Kill {
        /// The id that [`LiveConnection::id`] shows.
        id: u64,
        /// Whether it was there; each part of the engine answers.
        reply: Sender<bool>,
    },
    /// End up to `count` connections of a backend, and have as many sessions go to another one.
    Shed(Shed),
    /// End every connection and session whose client uses this address: it is about to go to another node.
    Leave {
        /// The address that is about to leave this host.
        address: IpAddr,
        /// Dropped when it is done.
        finished: Arc<Finished>,
    },
    /// Drop this when everything that was said before has been done.
    Sync(Sender<()>),
    /// End now. What is still open is closed, unless the engine promises to keep it for the process that comes after.
    Stop,
}

/// See [`EngineOrder::Shed`].
#[derive(Debug, Clone, Copy)]
pub struct Shed {
    /// [`Backend::identity`](crate::snapshot::Backend::identity).
    pub backend: u64,
    /// Of this protocol; `None` = of both.
    pub protocol: Option<Protocol>,
    /// How many are ended at most; `usize::MAX` = all.
    pub count: usize,
    /// Of so many that are live there.
    pub live: usize,
    /// Which of several equal parties takes what cannot be divided evenly, modulo their number.
    pub first: usize,
    /// As what they end. Sessions of a backend that is down (`BackendDown`) stay with it while there is no other.
    pub cause: Cause,
}

impl Shed {
    /// What falls to whoever holds those from `held.start` to `held.end` of the live ones: in proportion, and chance (`first`)
    /// says whose the odd ones are. `None` = nothing. All of them are everybody's.
    pub fn share(self, held: Range<usize>) -> Option<Shed> {
        if self.count == usize::MAX {
            return Some(self);
        }
        let live = self.live.max(1) as u128;
        let chance = self.first as u128 % live;
        let before = |at: usize| (at as u128 * self.count as u128 + chance) / live;
        let count = (before(held.end) - before(held.start)) as usize;
        (count > 0).then_some(Shed { count, ..self })
    }

    /// What falls to party number `ix` of `parties`: they hold about equal numbers of a backend's connections. `None` =
    /// nothing. All of them (`usize::MAX`) are everybody's.
    pub fn part(self, ix: usize, parties: usize) -> Option<Shed> {
        let turn = (ix + self.first % parties) % parties;
        let count = match self.count {
            usize::MAX => usize::MAX,
            count => count / parties + usize::from(turn < count % parties),
        };
        (count > 0).then_some(Shed { count, ..self })
    }
}

/// What workers are told about listening sockets. Other engines have none.
#[derive(Debug)]
pub enum SocketMove {
    /// Serve this one, with the UDP sessions that belong to it. The sessions come first: a client that has one must not get
    /// another.
    Serve {
        /// The listening socket, which this worker owns from now on.
        socket: ListenSocket,
        /// Its UDP sessions; empty for a TCP socket.
        sessions: Vec<HandedSession>,
    },
    /// Serve what is queued at these endpoints, then close the sockets.
    Close(Arc<Vec<Endpoint>>),
    /// Hand out duplicates and go on serving them.
    Share {
        /// Which; `None` = all.
        of: Option<Arc<Vec<Endpoint>>>,
        /// Takes the duplicates, or why they could not be made.
        reply: Sender<io::Result<Vec<ListenSocket>>>,
    },
    /// Close those at these endpoints as they are, without serving what is queued: another process has them
    /// too and will.
    Release {
        /// The endpoints whose sockets are closed.
        endpoints: Arc<Vec<Endpoint>>,
        /// Their UDP sessions, when it is done: they go with their socket.
        reply: Sender<Vec<HandedSession>>,
    },
    /// Keep one at this endpoint, and give the others to `to`, queue, sessions and all.
    Spread {
        /// [`Listener::id`](crate::snapshot::Listener::id) of the listener.
        listener: u32,
        /// The address that the sockets are bound to.
        local: Address,
        /// The workers that get one socket each.
        to: Arc<Recipients>,
    },
    /// Give all of them to another worker.
    HandOver {
        /// The worker that gets them.
        to: Worker,
    },
}

/// What a worker is told to do.
#[derive(Debug)]
pub enum Command {
    /// An order that any engine takes.
    Order(EngineOrder),
    /// An order about listening sockets.
    Sockets(SocketMove),
    /// Serve this connection.
    Adopt(Box<Accepted>, InTransit),
    /// End the thread when nothing is open any more.
    Retire,
}

/// A connection accepted by one worker and served by another.
#[derive(Debug)]
pub struct Accepted {
    /// The listener that accepted it.
    pub listener: Arc<Listener>,
    /// The client's address, unless it came over a unix socket.
    pub client: Option<SocketAddr>,
    /// The listening socket's address.
    pub local: Arc<Address>,
    /// The connected socket of the client.
    pub fd: OwnedFd,
}

/// A connection on its way to a worker, counted in the gauges of that worker and of the process. Should it never arrive,
/// because that worker has ended, it is counted off again: see [`InTransit::arrived`].
#[derive(Debug)]
pub struct InTransit(Option<(Arc<Shared>, Arc<WorkerStats>)>);

impl InTransit {
    /// Counts it at `worker`; in the process it is counted already.
    pub fn to(worker: &Worker, shared: &Arc<Shared>) -> InTransit {
        worker.stats.connections.raise();
        InTransit(Some((shared.clone(), worker.stats.clone())))
    }

    /// The connection goes to another worker instead.
    pub fn redirect(self, worker: &Worker) -> InTransit {
        if let Some((shared, stats)) = &self.0 {
            let redirected = InTransit::to(worker, shared);
            stats.connections.lower();
            self.arrived();
            return redirected;
        }
        self
    }

    /// It is served: whoever ends it counts it off.
    pub fn arrived(mut self) {
        self.0 = None;
    }
}

impl Drop for InTransit {
    fn drop(&mut self) {
        if let Some((shared, stats)) = self.0.take() {
            stats.connections.lower();
            shared.process.connections.lower();
        }
    }
}

/// Shared by those who were told to do something: when the last of them drops it, whoever asked is woken.
#[derive(Debug)]
pub struct Finished(pub Arc<mio::Waker>);

impl Drop for Finished {
    fn drop(&mut self) {
        let _ = self.0.wake();
    }
}

/// Workers without a socket of an address, to whom those with more than one turn.
#[derive(Debug)]
pub struct Recipients {
    workers: Vec<Worker>,
    next: AtomicUsize,
}

impl Recipients {
    /// Recipients that each get one socket, in this order.
    pub fn new(workers: Vec<Worker>) -> Recipients {
        let next = AtomicUsize::new(0);
        Recipients { workers, next }
    }

    /// The next one that has not had its turn; `None` once all have.
    pub fn next(&self) -> Option<&Worker> {
        self.workers.get(self.next.fetch_add(1, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Columns: how many are to go, of how many, chance; what each of two engines has, and is told.
    #[test]
    fn what_is_shed_is_divided_by_what_each_engine_has() {
        type Row = (usize, usize, usize, [usize; 2], [usize; 2]);
        let all = usize::MAX;
        let rows: [Row; 10] = [
            (10, 100, 0, [30, 70], [3, 7]),
            (10, 100, 99, [30, 70], [3, 7]),
            (1, 100, 0, [0, 100], [0, 1]),
            (1, 100, usize::MAX, [100, 0], [1, 0]),
            // One in ten is the first one's.
            (1, 10, 8, [1, 9], [0, 1]),
            (1, 10, 9, [1, 9], [1, 0]),
            (5, 4, 0, [2, 2], [2, 3]),
            (0, 10, 3, [5, 5], [0, 0]),
            (3, 0, 0, [0, 0], [0, 0]),
            (all, 10, 0, [0, 10], [all, all]),
        ];
        for (count, live, first, held, expected) in rows {
            let shed = Shed {
                backend: 1,
                protocol: None,
                count,
                live,
                first,
                cause: Cause::Drained,
            };
            let ranges = [0..held[0], held[0]..held[0] + held[1]];
            let told = ranges.map(|held| shed.share(held).map_or(0, |part| part.count));
            assert_eq!(told, expected, "{count} of {live}, {first}: {held:?}");
        }
    }

    /// Columns: how many are to go, how many parties, which begins; what each of them is told.
    #[test]
    fn what_is_shed_is_divided_evenly_and_nothing_is_left_out() {
        let rows: [(usize, usize, usize, &[usize]); 6] = [
            (7, 1, 5, &[7]),
            (7, 3, 0, &[3, 2, 2]),
            (7, 3, 1, &[2, 2, 3]),
            (1, 3, usize::MAX, &[1, 0, 0]),
            (0, 2, 0, &[0, 0]),
            (usize::MAX, 2, 1, &[usize::MAX, usize::MAX]),
        ];
        for (count, parties, first, expected) in rows {
            let shed = Shed {
                backend: 1,
                protocol: None,
                count,
                live: 0,
                first,
                cause: Cause::Drained,
            };
            let parts = (0..parties).map(|ix| shed.part(ix, parties).map_or(0, |part| part.count));
            assert_eq!(
                parts.collect::<Vec<_>>(),
                expected,
                "{count} over {parties} from {first}"
            );
        }
    }
}
