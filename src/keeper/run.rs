//! The keeper process itself: a loop around [`Leases`].

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use caps::{CapSet, Capability, CapsHashSet};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::socket::{MsgFlags, SockType, getsockopt, send, sockopt};

use super::handle::receive;
use super::wire::{FromKeeper, Target, ToKeeper};
use crate::failover::lease::{Input, Leases, Op, Output, Report};
use crate::failover::timers::Timers;
use crate::sys::neigh::Announcer;
use crate::sys::netlink::{Change, Interface, Monitor, Netlink};
use crate::sys::{output, sched};

/// Messages taken in one round, so that time and the kernel's news get their turn.
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

    let have = caps::read(None, CapSet::Permitted).unwrap_or_default();
    let keep: CapsHashSet = NEEDED.into_iter().filter(|c| have.contains(c)).collect();
    for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        let wanted = match set {
            CapSet::Inheritable => CapsHashSet::new(),
            _ => keep.clone(),
        };
        if caps::set(None, set, &wanted).is_err() {
            return Some("cannot set its capabilities".into());
        }
    }
    let _ = nix::sys::prctl::set_no_new_privs();
    let missing: Vec<String> = NEEDED
        .iter()
        .filter(|c| !keep.contains(c))
        .map(ToString::to_string)
        .collect();
    (!missing.is_empty()).then(|| {
        format!(
            "lacks {}: start weir as root or give the service AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW",
            missing.join(" and ")
        )
    })
}

struct Watched {
    target: Target,
    /// Nobody asks for it any more; its slot waits for another.
    forgotten: bool,
    foreign: bool,
}

struct Keeper<'a> {
    channel: BorrowedFd<'a>,
    netlink: Netlink,
    monitor: Monitor,
    announcer: Option<Announcer>,
    leases: Leases,
    timers: Timers,
    watched: Vec<Watched>,
    interfaces: Vec<Interface>,
}

impl<'a> Keeper<'a> {
    fn new(channel: BorrowedFd<'a>) -> io::Result<Keeper<'a>> {
        let timers = Timers::derive(Duration::from_millis(50), Duration::from_millis(250));
        let mut netlink = Netlink::open()?;
        let monitor = Monitor::open()?;
        let interfaces = netlink.interfaces()?;
        Ok(Keeper {
            channel,
            netlink,
            monitor,
            announcer: Announcer::open().ok(),
            leases: Leases::new(timers, 0),
            timers,
            watched: Vec::new(),
            interfaces,
        })
    }

    fn run(&mut self, problem: Option<String>) -> io::Result<()> {
        self.say(FromKeeper::Ready { problem });
        let mut buffer = Vec::new();
        loop {
            self.wait()?;
            // Time first: after a freeze, what is due counts before what has piled up.
            self.step(Input::Tick);
            for _ in 0..ROUND_MAX {
                match receive(self.channel, &mut buffer, MsgFlags::MSG_DONTWAIT) {
                    Ok(Some(message)) => self.take(message)?,
                    Ok(None) => break,
                    Err(_) => {
                        self.step(Input::Closed);
                        return Ok(());
                    }
                }
            }
            for change in self.monitor.changes()? {
                self.changed(change)?;
            }
        }
    }

    fn wait(&self) -> io::Result<()> {
        let timeout = match self.leases.deadline() {
            None => PollTimeout::NONE,
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now());
                // Rounded up, or the last fraction of a millisecond would be spent spinning.
                let ms = left.as_micros().div_ceil(1_000).min(60_000);
                PollTimeout::try_from(ms as u32).unwrap_or(PollTimeout::ZERO)
            }
        };
        let mut fds = [
            PollFd::new(self.channel, PollFlags::POLLIN),
            PollFd::new(self.monitor.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn take(&mut self, message: ToKeeper) -> io::Result<()> {
        match message {
            ToKeeper::Setup { timers } => {
                self.timers = timers;
                self.leases.set_timers(timers);
            }
            ToKeeper::Watch { targets } => self.watch(targets)?,
            ToKeeper::Prove { at } => {
                let age = sched::monotonic().saturating_sub(at);
                if let Some(at) = Instant::now().checked_sub(age) {
                    self.step(Input::Proof { at });
                }
                self.say(FromKeeper::Ack);
            }
            ToKeeper::Hold { target } => {
                let vip = self.slot(&target);
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
                self.say(FromKeeper::Reset { number });
            }
        }
        Ok(())
    }

    fn watch(&mut self, targets: Vec<Target>) -> io::Result<()> {
        for slot in 0..self.watched.len() {
            let known = targets.contains(&self.watched[slot].target);
            if !known && !self.watched[slot].forgotten {
                self.step(Input::Release { vip: slot });
                self.watched[slot].forgotten = true;
            }
        }
        for target in &targets {
            let before = self.watched.len();
            let slot = self.slot(target);
            let fresh = slot >= before || std::mem::take(&mut self.watched[slot].forgotten);
            if fresh && !self.leases.holds(slot) {
                self.sweep(slot)?;
            }
        }
        self.report_links();
        for slot in 0..self.watched.len() {
            self.report_foreign(slot);
        }
        Ok(())
    }

    /// The slot of a target, a new one if need be.
    fn slot(&mut self, target: &Target) -> usize {
        if let Some(slot) = self.watched.iter().position(|w| w.target == *target) {
            return slot;
        }
        self.watched.push(Watched {
            target: target.clone(),
            forgotten: false,
            foreign: false,
        });
        self.leases.grow(self.watched.len());
        self.watched.len() - 1
    }

    /// Removes what a dead predecessor has left, and notes what is not ours to remove.
    fn sweep(&mut self, slot: usize) -> io::Result<()> {
        let target = self.watched[slot].target.clone();
        for address in self.netlink.addresses()? {
            if address.net.addr() != target.net.addr() {
                continue;
            }
            let name = self.name(address.interface).unwrap_or("?").to_string();
            if address.ours && self.netlink.remove(address.interface, address.net).is_ok() {
                let text = format!("swept {} from {name}, left by a predecessor", address.net);
                self.say(FromKeeper::Note { text });
            }
        }
        self.watched[slot].foreign = self.foreign(slot)?;
        Ok(())
    }

    /// Whether the address is on this host, and not by us.
    fn foreign(&mut self, slot: usize) -> io::Result<bool> {
        let ip = self.watched[slot].target.net.addr();
        let all = self.netlink.addresses()?;
        Ok(all.iter().any(|a| a.net.addr() == ip && !a.ours))
    }

    fn name(&self, index: u32) -> Option<&str> {
        self.interfaces
            .iter()
            .find(|i| i.index == index)
            .map(|i| i.name.as_str())
    }

    fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|i| i.name == name)
    }

    // ---- the kernel's news ----

    fn changed(&mut self, change: Change) -> io::Result<()> {
        match change {
            Change::Link(interface) => {
                self.interfaces.retain(|i| i.index != interface.index);
                self.interfaces.push(interface);
                self.report_links();
            }
            Change::Unlinked(interface) => {
                self.interfaces.retain(|i| i.index != interface.index);
                self.report_links();
            }
            Change::Added(address) => {
                for slot in self.named(address.net.addr()) {
                    if address.ours {
                        continue;
                    }
                    if self.leases.holds(slot) {
                        // Somebody has made it permanent; a permanent address would outlive us.
                        let op = Op::Renew(slot);
                        let result = self.perform(op);
                        self.step(Input::Did { op, result });
                    } else {
                        self.recheck(slot)?;
                    }
                }
            }
            Change::Removed(address) => {
                for slot in self.named(address.net.addr()) {
                    self.recheck(slot)?;
                }
            }
            Change::Overrun => {
                self.interfaces = self.netlink.interfaces()?;
                self.report_links();
                for slot in 0..self.watched.len() {
                    self.recheck(slot)?;
                }
            }
        }
        Ok(())
    }

    fn named(&self, ip: std::net::IpAddr) -> Vec<usize> {
        (0..self.watched.len())
            .filter(|s| !self.watched[*s].forgotten && self.watched[*s].target.net.addr() == ip)
            .collect()
    }

    /// Looks at what the kernel has now; the news may be older than our own last change.
    fn recheck(&mut self, slot: usize) -> io::Result<()> {
        let target = self.watched[slot].target.clone();
        if self.leases.holds(slot) {
            let index = self.interface(&target.interface).map(|i| i.index);
            let there = self
                .netlink
                .addresses()?
                .iter()
                .any(|a| Some(a.interface) == index && a.net == target.net);
            if !there {
                let text = format!("{} was removed from {} by somebody else", target.net, target.interface);
                self.say(FromKeeper::Note { text });
                self.step(Input::Vanished { vip: slot });
            }
            return Ok(());
        }
        let foreign = self.foreign(slot)?;
        if foreign != self.watched[slot].foreign {
            self.watched[slot].foreign = foreign;
            self.report_foreign(slot);
        }
        Ok(())
    }

    fn report_links(&self) {
        let mut told: Vec<&str> = Vec::new();
        for watched in self.watched.iter().filter(|w| !w.forgotten) {
            let name = watched.target.interface.as_str();
            if told.contains(&name) {
                continue;
            }
            told.push(name);
            self.say(FromKeeper::Link {
                interface: name.to_string(),
                up: self.interface(name).is_some_and(|i| i.up),
            });
        }
    }

    fn report_foreign(&self, slot: usize) {
        let watched = &self.watched[slot];
        if !watched.forgotten {
            self.say(FromKeeper::Foreign {
                target: watched.target.clone(),
                present: watched.foreign,
            });
        }
    }

    // ---- effects ----

    fn step(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        let mut out = Vec::new();
        while let Some(input) = inputs.pop_front() {
            self.leases.step(Instant::now(), input, &mut out);
            for output in out.drain(..) {
                match output {
                    Output::Do(op) => {
                        let result = self.perform(op);
                        inputs.push_back(Input::Did { op, result });
                    }
                    Output::Say(report) => self.report(report),
                }
            }
        }
    }

    fn perform(&mut self, op: Op) -> Result<(), String> {
        let (Op::Install(slot) | Op::Renew(slot) | Op::Remove(slot) | Op::Announce(slot)) = op;
        let target = self.watched[slot].target.clone();
        let Some(interface) = self.interface(&target.interface).cloned() else {
            return Err(format!("there is no interface {}", target.interface));
        };
        let (index, net, lease) = (interface.index, target.net, self.timers.lease);
        let outcome = match op {
            Op::Install(_) => match self.netlink.install(index, net, lease, true) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    if self.foreign(slot).unwrap_or(true) {
                        return Err("somebody else has put it on this host".into());
                    }
                    self.netlink.install(index, net, lease, false)
                }
                other => other,
            },
            Op::Renew(_) => self.netlink.install(index, net, lease, false),
            Op::Remove(_) => self.netlink.remove(index, net),
            Op::Announce(_) => match (&self.announcer, interface.mac) {
                (Some(announcer), Some(mac)) => announcer.announce(index, mac, net.addr()),
                _ => Ok(()),
            },
        };
        outcome.map_err(|e| format!("{}: {e}", target.interface))
    }

    fn report(&self, report: Report) {
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

    /// Never waits: a main process that has stopped reading will be reset when it goes on.
    fn say(&self, message: FromKeeper) {
        if let Ok(packet) = serde_json::to_vec(&message) {
            let _ = send(
                self.channel.as_raw_fd(),
                &packet,
                MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
            );
        }
    }
}
