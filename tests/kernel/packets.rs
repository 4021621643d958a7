//! UDP: datagrams of every size, in pieces too, with and without checksums.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use super::common::operator::status;
use super::common::{may_make_namespaces, wait_until};
use super::hosts::{Family, Net, V4, V6, ask, is_silent};

fn config(family: Family, more: &str) -> String {
    format!(
        "
listeners: {{dns: {{engine: kernel, protocol: udp, bind: ['{}'], pool: dns{more}}}}}
pools: {{dns: {{health: none, backends: ['{}', '{}']}}}}
",
        family.wildcard(53),
        family.backend(0, 5353),
        family.backend(1, 5353)
    )
}

/// A wildcard stands for each address of the host. Large datagrams come and go as fragments.
#[test]
fn datagrams_of_every_size_come_back() {
    if !may_make_namespaces() {
        return;
    }
    let net = Net::new().without_offloads();
    for family in [V4, V6] {
        (0..2).for_each(|ix| net.udp_echo(ix, &family.backend(ix, 5353)));
        let weir = net.weir(&config(family, ""));
        for other in [0, 1] {
            let service = family.with_port(&family.host(other, 1), 53);
            if other == 1 {
                let gateway = family.host(0, 1);
                let length = if family == V4 { 24 } else { 64 };
                let network = format!("{}/{length}", family.host(1, 0));
                net.client.ip(&["route", "add", &network, "via", &gateway]);
            }
            let socket = net.udp_client(&service);
            for length in [0, 1, 2, 511, 1200, 1452, 1472, 1473, 4000, 20_000] {
                let sent: Vec<u8> = (0..length).map(|at: u32| (at * 7 + length) as u8).collect();
                assert!(ask(&socket, &sent) == sent, "{length} bytes to {service}");
            }
        }
        wait_until("datagrams are counted", || {
            let now = status(&weir);
            let listener = &now["listeners"][0];
            listener["accepted"] == 2 && listener["datagrams_in"].as_u64() >= Some(20) && listener["active"] == 2
        });
    }
}

/// No checksum stays none: were it taken for one, the datagram would be dropped.
#[test]
fn datagrams_without_checksum_pass() {
    if !may_make_namespaces() {
        return;
    }
    let net = Net::new().without_offloads();
    (0..2).for_each(|ix| net.udp_echo(ix, &V4.backend(ix, 5353)));
    let _weir = net.weir(&config(V4, ""));
    let socket: UdpSocket = net.udp_client(&V4.service(53));
    let off: libc::c_int = 1;
    // SAFETY: the option is an int.
    let done = unsafe {
        let at = (&raw const off).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, at, 4)
    };
    assert_eq!(done, 0);
    for length in [1, 700, 4000] {
        let sent = vec![length as u8; length];
        assert!(ask(&socket, &sent) == sent, "{length} bytes");
    }
}

/// A session ends when it is idle, is told of, and the next datagram opens another.
#[test]
fn idle_sessions_end() {
    if !may_make_namespaces() {
        return;
    }
    let net = Net::new();
    (0..2).for_each(|ix| net.udp_echo(ix, &V4.backend(ix, 5353)));
    let weir = net.weir(&config(V4, ", udp: {idle: 500ms}"));
    let socket = net.udp_client(&V4.service(53));
    for _ in 0..3 {
        assert_eq!(ask(&socket, b"question"), b"question");
    }
    let record = &weir.wait_for_records(1)[0];
    assert_eq!((&*record.cause, &*record.protocol), ("idle_timeout", "udp"));
    assert_eq!((record.bytes_up, record.bytes_down), (24, 24));
    assert_eq!(ask(&socket, b"again"), b"again");
    // One that was never answered, and one of a single question: they end, too.
    weir.wait_for_records(2);
}

/// Sessions of a backend that goes down go to another one with their next datagram.
#[test]
fn sessions_move_when_their_backend_goes_down() {
    if !may_make_namespaces() {
        return;
    }
    let net = Net::new();
    net.udp_echo(0, &V4.backend(0, 5353));
    let yaml = config(V4, "").replace("health", "balance: round_robin, health");
    let weir = net.weir(&yaml);
    // Nobody is at the other one.
    let sockets: Vec<UdpSocket> = (0..8).map(|_| net.udp_client(&V4.service(53))).collect();
    let silent: Vec<&UdpSocket> = sockets.iter().filter(|socket| is_silent(socket, b"hello")).collect();
    assert_eq!(silent.len(), 4);
    let name = format!("dns/{}", V4.backend(1, 5353));
    super::common::operator::said(&weir, &["backend", &name, "down"]);
    wait_until("all are answered", || {
        silent.iter().all(|socket| !is_silent(socket, b"hello"))
    });
}
