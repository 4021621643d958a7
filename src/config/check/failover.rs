//! `failover`.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use indexmap::IndexMap;

use super::{Names, binds::Bound};
use crate::config::address::VipAddress;
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
    let mut vips = vips(notes, section, &nodes, &names, pools);
    // One node that agrees with nobody signs nothing.
    let alone = nodes.len() == 1 && !vips.is_empty() && vips.iter().all(|vip| vip.hold == Holders::All);
    groups(notes, section, &mut vips);
    for witness in &witnesses {
        let own = addresses.iter().find(|(address, _)| address.ip() == witness.value.ip());
        if let Some((_, name)) = own.filter(|(address, _)| **address != witness.value) {
            notes.error(
                witness,
                format!("is an address of node `{name}`, which votes already: name a third party"),
            );
        }
        if vips.iter().any(|vip| vip.address.addr() == witness.value.ip()) {
            notes.error(
                witness,
                format!(
                    "`{}` is a virtual address: whoever holds it would vote for itself; name a third party",
                    witness.value.ip()
                ),
            );
        }
    }
    let failover = Failover {
        node: node.map(|node| node.value.0).unwrap_or_default(),
        secret_files: secrets(notes, section, alone),
        startup_delay: section.value("startup_delay"),
        withdraw_delay: section.value("withdraw_delay"),
        paths: paths(notes, section, &nodes, &names, &mut addresses),
        track: tracks(notes, section, &vips),
        beat: section.value("beat"),
        dead_after: section.value("dead_after"),
        vips,
        nodes: nodes
            .into_iter()
            .filter_map(|(name, address)| Some((name, address?.value)))
            .collect::<IndexMap<_, _>>(),
        witnesses: witnesses.into_iter().map(|w| w.value).collect(),
        arbiter: arbiter(notes, section),
        quorum: section.optional("quorum"),
        notify: command(notes, section, "notify"),
    };
    check_failover(section, &failover);
    failover
}

/// Further beat addresses, for each of `nodes`.
fn paths<'a>(
    notes: &Notes,
    section: &Section,
    nodes: &'a [(String, Option<Spot<SocketAddr>>)],
    names: &Names,
    taken: &mut HashMap<SocketAddr, &'a String>,
) -> Vec<Vec<SocketAddr>> {
    let mut paths = vec![Vec::new(); nodes.len()];
    for (name, addresses) in section.named_lists::<SocketAddr>("paths") {
        let named = Spot {
            at: name.at,
            path: name.path.clone(),
            value: Name(name.value.clone()),
        };
        let Some(node) = names.find(notes, "node", &named) else {
            continue;
        };
        for address in addresses {
            if address.value.ip().is_unspecified() {
                notes.error(
                    &address,
                    "other nodes cannot connect to a wildcard: write the node's own address",
                );
            } else if let Some(first) = taken.insert(address.value, &nodes[node].0) {
                notes.error(
                    &address,
                    format!("`{}` is the address of node `{first}` already", address.value),
                );
            } else {
                paths[node].push(address.value);
            }
        }
    }
    paths
}

/// Puts the addresses of each group together.
fn groups(notes: &Notes, section: &Section, vips: &mut [Vip]) {
    for (name, addresses) in section.named_lists::<IpAddr>("groups") {
        let mut first: Option<usize> = None;
        for address in addresses {
            let Some(v) = vips.iter().position(|vip| vip.address.addr() == address.value) else {
                notes.error(&address, format!("`{}` is not an address of `vips`", address.value));
                continue;
            };
            if vips[v].hold == Holders::All {
                notes.error(
                    &address,
                    format!(
                        "`{}` is held by every node that serves (`hold: all`): take it out of the group",
                        address.value
                    ),
                );
                continue;
            }
            if let Some(other) = &vips[v].group {
                notes.error(&address, format!("`{}` is in group `{other}` already", address.value));
                continue;
            }
            if let Some(first) = first.map(|f| &vips[f]) {
                let rule = |vip: &Vip| (vip.prefer.clone(), vip.preempt, vip.preempt_delay);
                if rule(first) != rule(&vips[v]) {
                    notes.error(
                        &address,
                        format!(
                            "`{}` and `{}` cannot move together: give them the same prefer, preempt and preempt_delay",
                            first.address.addr(),
                            address.value
                        ),
                    );
                }
            }
            first.get_or_insert(v);
            vips[v].group = Some(name.value.clone());
        }
    }
}

/// `secret_files`, or the one `secret_file`.
fn secrets(notes: &Notes, section: &Section, alone: bool) -> Vec<PathBuf> {
    let several = section.list::<AbsolutePath>("secret_files");
    let one = section.optional_spot::<AbsolutePath>("secret_file");
    match one {
        Some(one) if !several.is_empty() => {
            notes.error(
                &one,
                "says the same as `secret_files`: keep the list, in which the first signs and all are accepted",
            );
            vec![one.value.0]
        }
        Some(one) => vec![one.value.0],
        None => {
            if !section.has("secret_file") && several.is_empty() && !alone {
                section.error("secret_file", "missing; for example `secret_file: /etc/weir/secret`");
            }
            several.into_iter().map(|path| path.value.0).collect()
        }
    }
}

fn arbiter(notes: &Notes, section: &Section) -> Option<Arbiter> {
    if !section.has("arbiter") {
        return None;
    }
    let section = section.section("arbiter");
    let strict = section.value("strict");
    if !section.has("etcd") {
        section.error(
            "etcd",
            "missing: say where it is, `etcd: {endpoints: [\"http://10.0.0.5:2379\"]}`",
        );
        return None;
    }
    let etcd = section.section("etcd");
    let servers = super::etcd::servers(notes, &etcd);
    if servers.endpoints.len() == 1 {
        etcd.warn(
            "endpoints",
            "one endpoint: while it is down and a node is missing, nobody can hold; name all members",
        );
    }
    Some(Arbiter {
        prefix: etcd.value::<KeyPrefix>("prefix").0,
        servers,
        strict,
    })
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
    // Where every node holds everything there is nothing to vote on.
    if !failover.vips.is_empty() && failover.vips.iter().all(|vip| vip.hold == Holders::All) {
        return;
    }
    let (errors, advice) = quorum_findings(
        failover.quorum,
        failover.nodes.len(),
        failover.witnesses.len(),
        failover.arbiter.is_some(),
    );
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
        let hold = item.value("hold");
        if hold == Holders::All {
            shared(notes, &item, address.as_ref());
        }
        Vip {
            address: address.map_or(Default::default(), |a| a.value.0),
            interface: item.value::<Interface>("interface").0,
            hold,
            prefer,
            preempt: item.value("preempt"),
            preempt_delay: item.value("preempt_delay"),
            garp_refresh: item.optional("garp_refresh"),
            requires: item
                .list("requires")
                .iter()
                .filter(|name| pools.find(notes, "pool", name).is_some())
                .map(|name| name.value.0.clone())
                .collect(),
            group: None,
        }
    };
    section.items("vips", "address").into_iter().map(vip).collect()
}

/// What an address that every node holds cannot have.
fn shared(notes: &Notes, item: &Section, address: Option<&Spot<VipAddress>>) {
    for key in ["prefer", "preempt", "preempt_delay", "garp_refresh"] {
        if item.has(key) {
            item.error(
                key,
                "has no meaning with `hold: all`: every node that serves holds the address, and routers are told, not neighbours; leave it out",
            );
        }
    }
    if let Some(address) = address {
        let net = address.value.0;
        if net.prefix_len() != net.max_prefix_len() {
            notes.error(
                address,
                format!(
                    "with `hold: all` the routing daemon announces the whole prefix, and this node would take all of it for its own: write `{}/{}`",
                    net.addr(),
                    net.max_prefix_len()
                ),
            );
        }
    }
}

fn tracks(notes: &Notes, section: &Section, vips: &[Vip]) -> Vec<Track> {
    let tracks = section.named("track");
    tracks.iter().filter_map(|item| track(notes, item, vips)).collect()
}

/// One thing that is watched; none = it is not said what.
fn track(notes: &Notes, item: &Section, vips: &[Vip]) -> Option<Track> {
    let given: Vec<&str> = ["tcp", "interface", "exec"]
        .into_iter()
        .filter(|key| item.has(key))
        .collect();
    match given[..] {
        [] => item.error(
            "tcp",
            "missing: say what is watched, `tcp: 10.0.0.254:22`, `interface: eth1` or `exec: [/usr/local/bin/check]`",
        ),
        [_] => {}
        [first, second, ..] => item.error(
            second,
            format!("`{first}` is here as well: one track watches one thing, so give this one a name of its own"),
        ),
    }
    let endpoint = item.optional_spot::<SocketAddr>("tcp");
    if let Some(endpoint) = &endpoint
        && vips.iter().any(|vip| vip.address.addr() == endpoint.value.ip())
    {
        let ip = endpoint.value.ip();
        notes.error(
            endpoint,
            format!("`{ip}` is a virtual address: whoever holds it would find itself; name something else"),
        );
    }
    let interface = item.optional::<Interface>("interface");
    let command = command(notes, item, "exec");
    if given == ["interface"] {
        for key in ["interval", "timeout", "rise", "fall"]
            .into_iter()
            .filter(|key| item.has(key))
        {
            item.error(
                key,
                "has a meaning for `tcp` and `exec` only, as the kernel says at once how an interface is: leave it out",
            );
        }
    }
    let (interval, timeout) = (item.value::<Duration>("interval"), item.value::<Duration>("timeout"));
    if timeout > interval {
        let key = if item.has("timeout") { "timeout" } else { "interval" };
        item.error(
            key,
            format!("the timeout ({timeout:?}) is longer than the interval ({interval:?}): one question is under way at a time"),
        );
    }
    let what = match (endpoint, interface, command.is_empty()) {
        (Some(endpoint), ..) => Tracked::Tcp(endpoint.value),
        (_, Some(Interface(name)), _) => Tracked::Interface(name),
        (.., false) => Tracked::Script(command),
        (.., true) => return None,
    };
    Some(Track {
        name: item.name().to_string(),
        what,
        interval,
        timeout,
        rise: item.value("rise"),
        fall: item.value("fall"),
        weight: item.optional("weight"),
    })
}

/// Program and arguments. One text is a path: words are never split, so that nothing has to be quoted.
fn command(notes: &Notes, section: &Section, key: &str) -> Vec<String> {
    let words = section.list::<String>(key);
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
