//! The worker threads.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::link::{self, Command, ListenSocket, Migrant, Shared, SpawnWorker};
use crate::sys::socket::identity;

struct Member {
    handle: link::Worker,
    thread: JoinHandle<()>,
}

/// All running workers. Numbers are never reused.
pub struct Crew {
    shared: Arc<Shared>,
    spawn: SpawnWorker,
    active: Vec<Member>,
    /// Told to finish what they have.
    retired: Vec<Member>,
    next_id: usize,
}

impl Crew {
    /// Nobody yet.
    pub fn new(shared: Arc<Shared>, spawn: SpawnWorker) -> Crew {
        Crew {
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
        self.active
            .iter()
            .chain(&self.retired)
            .map(|member| &member.handle)
    }

    /// Starts or retires workers until `count` are active. A retired worker's listening sockets go to a remaining one, so
    /// that none is closed with connections in its queue.
    pub fn resize(&mut self, count: usize) -> io::Result<()> {
        while self.active.len() < count {
            let id = self.next_id;
            let (handle, thread) = (self.spawn)(id, self.shared.clone())?;
            self.next_id += 1;
            self.active.push(Member { handle, thread });
        }
        let leaving = self.active.split_off(count.max(1));
        self.announce();
        for member in leaving {
            member.handle.send(Command::Retire {
                to: self.active[0].handle.clone(),
            });
            self.retired.push(member);
        }
        Ok(())
    }

    fn announce(&self) {
        self.shared.set_workers(
            self.active
                .iter()
                .map(|member| member.handle.clone())
                .collect(),
        );
    }

    /// Gives listening sockets to the active workers; keys are positions among them.
    pub fn listen(&self, dealt: BTreeMap<usize, Vec<ListenSocket>>) {
        for (ix, sockets) in dealt {
            for socket in sockets {
                self.active[ix].handle.send(Command::Listen(socket));
            }
        }
    }

    /// The same with UDP sessions, each of which goes with its socket. A session whose socket is not among them ends.
    pub fn settle(&self, dealt: BTreeMap<usize, Vec<ListenSocket>>, migrants: Vec<Migrant>) {
        let mut by_socket: HashMap<u64, Vec<Migrant>> = HashMap::new();
        for migrant in migrants {
            let of_socket = by_socket.entry(migrant.passport.socket).or_default();
            of_socket.push(migrant);
        }
        for (ix, sockets) in dealt {
            for socket in sockets {
                let identity = identity(socket.fd.as_raw_fd());
                let command = match by_socket.remove(&identity) {
                    Some(migrants) => Command::Settle { socket, migrants },
                    None => Command::Listen(socket),
                };
                self.active[ix].handle.send(command);
            }
        }
    }

    /// Sends a command to every worker.
    pub fn all(&self, command: impl Fn() -> Command) {
        for handle in self.handles() {
            handle.send(command());
        }
    }

    /// Forgets retired workers that have ended.
    pub fn reap(&mut self) {
        self.retired.retain(|member| !member.thread.is_finished());
    }

    /// Ends every thread; what is still open is closed.
    pub fn stop(&mut self) {
        self.all(|| Command::Stop);
        for member in self.active.drain(..).chain(self.retired.drain(..)) {
            let _ = member.thread.join();
        }
        self.announce();
    }
}
