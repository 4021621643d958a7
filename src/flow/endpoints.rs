//! What makes two datagrams belong together.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::balance::limits;

/// A listener as the table knows it: chosen by the shell, stable over reloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerIx(pub u32);

/// Listener, client endpoint, local endpoint: 48 bytes whatever the family.
///
/// IPv4 is stored mapped (`::ffff:a.b.c.d`). The kernel drops packets from the wire with mapped sources, so the two
/// families cannot meet. The scope (interface) of a link-local IPv6 client is part of the key: the same address on two
/// links is two clients. So is the same address on two interfaces, each of which has a socket of its own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Endpoints {
    client: [u64; 2],
    local: [u64; 2],
    listener: u32,
    scope: u32,
    device: u32,
    client_port: u16,
    local_port: u16,
}

fn pack(ip: IpAddr) -> [u64; 2] {
    let bits = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
    .to_bits();
    [(bits >> 64) as u64, bits as u64]
}

fn unpack(ip: [u64; 2], port: u16, scope: u32) -> SocketAddr {
    let v6 = Ipv6Addr::from_bits((u128::from(ip[0]) << 64) | u128::from(ip[1]));
    match v6.to_ipv4_mapped() {
        Some(v4) => SocketAddr::from((v4, port)),
        None => SocketAddr::V6(SocketAddrV6::new(v6, port, 0, scope)),
    }
}

impl Endpoints {
    /// `local` is the address and port that the client used, never the wildcard.
    pub fn new(listener: ListenerIx, client: SocketAddr, local: SocketAddr) -> Self {
        let scope = match client {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(v6) => v6.scope_id(),
        };
        Self {
            client: pack(client.ip()),
            local: pack(local.ip()),
            listener: listener.0,
            scope,
            device: 0,
            client_port: client.port(),
            local_port: local.port(),
        }
    }

    /// As it is seen by a socket that is limited to the interface with this index; 0 = to none.
    pub fn on_device(self, device: u32) -> Self {
        Self { device, ..self }
    }

    /// Index of the listener that the client sends to.
    pub fn listener(&self) -> ListenerIx {
        ListenerIx(self.listener)
    }

    /// Where the client is.
    pub fn client(&self) -> SocketAddr {
        unpack(self.client, self.client_port, self.scope)
    }

    /// Where the client sent to, hence where replies come from.
    pub fn local(&self) -> SocketAddr {
        unpack(self.local, self.local_port, self.scope)
    }

    /// What counts as one source: see [`limits::source`].
    pub(super) fn source(&self) -> [u64; 2] {
        pack(limits::source(self.client().ip()))
    }
}

// Six words instead of a dozen odd-sized fields: half the hashing time.
impl Hash for Endpoints {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for word in [self.client[0], self.client[1], self.local[0], self.local[1]] {
            state.write_u64(word);
        }
        state.write_u64(u64::from(self.listener) << 32 | u64::from(self.scope));
        let ports = u64::from(self.client_port) << 16 | u64::from(self.local_port);
        state.write_u64(u64::from(self.device) << 32 | ports);
    }
}

impl std::fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} -> {} on listener {}", self.client(), self.local(), self.listener)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_they_went_in() {
        let rows = [
            ("192.0.2.1:53000", "198.51.100.7:53"),
            ("[2001:db8::1]:1", "[2001:db8::53]:65535"),
            ("[fe80::1%3]:9", "[fe80::2%3]:53"),
            ("0.0.0.0:0", "255.255.255.255:1"),
        ];
        for (client, local) in rows {
            let (client, local) = (client.parse::<SocketAddr>().unwrap(), local.parse().unwrap());
            let key = Endpoints::new(ListenerIx(7), client, local);
            assert_eq!((key.client(), key.local(), key.listener().0), (client, local, 7));
        }
    }

    #[test]
    fn each_part_tells_keys_apart() {
        let a = |s: &str| s.parse::<SocketAddr>().unwrap();
        let base = Endpoints::new(ListenerIx(0), a("[fe80::1%2]:5"), a("[fe80::9%2]:53"));
        let others = [
            Endpoints::new(ListenerIx(1), a("[fe80::1%2]:5"), a("[fe80::9%2]:53")),
            Endpoints::new(ListenerIx(0), a("[fe80::2%2]:5"), a("[fe80::9%2]:53")),
            Endpoints::new(ListenerIx(0), a("[fe80::1%2]:6"), a("[fe80::9%2]:53")),
            Endpoints::new(ListenerIx(0), a("[fe80::1%2]:5"), a("[fe80::8%2]:53")),
            Endpoints::new(ListenerIx(0), a("[fe80::1%2]:5"), a("[fe80::9%2]:54")),
            Endpoints::new(ListenerIx(0), a("[fe80::1%3]:5"), a("[fe80::9%3]:53")),
            base.on_device(1),
        ];
        for other in others {
            assert_ne!(base, other);
        }
        assert_eq!(size_of::<Endpoints>(), 48);
    }
}
