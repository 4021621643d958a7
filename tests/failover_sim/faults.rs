//! What goes wrong, and when.

use crate::world::{Event, MS, S, World};

#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// What the first sends to the second is lost.
    Lose(usize, usize),
    /// All that this node sends is lost, or all that it should receive.
    Mute(usize),
    Deafen(usize),
    Hear(usize),
    Cut(usize, usize),
    Mend(usize, usize),
    /// Nodes and witnesses with a set bit on one side, the others on the other.
    Partition(u64),
    Heal,
    /// The carrier goes; it comes back, and the port forwards so much later.
    LinkDown(usize),
    LinkUp(usize, u64),
    FreezeMain(usize),
    FreezeKeeper(usize),
    Thaw(usize),
    /// The whole machine stands still; when it goes on, its clock has or has not moved.
    Pause(usize),
    Unpause(usize, bool),
    /// Somebody holds the lock that changes to addresses need.
    Rtnl(usize, u64),
    Kill(usize),
    PowerOff(usize),
    Start(usize),
    Serving(usize, bool),
    Pool(usize, bool),
    /// Something that this node tracks, by its index, holds or does not.
    Track(usize, usize, bool),
    Demote(usize),
    Allow(usize),
    /// Somebody else deletes the address.
    Delete(usize),
    /// The witness refuses, or ends.
    Refuse(usize, bool),
    /// Another configuration on this node, by its place in the world's list.
    Reload(usize, usize),
    /// The arbiter decides nothing for so long.
    Stall(u64),
    /// Another member of it leads, after so long in which none does.
    Leader(u64),
    /// It is gone, or back.
    Outage(bool),
    /// A new binary: the same state in another process.
    Upgrade(usize),
}

impl World {
    /// Faults at random times, most of them undone after a while; returns when the last one ends.
    pub fn plan(&mut self, from: u64, to: u64) -> u64 {
        let n = self.nodes.len() as u64;
        let everybody = n + self.witnesses as u64 + u64::from(self.arbiter);
        let mut last = from;
        for _ in 0..if self.arbiter { self.rng.between(0, 4) } else { 0 } {
            let at = self.rng.between(from, to);
            let (fault, end) = match self.rng.below(4) {
                0 => (Fault::Stall(self.rng.between(50 * MS, 2 * S)), None),
                1 => (Fault::Leader(self.rng.between(0, 2 * S)), None),
                2 => (Fault::Leader(0), None),
                _ => (Fault::Outage(true), Some(at + self.rng.between(50 * MS, 4 * S))),
            };
            self.at(at, Event::Fault(fault));
            if let Some(end) = end {
                self.at(end, Event::Fault(Fault::Outage(false)));
                last = last.max(end);
            }
        }
        for _ in 0..self.rng.between(1, 5) {
            let at = self.rng.between(from, to);
            let length = if self.rng.chance(60) {
                self.rng.between(20 * MS, 900 * MS)
            } else {
                self.rng.between(900 * MS, 5 * S)
            };
            let a = self.rng.below(n) as usize;
            let b = (a + 1 + self.rng.below(n - 1) as usize) % n as usize;
            let w = self.rng.below(self.witnesses.max(1) as u64) as usize;
            let (begin, end) = match self.rng.below(28) {
                0 | 1 => (Fault::Cut(a, b), Some(Fault::Mend(a, b))),
                2 => (Fault::Lose(a, b), Some(Fault::Mend(a, b))),
                3 | 4 => (Fault::Mute(a), Some(Fault::Hear(a))),
                5 => (Fault::Deafen(a), Some(Fault::Hear(a))),
                6 | 7 => {
                    let mask = self.rng.between(1, (1 << everybody) - 2);
                    (Fault::Partition(mask), Some(Fault::Heal))
                }
                8 | 9 => {
                    let later = if self.rng.chance(50) {
                        0
                    } else {
                        self.rng.between(0, 2_700 * MS)
                    };
                    (Fault::LinkDown(a), Some(Fault::LinkUp(a, later)))
                }
                10 | 11 => (Fault::FreezeMain(a), Some(Fault::Thaw(a))),
                12 => (Fault::FreezeKeeper(a), Some(Fault::Thaw(a))),
                13 => {
                    self.at(at, Event::Fault(Fault::FreezeKeeper(a)));
                    (Fault::FreezeMain(a), Some(Fault::Thaw(a)))
                }
                14 => {
                    // A machine whose clock stands still with it is beyond what `strict` can promise.
                    let moved = self.rng.chance(50) || self.strict;
                    (Fault::Pause(a), Some(Fault::Unpause(a, moved)))
                }
                15 | 16 => (Fault::Kill(a), Some(Fault::Start(a))),
                17 => (Fault::PowerOff(a), Some(Fault::Start(a))),
                18 => (Fault::Serving(a, false), Some(Fault::Serving(a, true))),
                19 => (Fault::Pool(a, false), Some(Fault::Pool(a, true))),
                20 => (Fault::Demote(a), Some(Fault::Allow(a))),
                21 => (Fault::Delete(a), None),
                22 => (Fault::Rtnl(a, self.rng.between(20 * MS, 320 * MS)), None),
                23 if self.witnesses > 0 => (Fault::Refuse(w, true), Some(Fault::Refuse(w, false))),
                24 => (Fault::Upgrade(a), None),
                25 | 26 if self.tracked => {
                    let ix = self.rng.below(2) as usize;
                    (Fault::Track(a, ix, false), Some(Fault::Track(a, ix, true)))
                }
                _ => {
                    // Node by node.
                    let which = self.rng.below(self.setups.len() as u64) as usize;
                    for node in 1..n as usize {
                        let then = at + self.rng.between(0, 2 * S);
                        self.at(then, Event::Fault(Fault::Reload(node, which)));
                        last = last.max(then);
                    }
                    (Fault::Reload(0, which), None)
                }
            };
            self.at(at, Event::Fault(begin));
            last = last.max(at);
            if let Some(end) = end {
                self.at(at + length, Event::Fault(end));
                last = last.max(at + length);
            }
        }
        last
    }

    /// Undoes whatever is left.
    pub fn restore(&mut self) {
        self.network.lost.clear();
        self.fault(Fault::Heal);
        for n in 0..self.nodes.len() {
            for fault in [
                Fault::LinkUp(n, 0),
                Fault::Unpause(n, true),
                Fault::Thaw(n),
                Fault::Start(n),
                Fault::Serving(n, true),
                Fault::Pool(n, true),
                Fault::Track(n, 0, true),
                Fault::Track(n, 1, true),
                Fault::Allow(n),
                Fault::Reload(n, 0),
            ] {
                self.fault(fault);
            }
        }
        for w in 0..self.witnesses {
            self.fault(Fault::Refuse(w, false));
        }
        self.fault(Fault::Outage(false));
    }
}
