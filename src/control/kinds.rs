//! That `weir api` describes the events that are told, kind by kind and field by field.

use std::collections::BTreeSet;

use log::Level;
use serde_json::Value;

use super::discovery;
use super::election::Event;
use super::events::{End, Lost, Telling};
use super::life::Life;
use super::publication::pools::News;
use crate::api::event::{COMMON, KINDS};
use crate::failover::beat::Rejected;
use crate::failover::words::State;

fn fields(event: &impl serde::Serialize) -> Value {
    serde_json::to_value(event).unwrap()
}

fn text() -> String {
    "x".into()
}

/// One of each; a variant that is missing here is found missing below.
fn told() -> Vec<Value> {
    let of_pools = [
        News::BackendState {
            pool: text(),
            backend: text(),
            address: text(),
            state: "up",
            was: "down",
            reason: text(),
            reason_code: "order",
        },
        News::BackendWeight {
            pool: text(),
            backend: text(),
            address: text(),
            weight: 1,
        },
        News::ProbesOverdue {
            backends: vec![text()],
            more: 1,
            given_up: true,
            running: 1,
            running_max: 2,
        },
        News::Pool {
            pool: text(),
            backends: 1,
            trying_all: false,
            was_trying: false,
        },
        News::Queue {
            pool: text(),
            waiting: 1,
        },
    ];
    let of_sources = discovery::News {
        pool: text(),
        source: text(),
        members: 1,
        error: None,
        level: Level::Info,
        text: text(),
    };
    let of_election = [
        Event::Transition {
            vip: text(),
            interface: text(),
            from: State::Standby,
            to: State::Active,
            reason: text(),
            holder: None,
        },
        Event::Node {
            name: text(),
            alive: true,
        },
        Event::Mismatch {
            name: text(),
            what: text(),
        },
        Event::Witness {
            address: "10.0.0.1:22".parse().unwrap(),
            up: true,
        },
        Event::Arbiter { problem: None },
        Event::Vote {
            unit: text(),
            ours: true,
        },
        Event::Track {
            name: text(),
            what: text(),
            problem: Some(text()),
        },
        Event::Keeper { problem: None },
        Event::Rejected {
            why: Rejected::Signature,
            from: text(),
        },
        Event::Note { text: text() },
    ];
    let of_process = [
        Life::Reload { generation: 1 },
        Life::ReloadRefused { reason: text() },
        Life::Upgrade { program: text() },
        Life::UpgradeFailed { reason: text() },
        Life::Upgraded {
            pid: 1,
            connections: 1,
            grace_ms: 1,
        },
        Life::Stopping {
            connections: 1,
            grace_ms: 1,
        },
    ];
    assert!(of_election.iter().all(|event| event.level() <= Level::Info));
    let mut told: Vec<Value> = of_pools.iter().map(fields).collect();
    told.push(fields(&of_sources));
    told.extend(of_election.iter().map(fields));
    told.extend(of_process.iter().map(fields));
    told.extend([fields(&Lost { count: 1 }), fields(&End { successor: None })]);
    told
}

#[test]
fn what_is_told_is_what_is_described() {
    let told = told();
    let mut seen = BTreeSet::new();
    for event in &told {
        let kind = event["event"].as_str().unwrap();
        let described = KINDS.iter().find(|(name, ..)| *name == kind);
        let (_, _, fields) = described.unwrap_or_else(|| panic!("{kind} is not described"));
        let keys: Vec<&String> = event
            .as_object()
            .unwrap()
            .keys()
            .filter(|key| *key != "event")
            .collect();
        assert_eq!(keys, fields.iter().map(|(name, _)| *name).collect::<Vec<_>>(), "{kind}");
        for (name, is) in *fields {
            assert!(is.fits(&event[*name]), "{kind}: {name} is {}", event[*name]);
            assert!(COMMON.iter().all(|(common, _)| common != name), "{kind}: {name}");
        }
        seen.insert(kind);
    }
    let described: BTreeSet<&str> = KINDS.iter().map(|(name, ..)| *name).collect();
    assert_eq!(seen, described);
    let guide = include_str!("../../docs/observability.md");
    for kind in described {
        assert!(
            guide.contains(&format!("`{kind}`")),
            "docs/observability.md does not name {kind}"
        );
    }
}
