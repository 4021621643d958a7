//! The Prometheus page: a pure function from what is known at one moment to text.
//!
//! Everything that is counted is counted elsewhere; here it gets a name, a help text, labels and units. The library
//! escapes and formats. Families without a sample (VIPs where there are none) are left out. `docs/observability.md`
//! explains the metrics to people, and a test holds the two together.

mod page;

use std::time::{Duration, Instant};

use prometheus::TextEncoder;
use prometheus::proto::MetricType;

use page::{Page, Samples, counter, family};

use super::status::{self, BackendFacts, Facts, Times};
use crate::api::status::VIP_STATES;
use crate::health::{FailureKind, State};
use crate::link;
use crate::relay::Cause;
use crate::routing::Routing;
use crate::snapshot::Snapshot;
use crate::stats::{BackendShard, Count, ListenerShard};

/// What the page is made of.
#[derive(Debug)]
pub struct Metrics<'a> {
    /// The newest view.
    pub snapshot: &'a Snapshot,
    /// Every worker that serves.
    pub workers: &'a [link::Worker],
    /// What only control knows.
    pub facts: &'a Facts,
}

/// One counter of a shard.
type Field<Shard> = fn(&Shard) -> &Count;
/// Labels of one sample.
type Labels<'a> = &'a [(&'static str, &'a str)];

impl Metrics<'_> {
    /// Prometheus text, format 0.0.4.
    pub fn render(&self) -> String {
        let mut page = Page::default();
        self.listeners(&mut page);
        self.kernel(&mut page);
        self.backends(&mut page);
        self.members(&mut page);
        self.failover(&mut page);
        self.workers(&mut page);
        self.process(&mut page);
        page.0.retain(|family| !family.get_metric().is_empty());
        // It fails only for families without name or sample.
        TextEncoder::new().encode_to_string(&page.0).unwrap_or_default()
    }

    fn listeners(&self, page: &mut Page) {
        let [mut total, mut refused, mut closed, mut bytes, mut datagrams, mut routed] = [
            (
                "weir_connections_total",
                "Connections accepted and UDP sessions opened.",
            ),
            (
                "weir_connections_refused_total",
                "Connections turned away before a backend was asked.",
            ),
            (
                "weir_connections_closed_total",
                "Connections and sessions ended, by cause.",
            ),
            ("weir_bytes_total", "Payload bytes from (in) and to (out) clients."),
            ("weir_udp_datagrams_total", "Datagrams from (in) and to (out) clients."),
            (
                "weir_route_connections_total",
                "Connections by the route that their TLS server name chose; `*` is the rest.",
            ),
        ]
        .map(|(name, help)| family(MetricType::COUNTER, name, help));
        let [mut active, mut sessions] = [
            ("weir_connections_active", "Live connections and UDP sessions."),
            ("weir_udp_sessions_active", "Live UDP sessions."),
        ]
        .map(|(name, help)| family(MetricType::GAUGE, name, help));
        let mut seconds = family(
            MetricType::HISTOGRAM,
            "weir_connection_seconds",
            "Lifetime of connections and sessions.",
        );
        for listener in self.snapshot.listeners.iter() {
            let stats = &listener.stats;
            let sum = |field: fn(&ListenerShard) -> &_| stats.shards.sum(field);
            let name = ("listener", listener.config.name.as_str());
            let protocol = status::protocol(listener.config.protocol);
            let udp = protocol == "udp";
            let pool = ("pool", listener.pool.as_deref().unwrap_or_default());
            // The last one: it came later than the others.
            let engine = ("engine", listener.owner.0);
            let labels = [name, ("protocol", protocol), pool, engine];
            total.count(&labels, sum(|shard| &shard.accepted));
            active.gauge(&labels, stats.active.get());
            if udp {
                sessions.gauge(&[name, pool, engine], stats.active.get());
            }
            for &cause in Cause::ALL {
                let (word, n) = (cause.as_str(), stats.closed(cause));
                match cause {
                    // One cause, two things to do about it.
                    Cause::NoBackend => {
                        refused.count(&[name, ("reason", word), engine], sum(|shard| &shard.no_backend[0]));
                        refused.count(&[name, ("reason", "full"), engine], sum(|shard| &shard.no_backend[1]));
                    }
                    _ if cause.is_refusal() => refused.count(&[name, ("reason", word), engine], n),
                    _ => {}
                }
                closed.count(&[name, ("cause", word), engine], n);
            }
            for way in listener.routing.iter().flat_map(Routing::iter) {
                let labels = [name, ("route", &*way.name), ("pool", &*way.pool)];
                routed.count(&labels, way.connections.sum(|n| n));
            }
            let directions: [(&str, Field<ListenerShard>, Field<ListenerShard>); 2] = [
                ("in", |shard| &shard.bytes_in, |shard| &shard.datagrams_in),
                ("out", |shard| &shard.bytes_out, |shard| &shard.datagrams_out),
            ];
            for (direction, of_bytes, of_datagrams) in directions {
                let labels = [name, ("direction", direction), engine];
                bytes.count(&labels, sum(of_bytes));
                if udp {
                    datagrams.count(&labels, sum(of_datagrams));
                }
            }
            seconds.times(
                &[name, engine],
                &Times::sum(stats.shards.iter().map(|shard| &shard.seconds)),
            );
        }
        page.0.extend([
            total, active, refused, closed, bytes, seconds, sessions, datagrams, routed,
        ]);
        page.counter(
            "weir_udp_dropped_total",
            "Datagrams dropped, by reason.",
            self.facts
                .udp_dropped
                .iter()
                .map(|&(reason, n)| ([("reason", reason)], n)),
        );
    }

    fn kernel(&self, page: &mut Page) {
        let figures = || self.facts.packets.iter();
        page.gauge(
            "weir_kernel_flows",
            "Connections and sessions in the kernel engine's table of established ones.",
            figures().map(|figures| ([], figures.flows)),
        );
        page.gauge(
            "weir_limit_kernel_flows",
            "Connections and sessions in the kernel engine's table of established ones at most.",
            figures().map(|figures| ([], figures.flows_max)),
        );
        page.counter(
            "weir_kernel_packets_total",
            "Packets that the kernel engine passed on from (in) and to (out) clients.",
            figures().flat_map(|figures| {
                let of = |direction, n| ([("direction", direction)], n);
                [of("in", figures.packets[0]), of("out", figures.packets[1])]
            }),
        );
        page.counter(
            "weir_kernel_dropped_total",
            "Packets that the kernel engine did not pass on, or not as they should have been, by reason.",
            figures().flat_map(|figures| figures.dropped.iter().map(|&(reason, n)| ([("reason", reason)], n))),
        );
    }

    fn backends(&self, page: &mut Page) {
        let [mut up, mut state, mut active, mut weight, mut eligible, mut queued] = [
            ("weir_backend_up", "1 if the backend is healthy (state up or starting)."),
            (
                "weir_backend_state",
                "1 for the state that the backend is in, 0 for the others.",
            ),
            ("weir_backend_active", "Live connections and sessions of the backend."),
            ("weir_backend_weight", "Weight in force."),
            ("weir_pool_eligible", "Backends of the pool that take new work now."),
            (
                "weir_queue_length",
                "Connections that wait for room at a backend of the pool.",
            ),
        ]
        .map(|(name, help)| family(MetricType::GAUGE, name, help));
        let [
            mut total,
            mut bytes,
            mut retries,
            mut failures,
            mut probe_failures,
            mut probes_overdue,
        ] = [
            (
                "weir_backend_connections_total",
                "Connections established and sessions opened.",
            ),
            (
                "weir_backend_bytes_total",
                "Payload bytes to (in) and from (out) the backend.",
            ),
            (
                "weir_retries_total",
                "Attempts to connect here after one elsewhere had failed.",
            ),
            ("weir_backend_failures_total", "Failures of real traffic, by reason."),
            ("weir_probe_failures_total", "Health probes that failed, by reason."),
            (
                "weir_probe_overdue_total",
                "Health probes overdue by three intervals: lost, or more due than may run.",
            ),
        ]
        .map(|(name, help)| family(MetricType::COUNTER, name, help));
        let [mut connect, mut waits, mut probes] = [
            ("weir_connect_seconds", "Time to connect to the backend."),
            (
                "weir_queue_seconds",
                "Time in the queue of the pool, whatever came of it.",
            ),
            (
                "weir_probe_seconds",
                "Time from the start of a health probe to its verdict.",
            ),
        ]
        .map(|(name, help)| family(MetricType::HISTOGRAM, name, help));
        let unknown = BackendFacts::default();
        for pool in &self.snapshot.pools {
            let pool_label = ("pool", pool.config.name.as_str());
            eligible.gauge(&[pool_label], pool.eligibility.count() as u32);
            if pool.config.queue.is_some() {
                queued.gauge(&[pool_label], pool.queue.length());
                waits.times(&[pool_label], &Times::sum([&pool.queue.seconds]));
            }
            for backend in &pool.backends {
                let (stats, known) = (
                    &backend.stats,
                    self.facts.backends.get(&backend.identity).unwrap_or(&unknown),
                );
                let sum = |field: fn(&BackendShard) -> &_| stats.shards.sum(field);
                let name = ("backend", backend.config.name.as_str());
                let labels = [pool_label, name];
                up.gauge(&labels, known.state.is_some_and(State::is_healthy));
                for &of in State::ALL {
                    state.gauge(&[pool_label, name, ("state", of.as_str())], known.state == Some(of));
                }
                active.gauge(&labels, stats.active.get());
                weight.gauge(&labels, known.weight.unwrap_or(backend.config.weight));
                total.count(&labels, sum(|shard| &shard.total));
                bytes.count(&[pool_label, name, ("direction", "in")], sum(|shard| &shard.bytes_in));
                bytes.count(&[pool_label, name, ("direction", "out")], sum(|shard| &shard.bytes_out));
                retries.count(&labels, sum(|shard| &shard.retries));
                for &kind in FailureKind::ALL {
                    failures.count(&[pool_label, name, ("reason", kind.as_str())], stats.failures(kind));
                }
                let times = Times::sum(stats.shards.iter().map(|shard| &shard.connect));
                connect.times(&labels, &times);
                probes.times(&labels, &known.probes);
                for &(reason, n) in &known.probe_failures {
                    probe_failures.count(&[pool_label, name, ("reason", reason.as_str())], n);
                }
                probes_overdue.count(&labels, known.probes_overdue);
            }
        }
        page.0.extend([
            up, state, active, weight, eligible, queued, waits, total, bytes, connect, retries,
        ]);
        page.0.extend([failures, probes, probe_failures, probes_overdue]);
    }

    fn members(&self, page: &mut Page) {
        let pools = || self.snapshot.pools.iter().map(|pool| pool.config.name.as_str());
        let sources = || {
            pools().flat_map(|pool| {
                let sources = self.facts.sources.get(pool).into_iter().flatten();
                sources.map(move |source| ([("pool", pool), ("source", &*source.source)], source))
            })
        };
        page.gauge(
            "weir_members",
            "Members that are in the pool because of the source.",
            sources().map(|(labels, source)| (labels, source.members as f64)),
        );
        page.counter(
            "weir_member_source_failures_total",
            "Times that the source could not be asked, or its answer not be used.",
            sources().map(|(labels, source)| (labels, source.failures)),
        );
        page.gauge(
            "weir_member_source_age_seconds",
            "Since the source last said who is there; left out before it first does.",
            sources().filter_map(|(labels, source)| Some((labels, source.age_s?))),
        );
    }

    fn failover(&self, page: &mut Page) {
        let vips = || self.facts.vips.iter();
        page.gauge(
            "weir_vip_held",
            "1 while this node holds the address.",
            vips().map(|vip| ([("vip", &*vip.address)], holds(&vip.state))),
        );
        page.gauge(
            "weir_vip_state",
            "1 for the state that the address is in on this node, 0 for the others.",
            vips()
                .flat_map(|vip| VIP_STATES.map(|word| ([("vip", &*vip.address), ("state", word)], vip.state == word))),
        );
        page.counter(
            "weir_vip_transitions_total",
            "Changes of state of the address on this node.",
            vips().map(|vip| ([("vip", &*vip.address)], vip.transitions)),
        );
        page.gauge(
            "weir_node_alive",
            "1 while beats of the node arrive.",
            self.facts
                .nodes
                .iter()
                .map(|node| ([("node", &*node.name)], node.alive)),
        );
        page.gauge(
            "weir_node_config_mismatch",
            "1 while the node is configured otherwise than this one where all should agree.",
            self.facts
                .nodes
                .iter()
                .map(|node| ([("node", &*node.name)], node.mismatch.is_some())),
        );
        page.gauge(
            "weir_witness_up",
            "1 while the witness answers.",
            self.facts
                .witnesses
                .iter()
                .filter_map(|witness| Some(([("witness", &*witness.address)], witness.up?))),
        );
        let arbiter = || self.facts.arbiter.iter();
        page.gauge(
            "weir_arbiter_up",
            "1 while the arbiter answers.",
            arbiter().filter_map(|arbiter| Some(([], arbiter.up?))),
        );
        page.gauge(
            "weir_arbiter_votes",
            "Addresses and groups on which the arbiter's vote is this node's.",
            arbiter().map(|arbiter| ([], arbiter.votes.len() as f64)),
        );
        page.gauge(
            "weir_track_up",
            "1 while what is tracked holds.",
            self.facts
                .tracks
                .iter()
                .filter_map(|track| Some(([("track", &*track.name)], track.holds?))),
        );
        page.counter(
            "weir_beats_rejected_total",
            "Beats that were refused: wrong signature, old number, garbage.",
            self.facts
                .beats_rejected
                .iter()
                .map(|&(reason, count)| ([("reason", reason)], count)),
        );
    }

    fn workers(&self, page: &mut Page) {
        let ids: Vec<String> = self.workers.iter().map(|worker| worker.id.to_string()).collect();
        let workers = || ids.iter().map(|id| [("worker", id.as_str())]).zip(self.workers);
        page.counter(
            "weir_worker_turns_total",
            "Turns of the worker's event loop.",
            workers().map(|(labels, worker)| (labels, worker.stats.turns.get())),
        );
        page.gauge(
            "weir_worker_turn_seconds_max",
            "Longest turn of the worker's event loop in about the last minute.",
            workers().map(|(labels, worker)| {
                let longest = self.facts.turn_max.get(worker.id).copied().unwrap_or_default();
                (labels, longest.as_secs_f64())
            }),
        );
        page.gauge(
            "weir_worker_connections",
            "Live connections of the worker.",
            workers().map(|(labels, worker)| (labels, worker.stats.connections.get())),
        );
        page.counter(
            "weir_spliced_bytes_total",
            "Payload bytes that the kernel moved without copying them to user space.",
            workers().map(|(labels, worker)| (labels, worker.stats.spliced.get())),
        );
    }

    fn process(&self, page: &mut Page) {
        let Facts { process, .. } = self.facts;
        let gauges: [(&str, &str, f64); 8] = [
            (
                "weir_config_generation",
                "Grows with every configuration taken over.",
                self.snapshot.generation as f64,
            ),
            (
                "weir_limit_connections",
                "Live TCP connections of the process at most.",
                self.snapshot.connections_max.into(),
            ),
            (
                "weir_limit_udp_sessions",
                "Live UDP sessions of the process at most.",
                self.snapshot.sessions_max.into(),
            ),
            ("weir_open_fds", "Open file descriptors.", process.open_fds as f64),
            (
                "weir_limit_fds",
                "Open file descriptors at most.",
                process.limit_fds as f64,
            ),
            (
                "process_resident_memory_bytes",
                "Resident memory size in bytes.",
                process.resident_bytes as f64,
            ),
            (
                "weir_uptime_seconds",
                "Time since the process began to serve.",
                self.facts.uptime.as_secs_f64(),
            ),
            (
                "weir_stopping",
                "1 while the process lets its last connections finish.",
                u32::from(self.facts.stopping).into(),
            ),
        ];
        for (name, help, value) in gauges {
            page.gauge(name, help, [([], value)]);
        }
        page.gauge(
            "weir_build_info",
            "1; the label says which version runs.",
            [([("version", env!("CARGO_PKG_VERSION"))], 1)],
        );
        for (name, help, value) in [
            (
                "weir_config_reload_failures_total",
                "Reloads refused; the configuration in force stayed.",
                self.facts.reload_failures,
            ),
            (
                "weir_log_records_dropped_total",
                "Access records lost because the log could not take or write them.",
                self.facts.records_dropped,
            ),
            (
                "weir_log_lines_dropped_total",
                "Lines of the event log lost because standard error could not take them.",
                self.facts.log_lines_dropped,
            ),
        ] {
            page.counter(name, help, [([], value)]);
        }
        let mut cpu = family(
            MetricType::COUNTER,
            "process_cpu_seconds_total",
            "Total user and system CPU time spent in seconds.",
        );
        cpu.push(&[], |metric| metric.set_counter(counter(process.cpu.as_secs_f64())));
        page.0.push(cpu);
    }
}

/// Whether the address is installed here in this state.
fn holds(state: &str) -> bool {
    matches!(state, "active" | "releasing")
}

/// The greatest of the values observed within about the last minute: the counters behind it are zeroed when they are read,
/// so it is control that reads them, and any number of readers of the page see the same.
#[derive(Debug, Clone, Copy)]
pub struct Peak {
    began: Instant,
    current: Duration,
    previous: Duration,
}

impl Peak {
    const WINDOW: Duration = Duration::from_secs(60);

    /// Nothing observed yet.
    pub fn new(now: Instant) -> Peak {
        Peak {
            began: now,
            current: Duration::ZERO,
            previous: Duration::ZERO,
        }
    }

    /// Observes a value.
    pub fn observe(&mut self, now: Instant, value: Duration) {
        self.turn(now);
        self.current = self.current.max(value);
    }

    /// The greatest value of the current and the previous minute.
    pub fn value(&mut self, now: Instant) -> Duration {
        self.turn(now);
        self.current.max(self.previous)
    }

    fn turn(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.began);
        if age >= Self::WINDOW {
            let kept = if age < 2 * Self::WINDOW {
                self.current
            } else {
                Duration::ZERO
            };
            (self.began, self.previous, self.current) = (now, kept, Duration::ZERO);
        }
    }
}

#[cfg(test)]
mod tests;
