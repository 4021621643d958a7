//! Peers that vanish without a word: their packets, and those to them, are dropped by a filter.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::UNWATCHED;
use super::common::netns::{Netns, at, link};
use super::common::operator::said;
use super::common::server::bind;
use super::common::{Launch, PATIENCE, Server, Weir, client, have, may_make_namespaces, wait_until};

/// A client, a balancer and a backend, each on a host of its own.
struct Hosts {
    client: Netns,
    weir: Netns,
    backend: Netns,
}

impl Hosts {
    fn new() -> Hosts {
        let [client, weir, backend] = ["client", "weir", "backend"].map(Netns::new);
        link("eth0", [(&client, "10.1.0.1/24"), (&weir, "10.1.0.2/24")]);
        link("eth1", [(&weir, "10.2.0.2/24"), (&backend, "10.2.0.1/24")]);
        Hosts { client, weir, backend }
    }

    /// A balancer in front of a backend whose streams come back.
    fn start(&self, listener: &str, connect: &str) -> (Weir, Server, mpsc::Receiver<TcpStream>) {
        let (sender, streams) = mpsc::channel();
        let bound = self.backend.enter(|| bind(at("10.2.0.1", 0)));
        let server = Server::on(bound, move |stream| drop(sender.send(stream)));
        let yaml = format!(
            "
workers: 2
listeners: {{main: {{bind: ['10.1.0.2:0'], pool: main, {listener}}}}}
pools: {{main: {{backends: ['{}'], connect: {{{connect}}}, {UNWATCHED}}}}}
",
            server.address
        );
        let weir = Launch::new(&yaml).inside(&self.weir).start();
        (weir, server, streams)
    }

    fn connect(&self, weir: &Weir, streams: &mpsc::Receiver<TcpStream>) -> (TcpStream, TcpStream) {
        let mut client = self.client.enter(|| client::connect(&weir.address("main")));
        let mut backend = streams.recv_timeout(PATIENCE).expect("a connection");
        client.write_all(b"?").unwrap();
        backend.read_exact(&mut [0]).unwrap();
        backend.write_all(b"!").unwrap();
        client.read_exact(&mut [0]).unwrap();
        (client, backend)
    }

    /// From now on nothing passes an interface of the balancer.
    fn cut(&self, interface: &str) {
        self.weir.nft(&format!(
            "table inet cut {{
                chain input {{ type filter hook input priority 0; iifname {interface} drop; }};
                chain output {{ type filter hook output priority 0; oifname {interface} drop; }};
            }}"
        ));
    }
}

const SHORT: &str = "keepalive: {idle: 1s, interval: 1s, probes: 2, user_timeout: 3s}";

/// Fills a connection until nothing more fits.
fn stuff(mut stream: &TcpStream) -> usize {
    stream.set_nonblocking(true).unwrap();
    let (block, mut sent, mut last) = (vec![7; 64 << 10], 0, Instant::now());
    while last.elapsed() < Duration::from_millis(300) {
        match stream.write(&block) {
            Ok(n) => (sent, last) = (sent + n, Instant::now()),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    stream.set_nonblocking(false).unwrap();
    sent
}

/// In silence, and with bytes under way to the one that vanishes. Both kinds last minutes (`idle`) without.
#[test]
fn a_vanished_peer_is_noticed() {
    if !may_make_namespaces() || !have(&["nft"]) {
        return;
    }
    for vanished in ["client", "backend"] {
        for under_way in [false, true] {
            let hosts = Hosts::new();
            let (listener, connect) = match vanished {
                "client" => (SHORT, ""),
                _ => ("", SHORT),
            };
            let (weir, _server, streams) = hosts.start(listener, connect);
            let (client, backend) = hosts.connect(&weir, &streams);
            // The options of a connection that lasts are set after a second.
            std::thread::sleep(Duration::from_millis(1_200));
            let (interface, writer) = match vanished {
                "client" => ("eth0", &backend),
                _ => ("eth1", &client),
            };
            hosts.cut(interface);
            let begun = Instant::now();
            if under_way {
                stuff(writer);
            }
            let record = &weir.wait_for_records(1)[0];
            println!(
                "{vanished}, bytes under way: {under_way}: {:?}, {record:?}",
                begun.elapsed()
            );
            assert_eq!(record.end(), (&*format!("{vanished}_reset"), vanished));
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
            // The other side is told that it was cut off.
            let mut writer = writer;
            wait_until("the other side is reset", || writer.write(b"x").is_err());
        }
    }
}

/// A reader that pauses for longer than `user_timeout` answers the kernel's questions about its window, so it is let be, and
/// everything arrives. TCP_USER_TIMEOUT would cut it off (`kernel_contract::tcp`).
#[test]
fn a_reader_that_pauses_is_not_taken_for_one_that_has_vanished() {
    if !may_make_namespaces() || !have(&["nft"]) {
        return;
    }
    let hosts = Hosts::new();
    let (weir, _server, streams) = hosts.start(SHORT, SHORT);
    let (mut client, mut backend) = hosts.connect(&weir, &streams);
    let (down, up) = (stuff(&backend), stuff(&client));
    std::thread::sleep(Duration::from_secs(9));
    backend.shutdown(std::net::Shutdown::Write).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(client::read_to_end(&mut client).len(), down));
        assert_eq!(client::read_to_end(&mut backend).len(), up);
    });
    assert_eq!(weir.wait_for_records(1)[0].cause, "finished");
}

/// The kernel's timer of weir's end of each client's connection; empty without one.
fn keepalive_timers(host: &Netns, port: &str) -> Vec<String> {
    let filter = format!("( sport = :{port} )");
    let mut ss = host.command("ss");
    ss.args(["-tnoH", "state", "established", &filter]);
    let output = ss.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let timer = |line: &str| {
        line.split_once("timer:(")
            .map_or(String::new(), |(_, timer)| timer.to_owned())
    };
    text.lines().map(timer).collect()
}

/// Clients' sockets have it from the listening one: no call for each. A reload reaches listening sockets that stay.
#[test]
fn keep_alive_is_on_by_default_and_follows_a_reload() {
    if !may_make_namespaces() || !have(&["ss"]) {
        return;
    }
    let hosts = Hosts::new();
    let (weir, server, streams) = hosts.start("", "");
    let port = weir.address("main").rsplit_once(':').unwrap().1.to_owned();
    let backend_port = server.address.port().to_string();
    let first = hosts.connect(&weir, &streams);
    let timers = keepalive_timers(&hosts.weir, &port);
    assert!(
        matches!(&*timers, [timer] if timer.starts_with("keepalive,")),
        "{timers:?}"
    );
    // A connection to a backend gets it when it has lasted, and the test sees it from the backend's side of the filter.
    wait_until("the backend's socket has it, too", || {
        let mut ss = hosts.weir.command("ss");
        ss.args(["-tnoH", "state", "established", &format!("( dport = :{backend_port} )")]);
        String::from_utf8(ss.output().unwrap().stdout)
            .unwrap()
            .contains("timer:(keepalive,")
    });
    drop(first);
    weir.wait_for_records(1);

    let yaml = std::fs::read_to_string(weir.dir().join("weir.yaml")).unwrap();
    weir.rewrite(&yaml.replace("pool: main, }", "pool: main, keepalive: off}"));
    said(&weir, &["reload"]);
    // Workers take the newest snapshot before they accept.
    let _second = hosts.connect(&weir, &streams);
    let timers = keepalive_timers(&hosts.weir, &port);
    assert!(!timers.iter().any(|timer| timer.starts_with("keepalive")), "{timers:?}");
}
