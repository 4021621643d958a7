//! What `engine: kernel` asks of a listener and its pool: whatever needs a socket is refused.

use std::net::IpAddr;

use crate::config::model::*;
use crate::config::raw::Section;

/// Pools that the kernel engine serves at most.
pub const POOLS_MAX: usize = 256;

/// Local addresses that a pool of the kernel engine states at most.
pub const SOURCES_MAX: usize = 8;

/// The remedy that always helps.
const REMEDY: &str = "leave it out, or write `engine: proxy`";

/// Listeners with the indices of their pools, and pools, each with the section that it comes from.
pub fn check(
    root: &Section,
    listeners: &[(Listener, Vec<usize>)],
    listener_sections: &[Section],
    pools: &[Pool],
    pool_sections: &[Section],
) {
    let carried: Vec<_> = std::iter::zip(listeners, listener_sections)
        .filter(|((listener, _), _)| listener.engine == Engine::Kernel)
        .collect();
    if carried.is_empty() {
        if root.has("kernel") {
            root.warn("kernel", "has no effect: no listener has `engine: kernel`");
        }
        for section in pool_sections.iter().filter(|section| section.has("kernel")) {
            section.warn("kernel", "has no effect: no listener has `engine: kernel`");
        }
        return;
    }
    for ((listener, _), section) in &carried {
        of_listener(listener, section);
    }
    let mut served = 0;
    for (ix, (pool, section)) in std::iter::zip(pools, pool_sections).enumerate() {
        let users = listeners
            .iter()
            .filter(|(_, pools)| pools.contains(&ix))
            .map(|(listener, _)| listener);
        let (users, proxied): (Vec<&Listener>, Vec<&Listener>) =
            users.partition(|listener| listener.engine == Engine::Kernel);
        if users.is_empty() {
            continue;
        }
        served += 1;
        of_pool(pool, section, &users);
        if proxied.is_empty() {
            of_sockets(pool, section);
        }
    }
    if served > POOLS_MAX {
        root.error(
            "pools",
            format!("{served} of them are used with `engine: kernel`, which serves {POOLS_MAX} at most: write `engine: proxy` for some"),
        );
    }
    if root.section("log").has("interim") {
        root.section("log")
            .warn("interim", "listeners with `engine: kernel` write no interim records");
    }
}

fn of_listener(listener: &Listener, section: &Section) {
    for bind in &listener.bind {
        let wrong = match bind {
            Bind::Unix(_) => Some("a unix socket has no packets"),
            Bind::Ip { ports, .. } if *ports.start() == 0 => Some("port 0 asks a socket for a port, and there is none"),
            Bind::Ip { ip, .. } if ip.is_loopback() => Some("packets of the loopback interface are not seen"),
            Bind::Ip { scope, .. } if *scope != 0 => Some("link-local addresses are not translated"),
            Bind::Ip {
                device: Some(device), ..
            } => {
                let name = &device.name;
                let message = format!(
                    "`engine: kernel` is limited to interfaces as a whole: leave out `%{name}` and write `kernel: {{interfaces: [{name}]}}`, which holds for all of its listeners, or `engine: proxy`"
                );
                section.error("bind", message);
                None
            }
            Bind::Ip { .. } => None,
        };
        if let Some(wrong) = wrong {
            section.error(
                "bind",
                format!("{wrong} by `engine: kernel`: write another address, or `engine: proxy`"),
            );
        }
    }
    let refuse = |section: &Section, keys: &[&str]| {
        for key in keys.iter().filter(|key| section.has(key)) {
            section.error(key, format!("`engine: kernel` does not have it: {REMEDY}"));
        }
    };
    refuse(section, &["routes", "accept_proxy", "keepalive", "backlog"]);
    refuse(&section.section("limits"), &["download", "upload"]);
    refuse(&section.section("udp"), &["requests", "replies"]);
}

fn of_pool(pool: &Pool, section: &Section, users: &[&Listener]) {
    let policy = &pool.policy;
    let mut families = users.iter().flat_map(|l| &l.bind).filter_map(|bind| match bind {
        Bind::Ip { ip, .. } => Some(ip.is_ipv4()),
        Bind::Unix(_) => None,
    });
    let family = families.next();
    if families.any(|other| Some(other) != family) {
        section.error(
            "backends",
            "listeners of both IPv4 and IPv6 addresses use this pool, and `engine: kernel` does not translate between them: give each family a listener and a pool",
        );
    }
    for backend in &pool.backends {
        let name = &backend.name;
        let ip = match &backend.address {
            BackendAddress::Ip(address) => address.ip(),
            BackendAddress::SamePort(ip) => *ip,
            BackendAddress::Unix(_) => {
                let message =
                    format!("`{name}` is a unix socket, which has no packets: write an IP address, or `engine: proxy`");
                section.error("backends", message);
                continue;
            }
        };
        if family.is_some_and(|family| family != ip.is_ipv4()) {
            let message = format!(
                "`{name}` is of another family than the listener's addresses, and `engine: kernel` does not translate between them: write an address of the same family, or `engine: proxy`"
            );
            section.error("backends", message);
        }
        if ip.is_loopback() || matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()) {
            let message = format!(
                "`{name}` cannot be reached by `engine: kernel`, which sends through Ethernet interfaces: write an address of another host, or `engine: proxy`"
            );
            section.error("backends", message);
        }
    }
    if policy.send_proxy != SendProxy::Off {
        section.error(
            "send_proxy",
            format!("`engine: kernel` adds no bytes to a stream: {REMEDY}"),
        );
    }
    if policy.balance == Balance::LeastTime && policy.kernel_mode == KernelMode::Dsr {
        section.warn(
            "balance",
            "no answers are seen in `mode: dsr`, so that `least_time` goes by counts alone, as `least_conn` does",
        );
    }
    if policy.kernel_mode != KernelMode::Nat && policy.source_address.is_some() {
        section.error("source_address", "has a meaning in `mode: nat` only: leave it out");
    }
    if policy.kernel_mode != KernelMode::Nat && !policy.kernel_sources.is_empty() {
        section
            .section("kernel")
            .error("source_addresses", "has a meaning in `mode: nat` only: leave it out");
    }
    if policy.kernel_mode == KernelMode::Dsr
        && users.iter().any(|listener| {
            let own = |backend: &Backend| match &backend.address {
                BackendAddress::Ip(address) => listener
                    .bind
                    .iter()
                    .any(|bind| matches!(bind, Bind::Ip { ports, .. } if *ports != (address.port()..=address.port()))),
                _ => false,
            };
            pool.backends.iter().any(own)
        })
    {
        section.error(
            "backends",
            "packets keep their port in `mode: dsr`, and a backend has another one than the listener: write the listener's, or leave the port out",
        );
    }
}

/// What a pool says of connections that nobody makes, where no listener of the proxy shares it.
fn of_sockets(pool: &Pool, section: &Section) {
    let connect = section.section("connect");
    for key in ["attempts", "keepalive", "mark", "dscp"]
        .into_iter()
        .filter(|key| connect.has(key))
    {
        connect.error(
            key,
            format!("`engine: kernel` makes no connections; a client that tries again gets another backend: {REMEDY}"),
        );
    }
    if pool.policy.queue.is_some() {
        section.warn(
            "queue",
            "has no effect: while backends are full, clients of `engine: kernel` are refused, and do not wait",
        );
    }
}
