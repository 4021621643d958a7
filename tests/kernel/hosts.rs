//! Client - balancer - two backends, each link a veth pair.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use super::common::netns::{Netns, link};
use super::common::server::{Server, bind, echo};
use super::common::{Launch, PATIENCE, Weir, find, run};

pub const V4: Family = Family { number: 4 };
pub const V6: Family = Family { number: 6 };

/// The hosts of a test.
pub struct Net {
    pub client: Netns,
    pub balancer: Netns,
    pub backends: [Netns; 2],
}

/// How addresses are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    number: u8,
}

impl Family {
    pub fn host(self, network: u8, host: u8) -> String {
        match self.number {
            4 => format!("10.9.{network}.{host}"),
            // As it is written by programs: without zeros.
            _ => format!("fd09:{}::{host}", network + 1),
        }
    }
    /// The balancer's address that clients use, with a port.
    pub fn service(self, port: u16) -> String {
        self.with_port(&self.host(0, 1), port)
    }
    /// A backend's, with a port.
    pub fn backend(self, ix: usize, port: u16) -> String {
        self.with_port(&self.host(ix as u8 + 1, 2), port)
    }
    pub fn with_port(self, host: &str, port: u16) -> String {
        match self.number {
            4 => format!("{host}:{port}"),
            _ => format!("[{host}]:{port}"),
        }
    }
    pub fn wildcard(self, port: u16) -> String {
        match self.number {
            4 => format!("0.0.0.0:{port}"),
            _ => format!("[::]:{port}"),
        }
    }
}

impl Net {
    /// Without any link.
    pub fn unlinked() -> Net {
        Net {
            client: Netns::new("client"),
            balancer: Netns::new("balancer"),
            backends: [Netns::new("one"), Netns::new("two")],
        }
    }

    pub fn new() -> Net {
        let net = Net::unlinked();
        for family in [V4, V6] {
            let length = if family == V4 { 24 } else { 64 };
            let ends = [&net.client, &net.backends[0], &net.backends[1]];
            for (ix, end) in ends.into_iter().enumerate() {
                let network = ix as u8;
                let ours = format!("{}/{length}", family.host(network, 1));
                let theirs = format!("{}/{length}", family.host(network, 2));
                let name = format!("eth{ix}");
                match family {
                    V4 => link(&name, [(&net.balancer, &ours), (end, &theirs)]),
                    _ => {
                        for (host, address) in [(&net.balancer, &ours), (end, &theirs)] {
                            host.ip(&["addr", "add", address, "dev", &name, "nodad"]);
                        }
                    }
                }
            }
        }
        net
    }

    /// Backends and clients compute every checksum themselves, and look at every one.
    pub fn without_offloads(self) -> Net {
        let Some(ethtool) = find("ethtool") else {
            return self;
        };
        let ends = [&self.client, &self.backends[0], &self.backends[1], &self.balancer];
        for host in ends {
            for ix in 0..3 {
                let name = format!("eth{ix}");
                if host.ip(&["-br", "link"]).contains(&name) {
                    let features = ["tx", "off", "rx", "off", "gso", "off", "tso", "off", "gro", "off"];
                    run(host
                        .command(ethtool.to_str().unwrap())
                        .args(["-K", &name])
                        .args(features));
                }
            }
        }
        self
    }

    /// The other way to backends that see clients.
    pub fn through_balancer(self) -> Net {
        for (ix, backend) in self.backends.iter().enumerate() {
            for family in [V4, V6] {
                let flag = if family == V4 { "-4" } else { "-6" };
                let gateway = family.host(ix as u8 + 1, 1);
                backend.ip(&[flag, "route", "add", "default", "via", &gateway]);
            }
        }
        self
    }

    pub fn set_mtu(&self, ix: usize, mtu: u32) {
        let name = format!("eth{ix}");
        let end = [&self.client, &self.backends[0], &self.backends[1]][ix];
        for host in [&self.balancer, end] {
            host.ip(&["link", "set", &name, "mtu", &mtu.to_string()]);
        }
    }

    pub fn weir(&self, yaml: &str) -> Weir {
        let grace = if yaml.contains("kernel: {") && yaml.starts_with("kernel:") {
            ""
        } else {
            "kernel: {restart_grace: 1s}\n"
        };
        self.start(&format!("workers: 1\n{grace}{yaml}"))
    }

    /// With this configuration and nothing else.
    pub fn start(&self, yaml: &str) -> Weir {
        Launch::new(yaml).inside(&self.balancer).start()
    }

    /// Another process after one that has gone, on its file.
    pub fn start_after(&self, gone: &Weir) -> Weir {
        let file = gone.dir().join("weir.yaml").display().to_string();
        let next = Launch::new("").file(&file).inside(&self.balancer).start();
        next.wait_for_line("goes on with the connections");
        next
    }

    /// Serves each connection in a backend's namespace.
    pub fn serve(
        &self,
        ix: usize,
        address: &str,
        serve: impl Fn(std::net::TcpStream) + Send + Sync + 'static,
    ) -> Server {
        let address: SocketAddr = address.parse().unwrap();
        let listener = self.backends[ix].enter(|| bind(address));
        Server::each_on(listener, serve)
    }

    /// Answers its name and closes.
    pub fn named(&self, ix: usize, address: &str) -> Server {
        let address: SocketAddr = address.parse().unwrap();
        let listener = self.backends[ix].enter(|| bind(address));
        Server::named_on(listener, &ix.to_string())
    }

    pub fn echo(&self, ix: usize, address: &str) -> Server {
        self.serve(ix, address, echo)
    }

    /// Sends datagrams back to where they come from, for as long as the test runs.
    pub fn udp_echo(&self, ix: usize, address: &str) {
        let socket = self.backends[ix].enter(|| UdpSocket::bind(address).unwrap());
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], from);
            }
        });
    }

    /// A socket of the client that waits for answers.
    pub fn udp_client(&self, to: &str) -> UdpSocket {
        let to: SocketAddr = to.parse().unwrap();
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = self.client.enter(|| UdpSocket::bind(any).unwrap());
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }
}

/// What comes back for a datagram.
#[track_caller]
pub fn ask(socket: &UdpSocket, bytes: &[u8]) -> Vec<u8> {
    let mut buffer = vec![0; 65_536];
    socket.send(bytes).unwrap();
    let length = socket.recv(&mut buffer).expect("an answer");
    buffer.truncate(length);
    buffer
}

/// Whether there is no answer; a port unreachable says so at once.
pub fn is_silent(socket: &UdpSocket, bytes: &[u8]) -> bool {
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let sent = socket.send(bytes);
    let silent = sent.is_err() || socket.recv(&mut [0; 64]).is_err();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    silent
}
