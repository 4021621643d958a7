//! Telling the neighbours where an address is: gratuitous ARP and unsolicited neighbour advertisements.
//!
//! Frames are built whole and sent through a packet socket (CAP_NET_RAW), because the address may have arrived on the
//! interface only microseconds ago and because neither protocol has a socket of its own. RFC 5227 section 3 (announcement),
//! RFC 4861 sections 4.4 and 7.2.6 (unsolicited advertisement).

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use crate::base::checksum;

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// A packet socket for announcements.
pub struct Announcer {
    socket: OwnedFd,
}

impl Announcer {
    /// Opens it; it receives nothing.
    pub fn open() -> io::Result<Announcer> {
        // SAFETY: no memory is passed; protocol 0 binds the socket to no traffic (packet(7)).
        let fd = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                0,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Announcer {
            // SAFETY: `fd` was just returned by socket(2) and belongs to nobody else.
            socket: unsafe { OwnedFd::from_raw_fd(fd) },
        })
    }

    /// Tells every neighbour on the interface, which has this number and this name, that `address` is at `mac`. Never waits, not
    /// for the kernel's network configuration lock either; `WouldBlock` or ENOBUFS when the queues are full.
    pub fn announce(&self, interface: u32, name: &str, mac: [u8; 6], address: IpAddr) -> io::Result<()> {
        match address {
            IpAddr::V4(ip) => {
                // Some stacks heed only requests, some only replies.
                self.send(interface, ETHERTYPE_ARP, &arp(mac, ip, 1))?;
                self.send(interface, ETHERTYPE_ARP, &arp(mac, ip, 2))
            }
            IpAddr::V6(ip) => {
                let router = is_router(name);
                self.send(interface, ETHERTYPE_IPV6, &advertisement(mac, ip, router))
            }
        }
    }

    fn send(&self, interface: u32, ethertype: u16, frame: &[u8]) -> io::Result<()> {
        // SAFETY: all zeroes is a valid sockaddr_ll.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_protocol = ethertype.to_be();
        to.sll_ifindex = interface as i32;
        to.sll_halen = 6;
        to.sll_addr[..6].copy_from_slice(&frame[..6]);
        // SAFETY: `frame` and `to` are live for the call, and their lengths are given.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                libc::MSG_NOSIGNAL,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// Whether the host forwards IPv6 there; an advertisement without the router flag would cost it its routes through us.
fn is_router(interface: &str) -> bool {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/forwarding");
    fs::read_to_string(path).is_ok_and(|v| v.trim() != "0")
}

/// An ARP announcement: sender and target are both the address.
fn arp(mac: [u8; 6], ip: Ipv4Addr, operation: u8) -> [u8; 42] {
    let mut f = [0; 42];
    f[..6].fill(0xff);
    f[6..12].copy_from_slice(&mac);
    f[12..14].copy_from_slice(&ETHERTYPE_ARP.to_be_bytes());
    // Ethernet, IPv4, their address lengths, operation.
    f[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, operation]);
    f[22..28].copy_from_slice(&mac);
    f[28..32].copy_from_slice(&ip.octets());
    // The target's hardware address is ignored in requests; in replies it tells the receiver that it is gratuitous.
    if operation == 2 {
        f[32..38].copy_from_slice(&mac);
    }
    f[38..42].copy_from_slice(&ip.octets());
    f
}

/// An unsolicited neighbour advertisement to all nodes, with the override flag.
fn advertisement(mac: [u8; 6], ip: Ipv6Addr, router: bool) -> [u8; 86] {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const ICMP_LEN: u16 = 32;
    let mut f = [0; 86];
    f[..6].copy_from_slice(&[0x33, 0x33, 0, 0, 0, 1]);
    f[6..12].copy_from_slice(&mac);
    f[12..14].copy_from_slice(&ETHERTYPE_IPV6.to_be_bytes());
    f[14] = 0x60;
    f[18..20].copy_from_slice(&ICMP_LEN.to_be_bytes());
    f[20] = 58;
    // Receivers drop neighbour discovery that a router could have forwarded.
    f[21] = 255;
    f[22..38].copy_from_slice(&ip.octets());
    f[38..54].copy_from_slice(&ALL_NODES.octets());
    f[54] = 136;
    f[58] = if router { 0xa0 } else { 0x20 };
    f[62..78].copy_from_slice(&ip.octets());
    // Target link-layer address option, in units of 8 bytes.
    f[78] = 2;
    f[79] = 1;
    f[80..86].copy_from_slice(&mac);
    // RFC 8200, section 8.1: the two addresses, length and protocol count as well.
    let sum = checksum::internet(&[&f[22..54], &ICMP_LEN.to_be_bytes(), &[0, 58], &f[54..86]]);
    f[56..58].copy_from_slice(&sum.to_be_bytes());
    f
}

/// What stands in the way of an address that several hosts hold at the same time on an interface of this name, as far as `root`
/// (`/sys/class/net`) tells: for people, with the remedy.
pub fn shared_advice(root: &Path, interface: &str, vip: IpAddr) -> Option<String> {
    let flags = fs::read_to_string(root.join(interface).join("flags")).ok()?;
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).ok()?;
    let quiet = (libc::IFF_LOOPBACK | libc::IFF_NOARP) as u32;
    (flags & quiet == 0).then(|| {
        format!(
            "{interface} answers its neighbours for {vip}, and with `hold: all` so would every other node there: use `lo` or a dummy interface"
        )
    })
}

/// What the host's settings will do to a VIP on this interface, in words; empty if nothing.
///
/// `root` is `/proc/sys/net`, another directory in tests.
pub fn advice(root: &Path, interface: &str, vip: IpAddr) -> Vec<String> {
    let mut advice = Vec::new();
    if vip.is_ipv6() {
        return advice;
    }
    // The kernel takes the larger of `all` and the interface's own.
    let setting = |key: &str| {
        let read = |scope: &str| {
            fs::read_to_string(root.join("ipv4/conf").join(scope).join(key))
                .ok()
                .and_then(|v| v.trim().parse::<u32>().ok())
        };
        read("all").max(read(interface))
    };
    let others = fs::read_dir(root.join("ipv4/conf")).is_ok_and(|dir| {
        dir.flatten()
            .filter(|e| {
                let name = e.file_name();
                !["all", "default", "lo", interface].contains(&name.to_string_lossy().as_ref())
            })
            .count()
            > 0
    });
    match setting("arp_ignore") {
        Some(8) => advice.push(format!(
            "arp_ignore is 8 on {interface}: the kernel answers no ARP request, so nobody would find {vip}; set net.ipv4.conf.{interface}.arp_ignore to 1"
        )),
        Some(0) if others => advice.push(format!(
            "arp_ignore is 0: other interfaces of this host answer ARP requests for {vip} too; set net.ipv4.conf.all.arp_ignore to 1 if they share a network with {interface}"
        )),
        _ => {}
    }
    if setting("arp_announce") == Some(0) && others {
        advice.push(format!(
            "arp_announce is 0: requests from other interfaces may carry {vip} as their sender; set net.ipv4.conf.all.arp_announce to 2"
        ));
    }
    if setting("rp_filter") == Some(1) && others {
        advice.push(format!(
            "rp_filter is 1 (strict): clients of {vip} to whom the route leads through another interface than {interface} are dropped; set it to 2 if there are any"
        ));
    }
    advice
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    #[test]
    fn an_arp_announcement() {
        let f = arp(MAC, Ipv4Addr::new(10, 0, 0, 100), 1);
        let want = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 10,
            0, 0, 100, 0, 0, 0, 0, 0, 0, 10, 0, 0, 100,
        ];
        assert_eq!(f, want);
    }

    #[test]
    fn an_advertisement_verifies() {
        for (router, flags) in [(false, 0x20), (true, 0xa0)] {
            let f = advertisement(MAC, "2001:db8::100".parse().unwrap(), router);
            assert_eq!((f[20], f[21], f[54], f[58]), (58, 255, 136, flags));
            assert_eq!(checksum::internet(&[&f[22..54], &[0, 32, 0, 58], &f[54..86]]), 0);
        }
    }

    #[test]
    fn settings_that_matter() {
        let dir = tempfile::tempdir().unwrap();
        let write = |scope: &str, key: &str, value: &str| {
            let path = dir.path().join("ipv4/conf").join(scope);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join(key), value).unwrap();
        };
        let vip: IpAddr = "10.0.0.100".parse().unwrap();
        let count = || advice(dir.path(), "eth0", vip).len();
        write("all", "arp_ignore", "0\n");
        write("eth0", "arp_ignore", "0\n");
        assert_eq!(count(), 0, "one interface cannot confuse anybody");
        write("eth1", "arp_ignore", "0\n");
        assert_eq!(count(), 1);
        write("all", "arp_announce", "0\n");
        write("all", "rp_filter", "1\n");
        assert_eq!(count(), 3);
        write("eth0", "arp_ignore", "8\n");
        assert!(advice(dir.path(), "eth0", vip)[0].contains("nobody would find"));
        assert!(advice(dir.path(), "eth0", "::1".parse().unwrap()).is_empty());
    }

    #[test]
    fn where_several_hosts_may_hold_an_address() {
        let dir = tempfile::tempdir().unwrap();
        let vip: IpAddr = "192.0.2.1".parse().unwrap();
        // As lo, a dummy, an Ethernet interface and none at all show them.
        for (flags, fine) in [
            (Some("0x9\n"), true),
            (Some("0x83\n"), true),
            (Some("0x1003\n"), false),
            (None, true),
        ] {
            let path = dir.path().join("x");
            let _ = fs::remove_dir_all(&path);
            if let Some(flags) = flags {
                fs::create_dir_all(&path).unwrap();
                fs::write(path.join("flags"), flags).unwrap();
            }
            assert_eq!(shared_advice(dir.path(), "x", vip).is_none(), fine, "{flags:?}");
        }
    }
}
