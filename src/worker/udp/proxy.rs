//! The PROXY protocol header, version 2, for a datagram (haproxy.org/download/3.0/doc/proxy-protocol.txt, section 2.2).

use std::net::{IpAddr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const VERSION_COMMAND: u8 = 0x21;

/// Says that `client` spoke to `local`; both are of one family.
pub(super) fn header(client: SocketAddr, local: SocketAddr) -> Vec<u8> {
    let mut out = Vec::with_capacity(52);
    out.extend_from_slice(&SIGNATURE);
    out.push(VERSION_COMMAND);
    let mut addresses = Vec::with_capacity(36);
    let family: u8 = match (client.ip(), local.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            addresses.extend_from_slice(&from.octets());
            addresses.extend_from_slice(&to.octets());
            0x12
        }
        (from, to) => {
            for ip in [from, to] {
                let v6 = match ip {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                    IpAddr::V6(v6) => v6,
                };
                addresses.extend_from_slice(&v6.octets());
            }
            0x22
        }
    };
    addresses.extend_from_slice(&client.port().to_be_bytes());
    addresses.extend_from_slice(&local.port().to_be_bytes());
    out.push(family);
    out.extend_from_slice(&(addresses.len() as u16).to_be_bytes());
    out.extend_from_slice(&addresses);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_as_the_specification_draws_them() {
        let parse = |s: &str| s.parse().expect("address");
        let v4 = header(parse("192.0.2.1:53000"), parse("198.51.100.7:53"));
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0c".to_vec();
        expected.extend([192, 0, 2, 1, 198, 51, 100, 7, 0xcf, 0x08, 0, 53]);
        assert_eq!(v4, expected);

        let v6 = header(parse("[2001:db8::1]:1"), parse("[2001:db8::2]:2"));
        assert_eq!((v6.len(), &v6[12..16]), (52, &b"\x21\x22\0\x24"[..]));
        assert_eq!(v6[48..], [0, 1, 0, 2]);
    }
}
