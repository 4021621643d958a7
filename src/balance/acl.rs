//! Allow and deny lists: longest or shortest prefix does not matter, deny wins, empty allow means everyone.
//!
//! Networks become sorted, disjoint ranges once; a look-up is a binary search (14 steps for 10,000 entries) and an empty
//! list costs a branch. IPv4 and IPv6 are apart: `::/0` says nothing about IPv4. A v4-mapped address or network counts as
//! the IPv4 one it carries, so a dual-stack listener obeys the same lists as a plain one.

use std::net::IpAddr;

use ipnet::IpNet;

/// A set of addresses given as networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetSet {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
}

impl NetSet {
    /// The union of these networks, in any order, overlapping or not.
    pub fn new(nets: &[IpNet]) -> NetSet {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for net in nets {
            match (net.network(), net.broadcast()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => v4.push((first.to_bits(), last.to_bits())),
                (IpAddr::V6(first), IpAddr::V6(last)) => match (first.to_ipv4_mapped(), last.to_ipv4_mapped()) {
                    (Some(first), Some(last)) => v4.push((first.to_bits(), last.to_bits())),
                    _ => v6.push((first.to_bits(), last.to_bits())),
                },
                _ => unreachable!("both ends of a network are of one family"),
            }
        }
        NetSet {
            v4: Ranges::new(v4, |end| end.checked_add(1)),
            v6: Ranges::new(v6, |end| end.checked_add(1)),
        }
    }

    /// Whether this address is in one of the networks.
    #[inline]
    pub fn contains(&self, ip: IpAddr) -> bool {
        match ip.to_canonical() {
            IpAddr::V4(ip) => self.v4.contains(ip.to_bits()),
            IpAddr::V6(ip) => self.v6.contains(ip.to_bits()),
        }
    }

    /// Whether there is no network at all.
    pub fn is_empty(&self) -> bool {
        self.v4.0.is_empty() && self.v6.0.is_empty()
    }
}

/// Sorted, disjoint, not adjacent, both ends included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Ranges<T>(Box<[(T, T)]>);

impl<T: Copy + Ord> Ranges<T> {
    fn new(mut ranges: Vec<(T, T)>, after: impl Fn(T) -> Option<T>) -> Ranges<T> {
        ranges.sort_unstable();
        let mut merged: Vec<(T, T)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some((_, end)) if after(*end).is_none_or(|next| first <= next) => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        Ranges(merged.into())
    }

    #[inline]
    fn contains(&self, ip: T) -> bool {
        let at = self.0.partition_point(|&(_, last)| last < ip);
        self.0.get(at).is_some_and(|&(first, _)| first <= ip)
    }
}

/// Who may use a listener.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Acl {
    /// `None` = everyone.
    allow: Option<NetSet>,
    deny: NetSet,
}

impl Acl {
    /// `allow` empty = everyone; `deny` wins over `allow`.
    pub fn new(allow: &[IpNet], deny: &[IpNet]) -> Acl {
        Acl {
            allow: (!allow.is_empty()).then(|| NetSet::new(allow)),
            deny: NetSet::new(deny),
        }
    }

    /// Whether this client may connect.
    #[inline]
    pub fn permits(&self, ip: IpAddr) -> bool {
        self.allow.as_ref().is_none_or(|allow| allow.contains(ip)) && !self.deny.contains(ip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|net| net.parse().unwrap()).collect()
    }

    /// Columns: allow, deny, address, permitted. Broken on purpose: `to_canonical` left out; deny asked first only when
    /// allow is empty.
    #[test]
    fn deny_wins_and_empty_allow_is_everyone() {
        let rows: [(&[&str], &[&str], &str, bool); 15] = [
            (&[], &[], "1.2.3.4", true),
            (&[], &[], "2001:db8::1", true),
            (&["10.0.0.0/8"], &[], "10.1.2.3", true),
            (&["10.0.0.0/8"], &[], "11.1.2.3", false),
            (&["10.0.0.0/8"], &[], "2001:db8::1", false),
            (&["10.0.0.0/8"], &["10.66.0.0/16"], "10.66.1.1", false),
            (&["10.0.0.0/8"], &["10.66.0.0/16"], "10.67.0.0", true),
            (&["10.66.1.1/32"], &["10.66.0.0/16"], "10.66.1.1", false),
            (&[], &["10.0.0.0/8"], "::ffff:10.0.0.1", false),
            (&["::ffff:10.0.0.0/104"], &[], "10.200.0.1", true),
            (&[], &["::/0"], "10.0.0.1", true),
            (&[], &["::/0"], "fd00::1", false),
            (&[], &["0.0.0.0/0"], "255.255.255.255", false),
            (&["2001:db8::/32"], &["2001:db8:1::/48"], "2001:db8:1::9", false),
            (&["2001:db8::/32"], &["2001:db8:1::/48"], "2001:db8:2::9", true),
        ];
        for (allow, deny, ip, wanted) in rows {
            let acl = Acl::new(&nets(allow), &nets(deny));
            assert_eq!(
                acl.permits(ip.parse().unwrap()),
                wanted,
                "allow {allow:?} deny {deny:?}: {ip}"
            );
        }
    }

    #[test]
    fn neighbours_become_one_range() {
        let set = NetSet::new(&nets(&[
            "10.0.1.0/24",
            "10.0.0.0/24",
            "10.0.0.128/25",
            "255.0.0.0/8",
            "255.255.0.0/16",
        ]));
        assert_eq!(set.v4.0.len(), 2);
        assert!(NetSet::new(&[]).is_empty() && !set.is_empty());
    }

    proptest! {
        /// The oracle asks every network. Addresses are drawn near the edges. Broken on purpose: `<=` in the search.
        #[test]
        fn agrees_with_asking_every_network(
            v4 in proptest::collection::vec((any::<u32>(), 0u8..=32), 0..40),
            v6 in proptest::collection::vec((any::<u128>(), 0u8..=128), 0..40),
            wide in any::<u128>(),
        ) {
            let mut nets: Vec<IpNet> = Vec::new();
            nets.extend(v4.iter().map(|&(ip, len)| IpNet::new(Ipv4Addr::from(ip).into(), len).unwrap()));
            nets.extend(v6.iter().map(|&(ip, len)| IpNet::new(Ipv6Addr::from(ip | 1 << 127).into(), len).unwrap()));
            nets.retain(|net| net.prefix_len() > 2);
            let set = NetSet::new(&nets);
            let mut asked: Vec<IpAddr> = vec![Ipv6Addr::from(wide).into(), Ipv4Addr::from(wide as u32).into()];
            for net in &nets {
                match (net.network(), net.broadcast()) {
                    (IpAddr::V4(a), IpAddr::V4(b)) => asked.extend(
                        [a.to_bits(), a.to_bits().wrapping_sub(1), b.to_bits(), b.to_bits().wrapping_add(1)]
                            .map(|ip| IpAddr::from(Ipv4Addr::from(ip)))),
                    (a, b) => {
                        let bits = |ip: IpAddr| match ip { IpAddr::V6(ip) => ip.to_bits(), IpAddr::V4(_) => 0 };
                        asked.extend([bits(a), bits(a).wrapping_sub(1), bits(b), bits(b).wrapping_add(1)]
                            .map(|ip| IpAddr::from(Ipv6Addr::from(ip))));
                    }
                }
            }
            for ip in asked {
                let ip = ip.to_canonical();
                prop_assert_eq!(set.contains(ip), nets.iter().any(|net| net.contains(&ip)), "{}", ip);
            }
        }
    }
}
