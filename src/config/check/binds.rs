//! No address is bound twice: not by two listeners, not by a range that overlaps, not by a wildcard beside an address.
//! With SO_REUSEPORT the kernel would let it pass and split the clients at random.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use crate::config::model::{Bind, Protocol};
use crate::config::raw::{Notes, Spot};

fn any_of(ip: &IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Everything that the process binds.
#[derive(Default)]
pub struct Bound(Vec<(Spot<Bind>, Protocol)>);

impl Bound {
    /// Adds one.
    pub fn add(&mut self, bind: Spot<Bind>, protocol: Protocol) {
        self.0.push((bind, protocol));
    }

    /// Reports conflicts, each at the place that comes later in the file.
    pub fn report(mut self, notes: &Notes) {
        self.0.sort_by_key(|(spot, _)| match &spot.value {
            Bind::Ip { ports, .. } => (*ports.start(), *ports.end()),
            Bind::Unix(_) => (0, 0),
        });
        // In order of first ports an earlier range overlaps if it ends late enough: the furthest end seen is enough.
        let mut of_address: HashMap<(Protocol, IpAddr), (u16, &Spot<Bind>)> = HashMap::new();
        let mut of_family: HashMap<(Protocol, bool), (u16, &Spot<Bind>)> = HashMap::new();
        let mut of_path: HashMap<&PathBuf, &Spot<Bind>> = HashMap::new();
        for (spot, protocol) in &self.0 {
            let earlier = match &spot.value {
                Bind::Unix(path) => {
                    let earlier = of_path.get(path).copied();
                    of_path.entry(path).or_insert(spot);
                    earlier
                }
                Bind::Ip { ports, .. } if *ports.start() == 0 => None,
                Bind::Ip { ip, ports } => {
                    let family = of_family.get(&(*protocol, ip.is_ipv4()));
                    let own = of_address.get(&(*protocol, *ip));
                    let wildcard = of_address.get(&(*protocol, any_of(ip)));
                    let candidates = if ip.is_unspecified() {
                        [family, None]
                    } else {
                        [own, wildcard]
                    };
                    let earlier = candidates
                        .into_iter()
                        .flatten()
                        .find(|(end, _)| end >= ports.start())
                        .map(|(_, spot)| *spot);
                    for seen in [
                        of_address.entry((*protocol, *ip)).or_insert((0, spot)),
                        of_family
                            .entry((*protocol, ip.is_ipv4()))
                            .or_insert((0, spot)),
                    ] {
                        if seen.0 < *ports.end() {
                            *seen = (*ports.end(), spot);
                        }
                    }
                    earlier
                }
            };
            if let Some(earlier) = earlier {
                let (first, second) = if earlier.at <= spot.at {
                    (earlier, spot)
                } else {
                    (spot, earlier)
                };
                notes.error(
                    second,
                    format!(
                        "`{}` is bound already by {} (`{}`): an address belongs to one listener",
                        second.value, first.path, first.value
                    ),
                );
            }
        }
    }
}
