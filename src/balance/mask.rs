//! A set of backends of one pool.

use std::fmt;

use smallvec::{SmallVec, smallvec};

/// One bit a backend, sized once; no heap up to 128 backends, counting is free.
#[derive(Clone, PartialEq, Eq)]
pub struct Mask {
    len: u32,
    ones: u32,
    words: SmallVec<[u64; 2]>,
}

impl Mask {
    /// An empty set over `len` backends.
    pub fn new(len: usize) -> Mask {
        Mask {
            len: len as u32,
            ones: 0,
            words: smallvec![0; len.div_ceil(64)],
        }
    }

    /// The set of all `len` backends.
    pub fn full(len: usize) -> Mask {
        Mask::from_fn(len, |_| true)
    }

    /// The set of those for which `member` holds.
    pub fn from_fn(len: usize, mut member: impl FnMut(usize) -> bool) -> Mask {
        let mut mask = Mask::new(len);
        for ix in (0..len).filter(|&ix| member(ix)) {
            mask.set(ix);
        }
        mask
    }

    /// The set as it is kept: backend `ix` is bit `ix % 64` of word `ix / 64`. For an engine that has no use for iterators.
    #[inline]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Number of backends it ranges over, in the set or not.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Number of backends in the set.
    #[inline]
    pub fn count(&self) -> usize {
        self.ones as usize
    }

    /// Whether no backend is in the set.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.ones == 0
    }

    /// Whether this backend is in the set; one out of range is not.
    #[inline]
    pub fn get(&self, ix: usize) -> bool {
        self.words.get(ix / 64).is_some_and(|word| word >> (ix % 64) & 1 == 1)
    }

    /// Puts a backend in.
    ///
    /// # Panics
    /// If it is out of range.
    pub fn set(&mut self, ix: usize) {
        assert!(ix < self.len(), "backend {ix} of {}", self.len);
        self.ones += u32::from(!self.get(ix));
        self.words[ix / 64] |= 1 << (ix % 64);
    }

    /// Takes a backend out; one out of range was never in.
    pub fn clear(&mut self, ix: usize) {
        if self.get(ix) {
            self.ones -= 1;
            self.words[ix / 64] &= !(1 << (ix % 64));
        }
    }

    /// This set less one backend.
    pub fn without(&self, ix: usize) -> Mask {
        let mut mask = self.clone();
        mask.clear(ix);
        mask
    }

    /// Backends in the set, ascending.
    #[inline]
    pub fn iter_ones(&self) -> impl Iterator<Item = usize> + '_ {
        self.bits(|word| word)
    }

    /// Backends not in the set, ascending.
    pub fn iter_zeros(&self) -> impl Iterator<Item = usize> + '_ {
        self.bits(|word| !word).take_while(|&ix| ix < self.len())
    }

    #[inline]
    fn bits<'a>(&'a self, f: impl Fn(u64) -> u64 + 'a) -> impl Iterator<Item = usize> + 'a {
        let mut words = self.words.iter().map(move |&word| f(word)).enumerate();
        let (mut base, mut word) = (0, 0);
        std::iter::from_fn(move || {
            while word == 0 {
                let (at, next) = words.next()?;
                (base, word) = (at * 64, next);
            }
            let ix = base + word.trailing_zeros() as usize;
            word &= word - 1;
            Some(ix)
        })
    }
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "of {} ", self.len)?;
        f.debug_set().entries(self.iter_ones()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// The oracle is an ordered set. Broken on purpose: `clear` without its `get` guard.
        #[test]
        fn behaves_like_an_ordered_set(
            len in 1usize..300,
            ops in proptest::collection::vec((any::<bool>(), 0usize..300), 0..200),
        ) {
            let (mut mask, mut oracle) = (Mask::new(len), BTreeSet::new());
            for (put, ix) in ops.into_iter().filter(|&(_, ix)| ix < len) {
                if put { mask.set(ix); oracle.insert(ix); } else { mask.clear(ix); oracle.remove(&ix); }
            }
            prop_assert_eq!(mask.iter_ones().collect::<Vec<_>>(), oracle.iter().copied().collect::<Vec<_>>());
            let bit = |ix: usize| mask.words()[ix / 64] >> (ix % 64) & 1 == 1;
            prop_assert!((0..len).all(|ix| bit(ix) == oracle.contains(&ix)));
            prop_assert_eq!(mask.words().len(), len.div_ceil(64));
            let zeros: Vec<_> = (0..len).filter(|ix| !oracle.contains(ix)).collect();
            prop_assert_eq!(mask.iter_zeros().collect::<Vec<_>>(), zeros);
            prop_assert_eq!((mask.count(), mask.is_empty()), (oracle.len(), oracle.is_empty()));
        }
    }

    #[test]
    fn out_of_range_is_never_in() {
        let mut mask = Mask::full(65);
        mask.clear(65);
        assert_eq!(
            (mask.get(64), mask.get(65), mask.get(1000), mask.count()),
            (true, false, false, 65)
        );
        assert_eq!(mask.without(64).count(), 64);
    }
}
