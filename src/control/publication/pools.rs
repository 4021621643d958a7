//! Pools and their backends as control sees them: health, orders, drains.
//!
//! [`crate::health`] judges. It is fed here with probe verdicts, failures seen by real traffic, orders and time; its changes are
//! logged, and the outcome becomes the [`Pool`]s of the next snapshot. What is known of a backend belongs to its
//! identity (pool and address) and survives reloads.

mod knowledge;
mod members;
mod news;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use knowledge::Knowledge;
pub use news::News;
use news::{Crowd, Supply};

use super::probe::tls::Secured;
use super::probe::{Probe, Verdict};
use crate::api::question::BackendOrder;
use crate::balance::Picker;
use crate::base::Rng;
use crate::config::model::{self, OnDown, OnMarkedUp, PoolPolicy, Protocol};
use crate::control::amend;
use crate::control::events;
use crate::health::agent;
use crate::health::drain::Drain;
use crate::health::schedule::{Overdue, Schedule};
use crate::health::{AdminState, BackendState, Candidate, Change, Eligibility, Reason, Standing, State};
use crate::link::{Failure, Shed};
use crate::queue::PoolQueue;
use crate::relay::Cause;
use crate::snapshot::{Backend, Pool};
use crate::stats::{Count, Histogram};

/// Longest time without a look at states and drains: a worker that had not heard of a drain may have added a connection.
const LOOK_MAX: Duration = Duration::from_secs(1);

/// Shortest time between two starts of probes: those that fall due in between start together. With hundreds of backends, waking
/// two threads for each probe costs more than the probes.
const PROBES_PAUSE: Duration = Duration::from_millis(20);

/// What is known of probing one backend.
#[derive(Debug, Default)]
pub struct ProbeStats {
    /// Durations of probes.
    pub seconds: Histogram,
    /// Probes that failed, by [`Reason`].
    pub failures: [Count; Reason::ALL.len()],
    /// How often one was overdue.
    pub overdue: Count,
}

impl ProbeStats {
    /// How many failed for which reason, of those reasons that there were.
    pub fn failed(&self) -> Vec<(Reason, u64)> {
        let counts = Reason::ALL.iter().zip(&self.failures);
        let counts = counts.map(|(&reason, count)| (reason, count.get()));
        counts.filter(|&(_, n)| n > 0).collect()
    }
}

/// A backend and everything that is known of it.
pub struct Entry {
    /// As workers see it.
    pub backend: Arc<Backend>,
    /// What is known of its health.
    pub state: BackendState,
    /// What its probes came to so far.
    pub probes: ProbeStats,
    /// Weight set by an operator; `None` = the configured one.
    weight: Option<Weighed>,
    drain: Option<Drain>,
    /// Established connections that its outlier detection knows of.
    seen: u64,
}

/// A weight by order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weighed {
    /// The weight that was ordered.
    pub weight: u32,
    /// The order outlasts reloads.
    pub keep: bool,
}

impl Entry {
    /// The weight in force.
    pub fn weight(&self) -> u32 {
        let ordered = self.weight.map(|ordered| ordered.weight);
        self.state.weight(ordered.unwrap_or(self.backend.config.weight))
    }
}

/// A pool and everything that is known of it.
pub struct PoolEntry {
    /// What the configuration says of it.
    pub config: Arc<PoolPolicy>,
    /// Its members in configuration order.
    pub entries: Vec<Entry>,
    picker: Picker,
    supply: Supply,
    crowd: Crowd,
    /// Who waits for room; the same as long as the name lives.
    queue: Arc<PoolQueue>,
}

/// All pools of the configuration in force, with the health of their backends.
pub struct Pools {
    schedule: Schedule,
    /// Probes to be started now.
    probes: Vec<Probe>,
    pools: Vec<PoolEntry>,
    /// Backends that are in no pool any more and still have connections, by identity.
    leaving: BTreeMap<u64, Entry>,
    sheds: Vec<Shed>,
    rng: Rng,
    /// How probes speak TLS, by pool.
    secured: HashMap<String, Secured>,
    /// Where each backend is, pool and position in it, by identity, and by the key under which its agent is asked.
    positions: HashMap<u64, (usize, usize)>,
    /// No probe starts before.
    probes_from: Option<Instant>,
    /// When states and drains were last looked at.
    looked: Option<Instant>,
    /// They have nothing to do before this moment; `None` = perhaps they have. Most wake-ups are about one probe, and with
    /// thousands of backends it matters not to look at all of them each time.
    quiet_until: Option<Instant>,
    changed: bool,
    /// What is to be logged once workers have been told.
    news: Vec<News>,
    /// How many shards the counters of a new backend have.
    shards: usize,
}

impl Pools {
    /// No pools yet. What is left to chance follows from `seed`.
    pub fn new(seed: u64) -> Pools {
        Pools {
            schedule: Schedule::new(1),
            probes: Vec::new(),
            pools: Vec::new(),
            leaving: BTreeMap::new(),
            sheds: Vec::new(),
            rng: Rng::new(seed),
            secured: HashMap::new(),
            positions: HashMap::new(),
            probes_from: None,
            looked: None,
            quiet_until: None,
            changed: false,
            news: Vec::new(),
            shards: 1,
        }
    }

    /// All pools in configuration order.
    pub fn iter(&self) -> impl Iterator<Item = &PoolEntry> {
        self.pools.iter()
    }

    /// Who is in a pool, as the configuration or a source has it; nobody if there is no such pool.
    pub fn members(&self, pool: &str) -> Vec<model::Backend> {
        let pool = self.pools.iter().find(|entry| entry.config.name == pool);
        let entries = pool.into_iter().flat_map(|pool| &pool.entries);
        entries.map(|entry| entry.backend.config.clone()).collect()
    }

    /// Lets time act: starts probes that are due, ends ejections, moves ramps and drains. True if something has changed since
    /// the last call that engines act on.
    pub fn tick(&mut self, now: Instant) -> bool {
        if self.probes_from.is_none_or(|from| from <= now) {
            self.start_probes(now);
        }
        if self.quiet_until.is_none_or(|until| until <= now) {
            self.look(now);
        }
        self.leaving.retain(|_, left| left.backend.stats.active.get() > 0);
        std::mem::take(&mut self.changed)
    }

    /// Prepares the probes that are due.
    fn start_probes(&mut self, now: Instant) {
        while let Some(run) = self.schedule.start(now) {
            self.probes_from = Some(now + PROBES_PAUSE);
            match self.find(run.key) {
                Some((pool, ix)) => {
                    let pool = &self.pools[pool];
                    let Entry { backend, state, .. } = &pool.entries[ix];
                    let tls = self.secured.get(&pool.config.name);
                    let probe = match run.key == backend.identity {
                        true => Some(Probe::new(run, &pool.config, tls, backend, state.probe_insists())),
                        false => Probe::agent(run, &pool.config, backend),
                    };
                    self.probes.extend(probe);
                }
                None => {
                    self.schedule.remove(run.key);
                    self.schedule.finish(now, run, Duration::ZERO, 0);
                }
            }
        }
    }

    /// Probes to be started; each of them ends in [`on_verdict`](Self::on_verdict).
    pub fn take_probes(&mut self) -> Vec<Probe> {
        std::mem::take(&mut self.probes)
    }

    /// The prober has died. Probes that were under way are due again, after a pause.
    pub fn on_probes_lost(&mut self, now: Instant) {
        self.probes.clear();
        self.schedule.lose_all(now);
        self.probes_from = Some(now + LOOK_MAX);
    }

    /// Counts and tells of backends whose probe is overdue.
    fn note_overdue(&mut self, overdue: &[Overdue]) {
        for lost in [true, false] {
            let here = overdue.iter().filter(|overdue| overdue.lost == lost);
            let found: Vec<(usize, usize)> = here.filter_map(|overdue| self.find(overdue.key)).collect();
            let entries = || found.iter().map(|&(pool, ix)| &self.pools[pool].entries[ix]);
            entries().for_each(|entry| entry.probes.overdue.add(1));
            let (running, running_max) = (self.schedule.running(), self.schedule.running_max());
            let backends = entries().map(|entry| &*entry.backend);
            self.news.extend(news::overdue(lost, backends, running, running_max));
        }
    }

    /// Ends ejections, moves ramps and drains.
    fn look(&mut self, now: Instant) {
        self.quiet_until = None;
        let overdue = self.schedule.overdue(now);
        self.note_overdue(&overdue);
        // What was still to come at the last look: asked about now, a ramp only knows of its next step.
        let last = self.looked.replace(now).unwrap_or(now);
        for pool in &mut self.pools {
            let waiting = pool.queue.length();
            self.news.extend(pool.crowd.note(&pool.config.name, waiting, now));
            for entry in &mut pool.entries {
                if entry.state.deadline(last).is_some_and(|at| at <= now) {
                    let change = entry.state.tick(now);
                    self.news
                        .extend(change.map(|change| news::changed(&entry.backend, &change)));
                    self.changed = true;
                }
            }
        }
        let (sheds, rng) = (&mut self.sheds, &mut self.rng);
        let mut pace = |entry: &mut Entry| {
            let (backend, Some(drain)) = (&entry.backend, &mut entry.drain) else {
                return;
            };
            let live = backend.stats.active.get() as usize;
            let count = drain.due(now, live);
            if count > 0 {
                sheds.push(Shed {
                    backend: backend.identity,
                    protocol: None,
                    // All that are left, whoever has them.
                    count: if count < live { count } else { usize::MAX },
                    live,
                    // By chance: taking turns with another drain, each would ask the same worker for ever.
                    first: rng.next_u64() as usize,
                    cause: Cause::Drained,
                });
            }
        };
        let members = self.pools.iter_mut().flat_map(|pool| &mut pool.entries);
        members.chain(self.leaving.values_mut()).for_each(&mut pace);
    }

    /// When [`tick`](Self::tick) has something to do.
    pub fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let quiet_until = match self.quiet_until {
            Some(until) => until,
            None => self.next_look(now).map_or(now + LOOK_MAX, |at| at.min(now + LOOK_MAX)),
        };
        self.quiet_until = Some(quiet_until);
        let probes = self
            .schedule
            .deadline()
            .map(|due| self.probes_from.map_or(due, |from| due.max(from)));
        probes.into_iter().chain([quiet_until]).min()
    }

    /// When a state or a drain has something to do.
    fn next_look(&self, now: Instant) -> Option<Instant> {
        let drain = |entry: &Entry| {
            let live = entry.backend.stats.active.get() as usize;
            entry.drain.filter(|_| live > 0).map(|drain| drain.deadline(live))
        };
        let entries = self.pools.iter().flat_map(|pool| &pool.entries);
        let states = entries.clone().filter_map(|entry| entry.state.deadline(now));
        let drains = entries.chain(self.leaving.values()).filter_map(drain);
        states.chain(drains).min()
    }

    /// Logs what has changed: after publication, so that whoever reads it can rely on it.
    pub fn tell(&mut self) {
        self.news.drain(..).for_each(|news| events::tell(&news));
    }

    /// Connections to be closed; empty until the next tick.
    pub fn take_shed(&mut self) -> Vec<Shed> {
        std::mem::take(&mut self.sheds)
    }

    fn find(&self, identity: u64) -> Option<(usize, usize)> {
        self.positions.get(&identity).copied()
    }

    /// A probe has ended.
    pub fn on_verdict(&mut self, verdict: &Verdict, now: Instant) {
        let current = self.schedule.is_current(verdict.run);
        let position = self.find(verdict.run.key).filter(|_| current);
        let Some((pool, ix)) = position else {
            // Of a backend that has gone, by other rules, or given up as lost: another probe tells.
            self.schedule.finish(now, verdict.run, Duration::ZERO, 0);
            return;
        };
        let (passed, remark) = match &verdict.result {
            Ok(remark) => (true, remark),
            Err(remark) => (false, remark),
        };
        let entry = &mut self.pools[pool].entries[ix];
        if verdict.run.key != entry.backend.identity {
            return self.on_agent(verdict, pool, ix, now);
        }
        let change = if verdict.untried {
            log::debug!("probe of {} could not be made: {remark}", news::name(&entry.backend));
            None
        } else {
            entry.probes.seconds.observe_us(verdict.took.as_micros() as u64);
            if !passed {
                entry.probes.failures[remark.reason as usize].add(1);
                log::debug!("probe of {} failed: {remark}", news::name(&entry.backend));
            }
            entry.state.probed(now, passed, remark)
        };
        let next_in = entry.state.next_probe_in();
        self.schedule
            .finish(now, verdict.run, next_in, self.rng.next_u64() as u32);
        self.after(pool, ix, change);
    }

    /// A backend's agent has answered, or has not, which says nothing of the backend.
    fn on_agent(&mut self, verdict: &Verdict, pool: usize, ix: usize, now: Instant) {
        let interval = self.pools[pool]
            .config
            .health
            .agent
            .as_ref()
            .map(|agent| agent.interval);
        let next_in = interval.unwrap_or(LOOK_MAX);
        self.schedule
            .finish(now, verdict.run, next_in, self.rng.next_u64() as u32);
        let entry = &mut self.pools[pool].entries[ix];
        let words = match &verdict.result {
            Ok(line) => line.text(),
            Err(reason) => return log::debug!("agent of {}: {reason}", news::name(&entry.backend)),
        };
        let before = (entry.weight(), entry.state.share(now));
        let change = entry.state.agent_said(now, agent::parse(words), words);
        if before != (entry.weight(), entry.state.share(now)) {
            self.pools[pool].refresh_picker();
            self.changed = true;
        }
        self.after(pool, ix, change);
    }

    /// Real traffic has failed.
    pub fn on_failure(&mut self, failure: &Failure) {
        let Some((pool, ix)) = self.find(failure.backend) else {
            return;
        };
        let ready = |entry: &Entry| entry.state.standing() == Standing::Ready && entry.weight() > 0;
        let others = self.pools[pool]
            .entries
            .iter()
            .enumerate()
            .any(|(other, e)| other != ix && ready(e));
        let entry = &mut self.pools[pool].entries[ix];
        let total = entry.backend.stats.shards.sum(|shard| &shard.total);
        entry
            .state
            .succeeded(total.saturating_sub(std::mem::replace(&mut entry.seen, total)));
        let change = entry.state.failed(failure.at, failure.kind, others);
        if let Some(until) = entry.state.ejected_until() {
            self.schedule.hurry(failure.at, failure.backend, until);
        }
        self.after(pool, ix, change);
    }

    /// Weights by order, by pool and address; of what is drained or down by order 0.
    pub fn ordered_weights(&self) -> BTreeMap<(String, String), Weighed> {
        let entries = self.pools.iter().flat_map(|pool| &pool.entries);
        let ordered = entries.filter_map(|entry| {
            let weight = match entry.state.ordered() {
                AdminState::Ready => entry.weight?,
                AdminState::Drain | AdminState::Down => Weighed { weight: 0, keep: false },
            };
            let backend = &entry.backend;
            let place = (backend.pool.to_string(), backend.config.address.to_string());
            Some((place, weight))
        });
        ordered.collect()
    }

    /// The place of a pool; the error is a sentence.
    pub fn place_of(&self, pool: &str) -> Result<usize, String> {
        let place = self.pools.iter().position(|entry| entry.config.name == pool);
        place.ok_or_else(|| {
            let known: Vec<&str> = self.pools.iter().map(|entry| entry.config.name.as_str()).collect();
            format!("there is no pool {pool:?}; there are: {}", known.join(", "))
        })
    }

    /// The places of a pool and of a backend in it; the error is a sentence.
    fn places_of(&self, pool: &str, name: &str) -> Result<(usize, usize), String> {
        let p = self.place_of(pool)?;
        let names = || self.pools[p].entries.iter().map(|e| e.backend.config.name.as_str());
        match names().position(|other| other == name) {
            Some(ix) => Ok((p, ix)),
            None => {
                let known: Vec<&str> = names().collect();
                Err(format!(
                    "pool {pool} has no backend {name:?}; it has: {}",
                    known.join(", ")
                ))
            }
        }
    }

    /// A backend as its configuration or source has it; the error is a sentence.
    pub fn config_of(&self, pool: &str, name: &str) -> Result<model::Backend, String> {
        let (p, ix) = self.places_of(pool, name)?;
        Ok(self.pools[p].entries[ix].backend.config.clone())
    }

    /// Carries out an operator's order. A weight that is to be kept outlasts reloads.
    pub fn order(
        &mut self,
        pool: &str,
        name: &str,
        order: BackendOrder,
        keep: bool,
        now: Instant,
    ) -> Result<String, String> {
        let (p, ix) = self.places_of(pool, name)?;
        if keep && !matches!(order, BackendOrder::Weight(_)) {
            return Err("only a weight can be kept over reloads; other orders end with the next one".into());
        }
        let finish = self.pools[p].config.on_drain_finish;
        let entry = &mut self.pools[p].entries[ix];
        self.quiet_until = None;
        let change = match order {
            BackendOrder::Weight(weight) => {
                entry.weight = Some(Weighed { weight, keep });
                self.pools[p].refresh_picker();
                self.changed = true;
                let backend = &self.pools[p].entries[ix].backend;
                self.news.push(News::BackendWeight {
                    pool: pool.into(),
                    backend: name.into(),
                    address: backend.config.address.to_string(),
                    weight,
                });
                return Ok(format!("{pool}/{name}: weight {weight} {}", amend::lasts(keep)));
            }
            BackendOrder::Ready => {
                entry.drain = None;
                let change = entry.state.order(now, AdminState::Ready);
                // The configured weight holds again.
                if entry.weight.take().is_some() {
                    self.pools[p].refresh_picker();
                    self.changed = true;
                }
                change
            }
            BackendOrder::Drain => {
                entry.drain = finish.map(|finish| Drain::new(now, finish));
                entry.state.order(now, AdminState::Drain)
            }
            BackendOrder::Down => {
                entry.drain = None;
                entry.state.order(now, AdminState::Down)
            }
        };
        self.after(p, ix, change);
        let state = self.pools[p].entries[ix].state.state();
        Ok(format!("{pool}/{name}: {state} until the next reload"))
    }

    /// Logs a change of state and does what the pool wants done about it.
    fn after(&mut self, pool: usize, ix: usize, change: Option<Change>) {
        let Some(change) = change else { return };
        self.quiet_until = None;
        let PoolEntry { config, entries, .. } = &self.pools[pool];
        let backend = &entries[ix].backend;
        self.news.push(news::changed(backend, &change));
        let lost = matches!(change.to, State::Down | State::Disabled);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            if lost && config.on_down(protocol) != OnDown::Keep {
                self.sheds.push(Shed {
                    backend: backend.identity,
                    protocol: Some(protocol),
                    count: usize::MAX,
                    live: 0,
                    first: 0,
                    cause: Cause::BackendDown,
                });
            }
        }
        let backup = |entry: &&Entry| entry.backend.config.backup;
        let back = change.to == State::Up && !backup(&&entries[ix]);
        if back && config.on_marked_up == OnMarkedUp::CloseBackup {
            self.sheds.extend(entries.iter().filter(backup).map(|entry| Shed {
                backend: entry.backend.identity,
                protocol: None,
                count: usize::MAX,
                live: 0,
                first: 0,
                cause: Cause::PrimaryBack,
            }));
        }
        self.changed = true;
    }

    /// The pools of the next snapshot.
    pub fn publish(&mut self, now: Instant) -> Vec<Arc<Pool>> {
        let news = &mut self.news;
        self.pools.iter_mut().map(|pool| pool.publish(now, news)).collect()
    }
}

impl PoolEntry {
    fn publish(&mut self, now: Instant, news: &mut Vec<News>) -> Arc<Pool> {
        let PoolEntry { config, entries, .. } = &*self;
        let candidates: Vec<Candidate> = entries
            .iter()
            .map(|entry| Candidate {
                standing: entry.state.standing(),
                weight: entry.weight(),
                backup: entry.backend.config.backup,
                share: entry.state.share(now),
            })
            .collect();
        let pool = Pool {
            config: config.clone(),
            backends: entries.iter().map(|entry| entry.backend.clone()).collect(),
            picker: self.picker.clone(),
            eligibility: Eligibility::new(&candidates, config.all_down),
            queue: self.queue.clone(),
        };
        news.extend(self.supply.note(&self.config.name, &pool.eligibility));
        Arc::new(pool)
    }
}
