//! Why a backend was chosen: notes that the algorithms leave on their way.
//!
//! The algorithms are generic over a trace; a pick passes `()`, which costs nothing, `weir explain` passes a list. So
//! an explanation comes from the code that balances, not from a second account of it.

use std::fmt;

use super::Balance;

/// A decision with its reasons.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The algorithm that chose.
    pub balance: Balance,
    /// Key of the client; counts for `source_hash` only.
    pub key: u64,
    /// Slot of the key in the hash table (`source_hash` with more than one eligible backend or not).
    pub slot: Option<usize>,
    /// Index of the backend; `None` = nobody may take work.
    pub chosen: Option<usize>,
    /// What decided; `None` exactly when nobody was chosen.
    pub reason: Option<Reason>,
    /// What was seen of single backends, in the order in which the algorithm looked at them. One may appear repeatedly.
    pub notes: Vec<(usize, Note)>,
}

/// What decided the choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Nobody else is eligible.
    OnlyOne,
    /// Least cost of all.
    LeastCost,
    /// Equals take turns by weight.
    Rotation,
    /// Idle and drawn by weight.
    IdleDraw,
    /// Least cost of those drawn.
    LeastDrawn,
    /// Next in the schedule.
    Schedule,
    /// The key's own slot.
    Slot,
    /// The key's own slot is taken by one who cannot have it; this one came after so many probes.
    Probed(u32),
    /// Highest rendezvous score, after probing found nobody.
    Rendezvous,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::OnlyOne => f.write_str("the only eligible backend"),
            Reason::LeastCost => f.write_str("least cost"),
            Reason::Rotation => f.write_str("next among equals"),
            Reason::IdleDraw => f.write_str("idle, drawn by weight"),
            Reason::LeastDrawn => f.write_str("least cost of those drawn"),
            Reason::Schedule => f.write_str("next in the schedule"),
            Reason::Slot => f.write_str("owner of the hash slot"),
            Reason::Probed(1) => f.write_str("found 1 probe past the hash slot"),
            Reason::Probed(n) => write!(f, "found {n} probes past the hash slot"),
            Reason::Rendezvous => f.write_str("highest rendezvous score among the eligible"),
        }
    }
}

/// What was seen of one backend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Note {
    /// Outside the mask: down, draining, the other tier, or tried before.
    Ineligible,
    /// Its weight is 0: it gets no new work.
    NoWeight,
    /// Compared at this cost (lower wins). The scale is the algorithm's own.
    Cost(f64),
    /// Passed over because it is ramping up and this pick is not in its share (of 1024).
    Ramping(u32),
    /// Passed over because of `bounded_load`.
    OverBound {
        /// Connections it has.
        active: u32,
        /// Connections it may have at this total.
        cap: u64,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Ineligible => f.write_str("not eligible"),
            Note::NoWeight => f.write_str("weight 0"),
            Note::Cost(cost) => write!(f, "cost {cost:.3}"),
            Note::Ramping(share) => write!(f, "ramping up, takes {share}/1024 of its share"),
            Note::OverBound { active, cap } => {
                write!(f, "at its bound: {active} connections of {cap}")
            }
        }
    }
}

/// Receives notes; `()` drops them.
pub(super) trait Trace {
    fn note(&mut self, ix: usize, note: Note);
}

impl Trace for () {
    #[inline]
    fn note(&mut self, _: usize, _: Note) {}
}

impl Trace for Vec<(usize, Note)> {
    fn note(&mut self, ix: usize, note: Note) {
        self.push((ix, note));
    }
}
