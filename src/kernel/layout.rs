//! Shapes of the maps, as weir.h has them for the program: written and read as bytes, because that is what they are to both
//! sides. A test compiles weir.h and compares.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::base::words;
use crate::config::KERNEL_SOURCES_MAX;
use crate::flow::Dropped;
use crate::relay::Cause;

/// A value with a fixed form.
pub trait Plain: Sized {
    /// Bytes that it takes.
    const SIZE: usize;
    /// Appends its bytes.
    fn put(&self, into: &mut Vec<u8>);
    /// Reads it from the front, which it takes off.
    fn take(from: &mut &[u8]) -> Self;

    /// Its bytes.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::SIZE);
        self.put(&mut bytes);
        bytes
    }

    /// From its bytes.
    fn of(mut bytes: &[u8]) -> Self {
        Self::take(&mut bytes)
    }
}

macro_rules! numbers {
    ($($t:ty),*) => {$(
        impl Plain for $t {
            const SIZE: usize = size_of::<$t>();
            fn put(&self, into: &mut Vec<u8>) {
                into.extend(self.to_ne_bytes());
            }
            fn take(from: &mut &[u8]) -> Self {
                let (head, rest) = from.split_first_chunk().expect("as long as its shape");
                *from = rest;
                Self::from_ne_bytes(*head)
            }
        }
    )*};
}
numbers!(u8, u16, u32, u64);

impl<T: Plain + Copy + Default, const N: usize> Plain for [T; N] {
    const SIZE: usize = N * T::SIZE;
    fn put(&self, into: &mut Vec<u8>) {
        self.iter().for_each(|part| part.put(into));
    }
    fn take(from: &mut &[u8]) -> Self {
        std::array::from_fn(|_| T::take(from))
    }
}

/// Structures without gaps.
macro_rules! shapes {
    ($($(#[$meta:meta])* $Name:ident { $($(#[$doc:meta])* $field:ident: $T:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct $Name { $($(#[$doc])* pub $field: $T,)* }

        impl Plain for $Name {
            const SIZE: usize = 0 $(+ <$T>::SIZE)*;
            fn put(&self, into: &mut Vec<u8>) {
                $(self.$field.put(into);)*
            }
            fn take(from: &mut &[u8]) -> Self {
                $(let $field = <$T>::take(from);)*
                Self { $($field,)* }
            }
        }
    )*};
}

/// An address as maps have it: 16 bytes in network order, IPv4 mapped into IPv6.
pub type Address = [u8; 16];

/// An address for a map.
pub fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// An address of a map, and a port as it stands there.
pub fn socket(address: Address, port: [u8; 2]) -> SocketAddr {
    (Ipv6Addr::from(address).to_canonical(), u16::from_be_bytes(port)).into()
}

shapes! {
    /// Who sends a packet to whom.
    Tuple {
        /// Address that the packet comes from.
        src: Address,
        /// Address that the packet goes to.
        dst: Address,
        /// Source port, in network order.
        sport: [u8; 2],
        /// Destination port, in network order.
        dport: [u8; 2],
        /// Of the IP header.
        protocol: u8,
        /// Always 0: the entry has no gaps.
        pad: [u8; 3],
    }

    /// Which bank is in force.
    State {
        /// 0 or 1.
        bank: u32,
        /// Not 0: nothing new is taken.
        closed: u32,
        /// Bit of a bank: it has services of [`SERVICE_ANSWERS`].
        joins: u32,
        /// Always 0: the entry has no gaps.
        pad: u32,
    }

    /// An address that is served.
    ServiceKey {
        /// The address that clients use.
        address: Address,
        /// The port that clients use, in network order.
        port: [u8; 2],
        /// Protocol number of the IP header.
        protocol: u8,
        /// The bank that it is part of.
        bank: u8,
    }

    /// Who serves it.
    Service {
        /// Place of the listener.
        listener: u32,
        /// Place of the pool.
        pool: u32,
        /// One of `SERVICE_*`.
        kind: u32,
        /// The port that clients use, in network order ([`SERVICE_ANSWERS`]).
        port: [u8; 2],
        /// Always 0: the entry has no gaps.
        pad: u16,
        /// The address that clients use ([`SERVICE_ANSWERS`]).
        address: Address,
        /// Index of the interface that has the clients' address; 0 = none has it.
        ifindex: u32,
        /// Place of the guard, plus one; 0 = everybody may come.
        guard: u32,
    }

    /// Who may use a service, and how much of it.
    Guard {
        /// `VERDICT_*` of sources that no [`Network`] names.
        otherwise: u32,
        /// Whether there is a [`Network`] of it.
        listed: u32,
        /// Live flows of one source; 0 = any number.
        per_source: u32,
        /// Always 0: the entry has no gaps.
        pad: u32,
        /// What a new flow costs, nanoseconds; 0 = any number.
        cost: u64,
        /// What a bucket holds, nanoseconds.
        depth: u64,
    }

    /// A network as a guard sees it.
    Network {
        /// Bits of what follows that count.
        length: u32,
        /// Place of the guard, twice, plus one for IPv4.
        guard: u32,
        /// The network's address.
        address: Address,
    }

    /// Slots of sources with their live flows.
    Bucket {
        /// 0 = free; see the sources of this engine.
        slots: [u64; BUCKET],
    }

    /// The process as a whole; TCP, UDP.
    Process {
        /// Live flows, counted by the program.
        active: [u32; 2],
        /// Live flows at most; `u32::MAX` = any number.
        active_max: [u32; 2],
        /// Of the hash of sources.
        seed: u64,
        /// How many buckets there are.
        buckets: u32,
        /// Always 0: the entry has no gaps.
        pad: u32,
    }

    /// How a pool chooses.
    Pool {
        /// One of `BALANCE_*`.
        balance: u32,
        /// One of `MODE_*`.
        mode: u32,
        /// Its first slot in the table of slots.
        table: u32,
        /// How many slots it has there.
        length: u32,
        /// The only backend that takes work, plus one.
        only: u32,
        /// Whether the client's port counts.
        with_port: u32,
        /// Number of the next turn, for `BALANCE_TURN`.
        turn: u64,
        /// Seed of `source_hash` for IPv4 clients.
        seed_v4: u64,
        /// Seed of `source_hash` for IPv6 clients.
        seed_v6: u64,
        /// Bits of an IPv4 client's address that count, in host order.
        mask_v4: u32,
        /// Nobody has more than so many 1/65536ths of the mean (`bounded_load`); 0 = as many as come.
        bound: u32,
        /// Bits of an IPv6 client's address that count, in network order.
        mask_v6: [u8; 16],
        /// How many of `sources` there are; 0 = each backend's own counts.
        sources_count: u32,
        /// Always 0: the entry has no gaps.
        pad2: u32,
        /// Addresses of this host towards the backends ([`MODE_NAT`]).
        sources: [Address; KERNEL_SOURCES_MAX],
    }

    /// A slot of a pool's table.
    Slot {
        /// Place of the backend.
        backend: u32,
        /// Weight, or share.
        weight: u32,
    }

    /// A listener.
    Listener {
        /// Identity of the listener's name.
        identity: u64,
        /// Live flows, counted by the program.
        active: u32,
        /// Live flows at most; 0 = any number.
        active_max: u32,
    }

    /// A backend.
    Backend {
        /// Identity of pool and address.
        identity: u64,
        /// The address that packets to it go to.
        address: Address,
        /// The address of this host towards it.
        source: Address,
        /// Its port in network order; 0 = the port that the client used.
        port: [u8; 2],
        /// Always 0: the entry has no gaps.
        pad: u16,
        /// Index of the interface by which packets to it leave.
        ifindex: u32,
        /// Live flows, counted by the program.
        active: u32,
        /// Live connections and sessions of the workers.
        active_elsewhere: u32,
        /// Of both at most; 0 = any number.
        active_max: u32,
        /// Not 0: new work goes there.
        ready: u32,
        /// Weight, without regard to slow start.
        weight: u32,
        /// Always 0: the entry has no gaps.
        pad2: u32,
        /// Smoothed response time in nanoseconds, kept by the program; 0 = unknown.
        latency: u64,
        /// When that was last learned, nanoseconds.
        latency_at: u64,
        /// The workers' response time as it counts now, nanoseconds; 0 = unknown.
        latency_elsewhere: u64,
    }

    /// One direction of a flow.
    Flow {
        /// What a packet becomes.
        to: Tuple,
        /// The next hop's address; `hop_family` says of which kind.
        hop: [u8; 16],
        /// The id that operators see and give to `weir kill`.
        id: u64,
        /// Packets in this direction so far.
        packets: u64,
        /// Bytes of payload in this direction so far.
        bytes: u64,
        /// Last packet, nanoseconds.
        last: u64,
        /// First packet, nanoseconds.
        opened: u64,
        /// Index of the interface by which packets leave.
        ifindex: u32,
        /// When the way was looked up.
        routed: u32,
        /// Place of the listener.
        listener: u32,
        /// Place of the backend.
        backend: u32,
        /// The `FLOW_*` bits that are set.
        flags: u32,
        /// Microseconds from the first packet to the first answer; 0 = none yet.
        connect_us: u32,
        /// Address family of `hop`.
        hop_family: u32,
        /// What this side sends next (TCP).
        next: u32,
        /// What this side expects next (TCP).
        ack: u32,
        /// The backend's entry: to the first byte of an answer.
        first_byte_us: u32,
        /// By how much the clock of the client's timestamps is behind that which backends see; 0 = they are left alone.
        behind: u32,
        /// Always 0: the entry has no gaps.
        pad: u32,
    }

    /// An ended flow.
    Ended {
        /// As the client sends.
        key: Tuple,
        /// The client's direction.
        up: Flow,
        /// Packets from the backend.
        packets_down: u64,
        /// Bytes of payload from the backend.
        bytes_down: u64,
        /// When it ended, in nanoseconds.
        at: u64,
        /// One of `END_*`.
        end: u32,
        /// `first_byte_us` of the backend's entry.
        first_byte_us: u32,
    }

    /// A flow on its way out of the table and of what counts it.
    Removal {
        /// As the client sends.
        key: Tuple,
        /// The flow's own.
        id: u64,
        /// Place of the listener.
        listener: u32,
        /// Place of the backend.
        backend: u32,
        /// The `FLOW_*` bits of the client's entry.
        flags: u32,
        /// What is to be done next; 0 = nothing.
        step: u32,
    }

    /// Ports in a row.
    PortRange {
        /// The first of them, in host order.
        first: u16,
        /// How many there are.
        length: u16,
    }

    /// Local ports that mode `nat` uses.
    Ports {
        /// Of all ranges.
        total: u32,
        /// Always 0: the entry has no gaps.
        pad: u32,
        /// In no particular order; empty ones last.
        ranges: [PortRange; PORT_RANGES],
    }

    /// Counters of a listener or backend.
    Tally {
        /// Flows that have begun.
        opened: u64,
        /// Packets from clients.
        packets_up: u64,
        /// Bytes from clients.
        bytes_up: u64,
        /// Packets to clients.
        packets_down: u64,
        /// Bytes to clients.
        bytes_down: u64,
        /// Of a listener: who was turned away, by [`REFUSALS`].
        refused: [u64; REFUSALS.len()],
    }
}

impl Flow {
    /// Where `flags` stands among its bytes.
    const FLAGS: usize = 112;

    /// Whether these are the bytes of a client's entry.
    pub fn is_clients(bytes: &[u8]) -> bool {
        u32::of(&bytes[Flow::FLAGS..]) & FLOW_CLIENT != 0
    }
}

impl Tuple {
    /// The same the other way.
    pub fn turned(self) -> Tuple {
        Tuple {
            src: self.dst,
            dst: self.src,
            sport: self.dport,
            dport: self.sport,
            ..self
        }
    }

    /// Where it comes from.
    pub fn source(&self) -> SocketAddr {
        socket(self.src, self.sport)
    }

    /// Where it goes.
    pub fn destination(&self) -> SocketAddr {
        socket(self.dst, self.dport)
    }

    /// Whether it is TCP.
    pub fn is_tcp(&self) -> bool {
        i32::from(self.protocol) == libc::IPPROTO_TCP
    }
}

/// Word of a backend that the program changes: live flows.
pub const BACKEND_ACTIVE: usize = 12;
/// Word of a backend: live connections and sessions of the workers.
pub const BACKEND_ACTIVE_ELSEWHERE: usize = 13;
/// Long words of a backend: its response time by the program, and when that was learned; by the workers.
pub const BACKEND_LATENCY: [usize; 3] = [9, 10, 11];
/// All words of a backend that change while its configuration does not.
pub const BACKEND_LIVE: [usize; 8] = [BACKEND_ACTIVE, BACKEND_ACTIVE_ELSEWHERE, 18, 19, 20, 21, 22, 23];
/// Response times that the program tells apart at most, nanoseconds.
pub const LATENCY_MAX: u64 = (1 << 43) - 1;
/// Word of a listener that the program changes: live flows.
pub const LISTENER_ACTIVE: usize = 2;

/// Word of a removal: its step.
pub const REMOVAL_STEP: usize = 15;

/// Words of a process that the program changes: live TCP connections, UDP sessions.
pub const PROCESS_ACTIVE: usize = 0;
/// Words of a process: how many of these there may be.
pub const PROCESS_ACTIVE_MAX: usize = 2;

/// An address that clients use.
pub const SERVICE_CLIENTS: u32 = 0;
/// Where a backend answers clients of one address and port from.
pub const SERVICE_ANSWERS: u32 = 1;
/// The same, of more than one address or port.
pub const SERVICE_ANSWERS_MANY: u32 = 2;
/// An address of this host, under port and protocol 0.
pub const SERVICE_HOST: u32 = 3;

/// Ranges of ports in [`Ports`].
pub const PORT_RANGES: usize = 8;

/// Chosen by the key of the source.
pub const BALANCE_HASH: u32 = 0;
/// Chosen in turn.
pub const BALANCE_TURN: u32 = 1;
/// Of two chosen by chance, the less loaded.
pub const BALANCE_CHANCE: u32 = 2;
/// The least loaded of all.
pub const BALANCE_LEAST: u32 = 3;
/// The least of response time times load.
pub const BALANCE_TIME: u32 = 4;

/// Backends see this host.
pub const MODE_NAT: u32 = 0;
/// Backends see the client.
pub const MODE_KEEP: u32 = 1;
/// Backends answer the client themselves.
pub const MODE_DSR: u32 = 2;

/// The direction from the client.
pub const FLOW_CLIENT: u32 = 1;
/// The backend has answered.
pub const FLOW_ANSWERED: u32 = 2;
/// The flow counts as active.
pub const FLOW_OPEN: u32 = 4;
/// The end of the flow has been told.
pub const FLOW_ENDED: u32 = 8;
/// This side has ended.
pub const FLOW_FIN: u32 = 16;
/// Only the client's side is seen.
pub const FLOW_DSR: u32 = 32;
/// Its beginning was not seen here.
pub const FLOW_JOINED: u32 = 128;

/// The flow was ended by weir.
pub const FLOW_CUT: u32 = 256;

/// The backend has ended before the client.
pub const FLOW_BACKEND_FIRST: u32 = 512;

/// The service of the flow has a guard.
pub const FLOW_GUARDED: u32 = 1024;

/// The flow counts as one of its source's.
pub const FLOW_SOURCED: u32 = 2048;

/// Slots of a [`Bucket`].
pub const BUCKET: usize = 8;
/// Low bits of a slot: live flows; the others are of the source's hash.
pub const COUNT_BITS: u32 = 24;

/// A source that may not come.
pub const VERDICT_DENIED: u32 = 1;
/// A source that limits of sources do not concern.
pub const VERDICT_EXEMPT: u32 = 2;

/// Why clients are turned away, in the order of `enum refusal`, and what a datagram was then.
pub const REFUSALS: [(Cause, Dropped); 7] = [
    (Cause::Denied, Dropped::Denied),
    (Cause::LimitListener, Dropped::LimitListener),
    (Cause::LimitSource, Dropped::LimitSource),
    (Cause::LimitRate, Dropped::LimitRate),
    (Cause::LimitProcess, Dropped::LimitProcess),
    (Cause::NoBackend, Dropped::NoBackend),
    (Cause::NoBackend, Dropped::Full),
];

/// Both sides have ended.
pub const END_FINISHED: u32 = 0;
/// Reset by the client.
pub const END_CLIENT_RESET: u32 = 1;
/// Reset by the backend.
pub const END_BACKEND_RESET: u32 = 2;
/// The backend refused.
pub const END_REFUSED: u32 = 3;
/// Ended by weir.
pub const END_CUT: u32 = 4;
/// Turned away; plus an index into [`REFUSALS`].
pub const END_REFUSALS: u32 = 5;

/// An injected frame that ends a flow.
pub const INJECT_CUT: u16 = 1;
/// One that leaves as it is.
pub const INJECT_PLAIN: u16 = 2;

words! {
    /// What became of packets that were not passed on, or not as they should have been, in the order of `enum drop`.
    pub enum DropReason {
        /// Nobody takes new work, or those who do are full: the host refused the client.
        NoBackend = "no_backend",
        /// The listener has as many flows as it may: the client was refused.
        Full = "full",
        /// No port of this host towards the backend was free: the host refused the client.
        NoPort = "no_port",
        /// `kernel.flows` are established: the flow goes on among those that are not.
        TableFull = "table_full",
        /// Its hops were used up.
        HopLimit = "hop_limit",
        /// It could not be rewritten, or came without the checksum that IPv6 demands.
        Malformed = "malformed",
        /// Larger than the way out takes: the sender was told.
        TooBig = "too_big",
        /// An end of which there was no room to tell: it is not in the access log.
        Untold = "untold",
        /// From the middle of a connection that is not known here: answered by RST.
        Stray = "stray",
        /// The same, more than are answered, or nobody to answer for.
        StrayFlood = "stray_flood",
        /// An access list or a limit is against it: see `weir_connections_refused_total`.
        Refused = "refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written word by word lies where the shape has it.
    #[test]
    fn words_of_a_backend_are_where_its_shape_has_them() {
        let shape = Backend {
            active: 1,
            active_elsewhere: 2,
            latency: 3,
            latency_at: 4,
            latency_elsewhere: 5,
            ..Backend::default()
        };
        let bytes = shape.bytes();
        let word = |at: usize| u32::of(&bytes[at * 4..]);
        let long = |at: usize| u64::of(&bytes[at * 8..]);
        assert_eq!([BACKEND_ACTIVE, BACKEND_ACTIVE_ELSEWHERE].map(word), [1, 2]);
        assert_eq!(BACKEND_LATENCY.map(long), [3, 4, 5]);
        let others = (0..Backend::SIZE / 4).filter(|word| !BACKEND_LIVE.contains(word));
        assert!(others.map(word).all(|word| word == 0));
    }

    #[test]
    fn a_clients_entry_is_told_by_its_bytes() {
        for (flags, is_clients) in [
            (FLOW_CLIENT, true),
            (FLOW_CLIENT | FLOW_CUT, true),
            (!FLOW_CLIENT, false),
        ] {
            let others = Flow {
                packets: u64::MAX,
                backend: u32::MAX,
                connect_us: u32::MAX,
                ..Flow::default()
            };
            assert_eq!(
                Flow::is_clients(&Flow { flags, ..others }.bytes()),
                is_clients,
                "{flags:b}"
            );
        }
    }
}
