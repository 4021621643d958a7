//! Runs the VIP machine: beats, witnesses, the keeper, people.
//!
//! # How it works
//! One thread, ahead of others in the scheduler where that is permitted, sleeps in `epoll` until a beat, an answer of the keeper
//! or a deadline of the machine wakes it. It reads the clock, tells the machine ([`Table`]) what happened, and carries out what the
//! machine says. Everything slow (log, `notify`) happens in other threads.
//!
//! | file | does |
//! |---|---|
//! | `driver` | the loop |
//! | [`arbiter`] | asking an arbiter, in a thread of its own |
//! | [`links`] | beat connections |
//! | `witness` | witnesses |
//! | `track` | what is tracked |
//! | `trust` | how far the keeper is relied on: pure |
//! | `told` | what has changed since people were told last: pure |
//! | `plan` | a configuration, ready to run |
//! | `form` | what an upgrade hands over, and the name of its form |
//! | `event`, `shown` | nothing: what people are told, and what they are shown |
//! | `notify` | log and `notify` |
//! | [`record`] | the last inputs, for replay |
//!
//! # Life and liveness
//! The keeper is proved life by this thread, and this thread asks the rest of the process how it is doing ([`Process::local`])
//! twice a beat; the closure must return at once. A process that stands still proves nothing, a closure that says
//! `serving: false` moves the VIPs, so no code has to run for an address to go away.
//!
//! # Leaving
//! Before an address is released, connections to it are ended ([`Process::leave`]): the reset must come from the address, and a
//! client that sends nothing would never learn that its connection is dead. That takes less than a millisecond; a worker that
//! does not turn is waited for no longer than `LEAVING_MAX`. Addresses that went by themselves are cleaned up after when another
//! node is known to hold them: until then they may come back, and their connections with them.
//!
//! # Upgrades
//! [`ElectionHandle::detach`] stops the thread without letting go of anything and returns two descriptors and a state. The new
//! process gives them to [`Election::resume`]. Between the two calls neither life is proved nor a beat sent, so it has to
//! take less than the keeper's patience (`dead_after` - `beat`).

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, Sender, bounded};

use crate::config::model::Failover;
use crate::failover::table::Table;
use crate::failover::timers::Timers;
use crate::failover::words::Local;
use crate::keeper::{self, KeeperHandle};
use crate::link::Finished;
use crate::runner::{self, Commands, RunnerHandle};

pub mod arbiter;
mod driver;
mod event;
mod form;
pub mod links;
mod notify;
mod plan;
pub mod record;
mod shown;
mod told;
mod track;
mod trust;
pub mod vips;
mod witness;

use driver::{Command, Driver, Outside};
use form::Remembered;
use notify::{Change, Notes};
use plan::Plan;

pub use event::Event;
pub use form::{FORMS, form};
pub use shown::{ArbiterStatus, NodeStatus, Status, TrackStatus, VipStatus, WitnessStatus};

/// How long a stop waits for commands to be told of its last changes.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long an order may take to be answered.
const ANSWER: Duration = Duration::from_secs(2);

/// An operator's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Move this address to the next node and stay away from it.
    Demote(IpAddr),
    /// Take part again; also forgives faults.
    Allow(IpAddr),
}

/// What a new main process needs to go on where this one stopped.
#[derive(Debug)]
pub struct Detached {
    /// Channel to the keeper.
    pub keeper: OwnedFd,
    /// Listening socket for beats.
    pub listener: OwnedFd,
    /// Channel to the process that runs commands, if there is one.
    pub runner: Option<OwnedFd>,
    /// The machine and its names, as JSON.
    pub state: Vec<u8>,
}

/// Whether this can be run, as far as that can be known without touching anything: the secret, the timers, the names.
///
/// # Errors
/// What cannot be used: a secret, a timer, or this node's name.
pub fn check(config: &Failover) -> io::Result<()> {
    Plan::new(config, 0).map(|_| ())
}

/// The processes beside this one, started while it still has what they need.
#[derive(Debug)]
pub struct Helpers {
    /// Holds addresses.
    pub keeper: KeeperHandle,
    /// Runs commands; without one none are run.
    pub runner: Option<RunnerHandle>,
}

impl Helpers {
    /// Starts them. `file` is where the runner reads its commands again.
    pub fn start(config: &Failover, file: Option<&Path>) -> io::Result<Helpers> {
        let keeper = keeper::spawn(&Timers::derive(config.beat, config.dead_after))?;
        let runner = Some(runner::spawn(&Commands::from(config), file)?);
        Ok(Helpers { keeper, runner })
    }
}

/// The process around the election. Both are called by the election thread and return at once.
pub struct Process {
    /// How it is doing; asked twice a beat.
    pub local: Box<dyn FnMut() -> Local + Send>,
    /// Ends what clients have with an address that is about to leave, or has left; the second is dropped when that is done.
    pub leave: Box<dyn FnMut(IpAddr, Arc<Finished>) + Send>,
}

/// The way to begin an election, or to take one over.
pub struct Election;

impl Election {
    /// Starts the election's thread.
    ///
    /// `events` gets a copy of every event; what does not fit is dropped.
    ///
    /// # Errors
    /// The secret is missing or can be read by others, the beat address cannot be bound, or the timers cannot be kept.
    pub fn start(
        config: &Failover,
        helpers: Helpers,
        process: Process,
        events: Sender<Event>,
    ) -> io::Result<ElectionHandle> {
        let boot = getrandom::u64().map_err(io::Error::other)?;
        let plan = Plan::new(config, boot)?;
        let address = plan.identity.nodes[plan.identity.me].addresses[0];
        let listener =
            links::listen(address).map_err(|e| io::Error::new(e.kind(), format!("beat address {address}: {e}")))?;
        let table = Table::new(Instant::now(), plan.setup.clone());
        let start = Start {
            plan,
            table,
            resets: 0,
            untold: Vec::new(),
            listener,
        };
        start.launch(helpers, process, events)
    }

    /// Goes on where another process stopped.
    ///
    /// # Errors
    /// As [`Election::start`]; also when the state cannot be read, which is one of another [`form()`]. The descriptors are closed
    /// then, and the keeper removes the addresses.
    pub fn resume(
        config: &Failover,
        detached: Detached,
        process: Process,
        events: Sender<Event>,
    ) -> io::Result<ElectionHandle> {
        let remembered: Remembered = serde_json::from_slice(&detached.state)?;
        let plan = Plan::new(config, remembered.boot)?;
        let old = remembered.table.resume(Instant::now());
        let mut table = plan.carried(&old, &remembered.known);
        // Whoever goes on from the same state, should this process not last, asks by other numbers.
        table.skip_questions(getrandom::u32().map_err(io::Error::other)?);
        let start = Start {
            plan,
            table,
            resets: remembered.resets,
            untold: remembered.untold,
            listener: detached.listener,
        };
        let helpers = Helpers {
            keeper: KeeperHandle::from_fd(detached.keeper),
            runner: detached.runner.map(RunnerHandle::from_fd),
        };
        start.launch(helpers, process, events)
    }
}

/// What a new thread goes by: a machine that has just started, or that of a predecessor.
struct Start {
    plan: Plan,
    table: Table,
    /// How often the keeper has been asked to begin anew.
    resets: u64,
    /// What a predecessor has yet to tell.
    untold: Vec<Change>,
    listener: OwnedFd,
}

impl Start {
    fn launch(self, helpers: Helpers, process: Process, events: Sender<Event>) -> io::Result<ElectionHandle> {
        let Start {
            plan,
            table,
            resets,
            untold,
            listener,
        } = self;
        let own = plan.identity.nodes[plan.identity.me].addresses[0];
        // Before the thread becomes urgent, or its helpers would be.
        let (name, configured) = (plan.names[plan.identity.me].clone(), !plan.notify.is_empty());
        let notes = Notes::start(name, configured, helpers.runner, untold, events)?;
        let status = Arc::new(ArcSwap::from_pointee(Status::default()));
        let (commands, inbox) = bounded(16);
        let outside = Outside {
            keeper: helpers.keeper,
            listener,
            process,
            notes: notes.clone(),
            status: status.clone(),
            inbox,
        };
        let driver = Driver::new(plan, table, resets, outside)?;
        let (waker, boot) = (driver.waker(), driver.boot());
        let thread = std::thread::Builder::new()
            .name("failover".into())
            .spawn(move || driver.run())?;
        Ok(ElectionHandle {
            commands,
            waker,
            status,
            boot,
            notes,
            own: std::cell::Cell::new(own),
            thread: Some(thread),
        })
    }
}

/// Another configuration, ready to be used.
pub struct Prepared {
    plan: Plan,
    /// For the beat address, if that changes.
    listener: Option<OwnedFd>,
    own: std::net::SocketAddr,
}

/// The running election. Dropping it without [`ElectionHandle::stop`] lets the addresses go at once.
pub struct ElectionHandle {
    commands: Sender<Command>,
    waker: Arc<mio::Waker>,
    status: Arc<ArcSwap<Status>>,
    boot: u64,
    notes: Notes,
    /// The first beat address.
    own: std::cell::Cell<std::net::SocketAddr>,
    thread: Option<JoinHandle<Option<KeeperHandle>>>,
}

impl ElectionHandle {
    /// What is shown; at most a tick old.
    pub fn status(&self) -> Arc<Status> {
        self.status.load_full()
    }

    /// Gives an order; the answer is for people.
    ///
    /// # Errors
    /// In words: the address is not a VIP, or the election thread does not answer.
    pub fn order(&self, order: Order) -> Result<String, String> {
        let (reply, answer) = bounded(1);
        self.send(Command::Order(order, reply))?;
        answer
            .recv_timeout(ANSWER)
            .map_err(|_| "the election thread does not answer".to_string())?
    }

    /// Everything of another configuration that can fail: to be done before anything is changed.
    ///
    /// # Errors
    /// As [`Election::start`].
    pub fn prepare(&self, config: &Failover) -> io::Result<Prepared> {
        let plan = Plan::new(config, self.boot)?;
        let own = plan.identity.nodes[plan.identity.me].addresses[0];
        let listener = match own == self.own.get() {
            true => None,
            false => {
                Some(links::listen(own).map_err(|e| io::Error::new(e.kind(), format!("beat address {own}: {e}")))?)
            }
        };
        Ok(Prepared { plan, listener, own })
    }

    /// Uses another configuration from now on. Addresses that are in both stay where they are.
    ///
    /// # Errors
    /// The election thread does not answer, or a further beat address cannot be bound.
    pub fn reconfigure(&self, prepared: Prepared) -> io::Result<()> {
        let (reply, answer) = bounded(1);
        self.own.set(prepared.own);
        self.send(Command::Reconfigure(Box::new(prepared), reply))
            .map_err(io::Error::other)?;
        answer
            .recv_timeout(ANSWER)
            .map_err(|_| io::Error::other("the election thread does not answer"))?
    }

    /// Moves every address to its next node, or lets it go, and ends the thread. Takes little more than `dead_after` at most.
    /// For as long as what is returned lives, packets to addresses that others hold too are accepted here.
    pub fn stop(mut self) -> Option<KeeperHandle> {
        let _ = self.send(Command::Stop);
        let keeper = self.join();
        self.notes.finish(LAST_WORDS);
        keeper
    }

    /// Ends the thread without letting go of anything; see the module's page.
    ///
    /// # Errors
    /// The thread does not answer.
    pub fn detach(mut self) -> io::Result<Detached> {
        let (reply, answer): (_, Receiver<Detached>) = bounded(1);
        self.send(Command::Detach(reply)).map_err(io::Error::other)?;
        let detached = answer
            .recv_timeout(ANSWER)
            .map_err(|_| io::Error::other("the election thread does not answer"));
        self.join();
        detached
    }

    fn send(&self, command: Command) -> Result<(), String> {
        self.commands
            .try_send(command)
            .map_err(|_| "the election thread does not answer".to_string())?;
        self.waker.wake().map_err(|e| e.to_string())
    }

    fn join(&mut self) -> Option<KeeperHandle> {
        self.thread.take()?.join().ok().flatten()
    }
}

impl Drop for ElectionHandle {
    fn drop(&mut self) {
        if self.thread.is_some() {
            let _ = self.send(Command::Abandon);
            self.join();
        }
    }
}
