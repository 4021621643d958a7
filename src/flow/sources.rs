//! Sessions of one source address at one listener, so that a source at its cap evicts its own and nobody else's.

use std::hash::BuildHasher;

use hashbrown::HashTable;

use super::list::{Ends, NONE};

#[derive(Debug)]
struct Source {
    listener: u32,
    ip: [u64; 2],
    /// Sessions; `head` links free entries while the entry is free.
    ends: Ends,
}

/// Only sources with a session have an entry.
#[derive(Debug)]
pub(super) struct Sources {
    entries: Vec<Source>,
    index: HashTable<u32>,
    free: u32,
}

impl Sources {
    pub fn new() -> Self {
        Self {
            entries: Vec::new(),
            index: HashTable::new(),
            free: NONE,
        }
    }

    pub fn find<S: BuildHasher>(&self, hasher: &S, listener: u32, ip: [u64; 2]) -> Option<u32> {
        let entries = &self.entries;
        self.index
            .find(hasher.hash_one((listener, ip)), |&ix| {
                let entry = &entries[ix as usize];
                entry.listener == listener && entry.ip == ip
            })
            .copied()
    }

    pub fn find_or_add<S: BuildHasher>(&mut self, hasher: &S, listener: u32, ip: [u64; 2]) -> u32 {
        if let Some(ix) = self.find(hasher, listener, ip) {
            return ix;
        }
        let entry = Source {
            listener,
            ip,
            ends: Ends::EMPTY,
        };
        let ix = match self.free {
            NONE => {
                self.entries.push(entry);
                (self.entries.len() - 1) as u32
            }
            ix => {
                self.free = self.entries[ix as usize].ends.head;
                self.entries[ix as usize] = entry;
                ix
            }
        };
        let entries = &self.entries;
        self.index.insert_unique(hasher.hash_one((listener, ip)), ix, |&ix| {
            let entry = &entries[ix as usize];
            hasher.hash_one((entry.listener, entry.ip))
        });
        ix
    }

    pub fn ends(&mut self, ix: u32) -> &mut Ends {
        &mut self.entries[ix as usize].ends
    }

    /// Forgets the source when it has no session left.
    pub fn release<S: BuildHasher>(&mut self, hasher: &S, ix: u32) {
        let entry = &self.entries[ix as usize];
        if entry.ends.len > 0 {
            return;
        }
        let hash = hasher.hash_one((entry.listener, entry.ip));
        if let Ok(found) = self.index.find_entry(hash, |&other| other == ix) {
            found.remove();
        }
        self.entries[ix as usize].ends.head = self.free;
        self.free = ix;
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }
}
