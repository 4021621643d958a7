//! `random`: two different backends drawn by weight, the one with fewer connections in proportion to weight wins.
//!
//! Without shared state beyond the counters, and never more than a few reads whatever the size of the pool ("power of two
//! choices", Mitzenmacher 2001). An idle first draw is taken as it is, so at low load the shares are the weights.

use super::alias::Alias;
use super::explain::{Reason, Trace};
use super::least::{self, Memory};
use super::least_conn::Connections;
use super::{Cursor, Loads, Options};

#[inline]
pub(super) fn pick<L: Loads, T: Trace>(
    view: &Options<'_, L>,
    cursor: &mut Cursor,
    alias: &Alias,
    trace: &mut T,
) -> Option<(usize, Reason)> {
    least::sampled(view, cursor, alias, &Connections, Memory::None, trace)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Fake, picker};
    use super::super::{Balance, Mask, Shares};
    use super::*;
    use proptest::prelude::*;

    /// With two backends both are always drawn, so the choice is exact: weights, active, chosen.
    #[test]
    fn of_two_the_less_loaded_wins() {
        let rows: [(&[u32], &[u32], usize); 4] = [
            (&[1, 1], &[5, 4], 1),
            (&[1, 1], &[4, 5], 0),
            (&[3, 1], &[5, 2], 0),
            (&[3, 1], &[7, 1], 1),
        ];
        for (weights, active, wanted) in rows {
            let picker = picker(Balance::Random, weights);
            for seed in 0..50 {
                let got = picker.pick(
                    &mut Cursor::new(seed),
                    0,
                    &Fake::new(active),
                    &Shares::full(),
                    &Mask::full(2),
                );
                assert_eq!(got, Some(wanted), "{weights:?} {active:?}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// The oracle is a plain random choice with the same weights: two choices are never worse balanced, and the worst
        /// of n is within a few connections of its fair part (plain random: many standard deviations).
        /// Broken on purpose: the more loaded of the two wins.
        #[test]
        fn held_connections_are_balanced(
            weights in proptest::collection::vec(1u32..5, 2..60),
            seed in any::<u64>(),
        ) {
            let (n, total) = (weights.len(), weights.iter().sum::<u32>());
            let (picker, mut cursor) = (picker(Balance::Random, &weights), Cursor::new(seed));
            let (loads, mut plain, mut rng) = (Fake::new(&vec![0; n]), vec![0u32; n], crate::base::Rng::new(seed));
            for _ in 0..200 * total {
                loads.open(picker.pick(&mut cursor, 0, &loads, &Shares::full(), &Mask::full(n)).unwrap());
                let mut at = rng.below(u64::from(total)) as u32;
                let ix = weights.iter().position(|&w| if at < w { true } else { at -= w; false }).unwrap();
                plain[ix] += 1;
            }
            let worst = |active: &dyn Fn(usize) -> u32| {
                (0..n).map(|ix| (f64::from(active(ix)) / f64::from(weights[ix]) - 200.0).abs()).fold(0.0, f64::max)
            };
            let (two, one) = (worst(&|ix| loads.active(ix)), worst(&|ix| plain[ix]));
            prop_assert!(two <= 8.0 && two <= one + 8.0, "worst of two choices {}, of one {}", two, one);
        }
    }
}
