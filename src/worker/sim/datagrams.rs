//! Datagrams: clients that ask, backends that answer, and the network between them and weir.

use std::net::SocketAddr;
use std::os::fd::RawFd;

use super::World;
use super::kernel::{Datagram, File, Gone, Kernel, with};
use super::setup::DNS;
use crate::config::model::SendProxy;
use crate::relay::proxy_header;
use crate::sys::udp::Trouble;

/// A datagram of a client, and what became of it.
#[derive(Debug, Default)]
pub(super) struct Asked {
    len: usize,
    arrived: u32,
    answered: u32,
    replies: u32,
}

impl World {
    /// A client sends datagrams.
    pub(super) fn ask(&mut self) {
        let rng = &mut self.rng;
        let client = 1 + rng.below(12) as u16;
        let many = rng.below(6) == 0;
        let longest = if rng.below(4) == 0 { 1_200 } else { 40 };
        let len = 6 + rng.below(longest) as usize;
        let ports = with(listening_ports);
        let Some(&fd) = ports.get(usize::from(client) % ports.len().max(1)) else {
            return;
        };
        for _ in 0..if many { 1 + rng.below(9) } else { 1 } {
            let seq = self.asked.len() as u32;
            self.asked.insert(
                (client, seq),
                Asked {
                    len,
                    ..Asked::default()
                },
            );
            let bytes = datagram(client, seq, len);
            let peer = client_address(client);
            with(|kernel| kernel.port(fd).unwrap().rx.push_back(Datagram { peer, bytes }));
        }
    }

    /// What weir has sent arrives.
    pub(super) fn network(&mut self, calm: bool) {
        let sends_proxy = self.config.pools[1].policy.send_proxy != SendProxy::Off;
        for gone in with(|kernel| std::mem::take(&mut kernel.gone)) {
            if !gone.connected {
                self.arrive_at_client(&gone);
                continue;
            }
            let mut bytes = &gone.bytes[..];
            if sends_proxy && let proxy_header::Parsed::Header { len, .. } = proxy_header::parse(bytes) {
                bytes = &bytes[len..];
            }
            let (client, seq) = name_of(bytes);
            let asked = self
                .asked
                .get_mut(&(client, seq))
                .unwrap_or_else(|| panic!("seed {}: a backend got what no client has sent", self.seed));
            assert_eq!(bytes, datagram(client, seq, asked.len), "seed {}", self.seed);
            asked.arrived += 1;
            assert!(
                asked.arrived <= 3,
                "seed {}: {client}/{seq} arrived {} times",
                self.seed,
                asked.arrived
            );
            let reply = Datagram {
                peer: gone.to,
                bytes: datagram(client | 0x8000, seq, asked.len),
            };
            let fate = if calm { 9 } else { self.rng.below(10) };
            with(|kernel| {
                let Some(port) = kernel.port(gone.socket).filter(|port| port.to == Some(gone.to)) else {
                    return;
                };
                match fate {
                    0 => port.refuse(Trouble::Closed, gone.bytes.clone()),
                    1 => port.refuse(Trouble::Unreachable, Vec::new()),
                    2 => {}
                    _ => {
                        asked.answered += 1;
                        port.rx.push_back(reply);
                    }
                }
            });
        }
    }

    fn arrive_at_client(&mut self, gone: &Gone) {
        let seed = self.seed;
        let (client, seq) = name_of(&gone.bytes);
        let client = client & 0x7fff;
        assert_eq!(
            gone.to,
            client_address(client),
            "seed {seed}: a reply for somebody else"
        );
        assert_eq!(gone.local, DNS.parse().unwrap(), "seed {seed}: a reply from elsewhere");
        let asked = self.asked.get_mut(&(client, seq)).expect("a reply to a request");
        assert_eq!(gone.bytes, datagram(client | 0x8000, seq, asked.len), "seed {seed}");
        asked.replies += 1;
        assert!(asked.replies <= asked.answered, "seed {seed}: a reply was sent twice");
    }
}

fn listening_ports(kernel: &mut Kernel) -> Vec<RawFd> {
    let ports = kernel
        .files()
        .filter(|(_, file)| matches!(file, File::Port(port) if port.to.is_none()));
    ports.map(|(fd, _)| fd).collect()
}

fn client_address(client: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 200], client))
}

/// What a client (or, with the highest bit, a backend in reply) sends.
fn datagram(client: u16, seq: u32, len: usize) -> Vec<u8> {
    let mut bytes = [&client.to_le_bytes()[..], &seq.to_le_bytes()].concat();
    bytes.extend((6..len).map(|at| (at as u32 ^ seq ^ u32::from(client)) as u8));
    bytes
}

fn name_of(bytes: &[u8]) -> (u16, u32) {
    let client = u16::from_le_bytes([bytes[0], bytes[1]]);
    (client, u32::from_le_bytes([bytes[2], bytes[3], bytes[4], bytes[5]]))
}
