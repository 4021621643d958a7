//! What the event log says of backends and pools. Pure: who logs it, and when, is [`Pools::tell`](super::Pools::tell).

use log::Level;

use crate::health::{Change, Eligibility, Serving, State};
use crate::snapshot::Backend;

/// A line of the log.
pub type News = (Level, String);

/// Names in one line.
const NAMES_MAX: usize = 5;

/// What a backend is called: its pool, its name and its address.
pub fn name(backend: &Backend) -> String {
    let Backend { pool, config, .. } = backend;
    let address = config.address.to_string();
    if config.name == address {
        format!("{pool}/{address}")
    } else {
        format!("{pool}/{} ({address})", config.name)
    }
}

/// A backend's state has changed.
pub fn changed(backend: &Backend, change: &Change) -> News {
    let Change { from, to, reason } = change;
    let level = match to {
        State::Down | State::Ejected => Level::Warn,
        _ => Level::Info,
    };
    (
        level,
        format!("backend {} is {to} (was {from}): {reason}", name(backend)),
    )
}

/// Probes are overdue: given up as `lost`, or waiting for their turn.
pub fn overdue<'a>(
    lost: bool,
    backends: impl ExactSizeIterator<Item = &'a Backend>,
    running: usize,
    running_max: usize,
) -> Option<News> {
    let more = match backends.len() {
        0 => return None,
        count if count > NAMES_MAX => format!(" and {} more", count - NAMES_MAX),
        _ => String::new(),
    };
    let names: Vec<String> = backends.take(NAMES_MAX).map(name).collect();
    let names = names.join(", ");
    let text = match lost {
        true => format!("probes have not ended in time and start anew: {names}{more}"),
        false => format!("probes are late by three intervals, {running} of {running_max} at a time run: {names}{more}"),
    };
    Some((Level::Warn, text))
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
        match (before.eligible, now.eligible) {
            _ if now.desperate && !before.desperate => Some((
                Level::Error,
                format!("pool {pool}: every backend is down; trying all of them (all_down: try_all)"),
            )),
            (1.., 0) => Some((
                Level::Error,
                format!("pool {pool}: no backend is left; new connections are refused"),
            )),
            (0, 1) if !now.desperate => Some((Level::Info, format!("pool {pool}: 1 backend takes new work"))),
            (0, n @ 1..) if !now.desperate => Some((Level::Info, format!("pool {pool}: {n} backends take new work"))),
            _ if before.desperate && !now.desperate => {
                Some((Level::Info, format!("pool {pool}: serving from healthy backends again")))
            }
            _ => None,
        }
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
                let said = said.map_or(String::new(), |(level, text)| format!("{level} {text}"));
                assert_eq!(said, *wanted, "{all_down:?} {backends:?}");
            }
        }
    }
}
