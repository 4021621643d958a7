//! What stands in the way of the kernel engine on this host. [`advice`] is pure; [`Host::read`] is the rim.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::Path;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::ready;
use crate::config::Diagnostic;
use crate::config::model::{Bind, Config, Engine, KernelMode, Listener, Pool};
use crate::kernel::helper;
use crate::kernel::ports;
use crate::sys::{ethtool, netlink};

/// The first kernel that the program loads on, and the first with TCX.
const KERNEL_MIN: (u32, u32) = (5, 15);
const KERNEL_TCX: (u32, u32) = (6, 6);

/// What is known of a host; `None` = cannot be told.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Host {
    /// Version of the kernel.
    kernel: Option<(u32, u32)>,
    /// Capabilities that the engine needs and whoever asks has not.
    missing: Vec<String>,
    /// Whether there are the clsact discipline and its BPF classifier.
    clsact: Option<bool>,
    /// Whether programs are compiled.
    jit: Option<bool>,
    /// Of IPv4, of IPv6.
    forwarding: [Option<bool>; 2],
    /// Ports that sockets choose for themselves, and what they leave out of these.
    local_ports: Option<RangeInclusive<u16>>,
    reserved_ports: Vec<RangeInclusive<u16>>,
    interfaces: Vec<Interface>,
    /// With their interfaces.
    addresses: Vec<(IpAddr, String)>,
    routes: Vec<Route>,
}

/// An interface.
#[derive(Debug, Clone, Default, PartialEq)]
struct Interface {
    name: String,
    ethernet: bool,
    /// Packets whose way back leads elsewhere are dropped by the host.
    strict: bool,
    /// Packets are merged in a way that cannot be undone.
    lro: bool,
}

/// A route of the main table.
#[derive(Debug, Clone, PartialEq)]
struct Route {
    to: IpNet,
    by: String,
    metric: u32,
}

impl Host {
    fn route(&self, to: IpAddr) -> Option<&Route> {
        let leading = self.routes.iter().filter(|route| route.to.contains(&to));
        leading.max_by_key(|route| (route.to.prefix_len(), std::cmp::Reverse(route.metric)))
    }

    fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }
}

fn family(address: IpAddr) -> usize {
    usize::from(address.is_ipv6())
}

const FORWARDING: [&str; 2] = ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"];

/// What to do on `host` before the kernel engine serves `config` well; nothing if no listener asks for it.
pub fn advice(file: &str, config: &Config, host: &Host) -> Vec<Diagnostic> {
    let listeners: Vec<&Listener> = config.listeners.iter().filter(|l| l.engine == Engine::Kernel).collect();
    let mut found: Vec<(String, String)> = Vec::new();
    if let Some(first) = listeners.first() {
        let mut say = |path: &str, message: String| found.push((path.into(), message));
        of_process(&format!("listeners.{}.engine", first.name), host, &mut say);
        of_interfaces(config, host, &mut say);
        let mut pools: Vec<usize> = listeners.iter().flat_map(|listener| listener.pools()).collect();
        pools.sort_unstable();
        pools.dedup();
        for ix in pools {
            let serve: Vec<&Listener> = listeners
                .iter()
                .copied()
                .filter(|l| l.pools().any(|pool| pool == ix))
                .collect();
            of_pool(&config.pools[ix], &serve, host, &mut say);
            of_sources(&config.pools[ix], config, host, &mut say);
        }
    }
    let diagnostic = |(path, message)| Diagnostic {
        file: file.into(),
        line: 0,
        column: 0,
        path,
        message,
    };
    found.into_iter().map(diagnostic).collect()
}

/// The kernel, and what this process may do with it.
fn of_process(path: &str, host: &Host, say: &mut impl FnMut(&str, String)) {
    if let Some(kernel @ (major, minor)) = host.kernel {
        if kernel < KERNEL_MIN {
            say(
                path,
                format!(
                    "this is Linux {major}.{minor}, the kernel engine needs 5.15: a newer kernel, or `engine: proxy`"
                ),
            );
        } else if kernel < KERNEL_TCX && host.clsact == Some(false) {
            say(
                path,
                format!(
                    "Linux {major}.{minor} has no TCX (6.6 has it), and this one neither the clsact discipline nor its BPF classifier: `modprobe -a sch_ingress cls_bpf` after installing the kernel's extra modules, or `engine: proxy`"
                ),
            );
        }
    }
    if !host.missing.is_empty() {
        say(
            path,
            format!(
                "{} missing here: `weir run` needs it; run this as the service does (conf/weir-kernel-engine.conf has what a unit needs), or write `engine: proxy`",
                host.missing.join(" and ")
            ),
        );
    }
    if host.jit == Some(false) {
        say(
            path,
            "net.core.bpf_jit_enable is 0: the program is interpreted for every packet; set it to 1".into(),
        );
    }
}

/// Where the program is attached.
fn of_interfaces(config: &Config, host: &Host, say: &mut impl FnMut(&str, String)) {
    let named = &config.kernel.interfaces;
    for name in named {
        match host.interface(name) {
            None => say("kernel.interfaces", format!("there is no interface `{name}` here")),
            Some(interface) if !interface.ethernet => say(
                "kernel.interfaces",
                format!(
                    "`{name}` is not Ethernet: what comes there is not understood; leave it out, clients and backends behind it need `engine: proxy`"
                ),
            ),
            Some(_) => {}
        }
    }
    let attached = |interface: &&Interface| interface.ethernet && (named.is_empty() || named.contains(&interface.name));
    let away = host.route(Ipv4Addr::new(192, 0, 2, 1).into());
    for interface in host.interfaces.iter().filter(attached) {
        let name = &interface.name;
        if interface.lro {
            say(
                "kernel.interfaces",
                format!(
                    "`{name}` merges packets by LRO, which cannot be undone when they are passed on: `ethtool -K {name} lro off`"
                ),
            );
        }
        if interface.strict
            && let Some(away) = away.filter(|route| route.by != *name && route.to.prefix_len() == 0)
        {
            say(
                "kernel.interfaces",
                format!(
                    "rp_filter is 1 (strict) on `{name}`, and the default route is by `{}`: clients that come by `{name}` from further away are served, but if there is no backend they hear nothing instead of a refusal; set net.ipv4.conf.{name}.rp_filter to 2",
                    away.by
                ),
            );
        }
    }
}

/// A pool of `listeners`.
fn of_pool(pool: &Pool, listeners: &[&Listener], host: &Host, say: &mut impl FnMut(&str, String)) {
    let name = &pool.policy.name;
    let mode = pool.policy.kernel_mode;
    let backends = || {
        pool.backends
            .iter()
            .filter_map(|backend| Some((backend, backend.address.ip()?)))
    };
    for (backend, address) in backends() {
        let path = format!("pools.{name}.backends.{}", backend.name);
        if let Some((_, by)) = host.addresses.iter().find(|(own, _)| *own == address) {
            say(
                &path,
                format!(
                    "{address} is an address of this host (`{by}`): the kernel engine cannot send there; another host, or `engine: proxy`"
                ),
            );
            continue;
        }
        let Some(route) = host.route(address) else {
            // Nothing is known of routes where they could not be read.
            if !host.routes.is_empty() {
                say(
                    &path,
                    format!("there is no route to {address} here: it gets no connections"),
                );
            }
            continue;
        };
        let by = &route.by;
        if host.interface(by).is_some_and(|interface| !interface.ethernet) {
            say(
                &path,
                format!(
                    "{address} is reached by `{by}`, which is not Ethernet: its answers are not seen; `engine: proxy`"
                ),
            );
            continue;
        }
        let own = |(own, on): &&(IpAddr, String)| on == by && own.is_ipv4() == address.is_ipv4();
        if host.forwarding[family(address)] == Some(false) && !host.addresses.iter().any(|row| own(&row)) {
            say(
                &path,
                format!(
                    "{address} is reached by `{by}`, which has no address of that family: without forwarding the engine does not find the way; set {} to 1, or give `{by}` an address",
                    FORWARDING[family(address)]
                ),
            );
        }
    }
    match mode {
        KernelMode::Nat => {
            if let Some(range) = &host.local_ports {
                let left = ports::total(&ports::left(range, &host.reserved_ports));
                if left < ports::ENOUGH {
                    say(
                        &format!("pools.{name}.kernel"),
                        format!(
                            "net.ipv4.ip_local_port_range is {} {}: sockets of this host choose from nearly all ports, which leaves {left} to the engine, too few: it uses some of theirs towards backends, and the two may get each other's answers; set it to `32768 60999`, or leave some out by net.ipv4.ip_local_reserved_ports",
                            range.start(),
                            range.end(),
                        ),
                    );
                }
            }
        }
        KernelMode::Keep => {
            let families: Vec<usize> = backends().map(|(_, address)| family(address)).collect();
            for of in [0, 1] {
                if families.contains(&of) && host.forwarding[of] == Some(false) {
                    say(
                        &format!("pools.{name}.kernel.mode"),
                        format!(
                            "keep: the backends' default route is this host, and while {0} is 0 it takes them nowhere but to clients of weir; set {0} to 1 if they need more",
                            FORWARDING[of]
                        ),
                    );
                }
            }
        }
        KernelMode::Dsr => {
            let binds = listeners.iter().flat_map(|listener| &listener.bind);
            let mut addresses: Vec<String> = binds
                .filter_map(|bind| match bind {
                    Bind::Ip { ip, .. } if !ip.is_unspecified() => {
                        Some(format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 }))
                    }
                    _ => None,
                })
                .collect();
            addresses.dedup();
            let add: Vec<String> = addresses
                .iter()
                .map(|address| format!("ip addr add {address} dev lo"))
                .collect();
            say(
                &format!("pools.{name}.kernel.mode"),
                format!(
                    "dsr: each backend must have the service's address and keep quiet about it: there, `sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2`, then `{}`; and rp_filter must not be 1 where its way to clients leads elsewhere",
                    add.join(" && ")
                ),
            );
        }
    }
}

/// The addresses that connections to backends come from. A virtual one may be at another node now.
fn of_sources(pool: &Pool, config: &Config, host: &Host, say: &mut impl FnMut(&str, String)) {
    let policy = &pool.policy;
    let path = format!("pools.{}.kernel.source_addresses", policy.name);
    let vips = || config.failover.iter().flat_map(|failover| &failover.vips);
    for source in policy.kernel_sources.iter().filter(|_| !host.addresses.is_empty()) {
        let is_here = host.addresses.iter().any(|(own, _)| own == source);
        if !is_here && !vips().any(|vip| vip.address.addr() == *source) {
            say(
                &path,
                format!(
                    "{source} is no address of this host: backends answer to it in vain; `ip addr add` it to the interface that leads to them, or leave it out"
                ),
            );
        }
    }
}

impl Host {
    /// This one, and what this process may do; of a service that runs the file, [`ready`] knows that.
    pub fn read(here: &dyn ready::Host) -> Host {
        let as_service = here.unit("CapabilityBoundingSet").is_some();
        let word = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_string());
        let flag = |path: &str| word(path).map(|text| text != "0");
        let found = netlink::Netlink::open();
        let found = found.and_then(|mut netlink| Ok((netlink.interfaces()?, netlink.addresses()?)));
        let (links, own) = found.unwrap_or_default();
        let release = word("/proc/sys/kernel/osrelease").unwrap_or_default();
        Host {
            kernel: version(&release),
            missing: match as_service {
                true => Vec::new(),
                false => helper::missing().unwrap_or_default(),
            },
            clsact: modules(Path::new("/lib/modules").join(&release).as_path()),
            jit: flag("/proc/sys/net/core/bpf_jit_enable"),
            forwarding: [
                flag("/proc/sys/net/ipv4/ip_forward"),
                flag("/proc/sys/net/ipv6/conf/all/forwarding"),
            ],
            local_ports: word("/proc/sys/net/ipv4/ip_local_port_range").and_then(|text| ports::local(&text)),
            reserved_ports: word("/proc/sys/net/ipv4/ip_local_reserved_ports")
                .map(|text| ports::reserved(&text))
                .unwrap_or_default(),
            interfaces: interfaces(&links),
            addresses: addresses(&own, &links),
            routes: [
                word("/proc/net/route").map(|text| routes_v4(&text)),
                word("/proc/net/ipv6_route").map(|text| routes_v6(&text)),
            ]
            .into_iter()
            .flatten()
            .flatten()
            .collect(),
        }
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

/// Whether the kernel's modules, built in or not, have what clsact takes; `None` if there is no list of them.
fn modules(directory: &Path) -> Option<bool> {
    let lists = ["modules.builtin", "modules.dep"].map(|list| fs::read_to_string(directory.join(list)).ok());
    let text: String = lists.into_iter().flatten().collect();
    (!text.is_empty()).then(|| {
        ["/sch_ingress.ko", "/cls_bpf.ko"]
            .iter()
            .all(|module| text.contains(module))
    })
}

fn interfaces(found: &[netlink::Interface]) -> Vec<Interface> {
    let all = setting("all");
    let interface = |found: &netlink::Interface| Interface {
        name: found.name.clone(),
        ethernet: found.is_ethernet(),
        // The greater of both counts; 2 is loose.
        strict: all.max(setting(&found.name)) == Some(1),
        lro: ethtool::merges_for_good(&found.name).unwrap_or(false),
    };
    found.iter().map(interface).collect()
}

fn setting(scope: &str) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{scope}/rp_filter")).ok()?;
    text.trim().parse().ok()
}

/// But for link-local ones, which are no way to anywhere.
fn addresses(found: &[netlink::Address], interfaces: &[netlink::Interface]) -> Vec<(IpAddr, String)> {
    let is_outer = |ip: IpAddr| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let name = |index| interfaces.iter().find(|interface| interface.index == index);
    let outer = found.iter().filter(|address| is_outer(address.net.addr()));
    outer
        .filter_map(|address| Some((address.net.addr(), name(address.interface)?.name.clone())))
        .collect()
}

/// As proc(5) has it: words in hexadecimal, addresses in host order of their bytes in memory.
fn routes_v4(text: &str) -> Vec<Route> {
    let route = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let address = |at: usize| {
            let word = u32::from_str_radix(words.get(at)?, 16).ok()?;
            Some(Ipv4Addr::from(word.to_ne_bytes()))
        };
        let to = Ipv4Net::with_netmask(address(1)?, address(7)?).ok()?;
        let (by, metric) = (words.first()?.to_string(), words.get(6)?.parse().ok()?);
        Some(Route {
            to: to.into(),
            by,
            metric,
        })
    };
    text.lines().skip(1).filter_map(route).collect()
}

fn routes_v6(text: &str) -> Vec<Route> {
    /// RTF_UP; RTF_REJECT and RTF_LOCAL of linux/ipv6_route.h and linux/route.h lead nowhere outside.
    const UP: u32 = 1;
    const INWARDS: u32 = 0x0200 | 0x8000_0000;
    let route = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| u32::from_str_radix(words.get(at)?, 16).ok();
        let address = Ipv6Addr::from(u128::from_str_radix(words.first()?, 16).ok()?);
        let to = Ipv6Net::new(address, number(1)? as u8).ok()?;
        let leads = number(8)? & (UP | INWARDS) == UP;
        let (by, metric) = (words.get(9)?.to_string(), number(5)?);
        leads.then_some(Route {
            to: to.into(),
            by,
            metric,
        })
    };
    text.lines().filter_map(route).collect()
}

#[cfg(test)]
mod tests;
