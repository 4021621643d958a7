//! What one process knows of its backends and the next one, which takes over from it, need not find out again: verdicts
//! of the probes and the operator's orders. Ejections and response times are not among it: real traffic teaches them
//! quickly, and they are about the moment.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::Pools;
use crate::api::question::BackendOrder;
use crate::health::verdict::Condition;
use crate::health::{AdminState, Reason, State};

/// What is known of one backend, for a successor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knowledge {
    /// [`Backend::identity`](crate::snapshot::Backend::identity).
    backend: u64,
    /// What the probes say, unless an order hides it.
    healthy: Option<bool>,
    /// What is said of that, and its [`Reason`].
    reason: String,
    #[serde(default)]
    reason_code: String,
    /// Draining or down by order.
    order: Option<Withdrawn>,
    /// Weight set by an operator; `None` = the configured one.
    weight: Option<u32>,
    /// That weight outlasts reloads.
    #[serde(default)]
    keep: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Withdrawn {
    Drain,
    Down,
}

impl Pools {
    /// What a successor needs to know, of every backend that differs from a new one.
    pub fn knowledge(&self) -> Vec<Knowledge> {
        let entries = self.pools.iter().flat_map(|pool| &pool.entries);
        let known = entries.map(|entry| Knowledge {
            backend: entry.backend.identity,
            healthy: match (entry.state.state(), entry.state.condition()) {
                (State::Up, _) => Some(true),
                (State::Down, Condition::Down) => Some(false),
                _ => None,
            },
            reason: entry.state.reason().text().chars().take(200).collect(),
            reason_code: entry.state.reason().reason.as_str().into(),
            order: match entry.state.ordered() {
                AdminState::Drain => Some(Withdrawn::Drain),
                AdminState::Down => Some(Withdrawn::Down),
                AdminState::Ready => None,
            },
            weight: entry.weight.map(|ordered| ordered.weight),
            keep: entry.weight.is_some_and(|ordered| ordered.keep),
        });
        known
            .filter(|k| k.healthy.is_some() || k.order.is_some() || k.weight.is_some())
            .collect()
    }

    /// Starts from what somebody else knew. What is about backends that are not configured here is of no interest.
    pub fn learn(&mut self, knowledge: Vec<Knowledge>, now: Instant) {
        for known in knowledge {
            let Some((pool, ix)) = self.find(known.backend) else {
                continue;
            };
            if let Some(healthy) = known.healthy {
                let state = &mut self.pools[pool].entries[ix].state;
                let of_word = |reason: &&Reason| reason.as_str() == known.reason_code;
                // Of another version, whose words are others.
                let unknown = &Reason::NotProbedYet;
                let reason = Reason::ALL.iter().find(of_word).unwrap_or(unknown);
                let change = state.probed(now, healthy, &reason.says(known.reason));
                self.after(pool, ix, change);
            }
            let withdrawn = known.order.map(|order| match order {
                Withdrawn::Drain => BackendOrder::Drain,
                Withdrawn::Down => BackendOrder::Down,
            });
            let weight = known.weight.map(BackendOrder::Weight);
            let entry = &self.pools[pool];
            let name = entry.entries[ix].backend.config.name.clone();
            let pool = entry.config.name.clone();
            for order in withdrawn.into_iter().chain(weight) {
                let keep = known.keep && matches!(order, BackendOrder::Weight(_));
                if let Err(error) = self.order(&pool, &name, order, keep, now) {
                    log::warn!("backend {pool}/{name}: {error}");
                }
            }
        }
    }
}
