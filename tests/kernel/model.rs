//! The program against a plain model of the same rules: packets valid and broken, one after the other, through
//! BPF_PROG_TEST_RUN; verdicts and bytes must be equal, and checksums as right or as wrong as they came.

use std::collections::HashMap;

use aya::maps::{Array, HashMap as Table, MapData};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader, Pod};
use weir::base::Rng;
use weir::kernel::layout::{
    BALANCE_LEAST, Backend, Listener, MODE_KEEP, MODE_NAT, Plain, Pool, Service, ServiceKey, Slot, Tuple, address,
};

use super::common::netns::Netns;
use super::common::{may_make_namespaces, seed};

const ETHERNET: usize = 14;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP_V6: u8 = 58;
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Clients, services, backends and our addresses towards them, by family.
const CLIENTS: [[&str; 3]; 2] = [
    ["10.1.0.2", "10.1.0.3", "192.0.2.1"],
    ["fd01::2", "fd01::3", "2001:db8::1"],
];
const SERVICES: [&str; 2] = ["10.1.0.1", "fd01::1"];
const BACKENDS: [&str; 2] = ["10.2.0.2", "fd02::2"];
const SOURCES: [&str; 2] = ["10.2.0.1", "fd02::1"];
/// The second is kept by mode `keep`.
const PORTS: [u16; 2] = [80, 81];
const BACKEND_PORT: u16 = 8080;

fn ip(text: &str) -> [u8; 16] {
    address(text.parse().unwrap())
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Passed,
    Dropped,
    Sent,
}

// ---- the program ----

struct Program(Ebpf);

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Bytes<const N: usize>([u8; N]);

// SAFETY: bytes are bytes.
unsafe impl<const N: usize> Pod for Bytes<N> {}

fn shape<T: Plain, const N: usize>(value: &T) -> Bytes<N> {
    Bytes(value.bytes().try_into().unwrap())
}

impl Program {
    /// With a TCP and a UDP service on each of [`PORTS`], of each family, before one backend.
    fn new() -> Program {
        let object = include_bytes!("../../src/kernel/weir.bpf.o");
        let mut ebpf = EbpfLoader::new().btf(None).load(object).unwrap();
        let program: &mut SchedClassifier = ebpf.program_mut("ingress").unwrap().try_into().unwrap();
        program.load().unwrap();
        let put = |ebpf: &mut Ebpf, name: &str, ix: u32, bytes: &[u8]| {
            match bytes.len() {
                8 => Array::<_, Bytes<8>>::try_from(ebpf.map_mut(name).unwrap())
                    .unwrap()
                    .set(ix, Bytes(bytes.try_into().unwrap()), 0),
                16 => Array::<_, Bytes<16>>::try_from(ebpf.map_mut(name).unwrap())
                    .unwrap()
                    .set(ix, Bytes(bytes.try_into().unwrap()), 0),
                64 => Array::<_, Bytes<64>>::try_from(ebpf.map_mut(name).unwrap())
                    .unwrap()
                    .set(ix, Bytes(bytes.try_into().unwrap()), 0),
                72 => Array::<_, Bytes<72>>::try_from(ebpf.map_mut(name).unwrap())
                    .unwrap()
                    .set(ix, Bytes(bytes.try_into().unwrap()), 0),
                n => panic!("{n} bytes"),
            }
            .unwrap()
        };
        let listener = Listener {
            identity: 1,
            ..Listener::default()
        };
        put(&mut ebpf, "listeners", 0, &listener.bytes());
        for family in [0, 1] {
            let backend = Backend {
                identity: 1 + family as u64,
                address: ip(BACKENDS[family]),
                source: ip(SOURCES[family]),
                port: BACKEND_PORT.to_be_bytes(),
                ifindex: 1,
                ready: 1,
                ..Backend::default()
            };
            put(&mut ebpf, "backends", family as u32, &backend.bytes());
            put(
                &mut ebpf,
                "table",
                family as u32,
                &Slot {
                    backend: family as u32,
                    weight: 1,
                }
                .bytes(),
            );
            for (nth, mode) in [MODE_NAT, MODE_KEEP].into_iter().enumerate() {
                let pool = Pool {
                    balance: BALANCE_LEAST,
                    mode,
                    table: family as u32,
                    length: 1,
                    only: family as u32 + 1,
                    ..Pool::default()
                };
                let at = (family * 2 + nth) as u32;
                put(&mut ebpf, "pools", at, &pool.bytes());
                for protocol in [TCP, UDP] {
                    let key = ServiceKey {
                        address: ip(SERVICES[family]),
                        port: PORTS[nth].to_be_bytes(),
                        protocol,
                        bank: 0,
                    };
                    let map: &mut aya::maps::Map = ebpf.map_mut("services").unwrap();
                    let mut services: Table<&mut MapData, Bytes<20>, Bytes<8>> = map.try_into().unwrap();
                    let service = Service { listener: 0, pool: at };
                    services
                        .insert(shape::<_, 20>(&key), shape::<_, 8>(&service), 0)
                        .unwrap();
                }
            }
        }
        Program(ebpf)
    }

    /// `None`: the kernel does not make a packet of these bytes, for want of a header.
    fn run(&self, packet: &[u8]) -> Option<(Verdict, Vec<u8>)> {
        let program: &SchedClassifier = self.0.program("ingress").unwrap().try_into().unwrap();
        let mut out = vec![0; packet.len() + 256];
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.data_out = Some(&mut out);
        let Ok(result) = program.test_run(options) else {
            assert!(packet.len() < ETHERNET + 40);
            return None;
        };
        out.truncate(result.data_size_out as usize);
        let verdict = match result.return_value as i32 {
            -1 => Verdict::Passed,
            2 => Verdict::Dropped,
            7 => Verdict::Sent,
            other => panic!("verdict {other}"),
        };
        Some((verdict, out))
    }
}

// ---- packets ----

fn sum(bytes: &[u8]) -> u32 {
    let words = bytes
        .chunks(2)
        .map(|two| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// What a checksum over these bytes is off by: 0 if it is right. Two zeros are one.
fn off(parts: &[&[u8]]) -> u32 {
    parts.iter().map(|part| sum(part)).sum::<u32>() % 0xffff
}

fn pseudo(packet: &Parsed, bytes: &[u8]) -> Vec<u8> {
    let at = packet.l3;
    let (addresses, length) = match packet.is_v6 {
        true => (&bytes[at + 8..at + 40], bytes.len() - packet.l4),
        false => (&bytes[at + 12..at + 20], bytes.len() - packet.l4),
    };
    [addresses, &(length as u32).to_be_bytes(), &[0, packet.protocol]].concat()
}

/// A frame with right checksums. `l4` has zero where its checksum goes, at `check`, unless it shall have none.
struct Build<'a> {
    src: &'a str,
    dst: &'a str,
    protocol: u8,
    hops: u8,
    /// IPv4 options or IPv6 extension headers (with the first one's number).
    extra: (u8, Vec<u8>),
    fragment: Option<(u16, bool, u32)>,
    l4: Vec<u8>,
    check: Option<usize>,
}

impl Build<'_> {
    fn frame(&self) -> Vec<u8> {
        let is_v6 = self.src.contains(':');
        let mut frame = vec![0; 12];
        let mut l4 = self.l4.clone();
        let (src, dst) = (ip(self.src), ip(self.dst));
        if let Some(at) = self.check {
            let addresses = if is_v6 {
                [src, dst].concat()
            } else {
                [&src[12..], &dst[12..]].concat()
            };
            let plain = self.protocol == ICMP;
            let head = [&addresses[..], &(l4.len() as u32).to_be_bytes(), &[0, self.protocol]].concat();
            let mut check = !(if plain {
                sum(&l4)
            } else {
                sum(&[&sum(&head).to_be_bytes()[2..], &l4].concat())
            }) as u16;
            if self.protocol == UDP && check == 0 {
                check = 0xffff;
            }
            l4[at..at + 2].copy_from_slice(&check.to_be_bytes());
        }
        if is_v6 {
            frame.extend([0x86, 0xdd]);
            let mut chain = Vec::new();
            let (first, extra) = &self.extra;
            let mut next = if extra.is_empty() { self.protocol } else { *first };
            if let Some((offset, more, id)) = self.fragment {
                chain.extend([next, 0]);
                chain.extend((offset << 3 | u16::from(more)).to_be_bytes());
                chain.extend(id.to_be_bytes());
                next = 44;
            }
            chain.extend(extra);
            if !extra.is_empty() {
                let at = chain.len() - extra.len();
                chain[at] = self.protocol;
            }
            frame.extend([0x60, 0, 0, 0]);
            frame.extend(((chain.len() + l4.len()) as u16).to_be_bytes());
            frame.extend([next, self.hops]);
            frame.extend(src);
            frame.extend(dst);
            frame.extend(chain);
        } else {
            frame.extend([0x08, 0x00]);
            let header = 20 + self.extra.1.len();
            let mut head = vec![0x40 | (header / 4) as u8, 0];
            head.extend(((header + l4.len()) as u16).to_be_bytes());
            let (offset, more, id) = self.fragment.unwrap_or((0, false, 7));
            head.extend((id as u16).to_be_bytes());
            head.extend((offset | u16::from(more) << 13).to_be_bytes());
            head.extend([self.hops, self.protocol, 0, 0]);
            head.extend(&src[12..]);
            head.extend(&dst[12..]);
            head.extend(&self.extra.1);
            let check = !sum(&head) as u16;
            head[10..12].copy_from_slice(&check.to_be_bytes());
            frame.extend(head);
        }
        frame.extend(l4);
        frame
    }
}

// ---- the model ----

/// What the rules look at.
#[derive(Debug, Clone, Default)]
struct Parsed {
    is_v6: bool,
    l3: usize,
    l4: usize,
    protocol: u8,
    hops: u8,
    key: Tuple,
    flags: u8,
    /// `None`: whole; else whether it is the first, and the id.
    fragment: Option<(bool, u32)>,
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// `None`: nothing that the program looks at.
fn parse(b: &[u8]) -> Option<Parsed> {
    let mut p = Parsed {
        l3: ETHERNET,
        ..Parsed::default()
    };
    let at = ETHERNET;
    match be16(b, 12) {
        0x0800 => {
            let h = b.get(at..at + 20)?;
            let length = usize::from(h[0] & 15) * 4;
            if h[0] >> 4 != 4 || length < 20 {
                return None;
            }
            p.key.src = address(std::net::Ipv4Addr::new(h[12], h[13], h[14], h[15]).into());
            p.key.dst = address(std::net::Ipv4Addr::new(h[16], h[17], h[18], h[19]).into());
            (p.hops, p.protocol) = (h[8], h[9]);
            let (offset, id) = (be16(h, 6), be16(h, 4));
            if offset & 0x3fff != 0 {
                p.fragment = Some((offset & 0x1fff == 0, u32::from(id)));
            }
            p.l4 = at + length;
        }
        0x86dd => {
            let h = b.get(at..at + 40)?;
            p.is_v6 = true;
            p.key.src.copy_from_slice(&h[8..24]);
            p.key.dst.copy_from_slice(&h[24..40]);
            (p.hops, p.protocol) = (h[7], h[6]);
            p.l4 = at + 40;
            for _ in 0..4 {
                let is_later = p.fragment.is_some_and(|(first, _)| !first);
                if ![0, 43, 44, 60].contains(&p.protocol) || is_later {
                    break;
                }
                let Some(e) = b.get(p.l4..p.l4 + 8) else { break };
                if p.protocol == 44 {
                    let offset = be16(e, 2);
                    let id = u32::from_be_bytes([e[4], e[5], e[6], e[7]]);
                    p.fragment = (offset & 0xfff9 != 0).then_some((offset & 0xfff8 == 0, id));
                    p.l4 += 8;
                } else {
                    p.l4 += (usize::from(e[1]) + 1) * 8;
                }
                p.protocol = e[0];
            }
        }
        _ => return None,
    }
    p.key.protocol = p.protocol;
    if p.fragment.is_some_and(|(first, _)| !first) {
        return [TCP, UDP].contains(&p.protocol).then_some(p);
    }
    let header = match p.protocol {
        TCP => 20,
        UDP => 8,
        ICMP | ICMP_V6 => return Some(p),
        _ => return None,
    };
    let h = b.get(p.l4..p.l4 + header)?;
    if p.protocol == TCP {
        if h[12] >> 4 < 5 {
            return None;
        }
        p.flags = h[13];
    }
    p.key.sport = [h[0], h[1]];
    p.key.dport = [h[2], h[3]];
    Some(p)
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    to: Tuple,
    is_client: bool,
    answered: bool,
    ended: bool,
    fin: bool,
}

#[derive(Default)]
struct Model {
    flows: HashMap<Tuple, Flow>,
    /// Keys in order of their entries.
    recent: Vec<Tuple>,
    fragments: HashMap<([u8; 16], [u8; 16], u8, u32), Tuple>,
}

/// What must come of a packet.
enum Wanted {
    Passed,
    Dropped,
    /// These addresses and ports.
    Becomes(Tuple),
    /// The same, and a source port that the program chooses.
    Opens(Tuple),
    /// An error: the outer addresses, and the inner tuple's, where it stands.
    Error(Tuple, usize),
}

impl Model {
    fn opens(&self, p: &Parsed) -> Option<(Tuple, bool)> {
        let family = usize::from(p.is_v6);
        let port = u16::from_be_bytes(p.key.dport);
        let nth = PORTS.iter().position(|&known| known == port)?;
        if p.key.dst != ip(SERVICES[family]) {
            return None;
        }
        let is_nat = nth == 0;
        let to = Tuple {
            src: if is_nat { ip(SOURCES[family]) } else { p.key.src },
            dst: ip(BACKENDS[family]),
            dport: BACKEND_PORT.to_be_bytes(),
            ..p.key
        };
        Some((to, is_nat))
    }

    fn wanted(&mut self, p: &Parsed, b: &[u8]) -> Wanted {
        if let Some((false, id)) = p.fragment {
            let known = self.fragments.get(&(p.key.src, p.key.dst, p.protocol, id));
            return match known {
                None => Wanted::Passed,
                Some(_) if p.hops <= 1 => Wanted::Dropped,
                Some(&to) => Wanted::Becomes(to),
            };
        }
        if p.protocol != TCP && p.protocol != UDP {
            return self.error(p, b);
        }
        let no_checksum = p.is_v6 && p.protocol == UDP && be16(b, p.l4 + 6) == 0;
        let mut flow = self.flows.get(&p.key).copied();
        if let Some(old) = flow
            && p.flags & (SYN | ACK) == SYN
            && p.protocol == TCP
            && old.is_client
            && old.ended
        {
            self.flows.remove(&p.key);
            self.flows.remove(&old.to.turned());
            flow = None;
        }
        if let Some(flow) = flow {
            return match p.hops <= 1 || no_checksum {
                true => Wanted::Dropped,
                false => Wanted::Becomes(flow.to),
            };
        }
        if p.protocol == TCP && p.flags & (SYN | ACK | RST | FIN) != SYN {
            return Wanted::Passed;
        }
        match self.opens(p) {
            None => Wanted::Passed,
            Some(_) if p.hops <= 1 || no_checksum => Wanted::Dropped,
            Some((to, true)) => Wanted::Opens(to),
            Some((to, false)) => {
                self.enter(p, to);
                Wanted::Becomes(to)
            }
        }
    }

    fn enter(&mut self, p: &Parsed, to: Tuple) {
        let flow = |to, is_client| Flow {
            to,
            is_client,
            answered: false,
            ended: false,
            fin: false,
        };
        self.recent.extend([p.key, to.turned()]);
        self.flows.insert(p.key, flow(to, true));
        self.flows.insert(to.turned(), flow(p.key.turned(), false));
    }

    /// What a packet that is passed on changes.
    fn passed_on(&mut self, p: &Parsed, to: Tuple) {
        if let Some((true, id)) = p.fragment {
            self.fragments.insert((p.key.src, p.key.dst, p.protocol, id), to);
        }
        if p.fragment.is_some_and(|(first, _)| !first) {
            return;
        }
        let (key, other) = (p.key, to.turned());
        let is_client = self.flows[&key].is_client;
        if p.protocol == TCP && p.flags & (RST | FIN) != 0 {
            self.flows.get_mut(&key).unwrap().fin = true;
            let both = self.flows.get(&other).is_some_and(|flow| flow.fin);
            if p.flags & RST != 0 || both {
                let client = if is_client { key } else { other };
                self.flows.entry(client).and_modify(|flow| flow.ended = true);
            }
        }
        if !is_client && p.flags & RST == 0 {
            self.flows.entry(other).and_modify(|flow| flow.answered = true);
        }
    }

    fn error(&self, p: &Parsed, b: &[u8]) -> Wanted {
        let at = p.l4 + 8;
        let (types, header): (&[u8], usize) = match p.is_v6 {
            true => (&[1, 2, 3, 4], 40),
            false => (&[3, 11, 12], 20),
        };
        let (Some(kind), Some(h)) = (b.get(p.l4), b.get(at..at + header)) else {
            return Wanted::Passed;
        };
        if p.fragment.is_some() || !types.contains(kind) || !p.is_v6 && h[0] & 15 < 5 {
            return Wanted::Passed;
        }
        let mut key = Tuple::default();
        let ports = if p.is_v6 {
            key.src.copy_from_slice(&h[8..24]);
            key.dst.copy_from_slice(&h[24..40]);
            key.protocol = h[6];
            at + 40
        } else {
            key.src = address(std::net::Ipv4Addr::new(h[12], h[13], h[14], h[15]).into());
            key.dst = address(std::net::Ipv4Addr::new(h[16], h[17], h[18], h[19]).into());
            key.protocol = h[9];
            at + usize::from(h[0] & 15) * 4
        };
        let Some(l4) = b.get(ports..ports + 4) else {
            return Wanted::Passed;
        };
        key.sport = [l4[0], l4[1]];
        key.dport = [l4[2], l4[3]];
        match self.flows.get(&key.turned()) {
            _ if ![TCP, UDP].contains(&key.protocol) => Wanted::Passed,
            None => Wanted::Passed,
            Some(_) if p.hops <= 1 => Wanted::Dropped,
            Some(flow) => Wanted::Error(flow.to, ports),
        }
    }
}

/// Addresses in an IP header at `at`.
fn set_addresses(b: &mut [u8], at: usize, is_v6: bool, src: &[u8; 16], dst: &[u8; 16]) {
    if is_v6 {
        b[at + 8..at + 24].copy_from_slice(src);
        b[at + 24..at + 40].copy_from_slice(dst);
    } else {
        b[at + 12..at + 16].copy_from_slice(&src[12..]);
        b[at + 16..at + 20].copy_from_slice(&dst[12..]);
    }
}

/// The packet as it must leave, checksums aside, and the places of these.
fn rewritten(p: &Parsed, b: &[u8], to: &Tuple) -> (Vec<u8>, Vec<usize>) {
    let (mut out, mut checks) = (b.to_vec(), Vec::new());
    set_addresses(&mut out, p.l3, p.is_v6, &to.src, &to.dst);
    if p.is_v6 {
        out[p.l3 + 7] -= 1;
    } else {
        out[p.l3 + 8] -= 1;
        checks.push(p.l3 + 10);
    }
    if p.fragment.is_none_or(|(first, _)| first) {
        out[p.l4..p.l4 + 2].copy_from_slice(&to.sport);
        out[p.l4 + 2..p.l4 + 4].copy_from_slice(&to.dport);
        checks.push(p.l4 + if p.protocol == TCP { 16 } else { 6 });
    }
    (out, checks)
}

fn same_but_for(a: &[u8], b: &[u8], checks: &[usize]) -> bool {
    let blank = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        checks.iter().for_each(|&at| bytes[at..at + 2].fill(0));
        bytes
    };
    a.len() == b.len() && blank(a) == blank(b)
}

fn check(p: &Parsed, was: &[u8], is: &[u8]) {
    if !p.is_v6 {
        let header = usize::from(was[p.l3] & 15) * 4;
        let of = |b: &[u8]| off(&[&b[p.l3..p.l3 + header]]);
        assert_eq!(of(was), of(is), "the header's checksum");
    }
    if p.fragment.is_some_and(|(first, _)| !first) {
        return;
    }
    if p.protocol == UDP && be16(was, p.l4 + 6) == 0 {
        return assert_eq!(be16(is, p.l4 + 6), 0, "none stays none");
    }
    if p.protocol == UDP {
        assert_ne!(be16(is, p.l4 + 6), 0, "a checksum stays one");
    }
    let of = |b: &[u8]| off(&[&pseudo(p, b), &b[p.l4..]]);
    assert_eq!(of(was), of(is), "the checksum");
}

fn pick<'a, T>(rng: &mut Rng, from: &'a [T]) -> &'a T {
    &from[rng.below(from.len() as u64) as usize]
}

/// A packet of the sort that arrives: mostly of flows that are there.
fn packet(rng: &mut Rng, model: &Model) -> Vec<u8> {
    // The latest ones, so that they get somewhere.
    let recent = model.recent.iter().rev().filter(|key| model.flows.contains_key(key));
    let keys: Vec<&Tuple> = recent.take(40).collect();
    let is_known = !keys.is_empty() && rng.below(3) > 0;
    let (src, dst, sport, dport, protocol) = if is_known {
        let key = *pick(rng, &keys);
        let (src, dst) = (key.source(), key.destination());
        (
            src.ip().to_string(),
            dst.ip().to_string(),
            src.port(),
            dst.port(),
            key.protocol,
        )
    } else {
        let family = rng.below(2) as usize;
        let dst = [SERVICES[family], SERVICES[family], SOURCES[family], BACKENDS[family]];
        let (src, dst) = (pick(rng, &CLIENTS[family]).to_string(), pick(rng, &dst).to_string());
        let sport = *pick(rng, &[1, 1023, 2000, 2001, 40_000, 40_001, 61_000, 65_535]);
        (src, dst, sport, *pick(rng, &[80, 80, 81, 82]), *pick(rng, &[TCP, UDP]))
    };
    let is_v6 = src.contains(':');
    let body: Vec<u8> = (0..rng.below(60)).map(|_| rng.next_u64() as u8).collect();
    let l4_of = |rng: &mut Rng, sport: u16, dport: u16| {
        let mut l4 = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
        if protocol == TCP {
            l4.extend(rng.next_u64().to_be_bytes());
            let flags = *pick(
                rng,
                &[SYN, SYN, SYN | ACK, ACK, ACK, ACK | FIN, RST, RST | ACK, SYN | FIN],
            );
            let options: &[u8] = if flags & SYN != 0 {
                &[2, 4, 5, 180, 1, 1, 4, 2]
            } else {
                &[]
            };
            l4.extend([((5 + options.len() / 4) << 4) as u8, flags, 1, 0, 0, 0, 0, 0]);
            l4.extend(options);
        } else {
            l4.extend(((8 + body.len()) as u16).to_be_bytes());
            l4.extend([0, 0]);
        }
        l4.extend(&body);
        l4
    };
    let l4 = l4_of(rng, sport, dport);
    let extra = match (rng.below(6), is_v6) {
        (0, false) => (0, vec![1; 8]),
        (0, true) => (*pick(rng, &[0, 60]), vec![0, 0, 1, 4, 0, 0, 0, 0]),
        _ => (0, Vec::new()),
    };
    let hops = *pick(rng, &[64, 64, 64, 64, 255, 2, 1, 0]);
    let no_checksum = protocol == UDP && rng.below(5) == 0;
    let fragment = (rng.below(8) == 0).then(|| (*pick(rng, &[0, 0, 185]), true, rng.below(3) as u32));
    let build = Build {
        src: &src,
        dst: &dst,
        protocol,
        hops,
        extra,
        fragment,
        check: (!no_checksum).then_some(if protocol == TCP { 16 } else { 6 }),
        l4,
    };
    let frame = build.frame();
    if is_known && rng.below(6) == 0 {
        return about(rng, model, &build, sport, dport);
    }
    frame
}

/// An ICMP error about the packet that a flow's packet has become.
fn about(rng: &mut Rng, model: &Model, build: &Build, sport: u16, dport: u16) -> Vec<u8> {
    let key = Tuple {
        src: ip(build.src),
        dst: ip(build.dst),
        sport: sport.to_be_bytes(),
        dport: dport.to_be_bytes(),
        protocol: build.protocol,
        pad: [0; 3],
    };
    let to = model.flows[&key].to;
    let (src, dst) = (to.source().ip().to_string(), to.destination().ip().to_string());
    let mut l4 = build.l4.clone();
    l4[..2].copy_from_slice(&to.sport);
    l4[2..4].copy_from_slice(&to.dport);
    let quoted = Build {
        src: &src,
        dst: &dst,
        l4,
        extra: (0, Vec::new()),
        fragment: None,
        ..*build
    };
    let is_v6 = src.contains(':');
    let quoted = &quoted.frame()[ETHERNET..];
    let kind = *pick(rng, if is_v6 { &[1, 2, 3, 128] } else { &[3, 11, 12, 8] });
    let l4 = [&[kind, 0, 0, 0, 0, 0, 5, 20], quoted].concat();
    let router = if is_v6 { "fd09::9" } else { "10.9.9.9" };
    Build {
        src: router,
        dst: &src,
        protocol: if is_v6 { ICMP_V6 } else { ICMP },
        hops: build.hops,
        extra: (0, Vec::new()),
        fragment: None,
        l4,
        check: Some(2),
    }
    .frame()
}

#[test]
fn the_program_does_as_the_model_says() {
    if !may_make_namespaces() {
        return;
    }
    let netns = Netns::new("model");
    let mut rng = Rng::new(seed(1));
    let mut seen = [0; 3];
    netns.enter(|| {
        let program = Program::new();
        let mut model = Model::default();
        for round in 0..6_000 {
            if round % 2000 == 0 {
                eprintln!("round {round}: {seen:?}, {} flows", model.flows.len());
            }
            let mut packet = packet(&mut rng, &model);
            if rng.below(6) == 0 {
                let at = 12 + rng.below(packet.len() as u64 - 12) as usize;
                match rng.below(3) {
                    0 => packet.truncate(at.max(ETHERNET)),
                    1 => packet[at] = rng.next_u64() as u8,
                    _ => packet[at] ^= 1 << rng.below(8),
                }
            }
            let Some((verdict, out)) = program.run(&packet) else {
                continue;
            };
            seen[verdict as usize] += 1;
            let Some(p) = parse(&packet) else {
                assert_eq!(verdict, Verdict::Passed, "round {round}: {packet:02x?}");
                continue;
            };
            let wanted = model.wanted(&p, &packet);
            let context = || format!("round {round}: {p:?}\nwas {packet:02x?}\nis  {out:02x?}");
            match wanted {
                Wanted::Passed => assert_eq!(verdict, Verdict::Passed, "{}", context()),
                Wanted::Dropped => assert_eq!(verdict, Verdict::Dropped, "{}", context()),
                Wanted::Becomes(to) => {
                    assert_eq!(verdict, Verdict::Sent, "{}", context());
                    let (bytes, checks) = rewritten(&p, &packet, &to);
                    assert!(same_but_for(&bytes, &out, &checks), "{}\nnot {bytes:02x?}", context());
                    check(&p, &packet, &out);
                    model.passed_on(&p, to);
                }
                Wanted::Opens(mut to) => {
                    assert_eq!(verdict, Verdict::Sent, "{}", context());
                    // The client's own port, if it may be used and is free; else any that is.
                    let own = u16::from_be_bytes(p.key.sport);
                    let may = |port: u16| (1024..32768).contains(&port) || port >= 61_000;
                    let is_free = |to: &Tuple| !model.flows.contains_key(&to.turned());
                    let got = [out[p.l4], out[p.l4 + 1]];
                    let is_own = may(own) && is_free(&to);
                    to.sport = got;
                    assert_eq!(is_own, got == p.key.sport && may(own), "{}", context());
                    assert!(may(u16::from_be_bytes(got)) && is_free(&to), "{}", context());
                    model.enter(&p, to);
                    let (bytes, checks) = rewritten(&p, &packet, &to);
                    assert!(same_but_for(&bytes, &out, &checks), "{}\nnot {bytes:02x?}", context());
                    check(&p, &packet, &out);
                    model.passed_on(&p, to);
                }
                Wanted::Error(to, ports) => {
                    assert_eq!(verdict, Verdict::Sent, "{}", context());
                    let mut bytes = packet.clone();
                    let inner = p.l4 + 8;
                    set_addresses(&mut bytes, p.l3, p.is_v6, &to.src, &to.dst);
                    set_addresses(&mut bytes, inner, p.is_v6, &to.dst, &to.src);
                    bytes[ports..ports + 2].copy_from_slice(&to.dport);
                    bytes[ports + 2..ports + 4].copy_from_slice(&to.sport);
                    bytes[p.l3 + if p.is_v6 { 7 } else { 8 }] -= 1;
                    let mut checks = vec![p.l4 + 2];
                    if !p.is_v6 {
                        checks.extend([p.l3 + 10, inner + 10]);
                        let of = |b: &[u8]| off(&[&b[inner..inner + 20]]);
                        assert_eq!(of(&packet), of(&out), "the quoted header's checksum");
                        assert_eq!(off(&[&packet[p.l4..]]), off(&[&out[p.l4..]]), "{}", context());
                    } else {
                        let of = |b: &[u8]| off(&[&pseudo(&p, b), &b[p.l4..]]);
                        assert_eq!(of(&packet), of(&out), "{}", context());
                    }
                    assert!(same_but_for(&bytes, &out, &checks), "{}\nnot {bytes:02x?}", context());
                }
            }
        }
    });
    assert!(seen.iter().all(|&n| n > 200), "{seen:?}");
}
