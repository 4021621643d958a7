//! UDP.

use std::net::{SocketAddr, UdpSocket};

use super::common::operator::said;
use super::common::{PATIENCE, may_make_namespaces};
use super::hosts::{Family, Net, V4, ask};
use super::{FAMILIES, client, net, start};

/// Answers each datagram with its name and the address that it came from.
fn teller(net: &Net, ix: usize, family: Family) {
    let address: SocketAddr = family.backend(ix, 5353).parse().unwrap();
    let socket = net.backends[ix].enter(|| UdpSocket::bind(address).unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{ix} {from}").as_bytes(), from);
        }
    });
}

fn socket(net: &Net, family: Family, port: u16) -> UdpSocket {
    let from = client(family, port);
    let socket = net.client.enter(|| UdpSocket::bind(from).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn seen(socket: &UdpSocket, to: &str) -> String {
    socket.connect(to).unwrap();
    String::from_utf8(ask(socket, b"who am I?")).unwrap()
}

#[test]
fn backends_see_their_clients() {
    if !may_make_namespaces() {
        return;
    }
    let net = net();
    for family in FAMILIES {
        teller(&net, 0, family);
        let _weir = start(
            &net,
            &format!(
                "
listeners: {{dns: {{protocol: udp, bind: ['{}'], pool: dns}}}}
pools: {{dns: {{client_address: keep, health: none, backends: ['{}']}}}}
",
                family.wildcard(53),
                family.backend(0, 5353),
            ),
        );
        for port in [4711, 4712] {
            let socket = socket(&net, family, port);
            for _ in 0..3 {
                assert_eq!(
                    seen(&socket, &family.service(53)),
                    format!("0 {}", client(family, port))
                );
            }
        }
    }
}

/// The kernel tells datagrams apart by addresses and ports alone. Of two sessions of one port of a client to the same backend, the
/// second has another port, so that each answer comes from where it was asked.
#[test]
fn answers_of_two_sessions_are_not_mixed_up() {
    if !may_make_namespaces() {
        return;
    }
    let net = net();
    teller(&net, 0, V4);
    let _weir = start(
        &net,
        &format!(
            "
listeners: {{dns: {{protocol: udp, bind: ['{}', '{}'], pool: dns}}}}
pools: {{dns: {{client_address: keep, health: none, backends: ['{}']}}}}
",
            V4.service(53),
            V4.service(54),
            V4.backend(0, 5353),
        ),
    );
    let socket = socket(&net, V4, 4711);
    for _ in 0..3 {
        // A connected socket hears nobody else.
        assert_eq!(seen(&socket, &V4.service(53)), "0 10.9.0.2:4711");
        let other = seen(&socket, &V4.service(54));
        assert!(
            other.starts_with("0 10.9.0.2:") && other != "0 10.9.0.2:4711",
            "{other}"
        );
    }
}

/// A session that moves to another backend takes the client's port with it.
#[test]
fn a_session_keeps_the_port_when_it_moves() {
    if !may_make_namespaces() {
        return;
    }
    let net = net();
    teller(&net, 0, V4);
    teller(&net, 1, V4);
    let weir = start(
        &net,
        &format!(
            "
listeners: {{dns: {{protocol: udp, bind: ['{}'], pool: dns}}}}
pools: {{dns: {{client_address: keep, health: none, backends: [{{name: a, address: '{}'}}, {{name: b, address: '{}', weight: 0}}]}}}}
",
            V4.service(53),
            V4.backend(0, 5353),
            V4.backend(1, 5353),
        ),
    );
    let socket = socket(&net, V4, 4711);
    assert_eq!(seen(&socket, &V4.service(53)), "0 10.9.0.2:4711");
    said(&weir, &["backend", "dns/b", "weight", "1"]);
    said(&weir, &["backend", "dns/a", "down"]);
    assert_eq!(seen(&socket, &V4.service(53)), "1 10.9.0.2:4711");
    said(&weir, &["backend", "dns/a", "ready"]);
    said(&weir, &["backend", "dns/b", "down"]);
    assert_eq!(seen(&socket, &V4.service(53)), "0 10.9.0.2:4711");
}
