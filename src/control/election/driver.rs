//! The election thread: turns what happens into inputs of the machine, and what the machine wants into effects.
//!
//! # How it works
//! One round: sleep until something is due; let time pass (`tick`); take what has come, in the order in which it was sent by whoever
//! sent it; then say what is to be said. All inputs of a round carry the time that was read when it began.
//!
//! | part of a round | why there |
//! |---|---|
//! | the keeper's answers, before the tick and after it | what it has answered counts before we complain that it has not |
//! | the tick | first of all inputs, so that the machine finds a gap before it acts on what piled up in it |
//! | beats, answers of witnesses, of the arbiter, and about what is tracked | after the tick; whatever has come is not overdue |
//! | commands | after the news: an order is carried out on what is known now |
//! | one beat, if any input asked for one | once a round, however many inputs ask for it |
//! | releases whose connections have ended, packets to the keeper | last: one write for all that was asked in the round |
//! | what people are shown | after everything else |
//!
//! | file | does |
//! |---|---|
//! | `keeping` | what is said to the keeper, and what its answers mean |
//! | `commands` | orders, another configuration, the end |
//! | `show` | what people are shown |
//!
//! # Invariants
//! * Every input is recorded before the machine takes it, and every action of the machine is carried out in order, or void because the
//!   keeper is not relied on ([`Trust`]).
//! * Nothing here waits: sockets do not block, slow work has threads of its own, and a release waits `LEAVING_MAX` at most.
//! * Proofs of life are given by nobody else: when this thread stands still, addresses go.
//!
//! # What it never does
//! Decide who holds what, or read a file.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, Sender, bounded};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use super::arbiter::{self, Arbiter};
use super::links::{Links, News};
use super::notify::{Note, Notes};
use super::plan::Plan;
use super::record::Recorder;
use super::told::{Refusals, Told};
use super::track::Tracks;
use super::trust::Trust;
use super::witness::{Answer, Witnesses};
use super::{
    ArbiterStatus, Detached, Event, NodeStatus, Order, Prepared, Process, Remembered, Status, TrackStatus, VipStatus,
    WitnessStatus,
};
use crate::failover::arbiter::Answer as FromArbiter;
use crate::failover::beat::{Rejected, from_wire, to_wire};
use crate::failover::table::Table;
use crate::failover::words::{Action, Effect, Fit, Holders, Input, Lack, Local, Order as TableOrder, Phase};
use crate::failover::{NodeIx, VipIx};
use crate::keeper::{FromKeeper, KeeperHandle, Target, ToKeeper};
use crate::link::Finished;
use crate::sys::sched;

mod commands;
mod keeping;
mod show;

const WAKER: Token = Token(0);
const KEEPER: Token = Token(1);
/// Links count upwards from here, witnesses from half of the space on, what is tracked from three quarters.
const LINKS: usize = 16;
const WITNESSES: usize = usize::MAX / 2;
const TRACKS: usize = usize::MAX / 4 * 3;

/// How long an address waits for its connections to be ended before it is released.
const LEAVING_MAX: Duration = Duration::from_millis(20);

/// Packets of the keeper taken in one round.
const ROUND_MAX: usize = 256;

/// What the handle asks for.
pub enum Command {
    Order(Order, Sender<Result<String, String>>),
    Reconfigure(Box<Prepared>, Sender<io::Result<()>>),
    Stop,
    Abandon,
    Detach(Sender<Detached>),
}

/// How the loop ends.
enum Ending {
    Stopped,
    Detach(Sender<Detached>),
}

/// What the driver has to do with.
pub struct Outside {
    pub keeper: KeeperHandle,
    /// Socket on which other nodes connect to send beats.
    pub listener: OwnedFd,
    pub process: Process,
    pub notes: Notes,
    /// Where what people are shown is published.
    pub status: Arc<ArcSwap<Status>>,
    pub inbox: Receiver<Command>,
}

pub struct Driver {
    poll: Poll,
    waker: Arc<Waker>,
    plan: Plan,
    /// Places of the targets.
    vips: HashMap<Target, VipIx>,
    table: Table,
    recorder: Recorder,
    links: Links,
    witnesses: Witnesses,
    tracks: Tracks,
    arbiter: Option<(Arbiter, Receiver<FromArbiter>)>,
    keeper: KeeperHandle,
    trust: Trust,
    process: Process,
    /// What the machine was told last of how this process is doing.
    local: Local,
    /// Addresses that are released as soon as their connections have been ended, or at this time.
    leaving: Vec<(Target, Weak<Finished>, Instant)>,
    /// For each address, whether there may be connections to it.
    visited: Vec<bool>,
    notes: Notes,
    status: Arc<ArcSwap<Status>>,
    inbox: Receiver<Command>,
    next_tick: Instant,
    boottime: Duration,
    stop_by: Option<Instant>,
    beat_due: bool,
    publish_due: bool,
    told: Told,
    refusals: Refusals,
    transitions: Vec<u64>,
    buffer: Vec<u8>,
    actions: Vec<Action>,
}

impl Driver {
    /// `resets`: how often the keeper has been asked to begin anew.
    pub fn new(plan: Plan, table: Table, resets: u64, outside: Outside) -> io::Result<Driver> {
        let Outside {
            keeper,
            listener,
            process,
            notes,
            status,
            inbox,
        } = outside;
        let poll = Poll::new()?;
        let registry = poll.registry();
        let waker = Arc::new(Waker::new(registry, WAKER)?);
        // Writable: what did not fit is sent when the keeper has read.
        let interest = Interest::READABLE | Interest::WRITABLE;
        registry.register(&mut SourceFd(&keeper.as_fd().as_raw_fd()), KEEPER, interest)?;
        let links = Links::new(registry, listener, LINKS, plan.identity.clone())?;
        let now = Instant::now();
        let mut driver = Driver {
            waker,
            recorder: Recorder::new(now, &table),
            links,
            witnesses: witnesses(&plan, now),
            tracks: tracks(&plan, now, &table),
            arbiter: None,
            keeper,
            trust: Trust::new(resets, table.keeper_problem().is_some()),
            process,
            local: Local::default(),
            leaving: Vec::new(),
            visited: vec![true; plan.targets.len()],
            notes,
            status,
            inbox,
            next_tick: now,
            boottime: sched::boottime(),
            stop_by: None,
            beat_due: false,
            publish_due: true,
            told: Told::new(plan.identity.nodes.len()),
            refusals: Refusals::new(plan.identity.nodes.len()),
            vips: places(&plan),
            transitions: vec![0; plan.targets.len()],
            buffer: Vec::new(),
            actions: Vec::new(),
            table,
            plan,
            poll,
        };
        driver.arbiter = driver.start_arbiter()?;
        driver.instruct();
        driver.publish(now);
        Ok(driver)
    }

    pub fn waker(&self) -> Arc<Waker> {
        self.waker.clone()
    }

    pub fn boot(&self) -> u64 {
        self.plan.identity.boot
    }

    /// Returns the channel to the keeper if packets to addresses are to be accepted after they were let go.
    pub fn run(mut self) -> Option<KeeperHandle> {
        let urgency = sched::urgent_thread();
        log::debug!("failover thread: {urgency:?}");
        match self.rounds() {
            Ok(Ending::Stopped) => {
                let shared = (0..self.plan.targets.len()).any(|vip| self.is_shared(vip));
                self.links.close(self.poll.registry(), false);
                return shared.then_some(self.keeper);
            }
            Ok(Ending::Detach(reply)) => self.hand_over(&reply),
            // Without this thread nothing proves life, so the keeper lets go.
            Err(e) => {
                self.tell(Event::Note {
                    text: format!("the election thread ends: {e}"),
                });
                self.links.close(self.poll.registry(), false);
            }
        }
        None
    }

    /// Whether other nodes hold it too.
    fn is_shared(&self, vip: VipIx) -> bool {
        self.plan.setup.vips[vip].hold == Holders::All
    }

    fn rounds(&mut self) -> io::Result<Ending> {
        let mut events = Events::with_capacity(256);
        let (mut news, mut answers) = (Vec::new(), Vec::new());
        loop {
            let due = self.next_tick.min(self.table.deadline());
            let due = self.leaving.iter().map(|(.., by)| *by).fold(due, Instant::min);
            let due = self.tracks.deadline().map_or(due, |at| due.min(at));
            let timeout = if self.links.busy() {
                Duration::ZERO
            } else {
                due.saturating_duration_since(Instant::now())
            };
            match self.poll.poll(&mut events, Some(timeout)) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            }
            let now = Instant::now();
            if now >= due {
                self.tick(now, &mut news);
            }
            self.hear_keeper(now);
            for event in &events {
                match event.token() {
                    WAKER | KEEPER => {}
                    token if token.0 >= TRACKS => self.tracks.event(token),
                    token if token.0 >= WITNESSES => self.witnesses.event(token, now, &mut answers),
                    token => self.links.event(self.poll.registry(), now, token, &mut news),
                }
            }
            self.links.proceed(self.poll.registry(), now, &mut news);
            for Answer { ix, asked } in answers.drain(..) {
                let asked = now.saturating_duration_since(asked);
                self.step(now, Input::Witness { ix, asked });
            }
            self.take_news(now, &mut news);
            self.hear_arbiter(now);
            self.look_after_tracks(now);
            while let Ok(command) = self.inbox.try_recv() {
                if let Some(ending) = self.obey(now, command) {
                    return Ok(ending);
                }
            }
            if std::mem::take(&mut self.beat_due) {
                self.send_beat(now, None, &mut news);
                self.take_news(now, &mut news);
            }
            self.release(now);
            // That it has ended is found by reading.
            let _ = self.keeper.flush();
            if std::mem::take(&mut self.publish_due) {
                self.publish(now);
            }
            if let Some(by) = self.stop_by
                && (self.table.idle() && self.table.owes_nothing() || now >= by)
            {
                return Ok(Ending::Stopped);
            }
        }
    }

    // ---- inputs ----

    fn tick(&mut self, now: Instant, news: &mut Vec<News>) {
        // The machine's clock stands still while the host is suspended; this one does not.
        let boottime = sched::boottime();
        let gap = boottime.saturating_sub(self.boottime);
        self.boottime = boottime;
        let timers = self.table.setup().timers;
        if gap >= timers.doubt {
            self.step(now, Input::Frozen { gap });
        }
        // What the keeper has answered counts before we complain that it has not.
        self.hear_keeper(now);
        self.step(now, Input::Tick);
        let local = (self.process.local)();
        if local != self.local {
            self.local = local.clone();
            self.step(now, Input::Local(local));
        }
        self.check_keeper(now);
        self.clean_up();
        let registry = self.poll.registry();
        let table = &self.table;
        self.links.tick(registry, now, |n| table.unheard_by(n), news);
        let calm = self.table.calm();
        self.witnesses.tick(registry, now, calm);
        if now >= self.next_tick {
            self.next_tick = now + timers.tick;
        }
        self.publish_due = true;
    }

    /// After the events: an answer that has come is not overdue.
    fn look_after_tracks(&mut self, now: Instant) {
        self.tracks.proceed(self.poll.registry(), now, &self.notes);
        for ix in self.tracks.changes() {
            let TrackStatus {
                name,
                what,
                holds,
                problem,
                ..
            } = self.tracks.status(ix);
            self.tell(Event::Track { name, what, problem });
            let holds = holds == Some(true);
            self.step(now, Input::Track { ix, holds });
            self.publish_due = true;
        }
    }

    fn take_news(&mut self, now: Instant, news: &mut Vec<News>) {
        for item in std::mem::take(news) {
            match item {
                News::Beat(from, beat, not_before) => {
                    let beat = from_wire(beat, &self.plan.addresses, &self.plan.names);
                    let age_max = now.saturating_duration_since(not_before);
                    self.step(now, Input::Beat { from, beat, age_max });
                }
                News::Gone(node) => self.step(now, Input::Gone { node }),
                News::Linked(node) => self.send_beat(now, Some(node), news),
                News::Rejected(why, from) => self.count(now, why, from),
            }
        }
    }

    fn count(&mut self, now: Instant, why: Rejected, from: Option<SocketAddr>) {
        let is_it = |from: SocketAddr| {
            let nodes = &self.plan.identity.nodes;
            nodes
                .iter()
                .position(|p| p.addresses.iter().any(|a| a.ip() == from.ip()))
        };
        if self.refusals.count(now, why, from.and_then(is_it)) {
            let from = from.map_or_else(|| "?".into(), |a| a.to_string());
            self.tell(Event::Rejected { why, from });
        }
    }

    fn step(&mut self, now: Instant, input: Input) {
        self.recorder.record(now, &self.table, &input);
        let mut actions = std::mem::take(&mut self.actions);
        self.table.step(now, input, &mut actions);
        for action in actions.drain(..) {
            self.act(now, action);
        }
        self.actions = actions;
    }

    fn act(&mut self, now: Instant, action: Action) {
        let target = |vip: VipIx| self.plan.targets[vip].clone();
        match action {
            Action::Prove => {
                let at = sched::monotonic();
                if self.ask(ToKeeper::Prove { at }) {
                    self.trust.proved(now);
                }
            }
            Action::Hold { vip } => {
                let target = target(vip);
                self.visited[vip] = true;
                self.leaving.retain(|(left, ..)| *left != target);
                self.ask(ToKeeper::Hold { target });
            }
            Action::Announce { vip, insist } => {
                let target = target(vip);
                self.ask(ToKeeper::Announce { target, insist });
            }
            Action::Release { vip } => {
                let target = target(vip);
                if self.is_shared(vip) {
                    // It is withdrawn; what is open may go on for as long as routers send it here.
                    self.ask(ToKeeper::Release { target });
                } else if !self.leaving.iter().any(|(left, ..)| *left == target) {
                    let finished = self.leave(vip);
                    // Another node may hold it as soon as it may no longer be here: no time for those who are not quick.
                    let is_late = matches!(self.table.vip(vip).reason.lack(), Lack::NoQuorum | Lack::Frozen);
                    let by = if is_late { now } else { now + LEAVING_MAX };
                    self.leaving.push((target, finished, by));
                }
            }
            Action::Beat => self.beat_due = true,
            Action::Ask(question) => {
                if let Some((arbiter, _)) = &self.arbiter {
                    arbiter.ask(question);
                }
            }
            Action::Distrust { vip } => {
                let what = format!("has not removed {} although it was asked", self.plan.targets[vip].net);
                self.keeper_stuck(now, &what);
            }
            Action::Transition { vip, from, to, reason } => {
                self.transitions[vip] += 1;
                let name = |n: NodeIx| self.plan.names[n].as_str();
                let event = Event::Transition {
                    vip: self.plan.targets[vip].net.to_string(),
                    interface: self.plan.targets[vip].interface.clone(),
                    from,
                    to,
                    reason: reason.text(name),
                    holder: self.table.vip(vip).holder.map(|n| name(n).to_string()),
                };
                self.tell(event);
                if log::log_enabled!(log::Level::Debug) {
                    let recording = Box::new(self.recorder.recording());
                    self.notes.send(Note::Recording(recording));
                }
                self.publish_due = true;
            }
        }
    }

    // ---- leaving ----

    /// Has the connections to an address ended; upgradable until that is done.
    fn leave(&mut self, vip: VipIx) -> Weak<Finished> {
        let finished = Arc::new(Finished(self.waker.clone()));
        (self.process.leave)(self.plan.targets[vip].net.addr(), finished.clone());
        Arc::downgrade(&finished)
    }

    /// Releases what nobody uses any more.
    fn release(&mut self, now: Instant) {
        let ready = |(_, finished, by): &(Target, Weak<Finished>, Instant)| finished.strong_count() == 0 || now >= *by;
        let (ready, waiting) = std::mem::take(&mut self.leaving).into_iter().partition(ready);
        self.leaving = waiting;
        let ready: Vec<(Target, Weak<Finished>, Instant)> = ready;
        for (target, ..) in ready {
            self.ask(ToKeeper::Release { target });
        }
    }

    /// Ends what is left of addresses that another node holds: nobody was asked when they went.
    fn clean_up(&mut self) {
        let me = self.plan.identity.me;
        for vip in 0..self.plan.targets.len() {
            if !self.visited[vip] || self.table.may_hold(vip) || self.is_shared(vip) {
                continue;
            }
            if self.table.vip(vip).holder.is_some_and(|node| node != me) {
                self.visited[vip] = false;
                self.leave(vip);
            }
        }
    }

    // ---- the arbiter ----

    /// A thread for what the plan says; the one before it, if any, ends by itself.
    fn start_arbiter(&self) -> io::Result<Option<(Arbiter, Receiver<FromArbiter>)>> {
        let (Some(settings), Some(setup)) = (&self.plan.arbiter, &self.plan.setup.arbiter) else {
            return Ok(None);
        };
        let contact = arbiter::Contact {
            settings: settings.clone(),
            prefix: setup.prefix.clone(),
            node: self.plan.names[self.plan.identity.me].clone(),
            boot: self.plan.identity.boot,
            ttl_s: setup.terms.ttl.as_secs() as i64,
            units: self.units(),
        };
        // Of what was asked for the plan before, nothing is heard any more: it may have numbered its units otherwise.
        let (sender, answers) = bounded(ANSWERS_MAX);
        let arbiter = Arbiter::start(contact, sender, self.waker.clone())?;
        Ok(Some((arbiter, answers)))
    }

    /// What is voted on, by name.
    fn units(&self) -> Vec<String> {
        let name = |(vip, group): (VipIx, Option<&str>)| match group {
            Some(group) => group.to_owned(),
            None => self.plan.addresses[vip].to_string(),
        };
        self.table.units().map(name).collect()
    }

    fn hear_arbiter(&mut self, now: Instant) {
        let answers: Vec<FromArbiter> = match &self.arbiter {
            Some((_, answers)) => answers.try_iter().collect(),
            None => return,
        };
        for answer in answers {
            self.step(now, Input::Arbiter(answer));
        }
    }

    fn vip(&self, target: &Target) -> Option<VipIx> {
        self.vips.get(target).copied()
    }

    // ---- beats ----

    fn send_beat(&mut self, now: Instant, to: Option<NodeIx>, news: &mut Vec<News>) {
        let (table, plan) = (&self.table, &self.plan);
        let words = |n| to_wire(table.beat_to(n), &plan.addresses, &plan.names);
        self.links.beat(self.poll.registry(), now, to, words, news);
    }

    // ---- people ----

    fn tell(&self, event: Event) {
        self.notes.send(Note::Event(event));
    }
}

fn tracks(plan: &Plan, now: Instant, table: &Table) -> Tracks {
    let node = &plan.names[plan.identity.me];
    Tracks::new(now, TRACKS, node, &plan.tracks, |ix| table.track_holds(ix))
}

fn places(plan: &Plan) -> HashMap<Target, VipIx> {
    plan.targets.iter().cloned().zip(0..).collect()
}

/// Answers of the arbiter that wait to be read.
const ANSWERS_MAX: usize = 256;

fn witnesses(plan: &Plan, now: Instant) -> Witnesses {
    let from = plan.identity.nodes[plan.identity.me].addresses[0].ip();
    Witnesses::new(now, WITNESSES, from, plan.witnesses.clone(), plan.identity.dead_after)
}
