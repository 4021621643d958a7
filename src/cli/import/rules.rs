//! Rules by source address that are tried in order, as the two lists that weir has, of which `deny` wins.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// What a rule does with a source; who matches none of them is accepted.
#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    /// These are accepted, whatever comes later.
    Accept(Vec<IpNet>),
    /// Clients in these networks are refused.
    Refuse(Vec<IpNet>),
    /// All but these are refused; these go on to the next rule.
    RefuseOthers(Vec<IpNet>),
}

/// The networks of all addresses, IPv4 and IPv6.
pub fn everybody() -> [IpNet; 2] {
    let v4 = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);
    let v6 = Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0);
    [v4.into(), v6.into()]
}

/// `allow` (`None`: everybody) and `deny`.
pub fn lists(rules: &[Rule]) -> (Option<Vec<IpNet>>, Vec<IpNet>) {
    let mut accepted: Vec<IpNet> = Vec::new();
    let mut allow: Option<Vec<IpNet>> = None;
    let mut deny: Vec<IpNet> = Vec::new();
    for rule in rules {
        match rule {
            Rule::Accept(nets) => accepted.extend(within(nets, allow.as_deref())),
            Rule::Refuse(nets) => deny.extend(without(nets, &accepted)),
            Rule::RefuseOthers(nets) => {
                let mut left = within(nets, allow.as_deref());
                left.extend(&accepted);
                allow = Some(left);
            }
        }
    }
    if allow.as_ref().is_some_and(Vec::is_empty) {
        return (None, everybody().to_vec());
    }
    (allow.map(tidy), tidy(deny))
}

/// Those parts of `nets` that are in `limit` (`None`: everybody).
fn within(nets: &[IpNet], limit: Option<&[IpNet]>) -> Vec<IpNet> {
    let Some(limit) = limit else {
        return nets.to_vec();
    };
    let common = |a: &IpNet, b: &IpNet| match (a.contains(b), b.contains(a)) {
        (true, _) => Some(*b),
        (_, true) => Some(*a),
        _ => None,
    };
    nets.iter()
        .flat_map(|net| limit.iter().filter_map(move |other| common(net, other)))
        .collect()
}

/// `nets` less `holes`.
fn without(nets: &[IpNet], holes: &[IpNet]) -> Vec<IpNet> {
    let mut left = nets.to_vec();
    for hole in holes {
        left = left.iter().flat_map(|net| less(*net, hole)).collect();
    }
    left
}

/// One prefix less another, as at most 128 prefixes.
fn less(mut net: IpNet, hole: &IpNet) -> Vec<IpNet> {
    if hole.contains(&net) {
        return Vec::new();
    }
    if !net.contains(hole) {
        return vec![net];
    }
    let mut left = Vec::new();
    while net != hole.trunc() {
        let halves: Vec<IpNet> = net.subnets(net.prefix_len() + 1).into_iter().flatten().collect();
        for half in halves {
            match half.contains(hole) {
                true => net = half,
                false => left.push(half),
            }
        }
    }
    left
}

/// Sorted, without what another one contains.
fn tidy(nets: Vec<IpNet>) -> Vec<IpNet> {
    IpNet::aggregate(&nets.iter().map(IpNet::trunc).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::acl::Acl;
    use proptest::prelude::*;
    use std::net::IpAddr;

    fn nets(text: &str) -> Vec<IpNet> {
        text.split_whitespace().map(|net| net.parse().unwrap()).collect()
    }

    /// What the rules say, one after the other.
    fn in_order(rules: &[Rule], ip: IpAddr) -> bool {
        let has = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&ip));
        for rule in rules {
            match rule {
                Rule::Accept(nets) if has(nets) => return true,
                Rule::Refuse(nets) if has(nets) => return false,
                Rule::RefuseOthers(nets) if !has(nets) => return false,
                _ => {}
            }
        }
        true
    }

    #[test]
    fn rules_that_people_write() {
        let (accept, refuse) = (|text| Rule::Accept(nets(text)), |text| Rule::Refuse(nets(text)));
        let rest = || Rule::RefuseOthers(Vec::new());
        for (rules, allow, deny) in [
            (vec![], None, ""),
            (vec![accept("10.0.0.0/8"), rest()], Some("10.0.0.0/8"), ""),
            (
                vec![refuse("10.0.0.1/32"), accept("10.0.0.0/8"), rest()],
                Some("10.0.0.0/8"),
                "10.0.0.1/32",
            ),
            (vec![accept("10.0.0.0/9"), refuse("10.0.0.0/8")], None, "10.128.0.0/9"),
            (vec![rest()], None, "0.0.0.0/0 ::/0"),
            (
                vec![Rule::RefuseOthers(nets("10.0.0.0/8")), refuse("10.1.0.0/16")],
                Some("10.0.0.0/8"),
                "10.1.0.0/16",
            ),
        ] {
            assert_eq!(lists(&rules), (allow.map(nets), nets(deny)), "{rules:?}");
        }
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let net = (0u8..8, 26u8..=32).prop_map(|(ip, len)| IpNet::new([10, 0, 0, ip * 8].into(), len).unwrap().trunc());
        (0..3, proptest::collection::vec(net, 0..4)).prop_map(|(kind, nets)| match kind {
            0 => Rule::Accept(nets),
            1 => Rule::Refuse(nets),
            _ => Rule::RefuseOthers(nets),
        })
    }

    proptest! {
        /// Meant to fail when what was accepted earlier is not taken out of `deny`, and when an acceptance after
        /// `RefuseOthers` widens `allow`.
        #[test]
        fn the_lists_mean_what_the_rules_say(rules in proptest::collection::vec(rule(), 0..6)) {
            let (allow, deny) = lists(&rules);
            let acl = Acl::new(&allow.unwrap_or_default(), &deny);
            for last in 0..=255 {
                let ip = IpAddr::from([10, 0, 0, last]);
                prop_assert_eq!(acl.permits(ip), in_order(&rules, ip), "{} {:?}", ip, rules);
            }
        }
    }
}
