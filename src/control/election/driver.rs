//! The election thread's loop.

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
use super::record::Recorder;
use super::track::Tracks;
use super::witness::{Answer, Witnesses};
use super::{
    ArbiterStatus, Detached, Event, NodeStatus, Order, Plan, Prepared, Process, Remembered, Status, TrackStatus,
    VipStatus, WitnessStatus,
};
use crate::failover::arbiter::Answer as FromArbiter;
use crate::failover::beat::{Rejected, from_wire, to_wire};
use crate::failover::table::Table;
use crate::failover::words::{Action, Effect, Fit, Holders, Input, Lack, Local, Order as TableOrder, Phase};
use crate::failover::{NodeIx, VipIx};
use crate::keeper::{self, FromKeeper, KeeperHandle, Target, ToKeeper};
use crate::link::Finished;
use crate::sys::sched;

const WAKER: Token = Token(0);
const KEEPER: Token = Token(1);
/// Links count upwards from here, witnesses from half of the space on, what is tracked from three quarters.
const LINKS: usize = 16;
const WITNESSES: usize = usize::MAX / 2;
const TRACKS: usize = usize::MAX / 4 * 3;

/// How long a refused signature is shown.
const SECRET_MEMORY: Duration = Duration::from_secs(5);

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

/// State of the channel to the keeper.
enum Keeper {
    Works,
    /// Waits for the answer to this reset.
    Silent(u64),
    /// The reset could not even be sent yet.
    Stuck,
    Useless,
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
    keeper_state: Keeper,
    resets: u64,
    /// When the oldest proof that was not acknowledged was given.
    unacked: Option<Instant>,
    /// When the keeper ended.
    keeper_ended: Option<Instant>,
    process: Process,
    told: Local,
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
    told_nodes: Vec<(bool, Option<String>)>,
    told_witnesses: HashMap<SocketAddr, bool>,
    told_arbiter: Option<ArbiterStatus>,
    /// When each node's signature was refused last.
    bad_secret: Vec<Option<Instant>>,
    transitions: Vec<u64>,
    rejected: [u64; Rejected::ALL.len()],
    rejection_told: Option<Instant>,
    buffer: Vec<u8>,
    actions: Vec<Action>,
}

impl Driver {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        plan: Plan,
        table: Table,
        resets: u64,
        keeper: KeeperHandle,
        listener: OwnedFd,
        process: Process,
        notes: Notes,
        status: Arc<ArcSwap<Status>>,
        inbox: Receiver<Command>,
    ) -> io::Result<Driver> {
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
            // One that failed a predecessor is asked to begin anew, or nobody would ever hear that it works again.
            keeper_state: match table.keeper_problem() {
                None => Keeper::Works,
                Some(_) => Keeper::Stuck,
            },
            resets,
            unacked: None,
            keeper_ended: None,
            process,
            told: Local::default(),
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
            told_nodes: vec![(false, None); plan.identity.nodes.len()],
            told_witnesses: HashMap::new(),
            told_arbiter: None,
            bad_secret: vec![None; plan.identity.nodes.len()],
            vips: places(&plan),
            transitions: vec![0; plan.targets.len()],
            rejected: [0; Rejected::ALL.len()],
            rejection_told: None,
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
                self.tell(Event::Note(format!("the election thread ends: {e}")));
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
        if local != self.told {
            self.told = local.clone();
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

    fn count(&mut self, now: Instant, why: Rejected, from: Option<std::net::SocketAddr>) {
        let slot = Rejected::ALL.iter().position(|r| *r == why).unwrap_or(0);
        self.rejected[slot] += 1;
        if why == Rejected::Signature
            && let Some(from) = from
        {
            let nodes = &self.plan.identity.nodes;
            let is_it = |p: &super::links::Peer| p.addresses.iter().any(|a| a.ip() == from.ip());
            if let Some(n) = nodes.iter().position(is_it) {
                self.bad_secret[n] = Some(now);
            }
        }
        let quiet = self
            .rejection_told
            .is_some_and(|at| now.saturating_duration_since(at) < Duration::from_secs(1));
        if !quiet {
            self.rejection_told = Some(now);
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
                    self.unacked.get_or_insert(now);
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
                    self.leaving.push((target, finished, now + LEAVING_MAX));
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

    // ---- the keeper ----

    /// Tells a keeper that works, whoever started it, what we are about.
    fn instruct(&mut self) {
        let timers = self.plan.setup.timers;
        let kept = self.plan.kept.clone();
        self.ask(ToKeeper::Setup { timers });
        let interfaces = self.tracks.interfaces();
        self.ask(ToKeeper::Watch { kept, interfaces });
    }

    /// Notes what the keeper is told at the end of this round, unless it is known not to listen; whether that was noted.
    fn ask(&mut self, message: ToKeeper) -> bool {
        if !matches!(self.keeper_state, Keeper::Works) {
            return false;
        }
        self.keeper.send(message);
        true
    }

    fn check_keeper(&mut self, now: Instant) {
        let patience = self.plan.setup.timers.keeper_patience;
        let late = self
            .unacked
            .is_some_and(|at| now.saturating_duration_since(at) > patience);
        if late && matches!(self.keeper_state, Keeper::Works) {
            self.keeper_stuck(now, "does not answer");
        }
        if matches!(self.keeper_state, Keeper::Stuck) {
            // What was asked before is void; sent once, when there is room, and answered once.
            let number = self.resets + 1;
            self.keeper.send(ToKeeper::Reset { number });
            self.resets = number;
            self.keeper_state = Keeper::Silent(number);
        }
    }

    fn keeper_stuck(&mut self, now: Instant, why: &str) {
        if matches!(self.keeper_state, Keeper::Works) {
            self.keeper_state = Keeper::Stuck;
            self.keeper_fails(now, why);
        }
    }

    fn keeper_fails(&mut self, now: Instant, why: &str) {
        self.tell(Event::Keeper(Some(why.into())));
        self.step(now, Input::Keeper(Err(why.into())));
    }

    fn hear_keeper(&mut self, now: Instant) {
        for _ in 0..ROUND_MAX {
            let mut buffer = std::mem::take(&mut self.buffer);
            let received = self.keeper.receive(&mut buffer);
            self.buffer = buffer;
            match received {
                Ok(Some(messages)) => messages.into_iter().for_each(|message| self.heard(now, message)),
                Ok(None) => return,
                Err(_) if matches!(self.keeper_state, Keeper::Useless) => return,
                Err(_) => {
                    self.keeper_state = Keeper::Useless;
                    let raw = self.keeper.as_fd().as_raw_fd();
                    let _ = self.poll.registry().deregister(&mut SourceFd(&raw));
                    self.keeper_ended = Some(now);
                    return self.keeper_fails(now, "has ended; this process ends too, to be started again");
                }
            }
        }
        // More is waiting, and the event for it has been used up.
        let _ = self.waker.wake();
    }

    fn heard(&mut self, now: Instant, message: FromKeeper) {
        match message {
            FromKeeper::Reset { number } => {
                if matches!(self.keeper_state, Keeper::Silent(n) if n == number) {
                    self.keeper_state = Keeper::Works;
                    self.unacked = None;
                    self.instruct();
                    self.tell(Event::Keeper(None));
                    self.step(now, Input::Keeper(Ok(())));
                }
                return;
            }
            FromKeeper::Note { text } => return self.tell(Event::Note(text)),
            FromKeeper::Ready { problem: None } => return,
            FromKeeper::Ready { problem: Some(why) } => {
                self.keeper_state = Keeper::Useless;
                return self.keeper_fails(now, &why);
            }
            // Facts, not answers.
            FromKeeper::Link { interface, up } => {
                self.tracks.link(&interface, up);
                for vip in 0..self.plan.targets.len() {
                    if self.plan.targets[vip].interface == interface {
                        self.step(now, Input::Link { vip, up });
                    }
                }
                return;
            }
            FromKeeper::Foreign { target, present } => {
                if let Some(vip) = self.vip(&target) {
                    self.step(now, Input::Foreign { vip, present });
                }
                return;
            }
            _ => {}
        }
        if !matches!(self.keeper_state, Keeper::Works) {
            // Answers to what was asked before the reset mean nothing any more.
            return;
        }
        let done = |vip, effect, result| Input::Done { vip, effect, result };
        let (target, make): (Target, Box<dyn FnOnce(VipIx) -> Input>) = match message {
            FromKeeper::Ack => {
                self.unacked = None;
                return;
            }
            FromKeeper::Held { target } => (target, Box::new(move |v| done(v, Effect::Hold, Ok(())))),
            FromKeeper::Failed { target, why } => (target, Box::new(move |v| done(v, Effect::Hold, Err(why)))),
            FromKeeper::Released { target } => (target, Box::new(move |v| done(v, Effect::Release, Ok(())))),
            FromKeeper::Lost { target, why } => (target, Box::new(move |vip| Input::Lost { vip, why })),
            FromKeeper::Expired { target } => (target, Box::new(|vip| Input::Expired { vip })),
            _ => return,
        };
        if let Some(vip) = self.vip(&target) {
            self.step(now, make(vip));
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

    // ---- commands ----

    fn obey(&mut self, now: Instant, command: Command) -> Option<Ending> {
        match command {
            Command::Order(order, reply) => {
                let _ = reply.try_send(self.order(now, order));
            }
            Command::Reconfigure(prepared, reply) => {
                let _ = reply.try_send(self.reconfigure(now, *prepared));
            }
            Command::Stop => {
                let timers = self.plan.setup.timers;
                self.step(now, Input::Admin(TableOrder::Stop));
                // One handover, the keeper's answers, and a little.
                self.stop_by = Some(now + timers.handover + timers.keeper_patience);
            }
            Command::Abandon => return Some(Ending::Stopped),
            Command::Detach(reply) => return Some(Ending::Detach(reply)),
        }
        None
    }

    fn order(&mut self, now: Instant, order: Order) -> Result<String, String> {
        let (Order::Demote(ip) | Order::Allow(ip)) = order;
        let vip = self
            .plan
            .addresses
            .iter()
            .position(|a| *a == ip)
            .ok_or_else(|| format!("{ip} is not a virtual address of this configuration"))?;
        let held = self.table.claims()[vip].phase != Phase::Free;
        let heir = (0..self.plan.identity.nodes.len())
            .any(|n| self.table.peer_claim(n, vip).is_some_and(|c| c.fit == Fit::Ready));
        Ok(match order {
            Order::Demote(_) if self.is_shared(vip) => {
                self.step(now, Input::Admin(TableOrder::Demote(vip)));
                format!("{ip}: withdrawn from this node; what is open may go on, the other nodes are not asked")
            }
            Order::Demote(_) => {
                self.step(now, Input::Admin(TableOrder::Demote(vip)));
                match (held, heir) {
                    (false, _) => format!("{ip}: this node stays away from it"),
                    (true, true) => format!("{ip}: moving to the next node"),
                    (true, false) => {
                        format!("{ip}: no other node can take it now; it moves as soon as one can")
                    }
                }
            }
            Order::Allow(_) => {
                self.step(now, Input::Admin(TableOrder::Allow(vip)));
                format!("{ip}: this node takes part again")
            }
        })
    }

    fn reconfigure(&mut self, now: Instant, prepared: Prepared) -> io::Result<()> {
        let Prepared { plan, listener, .. } = prepared;
        let (old, new) = (&self.plan.identity, &plan.identity);
        if old.nodes == new.nodes && old.me == new.me {
            self.links.adjust(plan.identity.clone());
        } else {
            let identity = plan.identity.clone();
            self.links.rebuild(self.poll.registry(), listener, identity)?;
        }
        let table = plan.carried(&self.table, &self.plan.known());
        // What is not watched any more is released by the keeper.
        let transitions = plan
            .targets
            .iter()
            .map(|t| self.vip(t).map_or(0, |v| self.transitions[v]))
            .collect();
        self.notes.reload(!plan.notify.is_empty());
        self.transitions = transitions;
        self.visited = vec![true; plan.targets.len()];
        self.told_nodes = vec![(false, None); plan.identity.nodes.len()];
        self.bad_secret = vec![None; plan.identity.nodes.len()];
        let asked = std::mem::replace(&mut self.witnesses, witnesses(&plan, now));
        self.witnesses.carry(asked);
        let tracked = std::mem::replace(&mut self.tracks, tracks(&plan, now, &table));
        self.tracks.carry(tracked);
        self.table = table;
        self.vips = places(&plan);
        self.plan = plan;
        self.arbiter = self.start_arbiter().unwrap_or_else(|error| {
            self.tell(Event::Note(format!("no thread for the arbiter: {error}")));
            None
        });
        self.recorder = Recorder::new(now, &self.table);
        self.instruct();
        self.step(now, Input::Tick);
        self.beat_due = true;
        self.publish_due = true;
        Ok(())
    }

    fn hand_over(self, reply: &Sender<Detached>) {
        let (runner, untold) = self.notes.hand_over();
        let remembered = Remembered {
            untold,
            keeper_protocol: keeper::PROTOCOL,
            boot: self.plan.identity.boot,
            resets: self.resets,
            known: self.plan.known(),
            table: self.table,
        };
        let raw = self.keeper.as_fd().as_raw_fd();
        let _ = self.poll.registry().deregister(&mut SourceFd(&raw));
        let listener = self.links.close(self.poll.registry(), true);
        if let Ok(state) = serde_json::to_vec(&remembered) {
            let _ = reply.try_send(Detached {
                keeper: self.keeper.into_fd(),
                listener,
                runner,
                state,
            });
        }
    }

    // ---- people ----

    fn tell(&self, event: Event) {
        self.notes.send(Note::Event(event));
    }

    /// The arbiter as it is now; tells what has changed.
    fn arbiter_status(&mut self) -> Option<ArbiterStatus> {
        let voter = self.table.arbiter()?;
        let ours = |(unit, (vip, _)): (String, (VipIx, _))| self.table.has_arbiters_vote(vip).then_some(unit);
        let status = ArbiterStatus {
            up: voter.up().map(|up| up.is_ok()),
            problem: voter.up().and_then(Result::err).map(str::to_owned),
            votes: self
                .units()
                .into_iter()
                .zip(self.table.units())
                .filter_map(ours)
                .collect(),
        };
        let told = self.told_arbiter.replace(status.clone());
        let told = told.unwrap_or(ArbiterStatus {
            up: Some(true),
            problem: None,
            votes: Vec::new(),
        });
        if status.up.is_some() && status.up != told.up {
            let problem = status.problem.clone();
            self.tell(Event::Arbiter { problem });
        }
        let (now, before) = (&status.votes, &told.votes);
        for unit in now.iter().filter(|unit| !before.contains(unit)) {
            let unit = unit.clone();
            self.tell(Event::Vote { unit, ours: true });
        }
        for unit in before.iter().filter(|unit| !now.contains(unit)) {
            let unit = unit.clone();
            self.tell(Event::Vote { unit, ours: false });
        }
        Some(status)
    }

    fn publish(&mut self, now: Instant) {
        let me = self.plan.identity.me;
        let nodes: Vec<NodeStatus> = (0..self.plan.names.len())
            .map(|n| {
                let view = self.table.node(n);
                let lately = |at: Instant| now.saturating_duration_since(at) < SECRET_MEMORY;
                let other_secret = !view.alive && self.bad_secret[n].is_some_and(lately);
                NodeStatus {
                    name: self.plan.names[n].clone(),
                    alive: view.alive,
                    last_beat_ms: view.last_beat.filter(|_| n != me).map(|d| d.as_millis() as u64),
                    mismatch: match other_secret {
                        true => Some("signs with another secret; see `secret_files`".into()),
                        false => view.mismatch,
                    },
                }
            })
            .collect();
        for (n, node) in nodes.iter().enumerate().filter(|(n, _)| *n != me) {
            let (alive, mismatch) = (node.alive, node.mismatch.clone());
            let before = std::mem::replace(&mut self.told_nodes[n], (alive, mismatch.clone()));
            if before.0 != alive {
                let name = node.name.clone();
                self.tell(Event::Node { name, alive });
            }
            if let (true, Some(what)) = (before.1 != mismatch, mismatch) {
                let name = node.name.clone();
                self.tell(Event::Mismatch { name, what });
            }
        }
        let witnesses: Vec<WitnessStatus> = self
            .witnesses
            .up(now)
            .map(|(address, up)| WitnessStatus { address, up })
            .collect();
        for witness in &witnesses {
            let Some(up) = witness.up else { continue };
            if self.told_witnesses.insert(witness.address, up).unwrap_or(true) != up {
                let address = witness.address;
                self.tell(Event::Witness { address, up });
            }
        }
        let arbiter = self.arbiter_status();
        let rejected = Rejected::ALL
            .iter()
            .zip(self.rejected)
            .map(|(why, count)| (why.word(), count))
            .collect();
        self.status.store(Arc::new(Status {
            vips: (0..self.plan.targets.len()).map(|v| self.vip_status(v)).collect(),
            nodes,
            witnesses,
            arbiter,
            tracks: (0..self.tracks.len()).map(|ix| self.tracks.status(ix)).collect(),
            rejected,
            keeper: self.table.keeper_problem().map(str::to_string),
            // Whatever it held has lapsed by then, and is elsewhere if there is anybody to take it.
            useless: self
                .keeper_ended
                .is_some_and(|at| at.elapsed() >= self.plan.setup.timers.frozen_bound()),
        }));
    }

    fn vip_status(&self, v: VipIx) -> VipStatus {
        let names = &self.plan.names;
        let view = self.table.vip(v);
        let obstacles = view.nobody.map(|all| {
            let one = |(n, lacks): (NodeIx, Option<Lack>)| {
                let why = lacks.map_or("is not heard", Lack::text);
                format!("{} {why}", names[n])
            };
            all.into_iter().map(one).collect()
        });
        VipStatus {
            address: self.plan.targets[v].net.to_string(),
            interface: self.plan.targets[v].interface.clone(),
            hold: self.plan.setup.vips[v].hold,
            state: view.state,
            holder: view.holder.map(|n| names[n].clone()),
            since_s: view.since.as_secs(),
            reason: view.reason.text(|n| names[n].as_str()),
            demoted: view.demoted,
            obstacles,
            transitions: self.transitions[v],
        }
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
