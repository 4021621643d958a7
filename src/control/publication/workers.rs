//! The worker threads.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};

use crate::link::{
    self, Command, Endpoint, EngineOrder, HandedSession, ListenSocket, Recipients, Shared, SocketMove, SpawnWorker,
};
use crate::snapshot::Snapshot;
use crate::sys::socket::identity;

/// How long workers may take to hand over or close sockets.
pub const SETTLE_MAX: Duration = Duration::from_secs(2);

struct Member {
    handle: link::Worker,
    thread: JoinHandle<()>,
}

/// Workers that have been started and are not active yet. Dropping this ends them.
pub struct NewWorkers(Vec<Member>);

impl Drop for NewWorkers {
    fn drop(&mut self) {
        for member in self.0.drain(..) {
            member.handle.send(Command::Order(EngineOrder::Stop));
            let _ = member.thread.join();
        }
    }
}

/// Closes when these have done what they were told so far.
fn barrier<'a>(members: impl IntoIterator<Item = &'a Member>) -> Receiver<()> {
    let (done, all_done) = bounded(1);
    for member in members {
        member.handle.send(Command::Order(EngineOrder::Sync(done.clone())));
    }
    all_done
}

/// Waits for that. A socket that is still on its way between two workers would miss an order to close it.
fn wait_for<'a>(members: impl IntoIterator<Item = &'a Member>) {
    let _: Result<(), _> = barrier(members).recv_timeout(SETTLE_MAX);
}

/// All running workers. Numbers are never reused.
pub struct Workers {
    shared: Arc<Shared>,
    spawn: SpawnWorker,
    active: Vec<Member>,
    /// Told to finish what they have.
    retired: Vec<Member>,
    next_id: usize,
}

impl Workers {
    /// No workers yet; `spawn` starts each of them.
    pub fn new(shared: Arc<Shared>, spawn: SpawnWorker) -> Workers {
        Workers {
            shared,
            spawn,
            active: Vec::new(),
            retired: Vec::new(),
            next_id: 0,
        }
    }

    /// Workers that take new connections.
    pub fn size(&self) -> usize {
        self.active.len()
    }

    /// Handles on all workers that still run, retired ones included.
    pub fn handles(&self) -> impl Iterator<Item = &link::Worker> {
        self.members().map(|member| &member.handle)
    }

    fn members(&self) -> impl Iterator<Item = &Member> {
        self.active.iter().chain(&self.retired)
    }

    /// Starts the workers that are missing for `count`. None of the others knows of them yet.
    pub fn start(&mut self, count: usize) -> io::Result<NewWorkers> {
        let mut new = NewWorkers(Vec::new());
        while self.active.len() + new.0.len() < count {
            let id = self.next_id;
            let (handle, thread) = (self.spawn)(id, self.shared.clone())?;
            self.next_id += 1;
            new.0.push(Member { handle, thread });
        }
        Ok(new)
    }

    /// Makes workers active.
    pub fn activate(&mut self, mut new: NewWorkers) {
        self.active.append(&mut new.0);
        self.announce();
    }

    /// Retires workers until `count` are active. A retired worker's listening sockets go to a remaining one, so that none
    /// is closed with connections in its queue; they are there when this returns.
    pub fn retire(&mut self, count: usize) {
        let leaving = self.active.split_off(count.clamp(1, self.active.len()));
        if leaving.is_empty() {
            return;
        }
        let first = self.retired.len();
        self.retired.extend(leaving);
        self.announce();
        let leaving = &self.retired[first..];
        for (ix, member) in leaving.iter().enumerate() {
            let to = self.active[ix % self.active.len()].handle.clone();
            member.handle.send(Command::Sockets(SocketMove::HandOver { to }));
            member.handle.send(Command::Retire);
        }
        wait_for(leaving);
    }

    /// Gives sockets of an address to the active workers at these positions, from those before them who have more than
    /// one; they are there when this returns.
    pub fn spread(&self, (listener, local): &Endpoint, lacking: Range<usize>) {
        let (givers, receivers) = (&self.active[..lacking.start], &self.active[lacking]);
        let receivers = receivers.iter().map(|member| member.handle.clone());
        let to = Arc::new(Recipients::new(receivers.collect()));
        for member in givers {
            member.handle.send(Command::Sockets(SocketMove::Spread {
                listener: *listener,
                local: local.clone(),
                to: to.clone(),
            }));
        }
        wait_for(givers);
    }

    fn announce(&self) {
        let handles = |members: &[Member]| members.iter().map(|member| member.handle.clone()).collect();
        self.shared.set_workers(handles(&self.active), handles(&self.retired));
    }

    /// Gives listening sockets to the active workers; keys are positions among them. UDP sessions go with their sockets; one
    /// whose socket is not among them ends.
    pub fn serve(&self, assigned: BTreeMap<usize, Vec<ListenSocket>>, sessions: Vec<HandedSession>) {
        let mut by_socket: HashMap<u64, Vec<HandedSession>> = HashMap::new();
        for session in sessions {
            let of_socket = by_socket.entry(session.state.socket).or_default();
            of_socket.push(session);
        }
        for (ix, sockets) in assigned {
            for socket in sockets {
                let identity = identity(socket.fd.as_raw_fd());
                let sessions = by_socket.remove(&identity).unwrap_or_default();
                let order = SocketMove::Serve { socket, sessions };
                self.active[ix].handle.send(Command::Sockets(order));
            }
        }
    }

    /// Duplicates of the listening sockets at these endpoints, with the position of the worker that serves each.
    pub fn duplicate(&self, endpoints: Vec<Endpoint>) -> io::Result<Vec<(usize, ListenSocket)>> {
        let endpoints = Arc::new(endpoints);
        let mut shared = Vec::new();
        for (ix, member) in self.active.iter().enumerate() {
            let (reply, answer) = bounded(1);
            let of = Some(endpoints.clone());
            member.handle.send(Command::Sockets(SocketMove::Share { of, reply }));
            let silent = |_| io::Error::other(format!("worker {} does not answer", member.handle.id));
            let sockets = answer.recv_timeout(SETTLE_MAX).map_err(silent)??;
            shared.extend(sockets.into_iter().map(|socket| (ix, socket)));
        }
        Ok(shared)
    }

    /// Has every worker serve what is queued at these endpoints, and close them.
    pub fn close(&self, closed: &[Endpoint]) {
        if !closed.is_empty() {
            let closed = Arc::new(closed.to_vec());
            for handle in self.handles() {
                handle.send(Command::Sockets(SocketMove::Close(closed.clone())));
            }
        }
    }

    /// The same; it is done when this returns.
    pub fn close_and_wait(&self, closed: &[Endpoint]) {
        self.close(closed);
        if !closed.is_empty() {
            wait_for(self.members());
        }
    }

    /// Closes when all workers have done what they were told so far.
    pub fn barrier(&self) -> Receiver<()> {
        barrier(self.members())
    }

    /// Has every worker act on a snapshot.
    pub fn adopt(&self, snapshot: &Arc<Snapshot>) {
        self.shared.publish(snapshot.clone());
    }

    /// Tells every worker, retired ones included.
    pub fn obey(&self, order: &EngineOrder) {
        let workers = self.handles().count();
        for (ix, handle) in self.handles().enumerate() {
            let order = match order {
                EngineOrder::Shed(shed) => match shed.part(ix, workers) {
                    Some(part) => EngineOrder::Shed(part),
                    None => continue,
                },
                order => order.clone(),
            };
            handle.send(Command::Order(order));
        }
    }

    /// Forgets retired workers that have ended.
    pub fn reap(&mut self) {
        let before = self.retired.len();
        self.retired.retain(|member| !member.thread.is_finished());
        if self.retired.len() != before {
            self.announce();
        }
    }

    /// Ends every thread; what is still open is closed.
    pub fn stop(&mut self) {
        self.obey(&EngineOrder::Stop);
        for member in self.active.drain(..).chain(self.retired.drain(..)) {
            let _ = member.thread.join();
        }
        self.announce();
    }
}
