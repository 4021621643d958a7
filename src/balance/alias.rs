//! Weighted draws in constant time: Walker's alias method, tables built as Vose does.

use super::{Loads, Member, Options, Shares};
use crate::base::Rng;

/// Rejected draws after which a scan settles it.
const DRAWS_MAX: u32 = 32;

/// Draws an index in proportion to its weight.
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
        let mut columns: Box<[(u32, u16)]> = (0..members.len()).map(|ix| (u32::MAX, ix as u16)).collect();
        // Scaled so that a column holds `total`; integers keep the tables equal everywhere.
        let mut left: Vec<u128> = members.iter().map(|m| u128::from(m.weight) * n).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..members.len()).partition(|&ix| left[ix] < total);
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
    fn draw(&self, rng: &mut Rng) -> usize {
        let random = rng.next_u64();
        let ix = (((random >> 32) * self.columns.len() as u64) >> 32) as usize;
        let (keep, other) = self.columns[ix];
        if (random as u32) < keep { ix } else { usize::from(other) }
    }

    /// An eligible backend other than `not`, in proportion to effective weights; `None` when there is none.
    ///
    /// Draws are rejected until one fits. When most of the weight is out, a scan over the eligible ones takes over.
    #[inline]
    pub(super) fn eligible<L: Loads>(&self, view: &Options<'_, L>, rng: &mut Rng, not: Option<usize>) -> Option<usize> {
        for _ in 0..DRAWS_MAX {
            let ix = self.draw(rng);
            if view.may(ix) && Some(ix) != not {
                let share = view.shares.get(ix);
                if share == Shares::WHOLE || rng.below(u64::from(Shares::WHOLE)) < u64::from(share) {
                    return Some(ix);
                }
            }
        }
        scan(view, rng, not)
    }
}

/// The same draw by a single pass (a weighted reservoir of one).
#[cold]
fn scan<L: Loads>(view: &Options<'_, L>, rng: &mut Rng, not: Option<usize>) -> Option<usize> {
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

#[cfg(test)]
mod tests {
    use super::super::Mask;
    use super::super::tests::{Fake, members};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The columns of the table add up to the weights exactly (to 2^-32). Broken on purpose: donor not reduced.
        #[test]
        fn columns_add_up_to_weights(weights in proptest::collection::vec(0u32..1000, 1..200)) {
            prop_assume!(weights.iter().any(|&weight| weight > 0));
            let (n, alias) = (weights.len(), Alias::new(&members(&weights)));
            let mut got = vec![0f64; n];
            for (ix, &(keep, other)) in alias.columns.iter().enumerate() {
                let keep = f64::from(keep) / f64::from(u32::MAX);
                got[ix] += keep;
                got[usize::from(other)] += 1.0 - keep;
            }
            let total: u32 = weights.iter().sum();
            for (ix, &weight) in weights.iter().enumerate() {
                let wanted = n as f64 * f64::from(weight) / f64::from(total);
                prop_assert!((got[ix] - wanted).abs() < 1e-5, "{} {} {}", ix, got[ix], wanted);
            }
        }
    }

    /// Nearly all weight is out, so draws fail and the scan decides, by weight.
    #[test]
    fn the_scan_draws_by_weight_too() {
        let mut weights = vec![1_000_000; 100];
        weights[..3].copy_from_slice(&[1, 2, 5]);
        let members = members(&weights);
        let eligible = Mask::from_fn(100, |ix| ix < 3);
        let (alias, loads, shares) = (Alias::new(&members), Fake::new(&[0; 100]), Shares::full());
        let view = Options {
            members: &members,
            loads: &loads,
            shares: &shares,
            eligible: &eligible,
        };
        let (mut rng, mut counts) = (crate::base::Rng::new(4), [0f64; 3]);
        for _ in 0..40_000 {
            counts[alias.eligible(&view, &mut rng, None).unwrap()] += 1.0;
        }
        for (got, wanted) in counts.iter().zip([5_000.0, 10_000.0, 25_000.0]) {
            assert!((got - wanted).abs() < 600.0, "{counts:?}");
        }
        assert_eq!(alias.eligible(&view, &mut rng, Some(2)).map(|ix| ix < 2), Some(true));
    }
}
