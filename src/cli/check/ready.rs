//! Whether a host is ready for a configuration. Pure: what is asked of the host is answered by a [`Host`].
//!
//! Each row of [`ROWS`] is one subject. It asks the host for what it needs and says what would not work there, and what to do about it.
//! Nothing is refused: the host may not be the one that the file is for. What cannot be found out is passed over.

mod kept;
mod service;

use std::net::IpAddr;

use crate::config::model::*;
use crate::config::{Budget, Config, Diagnostic, MORE_DESCRIPTORS};
use crate::sys::udp::LISTEN_BUFFER;

/// What rows may ask.
pub trait Host {
    /// Descriptors that this process may open after it has raised its own limit.
    fn descriptors(&self) -> u64;
    /// CPUs that this process may use.
    fn cpus(&self) -> usize;
    /// A kernel parameter of this network namespace, such as `net.core.somaxconn`.
    fn sysctl(&self, name: &str) -> Option<String>;
    /// A property of the service that runs this file, as `systemctl show` prints it, such as `LimitNOFILE`; `None` where no
    /// service does.
    fn unit(&self, property: &str) -> Option<String>;
    /// What is in a small file of the kernel, such as `/proc/sys/fs/nr_open`.
    fn read(&self, path: &str) -> Option<String>;
    /// How packets get to an address; the error says why they do not.
    fn road_to(&self, ip: IpAddr) -> Option<Result<Road, String>>;
}

/// A way to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Road {
    /// The interface that it begins at.
    pub interface: String,
    /// The next host, unless the address is a neighbour's.
    pub gateway: Option<IpAddr>,
}

/// Something that would not work on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// The key that is concerned.
    pub path: String,
    /// What is wrong, and what to do about it.
    pub message: String,
}

impl Advice {
    /// Advice about the key at `path`.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Advice {
        Advice {
            path: path.into(),
            message: message.into(),
        }
    }
}

/// What is to be said about one subject.
type Row = fn(&Config, &dyn Host) -> Vec<Advice>;

/// All subjects, in the order in which they are printed.
const ROWS: &[Row] = &[
    descriptors,
    time_wait,
    ports_of_backends,
    ports_of_sessions,
    devices,
    backlog,
    tracked,
    udp_buffers,
    loops,
    service::capabilities,
    service::time_to_stop,
    service::writable,
    kept::rights,
    kept::ways_back,
];

/// Warnings that depend on the host, beside [`Loaded::warnings`](crate::config::Loaded::warnings).
pub fn warnings(file: &str, config: &Config, host: &dyn Host) -> Vec<Diagnostic> {
    let advice = ROWS.iter().flat_map(|row| row(config, host));
    advice
        .map(|Advice { path, message }| Diagnostic {
            file: file.to_string(),
            line: 0,
            column: 0,
            path,
            message,
        })
        .collect()
}

/// The descriptors that the process will have: of the service where one runs the file.
fn budget(config: &Config, host: &dyn Host) -> Budget {
    let of_unit = host.unit("LimitNOFILE").and_then(|limit| match limit.as_str() {
        "infinity" => number(host.sysctl("fs.nr_open")),
        limit => limit.parse().ok(),
    });
    Budget::new(config, of_unit.unwrap_or_else(|| host.descriptors()), host.cpus())
}

fn number(text: Option<String>) -> Option<u64> {
    text?.parse().ok()
}

/// Whether there are sockets of that protocol: the kernel engine has none.
fn serves(config: &Config, protocol: Protocol) -> bool {
    proxied(config, protocol).next().is_some()
}

fn proxied(config: &Config, protocol: Protocol) -> impl Iterator<Item = &Listener> {
    let has_sockets = move |l: &&Listener| l.protocol == protocol && l.engine == Engine::Proxy;
    config.listeners.iter().filter(has_sockets)
}

/// RLIMIT_NOFILE against `limits`.
fn descriptors(config: &Config, host: &dyn Host) -> Vec<Advice> {
    /// Fewer connections than this are surely not what somebody wants of a balancer.
    const FEW: u64 = 500;
    let budget = budget(config, host);
    let (limit, carried) = (budget.limit, budget.connections);
    if let Some(refusal) = budget.refusal(config) {
        vec![Advice::new("limits", refusal)]
    } else if config.limits.connections.is_none() && carried < FEW && serves(config, Protocol::Tcp) {
        let message = format!("{limit} descriptors carry {carried} connections only: {MORE_DESCRIPTORS}");
        vec![Advice::new("limits.connections", message)]
    } else {
        Vec::new()
    }
}

/// Ports for connections to backends that are not on this machine.
fn local_ports(host: &dyn Host) -> u64 {
    /// The kernel's default.
    const DEFAULT: u64 = 28_232;
    let range = host.sysctl("net.ipv4.ip_local_port_range").unwrap_or_default();
    let mut ends = range.split_whitespace().map_while(|end| end.parse::<u64>().ok());
    match (ends.next(), ends.next()) {
        (Some(first), Some(last)) => (last + 1).saturating_sub(first),
        _ => DEFAULT,
    }
}

/// Whether a backend is beyond loopback, where ports are short: on loopback the kernel uses them again by default.
fn is_distant(backend: &Backend) -> bool {
    backend.address.ip().is_some_and(|ip| !ip.is_loopback())
}

/// Ports of connections that weir closed first.
fn time_wait(config: &Config, host: &dyn Host) -> Vec<Advice> {
    /// How long the kernel keeps such a port (TCP_TIMEWAIT_LEN), seconds.
    const TIME_WAIT_S: u64 = 60;
    let pools = proxied(config, Protocol::Tcp).flat_map(Listener::pools);
    let mut pools = pools.filter_map(|pool| config.pools.get(pool));
    let reused = host.sysctl("net.ipv4.tcp_tw_reuse").is_some_and(|value| value == "1");
    if reused || !pools.any(|pool| pool.backends.iter().any(is_distant)) {
        return Vec::new();
    }
    let ports = local_ports(host);
    let message = format!(
        "{ports} local ports, each kept for {TIME_WAIT_S} s after a connection that weir closed first, carry {} such connections a second to one backend: set net.ipv4.tcp_tw_reuse=1 (conf/weir.sysctl)",
        ports / TIME_WAIT_S,
    );
    vec![Advice::new("pools", message)]
}

/// Ports against what a backend may have, or what its listener lets through to it alone.
fn ports_of_backends(config: &Config, host: &dyn Host) -> Vec<Advice> {
    let ports = local_ports(host);
    let tcp = |pool: &usize| {
        let mut users = config
            .listeners
            .iter()
            .filter(|listener| listener.pools().any(|used| used == *pool));
        users.any(|listener| listener.protocol == Protocol::Tcp && listener.engine == Engine::Proxy)
    };
    let pools = config.pools.iter().enumerate().filter(|(ix, _)| tcp(ix));
    let backends = pools.flat_map(|(_, pool)| pool.backends.iter().map(move |backend| (pool, backend)));
    let too_many = backends.filter_map(|(pool, backend)| {
        let most = backend.max_connections.map(u64::from).filter(|&most| most > ports)?;
        is_distant(backend).then(|| {
            Advice::new(
                format!("pools.{}.backends.{}.max_connections", pool.policy.name, backend.name),
                format!("{most} connections to one address take as many local ports, and there are {ports}: widen net.ipv4.ip_local_port_range (conf/weir.sysctl), or give the backend a second address"),
            )
        })
    });
    too_many.collect()
}

/// Each session has a port of its own, whatever its backend.
fn ports_of_sessions(config: &Config, host: &dyn Host) -> Vec<Advice> {
    let ports = local_ports(host);
    let sessions = config
        .limits
        .udp_sessions
        .map(u64::from)
        .filter(|&sessions| sessions > ports);
    let message = |sessions| {
        format!(
            "each of {sessions} sessions takes a local port, and there are {ports}: widen net.ipv4.ip_local_port_range (conf/weir.sysctl)"
        )
    };
    let sessions = sessions.filter(|_| serves(config, Protocol::Udp));
    sessions
        .map(|n| Advice::new("limits.udp_sessions", message(n)))
        .into_iter()
        .collect()
}

/// Interfaces to which addresses are limited.
fn devices(config: &Config, _: &dyn Host) -> Vec<Advice> {
    let mut missing = Vec::new();
    for listener in &config.listeners {
        for bind in &listener.bind {
            if let Bind::Ip {
                device: Some(device), ..
            } = bind
                && device.index == 0
            {
                let message = format!(
                    "`{bind}`: there is no interface `{}` here, and weir does not start without it: make it before weir starts (Requires= and After= of its unit), or leave out `%{}`",
                    device.name, device.name
                );
                missing.push(Advice::new(format!("listeners.{}.bind", listener.name), message));
            }
        }
    }
    missing
}

/// The kernel's bound of the queue of a listening socket.
fn backlog(config: &Config, host: &dyn Host) -> Vec<Advice> {
    /// The kernel's default since Linux 5.4; 128 before, which a burst fills.
    const ENOUGH: u64 = 4096;
    let most = number(host.sysctl("net.core.somaxconn")).filter(|&most| most < ENOUGH);
    let most = most.filter(|_| serves(config, Protocol::Tcp));
    let message = |most| {
        format!(
            "{most} connections may wait to be accepted at each address, and a burst beyond is dropped: raise net.core.somaxconn (conf/weir.sysctl)"
        )
    };
    let short = most.map(|most| Advice::new("listeners", message(most)));
    let bound = number(host.sysctl("net.core.somaxconn"));
    let cut = proxied(config, Protocol::Tcp).filter_map(|listener| {
        let (wanted, most) = (listener.backlog?, bound?);
        let message = format!(
            "the kernel allows {most} connections to wait at an address, not {wanted}: raise net.core.somaxconn (conf/weir.sysctl)"
        );
        let path = format!("listeners.{}.backlog", listener.name);
        (u64::from(wanted) > most).then(|| Advice::new(path, message))
    });
    short.into_iter().chain(cut).collect()
}

/// The table of connections that the packet filter keeps, where it does.
fn tracked(config: &Config, host: &dyn Host) -> Vec<Advice> {
    /// Towards the client, and towards the backend.
    const ENTRIES: u64 = 2;
    let ask = |name: &str| number(host.sysctl(&format!("net.netfilter.nf_conntrack_{name}")));
    let (Some(1..), Some(most)) = (ask("count"), ask("max")) else {
        return Vec::new();
    };
    let budget = budget(config, host);
    let needed = ENTRIES * (budget.connections + budget.sessions);
    if needed <= most {
        return Vec::new();
    }
    let message = format!(
        "{} connections and {} sessions take {needed} entries of the packet filter's table, which has {most} and drops packets when it is full: raise net.netfilter.nf_conntrack_max, or keep this traffic out of it (nft: notrack), or lower `limits`",
        budget.connections, budget.sessions,
    );
    vec![Advice::new("limits", message)]
}

/// Receive buffers of UDP listeners.
fn udp_buffers(config: &Config, host: &dyn Host) -> Vec<Advice> {
    let wanted = LISTEN_BUFFER as u64;
    // Whoever may administrate the network is not bound by these.
    if !serves(config, Protocol::Udp) || service::has(host, "cap_net_admin") != Some(false) {
        return Vec::new();
    }
    let short = ["rmem_max", "wmem_max"].map(|name| format!("net.core.{name}")).into_iter().filter_map(|name| {
        let most = number(host.sysctl(&name)).filter(|&most| most < wanted)?;
        let message = format!("UDP listeners ask for buffers of {wanted} bytes and get {most}: raise {name} (conf/weir.sysctl), or give the service CAP_NET_ADMIN");
        Some(Advice::new("listeners", message))
    });
    short.collect()
}

/// More event loops than CPUs.
fn loops(config: &Config, host: &dyn Host) -> Vec<Advice> {
    let cpus = host.cpus();
    let workers = config.workers.filter(|&workers| workers > cpus);
    let message = |workers| format!("{workers} event loops share {cpus} CPUs: `auto` is faster");
    workers
        .map(|n| Advice::new("workers", message(n)))
        .into_iter()
        .collect()
}

#[cfg(test)]
mod tests;
