//! Bytes between nodes: handshake, signature, sequence numbers.
//!
//! # How it works
//! A pair of nodes keeps one TCP connection. Both ends first say [`Hello`] in clear: name, boot number, a fresh nonce. Each
//! direction then has its own key, `HMAC-SHA256(secret, direction | dialer's hello | acceptor's hello)`, and every frame
//! carries a sequence number and an HMAC under that key.
//!
//! ```text
//! hello:  "WEIR" version:u8 boot:u64 nonce:[u8;16] name_len:u8 name
//! frame:  length:u16 | sequence:u64 kind:u8 body | mac:[u8;32]       length counts what follows it
//! beat:   count:u8, then for each VIP: family:u8 address phase:u8 fit:u8 flags:u8 successor:name backs:name
//! ```
//!
//! # Invariants
//! * A message is only returned after its signature and its sequence number were found good.
//! * Both nonces are in the key, so nothing recorded on one connection verifies on another; sequence numbers rise, so
//!   nothing verifies twice on the same one.
//! * What is buffered never exceeds [`FRAME_MAX`] + 2 bytes, whatever arrives.
//!
//! # What it never does
//! It does not encrypt: who holds which address is no secret on the network that carries the address.

use std::net::IpAddr;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::words::{Claim, Fit, Phase};

/// Longest frame after its length field.
pub const FRAME_MAX: usize = 48 * 1024;
/// Longest node name.
pub const NAME_MAX: usize = 63;
/// Most VIPs that a beat carries.
pub const VIPS_MAX: usize = 255;
const MAGIC: &[u8; 4] = b"WEIR";
const VERSION: u8 = 1;
const MAC_LEN: usize = 32;
const HELLO_FIXED: usize = 4 + 1 + 8 + 16 + 1;

/// Which end of the connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// We connected.
    Dialer,
    /// We accepted.
    Acceptor,
}

/// What each end says first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Its name in the configuration.
    pub name: String,
    /// Differs for every start of the process.
    pub boot: u64,
    /// Fresh for every connection.
    pub nonce: [u8; 16],
}

/// Why bytes were not taken; also the metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rejected {
    /// Does not begin as a weir node would.
    Garbage,
    /// A name that is not in the configuration, or our own.
    UnknownNode,
    /// The signature is wrong: another secret, or a forger.
    Signature,
    /// A sequence number that was seen before.
    Sequence,
    /// Longer than any frame.
    TooLong,
    /// Signed, but not understood.
    Malformed,
}

impl Rejected {
    /// All of them, for counters.
    pub const ALL: [Rejected; 6] = [
        Rejected::Garbage,
        Rejected::UnknownNode,
        Rejected::Signature,
        Rejected::Sequence,
        Rejected::TooLong,
        Rejected::Malformed,
    ];

    /// The word used in logs and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Rejected::Garbage => "garbage",
            Rejected::UnknownNode => "unknown_node",
            Rejected::Signature => "signature",
            Rejected::Sequence => "sequence",
            Rejected::TooLong => "too_long",
            Rejected::Malformed => "malformed",
        }
    }
}

/// A signed message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A sign of life, and what the sender does with each VIP.
    Beat(Vec<WireClaim>),
    /// The sender is about to close this connection, but lives.
    Farewell,
}

/// A [`Claim`] with names in place of indices, since two nodes may list theirs differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireClaim {
    /// The virtual address.
    pub address: IpAddr,
    /// What the sender does with it; the index in `Yielding` is meaningless, see `successor`.
    pub phase: WirePhase,
    /// How fit it is.
    pub fit: Fit,
    /// It asks for the address.
    pub wants: bool,
    /// To whom it yields; empty = nobody.
    pub successor: String,
    /// Whom it backs; empty = nobody.
    pub backs: String,
}

/// [`Phase`] without the successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum WirePhase {
    /// [`Phase::Free`].
    Free = 0,
    /// [`Phase::Claiming`].
    Claiming = 1,
    /// [`Phase::Held`].
    Held = 2,
    /// [`Phase::Yielding`].
    Yielding = 3,
    /// [`Phase::Leaving`].
    Leaving = 4,
}

/// Puts names in place of indices.
pub fn to_wire(claims: &[Claim], vips: &[IpAddr], nodes: &[String]) -> Vec<WireClaim> {
    let name = |n: usize| nodes.get(n).cloned().unwrap_or_default();
    claims
        .iter()
        .zip(vips)
        .map(|(claim, address)| {
            let (phase, successor) = match claim.phase {
                Phase::Free => (WirePhase::Free, String::new()),
                Phase::Claiming => (WirePhase::Claiming, String::new()),
                Phase::Held => (WirePhase::Held, String::new()),
                Phase::Yielding(n) => (WirePhase::Yielding, name(n)),
                Phase::Leaving => (WirePhase::Leaving, String::new()),
            };
            WireClaim {
                address: *address,
                phase,
                fit: claim.fit,
                wants: claim.wants,
                successor,
                backs: claim.backs.map(name).unwrap_or_default(),
            }
        })
        .collect()
}

/// Puts indices in place of names: one claim for each of `vips`, [`Claim::NONE`] where the sender does not know the address.
pub fn from_wire(wire: &[WireClaim], vips: &[IpAddr], nodes: &[String]) -> Vec<Claim> {
    let index = |name: &str| nodes.iter().position(|n| n == name);
    vips.iter()
        .map(|address| {
            let Some(w) = wire.iter().find(|w| w.address == *address) else {
                return Claim::NONE;
            };
            let phase = match w.phase {
                WirePhase::Free => Phase::Free,
                WirePhase::Claiming => Phase::Claiming,
                WirePhase::Held => Phase::Held,
                // A successor that we do not know is nobody we could make way for.
                WirePhase::Yielding => index(&w.successor).map_or(Phase::Held, Phase::Yielding),
                WirePhase::Leaving => Phase::Leaving,
            };
            Claim {
                phase,
                fit: w.fit,
                wants: w.wants,
                backs: index(&w.backs),
            }
        })
        .collect()
}

impl Hello {
    /// As bytes. Names are cut at [`NAME_MAX`], which the configuration does not exceed.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HELLO_FIXED + self.name.len());
        out.extend_from_slice(MAGIC);
        out.push(VERSION);
        out.extend_from_slice(&self.boot.to_be_bytes());
        out.extend_from_slice(&self.nonce);
        put_name(&mut out, &self.name);
        out
    }

    /// From the start of `bytes`: the hello and its length, or `None` while more is needed.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Hello, usize)>, Rejected> {
        let known = bytes.len().min(4);
        if bytes[..known] != MAGIC[..known] || bytes.get(4).is_some_and(|v| *v != VERSION) {
            return Err(Rejected::Garbage);
        }
        if bytes.len() < HELLO_FIXED {
            return Ok(None);
        }
        let mut rest = Reader(&bytes[5..]);
        let boot = u64::from_be_bytes(rest.array().ok_or(Rejected::Garbage)?);
        let nonce = rest.array().ok_or(Rejected::Garbage)?;
        let len = usize::from(bytes[HELLO_FIXED - 1]);
        if len == 0 || len > NAME_MAX {
            return Err(Rejected::Garbage);
        }
        if bytes.len() < HELLO_FIXED + len {
            return Ok(None);
        }
        let name = rest.name().ok_or(Rejected::Garbage)?;
        Ok(Some((Hello { name, boot, nonce }, HELLO_FIXED + len)))
    }
}

/// Signs what one end sends.
pub struct Signer {
    key: Hmac<Sha256>,
    sequence: u64,
}

/// Verifies what the other end sends.
pub struct Verifier {
    key: Hmac<Sha256>,
    next: u64,
    buffer: Vec<u8>,
}

/// The two directions of a connection, once both hellos are known.
pub fn session(secret: &[u8], side: Side, ours: &Hello, theirs: &Hello) -> (Signer, Verifier) {
    let (dialer, acceptor) = match side {
        Side::Dialer => (ours, theirs),
        Side::Acceptor => (theirs, ours),
    };
    let key = |direction: &[u8]| {
        let mut mac = keyed(secret);
        mac.update(direction);
        mac.update(&dialer.encode());
        mac.update(&acceptor.encode());
        keyed(&mac.finalize().into_bytes())
    };
    let (from_dialer, from_acceptor) = (key(b"weir/1 dialer"), key(b"weir/1 acceptor"));
    let (send, receive) = match side {
        Side::Dialer => (from_dialer, from_acceptor),
        Side::Acceptor => (from_acceptor, from_dialer),
    };
    (
        Signer { key: send, sequence: 0 },
        Verifier {
            key: receive,
            next: 0,
            buffer: Vec::new(),
        },
    )
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

impl Signer {
    /// The next frame.
    pub fn frame(&mut self, message: &Message) -> Vec<u8> {
        let mut out = vec![0, 0];
        out.extend_from_slice(&self.sequence.to_be_bytes());
        self.sequence += 1;
        match message {
            Message::Beat(claims) => {
                out.push(1);
                put_claims(&mut out, claims);
            }
            Message::Farewell => out.push(2),
        }
        let mut mac = self.key.clone();
        mac.update(&out[2..]);
        out.extend_from_slice(&mac.finalize().into_bytes());
        let len = out.len() - 2;
        debug_assert!(len <= FRAME_MAX);
        out[..2].copy_from_slice(&(len as u16).to_be_bytes());
        out
    }
}

impl Verifier {
    /// Takes bytes in; call [`Verifier::message`] until it returns `None` before feeding more.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message. After an error the connection is of no use any more.
    pub fn message(&mut self) -> Result<Option<Message>, Rejected> {
        let Some(len) = self.buffer.first_chunk::<2>() else {
            return Ok(None);
        };
        let len = usize::from(u16::from_be_bytes(*len));
        if len > FRAME_MAX {
            return Err(Rejected::TooLong);
        }
        if len < 8 + 1 + MAC_LEN {
            return Err(Rejected::Garbage);
        }
        if self.buffer.len() < 2 + len {
            return Ok(None);
        }
        let (signed, mac) = self.buffer[2..2 + len].split_at(len - MAC_LEN);
        let mut expected = self.key.clone();
        expected.update(signed);
        expected.verify_slice(mac).map_err(|_| Rejected::Signature)?;
        let mut body = Reader(signed);
        let sequence = u64::from_be_bytes(body.array().ok_or(Rejected::Malformed)?);
        if sequence < self.next {
            return Err(Rejected::Sequence);
        }
        let message = match body.byte() {
            Some(1) => Message::Beat(body.claims().ok_or(Rejected::Malformed)?),
            Some(2) => Message::Farewell,
            _ => return Err(Rejected::Malformed),
        };
        if !body.0.is_empty() {
            return Err(Rejected::Malformed);
        }
        self.next = sequence + 1;
        self.buffer.drain(..2 + len);
        Ok(Some(message))
    }
}

fn put_name(out: &mut Vec<u8>, name: &str) {
    let bytes = &name.as_bytes()[..name.len().min(NAME_MAX)];
    out.push(bytes.len() as u8);
    out.extend_from_slice(bytes);
}

fn put_claims(out: &mut Vec<u8>, claims: &[WireClaim]) {
    let claims = &claims[..claims.len().min(VIPS_MAX)];
    out.push(claims.len() as u8);
    for claim in claims {
        match claim.address {
            IpAddr::V4(a) => {
                out.push(4);
                out.extend_from_slice(&a.octets());
            }
            IpAddr::V6(a) => {
                out.push(6);
                out.extend_from_slice(&a.octets());
            }
        }
        out.push(claim.phase as u8);
        out.push(match claim.fit {
            Fit::Unable => 0,
            Fit::NoBackend => 1,
            Fit::Ready => 2,
            Fit::Soon => 3,
        });
        out.push(u8::from(claim.wants));
        put_name(out, &claim.successor);
        put_name(out, &claim.backs);
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[b]| b)
    }

    fn name(&mut self) -> Option<String> {
        let len = usize::from(self.byte()?);
        let head = self.0.get(..len).filter(|_| len <= NAME_MAX)?;
        self.0 = &self.0[len..];
        String::from_utf8(head.to_vec()).ok()
    }

    fn claims(&mut self) -> Option<Vec<WireClaim>> {
        let count = self.byte()?;
        (0..count).map(|_| self.claim()).collect()
    }

    fn claim(&mut self) -> Option<WireClaim> {
        let address = match self.byte()? {
            4 => IpAddr::from(self.array::<4>()?),
            6 => IpAddr::from(self.array::<16>()?),
            _ => return None,
        };
        let phase = match self.byte()? {
            0 => WirePhase::Free,
            1 => WirePhase::Claiming,
            2 => WirePhase::Held,
            3 => WirePhase::Yielding,
            4 => WirePhase::Leaving,
            _ => return None,
        };
        let fit = match self.byte()? {
            0 => Fit::Unable,
            1 => Fit::NoBackend,
            2 => Fit::Ready,
            3 => Fit::Soon,
            _ => return None,
        };
        let wants = match self.byte()? {
            0 => false,
            1 => true,
            _ => return None,
        };
        Some(WireClaim {
            address,
            phase,
            fit,
            wants,
            successor: self.name()?,
            backs: self.name()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello(name: &str, nonce: u8) -> Hello {
        Hello {
            name: name.into(),
            boot: 7,
            nonce: [nonce; 16],
        }
    }

    fn pair(secret_a: &[u8], secret_b: &[u8]) -> (Signer, Verifier) {
        let (a, b) = (hello("a", 1), hello("b", 2));
        let (signer, _) = session(secret_a, Side::Dialer, &a, &b);
        let (_, verifier) = session(secret_b, Side::Acceptor, &b, &a);
        (signer, verifier)
    }

    fn beat(address: &str) -> Message {
        Message::Beat(vec![WireClaim {
            address: address.parse().unwrap(),
            phase: WirePhase::Yielding,
            fit: Fit::Ready,
            wants: true,
            successor: "b".into(),
            backs: String::new(),
        }])
    }

    #[test]
    fn what_is_said_is_heard() {
        let (mut signer, mut verifier) = pair(b"s", b"s");
        for message in [beat("10.0.0.1"), Message::Farewell, beat("2001:db8::1")] {
            // One byte at a time: a frame is taken exactly when it is whole.
            let frame = signer.frame(&message);
            let (last, head) = frame.split_last().unwrap();
            for byte in head {
                verifier.feed(&[*byte]);
                assert_eq!(verifier.message(), Ok(None));
            }
            verifier.feed(&[*last]);
            assert_eq!(verifier.message(), Ok(Some(message)));
        }
    }

    #[test]
    fn what_is_refused() {
        let reject = |build: &dyn Fn(&mut Signer) -> Vec<u8>, secret: &[u8]| {
            let (mut signer, mut verifier) = pair(b"s", secret);
            verifier.feed(&build(&mut signer));
            loop {
                match verifier.message() {
                    Ok(Some(_)) => {}
                    Ok(None) => return None,
                    Err(why) => return Some(why),
                }
            }
        };
        let one = |s: &mut Signer| s.frame(&beat("10.0.0.1"));
        assert_eq!(reject(&one, b"s"), None);
        assert_eq!(reject(&one, b"other"), Some(Rejected::Signature));
        // The same frame twice.
        let twice = |s: &mut Signer| one(s).repeat(2);
        assert_eq!(reject(&twice, b"s"), Some(Rejected::Sequence));
        // A frame of another connection with the same secret and names.
        let elsewhere = |_: &mut Signer| {
            let (a, b) = (hello("a", 1), hello("b", 3));
            session(b"s", Side::Dialer, &a, &b).0.frame(&beat("10.0.0.1"))
        };
        assert_eq!(reject(&elsewhere, b"s"), Some(Rejected::Signature));
        // Our own words sent back to us.
        let mirrored = |_: &mut Signer| {
            let (a, b) = (hello("a", 1), hello("b", 2));
            session(b"s", Side::Acceptor, &b, &a).0.frame(&beat("10.0.0.1"))
        };
        assert_eq!(reject(&mirrored, b"s"), Some(Rejected::Signature));
        assert_eq!(reject(&|_| vec![0xff; 64], b"s"), Some(Rejected::TooLong));
        assert_eq!(reject(&|_| vec![0; 64], b"s"), Some(Rejected::Garbage));
    }

    #[test]
    fn names_translate_between_nodes_that_list_differently() {
        let here = ["a".to_string(), "b".to_string(), "c".to_string()];
        let there = ["c".to_string(), "a".to_string()];
        let vips: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        let claims = [
            Claim {
                phase: Phase::Yielding(2),
                fit: Fit::Ready,
                wants: false,
                backs: Some(0),
            },
            Claim {
                phase: Phase::Yielding(1),
                fit: Fit::NoBackend,
                wants: true,
                backs: Some(1),
            },
        ];
        let wire = to_wire(&claims, &vips, &here);
        let other_vips = [vips[1], vips[0], "10.0.0.3".parse().unwrap()];
        let got = from_wire(&wire, &other_vips, &there);
        assert_eq!(got[1].phase, Phase::Yielding(0));
        assert_eq!(got[1].backs, Some(1));
        assert_eq!(got[0].phase, Phase::Held, "an unknown successor is no successor");
        assert_eq!(got[0].backs, None);
        assert_eq!(got[2], Claim::NONE);
    }

    proptest! {
        /// Whatever one bit of a frame is turned over, it is not taken for a message.
        #[test]
        fn no_bit_can_be_turned(bit in 0usize..1_000) {
            let (mut signer, mut verifier) = pair(b"s", b"s");
            let mut frame = signer.frame(&beat("10.0.0.1"));
            let bit = bit % (frame.len() * 8);
            frame[bit / 8] ^= 1 << (bit % 8);
            verifier.feed(&frame);
            prop_assert!(!matches!(verifier.message(), Ok(Some(_))));
        }

        /// Noise is refused or waited for, never taken, and never panics.
        #[test]
        fn noise_is_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let (_, mut verifier) = pair(b"s", b"s");
            verifier.feed(&bytes);
            prop_assert!(!matches!(verifier.message(), Ok(Some(_))));
            let _ = Hello::decode(&bytes);
            let mut hello = b"WEIR\x01".to_vec();
            hello.extend(&bytes);
            let _ = Hello::decode(&hello);
            let mut reader = Reader(&bytes);
            let _ = reader.claims();
        }

        #[test]
        fn hellos_round_trip(name in "[a-z0-9-]{1,63}", boot: u64, nonce: [u8; 16]) {
            let hello = Hello { name, boot, nonce };
            let bytes = hello.encode();
            for cut in 0..bytes.len() {
                prop_assert_eq!(Hello::decode(&bytes[..cut]), Ok(None));
            }
            prop_assert_eq!(Hello::decode(&bytes), Ok(Some((hello, bytes.len()))));
        }
    }
}
