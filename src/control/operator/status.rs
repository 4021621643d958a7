//! The status document at one moment: a pure function from what is known.
//!
//! The rows that follow from the snapshot and the counters are made here ([`document`]); what only control knows comes in as
//! [`Facts`], which [`super::metrics`] reads as well, so that the two never disagree.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::process::ProcessFacts;
use crate::api::status::{
    Arbiter, Backend, Kernel, Listener, Node, Pool, Process, Queue, Route, Source, Status, Track, Vip, Witness, Worker,
};
use crate::config::model;
use crate::health::{Reason, Remark, State};
use crate::link::{self, PacketFigures};
use crate::routing::{ByName, Routing};
use crate::snapshot::{self, Snapshot};
use crate::stats::{BUCKETS_US, Histogram, ProcessStats};

/// What only control knows.
#[derive(Debug, Default)]
pub struct Facts {
    /// Path of the configuration.
    pub config_file: Option<String>,
    /// Why the last reload was refused.
    pub reload_error: Option<String>,
    /// Why the last upgrade failed.
    pub upgrade_error: Option<String>,
    /// Reloads refused so far.
    pub reload_failures: u64,
    /// Time since the workers' epoch.
    pub uptime: Duration,
    /// Told to stop.
    pub stopping: bool,
    /// By [`snapshot::Backend::identity`].
    pub backends: HashMap<u64, BackendFacts>,
    /// Sources of members, by pool.
    pub sources: HashMap<String, Vec<Source>>,
    /// Virtual addresses.
    pub vips: Vec<Vip>,
    /// The other nodes of `failover`.
    pub nodes: Vec<Node>,
    /// The witnesses of `failover`.
    pub witnesses: Vec<Witness>,
    /// The arbiter, if there is one.
    pub arbiter: Option<Arbiter>,
    /// What is tracked.
    pub tracks: Vec<Track>,
    /// Refused beats by reason.
    pub beats_rejected: Vec<(&'static str, u64)>,
    /// Longest turn of each worker (by id) lately, see [`super::metrics::Peak`].
    pub turn_max: Vec<Duration>,
    /// UDP datagrams dropped, by reason.
    pub udp_dropped: Vec<(&'static str, u64)>,
    /// What the kernel engine counts, if this process has it.
    pub packets: Option<PacketFigures>,
    /// Access records lost: those that workers could not hand over and those that could not be written.
    pub records_dropped: u64,
    /// Lines of the event log that nobody will read.
    pub log_lines_dropped: u64,
    /// What the kernel says of the process.
    pub process: ProcessFacts,
}

/// What only control knows of a backend.
#[derive(Debug, Clone, Default)]
pub struct BackendFacts {
    /// `None`: nobody knows it any more.
    pub state: Option<State>,
    /// What put it into that state; `None` if nobody knows it any more.
    pub reason: Option<Remark>,
    /// Where it comes from, if not from the configuration.
    pub source: String,
    /// How long it has been in this state.
    pub since: Duration,
    /// Weight in force, if an operator changed it.
    pub weight: Option<u32>,
    /// Probes so far.
    pub probes: Times,
    /// Of them, failed; reasons that there were.
    pub probe_failures: Vec<(Reason, u64)>,
    /// How often one was overdue by three intervals.
    pub probes_overdue: u64,
}

/// Durations, counted by the buckets of [`BUCKETS_US`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// Not cumulative; the last one is open.
    pub buckets: [u64; BUCKETS_US.len() + 1],
    /// Sum in microseconds.
    pub sum_us: u64,
}

impl Times {
    /// The sum of histograms.
    pub fn sum<'a>(histograms: impl IntoIterator<Item = &'a Histogram>) -> Times {
        let mut times = Times::default();
        for histogram in histograms {
            histogram.add_to(&mut times.buckets, &mut times.sum_us);
        }
        times
    }

    /// Counts one duration.
    pub fn observe(&mut self, took: Duration) {
        let us = took.as_micros() as u64;
        self.buckets[BUCKETS_US.partition_point(|&bound| bound < us)] += 1;
        self.sum_us += us;
    }

    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Mean in milliseconds.
    pub fn mean_ms(&self) -> Option<f64> {
        let count = self.count();
        (count > 0).then(|| round3(self.sum_us as f64 / count as f64 / 1e3))
    }
}

/// The document at this moment.
pub fn document(snapshot: &Snapshot, process: &ProcessStats, workers: &[link::Worker], facts: &Facts) -> Status {
    let spliced = workers.iter().map(|worker| worker.stats.spliced.get()).sum();
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        uptime_s: facts.uptime.as_secs(),
        generation: snapshot.generation,
        config_file: facts.config_file.clone(),
        reload_error: facts.reload_error.clone(),
        upgrade_error: facts.upgrade_error.clone(),
        stopping: facts.stopping,
        process: Process {
            connections: process.connections.get(),
            connections_max: snapshot.connections_max,
            udp_sessions: process.udp_sessions.get(),
            udp_sessions_max: snapshot.sessions_max,
            open_fds: facts.process.open_fds,
            limit_fds: facts.process.limit_fds,
            resident_bytes: facts.process.resident_bytes,
            cpu_s: round3(facts.process.cpu.as_secs_f64()),
            spliced_bytes: spliced,
            records_dropped: facts.records_dropped,
            log_lines_dropped: facts.log_lines_dropped,
        },
        workers: workers.iter().map(|w| worker(w, facts)).collect(),
        listeners: snapshot.listeners.iter().map(|l| listener(l)).collect(),
        pools: snapshot.pools.iter().map(|p| pool(p, facts)).collect(),
        vips: facts.vips.clone(),
        nodes: facts.nodes.clone(),
        witnesses: facts.witnesses.clone(),
        arbiter: facts.arbiter.clone(),
        tracks: facts.tracks.clone(),
        kernel: facts.packets.as_ref().map(kernel),
    }
}

fn kernel(figures: &PacketFigures) -> Kernel {
    let dropped = figures.dropped.iter().filter(|(_, n)| *n > 0);
    Kernel {
        flows: figures.flows,
        flows_max: figures.flows_max,
        packets_in: figures.packets[0],
        packets_out: figures.packets[1],
        dropped: dropped.map(|&(reason, n)| (reason.to_string(), n)).collect(),
    }
}

fn worker(worker: &link::Worker, facts: &Facts) -> Worker {
    let turn_max = facts.turn_max.get(worker.id).copied().unwrap_or_default();
    Worker {
        id: worker.id,
        connections: worker.stats.connections.get(),
        udp_sessions: worker.stats.udp_sessions.get(),
        turns: worker.stats.turns.get(),
        turn_ms_max: round3(turn_max.as_secs_f64() * 1e3),
    }
}

fn listener(listener: &snapshot::Listener) -> Listener {
    let stats = &listener.stats;
    Listener {
        name: listener.config.name.clone(),
        protocol: protocol(listener.config.protocol).into(),
        engine: listener.owner.0.into(),
        bind: listener.config.bind.iter().map(|bind| bind.to_string()).collect(),
        pool: listener.pool.as_deref().unwrap_or_default().into(),
        routes: listener.routing.iter().flat_map(Routing::iter).map(route).collect(),
        active: stats.active.get(),
        accepted: stats.shards.sum(|shard| &shard.accepted),
        refused: stats.refused(),
        bytes_in: stats.shards.sum(|shard| &shard.bytes_in),
        bytes_out: stats.shards.sum(|shard| &shard.bytes_out),
        datagrams_in: stats.shards.sum(|shard| &shard.datagrams_in),
        datagrams_out: stats.shards.sum(|shard| &shard.datagrams_out),
    }
}

fn route(way: &ByName) -> Route {
    Route {
        name: way.name.to_string(),
        pool: way.pool.to_string(),
        connections: way.connections.sum(|n| n),
    }
}

fn pool(pool: &snapshot::Pool, facts: &Facts) -> Pool {
    Pool {
        name: pool.config.name.clone(),
        balance: balance(pool.config.balance).into(),
        eligible: pool.eligibility.count(),
        serving: pool.eligibility.serving.as_str().into(),
        queue: (pool.config.queue.is_some() || pool.queue.length() > 0).then(|| Queue {
            length: pool.queue.length(),
            longest_ms: longest_wait(pool).as_millis() as u64,
        }),
        backends: pool.backends.iter().map(|b| backend(b, facts)).collect(),
        sources: facts.sources.get(&pool.config.name).cloned().unwrap_or_default(),
    }
}

fn longest_wait(pool: &snapshot::Pool) -> Duration {
    pool.queue.longest(Instant::now()).unwrap_or_default()
}

fn backend(backend: &snapshot::Backend, facts: &Facts) -> Backend {
    let known = facts.backends.get(&backend.identity).cloned().unwrap_or_default();
    let stats = &backend.stats;
    let latency_ns = stats.latency_ns(facts.uptime);
    Backend {
        name: backend.config.name.clone(),
        address: backend.config.address.to_string(),
        source: known.source,
        weight: known.weight.unwrap_or(backend.config.weight),
        backup: backend.config.backup,
        state: known.state.map_or("", State::as_str).into(),
        reason: known.reason.as_ref().map_or_else(String::new, Remark::to_string),
        reason_code: known.reason.map_or("", |remark| remark.reason.as_str()).into(),
        since_s: known.since.as_secs(),
        active: stats.active.get(),
        total: stats.shards.sum(|shard| &shard.total),
        failed: stats.failed(),
        retries: stats.shards.sum(|shard| &shard.retries),
        bytes_in: stats.shards.sum(|shard| &shard.bytes_in),
        bytes_out: stats.shards.sum(|shard| &shard.bytes_out),
        connect_ms: Times::sum(stats.shards.iter().map(|shard| &shard.connect)).mean_ms(),
        response_ms: (latency_ns > 0).then(|| round3(latency_ns as f64 / 1e6)),
    }
}

/// The word in documents and labels.
pub(super) fn protocol(protocol: model::Protocol) -> &'static str {
    match protocol {
        model::Protocol::Tcp => "tcp",
        model::Protocol::Udp => "udp",
    }
}

fn balance(balance: model::Balance) -> &'static str {
    match balance {
        model::Balance::LeastConn => "least_conn",
        model::Balance::SourceHash => "source_hash",
        model::Balance::RoundRobin => "round_robin",
        model::Balance::Random => "random",
        model::Balance::LeastTime => "least_time",
    }
}

fn round3(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}
