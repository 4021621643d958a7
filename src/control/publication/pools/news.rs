//! What the event log says of backends and pools. Pure: who logs it, and when, is [`Pools::tell`](super::Pools::tell).

use std::fmt;
use std::time::{Duration, Instant};

use log::Level;
use serde::Serialize;

use crate::control::events::Telling;
use crate::health::{Change, Eligibility, Serving, State};
use crate::snapshot::Backend;

/// Names in one line.
const NAMES_MAX: usize = 5;

/// Something that happens to a backend or a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum News {
    /// A backend's state has changed.
    BackendState {
        /// Name of its pool.
        pool: String,
        /// Its name within the pool.
        backend: String,
        /// Its address, as configured.
        address: String,
        /// The word of its state.
        state: &'static str,
        /// The word of the one before.
        was: &'static str,
        /// What put it into that state, in words for people.
        reason: String,
        /// Why: the word of a [`Reason`](crate::health::Reason).
        reason_code: &'static str,
    },
    /// A backend has another weight by order.
    BackendWeight {
        /// Name of its pool.
        pool: String,
        /// Its name within the pool.
        backend: String,
        /// Its address, as configured.
        address: String,
        /// The weight in force from now on.
        weight: u32,
    },
    /// Probes have not ended in time.
    ProbesOverdue {
        /// Some of their backends.
        backends: Vec<String>,
        /// How many there are besides.
        more: usize,
        /// They are made anew; else they wait for their turn.
        given_up: bool,
        /// Number of probes under way.
        running: usize,
        /// Number of probes allowed at a time.
        running_max: usize,
    },
    /// A pool has lost its last backend, or has one again.
    Pool {
        /// Name of the pool.
        pool: String,
        /// How many take new work.
        backends: usize,
        /// None is up, and all are tried.
        trying_all: bool,
        /// So it was before.
        #[serde(skip)]
        was_trying: bool,
    },
    /// Connections of a pool begin to wait for a place at a backend, or none has waited for a while.
    Queue {
        /// Name of the pool.
        pool: String,
        /// Connections waiting for a place; 0 = none has waited for ten seconds.
        waiting: u32,
    },
}

impl Telling for News {
    fn level(&self) -> Level {
        match self {
            News::BackendState { state, .. } if [State::Down, State::Ejected].map(State::as_str).contains(state) => {
                Level::Warn
            }
            News::ProbesOverdue { .. } | News::Queue { waiting: 1.., .. } => Level::Warn,
            News::Pool { backends: 0, .. } | News::Pool { trying_all: true, .. } => Level::Error,
            _ => Level::Info,
        }
    }
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            News::BackendState {
                pool,
                backend,
                address,
                state,
                was,
                reason,
                reason_code: _,
            } => write!(
                f,
                "backend {} is {state} (was {was}): {reason}",
                called(pool, backend, address)
            ),
            News::BackendWeight {
                pool, backend, weight, ..
            } => write!(f, "backend {pool}/{backend}: weight {weight} by order"),
            News::ProbesOverdue {
                backends,
                more,
                given_up,
                running,
                running_max,
            } => {
                match given_up {
                    true => f.write_str("probes have not ended in time and start anew: ")?,
                    false => write!(
                        f,
                        "probes are late by three intervals, {running} of {running_max} at a time run: "
                    )?,
                }
                f.write_str(&backends.join(", "))?;
                match more {
                    0 => Ok(()),
                    more => write!(f, " and {more} more"),
                }
            }
            News::Pool {
                pool,
                backends,
                trying_all,
                was_trying,
            } => match (trying_all, was_trying, backends) {
                (true, ..) => write!(
                    f,
                    "pool {pool}: every backend is down; trying all of them (all_down: try_all)"
                ),
                (_, _, 0) => write!(f, "pool {pool}: no backend is left; new connections are refused"),
                (_, true, _) => write!(f, "pool {pool}: serving from healthy backends again"),
                (_, _, 1) => write!(f, "pool {pool}: 1 backend takes new work"),
                (_, _, n) => write!(f, "pool {pool}: {n} backends take new work"),
            },
            News::Queue { pool, waiting: 0 } => write!(f, "pool {pool}: no connection waits any more"),
            News::Queue { pool, waiting: 1 } => write!(f, "pool {pool}: every backend is full: 1 connection waits"),
            News::Queue { pool, waiting } => {
                write!(f, "pool {pool}: every backend is full: {waiting} connections wait")
            }
        }
    }
}

/// What a backend is called: its pool, its name and its address.
pub fn name(backend: &Backend) -> String {
    called(&backend.pool, &backend.config.name, &backend.config.address.to_string())
}

fn called(pool: &str, name: &str, address: &str) -> String {
    match name == address {
        true => format!("{pool}/{address}"),
        false => format!("{pool}/{name} ({address})"),
    }
}

/// A backend's state has changed.
pub fn changed(backend: &Backend, change: &Change) -> News {
    News::BackendState {
        pool: backend.pool.to_string(),
        backend: backend.config.name.clone(),
        address: backend.config.address.to_string(),
        state: change.to.as_str(),
        was: change.from.as_str(),
        reason: change.reason.to_string(),
        reason_code: change.reason.reason.as_str(),
    }
}

/// Probes are overdue: given up as `lost`, or waiting for their turn.
pub fn overdue<'a>(
    lost: bool,
    backends: impl ExactSizeIterator<Item = &'a Backend>,
    running: usize,
    running_max: usize,
) -> Option<News> {
    let more = backends.len().saturating_sub(NAMES_MAX);
    let backends: Vec<String> = backends.take(NAMES_MAX).map(name).collect();
    (!backends.is_empty()).then_some(News::ProbesOverdue {
        backends,
        more,
        given_up: lost,
        running,
        running_max,
    })
}

/// What was last said of a pool's queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Crowd {
    said: bool,
    empty_since: Option<Instant>,
}

impl Crowd {
    /// A queue that has been empty for so long is not spoken of as one any more.
    const CALM: Duration = Duration::from_secs(10);

    /// Takes note of how many wait: once when some begin to, and once when nobody has for a while.
    pub fn note(&mut self, pool: &str, waiting: u32, now: Instant) -> Option<News> {
        if waiting > 0 {
            self.empty_since = None;
        }
        let calm = match (self.said, waiting) {
            (false, 0) => return None,
            (false, _) => false,
            (true, 0) => now.saturating_duration_since(*self.empty_since.get_or_insert(now)) >= Crowd::CALM,
            (true, _) => return None,
        };
        if self.said && !calm {
            return None;
        }
        *self = Crowd {
            said: !calm,
            empty_since: None,
        };
        let pool = pool.to_string();
        Some(News::Queue { pool, waiting })
    }
}

/// What was last said of a pool's supply of backends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Supply {
    eligible: usize,
    desperate: bool,
}

impl Supply {
    /// Takes note of who serves now; loud when a pool has lost its last backend, and when it has one again.
    pub fn note(&mut self, pool: &str, now: &Eligibility) -> Option<News> {
        let now = Supply {
            eligible: now.count(),
            desperate: now.serving == Serving::All,
        };
        let before = std::mem::replace(self, now);
        let lost = before.eligible > 0 && now.eligible == 0;
        let found = before.eligible == 0 && now.eligible > 0;
        (lost || found || before.desperate != now.desperate).then(|| News::Pool {
            pool: pool.to_string(),
            backends: now.eligible,
            trying_all: now.desperate,
            was_trying: before.desperate,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::Shares;
    use crate::config::model::AllDown;
    use crate::health::{Candidate, Standing};

    /// A pool through its life: up (u) and down (d) backends, and what is said. Meant to notice: said in every state, not
    /// with the change.
    #[test]
    fn the_last_backend_and_the_first() {
        #[rustfmt::skip]
        let rows: [(AllDown, &[(&str, &str)]); 2] = [
            (AllDown::Refuse, &[
                ("dd", ""),
                ("ud", "INFO pool web: 1 backend takes new work"),
                ("uu", ""),
                ("du", ""),
                ("dd", "ERROR pool web: no backend is left; new connections are refused"),
                ("dd", ""),
                ("uu", "INFO pool web: 2 backends take new work"),
                ("", "ERROR pool web: no backend is left; new connections are refused"),
            ]),
            (AllDown::TryAll, &[
                ("uu", "INFO pool web: 2 backends take new work"),
                ("dd", "ERROR pool web: every backend is down; trying all of them (all_down: try_all)"),
                ("d", ""),
                ("ud", "INFO pool web: serving from healthy backends again"),
                ("", "ERROR pool web: no backend is left; new connections are refused"),
                ("d", "ERROR pool web: every backend is down; trying all of them (all_down: try_all)"),
                ("", "ERROR pool web: no backend is left; new connections are refused"),
            ]),
        ];
        for (all_down, steps) in rows {
            let mut supply = Supply::default();
            for (backends, wanted) in steps {
                let candidate = |letter| Candidate {
                    standing: if letter == 'u' {
                        Standing::Ready
                    } else {
                        Standing::Unhealthy
                    },
                    weight: 1,
                    backup: false,
                    share: Shares::WHOLE,
                };
                let candidates: Vec<Candidate> = backends.chars().map(candidate).collect();
                let said = supply.note("web", &Eligibility::new(&candidates, all_down));
                let said = said.map_or(String::new(), |news| format!("{} {news}", news.level()));
                assert_eq!(said, *wanted, "{all_down:?} {backends:?}");
            }
        }
    }

    #[test]
    fn a_queue_is_spoken_of_when_it_begins_and_when_it_is_over() {
        let (mut crowd, start) = (Crowd::default(), Instant::now());
        // Second, how many wait, what is said.
        for (at, waiting, expected) in [
            (0, 0, ""),
            (1, 1, "WARN pool web: every backend is full: 1 connection waits"),
            (2, 7, ""),
            (3, 0, ""),
            (12, 0, ""),
            (12, 2, ""),
            (13, 0, ""),
            (22, 0, ""),
            (23, 0, "INFO pool web: no connection waits any more"),
            (24, 0, ""),
            (90, 0, ""),
            (91, 2, "WARN pool web: every backend is full: 2 connections wait"),
        ] {
            let said = crowd.note("web", waiting, start + Duration::from_secs(at));
            let said = said.map_or(String::new(), |news| format!("{} {news}", news.level()));
            assert_eq!(said, expected, "at {at}");
        }
    }
}
