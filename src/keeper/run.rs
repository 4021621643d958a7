//! The keeper process itself: a loop around [`Leases`].
//!
//! The loop never waits for the kernel's configuration or for the main process: changes go to the thread in [`super::kernel`],
//! what is said waits in a queue until the channel has room, and announcements go out a few in each round.
//!
//! # Addresses that others hold too
//! An address that a routing daemon announces is withdrawn by taking it off its interface, and packets that are on their way must
//! be accepted afterwards, or a planned end would cut connections that could finish. So a `local` route for it is put on before the
//! address, and stays until the main process has ended ([`Accepted`]). A route has no lease: if this process is killed with the main
//! process it is left behind, where it harms nobody, because it is not announced, and the next keeper removes it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use caps::Capability;
use ipnet::IpNet;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::socket::{SockType, getsockopt, sockopt};

use super::handle::{PER_PACKET, receive, transmit};
use super::kernel::{self, Kernel, News};
use super::wire::{FromKeeper, Kept, Target, ToKeeper};
use crate::failover::lease::{Input, Leases, Manner, Op, Output, Refusal, Report};
use crate::failover::timers::Timers;
use crate::sys::neigh::Announcer;
use crate::sys::netlink::{Address, Change, Interface, Monitor};
use crate::sys::{output, rights, sched};

mod news;

/// Announcements sent in one round, each of one or two frames.
const ANNOUNCED_MAX: usize = 64;

/// Messages that wait for the main process: some for each of a thousand addresses.
const OUTBOX_MAX: usize = 16 * 1024;

/// Packets taken in one round, so that time and the kernel's news get their turn.
const ROUND_MAX: usize = 256;

const NEEDED: [Capability; 2] = [Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW];

/// The whole life of a keeper, from `weir keeper` to its end.
pub fn main() -> ExitCode {
    let stdin = io::stdin();
    let channel = stdin.as_fd();
    if !matches!(getsockopt(&channel, sockopt::SockType), Ok(SockType::SeqPacket)) {
        output::last_words("weir keeper: is started by weir run, not by hand");
        return ExitCode::from(2);
    }
    // Standard error is the main process's, and perhaps a pipe that nobody reads: waiting there would keep the addresses.
    std::panic::set_hook(Box::new(|info| {
        output::last_words(&format!("weir keeper: {info}"));
    }));
    let problem = settle_in();
    let outcome = Keeper::new(channel).and_then(|mut keeper| keeper.run(problem));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // The main process sees the channel close; what is left on the interfaces lapses.
            output::last_words(&format!("weir keeper: {e}"));
            ExitCode::FAILURE
        }
    }
}

/// Makes this process hard to disturb and harmless; returns why it will be of no use, if so.
fn settle_in() -> Option<String> {
    // A signal to the group (Ctrl-C, a service manager's stop) is for the main process. It needs us until it has let go, and
    // its end is what ends us.
    let _ = nix::unistd::setsid();
    let _ = SigSet::all().thread_block();
    sched::urgent_thread();
    sched::lock_memory();
    // The last process to be killed for want of memory: it is small, and it is what takes addresses away.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-900");

    match rights::keep_only(&NEEDED) {
        Err(_) => Some("cannot set its capabilities".into()),
        Ok(missing) => (!missing.is_empty()).then(|| {
            format!(
                "lacks {missing}: start weir as root or give the service AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW"
            )
        }),
    }
}

/// Whether packets to an address are accepted beside its being held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accepted {
    /// It was not asked for.
    Never,
    /// From the first time it is held.
    Later,
    /// Packets to the address are accepted.
    Now,
}

struct Watched {
    accepted: Accepted,
    target: Target,
    /// Nobody asks for it any more; its slot waits for another.
    forgotten: bool,
    foreign: bool,
    /// What a dead predecessor may have left has yet to be looked for.
    unswept: bool,
}

struct Keeper<'a> {
    channel: BorrowedFd<'a>,
    kernel: Kernel,
    monitor: Monitor,
    announcer: Option<Announcer>,
    leases: Leases,
    timers: Timers,
    watched: Vec<Watched>,
    /// Interfaces whose state is wanted besides.
    tracked: Vec<String>,
    slots: HashMap<Target, usize>,
    named: HashMap<IpAddr, Vec<usize>>,
    /// Numbers of the subnets in which addresses go together.
    subnets: HashMap<(String, IpNet), usize>,
    /// None until the kernel has answered.
    interfaces: Option<Vec<Interface>>,
    /// Operations that were decided on and have yet to be handed to the kernel.
    changes: Vec<Op>,
    /// Addresses to announce, a few in each round.
    loud: VecDeque<usize>,
    /// A list of addresses was asked for, and whether it was out of date before it came.
    listing: Option<bool>,
    /// Primary addresses that went lately (interface, subnet), and ours that were secondary ones.
    gone_primaries: Vec<(u32, IpNet)>,
    gone_secondaries: Vec<usize>,
    /// To be answered when nothing is held any more.
    reset: Option<u64>,
    closed: bool,
    /// What the kernel's thread was asked to stop accepting, and has not answered.
    refusing: usize,
    outbox: VecDeque<FromKeeper>,
}

impl<'a> Keeper<'a> {
    fn new(channel: BorrowedFd<'a>) -> io::Result<Keeper<'a>> {
        let timers = Timers::derive(Duration::from_millis(50), Duration::from_millis(250));
        let monitor = Monitor::open()?;
        let kernel = Kernel::start()?;
        kernel.interfaces();
        Ok(Keeper {
            channel,
            kernel,
            monitor,
            announcer: Announcer::open().ok(),
            leases: Leases::new(timers, 0),
            timers,
            watched: Vec::new(),
            tracked: Vec::new(),
            slots: HashMap::new(),
            named: HashMap::new(),
            subnets: HashMap::new(),
            interfaces: None,
            changes: Vec::new(),
            loud: VecDeque::new(),
            listing: None,
            gone_primaries: Vec::new(),
            gone_secondaries: Vec::new(),
            reset: None,
            closed: false,
            refusing: 0,
            outbox: VecDeque::new(),
        })
    }

    fn run(&mut self, problem: Option<String>) -> io::Result<()> {
        self.say(FromKeeper::Ready { problem });
        let mut buffer = Vec::new();
        loop {
            self.hand_on();
            self.flush();
            self.wait()?;
            // Proofs first: they say when they were given, so that a keeper that stood still for a moment does not take its own
            // silence for the main process's, and what waited through a long freeze proves nothing all the same.
            for _ in 0..ROUND_MAX {
                if self.closed {
                    break;
                }
                match receive::<Vec<ToKeeper>>(self.channel, &mut buffer) {
                    Ok(Some(messages)) => messages.into_iter().for_each(|message| self.take(message)),
                    Ok(None) => break,
                    Err(_) => {
                        self.closed = true;
                        self.step(Input::Closed);
                        (0..self.watched.len()).for_each(|slot| self.accept_no_longer(slot));
                    }
                }
            }
            self.step(Input::Tick);
            for news in self.kernel.news() {
                self.answered(news)?;
            }
            self.hear()?;
            self.announce();
            if self.leases.idle() {
                if self.closed && self.refusing == 0 {
                    return Ok(());
                }
                if let Some(number) = self.reset.take() {
                    // What was said before is void.
                    self.outbox.retain(|m| matches!(m, FromKeeper::Note { .. }));
                    self.say(FromKeeper::Reset { number });
                }
            }
        }
    }

    fn wait(&self) -> io::Result<()> {
        let mut timeout = match self.leases.deadline() {
            None => PollTimeout::NONE,
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now());
                // Rounded up, or the last fraction of a millisecond would be spent spinning.
                let ms = left.as_micros().div_ceil(1_000).min(60_000);
                PollTimeout::try_from(ms as u32).unwrap_or(PollTimeout::ZERO)
            }
        };
        if !self.loud.is_empty() {
            timeout = PollTimeout::from(1u8);
        }
        let mut interest = PollFlags::POLLIN;
        interest.set(PollFlags::POLLOUT, !self.outbox.is_empty());
        let mut fds = [
            PollFd::new(self.monitor.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.kernel.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.channel, interest),
        ];
        // A closed channel is always ready.
        let fds = if self.closed { &mut fds[..2] } else { &mut fds[..] };
        match poll(fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn take(&mut self, message: ToKeeper) {
        match message {
            ToKeeper::Setup { timers } => {
                self.timers = timers;
                self.leases.set_timers(timers);
                self.note_proof();
            }
            ToKeeper::Watch { kept, interfaces } => {
                self.tracked = interfaces;
                self.watch(kept);
            }
            ToKeeper::Prove { at } => {
                let age = sched::monotonic().saturating_sub(at);
                if let Some(at) = Instant::now().checked_sub(age) {
                    self.step(Input::Proof { at });
                }
                self.note_proof();
                self.say(FromKeeper::Ack);
            }
            ToKeeper::Hold { target } => {
                let vip = self.slot(&target);
                if self.watched[vip].accepted == Accepted::Later {
                    self.watched[vip].accepted = Accepted::Now;
                    self.kernel.accept(target.net.addr(), true);
                }
                self.step(Input::Hold { vip });
            }
            ToKeeper::Announce { target, insist } => {
                let vip = self.slot(&target);
                self.step(Input::Announce { vip, insist });
            }
            ToKeeper::Release { target } => {
                let vip = self.slot(&target);
                self.step(Input::Release { vip });
            }
            ToKeeper::Reset { number } => {
                self.step(Input::Closed);
                self.reset = Some(number);
            }
        }
    }

    /// Tells the kernel's thread how long the newest proof counts.
    fn note_proof(&self) {
        if let Some(until) = self.leases.fresh_until() {
            let left = until.saturating_duration_since(Instant::now());
            self.kernel.proved_until(sched::monotonic() + left);
        }
    }

    fn watch(&mut self, kept: Vec<Kept>) {
        let named: HashSet<&Target> = kept.iter().map(|k| &k.target).collect();
        for slot in 0..self.watched.len() {
            let watched = &mut self.watched[slot];
            if !watched.forgotten && !named.contains(&watched.target) {
                watched.forgotten = true;
                self.step(Input::Release { vip: slot });
                self.accept_no_longer(slot);
            }
        }
        for Kept {
            target,
            garp_refresh,
            accepted,
        } in &kept
        {
            let before = self.watched.len();
            let slot = self.slot(target);
            let fresh = slot >= before || std::mem::take(&mut self.watched[slot].forgotten);
            self.watched[slot].unswept |= fresh && self.leases.free(slot);
            match (self.watched[slot].accepted, accepted) {
                (Accepted::Never, true) => {
                    self.watched[slot].accepted = Accepted::Later;
                    match self.leases.holds(slot) {
                        true => {
                            self.watched[slot].accepted = Accepted::Now;
                            self.kernel.accept(target.net.addr(), true);
                        }
                        // What a dead predecessor may have left.
                        false => self.refuse(target.net.addr()),
                    }
                }
                (Accepted::Later | Accepted::Now, false) => self.accept_no_longer(slot),
                _ => {}
            }
            let subnet = matches!(target.net, IpNet::V4(_)).then(|| {
                let next = self.subnets.len();
                let subnet = (target.interface.clone(), target.net.trunc());
                *self.subnets.entry(subnet).or_insert(next)
            });
            let manner = Manner {
                subnet,
                garp_refresh: *garp_refresh,
            };
            self.leases.set_manner(Instant::now(), slot, manner);
        }
        self.report_links();
        for slot in 0..self.watched.len() {
            self.report_foreign(slot);
        }
        self.list();
    }

    /// The slot of a target, a new one if need be.
    fn slot(&mut self, target: &Target) -> usize {
        if let Some(slot) = self.slots.get(target) {
            return *slot;
        }
        let slot = self.watched.len();
        self.watched.push(Watched {
            target: target.clone(),
            accepted: Accepted::Never,
            forgotten: false,
            foreign: false,
            unswept: false,
        });
        self.slots.insert(target.clone(), slot);
        self.named.entry(target.net.addr()).or_default().push(slot);
        self.leases.grow(slot + 1);
        slot
    }

    fn accept_no_longer(&mut self, slot: usize) {
        let watched = &mut self.watched[slot];
        if std::mem::replace(&mut watched.accepted, Accepted::Never) == Accepted::Now {
            let ip = watched.target.net.addr();
            self.refuse(ip);
        }
    }

    fn refuse(&mut self, ip: IpAddr) {
        self.refusing += 1;
        self.kernel.accept(ip, false);
    }

    fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().flatten().find(|i| i.name == name)
    }

    fn interface_name(&self, index: u32) -> &str {
        let found = self.interfaces.iter().flatten().find(|i| i.index == index);
        found.map_or("?", |i| i.name.as_str())
    }

    // ---- effects ----

    fn step(&mut self, input: Input) {
        self.step_at(Instant::now(), input);
    }

    fn step_at(&mut self, now: Instant, input: Input) {
        let mut out = Vec::new();
        self.leases.step(now, input, &mut out);
        for output in out {
            match output {
                Output::Do(Op::Announce(slot)) => {
                    if !self.loud.contains(&slot) {
                        self.loud.push_back(slot);
                    }
                }
                Output::Do(op) => self.changes.push(op),
                Output::Say(report) => self.report(report),
            }
        }
    }

    /// Gives the kernel's thread what was decided on.
    fn hand_on(&mut self) {
        // Before the interfaces are known nothing can be done, and it is not an error yet. What a predecessor may have left on an
        // address goes first.
        let (mut waiting, mut refused) = (Vec::new(), VecDeque::new());
        loop {
            let mut changes = Vec::new();
            for op in std::mem::take(&mut self.changes) {
                let (Op::Install(slot) | Op::Renew(slot) | Op::Remove(slot) | Op::Announce(slot)) = op;
                let watched = &self.watched[slot];
                if self.interfaces.is_none() || watched.unswept {
                    waiting.push(op);
                    continue;
                }
                match self.interface(&watched.target.interface) {
                    Some(interface) => changes.push(kernel::Change {
                        op,
                        interface: interface.index,
                        net: watched.target.net,
                    }),
                    None => refused.push_back(op),
                }
            }
            if !changes.is_empty() {
                self.kernel.change(changes, self.timers.lease);
            }
            // Which may be followed by something else.
            let Some(op) = refused.pop_front() else { break };
            let (Op::Install(slot) | Op::Renew(slot) | Op::Remove(slot) | Op::Announce(slot)) = op;
            let why = format!("there is no interface {}", self.watched[slot].target.interface);
            let result = Err(Refusal::Kernel(why));
            self.step(Input::Did { op, result });
        }
        self.changes = waiting;
    }

    /// Sends some of the announcements that are due: proofs are read in between, and the interface's queue is finite.
    fn announce(&mut self) {
        let Some(announcer) = &self.announcer else {
            self.loud.clear();
            return;
        };
        for _ in 0..ANNOUNCED_MAX {
            let Some(slot) = self.loud.pop_front() else { return };
            let Target { net, interface } = &self.watched[slot].target;
            let Some((index, mac)) = self.interface(interface).and_then(|i| Some((i.index, i.mac?))) else {
                continue;
            };
            if !self.leases.holds(slot) {
                continue;
            }
            match announcer.announce(index, interface, mac, net.addr()) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock || e.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.loud.push_front(slot);
                    return;
                }
                // Best effort.
                _ => {}
            }
        }
    }

    fn report(&mut self, report: Report) {
        let target = |slot: usize| self.watched[slot].target.clone();
        self.say(match report {
            Report::Held(slot) => FromKeeper::Held { target: target(slot) },
            Report::Released(slot) => FromKeeper::Released { target: target(slot) },
            Report::Failed(slot, why) => FromKeeper::Failed {
                target: target(slot),
                why,
            },
            Report::Lost(slot, why) => FromKeeper::Lost {
                target: target(slot),
                why,
            },
            Report::Expired(slot) => FromKeeper::Expired { target: target(slot) },
        });
    }

    /// Puts it where [`flush`](Self::flush) finds it.
    fn say(&mut self, message: FromKeeper) {
        if matches!(message, FromKeeper::Ack) && self.outbox.contains(&FromKeeper::Ack) {
            return;
        }
        // A main process that has read nothing for so long resets us when it goes on.
        if self.outbox.len() >= OUTBOX_MAX {
            self.outbox.pop_front();
        }
        self.outbox.push_back(message);
    }

    /// Sends without waiting what fits; the rest stays.
    fn flush(&mut self) {
        while !self.outbox.is_empty() {
            let messages = self.outbox.len().min(PER_PACKET);
            let packet: Vec<&FromKeeper> = self.outbox.range(..messages).collect();
            match transmit(self.channel, &packet) {
                Ok(true) => drop(self.outbox.drain(..messages)),
                Ok(false) => return,
                // It has closed its end, which reading finds out.
                Err(_) => self.outbox.clear(),
            }
        }
    }
}
