//! Every kind of address, on both sides.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::os::unix::net::{UnixListener, UnixStream};

use super::common::{PATIENCE, Port, Server, Weir, client, server, wait_until};
use super::{UNWATCHED, configuration};

#[test]
fn ipv6_on_both_sides_and_across() {
    let v6 = Server::named_on(server::bind((Ipv6Addr::LOCALHOST, 0)), "six");
    let v4 = Server::named("four");
    let weir = Weir::start(&format!(
        "
listeners:
  into_six: {{bind: ['127.0.0.1:0', '[::1]:0'], pool: six}}
  into_four: {{bind: ['127.0.0.1:0', '[::1]:0'], pool: four}}
pools:
  six: {{backends: [{{name: six, address: '{}'}}]}}
  four: {{backends: [{{name: four, address: '{}'}}]}}
",
        v6.address, v4.address
    ));
    for (listener, name) in [("into_six", "six"), ("into_four", "four")] {
        let addresses = weir.addresses(listener);
        assert_eq!(addresses.len(), 2, "{addresses:?}");
        for address in addresses {
            assert_eq!(client::fetch(&address).unwrap(), name, "{address}");
        }
    }
    let records = weir.wait_for_records(4);
    assert!(
        records.iter().any(|record| record.client.starts_with("[::1]:")),
        "{records:?}"
    );
}

#[test]
fn unix_sockets_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let (front, back) = (dir.path().join("front"), dir.path().join("back"));
    let listener = UnixListener::bind(&back).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut stream = stream;
                let mut buffer = vec![0; 64 << 10];
                while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..bytes]).is_err() {
                        return;
                    }
                }
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
    let weir = Weir::start(&format!(
        "
workers: 2
listeners: {{main: {{bind: ['unix:{}', '127.0.0.1:0'], pool: main}}}}
pools: {{main: {{backends: [{{name: one, address: 'unix:{}'}}]}}}}
",
        front.display(),
        back.display()
    ));
    let bytes: Vec<u8> = (0..5_000_000_u32).map(|n| ((n * 31) >> 3) as u8).collect();
    // Enough of them to meet both workers.
    for _ in 0..10 {
        let stream = UnixStream::connect(&front).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        exchange(&stream, &stream, &bytes, || stream.shutdown(Shutdown::Write).unwrap());
    }
    let address = weir
        .addresses("main")
        .into_iter()
        .find(|address| !address.starts_with("unix"))
        .unwrap();
    let stream = client::connect(&address);
    exchange(&stream, &stream, &bytes, || stream.shutdown(Shutdown::Write).unwrap());
    let records = weir.wait_for_records(11);
    for record in &records {
        assert_eq!(
            (record.end(), record.bytes_up, record.bytes_down),
            (("finished", "client"), 5_000_000, 5_000_000)
        );
    }
    weir.stop();
    assert!(!front.exists(), "the socket file is left behind");
}

/// Sends everything while reading the echo of it.
fn exchange(mut reader: impl Read, mut writer: impl Write + Send, bytes: &[u8], end: impl FnOnce() + Send) {
    let mut echo = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            writer.write_all(bytes).unwrap();
            end();
        });
        reader.read_to_end(&mut echo).unwrap();
    });
    assert!(echo == bytes, "the echo differs: {} bytes", echo.len());
}

#[test]
fn a_socket_file_left_by_a_dead_process_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let front = dir.path().join("front");
    drop(UnixListener::bind(&front).unwrap());
    let server = Server::named("one");
    let yaml = format!(
        "
listeners: {{main: {{bind: ['unix:{}'], pool: main}}}}
pools: {{main: {{backends: [{{name: one, address: '{}'}}]}}}}
",
        front.display(),
        server.address
    );
    let _weir = Weir::start(&yaml);
    let mut name = String::new();
    UnixStream::connect(&front).unwrap().read_to_string(&mut name).unwrap();
    assert_eq!(name, "one");
}

/// A port range on the listener meets the same port on a backend without one.
#[test]
fn a_port_range_maps_port_to_port() {
    let ports = Port::reserve_range(4);
    let first = ports[0].number;
    let host = Ipv4Addr::new(127, 0, 0, 2);
    let servers: Vec<Server> = ports
        .iter()
        .map(|port| Server::named_on(server::bind((host, port.number)), &port.number.to_string()))
        .collect();
    let weir = Weir::start(&format!(
        "
workers: 2
listeners: {{main: {{bind: ['127.0.0.1:{first}-{}'], pool: main}}}}
pools: {{main: {{backends: [{{name: one, address: {host}}}], health: {{type: none}}}}}}
",
        first + 3
    ));
    assert_eq!(weir.addresses("main").len(), 4);
    for port in &ports {
        let name = client::fetch(&port.address().to_string()).unwrap();
        assert_eq!(name, port.number.to_string());
    }
    let records = weir.wait_for_records(4);
    for record in records {
        let (_, port) = record.local.rsplit_once(':').unwrap();
        assert_eq!(record.address, Some(format!("{host}:{port}")));
    }
    drop(servers);
}

/// Connections come from the address that `source_address` says.
#[test]
fn source_address_is_what_the_backend_sees() {
    let server = Server::serial(|mut stream| {
        let peer = stream.peer_addr().unwrap().ip().to_string();
        let _ = stream.write_all(peer.as_bytes());
    });
    let backend = [format!("{{name: one, address: '{}'}}", server.address)];
    let pool = format!("source_address: 127.0.0.77, {UNWATCHED}");
    let weir = Weir::start(&configuration("", &pool, &backend));
    assert_eq!(client::fetch(&weir.address("main")).unwrap(), "127.0.0.77");
}

/// Wildcard binds serve every address of the host, and the record says which one the client used.
#[test]
fn a_wildcard_serves_every_address() {
    let server = Server::named("one");
    let weir = Weir::start(&format!(
        "
listeners: {{main: {{bind: ['0.0.0.0:0'], pool: main}}}}
pools: {{main: {{backends: [{{name: one, address: '{}'}}]}}}}
",
        server.address
    ));
    let port = weir.address("main").parse::<SocketAddr>().unwrap().port();
    for last in 1..4 {
        let address = SocketAddr::new(server::loopback(last), port).to_string();
        assert_eq!(client::fetch(&address).unwrap(), "one");
    }
    wait_until("three records", || weir.access_log().len() == 3);
}

/// Addresses of one link, which mean another host on each interface: the configuration names the interface.
#[test]
fn link_local_addresses() {
    use super::common::netns::{Netns, link};
    use super::common::{Launch, may_make_namespaces};
    if !may_make_namespaces() {
        return;
    }
    let (near, far) = (Netns::new("near"), Netns::new("far"));
    link("eth0", [(&near, "fe80::1/64"), (&far, "fe80::2/64")]);
    let scope = |netns: &Netns| netns.enter(|| nix::net::if_::if_nametoindex("eth0").unwrap());
    let at = |ip: &str, port: u16, scope: u32| {
        SocketAddr::from(std::net::SocketAddrV6::new(ip.parse().unwrap(), port, 0, scope))
    };
    let scopes = [scope(&near), scope(&far)];
    // The backends are on the host itself, which has the address, too.
    let backend = near.enter(|| Server::named_on(server::bind(at("fe80::1", 0, scopes[0])), "local"));
    let echo = near.enter(|| std::net::UdpSocket::bind(at("fe80::1", 0, scopes[0])).unwrap());
    let udp_port = echo.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, client)) = echo.recv_from(&mut buffer) {
            let _ = echo.send_to(&buffer[..length], client);
        }
    });
    let yaml = format!(
        "listeners:\n  tcp: {{bind: '[fe80::1%eth0]:80', pool: tcp}}\n  \
         udp: {{protocol: udp, bind: '[fe80::1%eth0]:53', pool: udp}}\n\
         pools:\n  tcp: {{backends: [{{name: a, address: '[fe80::1%eth0]:{}'}}]}}\n  \
         udp: {{health: none, backends: '[fe80::1%eth0]:{udp_port}'}}\n",
        backend.address.port()
    );
    let weir = Launch::new(&yaml).inside(&near).start();
    let answer = far.enter(|| client::fetch_from(at("fe80::1", 80, scopes[1])).unwrap());
    assert_eq!(answer, "local");
    let client = far.enter(|| std::net::UdpSocket::bind("[::]:0").unwrap());
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send_to(b"hello", at("fe80::1", 53, scopes[1])).unwrap();
    let mut buffer = [0; 64];
    let (length, from) = client.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], from.port()), (&b"hello"[..], 53));
    let status = super::common::operator::status(&weir);
    assert_eq!(status["listeners"][0]["bind"][0], "[fe80::1%eth0]:80");
    // The same address again is the same socket.
    weir.signal(nix::sys::signal::Signal::SIGHUP);
    weir.wait_for_line("reloaded: generation 2");
    assert_eq!(
        far.enter(|| client::fetch_from(at("fe80::1", 80, scopes[1])).unwrap()),
        "local"
    );
}
