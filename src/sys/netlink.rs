//! Addresses and links through rtnetlink: put on, take off, list, watch.
//!
//! Addresses that we put on carry a protocol number ([`PROTOCOL`], Linux 5.18 and later) and a finite lifetime, by which a later
//! process recognises what a dead one has left. See rtnetlink(7) and `include/uapi/linux/if_addr.h`.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol, AddressScope, CacheInfo,
};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, constants::NETLINK_ROUTE};

/// What `ip -d address` shows as `proto` of our addresses ('W'); `IFA_PROTO`.
pub const PROTOCOL: u8 = 0x57;

/// Lifetimes above this are not ours, whatever else they look like: DHCP hands out hours.
const LEASE_MAX_S: u32 = 120;

/// The table of what is for this host itself (RT_TABLE_LOCAL), and the loopback interface, which is the first everywhere.
const TABLE_LOCAL: u8 = 255;
pub(super) const LOOPBACK: u32 = 1;

/// Behind the route that the kernel makes for an address, whose metric is 0.
const METRIC: u32 = 7400;

/// Multicast groups of rtnetlink: links, IPv4 addresses, IPv6 addresses.
const GROUPS: [u32; 3] = [1, 5, 9];

const BUFFER: usize = 64 * 1024;

/// Receive buffer of a [`Monitor`].
const MONITOR_BYTES: i32 = 2 * 1024 * 1024;

/// Changes sent at once: their answers fit into a socket's default receive buffer (measured: about 270 do).
const BATCH: usize = 64;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's number for it.
    pub index: u32,
    /// Its name, as `ip link` shows it.
    pub name: String,
    /// Its Ethernet address, if it has one.
    pub mac: Option<[u8; 6]>,
    /// Switched on, with a carrier.
    pub up: bool,
}

impl Interface {
    /// Whether its packets begin with an Ethernet header. The loopback interface's do, and lead nowhere.
    pub fn is_ethernet(&self) -> bool {
        self.mac.is_some_and(|mac| mac != [0; 6])
    }
}

/// An address as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// Index of its interface.
    pub interface: u32,
    /// Address and prefix length.
    pub net: IpNet,
    /// Put on by a weir, as far as can be told.
    pub ours: bool,
    /// Not the first of its subnet on the interface (IPv4): the kernel removes it together with that one, unless
    /// `promote_secondaries` is set.
    pub secondary: bool,
}

/// A change of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edit {
    /// See [`Netlink::install`].
    Install {
        /// Index of the interface.
        interface: u32,
        /// Address and prefix length.
        net: IpNet,
        /// Valid lifetime, whole seconds.
        lease: Duration,
        /// An address that is there already is an error.
        fresh: bool,
    },
    /// See [`Netlink::remove`].
    Remove {
        /// Index of the interface.
        interface: u32,
        /// Address and prefix length.
        net: IpNet,
    },
}

/// News from the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// An address was put on or changed.
    Added(Address),
    /// An address was taken off.
    Removed(Address),
    /// An interface came or changed.
    Link(Interface),
    /// An interface went.
    Unlinked(Interface),
    /// News were lost; look at everything again.
    Overrun,
}

/// A socket for requests; each waits for the kernel's answer.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens it. Listing needs no privilege, changing needs CAP_NET_ADMIN.
    pub fn open() -> io::Result<Netlink> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Puts an address on, or makes the lease of one that is there fresh.
    ///
    /// `lease` is the valid lifetime, whole seconds. An IPv6 address is put on without duplicate address detection (which would
    /// cost a second, and fail while a frozen predecessor still answers) and with preferred lifetime 0, so that it is
    /// never chosen as the source of our own connections. With `fresh`, an address that is there already is an error
    /// (`AlreadyExists`).
    pub fn install(&mut self, interface: u32, net: IpNet, lease: Duration, fresh: bool) -> io::Result<()> {
        let edit = Edit::Install {
            interface,
            net,
            lease,
            fresh,
        };
        self.edit(&[edit]).remove(0)
    }

    /// Takes an address off. One that is not there is `AddrNotAvailable`.
    pub fn remove(&mut self, interface: u32, net: IpNet) -> io::Result<()> {
        self.edit(&[Edit::Remove { interface, net }]).remove(0)
    }

    /// Has packets to an IP address accepted by this host, or no longer, whether it is on an interface or not: a `local` route.
    ///
    /// A routing daemon does not announce such a route. What is so already is no error.
    pub fn accept(&mut self, ip: IpAddr, yes: bool) -> io::Result<()> {
        let (message, flags, fine) = match yes {
            true => (
                RouteNetlinkMessage::NewRoute(local(ip)),
                NLM_F_CREATE | NLM_F_EXCL,
                libc::EEXIST,
            ),
            false => (RouteNetlinkMessage::DelRoute(local(ip)), 0, libc::ESRCH),
        };
        match self.request(message, NLM_F_ACK | flags) {
            Err(e) if e.raw_os_error() != Some(fine) => Err(e),
            _ => Ok(()),
        }
    }

    /// Carries out changes in their order, each by itself, with one system call for every [`BATCH`] of them; one result each.
    pub fn edit(&mut self, edits: &[Edit]) -> Vec<io::Result<()>> {
        let mut results = Vec::with_capacity(edits.len());
        for batch in edits.chunks(BATCH) {
            let first = self.sequence.wrapping_add(1);
            let bytes: Vec<u8> = batch.iter().flat_map(|edit| self.packet(edit)).collect();
            let mut answers: Vec<Option<io::Result<()>>> = Vec::new();
            answers.resize_with(batch.len(), || None);
            let outcome = self.socket.send(&bytes, 0).and_then(|_| {
                self.answers(|packet| {
                    let nth = packet.header.sequence_number.wrapping_sub(first) as usize;
                    if let (Some(answer), NetlinkPayload::Error(e)) = (answers.get_mut(nth), packet.payload) {
                        *answer = Some(if e.code.is_none() { Ok(()) } else { Err(e.to_io()) });
                    }
                    answers.iter().all(Option::is_some)
                })
            });
            results.extend(answers.into_iter().map(|answer| match (answer, &outcome) {
                (Some(answer), _) => answer,
                (None, Err(e)) => Err(io::Error::new(e.kind(), e.to_string())),
                (None, Ok(())) => unreachable!("the answers end with the last one"),
            }));
        }
        results
    }

    /// All addresses of this network namespace.
    pub fn addresses(&mut self) -> io::Result<Vec<Address>> {
        let all = self.request(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP)?;
        Ok(all
            .iter()
            .filter_map(|m| match m {
                RouteNetlinkMessage::NewAddress(a) => address(a),
                _ => None,
            })
            .collect())
    }

    /// All interfaces of this network namespace.
    pub fn interfaces(&mut self) -> io::Result<Vec<Interface>> {
        let all = self.request(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        Ok(all
            .iter()
            .filter_map(|m| match m {
                RouteNetlinkMessage::NewLink(l) => interface(l),
                _ => None,
            })
            .collect())
    }

    fn packet(&mut self, edit: &Edit) -> Vec<u8> {
        let (message, flags) = match *edit {
            Edit::Install {
                interface,
                net,
                lease,
                fresh,
            } => {
                let how = if fresh { NLM_F_EXCL } else { NLM_F_REPLACE };
                let message = RouteNetlinkMessage::NewAddress(leased(interface, net, lease));
                (message, NLM_F_CREATE | how)
            }
            Edit::Remove { interface, net } => (RouteNetlinkMessage::DelAddress(message(interface, net)), 0),
        };
        self.serialize(message, NLM_F_ACK | flags)
    }

    /// A message with the next sequence number.
    fn serialize(&mut self, message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        // The next message of a batch begins at a multiple of four.
        let mut bytes = vec![0; packet.buffer_len().next_multiple_of(4)];
        packet.serialize(&mut bytes);
        bytes
    }

    /// Reads until `last` has said so of a message.
    fn answers(&mut self, mut last: impl FnMut(NetlinkMessage<RouteNetlinkMessage>) -> bool) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                outcome => outcome?,
            };
            for packet in packets(&buffer) {
                if last(packet) {
                    return Ok(());
                }
            }
        }
    }

    pub(super) fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let bytes = self.serialize(message, flags);
        self.socket.send(&bytes, 0)?;
        let (mut found, mut refused, sequence) = (Vec::new(), None, self.sequence);
        self.answers(|packet| {
            if packet.header.sequence_number != sequence {
                return false;
            }
            match packet.payload {
                NetlinkPayload::Done(_) => return true,
                NetlinkPayload::Error(e) => {
                    refused = e.code.is_some().then(|| e.to_io());
                    return true;
                }
                NetlinkPayload::InnerMessage(m) => found.push(m),
                _ => {}
            }
            false
        })?;
        refused.map_or(Ok(found), Err)
    }
}

/// A socket that hears about every change.
pub struct Monitor {
    socket: Socket,
}

impl Monitor {
    /// Opens it, non-blocking.
    pub fn open() -> io::Result<Monitor> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        // A thousand leases are a thousand messages at every renewal. What does not fit is an overrun, which is found out.
        let _ = socket.set_rx_buf_sz(MONITOR_BYTES);
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        Ok(Monitor { socket })
    }

    /// What has changed since the last call; empty if nothing has.
    pub fn changes(&mut self) -> io::Result<Vec<Change>> {
        let mut changes = Vec::new();
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(changes),
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                    changes.push(Change::Overrun);
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            }
            for packet in packets(&buffer) {
                let NetlinkPayload::InnerMessage(message) = packet.payload else {
                    continue;
                };
                changes.extend(match &message {
                    RouteNetlinkMessage::NewAddress(a) => address(a).map(Change::Added),
                    RouteNetlinkMessage::DelAddress(a) => address(a).map(Change::Removed),
                    RouteNetlinkMessage::NewLink(l) => interface(l).map(Change::Link),
                    RouteNetlinkMessage::DelLink(l) => interface(l).map(Change::Unlinked),
                    _ => None,
                });
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket is open for as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
    }
}

fn local(ip: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: match ip {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        },
        destination_prefix_length: if ip.is_ipv4() { 32 } else { 128 },
        table: TABLE_LOCAL,
        protocol: RouteProtocol::Other(PROTOCOL),
        scope: if ip.is_ipv4() {
            RouteScope::Host
        } else {
            RouteScope::Universe
        },
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    message.attributes = vec![
        RouteAttribute::Destination(ip.into()),
        RouteAttribute::Oif(LOOPBACK),
        RouteAttribute::Priority(METRIC),
    ];
    message
}

fn leased(interface: u32, net: IpNet, lease: Duration) -> AddressMessage {
    let seconds = lease.as_secs() as u32;
    let mut message = message(interface, net);
    let mut cache = CacheInfo::default();
    cache.ifa_valid = seconds;
    cache.ifa_preferred = if net.addr().is_ipv6() { 0 } else { seconds };
    message.attributes.push(AddressAttribute::CacheInfo(cache));
    message
        .attributes
        .push(AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)));
    if net.addr().is_ipv6() {
        let mut flags = AddressFlags::Nodad;
        // The kernel does not take away the route to the prefix of an address with preferred lifetime 0 (seen on 6.18). Where that
        // is the address itself, this host would not find it anywhere else afterwards.
        flags.set(AddressFlags::Noprefixroute, net.prefix_len() == 128);
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    message
}

fn message(interface: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = match net {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    message.header.prefix_len = net.prefix_len();
    message.header.scope = AddressScope::Universe;
    message.header.index = interface;
    message.attributes = vec![
        AddressAttribute::Local(net.addr()),
        AddressAttribute::Address(net.addr()),
    ];
    if let IpNet::V4(v4) = net
        && v4.prefix_len() < 31
        && v4.broadcast() != Ipv4Addr::BROADCAST
    {
        message.attributes.push(AddressAttribute::Broadcast(v4.broadcast()));
    }
    message
}

/// The messages of one datagram; what cannot be read ends it.
fn packets(mut bytes: &[u8]) -> Vec<NetlinkMessage<RouteNetlinkMessage>> {
    let mut found = Vec::new();
    while let Some(length) = bytes.first_chunk::<4>() {
        let length = u32::from_ne_bytes(*length) as usize;
        if length < 16 || length > bytes.len() {
            break;
        }
        if let Ok(packet) = NetlinkMessage::deserialize(&bytes[..length]) {
            found.push(packet);
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn address(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut peer, mut protocol, mut valid) = (None, None, None, u32::MAX);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => peer = Some(*ip),
            AddressAttribute::Protocol(p) => protocol = Some(u8::from(*p)),
            AddressAttribute::CacheInfo(c) => valid = c.ifa_valid,
            _ => {}
        }
    }
    // For IPv6 without a peer the kernel sends only IFA_ADDRESS.
    let ip: IpAddr = local.or(peer)?;
    let ours = match protocol {
        Some(p) => p == PROTOCOL && valid <= LEASE_MAX_S,
        // Before Linux 5.18 there is no protocol to go by.
        None => valid <= LEASE_MAX_S,
    };
    Some(Address {
        interface: message.header.index,
        net: IpNet::new(ip, message.header.prefix_len).ok()?,
        ours,
        secondary: ip.is_ipv4() && message.header.flags.contains(AddressHeaderFlags::Secondary),
    })
}

fn interface(message: &LinkMessage) -> Option<Interface> {
    let (mut name, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(n) => name = Some(n.clone()),
            LinkAttribute::Address(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let flags = message.header.flags;
    Some(Interface {
        index: message.header.index,
        name: name?,
        mac: mac.filter(|_| !flags.contains(LinkFlags::Loopback)),
        up: flags.contains(LinkFlags::Up | LinkFlags::Running),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_found() {
        let mut netlink = Netlink::open().unwrap();
        let interfaces = netlink.interfaces().unwrap();
        let lo = interfaces.iter().find(|i| i.name == "lo").unwrap();
        assert_eq!(lo.mac, None);
        for address in netlink.addresses().unwrap() {
            assert!(interfaces.iter().any(|i| i.index == address.interface));
        }
    }

    #[test]
    fn noise_in_a_datagram_is_no_message() {
        assert!(packets(&[]).is_empty());
        assert!(packets(&[1, 0, 0, 0]).is_empty());
        assert!(packets(&[0xff; 64]).is_empty());
    }
}
