//! Work to be done, in order, each piece at most once.
//!
//! An edge-triggered poller tells of readiness once; whatever is left over after a budget is spent waits here, never on
//! "the kernel will tell us again".

use std::collections::VecDeque;

use super::slab::Key;

/// See the module. Membership is the caller's bit (`queued` in the entry), so that pushing costs no lookup.
#[derive(Default)]
pub struct RunQueue {
    keys: VecDeque<Key>,
}

impl RunQueue {
    /// Appends `key` unless `queued` says that it waits already; sets `queued`.
    pub fn push(&mut self, key: Key, queued: &mut bool) {
        if !std::mem::replace(queued, true) {
            self.keys.push_back(key);
        }
    }

    /// Takes the first key; the caller clears its bit.
    pub fn pop(&mut self) -> Option<Key> {
        self.keys.pop_front()
    }

    /// Keys waiting.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}
