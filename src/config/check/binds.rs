//! No address is bound twice: not by two listeners, not by a range that overlaps, not by a wildcard beside an address, not by
//! one that is limited to an interface beside one that is not. With SO_REUSEPORT the kernel would let some of it pass and
//! split the clients at random.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use crate::config::model::{Bind, Protocol};
use crate::config::notes::{Notes, Spot};

/// Everything that the process binds.
#[derive(Default)]
pub struct Bound(Vec<(Spot<Bind>, Protocol)>);

/// Which interfaces an address is compared on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum On<'s> {
    /// Those that are limited to this one, or to none.
    Only(Option<&'s str>),
    /// All that there are.
    Any,
}

/// The range that reaches furthest among those seen so far, by what they have in common.
type Furthest<'s, K> = HashMap<K, (u16, &'s Spot<Bind>)>;

impl Bound {
    /// Adds an entry of `bind` to those that are compared.
    pub fn add(&mut self, bind: Spot<Bind>, protocol: Protocol) {
        self.0.push((bind, protocol));
    }

    /// Reports conflicts, each at the place that comes later in the file.
    ///
    /// In the order of their first ports, a range overlaps an earlier one exactly if the furthest end so far is not
    /// below its own first port; so one pass is enough, whatever their number.
    pub fn report(mut self, notes: &Notes) {
        self.0.sort_by_key(|(spot, _)| match &spot.value {
            Bind::Ip { ports, .. } => *ports.start(),
            Bind::Unix(_) => 0,
        });
        let mut paths: HashMap<&PathBuf, &Spot<Bind>> = HashMap::new();
        let mut of_address: Furthest<(Protocol, IpAddr, u32, On)> = HashMap::new();
        let mut of_family: Furthest<(Protocol, bool, On)> = HashMap::new();
        for (spot, protocol) in &self.0 {
            let earlier = match &spot.value {
                Bind::Unix(path) => paths.insert(path, spot),
                // The kernel chooses a free one.
                Bind::Ip { ports, .. } if *ports.start() == 0 => None,
                Bind::Ip {
                    ip,
                    scope,
                    ports,
                    device,
                } => {
                    let device = device.as_ref().map(|device| device.name.as_str());
                    let met: &[On] = match device {
                        Some(_) => &[On::Only(device), On::Only(None)],
                        None => &[On::Any],
                    };
                    let own = |on| (*protocol, *ip, *scope, on);
                    let wildcard = |on| (*protocol, wildcard_of(ip), 0, on);
                    let family = |on| (*protocol, ip.is_ipv4(), on);
                    let rivals = met.iter().flat_map(|&on| match ip.is_unspecified() {
                        true => [of_family.get(&family(on)), None],
                        false => [of_address.get(&own(on)), of_address.get(&wildcard(on))],
                    });
                    let overlaps = |(end, _): &&(u16, _)| end >= ports.start();
                    let earlier = rivals.flatten().find(overlaps).map(|(_, spot)| *spot);
                    let this = (*ports.end(), spot);
                    let further = |seen: &mut (u16, _)| *seen = if seen.0 < this.0 { this } else { *seen };
                    for on in [On::Only(device), On::Any] {
                        of_address.entry(own(on)).and_modify(further).or_insert(this);
                        of_family.entry(family(on)).and_modify(further).or_insert(this);
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
                let message = format!(
                    "`{}` overlaps {} (`{}`): an address is bound once",
                    second.value, first.path, first.value
                );
                notes.error(second, message);
            }
        }
    }
}

fn wildcard_of(ip: &IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}
