//! keepalived: `vrrp_instance` becomes virtual addresses, `vrrp_sync_group` a group of them, what they track `failover.track`,
//! `virtual_server` a listener and its pool.

mod track;
mod words;

use std::net::IpAddr;

use super::draft::{Draft, Section, fit};
use super::lex::Statement;
use super::time;
use words::{PROBE, REMARKS, remark};

/// Words with which a block begins.
pub const BLOCKS: &[&str] = &[
    "global_defs",
    "vrrp_instance",
    "vrrp_sync_group",
    "vrrp_script",
    "virtual_server",
    "virtual_server_group",
    "static_routes",
    "static_ipaddress",
    "static_rules",
    "vrrp_track_process",
    "track_group",
    "bfd_instance",
    "vrrp_track_file",
    "track_file",
    "track_process",
    "real_server",
    "garp_group",
    "linkbeat_interfaces",
    "interface_up_down_delays",
];

/// Blocks that become `failover.track`.
const TRACKED: [&str; 2] = ["track_script", "track_interface"];

/// Port of beats that is written, as in the documents.
const BEAT_PORT: u16 = 7400;

/// Makes listeners, pools and failover of a file.
pub fn import(file: &[Statement], draft: &mut Draft) {
    let (file, conditional): (Vec<&Statement>, Vec<&Statement>) =
        file.iter().partition(|s| !s.word(0).starts_with(['@', '$']));
    for statement in conditional {
        draft.remark(
            statement,
            "definitions and conditions are not expanded: write what holds on this node",
        );
    }
    let named = |word: &'static str| {
        file.iter()
            .copied()
            .filter(move |s| s.word(0) == word)
            .collect::<Vec<_>>()
    };
    let router_id = named("global_defs")
        .iter()
        .find_map(|s| child(s, "router_id"))
        .map(|s| fit(s.word(1)));
    let scripts = named("vrrp_script");
    failover(
        &named("vrrp_instance"),
        &named("vrrp_sync_group"),
        &scripts,
        router_id,
        draft,
    );
    let groups = named("virtual_server_group");
    for statement in &file {
        match statement.word(0) {
            "vrrp_instance" | "vrrp_sync_group" | "virtual_server_group" | "vrrp_script" => {}
            "virtual_server" => virtual_server(statement, &groups, draft),
            "global_defs" => statement.block.iter().for_each(|inner| remark(inner, draft)),
            _ => remark(statement, draft),
        }
    }
}

fn child<'s>(of: &'s Statement, word: &str) -> Option<&'s Statement> {
    of.block.iter().rfind(|inner| inner.word(0) == word)
}

// ---- addresses that move ----

fn failover(
    instances: &[&Statement],
    groups: &[&Statement],
    scripts: &[&Statement],
    router_id: Option<String>,
    draft: &mut Draft,
) {
    let Some(first) = instances.first() else {
        groups
            .iter()
            .chain(scripts)
            .for_each(|group| draft.remark(group, "there is no vrrp_instance for it"));
        return;
    };
    let mut section = Section::new(first);
    let nodes = nodes(instances, router_id, &mut section, draft);
    section.put("secret_file", first, "/etc/weir/secret");
    if instances
        .iter()
        .all(|instance| child(instance, "authentication").is_none())
    {
        draft.remark(first, SECRET);
    }
    for instance in instances {
        vips(instance, &nodes, &mut section, draft);
    }
    for group in groups {
        let members = child(group, "group")
            .map(|inner| inner.block.as_slice())
            .unwrap_or_default();
        let of = |name: &str| instances.iter().find(|instance| instance.word(1) == name);
        let mut addresses = Section::new(group);
        for member in members {
            match of(member.word(0)) {
                Some(instance) => {
                    addresses_of(instance).for_each(|line| addresses.push("all", line, bare(line.word(0))))
                }
                None => draft.remark(
                    member,
                    format!("there is no vrrp_instance `{}`", crate::config::shorten(member.word(0))),
                ),
            }
        }
        let known = |inner: &&Statement| inner.word(0) == "group" || TRACKED.contains(&inner.word(0));
        for inner in group.block.iter().filter(|inner| !known(inner)) {
            remark(inner, draft);
        }
        if addresses.has("all") {
            section.name_list("groups", &fit(group.word(1)), group, addresses);
        }
    }
    let trackers: Vec<&Statement> = instances.iter().chain(groups).copied().collect();
    track::tracks(&trackers, scripts, &mut section, draft);
    draft.root.name("", "failover", first, section);
}

const SECRET: &str = "beats are signed with a secret that all nodes share: `head -c 32 /dev/urandom | base64 > /etc/weir/secret; chmod \
                      600 /etc/weir/secret`";

/// The names of the nodes, this one first.
fn nodes(instances: &[&Statement], router_id: Option<String>, section: &mut Section, draft: &mut Draft) -> Vec<String> {
    let first = instances[0];
    let own = instances.iter().find_map(|instance| child(instance, "unicast_src_ip"));
    let mut peers: Vec<(&Statement, &str)> = Vec::new();
    for peer in instances
        .iter()
        .filter_map(|i| child(i, "unicast_peer"))
        .flat_map(|peer| &peer.block)
    {
        let address = peer.word(0);
        let is_own = own.is_some_and(|own| own.word(1) == address);
        if !is_own && peers.iter().all(|(_, known)| *known != address) {
            peers.push((peer, address));
        }
    }
    let socket = |address: &str| match address.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) => format!("[{v6}]:{BEAT_PORT}"),
        _ => format!("{address}:{BEAT_PORT}"),
    };
    let mut names: Vec<String> = Vec::new();
    let mut add = |section: &mut Section, name: String, from: &Statement, address: String| {
        if !names.contains(&name) {
            section.name_value("nodes", &name, from, address);
            names.push(name);
        }
    };
    // Every node writes the same list, so nodes that know each other's addresses are called by them.
    match own {
        Some(own) => {
            section.put("node", own, fit(own.word(1)));
            add(section, fit(own.word(1)), own, socket(own.word(1)));
        }
        None => {
            let name = router_id.unwrap_or("a".into());
            section.put("node", first, &name);
            add(section, name, first, socket("192.0.2.1"));
            let what = "nodes know each other by address: put this node's own in place of 192.0.2.1 in `failover.nodes`, the same on \
                        every node";
            draft.remark(first, what);
        }
    }
    for (from, address) in &peers {
        add(section, fit(address), from, socket(address));
    }
    if peers.is_empty() {
        add(section, "the-other".into(), first, socket("192.0.2.2"));
        draft.remark(
            first,
            "nodes know each other by address: put the other node's own in place of 192.0.2.2 in `failover.nodes`",
        );
    }
    names
}

fn addresses_of(instance: &Statement) -> impl Iterator<Item = &Statement> {
    let blocks = instance.block.iter();
    blocks
        .filter(|inner| matches!(inner.word(0), "virtual_ipaddress" | "virtual_ipaddress_excluded"))
        .flat_map(|inner| &inner.block)
}

fn bare(address: &str) -> &str {
    address.split('/').next().unwrap_or(address)
}

/// The addresses of an instance.
fn vips(instance: &Statement, nodes: &[String], section: &mut Section, draft: &mut Draft) {
    let value = |word: &str| child(instance, word).map(|line| line.word(1));
    let priority: u32 = value("priority").and_then(|text| text.parse().ok()).unwrap_or(100);
    // Keepalived's own default is 100, and who starts as MASTER is meant to be it.
    let leads = value("state") == Some("MASTER") || priority > 100;
    let mut prefer: Vec<&String> = nodes.iter().collect();
    if !leads {
        prefer.rotate_left(1);
    }
    let shown: Vec<&str> = prefer.iter().map(|name| name.as_str()).collect();
    if let Some(line) = child(instance, "priority").or(child(instance, "state")) {
        draft.remark(
            line,
            format!(
                "`prefer: [{}]` says who comes first; it has to be the same on every node",
                shown.join(", ")
            ),
        );
    }
    for line in addresses_of(instance) {
        let mut vip = Section::new(line);
        let address = line.word(0);
        // Without a length it is the address alone there.
        let whole = if address.contains(':') { "/128" } else { "/32" };
        vip.put(
            "address",
            line,
            if address.contains('/') {
                address.to_string()
            } else {
                format!("{address}{whole}")
            },
        );
        let after = |word: &str| line.words.iter().position(|w| w == word).map(|at| line.word(at + 1));
        if let Some(interface) = after("dev").or(value("interface")) {
            vip.put("interface", line, interface);
        }
        prefer.iter().for_each(|name| vip.push("prefer", line, name.as_str()));
        if let Some(nopreempt) = child(instance, "nopreempt") {
            vip.put("preempt", nopreempt, "false");
        }
        if let Some(delay) = child(instance, "preempt_delay") {
            match time::keepalived(delay.word(1)) {
                Some(time) => vip.put("preempt_delay", delay, time::text(time)),
                None => draft.remark(delay, "is no number of seconds"),
            }
        }
        if let Some(refresh) = child(instance, "garp_master_refresh")
            && let Some(time) = time::keepalived(refresh.word(1))
        {
            vip.put("garp_refresh", refresh, time::text_or_off(time));
        }
        section.push_section("vips", line, vip);
    }
    for inner in &instance.block {
        match inner.word(0) {
            "interface"
            | "priority"
            | "nopreempt"
            | "preempt_delay"
            | "preempt"
            | "unicast_src_ip"
            | "unicast_peer"
            | "virtual_ipaddress"
            | "virtual_ipaddress_excluded"
            | "garp_master_refresh" => {}
            word if TRACKED.contains(&word) => {}
            "authentication" => draft.remark(inner, SECRET),
            word if word.starts_with('@') => {
                draft.remark(inner, "conditions are not expanded: write what holds on this node");
            }
            _ => remark(inner, draft),
        }
    }
}

// ---- servers ----

/// Addresses of a group, or `IP PORT` of the statement itself.
fn binds<'s>(server: &'s Statement, groups: &[&'s Statement], draft: &mut Draft) -> Vec<(&'s Statement, String)> {
    let fwmark = "packets are not chosen by a firewall mark: write the addresses in `bind`";
    match server.word(1) {
        "fwmark" => {
            draft.remark(server, format!("{fwmark}; it is left out"));
            Vec::new()
        }
        "group" => {
            let Some(group) = groups.iter().find(|group| group.word(1) == server.word(2)) else {
                draft.remark(
                    server,
                    format!(
                        "there is no virtual_server_group `{}`",
                        crate::config::shorten(server.word(2))
                    ),
                );
                return Vec::new();
            };
            let mut binds = Vec::new();
            for line in &group.block {
                match line.word(0) {
                    "fwmark" => draft.remark(line, fwmark),
                    address => binds.extend(range(address).into_iter().map(|ip| (line, socket(&ip, line.word(1))))),
                }
            }
            binds
        }
        address => vec![(server, socket(address, server.word(2)))],
    }
}

fn socket(address: &str, port: &str) -> String {
    match address.contains(':') {
        true => format!("[{address}]:{port}"),
        false => format!("{address}:{port}"),
    }
}

/// `192.168.200.3-10`, `2001:db8::2-9` (hexadecimal): the last part counts up.
fn range(text: &str) -> Vec<String> {
    let Some((first, last)) = text.split_once('-') else {
        return vec![text.to_string()];
    };
    let (radix, dot) = if first.contains(':') { (16, ':') } else { (10, '.') };
    let parsed = first.rsplit_once(dot).and_then(|(head, tail)| {
        let (from, to) = (
            u32::from_str_radix(tail, radix).ok()?,
            u32::from_str_radix(last, radix).ok()?,
        );
        (from <= to && to - from < 256).then_some((head, from, to))
    });
    match parsed {
        Some((head, from, to)) if radix == 16 => (from..=to).map(|n| format!("{head}:{n:x}")).collect(),
        Some((head, from, to)) => (from..=to).map(|n| format!("{head}.{n}")).collect(),
        None => vec![text.to_string()],
    }
}

fn virtual_server(server: &Statement, groups: &[&Statement], draft: &mut Draft) {
    let binds = binds(server, groups, draft);
    if binds.is_empty() {
        return;
    }
    let wanted = match server.word(1) {
        "group" => server.word(2).to_string(),
        address => format!("{address}-{}", server.word(2)),
    };
    let protocol = child(server, "protocol").map_or("TCP", |line| line.word(1));
    if protocol == "SCTP" {
        return draft.remark(server, "SCTP is not balanced: it is left out");
    }
    let udp = protocol == "UDP";
    let mut listener = Section::new(server);
    binds.iter().for_each(|(from, bind)| listener.push("bind", from, bind));
    if udp {
        listener.put("protocol", server, "udp");
    }
    let mut pool = Section::new(server);
    // A server without a port has that of the first address.
    let (_, first) = &binds[0];
    let around = Around {
        udp,
        persistent: child(server, "persistence_timeout").is_some(),
        virtualhost: child(server, "virtualhost").map(|line| line.word(1).to_string()),
        port: first.rsplit(':').next().unwrap_or_default().to_string(),
    };
    for line in &server.block {
        pool_line(line, &around, &mut pool, draft);
    }
    let name = draft.pool_name(&wanted);
    listener.put("pool", server, &name);
    let listener_name = draft.listener_name(&wanted);
    draft.listener(listener_name, server, listener);
    draft.pool(name, server, pool);
}

/// What matters to each line of a virtual server.
struct Around {
    udp: bool,
    /// Clients are kept with their servers, whatever the algorithm.
    persistent: bool,
    port: String,
    /// For probes in HTTP.
    virtualhost: Option<String>,
}

/// One line of a virtual server.
fn pool_line(line: &Statement, around: &Around, pool: &mut Section, draft: &mut Draft) {
    let value = line.word(1);
    match line.word(0) {
        "protocol" => {}
        "delay_loop" => match time::keepalived(value) {
            Some(time) => pool.put("health.interval", line, time::text(time)),
            None => draft.remark(line, "is no number of seconds"),
        },
        "lb_algo" | "lvs_sched" => {
            let (balance, why) = match value {
                "rr" | "wrr" => ("round_robin", ""),
                "lc" | "wlc" | "sed" | "nq" => ("least_conn", ""),
                "sh" | "mh" => ("source_hash", ""),
                "dh" | "lblc" | "lblcr" => ("source_hash", "goes by the destination; the nearest is `source_hash`"),
                _ => ("least_conn", "is not known; the nearest is `least_conn`"),
            };
            if !why.is_empty() {
                draft.remark(line, format!("`{}` {why}", crate::config::shorten(value)));
            }
            if !around.persistent {
                pool.put("balance", line, balance);
            }
        }
        "lb_kind" | "lvs_method" if value == "NAT" => {
            draft.remark(
                line,
                "the servers see weir's address and answer to it: `send_proxy` tells them the client's",
            );
        }
        "lb_kind" | "lvs_method" => {
            draft.remark(
                line,
                format!(
                    "`{}`: weir stands in both directions: the servers answer to it, not past it",
                    crate::config::shorten(value)
                ),
            );
        }
        "persistence_timeout" => {
            pool.put("balance", line, "source_hash");
            draft.remark(
                line,
                "`balance: source_hash`: a client stays with its server as long as that is there, without a time",
            );
        }
        "persistence_granularity" => {
            if let Some(bits) = granularity(value) {
                let key = if value.contains('.') { "prefix_v4" } else { "prefix_v6" };
                pool.put(&format!("source_hash.{key}"), line, bits.to_string());
            } else {
                draft.remark(line, "is neither a netmask nor a prefix length");
            }
        }
        "virtualhost" => {}
        "sorry_server" => {
            let mut backend = Section::new(line);
            backend.put("address", line, server_address(line, around));
            backend.put("backup", line, "true");
            pool.push_section("backends", line, backend);
        }
        "real_server" => real_server(line, around, pool, draft),
        "retry" | "delay_before_retry" | "connect_timeout" => check_line(line, pool, draft),
        _ => remark(line, draft),
    }
}

/// A netmask, or a number of bits.
fn granularity(text: &str) -> Option<u32> {
    match text.parse::<std::net::Ipv4Addr>() {
        Ok(mask) => {
            let bits = u32::from(mask);
            (bits.leading_ones() + bits.trailing_zeros() == 32).then_some(bits.leading_ones())
        }
        Err(_) => text.parse().ok(),
    }
}

/// `IP PORT`; port 0, or none, is that of the virtual server.
fn server_address(line: &Statement, around: &Around) -> String {
    match line.word(2) {
        "" | "0" => socket(line.word(1), &around.port),
        port => socket(line.word(1), port),
    }
}

fn real_server(server: &Statement, around: &Around, pool: &mut Section, draft: &mut Draft) {
    let mut backend = Section::new(server);
    backend.put("address", server, server_address(server, around));
    for line in &server.block {
        match line.word(0) {
            "weight" => backend.put("weight", line, line.word(1)),
            "uthreshold" => backend.put("max_connections", line, line.word(1)),
            "TCP_CHECK" => check(line, "tcp", pool, draft),
            "HTTP_GET" | "SSL_GET" => {
                if line.word(0) == "SSL_GET" {
                    pool.put("health.tls", line, "true");
                }
                pool.put("health.http.path", line, "/");
                if let Some(host) = &around.virtualhost {
                    pool.put("health.http.host", line, host);
                }
                let urls: Vec<&Statement> = line.block.iter().filter(|inner| inner.word(0) == "url").collect();
                urls.iter().skip(1).for_each(|url| draft.remark(url, "a probe asks for one path: that of the first `url`"));
                for inner in urls.first().iter().flat_map(|url| &url.block) {
                    match inner.word(0) {
                        "path" => pool.put("health.http.path", inner, inner.word(1)),
                        "virtualhost" => pool.put("health.http.host", inner, inner.word(1)),
                        "status_code" => {
                            let statuses = inner.words[1..].iter().map(String::as_str);
                            pool.put_list("health.http.expect", inner, statuses);
                        }
                        _ => draft.remark(inner, "of an answer only the status counts: `health.http.expect`"),
                    }
                }
                check(line, "tcp", pool, draft);
            }
            "SMTP_CHECK" => {
                pool.put("health.expect", line, "220");
                check(line, "tcp", pool, draft);
            }
            "DNS_CHECK" if around.udp => {
                // A question for the name servers of the root.
                pool.put("health.send", line, "hex:0001 0100 0001 0000 0000 0000 00 0002 0001");
                check(line, "udp", pool, draft);
            }
            "UDP_CHECK" | "PING_CHECK" | "MISC_CHECK" | "BFD_CHECK" | "FILE_CHECK" | "DNS_CHECK" => draft.remark(
                line,
                match around.udp {
                    true => "probes send a datagram and expect an answer: `health: {type: udp, send: ..}`, or `type: tcp` with a `port`",
                    false => "probes connect, send and expect: the port is connected to",
                },
            ),
            "inhibit_on_failure" => remark(line, draft),
            _ => check_line(line, pool, draft),
        }
    }
    pool.push_section("backends", server, backend);
}

/// A block that says how a server is probed.
fn check(block: &Statement, kind: &str, pool: &mut Section, draft: &mut Draft) {
    pool.put("health.type", block, kind);
    for line in &block.block {
        check_line(line, pool, draft);
    }
}

fn check_line(line: &Statement, pool: &mut Section, draft: &mut Draft) {
    let value = line.word(1);
    match line.word(0) {
        "connect_port" => pool.put("health.port", line, value),
        "connect_timeout" => match time::keepalived(value) {
            Some(time) => pool.put("health.timeout", line, time::text(time)),
            None => draft.remark(line, "is no number of seconds"),
        },
        "retry" | "nb_get_retry" => match value.parse::<u32>() {
            Ok(retries) => pool.put("health.fall", line, retries.saturating_add(1).to_string()),
            Err(_) => draft.remark(line, "is no number"),
        },
        "url" => {}
        "delay_before_retry" | "warmup" | "inhibit_on_failure" => remark(line, draft),
        word if word.starts_with("notify_") || REMARKS.iter().any(|(row, _)| *row == word) => remark(line, draft),
        _ => draft.remark(line, PROBE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_masks() {
        for (text, first, count) in [
            ("10.0.0.1", "10.0.0.1", 1),
            ("192.168.200.3-10", "192.168.200.3", 8),
            ("ae00::2-9", "ae00::2", 8),
            ("ae00::e-11", "ae00::e", 4),
            ("10.0.0.5-3", "10.0.0.5-3", 1),
            ("x-y", "x-y", 1),
        ] {
            let addresses = range(text);
            assert_eq!((addresses[0].as_str(), addresses.len()), (first, count), "{text}");
        }
        for (text, bits) in [
            ("255.255.255.0", Some(24)),
            ("255.0.255.0", None),
            ("64", Some(64)),
            ("x", None),
        ] {
            assert_eq!(granularity(text), bits, "{text}");
        }
    }
}
