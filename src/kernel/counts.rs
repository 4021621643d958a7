//! Statistics, and what the program and the workers tell each other: each decides by what both have.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::core::Core;
use super::guards;
use super::layout::{BACKEND_LATENCY, LISTENER_ACTIVE};
use super::maps::{Maps, monotonic_ns};
use super::refusals::count_refusals;
use crate::balance::decayed;
use crate::config::model::Protocol;
use crate::link::Shared;
use crate::stats::{BackendStats, LATENCY_TAU_NS};

/// How often, where a backend serves both. What the two open in this time, neither knows of the other: so much may a cap be
/// exceeded.
pub const EXCHANGE: Duration = Duration::from_millis(50);

/// It takes one part in so many of a processor, at most: with thousands of backends it is done less often.
pub const EXCHANGE_SHARE: u32 = 50;

/// The workers learn how many live flows a backend has of the program, who knew of `was`. Returns how many it has of theirs.
fn follow(stats: &BackendStats, was: u32, is: u32) -> u32 {
    stats.active.follow(was, is);
    stats.active.get().saturating_sub(is)
}

impl Core {
    /// Brings both up to date about what is live at each backend and how long it takes, and calls whoever waits for a place that
    /// has become free.
    pub(super) fn exchange(&mut self, maps: &Maps, shared: &Shared) {
        let (now, now_ns) = (shared.epoch.elapsed(), monotonic_ns());
        for (place, tenant) in self.backends.iter_mut() {
            let Some(backend) = &tenant.who else {
                maps.tell_elsewhere(place, 0, 0);
                continue;
            };
            let stats = &backend.stats;
            let is = maps.active_at(place);
            let was = std::mem::replace(&mut tenant.active, is);
            let theirs = follow(stats, was, is);
            if is < was {
                backend.queue.place_freed();
            }
            let longs = maps.backends.longs(place as usize);
            let [time, at, _] = BACKEND_LATENCY.map(|ix| longs[ix].load(Relaxed));
            stats.follow_latency(decayed(time, at, now_ns, LATENCY_TAU_NS), now);
            maps.tell_elsewhere(place, theirs, stats.latency_here_ns(now));
        }
    }

    /// Brings statistics up to date.
    pub(super) fn collect(&mut self, maps: &Maps, shared: &Shared) {
        let mut totals = [0u32; 2];
        for (place, tenant) in self.listeners.iter_mut() {
            let active = maps.listeners.words(place as usize)[LISTENER_ACTIVE].load(Relaxed);
            let Some(listener) = &tenant.who else { continue };
            let is_udp = listener.config.protocol == Protocol::Udp;
            totals[usize::from(is_udp)] += active;
            listener
                .stats
                .active
                .follow(std::mem::replace(&mut tenant.active, active), active);
            let (tally, before) = (maps.listener_tally(place), &tenant.before);
            let shard = listener.stats.shards.kept_elsewhere();
            shard.accepted.set(tally.opened - before.opened);
            shard.bytes_in.set(tally.bytes_up - before.bytes_up);
            shard.bytes_out.set(tally.bytes_down - before.bytes_down);
            count_refusals(shard, is_udp, |why| tally.refused[why] - before.refused[why]);
            if is_udp {
                shard.datagrams_in.set(tally.packets_up - before.packets_up);
                shard.datagrams_out.set(tally.packets_down - before.packets_down);
            }
        }
        self.exchange(maps, shared);
        for (place, tenant) in self.backends.iter_mut() {
            let Some(backend) = &tenant.who else { continue };
            let (tally, before) = (maps.backend_tally(place), &tenant.before);
            let shard = backend.stats.shards.kept_elsewhere();
            shard.total.set(tally.opened - before.opened);
            shard.bytes_in.set(tally.bytes_up - before.bytes_up);
            shard.bytes_out.set(tally.bytes_down - before.bytes_down);
        }
        self.account_for(shared, totals);
        self.limit(maps, shared);
    }

    /// So many connections and sessions of the process are live here.
    fn account_for(&mut self, shared: &Shared, totals: [u32; 2]) {
        let process = &shared.process;
        for (nth, gauge) in [&process.connections, &process.udp_sessions].into_iter().enumerate() {
            for gauge in [gauge, &process.elsewhere[nth]] {
                gauge.follow(self.totals[nth], totals[nth]);
            }
        }
        self.totals = totals;
    }

    /// Tells the program how many there may be, beside what the workers have.
    pub(super) fn limit(&self, maps: &Maps, shared: &Shared) {
        let process = &shared.process;
        let all = [process.connections.get(), process.udp_sessions.get()];
        let most = self.snapshot.stated();
        maps.limit(std::array::from_fn(|nth| {
            guards::left(most[nth], all[nth], self.totals[nth])
        }));
    }

    /// Takes what is live here out of all gauges.
    pub(super) fn forget(&mut self, shared: &Shared) {
        self.listeners.forget(|listener| &listener.stats.active);
        self.backends.forget(|backend| &backend.stats.active);
        self.account_for(shared, [0; 2]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Columns: connections that the workers open (or end), live flows of the program; what each side counts then.
    #[test]
    fn each_side_counts_what_both_have() {
        let stats = BackendStats::new(1);
        let rows: [(i32, u32, u32, u32); 6] = [
            (0, 0, 0, 0),
            (3, 0, 3, 3),
            (0, 5, 8, 3),
            (-2, 4, 5, 1),
            (4, 0, 5, 5),
            (-5, 7, 7, 0),
        ];
        let mut was = 0;
        for (row, &(opened, is, workers_count, told)) in rows.iter().enumerate() {
            match opened {
                0.. => (0..opened).for_each(|_| stats.active.raise()),
                _ => (opened..0).for_each(|_| stats.active.lower()),
            }
            assert_eq!(follow(&stats, was, is), told, "row {row}");
            assert_eq!(stats.active.get(), workers_count, "row {row}");
            was = is;
        }
    }
}
