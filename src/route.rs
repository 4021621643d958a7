//! The way to a backend: one resolver for connections, sessions and probes. What else a pool may say about the sockets towards
//! its backends becomes a field of [`Route`] and is filled in here.

use std::net::{IpAddr, SocketAddr};

use crate::config::model::{Backend, BackendAddress, ClientAddress, PoolPolicy};
use crate::sys::route::{Route, Source, Target};

/// What for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A client.
    Serve {
        /// The port that it has used; `None` for one that came over a unix socket.
        port: Option<u16>,
        /// Its address: that of the PROXY header, if there was one.
        client: Option<SocketAddr>,
    },
    /// A health probe.
    Probe,
    /// A question to the agent beside it, at this port.
    Agent(u16),
}

/// The way to a backend of a pool with this policy.
pub fn resolve(backend: &Backend, policy: &PoolPolicy, purpose: Purpose) -> Route {
    let target = match (&backend.address, purpose) {
        (BackendAddress::Unix(path), _) => Target::Unix(path.clone()),
        (BackendAddress::Ip(address), Purpose::Serve { .. }) => Target::Ip(*address),
        (BackendAddress::Ip(address), Purpose::Probe | Purpose::Agent(_)) => {
            // A link-local address keeps its interface.
            let mut address = *address;
            address.set_port(match purpose {
                Purpose::Agent(port) => port,
                _ => policy.health.port.unwrap_or(address.port()),
            });
            Target::Ip(address)
        }
        // The configuration check refuses such a backend behind a unix socket, and demands `health.port` for its probes.
        (BackendAddress::SamePort(ip), Purpose::Serve { port, .. }) => Target::Ip((*ip, port.unwrap_or(0)).into()),
        (BackendAddress::SamePort(ip), Purpose::Agent(port)) => Target::Ip((*ip, port).into()),
        (BackendAddress::SamePort(ip), Purpose::Probe) => Target::Ip((*ip, policy.health.port.unwrap_or(0)).into()),
    };
    let own = policy.source_address.map_or(Source::Any, Source::Own);
    let source = match (policy.client_address, purpose, &target) {
        (ClientAddress::Keep, Purpose::Serve { client, .. }, Target::Ip(to)) => kept(client, to.ip()).unwrap_or(own),
        _ => own,
    };
    Route {
        target,
        source,
        mark: policy.connect.mark,
        dscp: policy.connect.dscp,
    }
}

/// A client's address, as the source of what goes to a backend; `None` = the client is on this host, at an address that means
/// something here only.
fn kept(client: Option<SocketAddr>, backend: IpAddr) -> Option<Source> {
    let Some(client) = client else {
        return Some(Source::Nobody);
    };
    let ip = client.ip().to_canonical();
    // A PROXY header may name any address.
    let is_no_host = match ip {
        IpAddr::V4(v4) => v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if is_no_host || ip.is_unspecified() || ip.is_multicast() || ip.is_ipv4() != backend.is_ipv4() {
        return Some(Source::Nobody);
    }
    if ip.is_loopback() && !backend.is_loopback() {
        return None;
    }
    Some(Source::Client(SocketAddr::new(ip, client.port())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    /// Columns: the backend, the pool's further keys, what for, where it goes, from where.
    /// Seen to fail: the probe's port for clients, the client's port for a backend that has one.
    #[test]
    fn where_connections_go() {
        use Purpose::{Agent, Probe};
        #[expect(non_snake_case)]
        let Serve = |port| Purpose::Serve { port, client: None };
        #[rustfmt::skip]
        let rows = [
            ("10.0.0.1:80", "", Serve(Some(443)), "10.0.0.1:80", None),
            ("10.0.0.1:80", "", Serve(None), "10.0.0.1:80", None),
            ("10.0.0.1:80", "", Probe, "10.0.0.1:80", None),
            ("10.0.0.1:80", "health: {port: 81}", Probe, "10.0.0.1:81", None),
            ("10.0.0.1:80", "health: {port: 81}", Serve(Some(443)), "10.0.0.1:80", None),
            ("10.0.0.1", "health: {port: 81}", Serve(Some(443)), "10.0.0.1:443", None),
            ("10.0.0.1", "health: {port: 81}", Probe, "10.0.0.1:81", None),
            ("[2001:db8::1]:80", "source_address: '2001:db8::9'", Serve(Some(443)), "[2001:db8::1]:80", Some("2001:db8::9")),
            ("[2001:db8::1]:80", "source_address: '2001:db8::9'", Probe, "[2001:db8::1]:80", Some("2001:db8::9")),
            ("unix:/run/a", "", Serve(Some(443)), "unix:/run/a", None),
            ("[fe80::1%2]:80", "", Serve(Some(443)), "[fe80::1%2]:80", None),
            ("[fe80::1%2]:80", "health: {port: 81}", Probe, "[fe80::1%2]:81", None),
            ("unix:/run/a", "", Probe, "unix:/run/a", None),
            ("10.0.0.1:80", "source_address: '10.0.0.9'", Agent(9), "10.0.0.1:9", Some("10.0.0.9")),
            ("10.0.0.1", "health: {port: 81}", Agent(9), "10.0.0.1:9", None),
            ("[fe80::1%2]:80", "", Agent(9), "[fe80::1%2]:9", None),
        ];
        for (address, keys, purpose, target, source) in rows {
            let comma = if keys.is_empty() { "" } else { ", " };
            let text = format!(
                "listeners: {{l: {{bind: '127.0.0.1:8000-8001', pool: p}}}}\npools: {{p: {{backends: ['{address}']{comma}{keys}}}}}"
            );
            let pool = config::parse("f", &text).unwrap().config.pools.remove(0);
            let route = resolve(&pool.backends[0], &pool.policy, purpose);
            let source = source.map_or(Source::Any, |source| Source::Own(source.parse().unwrap()));
            assert_eq!(
                (route.target.to_string(), route.source),
                (target.to_owned(), source),
                "{text} {purpose:?}"
            );
        }
    }

    /// Columns: the client, the backend, from where. The pool has a `source_address` for its probes.
    /// Meant to notice: an address that a PROXY header made up, a client of this host that no other host could answer.
    #[test]
    fn whose_address_is_kept() {
        let own = || Source::Own("10.0.0.9".parse().unwrap());
        let client = |text: &str| Source::Client(text.parse().unwrap());
        #[rustfmt::skip]
        let rows = [
            (Some("192.0.2.1:4711"), "10.0.0.1:80", client("192.0.2.1:4711")),
            (Some("[::ffff:192.0.2.1]:4711"), "10.0.0.1:80", client("192.0.2.1:4711")),
            (Some("[2001:db8::1]:4711"), "[2001:db8::2]:80", client("[2001:db8::1]:4711")),
            (Some("192.0.2.1:0"), "10.0.0.1:80", client("192.0.2.1:0")),
            (Some("127.0.0.1:4711"), "10.0.0.1:80", own()),
            (Some("127.0.0.1:4711"), "127.0.0.2:80", client("127.0.0.1:4711")),
            (Some("192.0.2.1:4711"), "127.0.0.2:80", client("192.0.2.1:4711")),
            (Some("192.0.2.1:4711"), "[2001:db8::2]:80", Source::Nobody),
            (Some("[2001:db8::1]:4711"), "10.0.0.1:80", Source::Nobody),
            (Some("[fe80::1]:4711"), "[2001:db8::2]:80", Source::Nobody),
            (Some("0.0.0.0:4711"), "10.0.0.1:80", Source::Nobody),
            (Some("255.255.255.255:4711"), "10.0.0.1:80", Source::Nobody),
            (Some("224.0.0.1:4711"), "10.0.0.1:80", Source::Nobody),
            (Some("[ff02::1]:4711"), "[2001:db8::2]:80", Source::Nobody),
            (None, "10.0.0.1:80", Source::Nobody),
        ];
        let text = "listeners: {l: {bind: '127.0.0.1:8000', pool: p}}\n\
                    pools: {p: {client_address: keep, source_address: 10.0.0.9, backends: ['10.0.0.1:80']}}";
        let mut pool = config::parse("f", text).unwrap().config.pools.remove(0);
        assert_eq!(resolve(&pool.backends[0], &pool.policy, Purpose::Probe).source, own());
        for (from, to, source) in rows {
            pool.backends[0].address = BackendAddress::Ip(to.parse().unwrap());
            let client = from.map(|from| from.parse().unwrap());
            let purpose = Purpose::Serve { port: Some(80), client };
            assert_eq!(
                resolve(&pool.backends[0], &pool.policy, purpose).source,
                source,
                "{from:?} {to}"
            );
        }
    }
}
