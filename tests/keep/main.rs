//! `client_address: keep` end to end: client, balancer and backends in network namespaces of their own, of which the balancer is
//! the router. They need root.

#[path = "../common/mod.rs"]
mod common;

#[path = "../kernel/hosts.rs"]
#[allow(dead_code)] // The kernel engine's tests use the rest.
mod hosts;

mod life;
mod packets;
mod sessions;
mod streams;

use std::net::{SocketAddr, TcpStream};

use common::server::Server;
use common::{Launch, Weir};
use hosts::{Family, Net, V4, V6};
use socket2::{Domain, Socket, Type};

/// With backends that answer clients through the balancer, which looks closely at where packets come from.
fn net() -> Net {
    let net = Net::new().through_balancer();
    for host in [&net.client, &net.balancer, &net.backends[0], &net.backends[1]] {
        // Neighbours are asked from the link-local address where the packet's own is not this host's.
        common::wait_until("link-local addresses can be used", || {
            host.ip(&["-6", "addr", "show", "tentative"]).is_empty()
        });
    }
    for interface in ["all", "eth0", "eth1", "eth2"] {
        net.balancer
            .sysctl(&format!("net.ipv4.conf.{interface}.rp_filter"), "1");
    }
    net
}

fn start(net: &Net, yaml: &str) -> Weir {
    Launch::new(&format!("workers: 2\n{yaml}"))
        .inside(&net.balancer)
        .start()
}

/// A backend that tells each client who it is.
fn teller(net: &Net, ix: usize, family: Family) -> Server {
    net.serve(ix, &family.backend(ix, 8080), |mut stream: TcpStream| {
        use std::io::Write;
        let peer = stream.peer_addr().unwrap().to_string();
        let _ = stream.write_all(peer.as_bytes());
    })
}

/// A connection of the client from a port; what the backend says of it.
fn told(net: &Net, family: Family, port: u16, to: &str) -> String {
    use std::io::Read;
    let mut stream = connect_from_port(net, family, port, to);
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn client(family: Family, port: u16) -> String {
    family.with_port(&family.host(0, 2), port)
}

fn connect_from_port(net: &Net, family: Family, port: u16, to: &str) -> TcpStream {
    let (from, to): (SocketAddr, SocketAddr) = (client(family, port).parse().unwrap(), to.parse().unwrap());
    let stream: TcpStream = net.client.enter(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&from.into()).unwrap();
        socket.connect_timeout(&to.into(), common::PATIENCE).unwrap();
        socket.into()
    });
    stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
    stream.set_write_timeout(Some(common::PATIENCE)).unwrap();
    stream
}

/// The rules of weirs in the balancer.
fn rules(net: &Net) -> Vec<String> {
    let all = net.balancer.ip(&["-4", "rule"]) + &net.balancer.ip(&["-6", "rule"]);
    let ours = all.lines().filter(|line| line.contains("proto 87"));
    ours.map(str::to_owned).collect()
}

/// Routes in tables of weirs.
fn routes(net: &Net) -> Vec<String> {
    let all = net.balancer.ip(&["-4", "route", "show", "table", "all", "proto", "87"])
        + &net.balancer.ip(&["-6", "route", "show", "table", "all", "proto", "87"]);
    all.lines().map(str::to_owned).collect()
}

const FAMILIES: [Family; 2] = [V4, V6];
