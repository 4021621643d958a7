//! The engine's thread: reads what flows have ended, ends those that are idle, follows this host's addresses, obeys.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;

use super::NAME;
use super::core::{Core, locals};
use super::counts::{EXCHANGE, EXCHANGE_SHARE};
use super::flows::Fate;
use super::handle::Attached;
use super::layout::{FLOW_ENDED, FLOW_FIN, FLOW_OPEN, Flow, Tuple, address};
use super::maps::{Kind, monotonic_ns};
use super::sweep::{Sweep, TICK, spent};
use crate::base::LogLimit;
use crate::config::model::Protocol;
use crate::link::{EngineOrder, LiveConnection, Shared, Shed};
use crate::relay::Cause;
use crate::snapshot::Pool;
use crate::sys::bpf::Walk;
use crate::sys::netlink::Monitor;

/// How often it is looked for places of nobody, and for ends that were asked for and did not come.
const TIDY: Duration = Duration::from_secs(1);

/// Connections that are ended, both sides told, in one go: the rest follows in the next part of the sweep.
const TOLD_MAX: usize = 512;

/// From one look at what has ended to the next: at many thousand ends a second it would cost more to be woken by each than to
/// write it down.
const GATHER: Duration = Duration::from_millis(10);

/// How often it is looked how backends are reached, and which ports sockets leave.
const ROUTES: Duration = Duration::from_secs(2);

/// The state of the engine's thread.
pub(super) struct Task {
    pub(super) shared: Arc<Shared>,
    pub(super) attached: Arc<Attached>,
    pub(super) core: Arc<Mutex<Core>>,
    pub(super) orders: Receiver<EngineOrder>,
    pub(super) woken: UnixStream,
    pub(super) monitor: Monitor,
    pub(super) untold: LogLimit,
}

impl Task {
    pub(super) fn run(mut self) {
        let mut told = HashSet::new();
        self.read_ends(|id| _ = told.insert(id));
        self.attached.maps.finish_removal(&told);
        let now = Instant::now();
        let mut sweeps = Sweep::both(now);
        let (mut tidy_at, mut routes_at, mut exchange_at) = (now + TIDY, now + ROUTES, now);
        let (mut fade_at, mut gather_at) = (None, None);
        loop {
            let exchange_due = self.core.lock().is_shared.then_some(exchange_at);
            let dues = [tidy_at, sweeps[0].due(), sweeps[1].due()];
            let perhaps = [exchange_due, fade_at, gather_at].into_iter().flatten();
            let due = dues.into_iter().chain(perhaps).min().expect("there are some");
            let wait = due.saturating_duration_since(Instant::now());
            {
                let mut fds = [
                    PollFd::new(self.woken.as_fd(), PollFlags::POLLIN),
                    PollFd::new(self.attached.helper(), PollFlags::POLLIN),
                    PollFd::new(self.monitor.as_fd(), PollFlags::POLLIN),
                    PollFd::new(self.attached.maps.events(), PollFlags::POLLIN),
                ];
                let heard = fds.len() - usize::from(gather_at.is_some());
                let timeout = PollTimeout::try_from(wait.as_millis() as i32 + 1).unwrap_or(PollTimeout::MAX);
                let _ = poll(&mut fds[..heard], timeout);
            }
            use std::io::Read;
            while (&self.woken).read(&mut [0; 64]).is_ok_and(|n| n > 0) {}
            if gather_at.is_none_or(|at| at <= Instant::now()) {
                gather_at = self.read_ends(|_| {}).then(|| Instant::now() + GATHER);
            }
            while let Ok(order) = self.orders.try_recv() {
                if let EngineOrder::Stop = order {
                    return;
                }
                self.obey(order);
            }
            self.hear();
            self.follow_addresses();
            let now = Instant::now();
            for sweep in sweeps.iter_mut().filter(|sweep| sweep.due() <= now) {
                self.sweep(sweep, now);
            }
            if fade_at.is_none_or(|at| at <= now) {
                let next = self
                    .core
                    .lock()
                    .fade(&self.attached.maps, &self.shared, now, monotonic_ns());
                fade_at = next.map(|due| due.max(now + TICK));
            }
            if exchange_due.is_some_and(|at| at <= now) {
                let before = spent();
                self.core.lock().exchange(&self.attached.maps, &self.shared);
                exchange_at = now + EXCHANGE.max(EXCHANGE_SHARE * (spent() - before));
            }
            if now >= tidy_at {
                tidy_at = now + TIDY;
                self.tidy(now);
            }
            if now >= routes_at {
                routes_at = now + ROUTES;
                let mut core = self.core.lock();
                core.follow_ports(&self.attached.maps);
                if core.look_up_ways(true) {
                    core.publish(&self.attached.maps);
                }
            }
        }
    }

    /// Hands on whose they are; whether there were any.
    fn read_ends(&self, mut each: impl FnMut(u64)) -> bool {
        let (mut core, mut any) = (self.core.lock(), false);
        self.attached.maps.ends(|ended| {
            any = true;
            each(ended.up.id);
            core.on_end(&self.shared, &ended);
        });
        any
    }

    /// What the helper has to say.
    fn hear(&mut self) {
        loop {
            match self.attached.hear() {
                Ok(Some(line)) => log::info!("kernel engine: {line}"),
                Ok(None) => return,
                Err(error) => {
                    // Without it the program is gone, and every listener of this engine with it.
                    log::error!(
                        "kernel engine: the helper has ended ({error}): this process ends, to be started again"
                    );
                    crate::sys::output::last_words("weir: the helper of the kernel engine has ended");
                    std::process::exit(1);
                }
            }
        }
    }

    /// Wildcards stand for the addresses that this host has now.
    fn follow_addresses(&mut self) {
        if self.monitor.changes().is_ok_and(|changes| changes.is_empty()) {
            return;
        }
        let Ok(locals) = locals() else { return };
        let mut core = self.core.lock();
        if core.locals != locals {
            core.locals = locals;
            core.look_up_ways(true);
            core.publish(&self.attached.maps);
        }
    }

    /// Looks at a part of a table: ends what is idle, and removes what has ended without having been told of.
    fn sweep(&mut self, sweep: &mut Sweep, at: Instant) {
        let maps = &self.attached.maps;
        let patiences = self.core.lock().patiences.clone();
        let now = monotonic_ns();
        let (mut faded, mut due, mut told) = (Vec::new(), Vec::new(), 0);
        let outcome = sweep.part(maps, at, |key, up| {
            let Some(patience) = patiences.get(&up.listener) else {
                return true;
            };
            let is_tcp = key.is_tcp();
            if patience.doubts(&up, is_tcp, now) {
                let down = maps.other(&up);
                match patience.fate(&up, down.as_ref(), is_tcp, now) {
                    Fate::Stays => {}
                    Fate::Fades => faded.push((key, up)),
                    Fate::Ends(cause) => {
                        told += usize::from(is_tcp);
                        due.push((key, up, cause));
                    }
                }
            }
            told < TOLD_MAX
        });
        if let Err(error) = outcome
            && let Some(left_out) = self.untold.admit(self.shared.epoch.elapsed())
        {
            log::warn!("kernel engine: flows cannot be looked at: {error}{left_out}");
        }
        let mut core = self.core.lock();
        for (key, up) in faded {
            core.remove(maps, &self.shared, &key, &up, Cause::Finished);
        }
        self.end_all(&mut core, due);
    }

    fn tidy(&self, now: Instant) {
        let maps = &self.attached.maps;
        let mut core = self.core.lock();
        for (key, cause) in core.overdue(now) {
            if let Some(up) = maps.flow(&key) {
                core.remove(maps, &self.shared, &key, &up, cause);
            }
        }
        core.sweep_places(maps);
    }

    /// Hands on the clients' entries of live flows that fit, `most` of them, as many at a time as are read at once.
    fn find(&self, most: usize, fits: impl Fn(&Tuple, &Flow) -> bool, mut found: impl FnMut(Vec<(Tuple, Flow)>)) {
        let mut left = most;
        for kind in [Kind::Settled, Kind::Half] {
            let mut walk = Walk::default();
            loop {
                let mut some = Vec::new();
                let outcome = self.attached.maps.step(kind, &mut walk, |key, flow| {
                    let live = flow.flags & FLOW_ENDED == 0;
                    if live && some.len() < left && fits(&key, &flow) {
                        some.push((key, flow));
                    }
                });
                left -= some.len();
                if !some.is_empty() {
                    found(some);
                }
                if left == 0 {
                    return;
                }
                if outcome.unwrap_or(true) {
                    break;
                }
            }
        }
    }

    /// Ends flows, by their clients' entries. Both sides of a connection are told.
    fn end_all(&self, core: &mut Core, ends: impl IntoIterator<Item = (Tuple, Flow, Cause)>) {
        let maps = &self.attached.maps;
        let mut frames = Vec::new();
        for (key, up, cause) in ends {
            if core.is_ending(&key) {
                continue;
            }
            let told = match key.is_tcp() && !(cause == Cause::VipMoved && core.goes_along(&up)) {
                true => core.cut(&key, &up, maps.other(&up).as_ref(), cause),
                false => None,
            };
            match told {
                Some(resets) => frames.extend(resets),
                None => core.remove(maps, &self.shared, &key, &up, cause),
            }
        }
        // Those that are not told end all the same, when the program has not told of them in time.
        if let Err(error) = self.attached.inject(&frames)
            && let Some(left_out) = self.untold.admit(self.shared.epoch.elapsed())
        {
            log::warn!("kernel engine: connections that end are not told: {error}{left_out}");
        }
    }

    /// Ends the live flows that fit, `most` of them; whether there was one.
    fn end_found(&self, most: usize, fits: impl Fn(&Tuple, &Flow) -> bool, cause: Cause) -> bool {
        let mut any = false;
        self.find(most, fits, |found| {
            any = true;
            let ends = found.into_iter().map(|(key, up)| (key, up, cause));
            self.end_all(&mut self.core.lock(), ends);
        });
        any
    }

    fn obey(&self, order: EngineOrder) {
        match order {
            EngineOrder::List { limit, reply } => {
                let mut rows = Vec::new();
                self.find(
                    limit,
                    |_, _| true,
                    |found| {
                        let core = self.core.lock();
                        let now = monotonic_ns();
                        rows.extend(found.iter().map(|(key, up)| self.describe(&core, key, up, now)));
                    },
                );
                let _ = reply.send(rows);
            }
            EngineOrder::Kill { id, reply } => {
                let _ = reply.send(self.end_found(1, |_, flow| flow.id == id, Cause::Killed));
            }
            EngineOrder::Shed(shed) => self.shed(shed),
            EngineOrder::Leave { address: ip, finished } => {
                let ip = address(ip);
                self.end_found(usize::MAX, |key, _| key.dst == ip, Cause::VipMoved);
                drop(finished);
            }
            EngineOrder::Sync(done) => drop(done),
            EngineOrder::Stop => {}
        }
    }

    fn shed(&self, shed: Shed) {
        let place = {
            let core = self.core.lock();
            let pool = |pool: &&Arc<Pool>| pool.backends.iter().any(|b| b.identity == shed.backend);
            let pool = core.snapshot.pools.iter().find(pool);
            // A session stays where it is while there is no other place for it.
            let nowhere = pool.is_none_or(|pool| pool.eligibility.count() == 0);
            if shed.cause == Cause::BackendDown && shed.protocol == Some(Protocol::Udp) && nowhere {
                return;
            }
            core.backends.find(shed.backend)
        };
        let Some(place) = place else { return };
        let of_protocol = |key: &Tuple| match shed.protocol {
            Some(Protocol::Tcp) => key.is_tcp(),
            Some(Protocol::Udp) => !key.is_tcp(),
            None => true,
        };
        let fits = |key: &Tuple, flow: &Flow| flow.backend == place && of_protocol(key);
        self.end_found(shed.count, fits, shed.cause);
    }

    fn describe(&self, core: &Core, key: &Tuple, up: &Flow, now: u64) -> LiveConnection {
        let down = self.attached.maps.other(up).unwrap_or_default();
        let (listener, backend) = (core.listeners.get(up.listener), core.backends.get(up.backend));
        let ms = |since: u64| now.saturating_sub(since) / 1_000_000;
        LiveConnection {
            id: up.id,
            protocol: if key.is_tcp() { "tcp" } else { "udp" },
            listener: listener.map_or_else(String::new, |l| l.config.name.clone()),
            client: key.source().to_string(),
            pool: backend.map_or_else(String::new, |b| b.pool.to_string()),
            backend: backend.map_or_else(String::new, |b| b.config.name.clone()),
            engine: NAME,
            worker: 0,
            state: match up.flags {
                flags if key.is_tcp() && flags & FLOW_OPEN == 0 => "connecting",
                flags if (flags | down.flags) & FLOW_FIN != 0 => "half_closed",
                _ => "open",
            },
            age_ms: ms(up.opened),
            idle_ms: ms(up.last.max(down.last)),
            bytes_up: up.bytes,
            bytes_down: down.bytes,
        }
    }
}
