//! The way to a backend: one resolver for connections, sessions and probes. What else a pool may say about the sockets towards
//! its backends (a transparent source, a mark, a device) becomes a field of [`Route`] and is filled in here.

use crate::config::model::{Backend, BackendAddress, PoolPolicy};
use crate::sys::route::{Route, Target};

/// What for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A client that has used this port; `None` for one that came over a unix socket.
    Serve(Option<u16>),
    /// A health probe.
    Probe,
    /// A question to the agent beside it, at this port.
    Agent(u16),
}

/// The way to a backend of a pool with this policy.
pub fn resolve(backend: &Backend, policy: &PoolPolicy, purpose: Purpose) -> Route {
    let target = match (&backend.address, purpose) {
        (BackendAddress::Unix(path), _) => Target::Unix(path.clone()),
        (BackendAddress::Ip(address), Purpose::Serve(_)) => Target::Ip(*address),
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
        (BackendAddress::SamePort(ip), Purpose::Serve(used)) => Target::Ip((*ip, used.unwrap_or(0)).into()),
        (BackendAddress::SamePort(ip), Purpose::Agent(port)) => Target::Ip((*ip, port).into()),
        (BackendAddress::SamePort(ip), Purpose::Probe) => Target::Ip((*ip, policy.health.port.unwrap_or(0)).into()),
    };
    Route {
        target,
        source: policy.source_address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    /// Columns: the backend, the pool's further keys, what for, where it goes, from where.
    /// Meant to notice: the probe's port for clients, the client's port for a backend that has one.
    #[test]
    fn where_connections_go() {
        use Purpose::{Agent, Probe, Serve};
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
            let source = source.map(|source| source.parse().unwrap());
            assert_eq!(
                (route.target.to_string(), route.source),
                (target.to_owned(), source),
                "{text} {purpose:?}"
            );
        }
    }
}
