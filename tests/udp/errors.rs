//! Backends that refuse, die and leave, and ICMP errors that are not what they say.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::common::netns::{Netns, link};
use super::common::operator::status;
use super::common::server::{Port, Server as TcpServer};
use super::common::{Launch, Weir, may_make_namespaces, wait_until};
use super::peers::{Client, Server};

fn config(pool: &str, backends: &[String]) -> String {
    format!(
        "
workers: 1
listeners: {{main: {{protocol: udp, bind: ['127.0.0.1:0'], pool: main}}}}
pools: {{main: {{balance: round_robin, passive: off, {pool} backends: {backends:?}}}}}
"
    )
}

/// A client whose session is at the backend that answers `name`.
#[track_caller]
fn served_by(name: &str, address: &str) -> Client {
    let clients = (0..10).map(|_| Client::at("127.0.0.1"));
    let found = clients
        .into_iter()
        .find(|client| client.ask(address, "a question") == name);
    found.unwrap_or_else(|| panic!("nobody is served by {name}"))
}

/// Runs a test in a network namespace of its own: the kernel limits how many ICMP errors it sends in each.
fn alone(test: impl FnOnce(&Netns) + Send) {
    if may_make_namespaces() {
        let host = Netns::new("host");
        host.enter(|| test(&host));
    }
}

/// Nobody listens there.
const CLOSED: &str = "127.0.0.1:9";

#[test]
fn a_refused_datagram_is_sent_again_to_another_backend() {
    alone(|host| {
        let server = Server::echo("127.0.0.1:0");
        let backends = [CLOSED.into(), server.address.to_string()];
        let weir = Launch::new(&config("", &backends)).inside(host).start();
        // Up to 512 bytes the refusal quotes the datagram, longer ones were kept.
        for len in [8, 100, 512, 1200, 9000] {
            for _ in 0..4 {
                let (client, text) = (Client::at("127.0.0.1"), "x".repeat(len));
                assert_eq!(client.ask(&weir.address("main"), &text), text);
                // And it stays there.
                assert_eq!(client.ask(&weir.address("main"), &text), text);
            }
        }
        let backends = &status(&weir)["pools"][0]["backends"];
        assert_eq!(
            backends[0]["failed"], 10,
            "each session that was sent there: {backends}"
        );
        let records = weir.stop();
        let served = server.address.to_string();
        assert!(records.iter().all(|record| record.backend.as_deref() == Some(&served)));
        assert_eq!(records.iter().filter(|record| record.attempts == 2).count(), 10);
    });
}

#[test]
fn without_another_backend_a_refusal_ends_nothing() {
    alone(|host| {
        let weir = Launch::new(&config("", &[CLOSED.into()])).inside(host).start();
        let client = Client::at("127.0.0.1");
        for _ in 0..20 {
            client.send(&weir.address("main"), b"is anybody there?");
        }
        let failed = || status(&weir)["pools"][0]["backends"][0]["failed"].as_u64().unwrap();
        wait_until("refusals", || failed() > 0);
        let server = Server::echo(CLOSED);
        // The last of the refused ones may come late, and be answered first.
        wait_until("an answer", || {
            client.echoed_within(&weir.address("main"), "now there is", Duration::from_secs(1))
        });
        drop(server);
    });
}

#[test]
fn a_flow_whose_backend_dies_goes_on_elsewhere() {
    alone(|host| {
        let dying = Server::named("127.0.0.1:0", "a");
        let living = Server::named("127.0.0.1:0", "b");
        let backends = [&dying, &living].map(|server| server.address.to_string());
        let weir = Launch::new(&config("", &backends)).inside(host).start();
        let clients: Vec<Client> = (0..10).map(|_| Client::at("127.0.0.1")).collect();
        let ask = |client: &Client| client.ask(&weir.address("main"), "a question");
        let before: String = clients.iter().map(ask).collect();
        assert!(["ababababab", "bababababa"].contains(&before.as_str()), "{before}");
        drop(dying);
        // No question is lost: the refused one is sent again.
        for _ in 0..3 {
            assert_eq!(clients.iter().map(ask).collect::<String>(), "bbbbbbbbbb");
        }
    });
}

#[test]
fn a_pool_says_what_becomes_of_the_sessions_of_a_backend_that_goes_down() {
    let rows = [
        ("", "b"),
        ("on_down: repick,", "b"),
        ("on_down: close,", "b"),
        ("on_down: keep,", "a"),
    ];
    for (on_down, after) in rows {
        let servers = [Server::named("127.0.0.1:0", "a"), Server::named("127.0.0.1:0", "b")];
        // Health is what the TCP ports say.
        let doors = [(); 2].map(|()| super::common::Server::sink());
        let [a, b] = [0, 1].map(|ix| servers[ix].address);
        let weir = Weir::start(&format!(
            "
workers: 1
listeners: {{main: {{protocol: udp, bind: ['127.0.0.1:0'], pool: main}}}}
pools: {{main: {{balance: round_robin, {on_down} backends: [{{name: a, address: '{a}'}}, {{name: b, address: '{b}'}}]}}}}
"
        ));
        drop(doors);
        let client = served_by("a", &weir.address("main"));
        let mut down = super::common::command(env!("CARGO_BIN_EXE_weir"));
        super::common::run(down.args(["backend", "main/a", "down", "--socket"]).arg(weir.admin()));
        wait_until("it takes effect", || {
            // New clients go to b.
            (0..2).all(|_| Client::at("127.0.0.1").ask(&weir.address("main"), "?") == "b")
        });
        assert_eq!(client.ask(&weir.address("main"), "?"), after, "{on_down}");
    }
}

/// Backends that answer although their probes fail: what moves a session is what the probes say, and only that.
#[test]
fn a_session_leaves_a_backend_that_the_probes_call_down_as_long_as_there_is_another() {
    let port = Port::reserve();
    let door = |ip: &str| TcpServer::each_on(TcpListener::bind((ip, port.number)).unwrap(), drop);
    let (a, b) = (Server::named("127.0.0.1:0", "a"), Server::named("127.0.0.2:0", "b"));
    let (door_a, door_b) = (door("127.0.0.1"), door("127.0.0.2"));
    let health = format!("{{type: tcp, port: {}, interval: 50ms, rise: 1, fall: 1}}", port.number);
    let backends = format!(
        "[{{name: a, address: '{}'}}, {{name: b, address: '{}'}}]",
        a.address, b.address
    );
    let weir = Weir::start(&format!(
        "
workers: 1
listeners: {{main: {{protocol: udp, bind: ['127.0.0.1:0'], pool: main}}}}
pools: {{main: {{balance: least_conn, health: {health}, backends: {backends}}}}}
"
    ));
    let address = weir.address("main");
    let client = served_by("a", &address);
    let name = client.address().to_string();
    let active = || {
        let backends = status(&weir)["pools"][0]["backends"].clone();
        [0, 1].map(|ix| backends[ix]["active"].as_u64().unwrap())
    };
    let sessions: u64 = active().iter().sum();
    drop(door_a);
    weir.wait_for_line_with(&["main/a ", "is down"]);
    wait_until("it takes effect", || client.ask(&address, "?") == "b");
    drop(door_b);
    weir.wait_for_line_with(&["main/b ", "is down"]);
    let new = Client::at("127.0.0.1");
    wait_until("nobody new is served", || {
        new.send(&address, b"?");
        new.receive_within(Duration::from_millis(100)).is_none()
    });
    for _ in 0..5 {
        assert_eq!(client.ask(&address, "?"), "b", "there is no other");
    }
    let door_a = door("127.0.0.1");
    wait_until("it moves", || client.ask(&address, "?") == "a");
    assert_eq!(active().iter().sum::<u64>(), sessions, "each counts once");
    let live = weir.stop();
    drop(door_a);
    let record = live.iter().find(|record| record.client == name).unwrap();
    assert_eq!(record.attempts, 3, "{record:?}");
    assert_eq!(record.backend.as_deref(), Some("a"));
}

/// Requests of a few bytes are all that some protocols send.
#[test]
fn short_requests_to_a_dead_backend_find_another() {
    alone(|host| {
        for len in [1, 3, 7] {
            let (dying, living) = (Server::named("127.0.0.1:0", "a"), Server::named("127.0.0.1:0", "b"));
            let backends = [&dying, &living].map(|server| server.address.to_string());
            let weir = Launch::new(&config("", &backends)).inside(host).start();
            let address = weir.address("main");
            let client = served_by("a", &address);
            assert_eq!(client.ask(&address, &"x".repeat(len)), "a");
            drop(dying);
            let answered = |_: &i32| {
                client.send(&address, &vec![b'x'; len]);
                client.receive_within(Duration::from_secs(1)).is_some()
            };
            let lost = 12 - (0..12).filter(answered).count();
            // One is, while the error is on its way; on a busy machine a second one was seen.
            assert!(lost <= 2, "{lost} of 12 datagrams of {len} bytes were lost");
        }
    });
}

/// What this host says itself about the way to a backend, each time in another way.
#[test]
fn what_cannot_be_sent_from_here_goes_elsewhere_at_once() {
    if !may_make_namespaces() {
        return;
    }
    // How the way to 10.9.0.2 is barred, and who answers from then on.
    let reject = "add table ip weir; add chain ip weir out { type filter hook output priority 0; }; add rule ip weir out ip daddr 10.9.0.2 drop";
    let rows: [(&str, &dyn Fn(&Netns), bool); 6] = [
        (
            "unreachable",
            &|host| drop(host.ip(&["route", "add", "unreachable", "10.9.0.2/32"])),
            true,
        ),
        (
            "prohibit",
            &|host| drop(host.ip(&["route", "add", "prohibit", "10.9.0.2/32"])),
            true,
        ),
        (
            "blackhole",
            &|host| drop(host.ip(&["route", "add", "blackhole", "10.9.0.2/32"])),
            true,
        ),
        ("filtered", &|host| drop(host.nft(reject)), true),
        (
            "source gone",
            &|host| drop(host.ip(&["addr", "del", "10.9.0.1/24", "dev", "eth0"])),
            true,
        ),
        (
            "source gone",
            &|host| drop(host.ip(&["addr", "del", "10.9.0.1/24", "dev", "eth0"])),
            false,
        ),
    ];
    for (what, bar, has_another) in rows {
        for pool in ["", "send_proxy: v2,"] {
            let (host, backend) = (Netns::new("host"), Netns::new("backend"));
            link("eth0", [(&host, "10.9.0.1/24"), (&backend, "10.9.0.2/24")]);
            backend.ip(&["addr", "add", "10.9.0.3/24", "dev", "eth0"]);
            host.sysctl("net.ipv4.conf.all.promote_secondaries", "1");
            host.ip(&["addr", "add", "10.9.0.9/24", "dev", "eth0"]);
            let a = backend.enter(|| Server::named("10.9.0.2:0", "a"));
            let b = backend.enter(|| Server::named("10.9.0.3:0", "b"));
            let mut backends = vec![a.address.to_string(), b.address.to_string()];
            if !has_another {
                backends.pop();
            }
            let weir = Launch::new(&config(pool, &backends)).inside(&host).start();
            let address = weir.address("main");
            let client = host.enter(|| served_by("a", &address));
            let before = b.sources();
            bar(&host);
            let answered = |_: &i32| {
                client.send(&address, b"a question");
                client.receive_within(Duration::from_secs(1)).is_some()
            };
            let lost = 12 - (0..12).filter(answered).count();
            assert_eq!(lost, 0, "{what}, {pool}");
            if has_another && !pool.is_empty() {
                assert_eq!(b.sources(), before + 1);
                let told = |datagrams: &Vec<Vec<u8>>| datagrams[0].starts_with(b"\r\n\r\n\0\r\nQUIT\n");
                assert!(b.all(told), "b is not told who the client is: {what}");
            }
            let failed = status(&weir)["pools"][0]["backends"][0]["failed"].as_u64().unwrap();
            assert_eq!(failed, 1, "counted, {what}");
        }
    }
}

/// An attacker on the backends' network who knows all four address parts of a session's socket, but not what was sent.
#[test]
fn a_forged_refusal_does_not_move_a_flow() {
    if !may_make_namespaces() {
        return;
    }
    let (host, backend) = (Netns::new("host"), Netns::new("backend"));
    link("eth0", [(&host, "10.9.0.1/24"), (&backend, "10.9.0.2/24")]);
    let [a, b] = ["a", "b"].map(|name| backend.enter(|| Server::named("10.9.0.2:0", name)));
    let weir = Launch::new(&config("", &[a.address.to_string(), b.address.to_string()]))
        .inside(&host)
        .start();
    let address = weir.address("main");
    let client = host.enter(|| served_by("a", &address));
    let raw = backend.enter(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap());
    let source = {
        let mut first = None;
        wait_until("the source", || {
            first = a.first_source();
            first.is_some()
        });
        first.unwrap()
    };
    let forge = |quote: &[u8]| {
        let packet = port_unreachable(source, a.address, quote);
        raw.send_to(&packet, &SocketAddr::from((v4(source), 0)).into()).unwrap();
    };
    for quote in [&b""[..], b"x", b"a quest", b"other content of some length", &[0; 500]] {
        for _ in 0..20 {
            // In front of and behind a datagram of the flow.
            forge(quote);
            client.send(&address, b"another question");
            forge(quote);
            assert_eq!(client.receive().0, b"a", "moved by {quote:?}");
        }
    }
    let others = b.count();
    assert!(others <= 1, "b has had {others}");
    assert_eq!(
        status(&weir)["pools"][0]["backends"][0]["failed"],
        0,
        "nobody is blamed"
    );
    // A true one, which quotes what was sent, does move it. (Seen from here it is the same packet.)
    client.send(&address, b"a question that is quoted");
    assert_eq!(client.receive().0, b"a");
    forge(b"a question that is quoted");
    wait_until("it moves", || client.ask(&address, "and now?") == "b");
}

fn v4(address: SocketAddr) -> Ipv4Addr {
    let SocketAddr::V4(address) = address else {
        panic!("IPv4 only")
    };
    *address.ip()
}

/// An ICMP port unreachable about a datagram from `source` to `refuser`.
fn port_unreachable(source: SocketAddr, refuser: SocketAddr, quote: &[u8]) -> Vec<u8> {
    let mut packet = vec![3, 3, 0, 0, 0, 0, 0, 0];
    // The quoted IPv4 header.
    let total = (28 + quote.len()) as u16;
    packet.extend([0x45, 0]);
    packet.extend(total.to_be_bytes());
    packet.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    packet.extend(v4(source).octets());
    packet.extend(v4(refuser).octets());
    // The quoted UDP header.
    packet.extend(source.port().to_be_bytes());
    packet.extend(refuser.port().to_be_bytes());
    packet.extend((8 + quote.len() as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(quote);
    let sum = packet
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    packet[2..4].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    packet
}

/// A whole backend network that goes away does not end a flow at once: routes flap.
#[test]
fn an_unreachable_host_moves_only_flows_that_never_worked() {
    if !may_make_namespaces() {
        return;
    }
    let (host, backend) = (Netns::new("host"), Netns::new("backend"));
    link("eth0", [(&host, "10.9.0.1/24"), (&backend, "10.9.0.2/24")]);
    let far = backend.enter(|| Server::named("10.9.0.2:7", "far"));
    let near = host.enter(|| Server::named("127.0.0.1:0", "near"));
    let weir = Launch::new(&config("", &[far.address.to_string(), near.address.to_string()]))
        .inside(&host)
        .start();
    let address = weir.address("main");
    let old = host.enter(|| served_by("far", &address));
    // The router (here: the host's own firewall) says "host unreachable".
    backend.nft("add table inet weir; add chain inet weir in { type filter hook input priority 0; }; add rule inet weir in ip protocol udp reject with icmp type host-unreachable");
    let new = host.enter(|| [(); 2].map(|()| Client::at("127.0.0.1")));
    for client in &new {
        assert_eq!(client.ask(&address, "a question"), "near", "sent again");
    }
    for _ in 0..5 {
        old.send(&address, b"another question");
        assert_eq!(old.receive_within(Duration::from_millis(50)), None);
    }
    backend.nft("flush ruleset");
    assert_eq!(old.ask(&address, "a question"), "far", "it has waited");
}

/// The listening sockets are nobody's peer: a client that closes its port hurts nobody.
#[test]
fn clients_that_refuse_replies_do_not_disturb_the_listener() {
    let server = Server::new("127.0.0.1:0", |_| vec![b"1".to_vec(), b"2".to_vec(), b"3".to_vec()]);
    let weir = Weir::start(&config("", &[server.address.to_string()]));
    let address = weir.address("main");
    for _ in 0..200 {
        let gone = UdpSocket::bind("127.0.0.1:0").unwrap();
        gone.send_to(b"question", &address).unwrap();
    }
    // Another address: else it may get the port of one that is gone, and its replies.
    let client = Client::at("127.0.0.2");
    client.send(&address, b"x");
    assert_eq!(
        [client.receive().0, client.receive().0, client.receive().0].concat(),
        b"123"
    );
}
