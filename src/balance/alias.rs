//! Weighted draws in constant time: Walker's alias method, tables built as Vose does.

use super::hash::SplitMix;
use super::{Loads, Member, Shares, View};

/// Rejected draws after which a scan settles it.
const DRAWS_MAX: u32 = 32;

/// Draws an index in proportion to its weight.
#[derive(Debug)]
pub(super) struct Alias {
    /// A column: keep its own index below this threshold (in 2^-32), else take the other.
    columns: Box<[(u32, u16)]>,
}

impl Alias {
    pub(super) fn new(members: &[Member]) -> Alias {
        let (n, total) = (
            members.len() as u128,
            members.iter().map(|m| u128::from(m.weight)).sum::<u128>(),
        );
        let mut columns: Box<[(u32, u16)]> =
            (0..members.len()).map(|ix| (u32::MAX, ix as u16)).collect();
        // Scaled so that a column holds `total`; integers keep the tables equal everywhere.
        let mut left: Vec<u128> = members.iter().map(|m| u128::from(m.weight) * n).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..members.len()).partition(|&ix| left[ix] < total);
        while let (Some(&donor), Some(ix)) = (large.last(), small.pop()) {
            columns[ix] = (((left[ix] << 32) / total) as u32, donor as u16);
            left[donor] -= total - left[ix];
            if left[donor] < total {
                large.pop();
                small.push(donor);
            }
        }
        Alias { columns }
    }

    /// One draw, eligible or not.
    #[inline]
    fn draw(&self, rng: &mut SplitMix) -> usize {
        let random = rng.next();
        let ix = (((random >> 32) * self.columns.len() as u64) >> 32) as usize;
        let (keep, other) = self.columns[ix];
        if (random as u32) < keep {
            ix
        } else {
            usize::from(other)
        }
    }

    /// An eligible backend other than `not`, in proportion to effective weights; `None` when there is none.
    ///
    /// Draws are rejected until one fits. When most of the weight is out, a scan over the eligible ones takes over.
    #[inline]
    pub(super) fn eligible<L: Loads>(
        &self,
        view: &View<'_, L>,
        rng: &mut SplitMix,
        not: Option<usize>,
    ) -> Option<usize> {
        for _ in 0..DRAWS_MAX {
            let ix = self.draw(rng);
            if view.may(ix) && Some(ix) != not {
                let share = view.shares.get(ix);
                if share == Shares::WHOLE || rng.below(u64::from(Shares::WHOLE)) < u64::from(share)
                {
                    return Some(ix);
                }
            }
        }
        scan(view, rng, not)
    }
}

/// The same draw by a single pass (a weighted reservoir of one).
#[cold]
fn scan<L: Loads>(view: &View<'_, L>, rng: &mut SplitMix, not: Option<usize>) -> Option<usize> {
    let (mut total, mut chosen) = (0, None);
    for ix in view.eligible.iter_ones().filter(|&ix| Some(ix) != not) {
        let capacity = view.capacity(ix);
        total += capacity;
        if capacity > 0 && rng.below(total) < capacity {
            chosen = Some(ix);
        }
    }
    chosen
}
