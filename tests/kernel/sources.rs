//! Several addresses of the balancer towards its backends.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use super::common::client::{connect, round_trip};
use super::common::operator::{json, said};
use super::common::{may_make_namespaces, wait_until};
use super::hosts::{Family, Net, V4, V6};

/// The second address towards the first backend.
fn second(family: Family) -> String {
    family.host(1, 5)
}

fn config(family: Family, sources: &[String]) -> String {
    format!(
        "
workers: 1
kernel: {{restart_grace: 10s}}
listeners: {{web: {{engine: kernel, bind: ['{}'], pool: web}}}}
pools: {{web: {{health: none, kernel: {{source_addresses: {sources:?}}}, backends: ['{}']}}}}
",
        family.service(80),
        family.backend(0, 8080),
    )
}

/// Connects and asks what address the backend sees.
fn open(net: &Net, family: Family) -> (TcpStream, SocketAddr) {
    let mut stream = net.client.enter(|| connect(&family.service(80)));
    let mut seen = String::new();
    let mut byte = [0];
    while stream.read(&mut byte).unwrap() == 1 && byte != [b'\n'] {
        seen.push(char::from(byte[0]));
    }
    (stream, seen.parse().unwrap())
}

/// Connections come from both, live through an upgrade, `kill -9` with a restart and a reload that takes one of the addresses out, and
/// are listed and ended as others are.
#[test]
fn connections_of_each_address_live_on() {
    if !may_make_namespaces() {
        return;
    }
    for family in [V4, V6] {
        let net = Net::new();
        let (first, second) = (family.host(1, 1), second(family));
        let length = if family == V4 { 24 } else { 64 };
        let added = format!("{second}/{length}");
        let nodad: &[&str] = if family == V4 { &[] } else { &["nodad"] };
        net.balancer
            .ip(&[&["addr", "add", &added, "dev", "eth1"], nodad].concat());
        let _server = net.serve(0, &family.backend(0, 8080), |mut stream| {
            let _ = writeln!(stream, "{}", stream.peer_addr().unwrap());
            super::common::server::echo(stream);
        });
        let both = [first.clone(), second.clone()];
        let mut weir = net.start(&config(family, &both));
        let mut open_now: Vec<(TcpStream, SocketAddr)> = (0..40).map(|_| open(&net, family)).collect();
        let of = |address: &str, held: &[(TcpStream, SocketAddr)]| {
            let address: IpAddr = address.parse().unwrap();
            held.iter().filter(|(_, seen)| seen.ip() == address).count()
        };
        let counts = both.each_ref().map(|address| of(address, &open_now));
        assert!(
            counts.iter().all(|&n| n > 5) && counts.iter().sum::<usize>() == 40,
            "{counts:?}"
        );
        let mut all_answer = || open_now.iter_mut().for_each(|(stream, _)| round_trip(stream, b"hello"));

        weir.signal(nix::sys::signal::Signal::SIGKILL);
        weir.wait_for_end_of_process();
        all_answer();
        let again = net.start_after(&weir);
        all_answer();
        wait_until("all are listed", || {
            json(&weir, &["conns"]).as_array().unwrap().len() == 40
        });

        weir.rewrite(&config(family, &both[..1]));
        said(&weir, &["reload"]);
        all_answer();
        for _ in 0..10 {
            open_now.push(open(&net, family));
        }
        assert_eq!(of(&second, &open_now[40..]), 0, "new ones come from the first alone");

        let rows = json(&weir, &["conns"]);
        let (ended, _) = open_now
            .iter_mut()
            .find(|(_, seen)| seen.ip().to_string() == second)
            .unwrap();
        let ours = ended.local_addr().unwrap().to_string();
        let row = rows
            .as_array()
            .unwrap()
            .iter()
            .find(|row| row["client"] == ours.as_str())
            .unwrap();
        said(&weir, &["kill", &row["id"].to_string()]);
        let outcome = ended.read(&mut [0]);
        assert_eq!(outcome.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        again.wait_for(|records| records.iter().any(|record| record.cause == "killed"));
    }
}

/// One that is not on the host is left out, and said, until it is there.
#[test]
fn an_address_of_another_host_is_left_out() {
    if !may_make_namespaces() {
        return;
    }
    let net = Net::new();
    let (first, second) = (V4.host(1, 1), second(V4));
    let _server = net.serve(0, &V4.backend(0, 8080), |mut stream| {
        let _ = writeln!(stream, "{}", stream.peer_addr().unwrap());
        super::common::server::echo(stream);
    });
    let weir = net.start(&config(V4, &[first.clone(), second.clone()]));
    weir.wait_for_line(&format!("{second} of source_addresses is no address of this host"));
    let seen = |count: usize| -> Vec<String> { (0..count).map(|_| open(&net, V4).1.ip().to_string()).collect() };
    assert!(seen(20).iter().all(|source| *source == first));
    net.balancer
        .ip(&["addr", "add", &format!("{second}/24"), "dev", "eth1"]);
    wait_until("it is there", || seen(5).contains(&second));
}
