//! What has changed since people were told last: pure.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::event::Event;
use super::shown::{ArbiterStatus, Status};
use crate::failover::NodeIx;
use crate::failover::beat::Rejected;

/// How long a refused signature is shown.
const SECRET_MEMORY: Duration = Duration::from_secs(5);

/// Refused beats are told of so often at most.
const REFUSAL_PAUSE: Duration = Duration::from_secs(1);

/// What people have been told, so that only changes are told.
#[derive(Debug)]
pub struct Told {
    /// Of each node, whether it is heard, and how its configuration differs.
    nodes: Vec<(bool, Option<String>)>,
    witnesses: HashMap<SocketAddr, bool>,
    arbiter: Option<ArbiterStatus>,
}

impl Told {
    /// Nothing: nodes are taken to be silent, voters to answer.
    pub fn new(nodes: usize) -> Told {
        Told {
            nodes: vec![(false, None); nodes],
            witnesses: HashMap::new(),
            arbiter: None,
        }
    }

    /// There are other nodes now.
    pub fn forget_nodes(&mut self, nodes: usize) {
        self.nodes = vec![(false, None); nodes];
    }

    /// One event for each change.
    pub fn news(&mut self, me: NodeIx, status: &Status) -> Vec<Event> {
        let mut news = Vec::new();
        for (n, node) in status.nodes.iter().enumerate().filter(|(n, _)| *n != me) {
            let now = (node.alive, node.mismatch.clone());
            let before = std::mem::replace(&mut self.nodes[n], now.clone());
            let name = || node.name.clone();
            if before.0 != now.0 {
                news.push(Event::Node {
                    name: name(),
                    alive: now.0,
                });
            }
            if let (true, Some(what)) = (before.1 != now.1, now.1) {
                news.push(Event::Mismatch { name: name(), what });
            }
        }
        for witness in &status.witnesses {
            let Some(up) = witness.up else { continue };
            let address = witness.address;
            if self.witnesses.insert(address, up).unwrap_or(true) != up {
                news.push(Event::Witness { address, up });
            }
        }
        if let Some(arbiter) = &status.arbiter {
            self.arbiter_news(arbiter, &mut news);
        }
        news
    }

    fn arbiter_news(&mut self, arbiter: &ArbiterStatus, news: &mut Vec<Event>) {
        let before = self.arbiter.replace(arbiter.clone()).unwrap_or(ArbiterStatus {
            up: Some(true),
            problem: None,
            votes: Vec::new(),
        });
        if arbiter.up.is_some() && arbiter.up != before.up {
            let problem = arbiter.problem.clone();
            news.push(Event::Arbiter { problem });
        }
        let missing = |from: &[String], what: &[String], ours| {
            let votes = what.iter().filter(|unit| !from.contains(unit)).cloned();
            votes.map(|unit| Event::Vote { unit, ours }).collect::<Vec<_>>()
        };
        news.extend(missing(&before.votes, &arbiter.votes, true));
        news.extend(missing(&arbiter.votes, &before.votes, false));
    }
}

/// Beats that were refused.
#[derive(Debug)]
pub struct Refusals {
    counts: [u64; Rejected::ALL.len()],
    told: Option<Instant>,
    /// When each node's signature was refused last.
    signatures: Vec<Option<Instant>>,
}

impl Refusals {
    /// No beat refused yet.
    pub fn new(nodes: usize) -> Refusals {
        Refusals {
            counts: [0; Rejected::ALL.len()],
            told: None,
            signatures: vec![None; nodes],
        }
    }

    /// There are other nodes now.
    pub fn forget_nodes(&mut self, nodes: usize) {
        self.signatures = vec![None; nodes];
    }

    /// One more, from an address of this node if it is one of theirs; whether people are to be told.
    pub fn count(&mut self, now: Instant, why: Rejected, node: Option<NodeIx>) -> bool {
        let slot = Rejected::ALL.iter().position(|r| *r == why).unwrap_or(0);
        self.counts[slot] += 1;
        if let (Rejected::Signature, Some(node)) = (why, node) {
            self.signatures[node] = Some(now);
        }
        let quiet = self
            .told
            .is_some_and(|at| now.saturating_duration_since(at) < REFUSAL_PAUSE);
        if !quiet {
            self.told = Some(now);
        }
        !quiet
    }

    /// Whether this node's signature was refused lately.
    pub fn signs_otherwise(&self, now: Instant, node: NodeIx) -> bool {
        self.signatures[node].is_some_and(|at| now.saturating_duration_since(at) < SECRET_MEMORY)
    }

    /// How many for each reason.
    pub fn by_reason(&self) -> Vec<(&'static str, u64)> {
        let reasons = Rejected::ALL.iter().zip(self.counts);
        reasons.map(|(why, count)| (why.word(), count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::shown::{NodeStatus, WitnessStatus};
    use super::*;

    fn status(alive: bool, mismatch: Option<&str>, witness: Option<bool>, arbiter: Option<(bool, &[&str])>) -> Status {
        let node = |name: &str, alive, mismatch: Option<&str>| NodeStatus {
            name: name.into(),
            alive,
            last_beat_ms: None,
            mismatch: mismatch.map(str::to_owned),
        };
        Status {
            nodes: vec![node("me", true, None), node("b", alive, mismatch)],
            witnesses: vec![WitnessStatus {
                address: "10.0.0.9:22".parse().unwrap(),
                up: witness,
            }],
            arbiter: arbiter.map(|(up, votes)| ArbiterStatus {
                up: Some(up),
                problem: (!up).then(|| "no answer".into()),
                votes: votes.iter().map(ToString::to_string).collect(),
            }),
            ..Status::default()
        }
    }

    /// One line a change, and none for what stays.
    #[test]
    fn every_change_is_told_once() {
        let mut told = Told::new(2);
        let rows: [(Status, &[&str]); 8] = [
            (status(false, None, None, None), &[]),
            (status(true, None, Some(true), Some((true, &[]))), &["node b is alive"]),
            (status(true, None, Some(true), Some((true, &[]))), &[]),
            (
                status(true, Some("beat differs"), Some(false), Some((true, &["v"]))),
                &[
                    "node b is configured otherwise: beat differs",
                    "witness 10.0.0.9:22 does not answer",
                    "the arbiter's vote on v is ours",
                ],
            ),
            (
                status(true, Some("beat differs"), None, Some((true, &["v", "w"]))),
                &["the arbiter's vote on w is ours"],
            ),
            (
                status(true, Some("prefer differs"), Some(false), Some((false, &["w"]))),
                &[
                    "node b is configured otherwise: prefer differs",
                    "the arbiter does not answer: no answer",
                    "the arbiter's vote on v is ours no longer",
                ],
            ),
            (status(true, None, Some(true), None), &["witness 10.0.0.9:22 answers"]),
            (
                status(false, None, Some(true), Some((true, &["w"]))),
                &["node b is not heard any more", "the arbiter answers"],
            ),
        ];
        for (n, (status, lines)) in rows.into_iter().enumerate() {
            let said: Vec<String> = told.news(0, &status).iter().map(Event::to_string).collect();
            assert_eq!(said, lines, "row {n}");
        }
    }

    #[test]
    fn refusals_are_all_counted_and_told_once_a_second() {
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        let mut refusals = Refusals::new(2);
        assert!(refusals.count(at(0), Rejected::Signature, Some(1)));
        assert!(!refusals.count(at(999), Rejected::Signature, None));
        assert!(refusals.count(at(1_000), Rejected::Signature, None));
        let total: u64 = refusals.by_reason().iter().map(|(_, n)| n).sum();
        assert_eq!(total, 3);
        assert!(refusals.signs_otherwise(at(4_999), 1) && !refusals.signs_otherwise(at(5_000), 1));
        assert!(!refusals.signs_otherwise(at(0), 0));
        refusals.forget_nodes(1);
        assert!(!refusals.signs_otherwise(at(1), 0));
    }
}
