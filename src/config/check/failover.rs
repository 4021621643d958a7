//! `failover`.

use std::collections::HashMap;
use std::net::SocketAddr;

use indexmap::IndexMap;

use super::{Names, binds::Bound};
use crate::config::model::*;
use crate::config::notes::{Notes, Spot};
use crate::config::raw::Section;
use crate::config::value::*;
use crate::failover::timers::{Timers, quorum_findings};

/// The failover section.
pub fn check(notes: &Notes, section: &Section, pools: &Names, bound: &mut Bound) -> Failover {
    let nodes = section.named_values::<SocketAddr>("nodes");
    let names = Names::new(nodes.iter().map(|(name, _)| name.as_str()));
    let node = section.optional_spot::<Name>("node");
    let mut addresses = HashMap::new();
    for (name, address) in &nodes {
        let Some(address) = address else { continue };
        if address.value.ip().is_unspecified() {
            notes.error(
                address,
                "other nodes cannot connect to a wildcard: write the node's own address",
            );
        }
        if let Some(first) = addresses.insert(address.value, name) {
            notes.error(
                address,
                format!("`{}` is the address of node `{first}` already", address.value),
            );
        }
    }
    if let Some(node) = &node
        && let Some(index) = names.find(notes, "node", node)
    {
        let own = nodes[index].1.clone();
        own.into_iter()
            .for_each(|own| bound.add(own.map(Bind::from), Protocol::Tcp));
    }
    let witnesses = section.list("witnesses");
    for (i, witness) in witnesses.iter().enumerate() {
        if let Some(name) = addresses.get(&witness.value) {
            notes.error(
                witness,
                format!("is node `{name}`, which votes already: name a third party"),
            );
        } else if witnesses[..i].iter().any(|other| other.value == witness.value) {
            notes.error(
                witness,
                format!("`{}` is here twice: each witness has one vote", witness.value),
            );
        }
    }
    let failover = Failover {
        node: node.map(|node| node.value.0).unwrap_or_default(),
        secret_file: section.value::<AbsolutePath>("secret_file").0,
        beat: section.value("beat"),
        dead_after: section.value("dead_after"),
        vips: vips(notes, section, &nodes, &names, pools),
        nodes: nodes
            .into_iter()
            .filter_map(|(name, address)| Some((name, address?.value)))
            .collect::<IndexMap<_, _>>(),
        witnesses: witnesses.into_iter().map(|w| w.value).collect(),
        quorum: section.optional("quorum"),
        notify: notify(notes, section),
    };
    check_failover(section, &failover);
    failover
}

/// What must hold between the values: timers and voters.
pub fn check_failover(section: &Section, failover: &Failover) {
    let timers = Timers::derive(failover.beat, failover.dead_after);
    if let Some(broken) = timers.broken().first() {
        section.error("beat", broken.to_string());
    }
    if failover.nodes.is_empty() {
        return; // what is wrong with them is said already
    }
    let key = if failover.quorum.is_some() { "quorum" } else { "nodes" };
    let (errors, advice) = quorum_findings(failover.quorum, failover.nodes.len(), failover.witnesses.len());
    errors.into_iter().for_each(|error| section.error(key, error));
    advice.into_iter().for_each(|advice| section.warn(key, advice));
    if failover.nodes.len() == 1 {
        section.warn("nodes", "a single node has no other to fail over to");
    }
}

fn vips(
    notes: &Notes,
    section: &Section,
    nodes: &[(String, Option<Spot<SocketAddr>>)],
    names: &Names,
    pools: &Names,
) -> Vec<Vip> {
    let mut seen = HashMap::new();
    let vip = |item: Section| {
        let address = item.optional_spot::<VipAddress>("address");
        if let Some(address) = &address {
            let ip = address.value.0.addr();
            if let Some(first) = seen.insert(ip, address.path.clone()) {
                notes.error(address, format!("`{ip}` is here twice, first as {first}"));
            }
            let is_it = |node: &Spot<SocketAddr>| node.value.ip() == ip;
            if let Some((name, _)) = nodes.iter().find(|(_, node)| node.as_ref().is_some_and(is_it)) {
                notes.error(
                    address,
                    format!("`{ip}` is the address of node `{name}`, which never moves: use another"),
                );
            }
        }
        let mut prefer: Vec<usize> = Vec::new();
        for name in item.list::<Name>("prefer") {
            match names.find(notes, "node", &name) {
                Some(node) if prefer.contains(&node) => notes.error(&name, format!("`{}` is here twice", name.value.0)),
                Some(node) => prefer.push(node),
                None => {}
            }
        }
        if !item.has("prefer") {
            prefer = (0..nodes.len()).collect();
        }
        Vip {
            address: address.map_or(Default::default(), |a| a.value.0),
            interface: item.value::<Interface>("interface").0,
            prefer,
            preempt: item.value("preempt"),
            preempt_delay: item.value("preempt_delay"),
            garp_refresh: item.optional("garp_refresh"),
            requires: item
                .list("requires")
                .iter()
                .filter_map(|name| pools.find(notes, "pool", name))
                .collect(),
        }
    };
    section.items("vips", "address").into_iter().map(vip).collect()
}

/// Program and arguments. One text is a path: words are never split, so that nothing has to be quoted.
fn notify(notes: &Notes, section: &Section) -> Vec<String> {
    let words = section.list::<String>("notify");
    if let Some(program) = words.first() {
        if !program.value.starts_with('/') {
            notes.error(
                program,
                format!("`{}` is not an absolute path: begin with `/`", program.value),
            );
        } else if words.len() == 1 && program.value.contains(' ') {
            let list: Vec<&str> = program.value.split_whitespace().collect();
            notes.error(
                program,
                format!(
                    "is one path, spaces included: write arguments as a list, `[{}]`",
                    list.join(", ")
                ),
            );
        }
    }
    words.into_iter().map(|word| word.value).collect()
}
