//! What a pool lets in, whoever names it.

use std::net::IpAddr;

use super::check::client_address;
use super::model::*;

/// Which addresses a pool can use, given the listeners that it serves and its policy. Of the configuration's own backends
/// `weir check` says it with line and column; members that come later are held to the same.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rules {
    users: Vec<User>,
    /// Of what family an address has to be: the address that wants it so, and the key that states it.
    source: Option<(&'static str, IpAddr)>,
    /// Probed by datagrams.
    udp_probe: bool,
    /// A probe takes the port from the member.
    needs_port: bool,
    /// Backends see their clients' addresses.
    keeps_clients: bool,
}

/// What matters of a listener.
#[derive(Debug, Clone, PartialEq)]
struct User {
    name: String,
    protocol: Protocol,
    engine: Engine,
    bind: Vec<Bind>,
}

impl Rules {
    /// Of a pool that serves these listeners, whatever its policy.
    pub fn new<'l>(users: impl Iterator<Item = &'l Listener>) -> Rules {
        let user = |listener: &Listener| User {
            name: listener.name.clone(),
            protocol: listener.protocol,
            engine: listener.engine,
            bind: listener.bind.clone(),
        };
        Rules {
            users: users.map(user).collect(),
            ..Rules::default()
        }
    }

    /// Of a pool of a whole configuration.
    pub fn of(config: &Config, pool: usize) -> Rules {
        let users = config
            .listeners
            .iter()
            .filter(|listener| listener.pools().any(|used| used == pool));
        let PoolPolicy {
            source_address,
            kernel_sources,
            health,
            client_address,
            ..
        } = &config.pools[pool].policy;
        let stated = source_address.map(|source| ("source_address", source));
        let of_kernel = kernel_sources
            .first()
            .map(|&source| ("kernel.source_addresses", source));
        Rules {
            source: stated.or(of_kernel),
            udp_probe: health.kind == ProbeKind::Udp,
            keeps_clients: *client_address == ClientAddress::Keep,
            needs_port: health.kind != ProbeKind::None && health.port.is_none(),
            ..Rules::new(users)
        }
    }

    /// Why the listeners of the pool cannot use an address.
    pub(super) fn complaints(&self, address: &BackendAddress) -> Vec<String> {
        let mut complaints = Vec::new();
        let udp = self.users.iter().find(|user| user.protocol == Protocol::Udp);
        match (address, udp) {
            (BackendAddress::Unix(_), Some(udp)) => complaints.push(format!(
                "a unix socket carries streams, and listener `{}` is udp: write an IP address",
                udp.name
            )),
            (BackendAddress::SamePort(_), _) => {
                let unix = |user: &&User| user.bind.iter().any(|bind| matches!(bind, Bind::Unix(_)));
                if let Some(user) = self.users.iter().find(unix) {
                    complaints.push(format!(
                        "has no port, and listener `{}` binds a unix socket, which has none to take over: write `{address}:80`",
                        user.name
                    ));
                }
            }
            _ => {}
        }
        let looped = |user: &&User| user.bind.iter().any(|bind| is_itself(bind, address));
        if let Some(user) = self.users.iter().find(looped) {
            complaints.push(format!(
                "is bound by listener `{}` itself: connections would go round in circles",
                user.name
            ));
        }
        complaints
    }

    /// Why a pool that keeps clients' addresses cannot do that for this one.
    fn hides_clients_from(&self, address: &BackendAddress) -> Option<String> {
        if !self.keeps_clients {
            return None;
        }
        let proxied = self.users.iter().filter(|user| user.engine == Engine::Proxy);
        client_address::refusal(proxied.map(|user| (user.name.as_str(), &user.bind[..])), address)
    }

    /// Why a member cannot be in the pool.
    pub fn refusal(&self, address: &BackendAddress) -> Option<String> {
        let why = match (address, self.source) {
            (address, _) if address.ip().is_some_and(|ip| !is_a_host(&ip)) => {
                Some("is not the address of one machine".into())
            }
            (BackendAddress::Unix(_), Some((key, _))) => Some(format!("is a unix socket, and the pool has a `{key}`")),
            (BackendAddress::Unix(_), None) if self.udp_probe => {
                Some("is a unix socket, which cannot be probed with datagrams".into())
            }
            (BackendAddress::SamePort(_), _) if self.needs_port => {
                Some("has no port, and `health.port` says none either".into())
            }
            (address, Some((key, source))) if address.ip().is_some_and(|ip| ip.is_ipv4() != source.is_ipv4()) => {
                Some(format!("is of another family than the pool's `{key}` {source}"))
            }
            (address, _) => self
                .complaints(address)
                .into_iter()
                .next()
                .or_else(|| self.hides_clients_from(address)),
        };
        why.map(|why| format!("{address} {why}"))
    }
}

/// As name servers that keep a name from being used answer it: 0.0.0.0; or an address that means another host on each interface.
fn is_a_host(ip: &IpAddr) -> bool {
    let apart = match ip {
        IpAddr::V4(v4) => v4.is_broadcast(),
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some(),
    };
    !ip.is_unspecified() && !ip.is_multicast() && !apart
}

fn is_itself(bind: &Bind, address: &BackendAddress) -> bool {
    // What this host sends to an address of its own counts as coming in by the interface that has it.
    let elsewhere = matches!(bind, Bind::Ip { device: Some(only), .. } if only.name != "lo");
    let local = |bound: &IpAddr, ip: &IpAddr| match elsewhere {
        true => bound == ip,
        false => bound == ip || bound.is_unspecified() && bound.is_ipv4() == ip.is_ipv4() && ip.is_loopback(),
    };
    match (bind, address) {
        (Bind::Unix(bound), BackendAddress::Unix(path)) => bound == path,
        (Bind::Ip { ip, ports, .. }, BackendAddress::Ip(to)) => ports.contains(&to.port()) && local(ip, &to.ip()),
        (Bind::Ip { ip, .. }, BackendAddress::SamePort(to)) => local(ip, to),
        _ => false,
    }
}
