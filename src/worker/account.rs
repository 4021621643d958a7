//! What connections are counted under, and what is told of them: counters, access records, `weir conns`.

use std::time::{Instant, SystemTime};

use super::Context;
use super::connection::{Connection, Phase, us};
use crate::base::Side;
use crate::link::{Accepted, LiveConnection, Record};
use crate::relay::{By, Cause};
use crate::snapshot::Owner;

impl Connection {
    /// A pump has moved bytes; `before`: what each lane had moved until then.
    pub(super) fn account_moved(&mut self, context: &Context, before: [u64; 2], spliced: u64) {
        let after = self.lanes.moved();
        let (up, down) = (after[0] - before[0], after[1] - before[1]);
        let Some(reached) = &self.backend else { return };
        let backend = reached.permit.backend();
        let listener = self.origin.listener.stats.shards.of(context.id);
        let shard = backend.stats.shards.of(context.id);
        if up > 0 {
            listener.bytes_in.add(up);
            shard.bytes_in.add(up);
        }
        if down > 0 {
            listener.bytes_out.add(down);
            shard.bytes_out.add(down);
        }
        if after[1] > 0 && self.story.first_byte_us.is_none() {
            self.origin.note_first_speaker(context.id, after[0] > 0);
            self.story.first_byte_us = Some(us(self.story.opened, context.now));
            let waited = context.now.saturating_duration_since(reached.since);
            backend
                .stats
                .observe_latency(waited, context.now - context.shared.epoch);
        }
        if spliced > 0 {
            self.story.spliced += spliced;
            context.stats.spliced.add(spliced);
        }
    }

    /// The backend has answered.
    pub(super) fn account_connected(&mut self, context: &Context) {
        let Some(reached) = &self.backend else { return };
        let connect_us = us(reached.since, context.now);
        self.story.connect_us = Some(connect_us);
        let shard = reached.permit.backend().stats.shards.of(context.id);
        shard.total.add(1);
        shard.connect.observe_us(u64::from(connect_us));
    }

    /// It ends. The places in the gauges of worker and process are given back.
    pub(super) fn account_end(&self, context: &Context, cause: Cause, closed_by: By) {
        context.stats.connections.lower();
        context.shared.process.connections.lower();
        let shard = self.origin.listener.stats.shards.of(context.id);
        shard.closed[cause as usize].add(1);
        if let Phase::Queued { place, .. } = &self.phase {
            place.observe(context.now);
        }
        shard.seconds.observe_us(u64::from(us(self.story.opened, context.now)));
        if context.shared.wants_records() {
            context.shared.record(self.record(context.now, cause, closed_by));
        }
    }

    fn attempts(&self) -> u32 {
        match &self.phase {
            Phase::Connecting(attempt) => attempt.tried.len() as u32,
            _ => u32::from(self.story.attempts),
        }
    }

    pub(super) fn record(&self, now: Instant, cause: Cause, closed_by: By) -> Record {
        let reached = self.backend.as_ref();
        Record {
            time: SystemTime::now(),
            id: self.id,
            listener: self.origin.listener.clone(),
            client: self.origin.client,
            local: self.origin.local.clone(),
            backend: reached.map(|reached| reached.permit.backend().clone()),
            attempts: self.attempts(),
            bytes_up: self.lanes.pair.moved_from(Side::Client),
            bytes_down: self.lanes.pair.moved_from(Side::Backend),
            connect_us: self.story.connect_us.map(u64::from),
            first_byte_us: self.story.first_byte_us.map(u64::from),
            duration_us: now.saturating_duration_since(self.story.opened).as_micros() as u64,
            spliced: self.story.spliced,
            packets: None,
            closed_by,
            cause,
            interim: false,
            asked: self.origin.asked.clone(),
        }
    }

    pub(super) fn describe(&self, context: &Context, now_ms: u64) -> LiveConnection {
        let backend = self.backend.as_ref().map(|reached| reached.permit.backend());
        LiveConnection {
            id: self.id,
            protocol: "tcp",
            listener: self.origin.listener.config.name.clone(),
            client: self
                .origin
                .client
                .map_or_else(|| "unix".into(), |address| address.to_string()),
            pool: backend.map_or_else(
                || {
                    self.origin
                        .asked
                        .way
                        .as_ref()
                        .map_or_else(String::new, |way| way.pool.to_string())
                },
                |backend| backend.pool.to_string(),
            ),
            backend: backend.map_or_else(String::new, |backend| backend.config.name.clone()),
            engine: Owner::WORKERS.0,
            worker: context.id,
            state: match &self.phase {
                Phase::Header { .. } => "proxy_header",
                Phase::Hello { .. } => "tls_hello",
                Phase::Queued { .. } => "queued",
                Phase::Connecting(_) => "connecting",
                Phase::Open if self.lanes.pair.half_closed() => "half_closed",
                Phase::Open => "open",
                Phase::Resetting { .. } => "closing",
            },
            age_ms: context.now.saturating_duration_since(self.story.opened).as_millis() as u64,
            idle_ms: now_ms.saturating_sub(self.clocks.active_ms),
            bytes_up: self.lanes.pair.moved_from(Side::Client),
            bytes_down: self.lanes.pair.moved_from(Side::Backend),
        }
    }
}

/// An accepted connection is turned away before it takes any place.
pub(super) fn account_refusal(context: &Context, accepted: Accepted, id: u64, cause: Cause) {
    let Accepted {
        listener,
        client,
        local,
        ..
    } = accepted;
    listener.stats.shards.of(context.id).closed[cause as usize].add(1);
    context
        .shared
        .record(Record::refused(SystemTime::now(), id, listener, client, local, cause));
}
