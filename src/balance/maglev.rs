//! `source_hash`: a Maglev table, so that a client keeps its backend.
//!
//! # How it works
//!
//! A flat array of [`SLOTS`] slots names a backend each; a key looks at slot `key % SLOTS`. The table depends on the
//! identities and weights of the pool alone: not on the order of the configuration, the worker, the node or the time.
//!
//! *A backend that cannot take the key* (ineligible, still ramping up, or over its bound) is probed past, the table stays
//! as it is: the key goes on in steps of its own through the table until a slot fits. So only the keys of that backend
//! move, they spread over all others by weight instead of falling on a neighbour, and they return with it. A ramping
//! backend admits a share of its keys that only grows. When [`PROBES_MAX`] probes fail, nearly everything is out; then the
//! weighted rendezvous score over the few that are left decides, which has the same properties and costs a scan.
//!
//! *Bounded load* (Mirrokni, Thorup and Zadimoghaddam, 2018): a backend that already has `ceil(c * (total + 1) * w / W)`
//! connections, W the weight of the eligible ones, is probed past. Since c > 1 there is always one below its cap.
//!
//! # Filling the table
//!
//! Maglev (Eisenbud et al., 2016) lets backends take turns, each claiming the next free slot of its own permutation. That
//! is perfectly even, but every claim shifts those of the others: at 1,000 backends, removing one moved 6.8 times its
//! own share of the slots (1.6 times at 100). Rendezvous hashing moves nothing else, but leaves binomial unevenness.
//! This table stands between them:
//!
//! 1. *Race.* Each backend throws at pseudo-random slots at a rate that is its weight; a free slot that is hit is its own. A
//!    throw depends on nobody else, hence a slot goes to the same backend whoever else takes part, as in rendezvous hashing.
//!    A backend with [`SLACK`] slots more than its quota stops.
//! 2. *Levelling.* The last slots (at most [`LEVELLED_MAX`], fewer with many backends) are dealt by rendezvous score to
//!    those short of their quota.
//!
//! Removing one of N equals then moves at most 1.5 / N of the keys (any one: its share and 0.5 / N), and up to 20 backends
//! the slots match the weights within 1 % of each backend's own share. With 1,000, a backend may have up to a tenth more than
//! its quota and some have a quarter less: 65 slots are few. The tests below hold these figures.

use super::explain::{Note, Reason, Trace};
use super::hash::mix2;
use super::{Loads, Member, Options, Shares};
use crate::base::Rng;
use crate::base::rng::below;

/// Slots of a table: a prime well above the number of backends.
pub const SLOTS: usize = 65_537;

/// Probes past the own slot after which the rendezvous score decides.
pub const PROBES_MAX: u32 = 64;

/// Slots that a backend may have beyond its quota.
pub const SLACK: usize = 6;

/// Most slots that are dealt to those short of their quota.
pub const LEVELLED_MAX: usize = 1024;

/// `bounded_load` of 1, as it is reckoned with.
const BOUND_ONE: u32 = 1 << 16;

/// Bound on the race, in throws for each slot; coupon collecting needs about ln(SLOTS) = 11.
const ROUNDS_MAX: usize = 64;

const FREE: u16 = u16::MAX;

/// Flat table: slot to index of a backend.
pub(super) struct Maglev {
    slots: Box<[u16]>,
    /// In 1/65536ths of the mean.
    bound: Option<u32>,
    weight: u64,
}

impl Maglev {
    pub(super) fn new(members: &[Member], bound: Option<f64>) -> Maglev {
        let weight = members.iter().map(|member| u64::from(member.weight)).sum();
        Maglev {
            slots: fill(members),
            // Rounded down: nobody has more.
            bound: bound.map(|times| (times * f64::from(BOUND_ONE)) as u32),
            weight,
        }
    }

    /// All slots; `None` if nobody has a weight.
    pub(super) fn table(&self) -> Option<&[u16]> {
        (!self.slots.is_empty()).then_some(&*self.slots)
    }

    /// See [`Picker::bound`](super::Picker::bound).
    pub(super) fn bound(&self) -> Option<u32> {
        self.bound
    }

    /// Slot of a key; `None` if nobody has a weight.
    #[inline]
    pub(super) fn slot(&self, key: u64) -> Option<usize> {
        (!self.slots.is_empty()).then_some((key % SLOTS as u64) as usize)
    }

    #[inline]
    pub(super) fn pick<L: Loads, T: Trace>(
        &self,
        view: &Options<'_, L>,
        key: u64,
        trace: &mut T,
    ) -> Option<(usize, Reason)> {
        let mut slot = self.slot(key)?;
        let bounds = self.bound.map(|factor| Bounds::new(view, factor, self.weight));
        let admits = |ix: usize, trace: &mut T| {
            view.eligible.get(ix) && ramped(view, ix, key, trace) && under(view, ix, bounds.as_ref(), trace)
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

/// Caps of `bounded_load` at this moment: whole numbers, so that the kernel engine's program comes to the same.
struct Bounds {
    /// In 1/65536ths of the mean.
    bound: u32,
    /// Connections of those that are eligible, and the one to come.
    connections: u64,
    /// Their weight.
    weight: u64,
}

impl Bounds {
    fn new<L: Loads>(view: &Options<'_, L>, bound: u32, weight_total: u64) -> Bounds {
        let out: u64 = view
            .eligible
            .iter_zeros()
            .map(|ix| u64::from(view.members[ix].weight))
            .sum();
        Bounds {
            bound,
            connections: view.loads.total(view.eligible) + 1,
            weight: (weight_total - out).max(1),
        }
    }

    /// `ceil(bound * connections * weight / weight of all)`.
    fn cap(&self, weight: u32) -> u64 {
        let product = u128::from(self.bound) * u128::from(self.connections) * u128::from(weight);
        product.div_ceil(u128::from(BOUND_ONE) * u128::from(self.weight)) as u64
    }
}

#[inline]
fn ramped<L: Loads, T: Trace>(view: &Options<'_, L>, ix: usize, key: u64, trace: &mut T) -> bool {
    let share = view.shares.get(ix);
    if share == Shares::WHOLE {
        return true;
    }
    let admitted = mix2(key, view.members[ix].identity) % u64::from(Shares::WHOLE) < u64::from(share);
    if !admitted {
        trace.note(ix, Note::Ramping(share));
    }
    admitted
}

#[inline]
fn under<L: Loads, T: Trace>(view: &Options<'_, L>, ix: usize, bounds: Option<&Bounds>, trace: &mut T) -> bool {
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
fn rendezvous<L: Loads>(view: &Options<'_, L>, key: u64, mut admits: impl FnMut(usize) -> bool) -> Option<usize> {
    let mut best: Option<(u64, Member, usize)> = None;
    for ix in view.eligible.iter_ones() {
        let member = view.members[ix];
        if member.weight == 0 || !admits(ix) {
            continue;
        }
        // -ln(u) / w, u uniform in (0, 1): the least belongs to each in proportion to its weight.
        let drawn = distance(mix2(key, member.identity) >> 11);
        let is_nearer = |(least, other, _): (u64, Member, usize)| {
            let (score, others) = (drawn * u64::from(other.weight), least * u64::from(member.weight));
            score < others || score == others && member.identity < other.identity
        };
        if best.is_none_or(is_nearer) {
            best = Some((drawn, member, ix));
        }
    }
    best.map(|(_, _, ix)| ix)
}

/// -ln(u) in 1/2^32, u = (drawn + 1/2) / 2^53, `drawn` below 2^53. In whole numbers: engines and nodes of any kind come to the same.
fn distance(drawn: u64) -> u64 {
    const ONE: u64 = 1 << 32;
    const LN_2: u64 = 2_977_044_472;
    const WHOLE: u64 = 1 << 54;
    let y = 2 * drawn + 1;
    let halvings = u64::from((y << 10).leading_zeros());
    let y = y << halvings;
    // -ln(m) = 2 artanh((1 - m) / (1 + m)), 1/2 <= m < 1, by its series.
    let z = ((WHOLE - y) << 10) / ((WHOLE + y) >> 22);
    let t = (z * z) >> 32;
    let odd = [13, 11, 9, 7, 5, 3, 1];
    let s = odd.into_iter().fold(ONE / 15, |s, n| ONE / n + ((s * t) >> 32));
    halvings * LN_2 + 2 * ((z * s) >> 32)
}

/// One backend in the race for slots.
struct Racer {
    ix: usize,
    identity: u64,
    weight: u64,
    /// Fraction of a throw that it has saved up.
    saved: u64,
    throws: Rng,
    slots: usize,
    quota: usize,
}

fn fill(members: &[Member]) -> Box<[u16]> {
    let total: u64 = members.iter().map(|member| u64::from(member.weight)).sum();
    if total == 0 {
        return Box::default();
    }
    let mut racers: Vec<Racer> = (0..members.len())
        .filter(|&ix| members[ix].weight > 0)
        .map(|ix| {
            let (identity, weight) = (members[ix].identity, u64::from(members[ix].weight));
            // The fraction is rounded up for some and down for others, by identity: if all were rounded alike, one
            // backend leaving could raise the quota of every other by a slot, and move that many.
            let quota = (u128::from(weight * SLOTS as u64) << 32) / u128::from(total);
            let quota = (((quota + u128::from(mix2(identity, 4) >> 32)) >> 32) as usize).max(1);
            let throws = Rng::new(mix2(identity, 2));
            Racer {
                ix,
                identity,
                weight,
                saved: mix2(identity, 3),
                throws,
                slots: 0,
                quota,
            }
        })
        .collect();
    racers.sort_by_key(|racer| racer.identity);
    let mut slots = vec![FREE; SLOTS].into_boxed_slice();
    let left = race(&mut slots, &mut racers, total);
    level(&mut slots, &mut racers, left);
    slots
}

/// Fills all but the last slots; says how many are left.
fn race(slots: &mut [u16], racers: &mut [Racer], total: u64) -> usize {
    let n = racers.len();
    let (mut left, stop) = (SLOTS, (SLOTS / n).min(LEVELLED_MAX));
    // A throw costs 2^shift units of weight: about one throw each in two rounds. The mean weight decides, because it
    // hardly changes when one backend leaves: another grain of the rounds is another race.
    let shift = (total / n as u64).ilog2() + 1;
    for racer in racers.iter_mut() {
        racer.saved &= (1 << shift) - 1;
    }
    let mut running: Vec<&mut Racer> = racers.iter_mut().collect();
    for _ in 0..ROUNDS_MAX * SLOTS / n {
        running.retain(|racer| racer.slots < racer.quota + SLACK);
        for racer in &mut running {
            racer.saved += racer.weight;
            let throws = racer.saved >> shift;
            racer.saved &= (1 << shift) - 1;
            for _ in 0..throws {
                let slot = racer.throws.below(SLOTS as u64) as usize;
                if slots[slot] == FREE && racer.slots < racer.quota + SLACK {
                    slots[slot] = racer.ix as u16;
                    racer.slots += 1;
                    left -= 1;
                    if left <= stop {
                        return left;
                    }
                }
            }
        }
    }
    left
}

/// Deals the rest: each slot to the highest rendezvous score among those short of their quota, then of any.
fn level(slots: &mut [u16], racers: &mut [Racer], mut left: usize) {
    let mut short: Vec<&mut Racer> = racers.iter_mut().collect();
    short.retain(|racer| racer.slots < racer.quota);
    let mut rest: Vec<u64> = Vec::new();
    for (slot, owner) in slots.iter_mut().enumerate().filter(|(_, owner)| **owner == FREE) {
        let score = |identity: u64| mix2(slot as u64, identity);
        let best = (0..short.len()).max_by_key(|&at| score(short[at].identity));
        if let Some(at) = best {
            let racer = &mut short[at];
            *owner = racer.ix as u16;
            racer.slots += 1;
            left -= 1;
            if racer.slots == racer.quota {
                short.swap_remove(at);
            }
        } else {
            rest.push(slot as u64);
        }
    }
    assert_eq!(left, rest.len());
    drop(short);
    for slot in rest {
        let winner = racers
            .iter()
            .max_by_key(|racer| mix2(slot, racer.identity))
            .expect("somebody has a weight");
        slots[slot as usize] = winner.ix as u16;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Fake, HASH, members};
    use super::super::{Balance, Cursor, Mask, Picker, SourceHash};
    use super::*;
    use proptest::prelude::*;

    fn owners(members: &[Member]) -> Vec<u64> {
        fill(members)
            .iter()
            .map(|&ix| members[usize::from(ix)].identity)
            .collect()
    }

    fn key(n: u64) -> u64 {
        crate::base::Rng::new(n).next_u64()
    }

    fn picks(picker: &Picker, keys: u64, shares: &Shares, eligible: &Mask) -> Vec<usize> {
        let (mut cursor, idle) = (Cursor::new(0), Fake::new(&vec![0; eligible.len()]));
        (0..keys)
            .map(|n| picker.pick(&mut cursor, key(n), &idle, shares, eligible).unwrap())
            .collect()
    }

    fn moved<T: PartialEq>(a: &[T], b: &[T]) -> usize {
        a.iter().zip(b).filter(|(a, b)| a != b).count()
    }

    /// Two nodes of different releases must agree during an upgrade, so this table may never change.
    #[test]
    fn the_table_is_fixed() {
        let table = fill(&members(&[1, 2, 3, 0, 10]));
        let digest = table.iter().fold(0, |digest, &ix| mix2(digest, u64::from(ix)));
        assert_eq!(digest, 0x7725_292a_a3f7_f8ae, "{digest:#x}");
    }

    #[test]
    fn order_does_not_matter() {
        let mut pool = members(&[1, 2, 3, 4, 0, 5, 6]);
        let table = owners(&pool);
        for _ in 0..pool.len() {
            pool.rotate_left(1);
            assert_eq!(owners(&pool), table);
        }
    }

    /// Broken on purpose: the last slots dealt by score alone.
    #[test]
    fn slots_match_weights() {
        let rows: [&[u32]; 8] = [
            &[1],
            &[1; 2],
            &[1; 3],
            &[3, 1],
            &[1; 20],
            &[10, 1, 1, 1, 7],
            &[256, 1, 128],
            &[100, 0, 50],
        ];
        for weights in rows {
            let total: u32 = weights.iter().sum();
            let table = fill(&members(weights));
            for (ix, &weight) in weights.iter().enumerate() {
                let got = table.iter().filter(|&&owner| usize::from(owner) == ix).count() as f64;
                let quota = SLOTS as f64 * f64::from(weight) / f64::from(total);
                assert!(
                    (got - quota).abs() <= (quota * 0.01).max(6.0),
                    "{weights:?}: {ix} has {got} of {quota}"
                );
            }
        }
        let table = fill(&members(&[1; 1000]));
        for ix in 0..1000 {
            let got = table.iter().filter(|&&owner| usize::from(owner) == ix).count();
            assert!((48..=66 + SLACK).contains(&got), "1,000 backends: {ix} has {got} slots");
        }
    }

    /// A backend leaves the configuration: the table is built anew. A rendezvous hash would move exactly its share; half as
    /// much as the mean share may come on top, whatever the weights.
    /// Broken on purpose: throws repeated until they hit, which is plain Maglev.
    #[test]
    fn one_of_n_leaving_moves_at_most_one_and_a_half_of_n() {
        for n in [2, 3, 4, 5, 10, 20, 50, 100, 129, 200, 257, 300, 500, 513, 1000] {
            for weight in [|_: usize| 7, |ix: usize| 1 + (ix as u32 * 7919) % 10] {
                let weights: Vec<u32> = (0..n).map(weight).collect();
                let pool = members(&weights);
                let before = owners(&pool);
                for leaving in [0, n / 2, n - 1] {
                    let mut rest = pool.clone();
                    rest.remove(leaving);
                    let moved = moved(&before, &owners(&rest)) as f64 / SLOTS as f64;
                    let share = f64::from(weights[leaving]) / f64::from(weights.iter().sum::<u32>());
                    let (moved, share) = (moved * n as f64, share * n as f64);
                    assert!(
                        moved <= share + 0.5,
                        "{leaving} of {n} leaves: {moved:.2} / N moved, its share is {share:.2}"
                    );
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// A backend goes down: exactly its keys move, and they spread by weight. It returns: everything is as before.
        /// Broken on purpose: the next eligible backend in place of probing.
        #[test]
        fn a_backend_that_is_down_moves_its_own_keys_only(
            weights in proptest::collection::vec(1u32..6, 2..12),
            down in any::<prop::sample::Index>(),
        ) {
            let (n, keys) = (weights.len(), 20_000);
            let down = down.index(n);
            let picker = Picker::new(Balance::SourceHash, &HASH, &members(&weights));
            let all = picks(&picker, keys, &Shares::full(), &Mask::full(n));
            let fewer = picks(&picker, keys, &Shares::full(), &Mask::full(n).without(down));
            let mut gained = vec![0f64; n];
            for (&a, &b) in all.iter().zip(&fewer) {
                prop_assert_eq!(a != b, a == down);
                if a == down { gained[b] += 1.0; }
            }
            let (lost, weight) = (gained.iter().sum::<f64>(), weights.iter().sum::<u32>() - weights[down]);
            for (ix, &gained) in gained.iter().enumerate().filter(|&(ix, _)| ix != down) {
                let fair = lost * f64::from(weights[ix]) / f64::from(weight);
                prop_assert!((gained - fair).abs() < 6.0 * fair.sqrt() + 6.0, "{} gained {} of {}", ix, gained, fair);
            }
        }

        /// Any two sets of eligible backends: a key whose backend is in both stays, unless it had to leave its own slot.
        #[test]
        fn keys_at_home_stay_at_home(
            n in 2usize..200,
            a in proptest::collection::vec(any::<bool>(), 200),
            b in proptest::collection::vec(any::<bool>(), 200),
        ) {
            let picker = Picker::new(Balance::SourceHash, &HASH, &members(&vec![1; n]));
            let home = picks(&picker, 500, &Shares::full(), &Mask::full(n));
            for up in [a, b] {
                let eligible = Mask::from_fn(n, |ix| up[ix] || ix == 0);
                let now = picks(&picker, 500, &Shares::full(), &eligible);
                for (&home, &now) in home.iter().zip(&now) {
                    prop_assert!(!eligible.get(home) || now == home);
                }
            }
        }
    }

    #[test]
    fn when_nearly_all_are_down_the_rest_share_evenly() {
        let picker = Picker::new(Balance::SourceHash, &HASH, &members(&[1; 1000]));
        for left in [2usize, 5, 40] {
            let eligible = Mask::from_fn(1000, |ix| ix % (1000 / left) == 3 && ix / (1000 / left) < left);
            assert_eq!(eligible.count(), left);
            let keys = 20_000;
            let mut counts = vec![0f64; 1000];
            for ix in picks(&picker, keys, &Shares::full(), &eligible) {
                counts[ix] += 1.0;
            }
            let fair = keys as f64 / left as f64;
            for ix in eligible.iter_ones() {
                // Probing follows slots, and a backend of 1,000 may have a third fewer of them than another.
                assert!(
                    (0.7..1.3).contains(&(counts[ix] / fair)),
                    "{left} left: {ix} has {} of {fair}",
                    counts[ix]
                );
            }
        }
    }

    /// Broken on purpose: an admission hashed anew for each share.
    #[test]
    fn a_ramping_backend_admits_a_growing_and_stable_share_of_its_keys() {
        let (n, keys) = (4, 40_000);
        let picker = Picker::new(Balance::SourceHash, &HASH, &members(&[1; 4]));
        let home = picks(&picker, keys, &Shares::full(), &Mask::full(n));
        let own = home.iter().filter(|&&ix| ix == 2).count() as f64;
        let mut before: Option<Vec<usize>> = None;
        for share in [1u32, 64, 256, 512, 1000, 1024] {
            let now = picks(
                &picker,
                keys,
                &Shares::new(&[1024, 1024, share, 1024], &Mask::full(n)),
                &Mask::full(n),
            );
            let admitted = now.iter().filter(|&&ix| ix == 2).count() as f64;
            let wanted = f64::from(share) / 1024.0;
            assert!(
                (admitted / own - wanted).abs() < 0.02,
                "share {share}: {admitted} of {own}"
            );
            for (at, &ix) in now.iter().enumerate() {
                assert!(home[at] == 2 || ix == home[at], "share {share}: keys of others stay");
                let was = before.as_ref().map(|before| before[at]);
                assert!(was != Some(2) || ix == 2, "share {share}: a key once admitted stays");
                assert!(
                    was.is_none_or(|was| was == ix || ix == 2),
                    "share {share}: a waiting key stays where it waits"
                );
            }
            before = Some(now);
        }
        assert_eq!(before, Some(home));
    }

    /// As logarithms in floating point have it, over the whole range.
    #[test]
    fn distances_are_logarithms() {
        const DRAWN_MAX: u64 = (1 << 53) - 1;
        let spread = (0..100_000).map(|n| key(n) >> 11);
        let small = (0..53).flat_map(|bit| [(1 << bit) - 1, 1 << bit, DRAWN_MAX - (1 << bit) + 1]);
        for drawn in spread.chain(small) {
            let uniform = (drawn as f64 + 0.5) / (1u64 << 53) as f64;
            let wanted = match uniform < 0.5 {
                true => -uniform.ln(),
                false => -(-(1.0 - uniform)).ln_1p(),
            };
            let got = distance(drawn) as f64 / (1u64 << 32) as f64;
            assert!(
                (got - wanted).abs() < 5e-9 + wanted * 1e-9,
                "{drawn}: {got}, not {wanted}"
            );
        }
    }

    /// Columns: weights, how often each is nearest.
    #[test]
    fn the_nearest_are_found_by_weight() {
        for weights in [&[1, 1][..], &[1, 2, 3, 4], &[1, 100], &[65_535, 65_535, 1]] {
            let (n, keys) = (weights.len(), 40_000);
            let picker = Picker::new(Balance::SourceHash, &HASH, &members(weights));
            let (loads, all) = (Fake::new(&vec![0; n]), Mask::full(n));
            let view = Options {
                members: picker.members(),
                loads: &loads,
                shares: &Shares::full(),
                eligible: &all,
            };
            let mut counts = vec![0f64; n];
            for nth in 0..keys {
                counts[rendezvous(&view, key(nth), |_| true).unwrap()] += 1.0;
            }
            let total: u32 = weights.iter().sum();
            for (ix, &weight) in weights.iter().enumerate() {
                let fair = f64::from(keys as u32) * f64::from(weight) / f64::from(total);
                let spread = 5.0 * fair.sqrt() + 1.0;
                assert!((counts[ix] - fair).abs() < spread, "{weights:?}: {counts:?}");
            }
        }
    }

    /// One giant NAT and many others, held connections. Broken on purpose: everybody is under the bound.
    #[test]
    fn bounded_load_keeps_a_giant_source_under_c_times_the_mean() {
        for (weights, c) in [(&[1, 1, 1, 1][..], 1.25), (&[4, 2, 1, 1], 1.5), (&[1; 20], 1.1)] {
            let n = weights.len();
            let hash = SourceHash {
                bounded_load: Some(c),
                ..HASH
            };
            let (bounded, plain) = (
                Picker::new(Balance::SourceHash, &hash, &members(weights)),
                Picker::new(Balance::SourceHash, &HASH, &members(weights)),
            );
            let (mut cursor, loads, weight) = (Cursor::new(0), Fake::new(&vec![0; n]), weights.iter().sum::<u32>());
            let (mut stayed, mut others) = (0, 0);
            for n_th in 0..4000u64 {
                // Half of all connections come from one source.
                let key = if n_th % 2 == 0 { key(1_000_000) } else { key(n_th) };
                let ix = bounded
                    .pick(&mut cursor, key, &loads, &Shares::full(), &Mask::full(n))
                    .unwrap();
                let home = plain
                    .pick(&mut cursor, key, &loads, &Shares::full(), &Mask::full(n))
                    .unwrap();
                loads.open(ix);
                let cap = (c * (n_th + 1) as f64 * f64::from(weights[ix]) / f64::from(weight)).ceil() as u32;
                assert!(
                    loads.active(ix) <= cap,
                    "{weights:?}: {ix} has {} of {cap}",
                    loads.active(ix)
                );
                let giants_home = plain.pick(
                    &mut cursor,
                    self::key(1_000_000),
                    &loads,
                    &Shares::full(),
                    &Mask::full(n),
                );
                if n_th % 2 == 1 && Some(home) != giants_home {
                    others += 1;
                    stayed += usize::from(ix == home);
                }
            }
            assert!(
                stayed * 10 > others * 6,
                "{weights:?}: {stayed} of {others} others stayed"
            );
        }
    }

    #[test]
    fn bounded_load_without_excess_moves_nobody() {
        let hash = SourceHash {
            bounded_load: Some(1.5),
            ..HASH
        };
        let bounded = Picker::new(Balance::SourceHash, &hash, &members(&[1; 5]));
        let plain = Picker::new(Balance::SourceHash, &HASH, &members(&[1; 5]));
        let (mut cursor, loads) = (Cursor::new(0), Fake::new(&[100; 5]));
        for n in 0..2000 {
            let pick = |picker: &Picker, cursor: &mut Cursor| {
                picker.pick(cursor, key(n), &loads, &Shares::full(), &Mask::full(5))
            };
            assert_eq!(pick(&bounded, &mut cursor), pick(&plain, &mut cursor));
        }
    }
}
