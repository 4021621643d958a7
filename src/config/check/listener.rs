//! `listeners.NAME`.

use std::collections::HashMap;

use ipnet::IpNet;

use super::{Names, binds::Bound, prefixes};
use crate::config::http::RouteName;
use crate::config::model::*;
use crate::config::notes::Notes;
use crate::config::raw::Section;
use crate::config::value::*;

/// The listener, and the indices of the pools that have to suit it.
pub fn check(notes: &Notes, section: &Section, pools: &Names, bound: &mut Bound) -> (Listener, Vec<usize>) {
    // `None`: given and wrong, so nothing is concluded from it.
    let stated = section.optional("protocol");
    let protocol = stated.unwrap_or(Protocol::Tcp);
    let binds = section.list::<Bind>("bind");
    for bind in &binds {
        if protocol == Protocol::Udp && matches!(bind.value, Bind::Unix(_)) {
            notes.error(bind, "a unix socket carries streams: use it with `protocol: tcp`");
        }
        bound.add(bind.clone(), protocol);
    }
    let pool = section
        .optional_spot::<Name>("pool")
        .and_then(|name| pools.find(notes, "pool", &name));
    if !section.has("pool") && !section.has("routes") {
        section.error("pool", "missing; for example `pool: web`");
    }
    match stated {
        Some(Protocol::Tcp) => section.only_for(protocol, "this listener is tcp"),
        Some(Protocol::Udp) => section.only_for(protocol, "this listener is udp"),
        None => {}
    }

    let limits = section.section("limits");
    let timeouts = section.section("timeouts");
    let udp = section.section("udp");
    let listener = Listener {
        name: section.name().to_string(),
        protocol,
        engine: section.value("engine"),
        bind: binds.into_iter().map(|bind| bind.value).collect(),
        // Known when `failover` has been read.
        virtual_addresses: Vec::new(),
        pool,
        routes: routes(notes, section, pools),
        allow: prefixes(notes, section, "allow"),
        deny: prefixes(notes, section, "deny"),
        limits: ListenerLimits {
            connections: limits.optional("connections"),
            per_source: limits.optional("per_source"),
            new_per_source: limits.optional("new_per_source"),
            exempt: prefixes(notes, &limits, "exempt"),
            download: limits.optional("download").map(|Bandwidth(bytes)| bytes),
            upload: limits.optional("upload").map(|Bandwidth(bytes)| bytes),
        },
        timeouts: Timeouts {
            idle: timeouts.optional("idle"),
            half_close: timeouts.optional("half_close"),
            max_age: timeouts.optional("max_age"),
            hello: timeouts.value("hello"),
        },
        keepalive: super::keepalive(section),
        backlog: section.optional("backlog"),
        accept_proxy: accept_proxy(notes, section),
        udp: UdpPolicy {
            idle: udp.value("idle"),
            requests: udp.optional("requests"),
            replies: udp.optional("replies"),
        },
    };
    sources(section, &limits, &listener);
    if timeouts.has("hello") && !section.has("routes") {
        timeouts.warn("hello", "has no effect without `routes`: no hello is read");
    }
    let suited = stated.map_or(Vec::new(), |_| listener.pools().collect());
    (listener, suited)
}

/// Server names, each once, and their pools.
fn routes(notes: &Notes, section: &Section, pools: &Names) -> Vec<(String, usize)> {
    let mut written: HashMap<String, String> = HashMap::new();
    let mut routes = Vec::new();
    for (name, pool) in section.values_by::<RouteName, Name>("routes") {
        let pool = pool.and_then(|pool| pools.find(notes, "pool", &pool));
        // A name that is wrong has been spoken of.
        let Ok(RouteName(normal)) = name.value.parse() else {
            continue;
        };
        if let Some(other) = written.insert(normal.clone(), name.value.clone()) {
            notes.error(&name, format!("is the same name as `{other}`: keep one of them"));
        }
        routes.extend(pool.map(|pool| (normal, pool)));
    }
    routes
}

fn accept_proxy(notes: &Notes, section: &Section) -> Vec<IpNet> {
    let Some(proxy) = section.switchable("accept_proxy") else {
        return Vec::new();
    };
    let from = prefixes(notes, &proxy, "from");
    if from.iter().any(|net| net.prefix_len() == 0) {
        proxy.warn(
            "from",
            "trusts everybody: any client can claim any source address; name your proxies only",
        );
    }
    from
}

/// Rules by source address: they need one, and must be able to have an effect.
fn sources(section: &Section, limits: &Section, listener: &Listener) {
    let unix_only = !listener.bind.is_empty() && listener.bind.iter().all(|bind| matches!(bind, Bind::Unix(_)));
    for (section, key) in [
        (section, "allow"),
        (section, "deny"),
        (limits, "per_source"),
        (limits, "new_per_source"),
    ] {
        if unix_only && section.has(key) {
            section.error(
                key,
                "clients of a unix socket have no source address: leave it out, or bind an IP address",
            );
        }
    }
    if limits.has("exempt") && !limits.has("per_source") && !limits.has("new_per_source") {
        limits.warn("exempt", "has no effect without `per_source` or `new_per_source`");
    }
    if let (Some(all), Some(one)) = (listener.limits.connections, listener.limits.per_source)
        && one > all
    {
        limits.warn(
            "per_source",
            format!("has no effect: the listener's own limit of {all} is reached first"),
        );
    }
    let denied = |net: &IpNet| listener.deny.iter().any(|deny| deny.contains(net));
    if !listener.allow.is_empty() && listener.allow.iter().all(denied) {
        section.error(
            "allow",
            "everything in it is denied by `deny`, which wins: nobody could connect",
        );
    }
}
