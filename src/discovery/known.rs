//! What is known from one source.
//!
//! # Invariants
//! 1. Only an answer changes the members; an error never does.
//! 2. An answer without members after one with members counts as an error, unless `allow_empty` says otherwise.
//! 3. The same members in another order are no change.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use log::Level;

use crate::config::model::{Backend, BackendAddress};

/// Addresses in one line of the log.
const NAMED_MAX: usize = 5;
/// A source that fails in another way each time is spoken of again after so long.
const SAID_AGAIN: Duration = Duration::from_secs(60);

/// What a source says.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// These are the members.
    Members(Vec<Backend>),
    /// These are the members, as far as it is known: somebody who knows more did not answer; a sentence.
    Partly(Vec<Backend>, String),
    /// There are no members; why, in a sentence.
    Nobody(String),
    /// Nothing has changed.
    Same,
    /// It cannot be asked, or its answer cannot be used; a sentence.
    Failed(String),
}

/// What comes of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The pool has to be told.
    pub changed: bool,
    /// For the log; follows the name of pool and source.
    pub say: Option<(Level, String)>,
}

/// An error that lasts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Failing {
    since: Instant,
    error: String,
    said: Instant,
}

/// What one source has said of its members, and whether it fails.
#[derive(Debug, Clone, Default)]
pub struct Known {
    members: Vec<Backend>,
    /// When the source last said that these are they.
    confirmed: Option<Instant>,
    failing: Option<Failing>,
    failures: u64,
}

impl Known {
    /// From somebody who asked before, so long ago.
    pub fn inherited(members: Vec<Backend>, age: Duration, now: Instant) -> Known {
        Known {
            members,
            confirmed: Some(now.checked_sub(age).unwrap_or(now)),
            ..Known::default()
        }
    }

    /// Takes note of what the source says.
    pub fn hear(&mut self, heard: Heard, allow_empty: bool, now: Instant) -> Outcome {
        match heard {
            Heard::Failed(error) => self.fail(error, now),
            Heard::Nobody(why) if !allow_empty => self.fail(why, now),
            Heard::Nobody(_) => self.hear(Heard::Members(Vec::new()), allow_empty, now),
            Heard::Partly(members, error) => {
                self.confirmed = Some(now);
                let change = difference(&self.members, &members);
                let count = members.len();
                if change.is_some() {
                    self.members = members;
                }
                let failed = self.fail(error, now);
                match change {
                    None => failed,
                    Some(change) => {
                        let error = failed.say.map_or(String::new(), |(_, text)| format!("; {text}"));
                        Outcome {
                            changed: true,
                            say: Some((Level::Info, format!("{change}, now {count}{error}"))),
                        }
                    }
                }
            }
            Heard::Members(members) if members.is_empty() && !self.members.is_empty() && !allow_empty => {
                self.fail("the answer has no members, and `allow_empty` is not set".into(), now)
            }
            Heard::Members(members) => {
                let first = self.confirmed.replace(now).is_none();
                let recovered = self.recover(now);
                let change = difference(&self.members, &members);
                if let Some(change) = change {
                    let count = members.len();
                    let recovered = recovered.map_or(String::new(), |after| format!("; {after}"));
                    self.members = members;
                    return Outcome {
                        changed: true,
                        say: Some((Level::Info, format!("{change}, now {count}{recovered}"))),
                    };
                }
                let say = match recovered {
                    Some(after) => Some((Level::Info, after)),
                    None if first => Some((Level::Info, "no members yet".into())),
                    None => None,
                };
                Outcome { changed: first, say }
            }
            Heard::Same => {
                self.confirmed = Some(now);
                let say = self.recover(now).map(|after| (Level::Info, after));
                Outcome { changed: false, say }
            }
        }
    }

    fn recover(&mut self, now: Instant) -> Option<String> {
        let failing = self.failing.take()?;
        let lasted = now.saturating_duration_since(failing.since).as_secs();
        Some(format!("it answers again after {lasted} s"))
    }

    fn fail(&mut self, error: String, now: Instant) -> Outcome {
        self.failures += 1;
        let before = self.failing.take();
        let said_again = |f: &Failing| f.error != error && now.saturating_duration_since(f.said) >= SAID_AGAIN;
        let say = before.as_ref().is_none_or(said_again).then(|| {
            let stay = match self.members.len() {
                0 => "no members are known".to_string(),
                1 => "its last member stays".to_string(),
                n => format!("its last {n} members stay"),
            };
            (Level::Warn, format!("{error}; {stay}"))
        });
        self.failing = Some(Failing {
            since: before.as_ref().map_or(now, |f| f.since),
            said: before.filter(|_| say.is_none()).map_or(now, |f| f.said),
            error,
        });
        Outcome { changed: false, say }
    }

    /// The members that hold.
    pub fn members(&self) -> &[Backend] {
        &self.members
    }

    /// Whether the source has ever said who is there.
    pub fn has_answered(&self) -> bool {
        self.confirmed.is_some()
    }

    /// Whether the source has said anything, be it that it cannot.
    pub fn has_spoken(&self) -> bool {
        self.confirmed.is_some() || self.failing.is_some()
    }

    /// How old the knowledge is.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        self.confirmed.map(|at| now.saturating_duration_since(at))
    }

    /// The error that lasts, and for how long.
    pub fn error(&self, now: Instant) -> Option<(&str, Duration)> {
        let failing = self.failing.as_ref()?;
        Some((&failing.error, now.saturating_duration_since(failing.since)))
    }

    /// Failures so far.
    pub fn failures(&self) -> u64 {
        self.failures
    }
}

/// What is different, in words.
fn difference(before: &[Backend], after: &[Backend]) -> Option<String> {
    let by_address = |list: &[Backend]| -> BTreeMap<BackendAddress, Backend> {
        list.iter().map(|b| (b.address.clone(), b.clone())).collect()
    };
    let (old, new) = (by_address(before), by_address(after));
    let came = new.keys().filter(|address| !old.contains_key(address));
    let went = old.keys().filter(|address| !new.contains_key(address));
    let changed = new
        .iter()
        .filter(|(address, backend)| old.get(address).is_some_and(|b| b != *backend));
    let mut parts = Vec::new();
    let mut part = |word: &str, addresses: Vec<String>| {
        let more = match addresses.len().saturating_sub(NAMED_MAX) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        if !addresses.is_empty() {
            let named = &addresses[..addresses.len().min(NAMED_MAX)];
            parts.push(format!("{word} {}{more}", named.join(" ")));
        }
    };
    part("came", came.map(ToString::to_string).collect());
    part("went", went.map(ToString::to_string).collect());
    part("changed", changed.map(|(address, _)| address.to_string()).collect());
    (!parts.is_empty()).then(|| parts.join(", "))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// `1 2*3 4b`: the addresses 10.0.0.1, 10.0.0.2 of weight 3 and 10.0.0.4 as a backup.
    pub fn list(text: &str) -> Vec<Backend> {
        let one = |word: &str| {
            let backup = word.ends_with('b');
            let (number, weight) = word
                .trim_end_matches('b')
                .split_once('*')
                .unwrap_or((word.trim_end_matches('b'), "1"));
            let address: std::net::SocketAddr = format!("10.0.0.{number}:80").parse().unwrap();
            Backend {
                name: address.to_string(),
                address: BackendAddress::Ip(address),
                weight: weight.parse().unwrap(),
                max_connections: None,
                backup,
            }
        };
        text.split_whitespace().map(one).collect()
    }

    /// A source through its life: at which second it says what, who the members are then, and what is logged.
    ///
    /// Seen to fail: an error that clears the members; an empty answer that counts; order that matters.
    #[test]
    fn the_last_good_answer_holds() {
        use Heard::{Failed, Members, Same};
        let f = |text: &str| Failed(text.into());
        #[rustfmt::skip]
        let part = |members: &str, error: &str| Heard::Partly(list(members), error.into());
        let nobody = || Heard::Nobody("NXDOMAIN".into());
        let rows: [(bool, Vec<(u64, Heard, &str, bool, &str)>); 5] = [
            (
                false,
                vec![
                    (0, nobody(), "", false, "WARN NXDOMAIN; no members are known"),
                    (
                        1,
                        part("1", "AAAA: SERVFAIL"),
                        "1",
                        true,
                        "INFO came 10.0.0.1:80, now 1",
                    ),
                    (2, part("1", "AAAA: SERVFAIL"), "1", false, ""),
                    (
                        61,
                        part("2", "AAAA: SERVFAIL"),
                        "2",
                        true,
                        "INFO came 10.0.0.2:80, went 10.0.0.1:80, now 1",
                    ),
                    (62, nobody(), "2", false, "WARN NXDOMAIN; its last member stays"),
                    (63, Members(list("2")), "2", false, "INFO it answers again after 63 s"),
                ],
            ),
            (
                true,
                vec![
                    (0, Members(list("1")), "1", true, "INFO came 10.0.0.1:80, now 1"),
                    (1, nobody(), "", true, "INFO went 10.0.0.1:80, now 0"),
                ],
            ),
            (
                false,
                vec![
                    (
                        0,
                        f("no such file"),
                        "",
                        false,
                        "WARN no such file; no members are known",
                    ),
                    (1, f("no such file"), "", false, ""),
                    (2, Members(list("")), "", true, "INFO it answers again after 2 s"),
                    (
                        3,
                        Members(list("1 2")),
                        "1 2",
                        true,
                        "INFO came 10.0.0.1:80 10.0.0.2:80, now 2",
                    ),
                    (4, Members(list("2 1")), "1 2", false, ""),
                    (
                        5,
                        Members(list("")),
                        "1 2",
                        false,
                        "WARN the answer has no members, and `allow_empty` is not set; its last 2 members stay",
                    ),
                    (6, f("timed out"), "1 2", false, ""),
                    (66, f("refused"), "1 2", false, "WARN refused; its last 2 members stay"),
                    (67, f("timed out"), "1 2", false, ""),
                    (70, Same, "1 2", false, "INFO it answers again after 65 s"),
                    (
                        71,
                        Members(list("2*3 3b")),
                        "2*3 3b",
                        true,
                        "INFO came 10.0.0.3:80, went 10.0.0.1:80, changed 10.0.0.2:80, now 2",
                    ),
                ],
            ),
            (
                true,
                vec![
                    (0, Members(list("1")), "1", true, "INFO came 10.0.0.1:80, now 1"),
                    (1, f("timed out"), "1", false, "WARN timed out; its last member stays"),
                    (
                        2,
                        Members(list("")),
                        "",
                        true,
                        "INFO went 10.0.0.1:80, now 0; it answers again after 1 s",
                    ),
                ],
            ),
            (
                false,
                vec![
                    (0, Members(list("")), "", true, "INFO no members yet"),
                    (1, Members(list("")), "", false, ""),
                    (
                        2,
                        Members(list("1 2 3 4 5 6 7")),
                        "1 2 3 4 5 6 7",
                        true,
                        "INFO came 10.0.0.1:80 10.0.0.2:80 10.0.0.3:80 10.0.0.4:80 10.0.0.5:80 and 2 more, now 7",
                    ),
                ],
            ),
        ];
        let start = Instant::now();
        for (allow_empty, steps) in rows {
            let mut known = Known::default();
            for (second, heard, members, changed, said) in steps {
                let now = start + Duration::from_secs(second);
                let outcome = known.hear(heard.clone(), allow_empty, now);
                assert_eq!(known.members(), list(members), "{second}: {heard:?}");
                assert_eq!(outcome.changed, changed, "{second}: {heard:?}");
                let words = outcome
                    .say
                    .map_or(String::new(), |(level, text)| format!("{level} {text}"));
                assert_eq!(words, said, "{second}: {heard:?}");
                let failed = matches!(heard, Failed(_) | Heard::Partly(..) | Heard::Nobody(_) if !allow_empty || heard == f("timed out"))
                    || words.contains("allow_empty");
                assert_eq!(known.error(now).is_some(), failed, "{second}: {heard:?}");
            }
        }
    }

    #[test]
    fn age_is_that_of_the_last_word() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut known = Known::inherited(list("1"), Duration::from_secs(5), at(10));
        assert_eq!(known.age(at(11)), Some(Duration::from_secs(6)));
        known.hear(Heard::Failed("x".into()), false, at(12));
        assert_eq!(known.age(at(13)), Some(Duration::from_secs(8)));
        assert_eq!(known.error(at(13)), Some(("x", Duration::from_secs(1))));
        known.hear(Heard::Same, false, at(14));
        assert_eq!((known.age(at(14)), known.failures()), (Some(Duration::ZERO), 1));
        assert!(!Known::default().has_spoken());
    }
}
