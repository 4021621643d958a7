//! The hashes and the random numbers of this layer.
//!
//! Answers must agree between workers, nodes, restarts and releases, and one day with a program in the kernel, so the
//! functions are fixed here and simple enough to be written down again elsewhere: Stafford's 64-bit finalizer (variant 13,
//! the one of Rng64) for numbers, FNV-1a for text. They spread; they do not hide: a client that can choose its
//! source address can choose its backend.

use std::net::{IpAddr, SocketAddr};

use crate::base::rng::{GOLDEN, mix};
use crate::config::model::SourceHash;

/// A hash of two numbers; order counts.
#[inline]
pub fn mix2(a: u64, b: u64) -> u64 {
    mix(mix(a.wrapping_add(GOLDEN)) ^ b)
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

/// Where the keys of IPv4 and of IPv6 clients begin: for an engine that computes them itself.
pub fn seeds(config: &SourceHash) -> (u64, u64) {
    (mix2(config.seed, 4), mix2(config.seed, 6))
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
            mix2(seeds(config).0, u64::from(ip.to_bits() & kept))
        }
        IpAddr::V6(ip) => {
            let kept = u128::MAX
                .checked_shl(128 - u32::from(config.prefix_v6.min(128)))
                .unwrap_or(0);
            let bits = ip.to_bits() & kept;
            mix2(mix2(seeds(config).1, (bits >> 64) as u64), bits as u64)
        }
    };
    if config.port {
        mix2(key, u64::from(source.port()))
    } else {
        key
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
            (32, 64, false, "[2001:db8::1]:1", "[2001:db8:0:1::1]:1", false),
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
            assert_ne!(source_key(&reseeded, a.parse().unwrap()), keys[0], "the seed counts");
        }
    }
}
