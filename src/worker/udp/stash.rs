//! Copies of datagrams that may have to be sent again: a ring, so that nothing is ever allocated or freed.
//!
//! An ICMP error quotes the datagram it is about, but no more than about 500 bytes of it. A longer one that goes to a backend
//! which has not answered yet is kept here until newer ones overwrite it.

/// Bytes kept by a worker.
const CAPACITY: usize = 256 << 10;

/// A ring of copies of datagrams that were sent lately.
pub(super) struct Stash {
    ring: Box<[u8]>,
    /// Bytes ever written, skipped ends included.
    written: u64,
}

impl Default for Stash {
    fn default() -> Self {
        Self::new(CAPACITY)
    }
}

impl Stash {
    fn new(capacity: usize) -> Self {
        Self {
            ring: vec![0; capacity].into(),
            written: 0,
        }
    }

    /// Keeps a copy; the answer finds it again, for a while.
    pub(super) fn keep(&mut self, bytes: &[u8]) -> u64 {
        let capacity = self.ring.len() as u64;
        let room = capacity - self.written % capacity;
        if room < bytes.len() as u64 {
            self.written += room;
        }
        let at = self.written;
        let start = (at % capacity) as usize;
        self.ring[start..start + bytes.len()].copy_from_slice(bytes);
        self.written += bytes.len() as u64;
        at
    }

    /// The `len` bytes kept at `at`, unless they are overwritten.
    pub(super) fn get(&self, at: u64, len: usize) -> Option<&[u8]> {
        let capacity = self.ring.len() as u64;
        if at + capacity < self.written {
            return None;
        }
        let start = (at % capacity) as usize;
        self.ring.get(start..start + len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_found_is_what_was_kept(lens in prop::collection::vec(0usize..40, 1..60)) {
            let mut stash = Stash::new(100);
            let mut kept = Vec::new();
            for (n, len) in lens.into_iter().enumerate() {
                let bytes = vec![n as u8; len];
                kept.push((stash.keep(&bytes), bytes));
                for (at, bytes) in &kept {
                    if let Some(found) = stash.get(*at, bytes.len()) {
                        prop_assert_eq!(found, &bytes[..]);
                    }
                }
                let (at, bytes) = &kept[n];
                prop_assert_eq!(stash.get(*at, bytes.len()), Some(&bytes[..]), "the newest is always there");
            }
        }
    }
}
