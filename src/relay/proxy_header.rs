//! PROXY protocol headers, versions 1 and 2 (HAProxy, doc/proxy-protocol.txt): who the client behind a proxy is.
//!
//! A header comes from a trusted source only, and it comes first. It is looked at before it is consumed, so the bytes
//! behind it stay where they are. TLVs are skipped.

use std::net::{IpAddr, SocketAddr};

use ppp::{PartialResult, v1, v2};

use crate::config::model::{Protocol, SendProxy};

/// Bytes of a header at most, TLVs included.
pub const HEADER_MAX: usize = 4096;
/// Longest version 1 header, CRLF included.
const V1_MAX: usize = 107;

/// Addresses of a header: source and destination; `None` where the proxy speaks for itself (LOCAL, UNKNOWN).
pub type Addresses = Option<(SocketAddr, SocketAddr)>;

/// What the first bytes of a connection are.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A header of `len` bytes.
    Header {
        /// Its length.
        len: usize,
        /// Who talks to whom.
        addresses: Addresses,
    },
    /// The beginning of one.
    Incomplete,
    /// No header, or one that is too long.
    Invalid,
}

/// Looks at the first bytes of a connection.
pub fn parse(bytes: &[u8]) -> Parsed {
    if bytes.first() == Some(&b'P') {
        return parse_v1(&bytes[..bytes.len().min(V1_MAX)]);
    }
    if let Some(parsed) = parse_v2_local(bytes) {
        return parsed;
    }
    let result = v2::Header::try_from(bytes);
    let incomplete = result.is_incomplete();
    match result {
        Ok(header) => Parsed::Header {
            len: header.header.len(),
            addresses: match header.command {
                v2::Command::Local => None,
                v2::Command::Proxy => v2_addresses(&header.addresses),
            },
        },
        Err(_) if !incomplete || bytes.len() >= HEADER_MAX || too_long(bytes) => Parsed::Invalid,
        Err(_) => Parsed::Incomplete,
    }
}

/// Version 2, command LOCAL: the proxy speaks for itself, a health check for example. The family and whatever is in the
/// block have no meaning then, and both are to be ignored (section 2.2), also a family whose addresses are not there, which
/// the library takes for an error. `None` if it is another command.
fn parse_v2_local(bytes: &[u8]) -> Option<Parsed> {
    const START: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20";
    let block = bytes.strip_prefix(START)?;
    let &[_family, high, low, ..] = block else {
        return Some(Parsed::Incomplete);
    };
    let len = START.len() + 3 + usize::from(u16::from_be_bytes([high, low]));
    Some(if len > HEADER_MAX {
        Parsed::Invalid
    } else if bytes.len() < len {
        Parsed::Incomplete
    } else {
        Parsed::Header { len, addresses: None }
    })
}

/// The line is judged once it is whole: half a line may end where the library sees an empty field.
fn parse_v1(bytes: &[u8]) -> Parsed {
    const START: &[u8] = b"PROXY ";
    let start = bytes.len().min(START.len());
    if bytes[..start] != START[..start] {
        return Parsed::Invalid;
    }
    if !bytes.windows(2).any(|pair| pair == b"\r\n") {
        return match bytes.len() < V1_MAX {
            true => Parsed::Incomplete,
            false => Parsed::Invalid,
        };
    }
    match v1::Header::try_from(bytes) {
        Ok(header) => Parsed::Header {
            len: header.header.len(),
            addresses: v1_addresses(&header.addresses),
        },
        Err(_) => Parsed::Invalid,
    }
}

fn too_long(bytes: &[u8]) -> bool {
    matches!(bytes.get(14..16), Some(&[high, low]) if usize::from(u16::from_be_bytes([high, low])) + 16 > HEADER_MAX)
}

fn v1_addresses(addresses: &v1::Addresses) -> Addresses {
    match addresses {
        v1::Addresses::Tcp4(ip) => Some((
            (ip.source_address, ip.source_port).into(),
            (ip.destination_address, ip.destination_port).into(),
        )),
        v1::Addresses::Tcp6(ip) => Some((
            (ip.source_address, ip.source_port).into(),
            (ip.destination_address, ip.destination_port).into(),
        )),
        v1::Addresses::Unknown => None,
    }
}

fn v2_addresses(addresses: &v2::Addresses) -> Addresses {
    match addresses {
        v2::Addresses::IPv4(ip) => Some((
            (ip.source_address, ip.source_port).into(),
            (ip.destination_address, ip.destination_port).into(),
        )),
        v2::Addresses::IPv6(ip) => Some((
            (ip.source_address, ip.source_port).into(),
            (ip.destination_address, ip.destination_port).into(),
        )),
        v2::Addresses::Unix(_) | v2::Addresses::Unspecified => None,
    }
}

/// The header that tells a backend of `addresses`; empty when none is to be sent. Addresses of two families are both
/// written as IPv6.
pub fn build(version: SendProxy, protocol: Protocol, addresses: Addresses) -> Vec<u8> {
    let addresses = addresses.map(|(source, destination)| one_family(source, destination));
    match version {
        SendProxy::Off => Vec::new(),
        SendProxy::V1 => match addresses {
            None => b"PROXY UNKNOWN\r\n".to_vec(),
            Some((source, destination)) => v1::Addresses::from((source, destination)).to_string().into_bytes(),
        },
        SendProxy::V2 => {
            let transport = match protocol {
                Protocol::Tcp => v2::Protocol::Stream,
                Protocol::Udp => v2::Protocol::Datagram,
            };
            let built = match addresses {
                None => v2::Builder::new(
                    v2::Version::Two | v2::Command::Local,
                    v2::AddressFamily::Unspecified as u8,
                )
                .build(),
                Some(pair) => {
                    v2::Builder::with_addresses(v2::Version::Two | v2::Command::Proxy, transport, pair).build()
                }
            };
            // Only TLVs can make a header too long to write, and there are none.
            built.unwrap_or_default()
        }
    }
}

fn one_family(source: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
    let wide = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    if source.is_ipv4() == destination.is_ipv4() {
        (source, destination)
    } else {
        (wide(source), wide(destination))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair(a: &str, b: &str) -> Addresses {
        Some((a.parse().unwrap(), b.parse().unwrap()))
    }

    /// Version 2, LOCAL, with a family, a block and what follows.
    fn local(family: u8, block: &[u8], tail: &[u8]) -> Vec<u8> {
        let len = (block.len() as u16).to_be_bytes();
        [&b"\r\n\r\n\0\r\nQUIT\n\x20"[..], &[family], &len, block, tail].concat()
    }

    #[test]
    fn what_the_first_bytes_are() {
        let v1 = b"PROXY TCP4 192.0.2.1 198.51.100.2 4711 80\r\n";
        let header = |len, addresses| Parsed::Header { len, addresses };
        let v2_with_tlv = {
            let mut bytes = build(SendProxy::V2, Protocol::Tcp, pair("192.0.2.1:4711", "198.51.100.2:80"));
            bytes.extend([0x04, 0, 1, 9]);
            bytes[15] += 4;
            bytes
        };
        let too_long_v2 = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11"[..], &[0xff, 0xff]].concat();
        let rows: &[(&str, &[u8], Parsed)] = &[
            ("nothing yet", b"", Parsed::Incomplete),
            ("v1", v1, header(43, pair("192.0.2.1:4711", "198.51.100.2:80"))),
            (
                "v1 with data behind",
                &[v1, &b"\xff\xfe GET /"[..]].concat(),
                header(43, pair("192.0.2.1:4711", "198.51.100.2:80")),
            ),
            ("v1 begun", &v1[..20], Parsed::Incomplete),
            ("v1, one letter", b"P", Parsed::Incomplete),
            (
                "v1, IPv6",
                b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n",
                header(40, pair("[2001:db8::1]:1", "[2001:db8::2]:2")),
            ),
            ("v1 unknown", b"PROXY UNKNOWN\r\n", header(15, None)),
            ("v1 without an end", &[b'P'; 200], Parsed::Invalid),
            ("another word", b"POST / HTTP/1.1\r\n", Parsed::Invalid),
            (
                "v1, bad address",
                b"PROXY TCP4 192.0.2.300 1.2.3.4 1 2\r\n",
                Parsed::Invalid,
            ),
            ("http", b"GET / HTTP/1.1\r\n\r\n", Parsed::Invalid),
            ("tls", b"\x16\x03\x01\x02\x00\x01", Parsed::Invalid),
            (
                "v2 with a TLV",
                &v2_with_tlv,
                header(32, pair("192.0.2.1:4711", "198.51.100.2:80")),
            ),
            ("v2 begun", &v2_with_tlv[..13], Parsed::Incomplete),
            ("v2 without its TLV", &v2_with_tlv[..28], Parsed::Incomplete),
            ("v2 of 64 KiB", &too_long_v2, Parsed::Invalid),
            ("local", &local(0x00, &[], b"GET"), header(16, None)),
            (
                "local, IPv4 without addresses",
                &local(0x11, &[], b"GET"),
                header(16, None),
            ),
            (
                "local, IPv6 over UDP, half an address",
                &local(0x22, &[7; 9], b""),
                header(25, None),
            ),
            (
                "local, addresses that mean nothing",
                &local(0x11, &[7; 12], b"GET"),
                header(28, None),
            ),
            (
                "local, no family of this world",
                &local(0xff, &[7; 3], b""),
                header(19, None),
            ),
            ("local, begun", &local(0x11, &[], b"")[..13], Parsed::Incomplete),
            (
                "local, without its length",
                &local(0x11, &[], b"")[..15],
                Parsed::Incomplete,
            ),
            (
                "local, half a block",
                &local(0x11, &[7; 9], b"")[..20],
                Parsed::Incomplete,
            ),
            (
                "local, the longest",
                &local(0x00, &[7; HEADER_MAX - 16], b""),
                header(HEADER_MAX, None),
            ),
            (
                "local, longer",
                &local(0x00, &[7; HEADER_MAX - 15], b"")[..99],
                Parsed::Invalid,
            ),
            (
                "v2, an unknown command",
                b"\r\n\r\n\0\r\nQUIT\n\x22\x11\0\0",
                Parsed::Invalid,
            ),
        ];
        for (name, bytes, expected) in rows {
            assert_eq!(parse(bytes), *expected, "{name}");
        }
    }

    proptest! {
        #[test]
        fn what_is_built_is_parsed_back(v2 in any::<bool>(), a in any::<(IpAddr, u16)>(), b in any::<(IpAddr, u16)>(), tail in any::<Vec<u8>>()) {
            let (source, destination) = one_family(a.into(), b.into());
            let version = if v2 { SendProxy::V2 } else { SendProxy::V1 };
            let mut bytes = build(version, Protocol::Tcp, Some((source, destination)));
            let len = bytes.len();
            // Wherever the network cuts it. Break tried: the library's word on half a version 1 line, which takes
            // `... 1 ` for one with an empty port.
            for cut in 0..len {
                prop_assert_eq!(parse(&bytes[..cut]), Parsed::Incomplete, "cut at {}", cut);
            }
            bytes.extend(tail);
            prop_assert_eq!(parse(&bytes), Parsed::Header { len, addresses: Some((source, destination)) });
        }

        #[test]
        fn no_bytes_panic(bytes in any::<Vec<u8>>(), v1 in any::<bool>()) {
            let prefix: &[u8] = if v1 { b"PROXY " } else { b"\r\n\r\n\0\r\nQUIT\n" };
            let _ = parse(&[prefix, &bytes].concat());
            let _ = parse(&bytes);
        }
    }
}
