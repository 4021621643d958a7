//! Answers to operators, from what only the control thread knows.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::amend::{self, OPERATOR};
use super::event_log;
use super::operator::metrics::{Metrics, Peak};
use super::operator::process::ProcessFacts;
use super::operator::status::{self, BackendFacts, Facts, Times};
use super::phase::Operation;
use super::publication::pools::Weighed;
use super::request::Request;
use super::thread::Control;
use crate::config;
use crate::config::model::BackendAddress;
use crate::flow::Dropped;
use crate::link::{EngineOrder, LiveConnection};

/// A worker whose turn lasts longer than this is stuck.
pub const STUCK_AFTER: Duration = Duration::from_secs(2);
/// How long workers may take to answer.
const WORKERS_MAX: Duration = Duration::from_secs(1);

impl Control {
    /// Answers a question or carries out an order.
    pub(super) fn answer(&mut self, request: Request) {
        // These ask for themselves, because signals come there too.
        let admitted = match request.operation() {
            Operation::Reload | Operation::Upgrade => Ok(()),
            operation => self.admit(operation).map_err(|why| why.to_string()),
        };
        // A client that has gone does not hear the answer.
        match request {
            Request::Status { reply } => {
                let facts = self.facts();
                let workers = self.shared.workers();
                let status = status::document(&self.shared.snapshot(), &self.shared.process, &workers, &facts);
                let _ = reply.send(serde_json::to_value(status).unwrap_or_default());
            }
            Request::Metrics { reply } => {
                let facts = self.facts();
                let (snapshot, workers) = (self.shared.snapshot(), self.shared.workers());
                let page = Metrics {
                    snapshot: &snapshot,
                    workers: &workers,
                    facts: &facts,
                };
                let _ = reply.send(page.render());
            }
            Request::Health { reply } => drop(reply.send(self.health())),
            Request::Connections { limit, reply } => drop(reply.send(self.connections(limit))),
            Request::Kill { id, reply } => drop(reply.send(admitted.is_ok() && self.kill(id))),
            Request::Backend {
                pool,
                name,
                order,
                keep,
                reply,
            } => {
                let now = Instant::now();
                let outcome = admitted.and_then(|()| self.pools.order(&pool, &name, order, keep, now));
                // In force when it is answered.
                self.follow_pools(now);
                let _ = reply.send(outcome);
            }
            Request::BackendAdd {
                pool,
                address,
                weight,
                keep,
                reply,
            } => {
                let outcome = admitted.and_then(|()| self.add_backend(&pool, &address, weight, keep));
                self.follow_pools(Instant::now());
                let _ = reply.send(outcome);
            }
            Request::BackendRemove {
                pool,
                name,
                keep,
                reply,
            } => {
                let outcome = admitted.and_then(|()| self.remove_backend(&pool, &name, keep));
                self.follow_pools(Instant::now());
                let _ = reply.send(outcome);
            }
            Request::Vip { address, order, reply } => {
                let _ = reply.send(admitted.and_then(|()| self.vips.order(address, order)));
            }
            Request::Reload { reply } => drop(reply.send(self.reload())),
            Request::Upgrade { reply } => self.begin_upgrade(Some(reply)),
            Request::Dump { reply } => drop(reply.send(self.dump())),
        }
    }

    /// The configuration in force, with what operators have ordered since it was read.
    fn dump(&self) -> String {
        let orders = self.pools.ordered_weights();
        let weight = |pool: &str, address: &BackendAddress| {
            let ordered = orders.get(&(pool.to_string(), address.to_string()))?;
            Some(ordered.weight)
        };
        let (tree, amended) = amend::written(&self.amended, self.config.written.node().clone());
        let tree = config::reweighted(tree, weight);
        let mut text = String::from("# The configuration in force, by `weir dump`.\n");
        for ((pool, address), Weighed { weight, keep }) in &orders {
            text += &format!(
                "# By order {}: {pool}, {address}: weight {weight}.\n",
                amend::lasts(*keep)
            );
        }
        text += &amended;
        text + &config::write(&tree)
    }

    /// Whether every worker turns and every listener is bound.
    pub(super) fn health(&self) -> Result<(), String> {
        if self.stopping.is_some() {
            return Err("stopping".into());
        }
        match self.shared.stuck(STUCK_AFTER, Duration::MAX) {
            Some(stuck) => Err(stuck),
            None => Ok(()),
        }
    }

    /// Who said that a backend is in its pool; empty: the configuration.
    fn origin(&self, pool: &str, address: &BackendAddress) -> String {
        let source = self.discovery.origin(pool, address);
        let added = || {
            self.amended
                .get(pool)
                .is_some_and(|amendments| amendments.adds(address))
        };
        match source.is_empty() && added() {
            true => OPERATOR.into(),
            false => source,
        }
    }

    fn connections(&self, limit: usize) -> Vec<LiveConnection> {
        let (sender, receiver) = bounded(64);
        self.engines.obey(&EngineOrder::List { limit, reply: sender });
        let deadline = Instant::now() + WORKERS_MAX;
        let mut found = Vec::new();
        while let Ok(part) = receiver.recv_deadline(deadline) {
            found.extend(part);
        }
        found.sort_by_key(|connection| connection.id);
        found.truncate(limit);
        found
    }

    fn kill(&self, id: u64) -> bool {
        let (sender, receiver) = bounded(64);
        self.engines.obey(&EngineOrder::Kill { id, reply: sender });
        let deadline = Instant::now() + WORKERS_MAX;
        std::iter::from_fn(|| receiver.recv_deadline(deadline).ok()).any(|killed| killed)
    }

    fn facts(&mut self) -> Facts {
        let now = Instant::now();
        self.engines.collect(now);
        let backends = self
            .pools
            .iter()
            .flat_map(|pool| &pool.entries)
            .map(|entry| {
                let facts = BackendFacts {
                    state: Some(entry.state.state()),
                    reason: Some(entry.state.reason()),
                    source: self.origin(&entry.backend.pool, &entry.backend.config.address),
                    weight: Some(entry.weight()),
                    since: now.saturating_duration_since(entry.state.since()),
                    probes: Times::sum([&entry.probes.seconds]),
                    probe_failures: entry.probes.failed(),
                    probes_overdue: entry.probes.overdue.get(),
                };
                (entry.backend.identity, facts)
            })
            .collect();
        let pools = self.config.pools.iter().map(|pool| pool.policy.name.clone());
        let sources = pools.map(|pool| (self.discovery.sources(&pool, now), pool));
        let sources = sources.filter(|(sources, _)| !sources.is_empty());
        let sources = sources.map(|(sources, pool)| (pool, sources)).collect();
        let election = self.vips.status();
        Facts {
            config_file: self.source.file(),
            reload_error: self.reload_error.clone(),
            upgrade_error: self.upgrade.error.clone(),
            reload_failures: self.reload_failures,
            uptime: self.shared.epoch.elapsed(),
            stopping: self.stopping.is_some(),
            backends,
            sources,
            vips: election.vips,
            nodes: election.nodes,
            witnesses: election.witnesses,
            arbiter: election.arbiter,
            tracks: election.tracks,
            beats_rejected: election.beats_rejected,
            turn_max: self.turn_max(now),
            udp_dropped: self.udp_dropped(),
            packets: self.engines.figures(),
            records_dropped: self.shared.process.records_dropped.get()
                + self.access_log.as_ref().map_or(0, |(_, log)| log.stats.lost()),
            log_lines_dropped: event_log::dropped(),
            process: ProcessFacts::read(),
        }
    }

    /// UDP datagrams dropped, by reason, over all listeners.
    fn udp_dropped(&self) -> Vec<(&'static str, u64)> {
        let snapshot = self.shared.snapshot();
        let total = |reason: Dropped| {
            let shards = snapshot.listeners.iter().map(|listener| &listener.stats.shards);
            shards
                .map(|shards| shards.sum(|shard| &shard.dropped[reason as usize]))
                .sum()
        };
        let reasons = Dropped::ALL.iter();
        reasons.map(|&reason| (reason.as_str(), total(reason))).collect()
    }

    /// The longest turn of each worker lately; indices are worker numbers.
    fn turn_max(&mut self, now: Instant) -> Vec<Duration> {
        let mut longest: HashMap<usize, Duration> = HashMap::new();
        for worker in self.shared.workers().iter() {
            let peak = self.peaks.entry(worker.id).or_insert_with(|| Peak::new(now));
            peak.observe(now, Duration::from_nanos(worker.stats.turn_ns_max.take()));
            longest.insert(worker.id, peak.value(now));
        }
        self.peaks.retain(|id, _| longest.contains_key(id));
        let count = longest.keys().max().map_or(0, |id| id + 1);
        (0..count)
            .map(|id| longest.get(&id).copied().unwrap_or_default())
            .collect()
    }
}
