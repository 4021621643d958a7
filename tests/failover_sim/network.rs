//! The network between the nodes, as TCP over a bad one looks from above.
//!
//! A connection keeps its order and loses nothing, it only gets late: what is sent while the other direction is dead
//! arrives for a while (a congestion window) and then waits; what waited arrives in a burst some time after the outage, unless
//! the connection was given up by then or has been replaced. That is how a beat can be news to TCP and history to everybody else.

use crate::world::{Case, MS, Rng};

/// Longest ordinary one-way delay.
pub const DELAY_MAX: u64 = 5 * MS;
/// Messages that leave without an acknowledgement.
const WINDOW: u32 = 10;

/// A pair's connection.
#[derive(Clone, Default)]
pub struct Pair {
    /// Changes with every connection.
    pub id: u64,
    /// When it was authenticated, if it is there: nothing on it is older.
    pub since: Option<u64>,
    /// One direction or both have been dead since then.
    pub dead_since: Option<u64>,
    /// Messages that left since then, and number of those that wait; by direction, from the lesser node first.
    pub sent: [u32; 2],
    /// Last delivery, by direction.
    pub last: [u64; 2],
    /// When the dialer tries again.
    pub next_dial: u64,
    /// A new connection is being made.
    pub dialling: bool,
}

/// Who can reach whom.
#[derive(Clone, Default)]
pub struct Network {
    /// Directions that lose everything.
    pub lost: std::collections::BTreeSet<(usize, usize)>,
    /// Nodes and witnesses with a set bit on one side, the others on the other.
    pub partition: Option<u64>,
    /// Nodes without a carrier.
    pub down: std::collections::BTreeSet<usize>,
    /// Nodes whose port forwards from then on.
    pub forwards_at: Vec<u64>,
    /// Percent of messages that lose a segment.
    pub loss: u64,
}

impl Network {
    pub fn new(case: &Case, rng: &mut Rng) -> Network {
        Network {
            forwards_at: vec![0; case.nodes + case.witnesses + 1],
            loss: if rng.chance(50) { 0 } else { rng.between(1, 3) },
            ..Network::default()
        }
    }

    /// Whether packets go from `a` to `b`.
    pub fn open(&self, now: u64, a: usize, b: usize) -> bool {
        let side = |n: usize| self.partition.is_none_or(|mask| mask >> n & 1 == 1);
        let up = |n: usize| !self.down.contains(&n) && self.forwards_at[n] <= now;
        !self.lost.contains(&(a, b)) && side(a) == side(b) && up(a) && up(b)
    }

    pub fn both_ways(&self, now: u64, a: usize, b: usize) -> bool {
        self.open(now, a, b) && self.open(now, b, a)
    }

    /// What becomes of a message that `from` sends to `to` over their connection.
    pub fn send(&self, now: u64, from: usize, to: usize, pair: &mut Pair, beat: u64, rng: &mut Rng) -> Fate {
        let direction = usize::from(from > to);
        let forth = self.open(now, from, to);
        if pair.dead_since.is_some() {
            pair.sent[direction] += 1;
            if !forth || pair.sent[direction] > WINDOW {
                return Fate::Waits;
            }
        }
        let usual = if rng.chance(90) { 500 } else { DELAY_MAX };
        let mut delay = rng.between(50, usual);
        if rng.chance(self.loss) {
            // The acknowledgement of the next beat reveals the hole.
            delay += beat + 2 * DELAY_MAX;
        }
        let when = (now + delay).max(pair.last[direction]);
        pair.last[direction] = when;
        Fate::Arrives(when)
    }
}

pub enum Fate {
    Arrives(u64),
    /// In the sender's socket.
    Waits,
}
