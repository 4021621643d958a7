//! Counters shared between workers and control.
//!
//! What only adds up is sharded by worker: each worker writes its own cache line, control sums. What decides (live
//! connections of a backend, of a listener, of the process) is one atomic that all workers agree on, because
//! least-connection and caps must be exact over all of them. All accesses are relaxed: the values order nothing.
//!
//! Statistics belong to an identity (listener name; pool and address), not to a configuration, so they survive reloads.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_utils::CachePadded;

use crate::balance::{decayed, peak_ewma};
pub use crate::base::Gauge;
use crate::flow::Dropped;
use crate::health::FailureKind;
use crate::relay::Cause;

/// Time in which an old response time fades to 1/e; the kernel engine's program has it, too.
pub const LATENCY_TAU_NS: u64 = 10_000_000_000;

/// A counter that any thread may read or write, with relaxed accesses.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }
    /// The value now; other threads may already have raised it.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
    /// Replaces the value.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }
    /// Raises to at least `n`.
    pub fn raise(&self, n: u64) {
        self.0.fetch_max(n, Relaxed);
    }
    /// Returns the value and starts again from zero.
    pub fn take(&self) -> u64 {
        self.0.swap(0, Relaxed)
    }
}

/// Upper bounds of the histogram buckets, microseconds; the last bucket is open.
pub const BUCKETS_US: [u64; 16] = [
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    5_000_000,
    60_000_000,
    3_600_000_000,
];

/// A histogram of durations.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Count; BUCKETS_US.len() + 1],
    sum_us: Count,
}

impl Histogram {
    /// Counts one duration, in microseconds.
    pub fn observe_us(&self, us: u64) {
        self.buckets[BUCKETS_US.partition_point(|&bound| bound < us)].add(1);
        self.sum_us.add(us);
    }
    /// Adds this histogram to `(buckets, sum in microseconds)`; buckets are not cumulative.
    pub fn add_to(&self, buckets: &mut [u64; BUCKETS_US.len() + 1], sum_us: &mut u64) {
        for (total, bucket) in buckets.iter_mut().zip(&self.buckets) {
            *total += bucket.get();
        }
        *sum_us += self.sum_us.get();
    }
}

/// One `T` for each worker, each on cache lines of its own; more workers than shards share some. And one that is set, not
/// counted, for what is counted elsewhere.
#[derive(Debug)]
pub struct Sharded<T> {
    counted: Box<[CachePadded<T>]>,
    elsewhere: OnceLock<Box<T>>,
}

impl<T: Default> Sharded<T> {
    /// `shards` copies, at least one.
    pub fn new(shards: usize) -> Self {
        Self {
            counted: (0..shards.max(1)).map(|_| CachePadded::default()).collect(),
            elsewhere: OnceLock::new(),
        }
    }
    /// The shard of worker `worker`.
    pub fn of(&self, worker: usize) -> &T {
        &self.counted[worker % self.counted.len()]
    }
    /// The shard for totals that are kept elsewhere (a kernel map): its counters are set, by one writer, and never added to.
    pub fn kept_elsewhere(&self) -> &T {
        self.elsewhere.get_or_init(Box::default)
    }
    /// All shards.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let counted = self.counted.iter().map(|shard| &**shard);
        counted.chain(self.elsewhere.get().map(|shard| &**shard))
    }
    /// Adds up one counter over all shards.
    pub fn sum(&self, field: impl Fn(&T) -> &Count) -> u64 {
        self.iter().map(|shard| field(shard).get()).sum()
    }
}

/// Statistics of one listener.
#[derive(Debug)]
pub struct ListenerStats {
    /// Live connections or sessions.
    pub active: Gauge,
    /// The counters, one shard for each part of the process that writes them.
    pub shards: Sharded<ListenerShard>,
}

/// See [`ListenerStats`].
#[derive(Debug, Default)]
pub struct ListenerShard {
    /// Connections accepted, sessions opened.
    pub accepted: Count,
    /// Connections in a row whose client was the first to speak; a worker goes by it, nobody is shown it.
    pub clients_first: Count,
    /// Bytes from clients.
    pub bytes_in: Count,
    /// Bytes to clients.
    pub bytes_out: Count,
    /// Endings by [`Cause`] (index `cause as usize`).
    pub closed: [Count; Cause::ALL.len()],
    /// Of those that ended with [`Cause::NoBackend`] (or datagrams without a session): there was nobody (0), or those that
    /// could serve were full (1).
    pub no_backend: [Count; 2],
    /// How long connections and sessions lasted.
    pub seconds: Histogram,
    /// Datagrams from clients.
    pub datagrams_in: Count,
    /// Datagrams to clients.
    pub datagrams_out: Count,
    /// Datagrams not passed on, either way, by [`Dropped`] (index `reason as usize`).
    pub dropped: [Count; Dropped::ALL.len()],
}

impl ListenerStats {
    /// All zero.
    pub fn new(shards: usize) -> Arc<Self> {
        Arc::new(Self {
            active: Gauge::default(),
            shards: Sharded::new(shards),
        })
    }
    /// Connections turned away before a backend was asked.
    pub fn refused(&self) -> u64 {
        Cause::ALL
            .iter()
            .filter(|cause| cause.is_refusal())
            .map(|&cause| self.closed(cause))
            .sum()
    }
    /// Endings with `cause`.
    pub fn closed(&self, cause: Cause) -> u64 {
        self.shards.sum(|shard| &shard.closed[cause as usize])
    }
}

/// Statistics of one backend (pool and address).
#[derive(Debug)]
pub struct BackendStats {
    /// Live connections and sessions, raised before connecting.
    pub active: Gauge,
    /// Smoothed response time, nanoseconds; 0 = unknown.
    latency_ns: Count,
    /// When `latency_ns` was last updated, nanoseconds of the workers' common clock.
    latency_at_ns: Count,
    /// The same two of an engine that keeps figures of its own.
    latency_elsewhere_ns: Count,
    latency_elsewhere_at_ns: Count,
    /// The counters, one shard for each part of the process that writes them.
    pub shards: Sharded<BackendShard>,
}

/// See [`BackendStats`].
#[derive(Debug, Default)]
pub struct BackendShard {
    /// Connections established, sessions opened.
    pub total: Count,
    /// Failures of real traffic, by kind.
    pub failures: [Count; FailureKind::ALL.len()],
    /// Attempts that followed a failed one.
    pub retries: Count,
    /// Bytes to the backend.
    pub bytes_in: Count,
    /// Bytes from the backend.
    pub bytes_out: Count,
    /// How long connections took to be established.
    pub connect: Histogram,
}

impl BackendShard {
    /// Counts a failure of real traffic.
    pub fn failed(&self, kind: FailureKind) {
        self.failures[kind as usize].add(1);
    }
}

impl BackendStats {
    /// All zero.
    pub fn new(shards: usize) -> Arc<Self> {
        Arc::new(Self {
            active: Gauge::default(),
            latency_ns: Count::default(),
            latency_at_ns: Count::default(),
            latency_elsewhere_ns: Count::default(),
            latency_elsewhere_at_ns: Count::default(),
            shards: Sharded::new(shards),
        })
    }
    /// Learns a response time; `now` is the time since the workers' epoch.
    pub fn observe_latency(&self, sample: Duration, now: Duration) {
        let (now_ns, sample_ns) = (now.as_nanos() as u64, sample.as_nanos() as u64);
        let (old, at) = (self.latency_ns.get(), self.latency_at_ns.get());
        self.latency_ns
            .set(peak_ewma(old, at, now_ns, sample_ns, LATENCY_TAU_NS));
        self.latency_at_ns.set(now_ns);
    }
    /// The smoothed response time as it counts now, the longest that an engine knows; 0 = unknown.
    pub fn latency_ns(&self, now: Duration) -> u64 {
        let elsewhere = left(&self.latency_elsewhere_ns, &self.latency_elsewhere_at_ns, now);
        self.latency_here_ns(now).max(elsewhere)
    }
    /// The same by the workers alone.
    pub fn latency_here_ns(&self, now: Duration) -> u64 {
        left(&self.latency_ns, &self.latency_at_ns, now)
    }
    /// What an engine that keeps figures of its own knows at `now`.
    pub fn follow_latency(&self, latency_ns: u64, now: Duration) {
        self.latency_elsewhere_ns.set(latency_ns);
        self.latency_elsewhere_at_ns.set(now.as_nanos() as u64);
    }
    /// Failures of real traffic of one kind.
    pub fn failures(&self, kind: FailureKind) -> u64 {
        self.shards.sum(|shard| &shard.failures[kind as usize])
    }
    /// Failures of real traffic of every kind.
    pub fn failed(&self) -> u64 {
        self.shards
            .iter()
            .flat_map(|shard| &shard.failures)
            .map(Count::get)
            .sum()
    }
}

/// What is left of a response time that was learned `at`.
fn left(time: &Count, at: &Count, now: Duration) -> u64 {
    decayed(time.get(), at.get(), now.as_nanos() as u64, LATENCY_TAU_NS)
}

/// Statistics of one worker.
#[derive(Debug, Default)]
pub struct WorkerStats {
    /// Live connections, including those on their way from another worker.
    pub connections: CachePadded<Gauge>,
    /// Live UDP sessions.
    pub udp_sessions: Gauge,
    /// Turns of the event loop.
    pub turns: Count,
    /// Longest turn since last read, nanoseconds.
    pub turn_ns_max: Count,
    /// When the last turn began or ended, milliseconds of the workers' common clock; `u64::MAX` while asleep in poll.
    pub busy_since_ms: Count,
    /// Bytes moved by splice.
    pub spliced: Count,
}

/// Statistics of the process.
#[derive(Debug, Default)]
pub struct ProcessStats {
    /// Live TCP connections.
    pub connections: Gauge,
    /// Live UDP sessions.
    pub udp_sessions: Gauge,
    /// Of these connections and sessions, those that hold no descriptor: an engine beside the workers has them.
    pub elsewhere: [Gauge; 2],
    /// Access records that the log could not take.
    pub records_dropped: Count,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_lands_in_the_bucket_that_holds_it() {
        for (us, bucket) in [(0, 0), (100, 0), (101, 1), (3_600_000_000, 15), (u64::MAX, 16)] {
            let histogram = Histogram::default();
            histogram.observe_us(us);
            let (mut buckets, mut sum) = ([0; 17], 0);
            histogram.add_to(&mut buckets, &mut sum);
            assert_eq!(buckets.iter().position(|&n| n == 1), Some(bucket), "{us}");
        }
    }
}
