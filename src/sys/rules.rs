//! Policy routing, as by ip-rule(8): what a backend sends to an address that is not this host's comes to a socket of this host.
//!
//! A rule matches by the backend's address, protocol and port, and leads to a table of its own with one route, `local default`.
//! All of it carries the number [`PROTOCOL`], which `ip rule` and `ip route` show as `proto 87`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use netlink_packet_route::{AddressFamily, IpProtocol, RouteNetlinkMessage};
use serde::{Deserialize, Serialize};

use super::netlink::{LOOPBACK, Netlink, PROTOCOL};

/// Behind the rule for this host's own addresses (0), before that for the main table (32766).
const PRIORITY: u32 = 7400;

/// In the header stands that the table's number is in an attribute (RT_TABLE_UNSPEC).
const TABLE_ELSEWHERE: u8 = 0;

/// Packets with this source are for this host, whatever their destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rule {
    /// Source address of the packets that it is for.
    pub from: IpAddr,
    /// Datagrams instead of streams.
    pub udp: bool,
    /// First and last source port.
    pub ports: (u16, u16),
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (protocol, (first, last)) = (if self.udp { "udp" } else { "tcp" }, self.ports);
        write!(f, "from {} ipproto {protocol} sport {first}-{last}", self.from)
    }
}

/// How packets get to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Index of the interface.
    pub interface: u32,
    /// The next host, unless the address is a neighbour's.
    pub gateway: Option<IpAddr>,
}

impl Netlink {
    /// Adds a rule that leads to a table. One that is there already is no error.
    pub fn add_rule(&mut self, rule: &Rule, table: u32) -> io::Result<()> {
        let message = RouteNetlinkMessage::NewRule(message(rule, table));
        fine(
            self.request(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL).map(drop),
            libc::EEXIST,
        )
    }

    /// Removes a rule. One that is not there is no error.
    pub fn remove_rule(&mut self, rule: &Rule, table: u32) -> io::Result<()> {
        let message = RouteNetlinkMessage::DelRule(message(rule, table));
        fine(self.request(message, NLM_F_ACK).map(drop), libc::ENOENT)
    }

    /// Removes every rule of ours that leads to a table, and says how many there were.
    pub fn sweep_rules(&mut self, table: u32) -> io::Result<usize> {
        let mut swept = 0;
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut every = RuleMessage::default();
            every.header.family = family;
            let all = match self.request(RouteNetlinkMessage::GetRule(every), NLM_F_DUMP) {
                Err(error) if family == AddressFamily::Inet6 && is_absent(&error) => continue,
                outcome => outcome?,
            };
            let ours = all.into_iter().filter_map(|message| match message {
                RouteNetlinkMessage::NewRule(rule) if is_ours(&rule, table) => Some(rule),
                _ => None,
            });
            for rule in ours {
                let message = RouteNetlinkMessage::DelRule(rule);
                fine(self.request(message, NLM_F_ACK).map(drop), libc::ENOENT)?;
                swept += 1;
            }
        }
        Ok(swept)
    }

    /// Has a table deliver everything to this host, or not any more. What is so already is no error.
    pub fn deliver_all(&mut self, table: u32, yes: bool) -> io::Result<()> {
        for any in [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()] {
            let route = everything(any, table);
            let outcome = match yes {
                true => self.request(
                    RouteNetlinkMessage::NewRoute(route),
                    NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
                ),
                false => self.request(RouteNetlinkMessage::DelRoute(route), NLM_F_ACK),
            };
            match outcome {
                Err(error) if any.is_ipv6() && is_absent(&error) => {}
                outcome => fine(outcome.map(drop), libc::ESRCH)?,
            }
        }
        Ok(())
    }

    /// How packets would get to an address now.
    pub fn way_to(&mut self, ip: IpAddr) -> io::Result<Way> {
        let mut question = RouteMessage::default();
        question.header.address_family = family(ip);
        question.header.destination_prefix_length = if ip.is_ipv4() { 32 } else { 128 };
        question.attributes = vec![RouteAttribute::Destination(ip.into())];
        let answers = self.request(RouteNetlinkMessage::GetRoute(question), NLM_F_ACK)?;
        let mut way = None;
        for answer in answers {
            let RouteNetlinkMessage::NewRoute(route) = answer else {
                continue;
            };
            let (mut interface, mut gateway) = (None, None);
            for attribute in route.attributes {
                match attribute {
                    RouteAttribute::Oif(index) => interface = Some(index),
                    RouteAttribute::Gateway(RouteAddress::Inet(ip)) => gateway = Some(ip.into()),
                    RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => gateway = Some(ip.into()),
                    _ => {}
                }
            }
            way = way.or(interface.map(|interface| Way { interface, gateway }));
        }
        way.ok_or_else(|| io::Error::from_raw_os_error(libc::ENETUNREACH))
    }
}

/// A host without IPv6 has no such rules, and no such packets.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT))
}

fn fine(outcome: io::Result<()>, errno: i32) -> io::Result<()> {
    match outcome {
        Err(error) if error.raw_os_error() != Some(errno) => Err(error),
        _ => Ok(()),
    }
}

fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn message(rule: &Rule, table: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.from);
    message.header.src_len = if rule.from.is_ipv4() { 32 } else { 128 };
    message.header.table = TABLE_ELSEWHERE;
    message.header.action = RuleAction::ToTable;
    let (start, end) = rule.ports;
    message.attributes = vec![
        RuleAttribute::Source(rule.from),
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::Table(table),
        RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
        RuleAttribute::IpProtocol(if rule.udp { IpProtocol::Udp } else { IpProtocol::Tcp }),
        RuleAttribute::SourcePortRange(RulePortRange { start, end }),
    ];
    message
}

fn is_ours(rule: &RuleMessage, table: u32) -> bool {
    let has = |wanted: RuleAttribute| rule.attributes.contains(&wanted);
    let by_weir =
        |attribute: &RuleAttribute| matches!(attribute, RuleAttribute::Protocol(p) if u8::from(*p) == PROTOCOL);
    has(RuleAttribute::Table(table)) && rule.attributes.iter().any(by_weir)
}

/// The route `local default dev lo` of a table.
fn everything(any: IpAddr, table: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(any),
        table: TABLE_ELSEWHERE,
        protocol: RouteProtocol::Other(PROTOCOL),
        scope: if any.is_ipv4() {
            RouteScope::Host
        } else {
            RouteScope::Universe
        },
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    message.attributes = vec![RouteAttribute::Table(table), RouteAttribute::Oif(LOOPBACK)];
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The way back from the kernel is the same message: whoever sweeps recognises what was made, and nothing else.
    #[test]
    fn a_rule_is_recognised_by_its_table_and_by_who_made_it() {
        let rule = Rule {
            from: "10.0.0.1".parse().unwrap(),
            udp: false,
            ports: (80, 80),
        };
        let ours = message(&rule, 7);
        assert!(is_ours(&ours, 7));
        assert!(!is_ours(&ours, 8));
        let mut theirs = ours;
        theirs
            .attributes
            .retain(|attribute| !matches!(attribute, RuleAttribute::Protocol(_)));
        assert!(!is_ours(&theirs, 7));
    }

    #[test]
    fn the_way_to_this_host_is_its_loopback() {
        let way = Netlink::open().unwrap().way_to(Ipv4Addr::LOCALHOST.into()).unwrap();
        assert_eq!(
            way,
            Way {
                interface: LOOPBACK,
                gateway: None
            }
        );
    }
}
