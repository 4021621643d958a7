//! Slots with generations: a key of a removed entry never finds its successor.
//!
//! Entries live in fixed chunks, so growing never moves them and costs no more than one chunk at a time. Memory follows
//! the greatest number of entries that were ever alive at once.

const CHUNK: usize = 256;

/// Names one entry for as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Index of the slot, from 0.
    pub index: u32,
    /// How often the slot has been emptied, modulo 2^28.
    pub generation: u32,
}

impl Key {
    /// Largest generation (28 bits).
    pub const GENERATION_MAX: u32 = (1 << 28) - 1;
}

enum Content<T> {
    Full(T),
    /// Next free slot, or `u32::MAX`.
    Free(u32),
}

struct Slot<T> {
    generation: u32,
    content: Content<T>,
}

/// Entries in numbered slots, found by a [`Key`].
pub struct Slab<T> {
    chunks: Vec<Vec<Slot<T>>>,
    free: u32,
    len: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            free: u32::MAX,
            len: 0,
        }
    }
}

impl<T> Slab<T> {
    /// An empty slab.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many entries are live.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is alive.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds an entry.
    pub fn insert(&mut self, value: T) -> Key {
        self.insert_with(|_| value)
    }

    /// Adds an entry that knows its own key.
    pub fn insert_with(&mut self, make: impl FnOnce(Key) -> T) -> Key {
        if self.free == u32::MAX {
            self.grow();
        }
        let index = self.free;
        let slot = self.slot_mut(index).expect("the free list names existing slots");
        let key = Key {
            index,
            generation: slot.generation,
        };
        let Content::Free(next) = slot.content else {
            unreachable!("a free slot is free")
        };
        slot.content = Content::Full(make(key));
        self.free = next;
        self.len += 1;
        key
    }

    fn grow(&mut self) {
        let full = self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK);
        if full {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let index = ((self.chunks.len() - 1) * CHUNK + self.chunks[self.chunks.len() - 1].len()) as u32;
        let last = self.chunks.len() - 1;
        self.chunks[last].push(Slot {
            generation: 0,
            content: Content::Free(u32::MAX),
        });
        self.free = index;
    }

    fn slot(&self, index: u32) -> Option<&Slot<T>> {
        self.chunks.get(index as usize / CHUNK)?.get(index as usize % CHUNK)
    }

    fn slot_mut(&mut self, index: u32) -> Option<&mut Slot<T>> {
        self.chunks
            .get_mut(index as usize / CHUNK)?
            .get_mut(index as usize % CHUNK)
    }

    /// The entry, if it is still that one.
    pub fn get(&self, key: Key) -> Option<&T> {
        match self.slot(key.index)? {
            Slot {
                generation,
                content: Content::Full(value),
            } if *generation == key.generation => Some(value),
            _ => None,
        }
    }

    /// The entry, if it is still that one.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        match self.slot_mut(key.index)? {
            Slot {
                generation,
                content: Content::Full(value),
            } if *generation == key.generation => Some(value),
            _ => None,
        }
    }

    /// Takes the entry out; its key is void from then on.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        self.get(key)?;
        let free = self.free;
        let slot = self.slot_mut(key.index)?;
        slot.generation = (slot.generation + 1) & Key::GENERATION_MAX;
        let Content::Full(value) = std::mem::replace(&mut slot.content, Content::Free(free)) else {
            unreachable!("checked above")
        };
        self.free = key.index;
        self.len -= 1;
        Some(value)
    }

    /// The live entry in slot `index`, for links between entries that the owner of the slab keeps true by itself.
    pub fn at(&self, index: u32) -> Option<&T> {
        match &self.slot(index)?.content {
            Content::Full(value) => Some(value),
            Content::Free(_) => None,
        }
    }

    /// As [`at`](Self::at).
    pub fn at_mut(&mut self, index: u32) -> Option<&mut T> {
        match &mut self.slot_mut(index)?.content {
            Content::Full(value) => Some(value),
            Content::Free(_) => None,
        }
    }

    /// The key of the live entry in slot `index`.
    pub fn key_at(&self, index: u32) -> Option<Key> {
        match self.slot(index)? {
            Slot {
                generation,
                content: Content::Full(_),
            } => Some(Key {
                index,
                generation: *generation,
            }),
            _ => None,
        }
    }

    /// All live entries in slot order.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.chunks
            .iter()
            .flatten()
            .enumerate()
            .filter_map(|(index, slot)| match &slot.content {
                Content::Full(value) => Some((
                    Key {
                        index: index as u32,
                        generation: slot.generation,
                    },
                    value,
                )),
                Content::Free(_) => None,
            })
    }

    /// The keys of all live entries.
    pub fn keys(&self) -> Vec<Key> {
        self.iter().map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn a_stale_key_finds_nothing() {
        let mut slab = Slab::new();
        let old = slab.insert('a');
        assert_eq!(slab.remove(old), Some('a'));
        let new = slab.insert('b');
        assert_eq!(old.index, new.index, "slots are reused");
        assert_eq!((slab.get(old), slab.get(new)), (None, Some(&'b')));
        assert_eq!(slab.remove(old), None);
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(ops in prop::collection::vec((any::<bool>(), 0usize..8), 0..2000)) {
            let (mut slab, mut model, mut gone) = (Slab::new(), HashMap::new(), Vec::new());
            for (serial, (insert, pick)) in ops.into_iter().enumerate() {
                if insert || model.is_empty() {
                    prop_assert!(model.insert(slab.insert(serial), serial).is_none());
                } else {
                    let mut keys: Vec<Key> = model.keys().copied().collect();
                    keys.sort();
                    let key = keys[pick % keys.len()];
                    prop_assert_eq!(slab.remove(key), model.remove(&key));
                    gone.push(key);
                }
                prop_assert_eq!(slab.len(), model.len());
            }
            prop_assert!(gone.iter().all(|&key| slab.get(key).is_none()));
            prop_assert!(model.iter().all(|(&key, value)| slab.get(key) == Some(value)));
            prop_assert_eq!(slab.iter().map(|(key, &value)| (key, value)).collect::<HashMap<_, _>>(), model);
        }
    }
}
