//! Bytes between nodes: handshake, signature, sequence numbers.
//!
//! # How it works
//! A pair of nodes keeps one TCP connection. Both ends first say [`Hello`] in clear: name, boot number, a fresh nonce. Each
//! direction then has its own key, `HMAC-SHA256(secret, direction | dialer's hello | acceptor's hello)`, and every frame
//! carries a sequence number and an HMAC under that key. The acceptor says nothing that is signed before the dialer has: a
//! stranger who knows a node's name gets a hello, and nothing to try secrets on. Several secrets may be accepted, while they are
//! changed node by node: the acceptor signs with the one that the dialer has used, the dialer tries its own in turn.
//!
//! ```text
//! hello:  "WEIR" version:u8 boot:u64 nonce:[u8;16] name_len:u8 name
//! frame:  length:u16 | sequence:u64 kind:u8 body | mac:[u8;32]       length counts what follows it
//! beat:   number:u64 echo:u64 beat:u32 dead_after:u32 patience:u32 (ms) settings:u64 score:u32
//!         count:u8, then names of nodes; count:u16, then for each VIP:
//!         family:u8 address rules:u32 phase:u8 fit:u8 lacks:u8 flags:u8 successor:u8 backs:u8 (into the names, 255 = nobody)
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
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::NodeIx;
use super::words::{Beat, Claim, Fit, Lack, Phase};

/// Longest frame after its length field.
pub const FRAME_MAX: usize = 48 * 1024;
/// Most bytes of a node's name.
pub const NAME_MAX: usize = 63;
/// Most VIPs that a beat carries.
pub const VIPS_MAX: usize = 1_024;
/// Most nodes of a configuration.
pub const NODES_MAX: usize = 31;
const NOBODY: u8 = 255;
const MAGIC: &[u8; 4] = b"WEIR";
const VERSION: u8 = 2;
const MAC_LEN: usize = 32;
const HELLO_FIXED: usize = 4 + 1 + 8 + 16 + 1;

/// Which end of the connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// We connected.
    Dialer,
    /// This end accepted the connection.
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

/// A message between nodes; each one is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A sign of life, and what the sender does with each VIP.
    Beat(WireBeat),
    /// The sender is about to close this connection, but lives.
    Farewell,
}

/// A [`Beat`] with names and addresses in place of indices, since two nodes may list theirs differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireBeat {
    /// As [`Beat`], without its claims.
    pub head: Beat,
    /// Names of the sender's nodes, by its indices.
    pub names: Vec<String>,
    /// One for each of the sender's VIPs.
    pub claims: Vec<WireClaim>,
}

/// A [`Claim`] about an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireClaim {
    /// The virtual address that the claim is about.
    pub address: IpAddr,
    /// See [`Claim::rules`].
    pub rules: u32,
    /// What the sender does with it; the index in `Yielding` is meaningless, see `successor`.
    pub phase: WirePhase,
    /// How fit it is.
    pub fit: Fit,
    /// What keeps the sender from being fit.
    pub lacks: Lack,
    /// The sender asks the present, less preferred holder for the address.
    pub wants: bool,
    /// Index into `names` of the node to which the sender yields; 255 = nobody.
    pub successor: u8,
    /// Whom it backs, likewise.
    pub backs: u8,
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
pub fn to_wire(beat: Beat, vips: &[IpAddr], nodes: &[String]) -> WireBeat {
    let index = |n: NodeIx| u8::try_from(n).unwrap_or(NOBODY);
    let claims = beat
        .claims
        .iter()
        .zip(vips)
        .map(|(claim, address)| {
            let (phase, successor) = match claim.phase {
                Phase::Free => (WirePhase::Free, NOBODY),
                Phase::Claiming => (WirePhase::Claiming, NOBODY),
                Phase::Held => (WirePhase::Held, NOBODY),
                Phase::Yielding(n) => (WirePhase::Yielding, index(n)),
                Phase::Leaving => (WirePhase::Leaving, NOBODY),
            };
            WireClaim {
                address: *address,
                rules: claim.rules,
                phase,
                fit: claim.fit,
                lacks: claim.lacks,
                wants: claim.wants,
                successor,
                backs: claim.backs.map_or(NOBODY, index),
            }
        })
        .collect();
    WireBeat {
        head: Beat {
            claims: Vec::new(),
            ..beat
        },
        names: nodes.to_vec(),
        claims,
    }
}

/// Puts indices in place of names: one claim for each of `vips`, [`Claim::NONE`] where the sender does not know the address.
pub fn from_wire(wire: WireBeat, vips: &[IpAddr], nodes: &[String]) -> Beat {
    let ours: Vec<Option<NodeIx>> = wire
        .names
        .iter()
        .map(|name| nodes.iter().position(|n| n == name))
        .collect();
    let index = |n: u8| ours.get(usize::from(n)).copied().flatten();
    let claims = vips.iter().enumerate().map(|(v, address)| {
        // Most nodes list the addresses in the same order.
        let here = wire.claims.get(v).filter(|w| w.address == *address);
        let Some(w) = here.or_else(|| wire.claims.iter().find(|w| w.address == *address)) else {
            return Claim::NONE;
        };
        let phase = match w.phase {
            WirePhase::Free => Phase::Free,
            WirePhase::Claiming => Phase::Claiming,
            WirePhase::Held => Phase::Held,
            // A successor that we do not know is nobody we could make way for.
            WirePhase::Yielding => index(w.successor).map_or(Phase::Held, Phase::Yielding),
            WirePhase::Leaving => Phase::Leaving,
        };
        Claim {
            phase,
            fit: w.fit,
            lacks: w.lacks,
            wants: w.wants,
            backs: index(w.backs),
            rules: w.rules,
        }
    });
    let claims = claims.collect();
    Beat { claims, ..wire.head }
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
    /// One a secret that is accepted, until the first frame has shown which it is.
    keys: Vec<Hmac<Sha256>>,
    chosen: Option<usize>,
    next: u64,
    buffer: Vec<u8>,
}

/// The direction in which we send, once both hellos are known.
pub fn signer(secret: &[u8], side: Side, ours: &Hello, theirs: &Hello) -> Signer {
    let key = direction(secret, side, side, ours, theirs);
    Signer { key, sequence: 0 }
}

/// The direction in which the other end sends, signed with any one of these secrets.
pub fn verifier(secrets: &[Vec<u8>], side: Side, ours: &Hello, theirs: &Hello) -> Verifier {
    let other = match side {
        Side::Dialer => Side::Acceptor,
        Side::Acceptor => Side::Dialer,
    };
    let key = |secret: &Vec<u8>| direction(secret, other, side, ours, theirs);
    Verifier {
        keys: secrets.iter().map(key).collect(),
        chosen: None,
        next: 0,
        buffer: Vec::new(),
    }
}

/// The key of what `sender` sends, seen from our end, which is `side`.
fn direction(secret: &[u8], sender: Side, side: Side, ours: &Hello, theirs: &Hello) -> Hmac<Sha256> {
    let (dialer, acceptor) = match side {
        Side::Dialer => (ours, theirs),
        Side::Acceptor => (theirs, ours),
    };
    let mut mac = keyed(secret);
    mac.update(match sender {
        Side::Dialer => &b"weir/2 dialer"[..],
        Side::Acceptor => &b"weir/2 acceptor"[..],
    });
    mac.update(&dialer.encode());
    mac.update(&acceptor.encode());
    keyed(&mac.finalize().into_bytes())
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
            Message::Beat(beat) => {
                out.push(1);
                put_beat(&mut out, beat);
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

    /// The secret, by its place, with which the other end has signed.
    pub fn chosen(&self) -> Option<usize> {
        self.chosen
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
        let signs = |key: &Hmac<Sha256>| {
            let mut expected = key.clone();
            expected.update(signed);
            expected.verify_slice(mac).is_ok()
        };
        match self.chosen {
            Some(one) if signs(&self.keys[one]) => {}
            None => self.chosen = Some(self.keys.iter().position(signs).ok_or(Rejected::Signature)?),
            Some(_) => return Err(Rejected::Signature),
        }
        let mut body = Reader(signed);
        let sequence = u64::from_be_bytes(body.array().ok_or(Rejected::Malformed)?);
        if sequence < self.next {
            return Err(Rejected::Sequence);
        }
        let message = match body.byte() {
            Some(1) => Message::Beat(body.beat().ok_or(Rejected::Malformed)?),
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

fn put_beat(out: &mut Vec<u8>, beat: &WireBeat) {
    let ms = |d: Duration| u32::try_from(d.as_millis()).unwrap_or(u32::MAX).to_be_bytes();
    let head = &beat.head;
    out.extend_from_slice(&head.number.to_be_bytes());
    // Numbers begin above 0.
    out.extend_from_slice(&head.echo.unwrap_or(0).to_be_bytes());
    for time in [head.beat, head.dead_after, head.patience] {
        out.extend_from_slice(&ms(time));
    }
    out.extend_from_slice(&head.settings.to_be_bytes());
    out.extend_from_slice(&head.score.to_be_bytes());
    let names = &beat.names[..beat.names.len().min(NODES_MAX)];
    out.push(names.len() as u8);
    names.iter().for_each(|name| put_name(out, name));
    let claims = &beat.claims[..beat.claims.len().min(VIPS_MAX)];
    out.extend_from_slice(&(claims.len() as u16).to_be_bytes());
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
        out.extend_from_slice(&claim.rules.to_be_bytes());
        let fit = match claim.fit {
            Fit::Unable => 0,
            Fit::NoBackend => 1,
            Fit::Ready => 2,
            Fit::Soon => 3,
        };
        let flags = u8::from(claim.wants);
        out.extend_from_slice(&[
            claim.phase as u8,
            fit,
            claim.lacks as u8,
            flags,
            claim.successor,
            claim.backs,
        ]);
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

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn ms(&mut self) -> Option<Duration> {
        self.u32().map(|ms| Duration::from_millis(ms.into()))
    }

    fn beat(&mut self) -> Option<WireBeat> {
        let head = Beat {
            number: self.u64()?,
            echo: Some(self.u64()?).filter(|echo| *echo != 0),
            beat: self.ms()?,
            dead_after: self.ms()?,
            patience: self.ms()?,
            settings: self.u64()?,
            score: self.u32()?,
            claims: Vec::new(),
        };
        let names = usize::from(self.byte()?);
        if names > NODES_MAX {
            return None;
        }
        let names = (0..names).map(|_| self.name()).collect::<Option<_>>()?;
        let claims = usize::from(u16::from_be_bytes(self.array()?));
        if claims > VIPS_MAX {
            return None;
        }
        let claims = (0..claims).map(|_| self.claim()).collect::<Option<_>>()?;
        Some(WireBeat { head, names, claims })
    }

    fn claim(&mut self) -> Option<WireClaim> {
        let address = match self.byte()? {
            4 => IpAddr::from(self.array::<4>()?),
            6 => IpAddr::from(self.array::<16>()?),
            _ => return None,
        };
        let rules = self.u32()?;
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
        // What a later version lacks is told as nothing that we know.
        let lacks = Lack::ALL.get(usize::from(self.byte()?)).copied().unwrap_or(Lack::Fault);
        let wants = match self.byte()? {
            0 => false,
            1 => true,
            _ => return None,
        };
        Some(WireClaim {
            address,
            rules,
            phase,
            fit,
            lacks,
            wants,
            successor: self.byte()?,
            backs: self.byte()?,
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
        let signer = signer(secret_a, Side::Dialer, &a, &b);
        let verifier = verifier(&[secret_b.to_vec()], Side::Acceptor, &b, &a);
        (signer, verifier)
    }

    fn head() -> Beat {
        Beat {
            number: 7,
            echo: Some(8),
            beat: Duration::from_millis(50),
            dead_after: Duration::from_millis(250),
            patience: Duration::from_millis(900),
            settings: 11,
            score: 12,
            claims: Vec::new(),
        }
    }

    fn beat(address: &str) -> Message {
        Message::Beat(WireBeat {
            head: head(),
            names: vec!["a".into(), "b".into()],
            claims: vec![WireClaim {
                address: address.parse().unwrap(),
                rules: 9,
                phase: WirePhase::Yielding,
                fit: Fit::Ready,
                lacks: Lack::Demoted,
                wants: true,
                successor: 1,
                backs: NOBODY,
            }],
        })
    }

    /// All that is allowed fits into a frame.
    #[test]
    fn the_longest_beat_fits() {
        let claim = |n: u128| WireClaim {
            address: std::net::Ipv6Addr::from(n).into(),
            rules: 1,
            phase: WirePhase::Held,
            fit: Fit::Ready,
            lacks: Lack::Nothing,
            wants: false,
            successor: NOBODY,
            backs: 0,
        };
        let message = Message::Beat(WireBeat {
            head: head(),
            names: (0..NODES_MAX).map(|n| format!("{n:0>63}")).collect(),
            claims: (0..VIPS_MAX as u128).map(claim).collect(),
        });
        let (mut signer, mut verifier) = pair(b"s", b"s");
        let frame = signer.frame(&message);
        assert!(frame.len() <= FRAME_MAX, "{}", frame.len());
        verifier.feed(&frame);
        assert_eq!(verifier.message(), Ok(Some(message)));
    }

    #[test]
    fn any_secret_that_is_accepted_will_do() {
        let (a, b) = (hello("a", 1), hello("b", 2));
        let secrets = [b"new".to_vec(), b"old".to_vec()];
        for (secret, place) in [(&b"new"[..], Some(0)), (b"old", Some(1)), (b"other", None)] {
            let mut verifier = verifier(&secrets, Side::Acceptor, &b, &a);
            let mut signed = signer(secret, Side::Dialer, &a, &b);
            verifier.feed(&signed.frame(&Message::Farewell));
            assert_eq!(verifier.message().is_ok(), place.is_some());
            assert_eq!(verifier.chosen(), place);
            // From then on no other one.
            let mut other = signer(b"new", Side::Dialer, &a, &b);
            let _ = other.frame(&Message::Farewell);
            verifier.feed(&other.frame(&Message::Farewell));
            assert_eq!(verifier.message().is_ok(), place == Some(0));
        }
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
            signer(b"s", Side::Dialer, &a, &b).frame(&beat("10.0.0.1"))
        };
        assert_eq!(reject(&elsewhere, b"s"), Some(Rejected::Signature));
        // Our own words sent back to us.
        let mirrored = |_: &mut Signer| {
            let (a, b) = (hello("a", 1), hello("b", 2));
            signer(b"s", Side::Acceptor, &b, &a).frame(&beat("10.0.0.1"))
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
                backs: Some(0),
                ..Claim::NONE
            },
            Claim {
                phase: Phase::Yielding(1),
                fit: Fit::NoBackend,
                wants: true,
                backs: Some(1),
                ..Claim::NONE
            },
        ];
        let said = Beat {
            claims: claims.to_vec(),
            ..head()
        };
        let wire = to_wire(said, &vips, &here);
        let other_vips = [vips[1], vips[0], "10.0.0.3".parse().unwrap()];
        let got = from_wire(wire, &other_vips, &there).claims;
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
            let mut hello = b"WEIR\x02".to_vec();
            hello.extend(&bytes);
            let _ = Hello::decode(&hello);
            let mut reader = Reader(&bytes);
            let _ = reader.beat();
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
