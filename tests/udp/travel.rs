//! Datagrams arrive as they were sent, and replies come from where they were asked.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::common::netns::{Netns, link};
use super::common::{Launch, Weir, may_make_namespaces, seed};
use super::peers::{Client, LARGEST, Server};
use weir::base::Rng;

fn bytes(rng: &mut Rng, len: usize) -> Vec<u8> {
    (0..len).map(|_| rng.next_u64() as u8).collect()
}

fn weir_before(server: &Server, bind: &str) -> Weir {
    Weir::start(&format!(
        "
workers: 2
listeners: {{main: {{protocol: udp, bind: ['{bind}'], pool: main}}}}
pools: {{main: {{backends: ['{}']}}}}
",
        server.address
    ))
}

#[test]
fn datagrams_of_every_size_travel_whole_both_ways() {
    let mut rng = Rng::new(seed(1));
    for (ip, largest) in [("127.0.0.1", LARGEST), ("[::1]", LARGEST)] {
        let server = Server::echo(&format!("{ip}:0"));
        let weir = weir_before(&server, &format!("{ip}:0"));
        let (client, address) = (Client::at(ip), weir.address("main"));
        let mut sizes = vec![0, 1, 2, 63, 512, 513, 1472, 1473, 9000, largest];
        sizes.extend((0..20).map(|_| rng.below(largest as u64) as usize));
        for len in sizes {
            let sent = bytes(&mut rng, len);
            client.send(&address, &sent);
            let (got, from) = client.receive();
            assert!(got == sent, "{len} bytes came back as {}", got.len());
            assert_eq!(from.to_string(), address);
        }
    }
}

#[test]
fn families_may_differ_between_the_sides() {
    for (client, server) in [("127.0.0.1", "[::1]"), ("[::1]", "127.0.0.1")] {
        let server = Server::echo(&format!("{server}:0"));
        let weir = weir_before(&server, &format!("{client}:0"));
        assert_eq!(Client::at(client).ask(&weir.address("main"), "hello"), "hello");
    }
}

#[test]
fn a_port_range_reaches_the_same_port() {
    let ports = super::common::server::Port::reserve_range(3);
    let (first, last) = (ports[0].number, ports[2].number);
    let servers: Vec<Server> = ports
        .iter()
        .map(|p| Server::named(&format!("127.0.0.2:{}", p.number), &p.number.to_string()))
        .collect();
    let weir = Weir::start(&format!(
        "
listeners: {{main: {{protocol: udp, bind: ['127.0.0.1:{first}-{last}'], pool: main}}}}
pools: {{main: {{backends: ['127.0.0.2']}}}}
"
    ));
    let client = Client::at("127.0.0.1");
    for (server, address) in servers.iter().zip(weir.addresses("main")) {
        assert_eq!(client.ask(&address, "?"), server.address.port().to_string());
    }
}

/// A host with three addresses of each family behind one link, and weir on the wildcard.
#[test]
fn a_wildcard_bind_answers_from_each_address_that_was_asked() {
    if !may_make_namespaces() {
        return;
    }
    let (client, host) = (Netns::new("client"), Netns::new("host"));
    link("eth0", [(&client, "10.9.0.2/24"), (&host, "10.9.0.1/24")]);
    client.ip(&["addr", "add", "fd09::2/64", "dev", "eth0", "nodad"]);
    for address in [
        "10.9.0.11/24",
        "10.9.0.12/32",
        "fd09::1/64",
        "fd09::11/64",
        "fd09::12/128",
    ] {
        let nodad: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
        host.ip(&[&["addr", "add", address, "dev", "eth0"], nodad].concat());
    }
    let server = host.enter(|| Server::echo("127.0.0.1:0"));
    let weir = Launch::new(&format!(
        "
workers: 2
listeners: {{main: {{protocol: udp, bind: ['0.0.0.0:5353', '[::]:5353'], pool: main}}}}
pools: {{main: {{backends: ['{}']}}}}
",
        server.address
    ))
    .inside(&host)
    .start();
    let (v4, v6) = client.enter(|| (Client::at("10.9.0.2"), Client::at("[fd09::2]")));
    // In rotation, from one client socket: each is a session of its own.
    for _ in 0..3 {
        for ip in [
            "10.9.0.1",
            "10.9.0.11",
            "10.9.0.12",
            "[fd09::1]",
            "[fd09::11]",
            "[fd09::12]",
        ] {
            let asked = format!("{ip}:5353");
            let client = if ip.starts_with('[') { &v6 } else { &v4 };
            client.send(&asked, asked.as_bytes());
            let (got, from) = client.receive();
            assert_eq!(
                (from.to_string(), String::from_utf8(got).unwrap()),
                (asked.clone(), asked)
            );
        }
    }
    let records = weir.stop();
    let mut locals: Vec<&str> = records.iter().map(|record| record.local.as_str()).collect();
    locals.sort_unstable();
    let asked = [
        "10.9.0.11:5353",
        "10.9.0.12:5353",
        "10.9.0.1:5353",
        "[fd09::11]:5353",
        "[fd09::12]:5353",
        "[fd09::1]:5353",
    ];
    assert_eq!(locals, asked, "the record tells which address was used");
}

/// A link-local client is told apart by its interface, and answered through it.
#[test]
fn a_link_local_client_is_answered() {
    if !may_make_namespaces() {
        return;
    }
    let (client, host) = (Netns::new("client"), Netns::new("host"));
    link("eth0", [(&client, "fe80::2/64"), (&host, "fe80::1/64")]);
    let server = host.enter(|| Server::echo("127.0.0.1:0"));
    let weir = Launch::new(&format!(
        "
listeners: {{main: {{protocol: udp, bind: ['[::]:5353'], pool: main}}}}
pools: {{main: {{backends: ['{}']}}}}
",
        server.address
    ))
    .inside(&host)
    .start();
    let got = client.enter(|| {
        let socket = UdpSocket::bind("[::]:0").unwrap();
        socket.set_read_timeout(Some(super::common::PATIENCE)).unwrap();
        let scope = nix::net::if_::if_nametoindex("eth0").unwrap();
        let host = std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 5353, 0, scope);
        socket.send_to(b"near", host).unwrap();
        let mut buffer = [0; 16];
        let (len, from) = socket.recv_from(&mut buffer).expect("no answer");
        (buffer[..len].to_vec(), from.ip().to_string())
    });
    assert_eq!(got, (b"near".to_vec(), "fe80::1".into()));
    drop(weir);
}

/// Batches that the kernel merged and weir passed on merged are cut up again as they were, also where the way out has a
/// smaller MTU than the datagrams, so that grouping has to be given up.
#[test]
fn merged_batches_arrive_as_the_datagrams_that_they_were() {
    if !may_make_namespaces() {
        return;
    }
    let mut rng = Rng::new(seed(2));
    let (client, host, backend) = (Netns::new("client"), Netns::new("host"), Netns::new("backend"));
    link("eth0", [(&client, "10.9.0.2/24"), (&host, "10.9.0.1/24")]);
    link("eth1", [(&host, "10.9.1.1/24"), (&backend, "10.9.1.2/24")]);
    for (mtu, sizes) in [("1500", [1200, 64, 1472]), ("1400", [1472, 1372, 1373])] {
        for netns in [&host, &backend] {
            netns.ip(&["link", "set", "eth1", "mtu", mtu]);
        }
        let server = backend.enter(|| Server::echo("10.9.1.2:0"));
        let weir = Launch::new(&format!(
            "
workers: 1
listeners: {{main: {{protocol: udp, bind: ['10.9.0.1:0'], pool: main}}}}
pools: {{main: {{backends: ['{}']}}}}
",
            server.address
        ))
        .inside(&host)
        .start();
        let address = weir.address("main");
        for size in sizes {
            let client = client.enter(|| Client::at("10.9.0.2"));
            client.0.connect(&address).unwrap();
            let mut sent = Vec::new();
            for _ in 0..20 {
                // A batch of equal datagrams with a shorter last one.
                let count = 2 + rng.below(30) as usize;
                let tail = 1 + rng.below(size as u64) as usize;
                let whole = bytes(&mut rng, (size * (count - 1) + tail).min(65_000));
                segmented(&client.0, &whole, size);
                sent.extend(whole.chunks(size).map(<[u8]>::to_vec));
                // The echo server is slow: one batch at a time.
                let in_batch = whole.len().div_ceil(size);
                for datagram in &sent[sent.len() - in_batch..] {
                    let got = client.receive().0;
                    assert!(
                        got == *datagram,
                        "mtu {mtu}, size {size}: {} bytes came as {}",
                        datagram.len(),
                        got.len()
                    );
                }
            }
        }
        drop(weir);
    }
}

/// Sends `bytes` as datagrams of `size` bytes in one call.
fn segmented(socket: &UdpSocket, bytes: &[u8], size: usize) {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let size = size as u16;
    let control = [ControlMessage::UdpGsoSegments(&size)];
    let sent = sendmsg::<()>(
        socket.as_raw_fd(),
        &[std::io::IoSlice::new(bytes)],
        &control,
        MsgFlags::empty(),
        None,
    );
    assert_eq!(sent.expect("a segmented send"), bytes.len());
}

/// Many flows at once, none mixed up.
#[test]
fn every_client_gets_its_own_answers() {
    let servers: Vec<Server> = (0..3).map(|_| Server::echo("127.0.0.1:0")).collect();
    let list: Vec<String> = servers.iter().map(|s| s.address.to_string()).collect();
    let weir = Weir::start(&format!(
        "
workers: 2
listeners: {{main: {{protocol: udp, bind: ['0.0.0.0:0'], pool: main}}}}
pools: {{main: {{balance: round_robin, backends: {list:?}}}}}
"
    ));
    let port = weir.address("main").rsplit_once(':').unwrap().1.to_owned();
    let clients: Vec<Client> = (0..200).map(|_| Client::at("127.0.0.1")).collect();
    for round in 0..20 {
        for (n, client) in clients.iter().enumerate() {
            client.send(
                &format!("127.0.0.{}:{port}", 1 + n % 5),
                format!("{n} {round}").as_bytes(),
            );
        }
        for (n, client) in clients.iter().enumerate() {
            let (got, from) = client.receive();
            assert_eq!(String::from_utf8(got).unwrap(), format!("{n} {round}"));
            assert_eq!(from.to_string(), format!("127.0.0.{}:{port}", 1 + n % 5));
        }
    }
    for client in &clients {
        assert_eq!(
            client.receive_within(Duration::from_millis(1)),
            None,
            "nothing comes twice"
        );
    }
    assert_eq!(
        servers.iter().map(Server::sources).sum::<usize>(),
        200,
        "one socket a session"
    );
}
