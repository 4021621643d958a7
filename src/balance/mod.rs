//! Choosing a backend: pure, one file an algorithm.
//!
//! A [`Picker`] is built once from a pool's backends and its algorithm and is immutable from then on (it sits in a
//! snapshot; a clone shares its tables). What changes from pick to pick comes in from outside: the worker's [`Cursor`],
//! the shared [`Loads`], the [`Shares`] of backends that are ramping up, and the [`Mask`] of eligible backends (those
//! that health lets serve, less those tried before). A retry is the same call with the tried backends masked out. No backend
//! is `None`.
//!
//! | algorithm | up to 64 eligible | beyond | file |
//! |---|---|---|---|
//! | `least_conn` | exact scan | two weighted draws and one remembered | [`least_conn`] |
//! | `least_time` | exact scan | two weighted draws and one remembered | [`least_time`] |
//! | `round_robin` | next slot of a smooth schedule | the same | [`round_robin`] |
//! | `random` | two weighted draws | the same | [`random`] |
//! | `source_hash` | Maglev slot, probed past | the same | [`maglev`] |
//!
//! Whatever the algorithm: a backend of weight 0 or outside the mask is never returned, and `None` is returned only when
//! there is no other.
//!
//! Beside the choice of a backend this layer decides whether a client may have one at all: [`limits`] (caps, rates,
//! bandwidth) and [`acl`] (allow and deny lists).

pub mod acl;
pub mod explain;
pub mod limits;
pub mod line;

mod alias;
mod hash;
mod least;
mod mask;

pub mod least_conn;
pub mod least_time;
pub mod maglev;
pub mod random;
pub mod round_robin;

use std::fmt;
use std::sync::Arc;

pub use explain::{Explanation, Note, Reason};
pub use hash::{identity, mix2, seeds, source_key};
pub use least_time::{decayed, peak_ewma};
pub use mask::Mask;

use crate::base::Rng;
use crate::config::model::{Balance, SourceHash};
use alias::Alias;
use explain::Trace;

/// Most backends of one pool: tables hold indices in 16 bits.
pub const MEMBERS_MAX: usize = u16::MAX as usize;

/// What a picker needs to know of a backend. Its index is its place in the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Stable name of the backend: [`identity`] of pool and address.
    pub identity: u64,
    /// Share of the work; 0 = none.
    pub weight: u32,
}

/// How busy and how quick the backends are right now; indices as in the pool.
///
/// Reads may be racy (relaxed atomics raised by other workers): every algorithm tolerates values that change between two
/// reads.
pub trait Loads {
    /// Live connections or sessions of this backend, all workers together.
    fn active(&self, ix: usize) -> u32;

    /// Peak-EWMA of response times in nanoseconds, decayed to now (see [`peak_ewma`], [`decayed`]); 0 = unknown.
    fn latency_ns(&self, ix: usize) -> u64;

    /// Live connections of all backends in the mask. Only `bounded_load` asks; override it where the sum is at hand.
    fn total(&self, eligible: &Mask) -> u64 {
        eligible.iter_ones().map(|ix| u64::from(self.active(ix))).sum()
    }
}

/// Shares of the configured weights that count at present: slow start.
///
/// One flat array of 1/1024ths, or nothing at all while nobody ramps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shares(Option<Arc<[u16]>>);

impl Shares {
    /// The share of a backend that does not ramp.
    pub const WHOLE: u32 = 1024;

    /// Every backend has its whole share: none is in `slow_start`.
    pub fn full() -> Shares {
        Shares(None)
    }

    /// From one share (1..=1024) a backend.
    ///
    /// Shares are relative: they are scaled so that the greatest one among the eligible is whole. So a pool that comes
    /// back as a whole ramps nobody, and the only backend left gets everything.
    pub fn new(shares: &[u32], eligible: &Mask) -> Shares {
        let clamped = |share: u32| share.clamp(1, Shares::WHOLE);
        let top = eligible
            .iter_ones()
            .filter_map(|ix| shares.get(ix))
            .map(|&share| clamped(share))
            .max()
            .unwrap_or(Shares::WHOLE);
        let scaled = |&share: &u32| (clamped(share) * Shares::WHOLE / top).clamp(1, Shares::WHOLE) as u16;
        let values: Arc<[u16]> = shares.iter().map(scaled).collect();
        if values.iter().all(|&share| u32::from(share) == Shares::WHOLE) {
            return Shares(None);
        }
        Shares(Some(values))
    }

    /// Share of one backend in 1/1024ths.
    #[inline]
    pub fn get(&self, ix: usize) -> u32 {
        match &self.0 {
            None => Shares::WHOLE,
            Some(values) => values.get(ix).map_or(Shares::WHOLE, |&share| u32::from(share)),
        }
    }
}

/// What one worker remembers of one pool between picks: its place in the schedule, its random numbers, its rotation.
///
/// A cursor outlives pickers: given one with other members or weights, it forgets what it knew of single backends and goes
/// on from its place.
#[derive(Debug, Clone)]
pub struct Cursor {
    /// Of the picker that the credits and the runner-up belong to.
    fingerprint: u64,
    rng: Rng,
    /// Round robin: next slot of the schedule, taken modulo its length.
    position: usize,
    /// Smooth rotation among equals, one credit a backend.
    credits: Vec<i64>,
    /// Sampling: the best backend that was seen and not taken last time.
    runner_up: Option<usize>,
}

impl Cursor {
    /// A cursor of its own random sequence. Give each worker another seed, so that workers do not march in step.
    pub fn new(seed: u64) -> Cursor {
        let mut rng = Rng::new(seed);
        Cursor {
            fingerprint: 0,
            position: rng.next_u64() as usize >> 16,
            rng,
            credits: Vec::new(),
            runner_up: None,
        }
    }
}

/// Everything about the pool that a pick reads and none of it writes.
struct Options<'a, L> {
    members: &'a [Member],
    loads: &'a L,
    shares: &'a Shares,
    eligible: &'a Mask,
}

impl<L: Loads> Options<'_, L> {
    /// Effective weight in 1/1024ths of a unit of weight; 0 = takes no work.
    #[inline]
    fn capacity(&self, ix: usize) -> u64 {
        u64::from(self.members[ix].weight) * u64::from(self.shares.get(ix))
    }

    /// Whether this backend may be chosen at all.
    #[inline]
    fn may(&self, ix: usize) -> bool {
        self.eligible.get(ix) && self.members[ix].weight > 0
    }
}

/// A pool's algorithm and its tables: immutable, cheap to clone.
#[derive(Clone)]
pub struct Picker(Arc<Tables>);

struct Tables {
    members: Box<[Member]>,
    /// Differs between pickers whose members differ in order, identity or weight.
    fingerprint: u64,
    balance: Balance,
    algorithm: Algorithm,
}

enum Algorithm {
    LeastConn(Option<Alias>),
    LeastTime(Option<Alias>),
    RoundRobin(round_robin::Schedule),
    Random(Alias),
    SourceHash(maglev::Maglev),
}

impl fmt::Debug for Picker {
    /// Without the tables: they are long and follow from the members.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Picker")
            .field("balance", &self.0.balance)
            .field("members", &self.0.members.len())
            .finish()
    }
}

impl Picker {
    /// Builds the tables of an algorithm (the costliest, `source_hash` with 1,000 backends, takes milliseconds).
    ///
    /// # Panics
    /// With more than [`MEMBERS_MAX`] members.
    pub fn new(balance: Balance, source_hash: &SourceHash, members: &[Member]) -> Picker {
        assert!(
            members.len() <= MEMBERS_MAX,
            "a pool holds at most {MEMBERS_MAX} backends, got {}",
            members.len()
        );
        let sampled = || (members.len() > least::EXACT_MAX).then(|| Alias::new(members));
        let algorithm = match balance {
            Balance::LeastConn => Algorithm::LeastConn(sampled()),
            Balance::LeastTime => Algorithm::LeastTime(sampled()),
            Balance::RoundRobin => Algorithm::RoundRobin(round_robin::Schedule::new(members)),
            Balance::Random => Algorithm::Random(Alias::new(members)),
            Balance::SourceHash => Algorithm::SourceHash(maglev::Maglev::new(members, source_hash.bounded_load)),
        };
        let fingerprint = members.iter().fold(members.len() as u64, |hash, member| {
            hash::mix2(hash::mix2(hash, member.identity), u64::from(member.weight))
        });
        Picker(Arc::new(Tables {
            members: members.into(),
            fingerprint,
            balance,
            algorithm,
        }))
    }

    /// The members this picker was built from.
    pub fn members(&self) -> &[Member] {
        &self.0.members
    }

    /// The algorithm this picker was built for.
    pub fn balance(&self) -> Balance {
        self.0.balance
    }

    /// The table that a client's key looks into, slot to index of a backend, for an engine that looks for itself: slot
    /// `key % len`, and past whoever is not eligible (see [`maglev`]). `None` where no table decides, or it has no slot.
    pub fn table(&self) -> Option<&[u16]> {
        match &self.0.algorithm {
            Algorithm::SourceHash(maglev) => maglev.table(),
            _ => None,
        }
    }

    /// What `bounded_load` allows, in 1/65536ths of the mean; `None` = any load.
    pub fn bound(&self) -> Option<u32> {
        match &self.0.algorithm {
            Algorithm::SourceHash(maglev) => maglev.bound(),
            _ => None,
        }
    }

    /// Chooses a backend for a client; `None` when nobody in `eligible` has a weight above 0.
    ///
    /// `key` is the client's [`source_key`]; only `source_hash` looks at it.
    ///
    /// # Panics
    /// If `eligible` has another length than the members.
    #[inline]
    pub fn pick<L: Loads>(
        &self,
        cursor: &mut Cursor,
        key: u64,
        loads: &L,
        shares: &Shares,
        eligible: &Mask,
    ) -> Option<usize> {
        self.decide(cursor, key, loads, shares, eligible, &mut ())
            .map(|(ix, _)| ix)
    }

    /// Makes the same decision through the same code and tells how it came about.
    ///
    /// The cursor moves as it does in [`Picker::pick`]; give a clone to leave it alone.
    pub fn explain<L: Loads>(
        &self,
        cursor: &mut Cursor,
        key: u64,
        loads: &L,
        shares: &Shares,
        eligible: &Mask,
    ) -> Explanation {
        let mut notes = Vec::new();
        for ix in (0..self.0.members.len()).filter(|&ix| !eligible.get(ix)) {
            notes.note(ix, Note::Ineligible);
        }
        for ix in eligible.iter_ones().filter(|&ix| self.0.members[ix].weight == 0) {
            notes.note(ix, Note::NoWeight);
        }
        let chosen = self.decide(cursor, key, loads, shares, eligible, &mut notes);
        let slot = match &self.0.algorithm {
            Algorithm::SourceHash(maglev) => maglev.slot(key),
            _ => None,
        };
        Explanation {
            balance: self.0.balance,
            key,
            slot,
            chosen: chosen.map(|(ix, _)| ix),
            reason: chosen.map(|(_, reason)| reason),
            notes,
        }
    }

    #[inline]
    fn decide<L: Loads, T: Trace>(
        &self,
        cursor: &mut Cursor,
        key: u64,
        loads: &L,
        shares: &Shares,
        eligible: &Mask,
        trace: &mut T,
    ) -> Option<(usize, Reason)> {
        let tables = &*self.0;
        assert_eq!(eligible.len(), tables.members.len(), "the mask belongs to another pool");
        if cursor.fingerprint != tables.fingerprint {
            cursor.fingerprint = tables.fingerprint;
            cursor.credits.clear();
            cursor.runner_up = None;
        }
        let view = Options {
            members: &tables.members,
            loads,
            shares,
            eligible,
        };
        match eligible.count() {
            0 => return None,
            1 => {
                return eligible
                    .iter_ones()
                    .find(|&ix| view.may(ix))
                    .map(|ix| (ix, Reason::OnlyOne));
            }
            _ => {}
        }
        match &tables.algorithm {
            Algorithm::LeastConn(alias) => least_conn::pick(&view, cursor, alias.as_ref(), trace),
            Algorithm::LeastTime(alias) => least_time::pick(&view, cursor, alias.as_ref(), trace),
            Algorithm::RoundRobin(schedule) => round_robin::pick(&view, cursor, schedule, trace),
            Algorithm::Random(alias) => random::pick(&view, cursor, alias, trace),
            Algorithm::SourceHash(maglev) => maglev.pick(&view, key, trace),
        }
    }
}

#[cfg(test)]
mod tests;
