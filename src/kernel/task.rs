//! The engine's thread: reads what flows have ended, ends those that are idle, follows this host's addresses, obeys.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};
use parking_lot::Mutex;

use super::NAME;
use super::core::{Core, locals};
use super::flows::Fate;
use super::handle::Attached;
use super::layout::{FLOW_CLIENT, FLOW_ENDED, FLOW_FIN, FLOW_OPEN, Flow, Tuple, address};
use super::maps::Kind;
use crate::base::LogLimit;
use crate::config::model::Protocol;
use crate::link::{EngineOrder, LiveConnection, Shared, Shed};
use crate::relay::Cause;
use crate::snapshot::Pool;
use crate::sys::netlink::Monitor;

/// How often flows are looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// How often it is looked how backends are reached.
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

/// Nanoseconds as the program counts them.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has it");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

impl Task {
    pub(super) fn run(mut self) {
        let (mut sweep_at, mut routes_at) = (Instant::now() + SWEEP, Instant::now() + ROUTES);
        loop {
            let wait = sweep_at.saturating_duration_since(Instant::now());
            {
                let mut fds = [
                    PollFd::new(self.attached.maps.events(), PollFlags::POLLIN),
                    PollFd::new(self.woken.as_fd(), PollFlags::POLLIN),
                    PollFd::new(self.attached.helper(), PollFlags::POLLIN),
                    PollFd::new(self.monitor.as_fd(), PollFlags::POLLIN),
                ];
                let timeout = PollTimeout::try_from(wait.as_millis() as i32 + 1).unwrap_or(PollTimeout::MAX);
                let _ = poll(&mut fds, timeout);
            }
            use std::io::Read;
            while (&self.woken).read(&mut [0; 64]).is_ok_and(|n| n > 0) {}
            self.read_ends();
            while let Ok(order) = self.orders.try_recv() {
                if let EngineOrder::Stop = order {
                    return;
                }
                self.obey(order);
            }
            self.hear();
            self.follow_addresses();
            let now = Instant::now();
            if now >= sweep_at {
                sweep_at = now + SWEEP;
                self.sweep();
            }
            if now >= routes_at {
                routes_at = now + ROUTES;
                let mut core = self.core.lock();
                if core.look_up_ways(true) {
                    core.publish(&self.attached.maps);
                }
            }
        }
    }

    fn read_ends(&self) {
        let mut core = self.core.lock();
        self.attached.maps.ends(|ended| core.on_end(&self.shared, &ended));
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

    /// Ends what is idle and removes what has ended.
    fn sweep(&mut self) {
        let maps = &self.attached.maps;
        let patiences = self.core.lock().patiences.clone();
        let now = monotonic_ns();
        let (mut faded, mut due) = (Vec::new(), Vec::new());
        for kind in [Kind::Settled, Kind::Half] {
            let outcome = maps.walk(kind, |key, up| {
                if up.flags & FLOW_CLIENT == 0 {
                    return true;
                }
                let Some(patience) = patiences.get(&up.listener) else {
                    return true;
                };
                let is_tcp = key.is_tcp();
                if patience.doubts(&up, is_tcp, now) {
                    let down = maps.flow(&up.to.turned());
                    match patience.fate(&up, down.as_ref(), is_tcp, now) {
                        Fate::Stays => {}
                        Fate::Fades => faded.push(key),
                        Fate::Ends(cause) => due.push((key, up, cause)),
                    }
                }
                true
            });
            if let Err(error) = outcome
                && let Some(left_out) = self.untold.admit(self.shared.epoch.elapsed())
            {
                log::warn!("kernel engine: flows cannot be looked at: {error}{left_out}");
            }
        }
        let mut core = self.core.lock();
        for key in faded {
            core.remove(maps, &self.shared, &key, Cause::Finished);
        }
        for (key, cause) in core.overdue(Instant::now()) {
            core.remove(maps, &self.shared, &key, cause);
        }
        core.sweep_places(maps);
        self.end_all(&mut core, due);
    }

    /// Client's entries of live flows that fit, `most` of them.
    fn find(&self, most: usize, fits: impl Fn(&Tuple, &Flow) -> bool) -> Vec<(Tuple, Flow)> {
        let mut found = Vec::new();
        for kind in [Kind::Settled, Kind::Half] {
            let _ = self.attached.maps.walk(kind, |key, flow| {
                let live = flow.flags & (FLOW_CLIENT | FLOW_ENDED) == FLOW_CLIENT;
                if live && found.len() < most && fits(&key, &flow) {
                    found.push((key, flow));
                }
                found.len() < most
            });
        }
        found
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
                true => core.cut(&key, &up, maps.flow(&up.to.turned()).as_ref(), cause),
                false => None,
            };
            match told {
                Some(resets) => frames.extend(resets),
                None => core.remove(maps, &self.shared, &key, cause),
            }
        }
        // Those that are not told end all the same, when the program has not told of them in time.
        if let Err(error) = self.attached.inject(&frames)
            && let Some(left_out) = self.untold.admit(self.shared.epoch.elapsed())
        {
            log::warn!("kernel engine: connections that end are not told: {error}{left_out}");
        }
    }

    fn end_found(&self, found: Vec<(Tuple, Flow)>, cause: Cause) {
        let ends = found.into_iter().map(|(key, up)| (key, up, cause));
        self.end_all(&mut self.core.lock(), ends);
    }

    fn obey(&self, order: EngineOrder) {
        match order {
            EngineOrder::List { limit, reply } => {
                let found = self.find(limit, |_, _| true);
                let core = self.core.lock();
                let now = monotonic_ns();
                let rows = found.iter().map(|(key, up)| self.describe(&core, key, up, now));
                let _ = reply.send(rows.collect());
            }
            EngineOrder::Kill { id, reply } => {
                let found = self.find(1, |_, flow| flow.id == id);
                let _ = reply.send(!found.is_empty());
                self.end_found(found, Cause::Killed);
            }
            EngineOrder::Shed(shed) => self.shed(shed),
            EngineOrder::Leave { address: ip, finished } => {
                let ip = address(ip);
                let found = self.find(usize::MAX, |key, _| key.dst == ip);
                self.end_found(found, Cause::VipMoved);
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
        let found = self.find(shed.count, |key, flow| flow.backend == place && of_protocol(key));
        self.end_found(found, shed.cause);
    }

    fn describe(&self, core: &Core, key: &Tuple, up: &Flow, now: u64) -> LiveConnection {
        let down = self.attached.maps.flow(&up.to.turned()).unwrap_or_default();
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
