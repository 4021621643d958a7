//! Work to be done, each piece at most once: light pieces first, heavy ones a few at a time.
//!
//! An edge-triggered poller tells of readiness once; whatever is left over after a budget is spent waits here, never on
//! "the kernel will tell us again".
//!
//! # Whose turn it is
//!
//! In a turn every light piece runs, and then one heavy piece and one more for every [`LIGHT_PER_HEAVY`] light ones; after that
//! the poller is asked again. So a request that arrives beside any number of bulk streams waits for the pump of one, and
//! bulk keeps half of the time however many requests there are. Within a weight it goes by order of arrival.

use std::collections::VecDeque;

use super::slab::Key;

/// Light pieces that take as long as a heavy one: 64 KiB are moved in 10 to 40 us, a request in 4 to 8.
pub const LIGHT_PER_HEAVY: usize = 8;

/// How much a piece of work is likely to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Weight {
    /// A request, an answer, the end of something.
    #[default]
    Light,
    /// A whole budget, and more to come.
    Heavy,
}

/// The work of one worker that is still to be done. Membership is the caller's bit (`queued` in the entry), so that
/// pushing costs no lookup.
#[derive(Default)]
pub struct RunQueue {
    light: VecDeque<Key>,
    heavy: VecDeque<Key>,
}

impl RunQueue {
    /// Appends `key` unless `queued` says that it waits already; sets `queued`.
    pub fn push(&mut self, key: Key, weight: Weight, queued: &mut bool) {
        if !std::mem::replace(queued, true) {
            self.line(weight).push_back(key);
        }
    }

    /// How many of each weight to take in the turn that begins.
    pub fn turn(&self) -> [(Weight, usize); 2] {
        let light = self.light.len();
        let heavy = self.heavy.len().min(1 + light / LIGHT_PER_HEAVY);
        [(Weight::Light, light), (Weight::Heavy, heavy)]
    }

    /// Takes the first key of a weight; the caller clears its bit.
    pub fn pop(&mut self, weight: Weight) -> Option<Key> {
        self.line(weight).pop_front()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.light.is_empty() && self.heavy.is_empty()
    }

    fn line(&mut self, weight: Weight) -> &mut VecDeque<Key> {
        match weight {
            Weight::Light => &mut self.light,
            Weight::Heavy => &mut self.heavy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: u32) -> Key {
        Key { index, generation: 0 }
    }

    fn queue(light: u32, heavy: u32) -> RunQueue {
        let mut queue = RunQueue::default();
        for n in 0..heavy {
            queue.push(key(1000 + n), Weight::Heavy, &mut false);
        }
        for n in 0..light {
            queue.push(key(n), Weight::Light, &mut false);
        }
        queue
    }

    /// Break tried: all heavy ones in a turn.
    #[test]
    fn light_ones_first_and_heavy_ones_in_proportion() {
        // Waiting light and heavy ones, those of them that a turn takes.
        let rows = [
            ((0, 0), (0, 0)),
            ((3, 0), (3, 0)),
            ((0, 1), (0, 1)),
            ((0, 9), (0, 1)),
            ((1, 9), (1, 1)),
            ((7, 9), (7, 1)),
            ((8, 9), (8, 2)),
            ((64, 9), (64, 9)),
            ((64, 20), (64, 9)),
        ];
        for ((light, heavy), taken) in rows {
            let turn = queue(light, heavy).turn();
            let expected = [(Weight::Light, taken.0), (Weight::Heavy, taken.1)];
            assert_eq!(turn, expected, "{light} light, {heavy} heavy");
        }
    }

    #[test]
    fn in_order_and_once() {
        let mut queue = queue(2, 2);
        let mut queued = false;
        queue.push(key(7), Weight::Heavy, &mut queued);
        queue.push(key(7), Weight::Light, &mut queued);
        let mut take = |weight| {
            let keys = std::iter::from_fn(|| queue.pop(weight));
            keys.map(|key| key.index).collect::<Vec<_>>()
        };
        assert_eq!(take(Weight::Light), [0, 1]);
        assert_eq!(take(Weight::Heavy), [1000, 1001, 7]);
        assert!(queue.is_empty());
    }
}
