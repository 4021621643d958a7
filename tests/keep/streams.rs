//! TCP.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::common::client::{connect, fetch, round_trip};
use super::common::may_make_namespaces;
use super::common::server::echo;
use super::hosts::V4;
use super::{FAMILIES, client, connect_from_port, net, start, teller, told};

/// The backend sees the address and port of each client, and megabytes pass in both directions.
#[test]
fn backends_see_their_clients() {
    if !may_make_namespaces() {
        return;
    }
    let net = net();
    for family in FAMILIES {
        let _tellers = [0, 1].map(|ix| teller(&net, ix, family));
        let _echo = net.serve(0, &family.backend(0, 7), echo);
        let weir = start(
            &net,
            &format!(
                "
listeners:
  web: {{bind: ['{}'], pool: web}}
  echo: {{bind: ['{}'], pool: echo}}
pools:
  web: {{client_address: keep, balance: round_robin, backends: ['{}', '{}']}}
  echo: {{client_address: keep, backends: ['{}']}}
",
                family.wildcard(80),
                family.service(7),
                family.backend(0, 8080),
                family.backend(1, 8080),
                family.backend(0, 7)
            ),
        );
        for port in 4711..4719 {
            assert_eq!(told(&net, family, port, &family.service(80)), client(family, port));
        }
        let mut stream = connect_from_port(&net, family, 4719, &family.service(7));
        round_trip(&mut stream, &[7; 1000]);
        let mut writer = stream.try_clone().unwrap();
        let sent: Vec<u8> = (0..4_000_000u32).map(|n| (n % 251) as u8).collect();
        let copy = sent.clone();
        let writing = std::thread::spawn(move || writer.write_all(&copy).unwrap());
        let mut got = vec![0; sent.len()];
        stream.read_exact(&mut got).unwrap();
        writing.join().unwrap();
        assert!(got == sent, "the echo differs");
        drop(stream);
        let records = weir.stop();
        assert_eq!(records.len(), 9);
        assert!(
            records.iter().all(|r| r.cause == "finished" && r.attempts == 1),
            "{records:?}"
        );
    }
}

/// One port of a client, two connections to the same backend: the second cannot have the port as well, and is served all the same.
#[test]
fn a_port_that_is_taken_costs_the_port_alone() {
    if !may_make_namespaces() {
        return;
    }
    let net = net();
    let _server = net.serve(0, &V4.backend(0, 8080), |mut stream: TcpStream| {
        let peer = stream.peer_addr().unwrap().to_string();
        let _ = stream.write_all(format!("{peer}\n").as_bytes());
        let _ = stream.read(&mut [0]);
    });
    let _weir = start(
        &net,
        &format!(
            "
listeners:
  one: {{bind: ['{}'], pool: web}}
  two: {{bind: ['{}'], pool: web}}
  # What listens everywhere has the port everywhere.
  all: {{bind: ['0.0.0.0:4712'], pool: web}}
pools: {{web: {{client_address: keep, backends: ['{}']}}}}
",
            V4.service(80),
            V4.service(81),
            V4.backend(0, 8080),
        ),
    );
    let line = |stream: &mut TcpStream| {
        let mut text = String::new();
        while !text.ends_with('\n') {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            text.push(char::from(byte[0]));
        }
        text.trim_end().to_owned()
    };
    let (address, port) = (client(V4, 4711), 4711);
    let mut first = connect_from_port(&net, V4, port, &V4.service(80));
    assert_eq!(line(&mut first), address);
    let mut second = connect_from_port(&net, V4, port, &V4.service(81));
    let seen = line(&mut second);
    assert!(seen.starts_with("10.9.0.2:") && seen != address, "{seen}");
    drop(first);
    drop(second);
    let mut third = connect_from_port(&net, V4, 4712, &V4.service(80));
    let seen = line(&mut third);
    assert!(seen.starts_with("10.9.0.2:") && !seen.ends_with(":4712"), "{seen}");
}

/// The client of a PROXY header is the one that is seen; one of another family cannot be, and goes nowhere under another name.
/// Clients on the balancer itself are seen at its addresses.
#[test]
fn who_counts_as_the_client() {
    if !may_make_namespaces() {
        return;
    }
    let net = net();
    let _teller = teller(&net, 0, V4);
    let weir = start(
        &net,
        &format!(
            "
listeners:
  web: {{bind: ['0.0.0.0:80'], pool: web, accept_proxy: {{from: [10.9.0.2]}}}}
pools: {{web: {{client_address: keep, backends: ['{}']}}}}
",
            V4.backend(0, 8080),
        ),
    );
    let with_header = |header: &str| {
        let mut stream = net.client.enter(|| connect(&V4.service(80)));
        stream.write_all(header.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    };
    let seen = with_header("PROXY TCP4 192.0.2.7 10.9.0.1 1234 80\r\n").unwrap();
    assert_eq!(seen, "192.0.2.7:1234");
    let seen = with_header("PROXY UNKNOWN\r\n").unwrap();
    assert!(seen.starts_with("10.9.0.2:"), "{seen}");
    for hopeless in [
        "PROXY TCP6 2001:db8::7 2001:db8::1 1234 80\r\n",
        "PROXY TCP4 255.255.255.255 10.9.0.1 1234 80\r\n",
    ] {
        with_header(hopeless).expect_err("a reset");
    }
    let own = net.balancer.enter(|| fetch(&V4.service(80)).unwrap());
    assert!(own.starts_with("10.9.0.1:"), "{own}");
    let own = net.balancer.enter(|| fetch("127.0.0.1:80").unwrap());
    assert!(own.starts_with("10.9.1.1:"), "{own}");
    let records = weir.wait_for_records(6);
    let failed = records.iter().filter(|record| record.cause == "connect_failed").count();
    assert_eq!(failed, 2, "{records:?}");
    weir.wait_for_line("the client's address cannot be kept");
}

/// What this host lacks for a configuration is told with the remedy.
#[test]
fn what_stands_in_the_way_is_told() {
    if !may_make_namespaces() {
        return;
    }
    let net = net();
    let file = tempfile::NamedTempFile::new().unwrap();
    let yaml = "
listeners: {web: {bind: ['10.9.0.1:80'], pool: web}}
pools: {web: {client_address: keep, backends: ['10.9.1.2:80', '10.7.0.1:80', '10.6.0.1:80']}}
";
    std::fs::write(file.path(), yaml).unwrap();
    net.balancer.ip(&["route", "add", "10.7.0.0/16", "via", "10.9.2.2"]);
    let check = |wrapper: &[&str]| {
        let mut check = net.balancer.command(wrapper[0]);
        let output = check
            .args(&wrapper[1..])
            .args([env!("CARGO_BIN_EXE_weir"), "check", "-c"])
            .arg(file.path())
            .output()
            .unwrap();
        assert!(output.status.success());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let lines = said.lines().filter(|line| line.contains("client_address"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let said = check(&["env"]);
    let [far, lost] = &said[..] else { panic!("{said:?}") };
    assert!(far.contains("10.6.0.1") && far.contains("no route"), "{far}");
    assert!(lost.contains("10.7.0.1 is reached through 10.9.2.2"), "{lost}");
    assert!(lost.contains("net.ipv4.conf.eth2.rp_filter=2"), "{lost}");
    let said = check(&["setpriv", "--bounding-set=-net_admin,-net_raw"]);
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said[0].contains("CAP_NET_ADMIN and CAP_NET_RAW"), "{said:?}");
}

/// Backends on the balancer itself, on its loopback and on another address of it.
#[test]
fn backends_on_this_host_see_their_clients() {
    if !may_make_namespaces() {
        return;
    }
    let net = net();
    for address in ["127.0.0.1:8080", "10.9.1.1:8080", "[::1]:8080"] {
        let family = if address.starts_with('[') { FAMILIES[1] } else { V4 };
        let listener = net
            .balancer
            .enter(|| super::common::server::bind(address.parse::<std::net::SocketAddr>().unwrap()));
        let _server = super::common::Server::each_on(listener, |mut stream: TcpStream| {
            let peer = stream.peer_addr().unwrap().to_string();
            let _ = stream.write_all(peer.as_bytes());
        });
        let _weir = start(
            &net,
            &format!(
                "
listeners: {{web: {{bind: ['{}'], pool: web}}}}
pools: {{web: {{client_address: keep, backends: ['{address}']}}}}
",
                family.service(80)
            ),
        );
        assert_eq!(
            told(&net, family, 4711, &family.service(80)),
            client(family, 4711),
            "{address}"
        );
    }
}
