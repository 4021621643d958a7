//! Tells many readers, without a lock, that something newer is there: the newest wins, none in between need be seen.
//!
//! The value itself lies in a slot beside it (an [`ArcSwap`](arc_swap::ArcSwap) in [`link`](crate::link)); each value knows
//! its version. The writer fills the slot first and then announces the version, so whoever sees a version finds a value that
//! is at least as new. A reader may find a newer value than the version told it of: it then looks once more than needed.
//!
//! `models/` runs this file under loom.

use super::atomic::{AtomicU64, Ordering};

/// The version of the newest value. Versions rise from 1; there is one writer.
#[derive(Debug, Default)]
pub struct Latest(AtomicU64);

impl Latest {
    /// Announces `version`, whose value `store` puts into the slot.
    pub fn publish(&self, version: u64, store: impl FnOnce()) {
        store();
        self.0.store(version, Ordering::Release);
    }

    /// What `load` takes out of the slot, if that may be newer than `version`.
    pub fn newer_than<T>(&self, version: u64, load: impl FnOnce() -> T) -> Option<T> {
        (self.0.load(Ordering::Acquire) != version).then(load)
    }
}
