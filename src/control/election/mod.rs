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
use serde::{Deserialize, Serialize};

use crate::config::model::{Failover, Track};
use crate::control::etcd::Settings;
use crate::failover::arbiter::Terms;
use crate::failover::beat::Rejected;
use crate::failover::table::Table;
use crate::failover::timers::{Timers, quorum};
use crate::failover::words::{self, Holders, Local, Rule, Setup, State};
use crate::keeper::{self, KeeperHandle, Kept, Target};
use crate::link::Finished;
use crate::runner::{self, Commands, RunnerHandle};
use crate::sys::secret;

pub mod arbiter;
mod driver;
pub mod links;
mod notify;
pub mod record;
mod track;
pub mod vips;
mod witness;

use driver::{Command, Driver};
use links::{Identity, Peer};
use notify::{Change, Notes};

/// How long a stop waits for commands to be told of its last changes.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long an order may take to be answered.
const ANSWER: Duration = Duration::from_secs(2);

/// What people are told; also sent to whoever gave [`Election::start`] a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An address changed its state on this node.
    Transition {
        /// Address with prefix length.
        vip: String,
        /// Its interface.
        interface: String,
        /// From.
        from: State,
        /// To.
        to: State,
        /// Why, in words.
        reason: String,
        /// Who holds it now, as far as we know.
        holder: Option<String>,
    },
    /// A node began or ceased to be heard.
    Node {
        /// Its name.
        name: String,
        /// It is heard.
        alive: bool,
    },
    /// A node is configured otherwise than this one.
    Mismatch {
        /// Its name.
        name: String,
        /// In which way.
        what: String,
    },
    /// A witness began or ceased to answer.
    Witness {
        /// Its address.
        address: std::net::SocketAddr,
        /// It answers.
        up: bool,
    },
    /// The arbiter began or ceased to answer; its words if not.
    Arbiter {
        /// Why it is of no use.
        problem: Option<String>,
    },
    /// The arbiter's vote became this node's, or is so no longer.
    Vote {
        /// On which address, or on the first one of which group.
        unit: String,
        /// It counts for us.
        ours: bool,
    },
    /// Something that is tracked holds, or does so no longer.
    Track {
        /// Its name.
        name: String,
        /// What is watched, in words.
        what: String,
        /// Why it does not hold.
        problem: Option<String>,
    },
    /// The keeper became of use, or of no use for this reason.
    Keeper(Option<String>),
    /// A beat was refused; at most one a second is told, all are counted.
    Rejected {
        /// Why.
        why: Rejected,
        /// From where.
        from: String,
    },
    /// Something else.
    Note(String),
}

impl Event {
    fn level(&self) -> log::Level {
        match self {
            Event::Transition { to: State::Fault, .. }
            | Event::Node { alive: false, .. }
            | Event::Witness { up: false, .. }
            | Event::Arbiter { problem: Some(_) }
            | Event::Track { problem: Some(_), .. }
            | Event::Mismatch { .. }
            | Event::Rejected { .. }
            | Event::Note(_) => log::Level::Warn,
            Event::Keeper(Some(_)) => log::Level::Error,
            _ => log::Level::Info,
        }
    }
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Event::Transition {
                vip,
                interface,
                from,
                to,
                reason,
                ..
            } => write!(
                f,
                "vip {vip} on {interface}: {} -> {}: {reason}",
                from.word(),
                to.word()
            ),
            Event::Node { name, alive: true } => write!(f, "node {name} is alive"),
            Event::Node { name, alive: false } => write!(f, "node {name} is not heard any more"),
            Event::Mismatch { name, what } => write!(f, "node {name} is configured otherwise: {what}"),
            Event::Witness { address, up: true } => write!(f, "witness {address} answers"),
            Event::Witness { address, up: false } => write!(f, "witness {address} does not answer"),
            Event::Arbiter { problem: None } => f.write_str("the arbiter answers"),
            Event::Arbiter { problem: Some(why) } => write!(f, "the arbiter does not answer: {why}"),
            Event::Vote { unit, ours: true } => write!(f, "the arbiter's vote on {unit} is ours"),
            Event::Vote { unit, ours: false } => write!(f, "the arbiter's vote on {unit} is ours no longer"),
            Event::Track {
                name,
                what,
                problem: None,
            } => write!(f, "track {name} holds: {what}"),
            Event::Track {
                name,
                what,
                problem: Some(why),
            } => write!(f, "track {name} does not hold: {what}: {why}"),
            Event::Keeper(None) => f.write_str("keeper: works"),
            Event::Keeper(Some(why)) => write!(f, "keeper: {why}"),
            Event::Rejected { why, from } => write!(f, "beat from {from} refused: {}", why.word()),
            Event::Note(text) => write!(f, "failover: {text}"),
        }
    }
}

/// One address, as in `/status`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VipStatus {
    /// Address with prefix length.
    pub address: String,
    /// Its interface.
    pub interface: String,
    /// How many nodes hold it.
    pub hold: Holders,
    /// `standby`, `claiming`, `active`, `releasing` or `fault`.
    pub state: State,
    /// The node that holds it, as far as we know.
    pub holder: Option<String>,
    /// Seconds in this state.
    pub since_s: u64,
    /// Why, in words.
    pub reason: String,
    /// An operator demoted it here.
    pub demoted: bool,
    /// When nobody holds it: for each node, what stands in the way.
    pub obstacles: Option<Vec<String>>,
    /// Changes of state since the process started; `weir_vip_transitions_total`.
    #[serde(skip)]
    pub transitions: u64,
}

/// One node, as in `/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// It is heard; this node always is.
    pub alive: bool,
    /// Age of its last beat; none for this node.
    pub last_beat_ms: Option<u64>,
    /// In which way it is configured otherwise than this one.
    pub mismatch: Option<String>,
}

/// One witness, as in `/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WitnessStatus {
    /// Its address.
    pub address: std::net::SocketAddr,
    /// It has answered lately; `None` = too early to tell.
    pub up: Option<bool>,
}

/// The arbiter, as in `/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ArbiterStatus {
    /// It has answered lately; `None` = too early to tell.
    pub up: Option<bool>,
    /// Why not.
    pub problem: Option<String>,
    /// Addresses and groups on which its vote counts for this node.
    pub votes: Vec<String>,
}

/// Something that is tracked, as in `/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TrackStatus {
    /// Its name.
    pub name: String,
    /// What is watched, in words.
    pub what: String,
    /// Whether it holds; `None` = too early to tell.
    pub holds: Option<bool>,
    /// What it adds to this node's rank while it holds; `None` = it must hold.
    pub weight: Option<u32>,
    /// What the last answer said, if it was a bad one.
    pub problem: Option<String>,
}

/// Everything shown.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Status {
    /// In the order of the configuration.
    pub vips: Vec<VipStatus>,
    /// In the order of the configuration.
    pub nodes: Vec<NodeStatus>,
    /// In the order of the configuration.
    pub witnesses: Vec<WitnessStatus>,
    /// The arbiter, if there is one.
    pub arbiter: Option<ArbiterStatus>,
    /// In the order of the configuration.
    pub tracks: Vec<TrackStatus>,
    /// Refused beats by reason; `weir_beats_rejected_total{reason}`.
    pub rejected: Vec<(&'static str, u64)>,
    /// Why the keeper is of no use, if so.
    pub keeper: Option<String>,
    /// The keeper has ended, and its leases with it: only another process can hold addresses again.
    pub useless: bool,
}

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

/// What goes from one process to the next.
#[derive(Serialize, Deserialize)]
struct Remembered {
    #[serde(default)]
    keeper_protocol: u32,
    boot: u64,
    resets: u64,
    known: Known,
    table: Table,
    /// What `notify` has yet to be told.
    #[serde(default)]
    untold: Vec<Change>,
}

/// What the indices of a machine stand for.
#[derive(Clone, Serialize, Deserialize)]
struct Known {
    nodes: Vec<String>,
    targets: Vec<Target>,
    witnesses: Vec<std::net::SocketAddr>,
    tracks: Vec<String>,
}

/// A configuration, ready to run.
struct Plan {
    identity: Identity,
    targets: Vec<Target>,
    /// The same, with how each is kept.
    kept: Vec<Kept>,
    /// Of the targets.
    addresses: Vec<IpAddr>,
    /// Of the nodes.
    names: Vec<String>,
    setup: Setup,
    witnesses: Vec<std::net::SocketAddr>,
    arbiter: Option<Settings>,
    tracks: Vec<Track>,
    notify: Vec<String>,
}

impl Plan {
    fn new(config: &Failover, boot: u64) -> io::Result<Plan> {
        let other = |why: String| io::Error::other(why);
        let secrets = config.secret_files.iter().map(|path| secret::read(path).map_err(other));
        let secrets = secrets.collect::<io::Result<Vec<_>>>()?;
        let secrets = match (secrets.is_empty(), config.nodes.len()) {
            (false, _) => secrets,
            // It talks to nobody, and nobody can know what a stranger would have to sign with.
            (true, 1) => vec![getrandom::u64().map_err(io::Error::other)?.to_ne_bytes().to_vec()],
            (true, _) => return Err(other("failover: there is no secret".into())),
        };
        let me = config
            .nodes
            .get_index_of(&config.node)
            .ok_or_else(|| other(format!("failover.node {} is not in nodes", config.node)))?;
        let timers = Timers::derive(config.beat, config.dead_after);
        if let Some(broken) = timers.broken().first() {
            return Err(other(format!("failover: {broken}")));
        }
        let settings = config.arbiter.as_ref().map(|arbiter| Settings::load(&arbiter.servers));
        let settings = settings
            .transpose()
            .map_err(|why| other(format!("failover.arbiter: {why}")))?;
        let arbiter = config.arbiter.as_ref().map(|arbiter| words::Arbiter {
            prefix: arbiter.prefix.clone(),
            place: format!("{} {:?}", arbiter.prefix, arbiter.servers.endpoints),
            terms: Terms::derive(&timers),
            strict: arbiter.strict,
        });
        let voters = config.witnesses.len() + usize::from(arbiter.is_some());
        let nodes = config.nodes.iter().enumerate().map(|(n, (name, address))| {
            let further = config.paths.get(n).into_iter().flatten();
            Peer {
                name: name.clone(),
                addresses: std::iter::once(address).chain(further).copied().collect(),
            }
        });
        let rules = config.vips.iter().map(|vip| Rule {
            hold: vip.hold,
            prefer: vip.prefer.clone(),
            preempt: vip.preempt,
            preempt_delay: vip.preempt_delay,
            requires: vip.requires.clone(),
            group: vip.group.clone(),
        });
        let targets = config.vips.iter().map(|vip| Target {
            net: vip.address,
            interface: vip.interface.clone(),
        });
        Ok(Plan {
            identity: Identity {
                nodes: nodes.collect(),
                me,
                boot,
                secrets,
                beat: config.beat,
                dead_after: config.dead_after,
                startup_delay: config.startup_delay,
            },
            kept: config
                .vips
                .iter()
                .zip(targets.clone())
                .map(|(vip, target)| Kept {
                    target,
                    garp_refresh: vip.garp_refresh,
                    accepted: vip.hold == Holders::All,
                })
                .collect(),
            targets: targets.collect(),
            addresses: config.vips.iter().map(|vip| vip.address.addr()).collect(),
            names: config.nodes.keys().cloned().collect(),
            setup: Setup {
                me,
                names: config.nodes.keys().cloned().collect(),
                witnesses: config.witnesses.len(),
                quorum: quorum(config.quorum, config.nodes.len(), voters),
                timers,
                startup_delay: config.startup_delay,
                // Far from the end, so that numbers always rise, and far from those of the process before.
                boot: (boot >> 1).max(1),
                tracks: config
                    .track
                    .iter()
                    .map(|track| words::Track {
                        name: track.name.clone(),
                        weight: track.weight,
                        skew: track.interval + track.timeout,
                    })
                    .collect(),
                arbiter,
                vips: rules.collect(),
            },
            witnesses: config.witnesses.clone(),
            arbiter: settings,
            tracks: config.track.clone(),
            notify: config.notify.clone(),
        })
    }

    fn known(&self) -> Known {
        Known {
            nodes: self.names.clone(),
            targets: self.targets.clone(),
            witnesses: self.witnesses.clone(),
            tracks: self.tracks.iter().map(|track| track.what.to_string()).collect(),
        }
    }

    /// A machine for this plan that knows what `old` knew.
    fn carried(&self, old: &Table, was: &Known) -> Table {
        fn places<T: PartialEq>(new: &[T], old: &[T]) -> Vec<Option<usize>> {
            new.iter().map(|t| old.iter().position(|o| o == t)).collect()
        }
        let mut table = Table::new(Instant::now(), self.setup.clone());
        // Thousands of addresses, mostly in the same places.
        let at: std::collections::HashMap<&Target, usize> = was.targets.iter().zip(0..).collect();
        let vips: Vec<_> = self.targets.iter().map(|t| at.get(t).copied()).collect();
        let witnesses = places(&self.witnesses, &was.witnesses);
        let tracks = places(&self.known().tracks, &was.tracks);
        table.carry(old, &vips, &places(&self.names, &was.nodes), &witnesses, &tracks);
        table
    }
}

/// Whether this can be run, as far as that can be known without touching anything: the secret, the timers, the names.
///
/// # Errors
/// In words.
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

/// How to start.
pub struct Election;

impl Election {
    /// Starts the thread.
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
        launch(config, plan, table, 0, helpers, Vec::new(), listener, process, events)
    }

    /// Goes on where another process stopped.
    ///
    /// # Errors
    /// As [`Election::start`]; also when the state cannot be read. The descriptors are closed then, and the keeper removes
    /// the addresses.
    pub fn resume(
        config: &Failover,
        detached: Detached,
        process: Process,
        events: Sender<Event>,
    ) -> io::Result<ElectionHandle> {
        let remembered: Remembered = serde_json::from_slice(&detached.state)?;
        if remembered.keeper_protocol != keeper::PROTOCOL {
            return Err(io::Error::other(
                "the keeper of the old process speaks another protocol",
            ));
        }
        let plan = Plan::new(config, remembered.boot)?;
        let old = remembered.table.resume(Instant::now());
        let mut table = plan.carried(&old, &remembered.known);
        // Whoever goes on from the same state, should this process not last, asks by other numbers.
        table.skip_questions(getrandom::u32().map_err(io::Error::other)?);
        launch(
            config,
            plan,
            table,
            remembered.resets,
            Helpers {
                keeper: KeeperHandle::from_fd(detached.keeper),
                runner: detached.runner.map(RunnerHandle::from_fd),
            },
            remembered.untold,
            detached.listener,
            process,
            events,
        )
    }
}

#[allow(clippy::too_many_arguments)]
fn launch(
    config: &Failover,
    plan: Plan,
    table: Table,
    resets: u64,
    helpers: Helpers,
    untold: Vec<Change>,
    listener: OwnedFd,
    process: Process,
    events: Sender<Event>,
) -> io::Result<ElectionHandle> {
    // Before the thread becomes urgent, or its helpers would be.
    let configured = !plan.notify.is_empty();
    let notes = Notes::start(config.node.clone(), configured, helpers.runner, untold, events)?;
    let status = Arc::new(ArcSwap::from_pointee(Status::default()));
    let (commands, inbox) = bounded(16);
    let driver = Driver::new(
        plan,
        table,
        resets,
        helpers.keeper,
        listener,
        process,
        notes.clone(),
        status.clone(),
        inbox,
    )?;
    let waker = driver.waker();
    let boot = driver.boot();
    let own = config.nodes.get(&config.node).copied();
    let own = own.ok_or_else(|| io::Error::other("failover.node is not in nodes"))?;
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
