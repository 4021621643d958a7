//! The data-plane shell: one event loop a core, and all that it serves.
//!
//! # A turn
//!
//! Events only mark; work happens after, at our own pace:
//!
//! 1. *mark*: unpack each event's token, check the generation, set readiness bits, queue the key. No I/O, no close.
//! 2. *pump*: run queued connections, each under a budget: all light ones and then, in proportion, some that move much; what
//!    is left over goes to the back of the queue, and then the next poll does not wait.
//! 3. *adopt*: the newest snapshot, so that whoever connects after a publication is served by it. Whoever waits for room at a
//!    backend ([`queue`]) and has been called comes before newcomers.
//! 4. *accept*: up to a budget, after pumping, so that new work never starves old.
//! 5. *expire*: timers due at this turn's one reading of the clock.
//! 6. *obey*: orders; never in the middle of a batch.
//!
//! Nothing is closed between fetching a batch of events and the end of marking, so an event never meets a descriptor
//! number that has changed hands; generations in the tokens guard the rest.
//!
//! # Who decides, and who acts
//!
//! | question | decided, without a system call, in | carried out in |
//! |---|---|---|
//! | which way next for the bytes of a connection | [`crate::relay`] | [`pump`] over [`io`] |
//! | when a connection must be looked at | [`clocks`] | [`tcp`] |
//! | which backend, and whether there is room | [`crate::snapshot::Pool::choose`] | [`attempt`], `udp/life.rs` |
//! | where a connection to it goes | [`crate::route`] | [`os`] |
//! | who waits and who is next | [`crate::balance::line`] | [`queue`] |
//! | which session a datagram belongs to, and when it ends | [`crate::flow`] | [`udp`] |
//!
//! A step of a connection works on that connection alone and says what is next ([`connection::Next`]); [`tcp`] does it, and is
//! the only one that ends connections. Calls to the kernel go through [`os`].
//!
//! # What never happens
//!
//! * A turn never waits for anything but events: no lock is held over a call, no queue is waited for.
//! * Whoever waits is owed an event, has a timer, or stands in a queue whose head is woken: nothing is polled.
//! * A count is lowered by whoever ends what it counts, in one place: [`tcp`] for connections, `udp/life.rs` for sessions.
//!
//! All of it runs under a seeded simulation over a fake kernel: `sim`.

mod account;
mod attempt;
mod clocks;
mod closing;
mod connect;
mod connection;
mod io;
mod listen;
mod origin;
mod os;
mod pump;
mod queue;
#[cfg(test)]
mod sim;
mod sockets;
mod tcp;
mod udp;

use std::io::Result;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use crate::balance::Cursor;
use crate::base::{Key, Kind, Rng, Side, Token};
use crate::config::model::Protocol;
use crate::link::{self, Accepted, COMMANDS_MAX, Command, Commands, EngineOrder, InTransit, Shared, SocketMove};
use crate::relay::Cause;
use crate::routing::ByName;
use crate::snapshot::{Listener, Pool, Snapshot};
use crate::stats::WorkerStats;
use crate::worker::os::epoll::Poller;

use listen::{Accepting, Arrival};
use sockets::Sockets;
use tcp::Tcp;
use udp::Udp;

/// Events fetched at once.
const EVENTS_MAX: usize = 1024;
/// Longest sleep: bounds how stale the liveness of an idle worker can be.
const POLL_MAX: Duration = Duration::from_millis(500);

/// What a worker is started with.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Pipes that this worker may hold open.
    pub pipes_max: usize,
    /// Seed of its random choices.
    pub seed: u64,
}

/// One event loop.
pub struct Worker {
    commands: Commands,
    sockets: Sockets,
    accepting: Accepting,
    tcp: Tcp,
    udp: Udp,
    context: Context,
    /// Listening sockets go there when the last connection has ended.
    retiring: bool,
}

/// What every phase of a turn needs: the turn's time, the newest snapshot, the way to everybody else.
struct Context {
    id: usize,
    now: Instant,
    poller: Poller,
    shared: Arc<Shared>,
    stats: Arc<WorkerStats>,
    snapshot: Arc<Snapshot>,
    /// One for each pool of the snapshot.
    cursors: Vec<Cursor>,
    rng: Rng,
    /// Wakes this worker.
    waker: Arc<mio::Waker>,
    /// Connections arrive so fast that most have something to read when they are accepted.
    crowded: bool,
}

impl Context {
    /// Milliseconds since the workers' epoch: the unit of timers.
    fn now_ms(&self) -> u64 {
        self.now.duration_since(self.shared.epoch).as_millis() as u64
    }

    /// The pool that a listener sends to, with this worker's cursor for it: as the newest snapshot has it. Of a listener that
    /// is gone, the pool that bears the name of the one that it sent to.
    fn pool_of(&mut self, listener: &Listener) -> Option<(Arc<Pool>, &mut Cursor)> {
        let ix = match self.snapshot.listener(listener.id) {
            Some(listener) => listener.config.pool?,
            None => self.pool_named(listener.pool.as_deref()?)?,
        };
        self.pool_at(ix)
    }

    /// As [`pool_of`](Self::pool_of), for a connection that was sent this way by the name that it asked for.
    fn pool_by_name(&mut self, way: &ByName) -> Option<(Arc<Pool>, &mut Cursor)> {
        let is_it = |pool: &Arc<Pool>| *pool.config.name == *way.pool;
        let ix = match self.snapshot.pools.get(way.pool_at).is_some_and(is_it) {
            true => way.pool_at,
            false => self.pool_named(&way.pool)?,
        };
        self.pool_at(ix)
    }

    fn pool_named(&self, name: &str) -> Option<usize> {
        self.snapshot.pools.iter().position(|pool| pool.config.name == name)
    }

    fn pool_at(&mut self, ix: usize) -> Option<(Arc<Pool>, &mut Cursor)> {
        Some((self.snapshot.pools.get(ix)?.clone(), self.cursors.get_mut(ix)?))
    }

    /// Takes the newest snapshot; true if its listeners are others.
    fn adopt(&mut self) -> bool {
        let Some(snapshot) = self.shared.newer_than(self.snapshot.version) else {
            return false;
        };
        if snapshot.generation != self.snapshot.generation {
            let rng = &mut self.rng;
            self.cursors = snapshot.pools.iter().map(|_| Cursor::new(rng.next_u64())).collect();
        }
        let known = std::mem::replace(&mut self.snapshot, snapshot);
        !Arc::ptr_eq(&known.listeners, &self.snapshot.listeners)
    }
}

impl Worker {
    /// A worker and the handle on it. It takes part once it is among [`Shared::workers`].
    pub fn new(id: usize, shared: Arc<Shared>, settings: Settings) -> Result<(Worker, link::Worker)> {
        let poller = Poller::new(EVENTS_MAX)?;
        let wake = Token {
            kind: Kind::Wake,
            side: Side::Client,
            key: Key {
                index: 0,
                generation: 0,
            },
        };
        let waker = Arc::new(poller.waker(wake.pack())?);
        let (sender, commands) = bounded(COMMANDS_MAX);
        let stats = Arc::new(WorkerStats::default());
        let context = Context {
            id,
            now: os::now(),
            poller,
            snapshot: Arc::default(),
            cursors: Vec::new(),
            rng: Rng::new(settings.seed),
            waker: waker.clone(),
            crowded: false,
            shared,
            stats: stats.clone(),
        };
        let worker = Worker {
            commands,
            sockets: Sockets::new(),
            accepting: Accepting::default(),
            tcp: Tcp::new(id, settings.pipes_max),
            udp: Udp::new(id, &context),
            context,
            retiring: false,
        };
        Ok((
            worker,
            link::Worker {
                id,
                commands: sender,
                waker,
                stats,
            },
        ))
    }

    /// Turns until told to stop, or until retired and idle. An error is a failure of epoll itself.
    pub fn run(mut self) -> Result<()> {
        self.context.adopt();
        while self.turn()? {}
        self.finish();
        Ok(())
    }

    /// Ends what is open. A worker that had not heard that this one retires may have sent it a connection since the last
    /// turn; it goes to one that still serves.
    fn finish(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Adopt(accepted, transit) = command {
                self.pass_on(accepted, transit);
            }
        }
        if let Some(arrival) = self.accepting.end() {
            self.welcome(arrival);
        }
        self.tcp.end_all(&mut self.context, Cause::Shutdown);
        self.udp.end_all(&mut self.context, Cause::Shutdown);
    }

    fn pass_on(&mut self, accepted: Box<Accepted>, transit: InTransit) {
        let workers = self.context.shared.workers();
        let other = workers
            .iter()
            .find(|worker| worker.id != self.context.id && self.retiring);
        let refused = match other {
            Some(other) => other.try_send(Command::Adopt(accepted, transit.redirect(other))).err(),
            None => Some(Command::Adopt(accepted, transit)),
        };
        drop(workers);
        if let Some(Command::Adopt(accepted, _)) = refused {
            self.tcp.refuse(&mut self.context, *accepted, Cause::Shutdown);
        }
    }

    fn turn(&mut self) -> Result<bool> {
        let timeout = self.timeout();
        self.context.stats.busy_since_ms.set(u64::MAX);
        self.context.poller.wait(timeout)?;
        self.context.now = os::now();
        let now_ms = self.context.now_ms();
        self.context.stats.busy_since_ms.set(now_ms);

        self.mark();
        self.tcp.pump(&mut self.context);
        let version = self.context.snapshot.version;
        if self.context.adopt() {
            self.sockets.adopt(&self.context.snapshot.listeners);
            self.udp.adopt(&self.context.snapshot.listeners);
        }
        self.tcp.serve_waiting(&mut self.context, version);
        self.udp.pump(&mut self.context, &mut self.sockets.datagrams);
        self.accept();
        self.tcp.expire(&mut self.context);
        self.sockets.expire(&mut self.context, &mut self.udp);
        self.udp.expire(&mut self.context, &self.sockets.datagrams);
        self.accepting.resume(&mut self.context, &mut self.sockets.streams);
        self.accept();
        let mut go_on = true;
        while let Ok(command) = self.commands.try_recv() {
            go_on &= self.obey(command);
        }
        let stats = &self.context.stats;
        stats.turns.add(1);
        let took = os::now().duration_since(self.context.now);
        stats.turn_ns_max.raise(took.as_nanos() as u64);
        let is_idle = self.sockets.is_empty() && self.tcp.is_empty() && self.udp.is_empty();
        Ok(go_on && !(self.retiring && is_idle))
    }

    /// Notes what the events of this turn say; does nothing yet.
    fn mark(&mut self) {
        let now_ms = self.context.now_ms();
        for (token, event) in self.context.poller.events() {
            let Some(Token { kind, side, key }) = Token::unpack(token) else {
                continue;
            };
            if !matches!(kind, Kind::Pair | Kind::Wake) {
                self.tcp.note_others(now_ms);
            }
            match kind {
                Kind::Pair => self.tcp.mark(key, side, event),
                Kind::Listen => self.accepting.mark(&mut self.sockets.streams, key),
                Kind::Datagram | Kind::Session => self.udp.mark(kind, key, event),
                Kind::Wake => {}
            }
        }
    }

    /// Takes in whoever has connected, as far as this turn's budget goes.
    fn accept(&mut self) {
        while let Some(arrival) = self.accepting.next(&mut self.context, &mut self.sockets.streams) {
            self.welcome(arrival);
        }
    }

    fn welcome(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Serve(accepted) => self.tcp.open(&mut self.context, accepted),
            Arrival::Refuse(accepted, cause) => self.tcp.refuse(&mut self.context, accepted, cause),
        }
    }

    /// Does what is asked; false ends the thread.
    fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Order(EngineOrder::Stop) => return false,
            Command::Order(order) => self.carry_out(order),
            Command::Sockets(order) => self.move_sockets(order),
            Command::Adopt(accepted, transit) => {
                transit.arrived();
                self.tcp.open(&mut self.context, *accepted);
            }
            Command::Retire => self.retiring = true,
        }
        true
    }

    fn carry_out(&mut self, order: EngineOrder) {
        let context = &mut self.context;
        match order {
            EngineOrder::List { limit, reply } => {
                let mut live = self.tcp.list(context, limit);
                live.extend(self.udp.list(context, limit - live.len()));
                drop(reply.send(live));
            }
            EngineOrder::Kill { id, reply } => {
                let _ = reply.send(self.tcp.kill(context, id) || self.udp.kill(context, id));
            }
            EngineOrder::Shed(shed) => {
                if shed.protocol != Some(Protocol::Udp) {
                    self.tcp.shed(context, shed.backend, shed.count, shed.cause);
                }
                if shed.protocol != Some(Protocol::Tcp) {
                    self.udp.shed(shed.backend, shed.count, shed.cause);
                }
            }
            EngineOrder::Leave { address, finished } => {
                self.tcp.end_at(context, address);
                self.udp.end_at(context, address);
                drop(finished);
            }
            EngineOrder::Sync(done) => drop(done),
            // See `obey`.
            EngineOrder::Stop => {}
        }
    }

    fn move_sockets(&mut self, order: SocketMove) {
        let Self {
            sockets, udp, context, ..
        } = self;
        match order {
            SocketMove::Serve { socket, sessions } => sockets.serve(context, udp, socket, sessions),
            SocketMove::Close(places) => {
                for (listener, local) in &*places {
                    let streams = sockets.remove(context, udp, *listener, local);
                    self.accepting.close(context, &mut sockets.streams, streams);
                }
                self.accept();
            }
            SocketMove::Share { of, reply } => {
                let _ = reply.send(sockets.share(of.as_deref().map(Vec::as_slice)));
            }
            SocketMove::Release { endpoints, reply } => {
                let _ = reply.send(sockets.release(context, udp, &endpoints));
            }
            SocketMove::Spread { listener, local, to } => sockets.spread(context, udp, (listener, &local), &to),
            SocketMove::HandOver { to } => sockets.hand_over(context, udp, &to),
        }
    }

    fn timeout(&self) -> Duration {
        if self.tcp.has_work() {
            return Duration::ZERO;
        }
        let now_ms = os::now().duration_since(self.context.shared.epoch).as_millis() as u64;
        let timers = [
            self.tcp.next_timer(),
            self.udp.next_timer(&self.context),
            self.sockets.next_timer(),
            self.accepting.next_timer(),
        ];
        timers.into_iter().flatten().min().map_or(POLL_MAX, |at| {
            Duration::from_millis(at.saturating_sub(now_ms)).min(POLL_MAX)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::gate::Gate;
    use crate::link::Address;
    use crate::snapshot::Owner;
    use crate::stats::ListenerStats;

    fn shared() -> Arc<Shared> {
        Shared::new(None, bounded(1).0, Instant::now())
    }

    fn worker(id: usize, shared: &Arc<Shared>) -> (Worker, link::Worker) {
        let settings = Settings { pipes_max: 0, seed: 1 };
        Worker::new(id, shared.clone(), settings).unwrap()
    }

    fn accepted() -> Box<Accepted> {
        let yaml = "listeners: {main: {bind: '127.0.0.1:0', pool: main}}\npools: {main: {backends: ['127.0.0.1:9']}}";
        let config = config::parse("weir.yaml", yaml).unwrap().config.listeners.remove(0);
        let stats = ListenerStats::new(1);
        let gate = Gate::new(&config, stats.clone(), None);
        let (fd, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        Box::new(Accepted {
            listener: Arc::new(Listener {
                id: 0,
                config,
                pool: Some("main".into()),
                routing: None,
                owner: Owner::WORKERS,
                stats,
                gate,
            }),
            client: None,
            local: Arc::new(Address::Unix("/run/main".into())),
            fd: fd.into(),
        })
    }

    /// A connection that another worker sends while this one ends.
    ///
    /// Break tried: a place that is not given back, and the queue not looked at again (as it was).
    #[test]
    fn a_connection_sent_to_a_worker_that_ends_is_passed_on_or_given_back() {
        // What is done with the worker; where its connection counts afterwards, and whether the other one has it.
        type Row<'a> = (&'a str, &'a dyn Fn(Worker), [u32; 2], usize);
        let rows: [Row; 3] = [
            (
                "retired",
                &|mut worker| {
                    worker.retiring = true;
                    worker.finish();
                },
                [1, 1],
                1,
            ),
            ("told to stop", &|mut worker| worker.finish(), [0, 0], 0),
            ("gone", &drop, [0, 0], 0),
        ];
        for (what, end, counts, passed_on) in rows {
            let shared = shared();
            let ((ending, handle), (_other, other)) = (worker(0, &shared), worker(1, &shared));
            shared.set_workers(vec![other.clone()], vec![]);
            assert!(shared.process.connections.try_raise(None));
            let transit = InTransit::to(&handle, &shared);
            assert!(handle.try_send(Command::Adopt(accepted(), transit)).is_ok());
            let stats = handle.stats.clone();
            end(ending);
            // Control forgets a worker that has ended; its queue goes with the last handle.
            drop(handle);
            let counted = [&shared.process.connections, &other.stats.connections].map(|gauge| gauge.get());
            assert_eq!((counted, other.commands.len()), (counts, passed_on), "{what}");
            assert_eq!(stats.connections.get(), 0, "{what}");
        }
    }
}
