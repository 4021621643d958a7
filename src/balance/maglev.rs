//! `source_hash`: a Maglev table.
use super::explain::{Note, Reason, Trace};
use super::hash::{below, mix2};
use super::{Loads, Member, Shares, View};

/// Slots of a table: a prime well above the number of backends.
pub const SLOTS: usize = 65_537;

/// Probes past the own slot after which the rendezvous score decides.
const PROBES_MAX: u32 = 64;

const FREE: u16 = u16::MAX;

/// Flat table: slot to index of a backend.
#[derive(Debug)]
pub(super) struct Maglev {
    slots: Box<[u16]>,
    bound: Option<f64>,
    weight: u64,
}

impl Maglev {
    pub(super) fn new(members: &[Member], bound: Option<f64>) -> Maglev {
        let weight = members.iter().map(|member| u64::from(member.weight)).sum();
        Maglev {
            slots: fill(members),
            bound,
            weight,
        }
    }

    /// Slot of a key; `None` if nobody has a weight.
    #[inline]
    pub(super) fn slot(&self, key: u64) -> Option<usize> {
        (!self.slots.is_empty()).then_some((key % SLOTS as u64) as usize)
    }

    #[inline]
    pub(super) fn pick<L: Loads, T: Trace>(
        &self,
        view: &View<'_, L>,
        key: u64,
        trace: &mut T,
    ) -> Option<(usize, Reason)> {
        let mut slot = self.slot(key)?;
        let bounds = self
            .bound
            .map(|factor| Bounds::new(view, factor, self.weight));
        let admits = |ix: usize, trace: &mut T| {
            view.eligible.get(ix)
                && ramped(view, ix, key, trace)
                && under(view, ix, bounds.as_ref(), trace)
        };
        let ix = usize::from(self.slots[slot]);
        if admits(ix, trace) {
            return Some((ix, Reason::Slot));
        }
        let step = 1 + below(mix2(key, 1), SLOTS as u64 - 1) as usize;
        for probe in 1..=PROBES_MAX {
            slot += step;
            if slot >= SLOTS {
                slot -= SLOTS;
            }
            let ix = usize::from(self.slots[slot]);
            if admits(ix, trace) {
                return Some((ix, Reason::Probed(probe)));
            }
        }
        rendezvous(view, key, |ix| under(view, ix, bounds.as_ref(), trace))
            .or_else(|| rendezvous(view, key, |_| true))
            .map(|ix| (ix, Reason::Rendezvous))
    }
}

/// Caps of `bounded_load` at this moment.
struct Bounds {
    /// Connections a unit of weight may have.
    per_weight: f64,
}

impl Bounds {
    fn new<L: Loads>(view: &View<'_, L>, factor: f64, weight_total: u64) -> Bounds {
        let out: u64 = view
            .eligible
            .iter_zeros()
            .map(|ix| u64::from(view.members[ix].weight))
            .sum();
        let weight = (weight_total - out).max(1);
        Bounds {
            per_weight: factor * (view.loads.total(view.eligible) + 1) as f64 / weight as f64,
        }
    }

    fn cap(&self, weight: u32) -> u64 {
        (self.per_weight * f64::from(weight)).ceil() as u64
    }
}

#[inline]
fn ramped<L: Loads, T: Trace>(view: &View<'_, L>, ix: usize, key: u64, trace: &mut T) -> bool {
    let share = view.shares.get(ix);
    if share == Shares::WHOLE {
        return true;
    }
    let admitted =
        mix2(key, view.members[ix].identity) % u64::from(Shares::WHOLE) < u64::from(share);
    if !admitted {
        trace.note(ix, Note::Ramping(share));
    }
    admitted
}

#[inline]
fn under<L: Loads, T: Trace>(
    view: &View<'_, L>,
    ix: usize,
    bounds: Option<&Bounds>,
    trace: &mut T,
) -> bool {
    let Some(bounds) = bounds else { return true };
    let (active, cap) = (view.loads.active(ix), bounds.cap(view.members[ix].weight));
    let under = u64::from(active) < cap;
    if !under {
        trace.note(ix, Note::OverBound { active, cap });
    }
    under
}

/// The eligible backend with the highest weighted rendezvous score for this key.
#[cold]
fn rendezvous<L: Loads>(
    view: &View<'_, L>,
    key: u64,
    mut admits: impl FnMut(usize) -> bool,
) -> Option<usize> {
    let mut best: Option<(f64, usize)> = None;
    for ix in view.eligible.iter_ones() {
        let member = view.members[ix];
        if member.weight == 0 || !admits(ix) {
            continue;
        }
        // -ln(u) / w, u uniform in (0, 1): the least belongs to each in proportion to its weight.
        let uniform = ((mix2(key, member.identity) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let score = -uniform.ln() / f64::from(member.weight);
        if best.is_none_or(|(least, _)| score < least) {
            best = Some((score, ix));
        }
    }
    best.map(|(_, ix)| ix)
}

fn fill(members: &[Member]) -> Box<[u16]> {
    let mut order: Vec<usize> = (0..members.len())
        .filter(|&ix| members[ix].weight > 0)
        .collect();
    order.sort_by_key(|&ix| members[ix].identity);
    let Some(heaviest) = order.iter().map(|&ix| u64::from(members[ix].weight)).max() else {
        return Box::default();
    };
    let mut slots = vec![FREE; SLOTS].into_boxed_slice();
    let mut walks: Vec<(usize, usize)> = order
        .iter()
        .map(|&ix| {
            let identity = members[ix].identity;
            (
                below(mix2(identity, 2), SLOTS as u64) as usize,
                1 + below(mix2(identity, 3), SLOTS as u64 - 1) as usize,
            )
        })
        .collect();
    let (mut filled, mut round) = (0, 0u64);
    loop {
        for (walk, &ix) in walks.iter_mut().zip(&order) {
            let weight = u64::from(members[ix].weight);
            if (round + 1) * weight / heaviest == round * weight / heaviest {
                continue;
            }
            while slots[walk.0] != FREE {
                walk.0 = (walk.0 + walk.1) % SLOTS;
            }
            slots[walk.0] = ix as u16;
            filled += 1;
            if filled == SLOTS {
                return slots;
            }
        }
        round += 1;
    }
}
