//! The search for the least costly backend, shared by `least_conn`, `least_time` and `random`.
//!
//! A cost is a fraction: a numerator that the algorithm makes of a backend's load, over its effective weight. Fractions
//! are compared by cross-multiplication, so there is no rounding.
//!
//! *Few candidates*: an exact scan. Those that tie with the best take turns by smooth weighted rotation (as nginx does).
//! An algorithm may call backends equals that are not equal in cost: under `(active + 1) / weight` an idle heavy backend
//! always beats an idle light one, so a service whose connections never overlap would only ever use the heaviest.
//! Idle backends are therefore equals, and share new work by weight.
//!
//! *Many candidates*: reading a thousand counters that other cores write costs more than it gains. Two weighted draws and
//! the runner-up of the last pick compete instead (Mitzenmacher, Prabhakar and Shah, "Load balancing with memory", 2002:
//! one remembered choice is worth more than another draw). Draws are by weight, so an idle first draw is taken as it is.

use std::cmp::Ordering;

use super::alias::Alias;
use super::explain::{Note, Reason, Trace};
use super::{Cursor, Loads, Options, Shares};

/// Most candidates for an exact scan.
pub(super) const EXACT_MAX: usize = 64;

/// Load over effective weight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    /// What the algorithm makes of the load.
    pub(super) load: u64,
    /// Effective weight, above 0.
    pub(super) capacity: u64,
}

impl Cost {
    #[inline]
    fn note(self) -> Note {
        Note::Cost(self.load as f64 * f64::from(Shares::WHOLE) / self.capacity as f64)
    }

    #[inline]
    fn cmp(&self, other: &Cost) -> Ordering {
        (u128::from(self.load) * u128::from(other.capacity)).cmp(&(u128::from(other.load) * u128::from(self.capacity)))
    }
}

/// How an algorithm looks at a backend.
pub(super) trait Rule<L> {
    /// Numerator of the cost.
    fn load(&self, loads: &L, ix: usize) -> u64;

    /// Whether a backend of this load is as good as any other such backend, whatever their weights.
    fn is_idle(&self, load: u64) -> bool;
}

#[inline]
fn cost<L: Loads, R: Rule<L>>(view: &Options<'_, L>, rule: &R, ix: usize) -> Cost {
    Cost {
        load: rule.load(view.loads, ix),
        capacity: view.capacity(ix),
    }
}

/// Exact when there are few candidates or no table to draw from, sampled otherwise.
#[inline]
pub(super) fn pick<L: Loads, R: Rule<L>, T: Trace>(
    view: &Options<'_, L>,
    cursor: &mut Cursor,
    alias: Option<&Alias>,
    rule: &R,
    trace: &mut T,
) -> Option<(usize, Reason)> {
    match alias {
        Some(alias) if view.eligible.count() > EXACT_MAX => sampled(view, cursor, alias, rule, Memory::Keep, trace),
        _ => exact(view, cursor, rule, trace),
    }
}

fn exact<L: Loads, R: Rule<L>, T: Trace>(
    view: &Options<'_, L>,
    cursor: &mut Cursor,
    rule: &R,
    trace: &mut T,
) -> Option<(usize, Reason)> {
    let mut best: Option<(usize, Cost)> = None;
    let mut tied = false;
    for ix in view.eligible.iter_ones() {
        let cost = cost(view, rule, ix);
        if cost.capacity == 0 {
            continue;
        }
        trace.note(ix, cost.note());
        match best.map(|(_, least)| cost.cmp(&least)) {
            None | Some(Ordering::Less) => (best, tied) = (Some((ix, cost)), false),
            Some(Ordering::Equal) => tied = true,
            Some(Ordering::Greater) => {}
        }
    }
    let (best, least) = best?;
    let idle = rule.is_idle(least.load);
    if !tied && !idle {
        return Some((best, Reason::LeastCost));
    }
    // Loads may have moved since the first pass: then perhaps nobody ties any more, and the best of then is good enough.
    let equals = view.eligible.iter_ones().filter(|&ix| {
        let cost = cost(view, rule, ix);
        cost.capacity > 0 && ((idle && rule.is_idle(cost.load)) || cost.cmp(&least) == Ordering::Equal)
    });
    let (chosen, many) = rotate(view, &mut cursor.credits, equals).unwrap_or((best, false));
    Some((chosen, if many { Reason::Rotation } else { Reason::LeastCost }))
}

/// Smooth weighted round robin among those given (nginx's): all are credited their weight, the richest is taken and pays
/// for all. Says whether there was a choice.
pub(super) fn rotate<L: Loads>(
    view: &Options<'_, L>,
    credits: &mut Vec<i64>,
    among: impl Iterator<Item = usize>,
) -> Option<(usize, bool)> {
    credits.resize(view.members.len(), 0);
    let (mut total, mut richest, mut count) = (0, None, 0);
    for ix in among {
        let capacity = view.capacity(ix) as i64;
        credits[ix] += capacity;
        total += capacity;
        count += 1;
        if richest.is_none_or(|other: usize| credits[ix] > credits[other]) {
            richest = Some(ix);
        }
    }
    let chosen = richest?;
    credits[chosen] -= total;
    Some((chosen, count > 1))
}

/// Whether a sampled search remembers its runner-up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    Keep,
    None,
}

/// The least costly of two weighted draws and, with memory, of the last runner-up.
#[inline]
pub(super) fn sampled<L: Loads, R: Rule<L>, T: Trace>(
    view: &Options<'_, L>,
    cursor: &mut Cursor,
    alias: &Alias,
    rule: &R,
    memory: Memory,
    trace: &mut T,
) -> Option<(usize, Reason)> {
    let first = alias.eligible(view, &mut cursor.rng, None)?;
    let first_cost = cost(view, rule, first);
    trace.note(first, first_cost.note());
    if rule.is_idle(first_cost.load) {
        return Some((first, Reason::IdleDraw));
    }
    let second = alias.eligible(view, &mut cursor.rng, Some(first));
    let kept = cursor.runner_up.filter(|&ix| {
        memory == Memory::Keep && ix < view.members.len() && view.may(ix) && ix != first && Some(ix) != second
    });
    let mut best = (first, first_cost);
    let mut runner_up: Option<(usize, Cost)> = None;
    for ix in second.into_iter().chain(kept) {
        let cost = cost(view, rule, ix);
        trace.note(ix, cost.note());
        let mut beaten = (ix, cost);
        if cost.cmp(&best.1) == Ordering::Less {
            std::mem::swap(&mut best, &mut beaten);
        }
        if runner_up.is_none_or(|(_, other)| beaten.1.cmp(&other) == Ordering::Less) {
            runner_up = Some(beaten);
        }
    }
    if memory == Memory::Keep {
        cursor.runner_up = runner_up.map(|(ix, _)| ix);
    }
    Some((best.0, Reason::LeastDrawn))
}
