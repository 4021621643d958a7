//! Ends of flows: statistics, the access record, failures of backends.

use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::core::{Core, EndOrder};
use super::flows::{Fading, LINGER, is_over, is_unproven};
use super::layout::{
    END_BACKEND_RESET, END_CLIENT_RESET, END_CUT, END_REFUSALS, END_REFUSED, Ended, FLOW_BACKEND_FIRST, FLOW_ENDED,
    FLOW_JOINED, Flow, REFUSALS, Tuple,
};
use super::maps::Maps;
use super::program::Injected;
use super::resets::resets;
use crate::config::model::{Balance, KernelMode};
use crate::health::FailureKind;
use crate::link::{self, Record, Shared};
use crate::relay::{By, Cause};
use crate::routing::Asked;

/// How long the program may take to tell of an end that was asked for.
const TELLS: Duration = Duration::from_secs(3);

/// So many ended flows are remembered for the removal of their entries.
const FADING_MAX: usize = 1 << 18;

/// How a flow ended.
struct End<'a> {
    key: &'a Tuple,
    up: &'a Flow,
    packets_down: u64,
    bytes_down: u64,
    /// 0 = there was none.
    first_byte_us: u32,
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
            first_byte_us,
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
                first_byte_us: (up.flags & FLOW_JOINED == 0 && first_byte_us > 0).then_some(u64::from(first_byte_us)),
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

    /// Removes the entries of flows that ended some time ago. Returns when the next are due.
    pub(super) fn fade(&mut self, maps: &Maps, shared: &Shared, now: Instant, now_ns: u64) -> Option<Instant> {
        while self.fading.front().is_some_and(|next| next.due <= now) {
            let next = self.fading.pop_front()?;
            // After an end its client may have begun anew.
            let there = maps.flow(&next.key).filter(|up| up.id == next.id);
            let Some(up) = there else { continue };
            match is_over(&up, maps.other(&up).as_ref(), now_ns) {
                true => self.remove(maps, shared, &next.key, &up, Cause::Finished),
                false => self.fading.push_back(Fading {
                    due: now + LINGER,
                    ..next
                }),
            }
        }
        self.fading.front().map(|next| next.due)
    }

    /// Somebody whom the program has turned away; it has counted that itself.
    fn turned_away(&self, shared: &Shared, ended: &Ended) {
        let Some(listener) = self.listeners.get(ended.up.listener) else {
            return;
        };
        if !shared.wants_records() {
            return;
        }
        let (cause, _) = REFUSALS[(ended.end - END_REFUSALS) as usize];
        let local = Arc::new(link::Address::Ip(ended.key.destination()));
        let (now, client) = (SystemTime::now(), Some(ended.key.source()));
        shared.record(Record {
            packets: Some([1, 0]),
            ..Record::refused(now, ended.up.id, listener.clone(), client, local, cause)
        });
    }

    /// An end that the program has told.
    pub(super) fn on_end(&mut self, shared: &Shared, ended: &Ended) {
        if ended.end >= END_REFUSALS {
            return self.turned_away(shared, ended);
        }
        // The sweep comes to the others.
        if self.fading.len() < FADING_MAX {
            self.fading.push_back(Fading {
                due: Instant::now() + LINGER,
                key: ended.key,
                id: ended.up.id,
            });
        }
        let asked = self.asked.remove(&ended.key);
        let (cause, by) = match ended.end {
            // Or a process before this one has asked for it.
            END_CUT => (asked.map_or(Cause::Killed, |asked| asked.cause), By::Weir),
            END_CLIENT_RESET => (Cause::ClientReset, By::Client),
            END_BACKEND_RESET => (Cause::BackendReset, By::Backend),
            END_REFUSED => (Cause::ConnectFailed, By::Backend),
            _ if ended.up.flags & FLOW_BACKEND_FIRST != 0 => (Cause::Finished, By::Backend),
            _ => (Cause::Finished, By::Client),
        };
        self.account(
            shared,
            &End {
                key: &ended.key,
                up: &ended.up,
                packets_down: ended.packets_down,
                bytes_down: ended.bytes_down,
                first_byte_us: ended.first_byte_us,
                at: ended.at,
                cause,
                by,
            },
        );
    }

    /// Frames that end a TCP connection and tell both of its sides; `None` if there is nobody to tell, or it is under way.
    pub(super) fn cut(&mut self, key: &Tuple, up: &Flow, down: Option<&Flow>, cause: Cause) -> Option<Vec<Injected>> {
        let until = Instant::now() + TELLS;
        // Its address is at another node, and so may be the connection.
        let home = *self.locals.get(&key.destination().ip())?;
        match self.asked.entry(*key) {
            Entry::Occupied(_) => return None,
            Entry::Vacant(vacant) => vacant.insert(EndOrder { cause, until }),
        };
        Some(resets(key, up, down, home))
    }

    /// Whether a flow was told to end a moment ago.
    pub(super) fn is_ending(&self, key: &Tuple) -> bool {
        self.asked.contains_key(key)
    }

    /// Flows whose end has not been told in time, and why they should have ended. They are not asked again.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<(Tuple, Cause)> {
        let due = self.asked.extract_if(|_, asked| asked.until <= now);
        due.map(|(key, asked)| (key, asked.cause)).collect()
    }

    /// Whether the connection goes on at the node that its address goes to: see the program's first comment.
    pub(super) fn goes_along(&self, up: &Flow) -> bool {
        let backend = self.backends.get(up.backend).map(|backend| backend.pool.clone());
        let mut pools = self.snapshot.pools.iter();
        pools.any(|pool| {
            backend.as_deref() == Some(&*pool.config.name)
                && pool.config.balance == Balance::SourceHash
                && pool.config.kernel_mode != KernelMode::Nat
        })
    }

    /// Ends a flow of which nobody is told, or removes the entries of one that has ended.
    pub(super) fn remove(&self, maps: &Maps, shared: &Shared, key: &Tuple, seen: &Flow, cause: Cause) {
        // Before the client's: nobody would come across this one alone.
        let its = maps.other(seen).and_then(|_| maps.take(&seen.to.turned()));
        let (Some(up), down) = (maps.take_out(key, seen), its.unwrap_or_default()) else {
            return;
        };
        if up.flags & FLOW_ENDED != 0 || key.is_tcp() && is_unproven(&up) {
            return;
        }
        self.account(
            shared,
            &End {
                key,
                up: &up,
                packets_down: down.packets,
                bytes_down: down.bytes,
                first_byte_us: down.first_byte_us,
                at: up.last.max(down.last),
                cause,
                by: By::Weir,
            },
        );
    }
}
