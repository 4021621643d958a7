//! What an epoll event belongs to, packed into the 64 bits that the kernel hands back.
//!
//! `kind:3 | side:1 | generation:28 | index:32`. The generation makes events of a closed descriptor recognisable: a
//! descriptor number is reused by the very next accept, possibly within one batch of events.

use super::slab::Key;

/// What an event source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The worker's waker.
    Wake = 0,
    /// A listening socket.
    Listen = 1,
    /// One side of a TCP pair.
    Pair = 2,
    /// A UDP listener.
    Datagram = 3,
    /// A UDP session's backend socket.
    Session = 4,
}

/// One of the two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The end that connected to weir.
    Client = 0,
    /// The end that weir connected to.
    Backend = 1,
}

impl Side {
    /// Both, client first.
    pub const BOTH: [Side; 2] = [Side::Client, Side::Backend];

    /// The opposite end.
    pub fn other(self) -> Side {
        match self {
            Side::Client => Side::Backend,
            Side::Backend => Side::Client,
        }
    }
}

/// An unpacked token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// Which table `key` belongs to.
    pub kind: Kind,
    /// Which end of a pair; `Client` for everything else.
    pub side: Side,
    /// The slot, and how often it had been emptied.
    pub key: Key,
}

impl Token {
    /// Packs into 64 bits.
    pub fn pack(self) -> u64 {
        (self.kind as u64) << 61
            | (self.side as u64) << 60
            | u64::from(self.key.generation) << 32
            | u64::from(self.key.index)
    }

    /// Unpacks; `None` for a kind that does not exist.
    pub fn unpack(bits: u64) -> Option<Token> {
        let kind = match bits >> 61 {
            0 => Kind::Wake,
            1 => Kind::Listen,
            2 => Kind::Pair,
            3 => Kind::Datagram,
            4 => Kind::Session,
            _ => return None,
        };
        let side = if bits >> 60 & 1 == 0 {
            Side::Client
        } else {
            Side::Backend
        };
        let key = Key {
            index: bits as u32,
            generation: (bits >> 32) as u32 & Key::GENERATION_MAX,
        };
        Some(Token { kind, side, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_survives_packing() {
        for kind in [Kind::Wake, Kind::Listen, Kind::Pair, Kind::Datagram, Kind::Session] {
            for side in Side::BOTH {
                for index in [0, 1, u32::MAX] {
                    for generation in [0, 1, Key::GENERATION_MAX] {
                        let token = Token {
                            kind,
                            side,
                            key: Key { index, generation },
                        };
                        assert_eq!(Token::unpack(token.pack()), Some(token));
                    }
                }
            }
        }
        assert_eq!(Token::unpack(7 << 61), None);
    }
}
