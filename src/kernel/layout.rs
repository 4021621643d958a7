//! Shapes of the maps, as weir.h has them for the program: written and read as bytes, because that is what they are to both
//! sides. A test compiles weir.h and compares.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use crate::base::words;

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
        /// Source.
        src: Address,
        /// Destination.
        dst: Address,
        /// Source port, in network order.
        sport: [u8; 2],
        /// Destination port, in network order.
        dport: [u8; 2],
        /// Of the IP header.
        protocol: u8,
        /// 0.
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
        /// 0.
        pad: u32,
    }

    /// An address that is served.
    ServiceKey {
        /// Address.
        address: Address,
        /// Port, in network order.
        port: [u8; 2],
        /// Of the IP header.
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
        /// Of clients, in network order ([`SERVICE_ANSWERS`]).
        port: [u8; 2],
        /// 0.
        pad: u16,
        /// That clients use ([`SERVICE_ANSWERS`]).
        address: Address,
        /// Of the interface that has the clients' address; 0 = none has it.
        ifindex: u32,
        /// 0.
        pad2: u32,
    }

    /// How a pool chooses.
    Pool {
        /// One of `BALANCE_*`.
        balance: u32,
        /// One of `MODE_*`.
        mode: u32,
        /// First slot.
        table: u32,
        /// Slots.
        length: u32,
        /// The only backend that takes work, plus one.
        only: u32,
        /// Whether the client's port counts.
        with_port: u32,
        /// Next turn.
        turn: u64,
        /// Of source_hash.
        seed_v4: u64,
        /// Of source_hash.
        seed_v6: u64,
        /// In host order.
        mask_v4: u32,
        /// 0.
        pad: u32,
        /// In network order.
        mask_v6: [u8; 16],
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
        /// Of its name.
        identity: u64,
        /// Live flows.
        active: u32,
        /// At most; 0 = any number.
        active_max: u32,
    }

    /// A backend.
    Backend {
        /// Of pool and address.
        identity: u64,
        /// Its address.
        address: Address,
        /// Ours towards it.
        source: Address,
        /// In network order; 0 = the client's choice.
        port: [u8; 2],
        /// 0.
        pad: u16,
        /// Way out.
        ifindex: u32,
        /// Live flows.
        active: u32,
        /// At most; 0 = any number.
        active_max: u32,
        /// New work goes there.
        ready: u32,
        /// 0.
        pad2: u32,
    }

    /// One direction of a flow.
    Flow {
        /// What a packet becomes.
        to: Tuple,
        /// Next hop.
        hop: [u8; 16],
        /// For operators.
        id: u64,
        /// So far.
        packets: u64,
        /// Payload so far.
        bytes: u64,
        /// Last packet, nanoseconds.
        last: u64,
        /// First packet, nanoseconds.
        opened: u64,
        /// Way out.
        ifindex: u32,
        /// When the way was looked up.
        routed: u32,
        /// Place of the listener.
        listener: u32,
        /// Place of the backend.
        backend: u32,
        /// `FLOW_*`.
        flags: u32,
        /// To the first answer.
        connect_us: u32,
        /// Of `hop`.
        hop_family: u32,
        /// What this side sends next (TCP).
        next: u32,
        /// What this side expects next (TCP).
        ack: u32,
        /// The backend's entry: to the first byte of an answer.
        first_byte_us: u32,
    }

    /// An ended flow.
    Ended {
        /// As the client sends.
        key: Tuple,
        /// The client's direction.
        up: Flow,
        /// From the backend.
        packets_down: u64,
        /// From the backend.
        bytes_down: u64,
        /// When, nanoseconds.
        at: u64,
        /// One of `END_*`.
        end: u32,
        /// Of the backend's entry.
        first_byte_us: u32,
    }

    /// Counters of a listener or backend.
    Tally {
        /// Flows.
        opened: u64,
        /// From clients.
        packets_up: u64,
        /// From clients.
        bytes_up: u64,
        /// To clients.
        packets_down: u64,
        /// To clients.
        bytes_down: u64,
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
/// Word of a listener that the program changes: live flows.
pub const LISTENER_ACTIVE: usize = 2;

/// An address that clients use.
pub const SERVICE_CLIENTS: u32 = 0;
/// Where a backend answers clients of one address and port from.
pub const SERVICE_ANSWERS: u32 = 1;
/// The same, of more than one address or port.
pub const SERVICE_ANSWERS_MANY: u32 = 2;
/// An address of this host, under port and protocol 0.
pub const SERVICE_HOST: u32 = 3;

/// Local ports that mode `nat` uses, as `PORTS` of the program: those that sockets do not choose for themselves.
pub const PORTS: [RangeInclusive<u16>; 2] = [1024..=32_767, 61_000..=65_535];

/// By the key of the source.
pub const BALANCE_HASH: u32 = 0;
/// In turn.
pub const BALANCE_TURN: u32 = 1;
/// The less loaded of two.
pub const BALANCE_CHANCE: u32 = 2;
/// The least loaded.
pub const BALANCE_LEAST: u32 = 3;

/// Backends see this host.
pub const MODE_NAT: u32 = 0;
/// Backends see the client.
pub const MODE_KEEP: u32 = 1;
/// Backends answer the client themselves.
pub const MODE_DSR: u32 = 2;

/// From the client.
pub const FLOW_CLIENT: u32 = 1;
/// The backend has answered.
pub const FLOW_ANSWERED: u32 = 2;
/// Counted as active.
pub const FLOW_OPEN: u32 = 4;
/// Told of.
pub const FLOW_ENDED: u32 = 8;
/// This side has ended.
pub const FLOW_FIN: u32 = 16;
/// Only the client's side is seen.
pub const FLOW_DSR: u32 = 32;
/// Its beginning was not seen here.
pub const FLOW_JOINED: u32 = 128;

/// Ended by us.
pub const FLOW_CUT: u32 = 256;

/// The backend has ended before the client.
pub const FLOW_BACKEND_FIRST: u32 = 512;

/// Both sides have ended.
pub const END_FINISHED: u32 = 0;
/// Reset by the client.
pub const END_CLIENT_RESET: u32 = 1;
/// Reset by the backend.
pub const END_BACKEND_RESET: u32 = 2;
/// The backend refused.
pub const END_REFUSED: u32 = 3;
/// By us.
pub const END_CUT: u32 = 4;

/// An injected frame that ends a flow.
pub const INJECT_CUT: u16 = 1;
/// One that leaves as it is.
pub const INJECT_PLAIN: u16 = 2;

words! {
    /// What became of packets that were not passed on, or not as they should have been, in the order of `enum drop`.
    pub enum DropReason {
        /// Nobody takes new work, or those who do are full: the host refused the client.
        NoBackend = "no_backend",
        /// The listener has as many flows as it may: the host refused the client.
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
    }
}
