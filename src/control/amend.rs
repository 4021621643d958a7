//! Backends that operators add and remove: by order, until the next reload or the next start.
//!
//! Who is in a pool is what the configuration and the sources name, amended ([`Amendments`]); whatever names others afterwards is amended
//! in the same way.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::model::{Backend, BackendAddress, Pool};
use crate::config::{self, Config, Node, Rules};
use crate::discovery::amend::{Amendment, Amendments};

/// What `weir members` says of those that were added.
pub const OPERATOR: &str = "operator";

/// The amendments of all pools, by name.
pub type Amended = BTreeMap<String, Amendments>;

/// What a process tells the one after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    pool: String,
    address: String,
    weight: u32,
    added: bool,
    keep: bool,
}

/// Everything that the process after this one has to know.
pub fn told(amended: &Amended) -> Vec<Told> {
    let all = amended.iter().flat_map(|(pool, amendments)| {
        amendments.iter().map(move |amendment| Told {
            pool: pool.clone(),
            address: amendment.member.address.to_string(),
            weight: amendment.member.weight,
            added: amendment.added,
            keep: amendment.keep,
        })
    });
    all.collect()
}

/// What a predecessor has told.
pub fn inherited(told: Vec<Told>) -> Amended {
    let mut amended = Amended::new();
    for told in told {
        let Ok(address) = BackendAddress::parse(&told.address) else {
            continue;
        };
        amended.entry(told.pool).or_default().inherit(Amendment {
            member: member(address, told.weight),
            added: told.added,
            keep: told.keep,
        });
    }
    amended
}

/// The pools of a configuration with what outlasts the reload that brings it.
pub fn reloaded(amended: &mut Amended, config: &Config, pools: Vec<Pool>) -> Vec<Pool> {
    amended.retain(|name, _| config.pools.iter().any(|pool| pool.policy.name == *name));
    let amend = |(ix, mut pool): (usize, Pool)| {
        let name = &pool.policy.name;
        if let Some(amendments) = amended.get_mut(name) {
            let rules = Rules::of(config, ix);
            let refuses = |address: &BackendAddress| rules.refusal(address).is_some();
            for address in amendments.end(&config.pools[ix].backends, refuses) {
                log::warn!("pool {name} cannot have {address} any more, which was added by order");
            }
            pool.backends = amendments.apply(&pool.backends);
        }
        pool
    };
    let pools = pools.into_iter().enumerate().map(amend).collect();
    amended.retain(|_, amendments| !amendments.is_empty());
    pools
}

/// The tree of a configuration with what is amended, and lines that say so.
pub fn written(amended: &Amended, mut tree: Node) -> (Node, String) {
    let mut lines = String::new();
    for (pool, amendments) in amended {
        let (added, removed): (Vec<_>, Vec<_>) = amendments.iter().partition(|amendment| amendment.added);
        for amendment in amendments.iter() {
            let what = if amendment.added { "added" } else { "removed" };
            let address = &amendment.member.address;
            lines += &format!("# By order {}: {pool}, {address}: {what}.\n", lasts(amendment.keep));
        }
        let added: Vec<&Backend> = added.iter().map(|amendment| &amendment.member).collect();
        let removed: Vec<&BackendAddress> = removed.iter().map(|amendment| &amendment.member.address).collect();
        tree = config::with_members(tree, pool, &added, &removed);
    }
    (tree, lines)
}

/// How long an order holds, in words for the operator.
pub fn lasts(keep: bool) -> &'static str {
    match keep {
        true => "until weir is restarted",
        false => "until the next reload",
    }
}

/// A backend of which no more is said than this.
pub fn member(address: BackendAddress, weight: u32) -> Backend {
    Backend {
        name: address.to_string(),
        address,
        weight,
        max_connections: None,
        backup: false,
    }
}
