//! Access lists and limits of sources as the program has them. Pure.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use super::layout::{Guard, Network, VERDICT_DENIED, VERDICT_EXEMPT, address};
use crate::balance::limits::Gcra;
use crate::config::model::Listener;

/// Bits of a [`Network`] before its address: the guard counts whole.
const GUARD_BITS: u32 = 32;

/// How many networks a listener names at most.
pub fn count(listener: &Listener) -> usize {
    listener.allow.len() + listener.deny.len() + listener.limits.exempt.len()
}

/// The guard of a listener; `None` = everybody may come as often as they like.
pub fn guard(listener: &Listener) -> Option<Guard> {
    let limits = &listener.limits;
    let [cost, depth] = limits.new_per_source.map_or([0; 2], |rate| Gcra::new(rate).nanos());
    let guard = Guard {
        otherwise: if listener.allow.is_empty() { 0 } else { VERDICT_DENIED },
        listed: u32::from(count(listener) > 0),
        per_source: limits.per_source.unwrap_or(0),
        pad: 0,
        cost,
        depth,
    };
    let counts = guard.per_source > 0 || guard.cost > 0;
    let lists = !listener.allow.is_empty() || !listener.deny.is_empty();
    (counts || lists).then_some(guard)
}

/// What a listener says of a network itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Said {
    allowed: bool,
    denied: bool,
    exempt: bool,
}

impl Said {
    fn and(self, other: Said) -> Said {
        Said {
            allowed: self.allowed | other.allowed,
            denied: self.denied | other.denied,
            exempt: self.exempt | other.exempt,
        }
    }
}

/// A network in the form of maps: IPv4 as it is mapped into IPv6, also if it was written so.
fn place(net: &IpNet, guard: u32) -> Network {
    let ip = net.network();
    let (is_v4, bits) = match (ip, u32::from(net.prefix_len())) {
        (IpAddr::V4(_), bits) => (true, 96 + bits),
        (IpAddr::V6(ip), bits) => (bits >= 96 && ip.to_ipv4_mapped().is_some(), bits),
    };
    Network {
        length: GUARD_BITS + bits,
        guard: 2 * guard + u32::from(is_v4),
        address: address(ip),
    }
}

/// The first bits of a network.
fn shortened(network: &Network, length: u32) -> Network {
    let bits = u128::from_be_bytes(network.address);
    let mask = u128::MAX.checked_shl(128 + GUARD_BITS - length).unwrap_or(0);
    Network {
        length,
        address: (bits & mask).to_be_bytes(),
        ..*network
    }
}

/// The networks that a listener names, for the guard at a place, with what holds for those addresses that no longer one of them
/// has: the program looks at one network only, so each says all that those around it say.
pub fn networks(listener: &Listener, guard: u32) -> HashMap<Network, u32> {
    let mut said: HashMap<Network, Said> = HashMap::new();
    let lists: [(&[IpNet], fn(&mut Said)); 3] = [
        (&listener.allow, |said| said.allowed = true),
        (&listener.deny, |said| said.denied = true),
        (&listener.limits.exempt, |said| said.exempt = true),
    ];
    for (nets, note) in lists {
        nets.iter()
            .for_each(|net| note(said.entry(place(net, guard)).or_default()));
    }
    let lengths: BTreeSet<u32> = said.keys().map(|network| network.length).collect();
    let verdict = |network: &Network| {
        let around = lengths.range(..=network.length);
        let around = around.filter_map(|&length| said.get(&shortened(network, length)));
        let all = around.copied().fold(Said::default(), Said::and);
        let is_denied = all.denied || !listener.allow.is_empty() && !all.allowed;
        (if is_denied { VERDICT_DENIED } else { 0 }) | (if all.exempt { VERDICT_EXEMPT } else { 0 })
    };
    said.keys().map(|network| (*network, verdict(network))).collect()
}

/// What a limit of the process leaves to an engine that has `ours` of `all`; without a limit, any number.
pub fn left(most: Option<u32>, all: u32, ours: u32) -> u32 {
    most.map_or(u32::MAX, |most| most.saturating_sub(all.saturating_sub(ours)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::acl::{Acl, NetSet};
    use crate::config;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn listener(more: &str) -> Listener {
        let text = format!(
            "listeners: {{l: {{bind: '127.0.0.1:80', pool: p{more}}}}}\npools: {{p: {{backends: ['10.0.0.1:80']}}}}"
        );
        config::parse("f", &text).unwrap().config.listeners.remove(0)
    }

    /// As the program does it.
    fn verdict(listener: &Listener, ip: IpAddr) -> u32 {
        let networks = networks(listener, 7);
        let Some(guard) = guard(listener) else { return 0 };
        let whole = Network {
            length: GUARD_BITS + 128,
            guard: 14 + u32::from(ip.to_canonical().is_ipv4()),
            address: address(ip),
        };
        (0..=128)
            .rev()
            .find_map(|bits| networks.get(&shortened(&whole, GUARD_BITS + bits)))
            .copied()
            .unwrap_or(guard.otherwise)
    }

    #[test]
    fn a_listener_without_these_keys_has_no_guard() {
        assert_eq!(guard(&listener("")), None);
        assert_eq!(guard(&listener(", limits: {connections: 5}")), None);
        assert!(guard(&listener(", deny: [10.0.0.0/8]")).is_some_and(|guard| guard.otherwise == 0));
        assert!(guard(&listener(", allow: [10.0.0.0/8]")).is_some_and(|guard| guard.otherwise == VERDICT_DENIED));
        let limited = guard(&listener(", limits: {per_source: 3, new_per_source: 50/s}")).unwrap();
        let wanted = (3, 20_000_000, 1_000_000_000, 0);
        assert_eq!(
            (limited.per_source, limited.cost, limited.depth, limited.listed),
            wanted
        );
    }

    /// Columns: limit, live in all, live here; how many may be here.
    #[test]
    fn engines_share_a_limit() {
        let rows = [
            (None, 100, 40, u32::MAX),
            (Some(50), 0, 0, 50),
            (Some(50), 30, 10, 30),
            (Some(50), 50, 10, 10),
            // Lowered by a reload, or the workers have more than there is.
            (Some(50), 70, 10, 0),
            // What is live here has changed since `all` was read.
            (Some(50), 5, 10, 50),
        ];
        for (most, all, ours, wanted) in rows {
            assert_eq!(left(most, all, ours), wanted, "{most:?} {all} {ours}");
        }
    }

    /// The rows of `balance::acl`, and some that need what is around a network.
    #[test]
    fn the_longest_network_says_all() {
        #[rustfmt::skip]
        let rows = [
            ("", "10.0.0.0/8", "10.1.2.3", false),
            ("", "10.0.0.0/8", "11.1.2.3", true),
            ("10.0.0.0/8", "", "2001:db8::1", false),
            ("10.0.0.0/8", "10.66.0.0/16", "10.66.1.1", false),
            ("10.0.0.0/8", "10.66.0.0/16", "10.67.0.0", true),
            ("10.66.1.1/32", "10.66.0.0/16", "10.66.1.1", false),
            ("10.66.1.1/32, 11.0.0.0/8", "10.66.0.0/16", "10.66.1.1", false),
            ("10.0.0.0/8", "10.0.0.0/16", "10.1.0.0", true),
            ("10.0.0.0/8", "10.0.0.0/16", "10.0.0.0", false),
            ("", "::/0", "10.0.0.1", true),
            ("", "::/0", "fd00::1", false),
            ("", "0.0.0.0/0", "fd00::1", true),
            ("", "0.0.0.0/0", "255.255.255.255", false),
            ("::ffff:10.0.0.0/104", "", "10.200.0.1", true),
            ("2001:db8::/32", "2001:db8:1::/48", "2001:db8:1::9", false),
            ("2001:db8::/32", "2001:db8:1::/48", "2001:db8:2::9", true),
        ];
        for (allow, deny, ip, wanted) in rows {
            let mut listener = listener("");
            let parse = |list: &str| -> Vec<IpNet> {
                let nets = list.split(", ").filter(|net| !net.is_empty());
                nets.map(|net| net.parse().unwrap()).collect()
            };
            (listener.allow, listener.deny) = (parse(allow), parse(deny));
            let got = verdict(&listener, ip.parse().unwrap()) & VERDICT_DENIED == 0;
            assert_eq!(got, wanted, "allow {allow} deny {deny}: {ip}");
        }
    }

    proptest! {
        /// One decision, one meaning: as the workers judge.
        #[test]
        fn the_program_and_the_workers_agree(
            v4 in proptest::collection::vec((0u32..64, 26u8..=32, 0usize..3), 0..12),
            v6 in proptest::collection::vec((0u128..64, 122u8..=128, 0usize..3), 0..12),
            wide in proptest::collection::vec((0u8..=2, 0usize..3), 0..3),
            asked in 0u32..64,
        ) {
            let mut listener = listener("");
            let mut lists: [Vec<IpNet>; 3] = Default::default();
            for (ip, bits, list) in v4 {
                lists[list].push(IpNet::new(Ipv4Addr::from(0x0a00_0000 + ip).into(), bits).unwrap().trunc());
            }
            for (ip, bits, list) in v6 {
                lists[list].push(IpNet::new(Ipv6Addr::from((0xfd << 120) + ip).into(), bits).unwrap().trunc());
            }
            for (bits, list) in wide {
                lists[list].push(IpNet::new(Ipv4Addr::UNSPECIFIED.into(), bits).unwrap());
                lists[list].push(IpNet::new(Ipv6Addr::UNSPECIFIED.into(), bits).unwrap());
            }
            [listener.allow, listener.deny, listener.limits.exempt] = lists;
            listener.limits.per_source = Some(1);
            let (acl, exempt) = (Acl::new(&listener.allow, &listener.deny), NetSet::new(&listener.limits.exempt));
            let v4: IpAddr = Ipv4Addr::from(0x0a00_0000 + asked).into();
            let v6: IpAddr = Ipv6Addr::from((0xfd << 120) + u128::from(asked)).into();
            for ip in [v4, v6] {
                let verdict = verdict(&listener, ip);
                prop_assert_eq!(verdict & VERDICT_DENIED == 0, acl.permits(ip), "{}", ip);
                prop_assert_eq!(verdict & VERDICT_EXEMPT != 0, exempt.contains(ip), "{}", ip);
            }
        }
    }
}
