//! From what a file says to what it means; the only place that refuses input.
//!
//! Every rule reports and goes on, so one run shows all errors. A [`Config`] made beside errors holds defaults in their place and is
//! thrown away by the caller.

mod binds;
pub mod client_address;
mod etcd;
mod failover;
mod kernel;
mod listener;
mod pool;

pub use kernel::{POOLS_MAX as KERNEL_POOLS_MAX, SOURCES_MAX as KERNEL_SOURCES_MAX};

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::meant::suggestion;
use super::model::*;
use super::notes::{Notes, Spot};
use super::raw::Section;
use super::value::*;
use super::yaml::Node;

pub use pool::backends;

/// Checks a whole file.
pub fn check(notes: &Notes, tree: &Node) -> Config {
    let root = Section::root(notes, tree);
    let listener_sections = root.named("listeners");
    let pool_sections = root.named("pools");
    let names = Names::new(pool_sections.iter().map(Section::name));
    let admin = root.value_spot::<SocketPath>("admin");
    let metrics = root.optional_spot::<std::net::SocketAddr>("metrics");

    let mut bound = binds::Bound::default();
    bound.add(admin.clone().map(|path| Bind::Unix(path.0)), Protocol::Tcp);
    if let Some(metrics) = metrics.clone() {
        bound.add(metrics.map(Bind::from), Protocol::Tcp);
    }
    let listeners: Vec<_> = listener_sections
        .iter()
        .map(|section| listener::check(notes, section, &names, &mut bound))
        .collect();
    let mut users = vec![Vec::new(); pool_sections.len()];
    for (listener, pools) in &listeners {
        for &pool in pools {
            users[pool].push(listener);
        }
    }
    let has_etcd = root.has("etcd") || root.has("failover") && root.section("failover").has("arbiter");
    let pools: Vec<Pool> = pool_sections
        .iter()
        .zip(&users)
        .map(|(section, users)| pool::check(notes, section, users, has_etcd))
        .collect();
    let failover = root
        .switchable("failover")
        .map(|section| failover::check(notes, &section, &names, &mut bound));
    if failover.is_none() {
        root.require("listeners");
    }
    if failover.is_none() || root.has("listeners") {
        root.require("pools");
    }
    bound.report(notes);
    let etcd = root.switchable("etcd").map(|section| etcd::servers(notes, &section));

    let kernel = root.section("kernel");
    kernel::check(&root, &listeners, &listener_sections, &pools, &pool_sections);
    let log = root.section("log");
    let limits = root.section("limits");
    Config {
        workers: root.optional("workers"),
        admin: admin.value.0,
        metrics: metrics.map(|m| m.value),
        log: Log {
            level: log.value("level"),
            access: log.value("access"),
            format: log.value("format"),
            interim: log.optional("interim"),
        },
        limits: ProcessLimits {
            connections: limits.optional("connections"),
            udp_sessions: limits.optional("udp_sessions"),
        },
        shutdown_grace: root.value("shutdown_grace"),
        listeners: listeners
            .into_iter()
            .map(|(listener, _)| Listener {
                virtual_addresses: virtual_addresses(&listener, failover.as_ref()),
                ..listener
            })
            .collect(),
        pools,
        etcd,
        failover,
        kernel: Kernel {
            interfaces: kernel
                .list::<Interface>("interfaces")
                .into_iter()
                .map(|i| i.value.0)
                .collect(),
            flows: kernel.optional("flows"),
            restart_grace: kernel.value("restart_grace"),
        },
        written: tree.clone().into(),
    }
}

fn virtual_addresses(listener: &Listener, failover: Option<&Failover>) -> Vec<IpAddr> {
    let vips = failover.iter().flat_map(|failover| &failover.vips);
    let vips: Vec<IpAddr> = vips.map(|vip| vip.address.addr()).collect();
    let bound = listener.bind.iter().filter_map(|bind| match bind {
        Bind::Ip { ip, .. } => Some(*ip),
        Bind::Unix(_) => None,
    });
    bound.filter(|ip| vips.contains(ip)).collect()
}

impl From<std::net::SocketAddr> for Bind {
    fn from(address: std::net::SocketAddr) -> Bind {
        Bind::Ip {
            ip: address.ip(),
            scope: match address {
                std::net::SocketAddr::V6(v6) => v6.scope_id(),
                std::net::SocketAddr::V4(_) => 0,
            },
            ports: address.port()..=address.port(),
            device: None,
        }
    }
}

/// Names that others refer to, and their indices.
struct Names<'a>(HashMap<&'a str, usize>);

impl<'a> Names<'a> {
    fn new(names: impl Iterator<Item = &'a str>) -> Self {
        Names(names.enumerate().map(|(i, name)| (name, i)).collect())
    }

    /// The index of a name; says so if there is no such one. `what` is what is named.
    fn find(&self, notes: &Notes, what: &str, name: &Spot<Name>) -> Option<usize> {
        let found = self.0.get(name.value.0.as_str()).copied();
        // An empty list of names has been refused already.
        if found.is_none() && !self.0.is_empty() && !notes.full() {
            let mut known: Vec<&str> = self.0.keys().copied().collect();
            known.sort_unstable();
            let remedy = match suggestion(&name.value.0, known.iter().copied()) {
                Some(word) => format!("did you mean `{word}`?"),
                None if known.len() <= 8 => format!("defined: {}", known.join(", ")),
                None => format!("it is none of the {} that are defined", known.len()),
            };
            notes.error(name, format!("there is no {what} `{}`; {remedy}", name.value.0));
        }
        found
    }
}

/// Prefixes in their canonical form; a prefix with bits set behind its length is doubtful.
fn prefixes(notes: &Notes, section: &Section, key: &str) -> Vec<IpNet> {
    let trunc = |spot: Spot<IpNet>| {
        let net = spot.value.trunc();
        if net != spot.value {
            notes.warn(
                &spot,
                format!(
                    "`{}` is taken as `{net}`: write that, or `{}` for this address alone",
                    spot.value,
                    spot.value.addr()
                ),
            );
        }
        net
    };
    section.list(key).into_iter().map(trunc).collect()
}

/// `keepalive` of a listener or of `connect`.
fn keepalive(section: &Section) -> Option<Keepalive> {
    let keepalive = section.switchable("keepalive")?;
    Some(Keepalive {
        idle: keepalive.value("idle"),
        interval: keepalive.value("interval"),
        probes: keepalive.value("probes"),
        user_timeout: keepalive.optional("user_timeout"),
    })
}
