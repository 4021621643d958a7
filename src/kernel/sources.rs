//! Live flows by source, in memory that the program and this process share: both change a slot by one compare-and-swap, so counts
//! are exact over all processors and whoever ends a flow, and they belong to the maps, which outlive a process.
//!
//! A slot is the upper part of a hash of the source, and a count. A source has its slot in one of two buckets; where its count ends
//! at zero the slot is free. So there are as many sources as there are slots taken, and no flow is counted elsewhere: a flood of
//! packets from everywhere changes nothing here, for a flow is counted when both sides have confirmed it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::layout::{COUNT_BITS, address};
use crate::balance::limits::source;
use crate::balance::mix2;
use crate::base::rng::mix;

/// The count of a slot.
const COUNT: u64 = (1 << COUNT_BITS) - 1;

/// Buckets for so many flows: half of the slots stay free when each has a source of its own.
pub fn buckets(flows: u32) -> u32 {
    (flows / 4).next_power_of_two().max(64)
}

/// What stands for a source at a listener.
pub fn hash(seed: u64, listener: u64, client: IpAddr) -> u64 {
    let address = address(source(client));
    let word = |at: usize| {
        u64::from(u32::from_ne_bytes([
            address[at],
            address[at + 1],
            address[at + 2],
            address[at + 3],
        ]))
    };
    let high = mix2(mix2(seed, listener), word(0) << 32 | word(4));
    mix2(high, word(8) << 32 | word(12))
}

/// The part of a slot that says whose it is.
pub fn owner(hash: u64) -> u64 {
    hash >> COUNT_BITS
}

/// Where a source may have its slot.
fn places(hash: u64, buckets: u32) -> [u32; 2] {
    let mask = u64::from(buckets - 1);
    let [one, two] = [hash & mask, mix(owner(hash)) & mask].map(|place| place as u32);
    [one, if one == two { two ^ 1 } else { two }]
}

/// One flow less of a source; `bucket` gives the slots of one of `buckets`.
pub fn leave<'a>(bucket: impl Fn(u32) -> &'a [AtomicU64], buckets: u32, hash: u64) {
    let slots = places(hash, buckets).into_iter().flat_map(bucket);
    let less = |word: u64| match word & COUNT {
        // Without a count it is about to be free.
        0 => None,
        _ if word >> COUNT_BITS != owner(hash) => None,
        1 => Some(0),
        _ => Some(word - 1),
    };
    for slot in slots {
        if slot.fetch_update(Relaxed, Relaxed, less).is_ok() {
            return;
        }
    }
}

/// Live flows of every source, by [`owner`].
pub fn all<'a>(bucket: impl Fn(u32) -> &'a [AtomicU64], buckets: u32) -> HashMap<u64, u32> {
    let mut live = HashMap::new();
    for slot in (0..buckets).flat_map(bucket) {
        let word = slot.load(Relaxed);
        if word != 0 {
            *live.entry(word >> COUNT_BITS).or_default() += (word & COUNT) as u32;
        }
    }
    live
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::layout::BUCKET;

    struct Slots(Vec<[AtomicU64; BUCKET]>);

    impl Slots {
        fn new(buckets: usize) -> Slots {
            Slots((0..buckets).map(|_| Default::default()).collect())
        }
        fn bucket(&self, ix: u32) -> &[AtomicU64] {
            &self.0[ix as usize]
        }
    }

    #[test]
    fn slots_are_freed_by_the_last_of_their_flows() {
        let slots = Slots::new(64);
        let bucket = |ix| slots.bucket(ix);
        let hash = hash(1, 2, "192.0.2.1".parse().unwrap());
        let [one, two] = places(hash, 64);
        slots.bucket(two)[3].store(owner(hash) << COUNT_BITS | 2, Relaxed);
        slots.bucket(one)[0].store((owner(hash) ^ 1) << COUNT_BITS | 7, Relaxed);
        assert_eq!(all(bucket, 64)[&owner(hash)], 2);
        leave(bucket, 64, hash);
        assert_eq!(all(bucket, 64)[&owner(hash)], 1);
        leave(bucket, 64, hash);
        assert_eq!(slots.bucket(two)[3].load(Relaxed), 0);
        // Nobody else's, whatever is missing.
        leave(bucket, 64, hash);
        assert_eq!(all(bucket, 64).into_iter().collect::<Vec<_>>(), [(owner(hash) ^ 1, 7)]);
    }

    #[test]
    fn one_customer_is_one_source() {
        let of = |text: &str| hash(1, 2, text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
        assert_ne!(of("192.0.2.1"), hash(1, 3, "192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn the_two_buckets_differ() {
        for nth in 0..10_000 {
            let [one, two] = places(mix(nth), 64);
            assert!(one != two && one < 64 && two < 64);
        }
    }
}
