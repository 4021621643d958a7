//! Ends of flows: statistics, the access record, failures of backends.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Instant, SystemTime};

use super::core::Core;
use super::flows::is_unproven;
use super::layout::{
    BACKEND_ACTIVE, END_BACKEND_RESET, END_CLIENT_RESET, END_REFUSED, Ended, FLOW_ENDED, FLOW_OPEN, Flow,
    LISTENER_ACTIVE, Tuple,
};
use super::maps::Maps;
use crate::health::FailureKind;
use crate::link::{self, Record, Shared};
use crate::relay::{By, Cause};
use crate::routing::Asked;

/// How a flow ended.
struct End<'a> {
    key: &'a Tuple,
    up: &'a Flow,
    packets_down: u64,
    bytes_down: u64,
    /// Nanoseconds, as the program counts them.
    at: u64,
    cause: Cause,
    by: By,
}

impl Core {
    /// Accounts for an ended flow.
    fn account(&self, shared: &Shared, end: &End) {
        let End {
            key,
            up,
            packets_down,
            bytes_down,
            at,
            cause,
            by,
        } = *end;
        let (Some(listener), backend) = (self.listeners.get(up.listener), self.backends.get(up.backend)) else {
            return;
        };
        let duration_us = at.saturating_sub(up.opened) / 1000;
        let shard = listener.stats.shards.kept_elsewhere();
        shard.closed[cause as usize].add(1);
        shard.seconds.observe_us(duration_us);
        let connect_us = (up.connect_us > 0).then_some(u64::from(up.connect_us));
        if let Some(backend) = backend {
            let shard = backend.stats.shards.kept_elsewhere();
            match cause {
                Cause::ConnectFailed => {
                    shard.failed(FailureKind::Refused);
                    shared.failed(backend.identity, FailureKind::Refused, Instant::now());
                }
                Cause::ConnectTimeout => {
                    shard.failed(FailureKind::TimedOut);
                    shared.failed(backend.identity, FailureKind::TimedOut, Instant::now());
                }
                _ => {}
            }
            connect_us.iter().for_each(|&us| shard.connect.observe_us(us));
        }
        if shared.wants_records() {
            shared.record(Record {
                time: SystemTime::now(),
                id: up.id,
                listener: listener.clone(),
                client: Some(key.source()),
                local: Arc::new(link::Address::Ip(key.destination())),
                backend: backend.cloned(),
                attempts: 1,
                bytes_up: up.bytes,
                bytes_down,
                connect_us,
                first_byte_us: None,
                duration_us,
                spliced: 0,
                packets: Some([up.packets, packets_down]),
                closed_by: by,
                cause,
                interim: false,
                asked: Asked::default(),
            });
        }
    }

    /// An end that the program has told.
    pub(super) fn on_end(&self, shared: &Shared, ended: &Ended) {
        let (cause, by) = match ended.end {
            END_CLIENT_RESET => (Cause::ClientReset, By::Client),
            END_BACKEND_RESET => (Cause::BackendReset, By::Backend),
            END_REFUSED => (Cause::ConnectFailed, By::Backend),
            // Whoever's FIN came first is not noted; most often it is the client's.
            _ => (Cause::Finished, By::Client),
        };
        self.account(
            shared,
            &End {
                key: &ended.key,
                up: &ended.up,
                packets_down: ended.packets_down,
                bytes_down: ended.bytes_down,
                at: ended.at,
                cause,
                by,
            },
        );
    }

    /// Ends a flow, or removes the entries of one that has ended.
    pub(super) fn remove(&self, maps: &Maps, shared: &Shared, key: &Tuple, cause: Cause) {
        let Some(up) = maps.take(key) else { return };
        let down = maps.take(&up.to.turned()).unwrap_or_default();
        if up.flags & FLOW_ENDED != 0 || key.is_tcp() && is_unproven(&up) {
            return;
        }
        if up.flags & FLOW_OPEN != 0 {
            let gauges = [
                (&maps.listeners, up.listener, LISTENER_ACTIVE),
                (&maps.backends, up.backend, BACKEND_ACTIVE),
            ];
            for (array, place, word) in gauges {
                array.words(place as usize)[word].fetch_sub(1, Relaxed);
            }
        }
        self.account(
            shared,
            &End {
                key,
                up: &up,
                packets_down: down.packets,
                bytes_down: down.bytes,
                at: up.last.max(down.last),
                cause,
                by: By::Weir,
            },
        );
    }
}
