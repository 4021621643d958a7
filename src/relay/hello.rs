//! The server name in the first bytes of a TLS connection (RFC 8446, section 4.1.2; RFC 6066, section 3).
//!
//! The bytes are looked at and stay where they are: whoever gets the connection gets all of them.
//!
//! How far a hello reaches, the headers of its records say, and its own; so bytes that trickle in cost little, and one that
//! announces too much is known at once. A whole one is read by rustls. It takes none without `signature_algorithms`, which
//! clients did not send before TLS 1.2; such a one is given that extension first. Of an encrypted hello (ECH) this is the outer
//! one: the name in it is that of the server that can decrypt it.

use rustls::server::Acceptor;
use rustls::{Error, PeerIncompatible};

/// Bytes of a hello at most, headers of its records included.
pub const HELLO_MAX: usize = 16 << 10;

const RECORD_HEADER: usize = 5;
/// Type and length in front of a handshake message.
const MESSAGE_HEADER: usize = 4;
/// Most bytes in a record.
const RECORD_MAX: usize = 16 << 10;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// The beginning of a hello, or nothing.
    Incomplete,
    /// It asks for this server; lower case, without a dot at the end.
    Name(String),
    /// No name to go by: something else than TLS, or a hello that has none, or one that makes no sense.
    Nameless,
    /// A hello that is longer than [`HELLO_MAX`].
    TooLarge,
}

/// Looks at the first bytes of a connection.
pub fn read(bytes: &[u8]) -> Hello {
    let whole = match gather(bytes) {
        Gathered::Incomplete if bytes.len() >= HELLO_MAX => return Hello::TooLarge,
        Gathered::Incomplete => return Hello::Incomplete,
        Gathered::TooLarge => return Hello::TooLarge,
        Gathered::Nothing => return Hello::Nameless,
        Gathered::Whole(message) => message,
    };
    let name = match accept(&whole) {
        Err(Error::PeerIncompatible(PeerIncompatible::SignatureAlgorithmsExtensionRequired)) => {
            with_signature_algorithms(&whole).and_then(|whole| accept(&whole).ok().flatten())
        }
        result => result.ok().flatten(),
    };
    name.map_or(Hello::Nameless, Hello::Name)
}

/// What the records hold.
enum Gathered {
    Incomplete,
    /// The message, with its header.
    Whole(Vec<u8>),
    TooLarge,
    Nothing,
}

/// Puts a hello together from its records.
fn gather(bytes: &[u8]) -> Gathered {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        let known = rest.len().min(2);
        if rest[..known] != [HANDSHAKE, 3][..known] {
            return Gathered::Nothing;
        }
        let Some((header, after)) = rest.split_at_checked(RECORD_HEADER) else {
            return Gathered::Incomplete;
        };
        let len = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if len == 0 || len > RECORD_MAX {
            return Gathered::Nothing;
        }
        let end = bytes.len() - after.len() + len;
        let before = message.len();
        message.extend_from_slice(&after[..len.min(after.len())]);
        if message.first().is_some_and(|&kind| kind != CLIENT_HELLO) {
            return Gathered::Nothing;
        }
        if let Some(&[high, middle, low]) = message.get(1..MESSAGE_HEADER) {
            let wanted = MESSAGE_HEADER + u32::from_be_bytes([0, high, middle, low]) as usize;
            if end + wanted.saturating_sub(before + len) > HELLO_MAX {
                return Gathered::TooLarge;
            }
            if message.len() >= wanted {
                message.truncate(wanted);
                return Gathered::Whole(message);
            }
        }
        let Some(next) = after.get(len..) else {
            return Gathered::Incomplete;
        };
        rest = next;
    }
}

/// Has rustls read a hello: the name in it, if there is one.
fn accept(message: &[u8]) -> Result<Option<String>, Error> {
    let [high, low] = (message.len() as u16).to_be_bytes();
    let record = [&[HANDSHAKE, 3, 1, high, low], message].concat();
    let mut unread = record.as_slice();
    let mut acceptor = Acceptor::default();
    while !unread.is_empty() {
        // From memory: nothing but its buffer could be at an end, and a hello fits there.
        if !matches!(acceptor.read_tls(&mut unread), Ok(1..)) {
            return Ok(None);
        }
    }
    let accepted = acceptor.accept().map_err(|(error, _)| error)?;
    Ok(accepted.and_then(|accepted| {
        let hello = accepted.client_hello();
        let name = hello.server_name()?;
        Some(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase())
    }))
}

/// A hello with one more extension: `signature_algorithms`, with one that does not exist.
fn with_signature_algorithms(message: &[u8]) -> Option<Vec<u8>> {
    const EXTENSION: [u8; 8] = [0, 13, 0, 4, 0, 2, 0xfe, 0xff];
    // Version and random; then session, cipher suites and compression methods, each behind its length.
    let mut at = MESSAGE_HEADER + 2 + 32;
    at += 1 + usize::from(*message.get(at)?);
    at += 2 + usize::from(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]));
    at += 1 + usize::from(*message.get(at)?);
    let len = u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]);
    let len = len.checked_add(EXTENSION.len() as u16)?;
    let mut changed = [message, &EXTENSION].concat();
    changed[at..at + 2].copy_from_slice(&len.to_be_bytes());
    let body = (changed.len() - MESSAGE_HEADER) as u32;
    changed[1..MESSAGE_HEADER].copy_from_slice(&body.to_be_bytes()[1..]);
    Some(changed)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    const GREASE: u16 = 0x3a3a;

    fn with_len<const BYTES: usize>(body: &[u8]) -> Vec<u8> {
        let len = (body.len() as u64).to_be_bytes();
        [&len[8 - BYTES..], body].concat()
    }

    fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &with_len::<2>(body)].concat()
    }

    fn server_name(name: &[u8]) -> Vec<u8> {
        extension(0, &with_len::<2>(&[&[0][..], &with_len::<2>(name)].concat()))
    }

    /// Names of algorithms, as every client since TLS 1.2 sends them.
    fn algorithms() -> Vec<u8> {
        extension(13, &with_len::<2>(&[4, 3, 8, 4]))
    }

    /// The message, with its header.
    fn message(random: [u8; 32], extensions: Option<&[Vec<u8>]>) -> Vec<u8> {
        let suites = [0x3a, 0x3a, 0x13, 0x01, 0xc0, 0x2b];
        let mut body = [&[3, 3][..], &random, &with_len::<1>(&[7; 32]), &with_len::<2>(&suites)].concat();
        body.extend(with_len::<1>(&[0]));
        body.extend(extensions.map_or(Vec::new(), |extensions| with_len::<2>(&extensions.concat())));
        [&[CLIENT_HELLO][..], &with_len::<3>(&body)].concat()
    }

    fn records(message: &[u8], bytes_each: usize) -> Vec<u8> {
        let record = |part: &[u8]| [&[HANDSHAKE, 3, 1][..], &with_len::<2>(part)].concat();
        message.chunks(bytes_each).flat_map(record).collect()
    }

    /// What a client sends that asks for this name, in records of so many bytes; `random` is what it is told apart by.
    pub(crate) fn hello(name: &str, random: [u8; 32], bytes_each: usize) -> Vec<u8> {
        let extensions = [server_name(name.as_bytes()), algorithms()];
        records(&message(random, Some(&extensions)), bytes_each)
    }

    fn asking(extensions: &[Vec<u8>]) -> Vec<u8> {
        records(&message([9; 32], Some(extensions)), RECORD_MAX)
    }

    fn name(name: &str) -> Hello {
        Hello::Name(name.into())
    }

    /// Meant to notice: a limit that is another one, a record that is taken for the whole hello. Seen to fail when the dot at the
    /// end of a name stayed.
    #[test]
    fn what_the_first_bytes_are() {
        let plain = hello("www.example.org", [9; 32], RECORD_MAX);
        let filler = |bytes: usize| extension(GREASE + 0x1010, &vec![0; bytes]);
        let with_filler = |bytes: usize| asking(&[server_name(b"a.test"), algorithms(), filler(bytes)]);
        let longest = HELLO_MAX - with_filler(0).len();
        // X25519MLKEM768 and a GREASE share.
        let shares = [
            [&[0x3a, 0x3a][..], &with_len::<2>(&[0])].concat(),
            [&[0x11, 0xec][..], &with_len::<2>(&[5; 1216])].concat(),
        ];
        let post_quantum = asking(&[
            extension(GREASE, &[]),
            server_name(b"pq.example.org"),
            algorithms(),
            extension(51, &with_len::<2>(&shares.concat())),
            extension(43, &with_len::<1>(&[0x7a, 0x7a, 3, 4])),
            filler(300),
        ]);
        assert!(post_quantum.len() > 1_500);
        let ech = [
            &[0, 0, 1, 0, 1, 7][..],
            &with_len::<2>(&[1; 32]),
            &with_len::<2>(&[2; 200]),
        ]
        .concat();
        let bomb = [&[HANDSHAKE, 3, 1, 0x40, 0, CLIENT_HELLO, 0, 0xff, 0xff][..], &[0; 100]].concat();
        let mut after_hello = plain.clone();
        after_hello.extend([23, 3, 3, 0, 4, 1, 2, 3, 4]);
        let mut with_more = message([9; 32], Some(&[server_name(b"a.test"), algorithms()]));
        with_more.extend([11, 0, 0, 1, 0]);
        let rows: &[(&str, &[u8], Hello)] = &[
            ("nothing yet", b"", Hello::Incomplete),
            ("a name", &plain, name("www.example.org")),
            (
                "capitals",
                &hello("WwW.Example.ORG", [9; 32], RECORD_MAX),
                name("www.example.org"),
            ),
            (
                "a dot at the end",
                &hello("www.example.org.", [9; 32], RECORD_MAX),
                name("www.example.org"),
            ),
            (
                "an underscore",
                &hello("a_b.example.org", [9; 32], RECORD_MAX),
                name("a_b.example.org"),
            ),
            (
                "a byte a record",
                &hello("www.example.org", [9; 32], 1),
                name("www.example.org"),
            ),
            ("early data behind it", &after_hello, name("www.example.org")),
            ("a message behind it", &records(&with_more, RECORD_MAX), name("a.test")),
            ("shares of more than a segment", &post_quantum, name("pq.example.org")),
            (
                "encrypted: the outer name",
                &asking(&[
                    server_name(b"public.example.org"),
                    algorithms(),
                    extension(0xfe0d, &ech),
                ]),
                name("public.example.org"),
            ),
            (
                "TLS 1.1: no algorithms",
                &asking(&[server_name(b"old.example.org")]),
                name("old.example.org"),
            ),
            ("no name", &asking(&[algorithms()]), Hello::Nameless),
            (
                "an address for a name",
                &asking(&[server_name(b"192.0.2.1"), algorithms()]),
                Hello::Nameless,
            ),
            (
                "two names",
                &asking(&[server_name(b"a"), server_name(b"b"), algorithms()]),
                Hello::Nameless,
            ),
            (
                "a name that is none",
                &asking(&[server_name(b"a b\n"), algorithms()]),
                Hello::Nameless,
            ),
            (
                "an empty name",
                &asking(&[server_name(b""), algorithms()]),
                Hello::Nameless,
            ),
            (
                "SSL 3: no extensions",
                &records(&message([9; 32], None), RECORD_MAX),
                Hello::Nameless,
            ),
            ("as long as may be", &with_filler(longest), name("a.test")),
            ("a byte longer", &with_filler(longest + 1), Hello::TooLarge),
            (
                "a byte longer, as soon as that is known",
                &with_filler(longest + 1)[..9],
                Hello::TooLarge,
            ),
            ("a bomb", &bomb, Hello::TooLarge),
            (
                "a bomb of records",
                &records(&[CLIENT_HELLO, 0, 0x3f, 0].repeat(1000), 1)[..HELLO_MAX],
                Hello::TooLarge,
            ),
            (
                "a bomb of records, not all of it",
                &records(&[CLIENT_HELLO, 0, 0x3f, 0].repeat(9), 1),
                Hello::Incomplete,
            ),
            ("its header alone", &plain[..9], Hello::Incomplete),
            ("all but a byte", &plain[..plain.len() - 1], Hello::Incomplete),
            ("SSL 2", &[0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10], Hello::Nameless),
            (
                "SSL 2 that offers TLS",
                &[0x80, 0x2e, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10],
                Hello::Nameless,
            ),
            ("http", b"GET / HTTP/1.1\r\n\r\n", Hello::Nameless),
            (
                "a PROXY header",
                b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
                Hello::Nameless,
            ),
            ("an alert", &[21, 3, 1, 0, 2, 1, 0], Hello::Nameless),
            ("another message", &[HANDSHAKE, 3, 1, 0, 4, 2, 0, 0, 0], Hello::Nameless),
            ("an empty record", &[HANDSHAKE, 3, 1, 0, 0], Hello::Nameless),
            (
                "a record that is too long",
                &[HANDSHAKE, 3, 1, 0x40, 1],
                Hello::Nameless,
            ),
            (
                "an alert amid a hello",
                &[&[HANDSHAKE, 3, 1, 0, 2, CLIENT_HELLO, 0][..], &[21, 3, 1, 0, 2, 1, 0]].concat(),
                Hello::Nameless,
            ),
            (
                "garbage in a hello",
                &[&[HANDSHAKE, 3, 1, 0, 8, CLIENT_HELLO, 0, 0, 4][..], &[0xff; 4]].concat(),
                Hello::Nameless,
            ),
        ];
        for (what, bytes, expected) in rows {
            assert_eq!(read(bytes), *expected, "{what}");
        }
    }

    proptest! {
        /// However the network cuts it, and however the client does.
        #[test]
        fn a_hello_is_read_once_it_is_whole(bytes_each in 1usize..600, cut in 0usize..200) {
            let bytes = hello("www.example.org", [3; 32], bytes_each);
            let cut = cut.min(bytes.len() - 1);
            prop_assert_eq!(read(&bytes[..cut]), Hello::Incomplete);
            prop_assert_eq!(read(&bytes), name("www.example.org"));
        }

        #[test]
        fn no_bytes_panic(bytes in any::<Vec<u8>>(), at in 0usize..200) {
            let _ = read(&bytes);
            let mut changed = hello("www.example.org", [3; 32], 64);
            let at = at.min(changed.len());
            changed.splice(at..(at + bytes.len()).min(changed.len()), bytes);
            let _ = read(&changed);
            let _ = read(&[&[HANDSHAKE, 3, 1, 1, 0, CLIENT_HELLO, 0, 0, 0xfc][..], &changed].concat());
        }
    }
}
