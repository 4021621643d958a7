//! Packets that are larger than the way out takes: whoever sent them is told how large they may be (RFC 1191, RFC 8201).

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::common::client::{connect, round_trip};
use super::common::operator::status;
use super::common::{PATIENCE, find, may_make_namespaces, run, wait_until};
use super::hosts::{Family, Net, V4, V6, ask};

const NARROW: u32 = 1300;

/// Who computes checksums. Of a packet whose sum is still to be computed when the program sees it, the error that quotes it has
/// another sum than of one that is complete.
#[derive(Debug, Clone, Copy)]
enum Sums {
    /// Nobody, within one machine.
    Left,
    /// The balancer, for packets of hosts that leave it to others.
    Completed,
    /// Each host, and each looks at them.
    Complete,
}

fn net(sums: Sums) -> Option<Net> {
    let net = Net::new();
    match sums {
        Sums::Left => Some(net),
        Sums::Complete => find("ethtool").map(|_| net.without_offloads()),
        Sums::Completed => {
            let ethtool = find("ethtool")?;
            for name in ["eth0", "eth1", "eth2"] {
                let mut off = net.balancer.command(ethtool.to_str().unwrap());
                run(off.args(["-K", name, "tx", "off"]));
            }
            Some(net)
        }
    }
}

fn config() -> String {
    let mut yaml = [String::from("listeners:\n"), String::from("pools:\n")];
    for (name, family) in [("four", V4), ("six", V6)] {
        for (protocol, service, backend) in [("tcp", 80, 8080), ("udp", 53, 5353)] {
            yaml[0] += &format!(
                "  {protocol}{name}: {{engine: kernel, protocol: {protocol}, bind: ['{}'], pool: {protocol}{name}}}\n",
                family.service(service)
            );
            yaml[1] += &format!(
                "  {protocol}{name}: {{health: none, backends: ['{}']}}\n",
                family.backend(0, backend)
            );
        }
    }
    yaml.concat()
}

/// The option of IP or IPv6 that is called `IP_...` in ip(7) and `IPV6_...` in ipv6(7).
fn option(family: Family, v4: libc::c_int, v6: libc::c_int) -> (libc::c_int, libc::c_int) {
    match family == V4 {
        true => (libc::IPPROTO_IP, v4),
        false => (libc::IPPROTO_IPV6, v6),
    }
}

/// Whether datagrams are sent in one piece or not at all; else as the kernel does by default.
fn set_whole(socket: &UdpSocket, family: Family, whole: bool) {
    let (level, name) = option(family, libc::IP_MTU_DISCOVER, libc::IPV6_MTU_DISCOVER);
    let value: libc::c_int = if whole {
        libc::IP_PMTUDISC_DO
    } else {
        libc::IP_PMTUDISC_WANT
    };
    // SAFETY: the option is an int.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), 4) };
    assert_eq!(done, 0);
}

/// Has datagrams bear something between the IP header and their own: options over IPv4, a header of destination options over IPv6, which
/// says nothing either.
fn add_options(socket: &UdpSocket, family: Family) {
    let (level, name) = option(family, libc::IP_OPTIONS, libc::IPV6_DSTOPTS);
    let (four, six): (&[u8], &[u8]) = (&[1; 8], &[0, 0, 1, 4, 0, 0, 0, 0]);
    let bytes = if family == V4 { four } else { six };
    let length = bytes.len() as libc::socklen_t;
    // SAFETY: the option is so many bytes.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, bytes.as_ptr().cast(), length) };
    assert_eq!(done, 0);
}

/// What the kernel has learnt of the way to the other side.
fn path_mtu(socket: &UdpSocket, family: Family) -> libc::c_int {
    let (level, name) = option(family, libc::IP_MTU, libc::IPV6_MTU);
    let (mut value, mut length): (libc::c_int, libc::socklen_t) = (0, 4);
    // SAFETY: the option is an int.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    assert_eq!(done, 0);
    value
}

/// Answers a number with as many bytes.
fn filler(net: &Net, address: &str) {
    let socket = net.backends[0].enter(|| UdpSocket::bind(address).unwrap());
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let wanted = std::str::from_utf8(&buffer[..length])
                .ok()
                .and_then(|text| text.trim().parse().ok());
            let _ = socket.send_to(&vec![7; wanted.unwrap_or(length)], from);
        }
    });
}

/// Both families, both directions, with and without options, checksums of every kind. Seen to fail with the sum of a complete packet for
/// every one (the client is told nothing that it believes where the balancer completes sums).
#[test]
fn senders_of_large_datagrams_learn_the_size_of_the_way() {
    if !may_make_namespaces() {
        return;
    }
    for sums in [Sums::Left, Sums::Completed, Sums::Complete] {
        let Some(net) = net(sums) else { continue };
        [V4, V6]
            .iter()
            .for_each(|family| filler(&net, &family.backend(0, 5353)));
        let weir = net.weir(&config());
        // Clients to backends. What one socket has learnt the next one knows.
        for (family, narrow, length, has_options) in [
            (V4, 1400, 1400, true),
            (V6, 1400, 1400, true),
            (V4, NARROW, 1340, false),
            (V6, NARROW, 1340, false),
        ] {
            net.set_mtu(1, narrow);
            let socket = net.udp_client(&family.service(53));
            if has_options {
                add_options(&socket, family);
            }
            assert_eq!(ask(&socket, b"10").len(), 10);
            set_whole(&socket, family, true);
            socket.send(&vec![b' '; length]).unwrap();
            wait_until(
                &format!("{sums:?} {family:?} {has_options}: the client is told"),
                || path_mtu(&socket, family) == narrow as libc::c_int,
            );
            set_whole(&socket, family, false);
            // The error that waits to be fetched.
            let _ = socket.take_error();
            assert_eq!(ask(&socket, &[b' '; 1400]).len(), 1400, "in pieces");
        }
        // Backends to clients.
        net.set_mtu(1, 1500);
        net.set_mtu(0, NARROW);
        for family in [V4, V6] {
            let socket = net.udp_client(&family.service(53));
            socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            wait_until(&format!("{sums:?} {family:?}: the backend is told"), || {
                socket.send(b"1400").unwrap();
                socket.recv(&mut [0; 2000]).is_ok_and(|length| length == 1400)
            });
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        let dropped = status(&weir)["kernel"]["dropped"]["too_big"].as_u64();
        assert!(dropped >= Some(4), "{dropped:?}");
    }
}

/// A way that becomes narrower under connections that are open: segments are made anew, merged ones too.
#[test]
fn connections_survive_a_way_that_becomes_narrow() {
    if !may_make_namespaces() {
        return;
    }
    for sums in [Sums::Left, Sums::Complete] {
        let Some(net) = net(sums) else { continue };
        let _servers = [V4, V6].map(|family| net.echo(0, &family.backend(0, 8080)));
        let _weir = net.weir(&config());
        let mut streams = [V4, V6].map(|family| net.client.enter(|| connect(&family.service(80))));
        let bytes = vec![b'x'; 200_000];
        streams.iter_mut().for_each(|stream| round_trip(stream, &bytes));
        net.set_mtu(1, NARROW);
        streams.iter_mut().for_each(|stream| round_trip(stream, &bytes));
        net.set_mtu(0, NARROW - 10);
        streams.iter_mut().for_each(|stream| round_trip(stream, &bytes));
    }
}
