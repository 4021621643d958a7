//! What tells both sides of a TCP connection that it is over: an RST to each, as if the other had sent it. Pure.
//!
//! Its number is what the receiver expects next, as far as packets that have passed tell: after everything that the other side has
//! sent, or what the receiver itself has acknowledged where the other side is not seen. If that is not exact, the receiver asks
//! (RFC 5961, 3.2), and the program answers exactly.
//!
//! Where answers are not seen, what a client has acknowledged may be long out of date, and an RST with a number that it has had it ignores.
//! So it is asked besides, as by a keep-alive (RFC 9293, 3.8.4): its answer says what it expects, and is answered exactly.

use crate::base::checksum;

use super::layout::{Address, FLOW_DSR, Flow, INJECT_CUT, INJECT_PLAIN, Tuple};
use super::program::Injected;

const RST_ACK: u8 = 0x14;
const ACK: u8 = 0x10;
const HOPS: u8 = 64;

/// For the backend and for the client, in this order. `home` is the interface that has the address which clients use.
pub fn resets(key: &Tuple, up: &Flow, down: Option<&Flow>, home: u32) -> Vec<Injected> {
    // What each side sends next: what has passed, or what the other side has acknowledged.
    let next = |sent: Option<&Flow>, other: Option<&Flow>| match (sent, other) {
        (Some(sent), _) if sent.packets > 0 => sent.next,
        (_, Some(other)) => other.ack,
        _ => 0,
    };
    let client_next = next(Some(up), down);
    let backend_next = next(down, Some(up));
    let or_home = |interface: Option<u32>| interface.filter(|&index| index != 0).unwrap_or(home);
    let mut frames = vec![Injected {
        interface: or_home(down.map(|down| down.ifindex)),
        kind: INJECT_CUT,
        rest: frame(key, client_next, backend_next, RST_ACK),
    }];
    let mut tell = |kind, as_backend_sends: Tuple, seq, flags| {
        frames.push(Injected {
            interface: or_home(down.map(|_| up.ifindex)),
            kind,
            rest: frame(&as_backend_sends, seq, client_next, flags),
        });
    };
    match up.flags & FLOW_DSR {
        0 => tell(INJECT_CUT, up.to.turned(), backend_next, RST_ACK),
        _ => {
            tell(INJECT_PLAIN, key.turned(), backend_next, RST_ACK);
            tell(INJECT_PLAIN, key.turned(), backend_next.wrapping_sub(1), ACK);
        }
    }
    frames
}

/// All of a frame but its Ethernet addresses.
fn frame(from: &Tuple, seq: u32, ack: u32, flags: u8) -> Vec<u8> {
    let mut tcp = [from.sport, from.dport].concat();
    tcp.extend(seq.to_be_bytes());
    tcp.extend(ack.to_be_bytes());
    tcp.extend([5 << 4, flags, 0, 0, 0, 0, 0, 0]);
    let length = tcp.len() as u16;
    // What an IPv4 address has before it, 0xffff, is nothing to a sum.
    let pseudo = [&from.src[..], &from.dst, &length.to_be_bytes(), &[0, from.protocol]].concat();
    let check = checksum::internet(&[&pseudo, &tcp]);
    tcp[16..18].copy_from_slice(&check.to_be_bytes());
    let mut rest = match (v4(&from.src), v4(&from.dst)) {
        (Some(src), Some(dst)) => {
            let mut ip = vec![0x45, 0];
            ip.extend((20 + length).to_be_bytes());
            // Not to be divided.
            ip.extend([0, 0, 0x40, 0, HOPS, from.protocol, 0, 0]);
            ip.extend([src, dst].concat());
            let check = checksum::internet(&[&ip]);
            ip[10..12].copy_from_slice(&check.to_be_bytes());
            [&[0x08, 0x00][..], &ip].concat()
        }
        _ => {
            let mut ip = vec![0x60, 0, 0, 0];
            ip.extend(length.to_be_bytes());
            ip.extend([from.protocol, HOPS]);
            ip.extend([from.src, from.dst].concat());
            [&[0x86, 0xdd][..], &ip].concat()
        }
    };
    rest.extend(tcp);
    rest
}

fn v4(address: &Address) -> Option<[u8; 4]> {
    let mapped = std::net::Ipv6Addr::from(*address).to_ipv4_mapped()?;
    Some(mapped.octets())
}

#[cfg(test)]
mod tests {
    use super::super::layout::address;
    use super::*;

    fn tuple(src: &str, dst: &str) -> Tuple {
        let of = |text: &str| text.parse::<std::net::SocketAddr>().unwrap();
        let (src, dst) = (of(src), of(dst));
        Tuple {
            src: address(src.ip()),
            dst: address(dst.ip()),
            sport: src.port().to_be_bytes(),
            dport: dst.port().to_be_bytes(),
            protocol: 6,
            pad: [0; 3],
        }
    }

    /// Numbers of a frame with these flags, and whether its sums are right.
    fn numbers(frame: &Injected, flags: u8) -> (u32, u32) {
        let tcp = &frame.rest[frame.rest.len() - 20..];
        let of = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
        let (addresses, sum_of_header) = match frame.rest[0] {
            8 => (&frame.rest[14..22], checksum::internet(&[&frame.rest[2..22]])),
            _ => (&frame.rest[10..42], 0),
        };
        assert_eq!(sum_of_header, 0);
        assert_eq!(checksum::internet(&[addresses, &[0, 20, 0, 6], tcp]), 0);
        assert_eq!(tcp[13], flags);
        (of(4), of(8))
    }

    /// Columns: packets, next and acknowledged number of the client's side, the same of the backend's; numbers to the backend and
    /// to the client.
    #[test]
    fn numbers_follow_what_has_passed() {
        type Side = (u64, u32, u32);
        #[rustfmt::skip]
        let rows: &[(Side, Option<Side>, (u32, u32), (u32, u32))] = &[
            ((3, 500, 900), Some((2, 950, 500)), (500, 950), (950, 500)),
            // A SYN without an answer: the client waits for an acknowledgement of it.
            ((1, 101, 0), Some((0, 0, 0)), (101, 0), (0, 101)),
            // Joined by what the backend sent.
            ((0, 0, 0), Some((1, 950, 480)), (480, 950), (950, 480)),
            // Answers are not seen.
            ((3, 500, 900), None, (500, 900), (900, 500)),
        ];
        for (family, [client, service, source, backend]) in [
            ["192.0.2.9:5000", "10.0.0.1:80", "10.0.1.1:5000", "10.0.1.11:8080"],
            [
                "[2001:db8::9]:5000",
                "[fd00::1]:80",
                "[fd01::1]:5000",
                "[fd01::11]:8080",
            ],
        ]
        .into_iter()
        .enumerate()
        {
            let key = tuple(client, service);
            for (row, &(up, down, to_backend, to_client)) in rows.iter().enumerate() {
                let flow = |(packets, next, ack): Side, ifindex, to| Flow {
                    packets,
                    next,
                    ack,
                    ifindex,
                    to,
                    ..Flow::default()
                };
                let is_dsr = down.is_none();
                let mut up = flow(up, 7, tuple(source, backend));
                up.flags |= if is_dsr { FLOW_DSR } else { 0 };
                let down = down.map(|down| flow(down, 8, key.turned()));
                let frames = resets(&key, &up, down.as_ref(), 9);
                let (backends, clients) = (&frames[0], &frames[1]);
                assert_eq!(numbers(backends, RST_ACK), to_backend, "family {family}, row {row}");
                assert_eq!(numbers(clients, RST_ACK), to_client, "family {family}, row {row}");
                let asked = frames[2..].iter().map(|frame| numbers(frame, ACK)).collect::<Vec<_>>();
                let question = is_dsr.then(|| (to_client.0 - 1, to_client.1));
                assert_eq!(asked, Vec::from_iter(question), "family {family}, row {row}");
                let wanted = if is_dsr {
                    (9, 9, INJECT_PLAIN)
                } else {
                    (8, 7, INJECT_CUT)
                };
                assert_eq!((backends.interface, clients.interface, clients.kind), wanted);
            }
        }
    }
}
