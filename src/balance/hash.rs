//! The hashes and the random numbers of this layer.
//!
//! Answers must agree between workers, nodes, restarts and releases, and one day with a program in the kernel, so the
//! functions are fixed here and simple enough to be written down again elsewhere: Stafford's 64-bit finalizer (variant 13,
//! the one of SplitMix64) for numbers, FNV-1a for text. They spread; they do not hide: a client that can choose its
//! source address can choose its backend.

use std::net::{IpAddr, SocketAddr};

use crate::config::model::SourceHash;

/// 2^64 divided by the golden ratio: the step of SplitMix64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A bijection of 64 bits in which every input bit moves every output bit.
#[inline]
pub(super) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A hash of two numbers; order counts.
#[inline]
pub(super) fn mix2(a: u64, b: u64) -> u64 {
    mix(mix(a.wrapping_add(GOLDEN)) ^ b)
}

/// A uniform number below `n` from 64 random bits, without a division.
#[inline]
pub(super) fn below(random: u64, n: u64) -> u64 {
    ((u128::from(random) * u128::from(n)) >> 64) as u64
}

/// The same number for a backend on every node and after every restart, whatever the order of the configuration.
///
/// `address` is the canonical text of the backend's address. FNV-1a over pool, a zero byte and address, finalized.
pub fn identity(pool: &str, address: &str) -> u64 {
    let bytes = pool.bytes().chain([0]).chain(address.bytes());
    mix(bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    }))
}

/// What `source_hash` keeps of a client: the configured prefix of its address, its port if asked for, and the seed.
///
/// A v4-mapped IPv6 address is the IPv4 address it carries, so that a dual-stack listener and a plain one agree.
pub fn source_key(config: &SourceHash, source: SocketAddr) -> u64 {
    let key = match source.ip().to_canonical() {
        IpAddr::V4(ip) => {
            let kept = u32::MAX
                .checked_shl(32 - u32::from(config.prefix_v4.min(32)))
                .unwrap_or(0);
            mix2(mix2(config.seed, 4), u64::from(ip.to_bits() & kept))
        }
        IpAddr::V6(ip) => {
            let kept = u128::MAX
                .checked_shl(128 - u32::from(config.prefix_v6.min(128)))
                .unwrap_or(0);
            let bits = ip.to_bits() & kept;
            mix2(mix2(mix2(config.seed, 6), (bits >> 64) as u64), bits as u64)
        }
    };
    if config.port {
        mix2(key, u64::from(source.port()))
    } else {
        key
    }
}

/// SplitMix64: a random sequence that its seed determines. Not for secrets.
#[derive(Debug, Clone)]
pub struct SplitMix(u64);

impl SplitMix {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> SplitMix {
        SplitMix(mix(seed))
    }

    /// The next 64 bits.
    #[allow(clippy::should_implement_trait)] // an endless sequence, not an iterator
    #[inline]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// A uniform number below `n`; 0 for `n` = 0.
    #[inline]
    pub fn below(&mut self, n: u64) -> u64 {
        below(self.next(), n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: SourceHash = SourceHash {
        prefix_v4: 32,
        prefix_v6: 128,
        port: false,
        bounded_load: None,
        seed: 0,
    };

    /// These numbers may never change: two nodes of different releases must agree during an upgrade.
    #[test]
    fn hashes_are_fixed() {
        let key = |text: &str| source_key(&PLAIN, text.parse().unwrap());
        let rows = [
            (identity("web", "10.0.0.11:8080"), 0x7d78_219f_53a3_7483),
            (identity("", ""), 0x25fc_6dd3_6ce0_4b20),
            (key("10.1.2.3:4000"), 0x93ec_81b8_d527_50c7),
            (key("[2001:db8::1]:4000"), 0x3dcc_3d04_c062_a0ab),
        ];
        for (row, (got, wanted)) in rows.into_iter().enumerate() {
            assert_eq!(got, wanted, "row {row}: {got:#x}");
        }
        // The first outputs of SplitMix64 with state 0, as published with the algorithm.
        let mut reference = SplitMix(0);
        assert_eq!(
            [reference.next(), reference.next()],
            [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]
        );
    }

    #[test]
    fn pool_and_address_do_not_run_together() {
        assert_ne!(identity("a", "b:1"), identity("ab", ":1"));
        assert_ne!(identity("a", "x:1"), identity("b", "x:1"));
    }

    /// Columns: v4 prefix, v6 prefix, port counts, two clients, same key. Broken on purpose: no `to_canonical`.
    #[test]
    fn keys_keep_what_is_configured() {
        let rows = [
            (32, 128, false, "10.0.0.1:1", "10.0.0.1:2", true),
            (32, 128, true, "10.0.0.1:1", "10.0.0.1:2", false),
            (32, 128, false, "10.0.0.1:1", "10.0.0.2:1", false),
            (24, 128, false, "10.0.0.1:1", "10.0.0.200:1", true),
            (24, 128, false, "10.0.0.1:1", "10.0.1.1:1", false),
            (0, 128, false, "10.0.0.1:1", "192.0.2.1:1", true),
            (32, 128, false, "10.0.0.1:1", "[::ffff:10.0.0.1]:9", true),
            (24, 128, false, "10.0.0.9:1", "[::ffff:10.0.0.1]:9", true),
            (32, 64, false, "[2001:db8::1]:1", "[2001:db8::2]:1", true),
            (
                32,
                64,
                false,
                "[2001:db8::1]:1",
                "[2001:db8:0:1::1]:1",
                false,
            ),
            (32, 128, false, "[2001:db8::1]:1", "[2001:db8::2]:1", false),
            (32, 0, false, "[2001:db8::1]:1", "[fd00::2]:1", true),
            (0, 0, false, "10.0.0.1:1", "[fd00::2]:1", false),
        ];
        for (prefix_v4, prefix_v6, port, a, b, same) in rows {
            let config = SourceHash {
                prefix_v4,
                prefix_v6,
                port,
                ..PLAIN
            };
            let keys = [a, b].map(|text| source_key(&config, text.parse().unwrap()));
            assert_eq!(
                keys[0] == keys[1],
                same,
                "/{prefix_v4} /{prefix_v6} port {port}: {a} and {b}"
            );
            let reseeded = SourceHash {
                seed: 1,
                ..config.clone()
            };
            assert_ne!(
                source_key(&reseeded, a.parse().unwrap()),
                keys[0],
                "the seed counts"
            );
        }
    }
}
