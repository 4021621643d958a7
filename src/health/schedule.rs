//! Who is probed when.
//!
//! Probes of a pool start spread evenly over its interval and keep their distance: the next one is due an interval after
//! the last was *due*, give or take a tenth, however long that took. So a backend that swallows packets is probed no more and no
//! less often than one that answers. At most a set number run at a time; when more are due, the longest overdue comes
//! first, and missed turns are not made up for. All operations but the search for overdue ones cost O(log n).
//!
//! *Nothing is lost for good.* Each probe under way has a number, and only the result that bears the newest number of a
//! backend counts. A backend is overdue when three intervals have passed since its probe should have started, or since a
//! started one should have ended at the latest; the caller hears of it, and a probe without result is given up and started
//! anew. Lateness is measured on a clock that stands still while this process does (stopped, frozen, suspended), and two
//! searches have to find it, because results may be waiting to be read: waking up is no reason for an alarm. A probe whose backend was removed goes on to count as running until its result is
//! there or overdue: it holds its sockets until then.
//!
//! One lost packet must not fail a probe: a first SYN is repeated by the kernel only after a second, which is the default
//! timeout. [`tries`] says when to send another one on a fresh socket.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::{Duration, Instant};

use crate::config::FDS_PER_PROBE;

/// Shortest time between two attempts of a probe.
const TRY_MIN: Duration = Duration::from_millis(20);

/// So many intervals too late is overdue.
const LATE_INTERVALS: u32 = 3;

/// How often overdue ones are searched for.
pub const WATCH: Duration = Duration::from_millis(500);

/// The caller's rounds are never further apart than a second: what is missing beyond this, the process did not live through.
const ROUND_MAX: Duration = Duration::from_secs(2);

/// What is probed: any number that is stable while it is scheduled.
pub type Key = u64;

/// How often a backend is probed, and how long a probe takes at the longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Time from the start of one probe to the start of the next.
    pub interval: Duration,
    /// Time from the start of a probe to its result.
    pub timeout: Duration,
}

/// One probe under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Run {
    /// What is probed.
    pub key: Key,
    /// Never the same twice.
    pub number: u64,
}

/// A backend whose probe is overdue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overdue {
    /// The backend whose probe is late.
    pub key: Key,
    /// A probe was started and never ended; it is due anew. Otherwise the backend waits for its turn.
    pub lost: bool,
}

#[derive(Debug)]
struct Entry {
    pace: Pace,
    due: Instant,
    /// Only the heap item with this stamp counts.
    stamp: u64,
    /// Number of the probe under way.
    run: Option<u64>,
    /// Somebody wants to know no later than this, said while a probe was under way.
    hurry: Option<Instant>,
    /// When it is overdue, on the schedule's clock.
    late: Duration,
    /// The last search found it overdue.
    suspect: bool,
}

/// Due times of all probes.
#[derive(Debug)]
pub struct Schedule {
    entries: HashMap<Key, Entry>,
    heap: BinaryHeap<Reverse<(Instant, u64, Key)>>,
    /// Probes under way by number, those of removed backends among them: of whom, and when it is overdue.
    running: HashMap<u64, (Key, Duration)>,
    running_max: usize,
    /// Last number given to a heap item or a probe.
    stamp: u64,
    /// Time that this process has lived through, as far as it was seen.
    clock: Duration,
    seen: Option<Instant>,
    watched: Option<Instant>,
}

impl Schedule {
    /// An empty schedule that lets at most `running_max` probes (at least one) run at a time.
    pub fn new(running_max: usize) -> Schedule {
        Schedule {
            entries: HashMap::new(),
            heap: BinaryHeap::new(),
            running: HashMap::new(),
            running_max: running_max.max(1),
            stamp: 0,
            clock: Duration::ZERO,
            seen: None,
            watched: None,
        }
    }

    /// Changes how many may run at a time. Those under way go on.
    pub fn set_running_max(&mut self, running_max: usize) {
        self.running_max = running_max.max(1);
    }

    /// How many may run at a time.
    pub fn running_max(&self) -> usize {
        self.running_max
    }

    /// Adds backends: the first is due now, the others follow spread evenly over the interval. One that is scheduled
    /// already keeps its turn, unless that is further away than the interval (which was longer before).
    pub fn add(&mut self, now: Instant, pace: Pace, keys: &[Key]) {
        self.live(now);
        for (nth, &key) in keys.iter().enumerate() {
            let offset = pace.interval.as_nanos() * nth as u128 / keys.len() as u128;
            let at = now + Duration::from_nanos(offset as u64);
            match self.entries.get_mut(&key) {
                None => self.put(now, key, pace, at),
                Some(entry) if entry.pace == pace => {}
                Some(entry) if entry.run.is_none() => {
                    let due = if entry.due > now + pace.interval { at } else { entry.due };
                    self.put(now, key, pace, due);
                }
                Some(entry) => {
                    let late = self.clock + entry.pace.timeout + pace.interval * LATE_INTERVALS;
                    entry.late = entry.late.min(late);
                    entry.pace = pace;
                }
            }
        }
    }

    /// Takes a backend out. The result of a probe under way will not count.
    pub fn remove(&mut self, key: Key) {
        self.entries.remove(&key);
    }

    /// What is probed has changed: the result of a probe under way will not count, and another one is due now.
    pub fn renew(&mut self, now: Instant, key: Key) {
        self.live(now);
        if let Some(entry) = self.entries.get(&key).filter(|entry| entry.run.is_some()) {
            self.put(now, key, entry.pace, now);
        }
    }

    /// Probes this backend no later than `at`: an ejection ends, or somebody wants to know.
    pub fn hurry(&mut self, now: Instant, key: Key, at: Instant) {
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        if entry.run.is_some() {
            entry.hurry = Some(entry.hurry.map_or(at, |before| before.min(at)));
        } else if at < entry.due {
            let pace = entry.pace;
            self.put(now, key, pace, at);
        }
    }

    /// The next backend whose probe is due, if one more may run; it counts as running until it is finished or overdue.
    pub fn start(&mut self, now: Instant) -> Option<Run> {
        self.live(now);
        self.drop_stale();
        let &Reverse((due, _, key)) = self.heap.peek()?;
        if due > now || self.running.len() >= self.running_max {
            return None;
        }
        self.heap.pop();
        self.stamp += 1;
        let number = self.stamp;
        let entry = self
            .entries
            .get_mut(&key)
            .expect("items that are not stale have an entry");
        let late = self.clock + entry.pace.timeout + entry.pace.interval * LATE_INTERVALS;
        entry.run = Some(number);
        entry.late = late;
        entry.suspect = false;
        self.running.insert(number, (key, late));
        Some(Run { key, number })
    }

    /// Whether this is the newest probe of its backend, and still under way: then its result counts.
    pub fn is_current(&self, run: Run) -> bool {
        let entry = self.entries.get(&run.key);
        entry.is_some_and(|entry| entry.run == Some(run.number))
    }

    /// A probe has ended, with whatever result. The next one is due `next_in` after this one was due, moved by up to a
    /// tenth either way by `random`, any 32 bits.
    pub fn finish(&mut self, now: Instant, run: Run, next_in: Duration, random: u32) {
        self.live(now);
        self.running.remove(&run.number);
        let Some(entry) = self.entries.get(&run.key).filter(|entry| entry.run == Some(run.number)) else {
            return;
        };
        let step = jittered(next_in, random);
        let due = match entry.due + step {
            due if due < now => now + step,
            due => due,
        };
        let due = entry.hurry.map_or(due, |at| due.min(at));
        self.put(now, run.key, entry.pace, due);
    }

    /// Whoever carries the probes out has died: none of those under way will end.
    pub fn lose_all(&mut self, now: Instant) {
        self.live(now);
        self.running.clear();
        let lost = self.entries.iter().filter(|(_, entry)| entry.run.is_some());
        let lost: Vec<(Key, Pace)> = lost.map(|(&key, entry)| (key, entry.pace)).collect();
        for (key, pace) in lost {
            self.put(now, key, pace, now);
        }
    }

    /// Searches, every [`WATCH`], for backends whose probe is overdue, each of them once in three intervals. The search is
    /// part of a round at least once a second.
    pub fn overdue(&mut self, now: Instant) -> Vec<Overdue> {
        self.live(now);
        if self.watched.is_some_and(|watched| now < watched + WATCH) {
            return Vec::new();
        }
        self.watched = Some(now);
        let clock = self.clock;
        let entries = &self.entries;
        let counts = |number, key: &Key| entries.get(key).is_some_and(|entry: &Entry| entry.run == Some(number));
        self.running
            .retain(|&number, (key, late)| *late > clock || counts(number, key));
        let late = self.entries.iter_mut().filter(|(_, entry)| entry.late <= clock);
        let suspects =
            late.filter_map(|(&key, entry)| std::mem::replace(&mut entry.suspect, true).then_some((key, entry)));
        let mut late: Vec<Overdue> = suspects
            .map(|(key, entry)| Overdue {
                key,
                lost: entry.run.is_some(),
            })
            .collect();
        late.sort_unstable_by_key(|overdue| overdue.key);
        for overdue in &late {
            let entry = &self.entries[&overdue.key];
            if let Some(number) = entry.run {
                self.running.remove(&number);
            }
            // One that waits keeps its turn. It is put there anew, so that nothing depends on its having been there.
            let (pace, due) = (entry.pace, if overdue.lost { now } else { entry.due });
            self.put(now, overdue.key, pace, due);
        }
        late
    }

    /// When [`start`](Schedule::start) will have something; `None` = not before a probe finishes or one is added.
    pub fn deadline(&mut self) -> Option<Instant> {
        self.drop_stale();
        if self.running.len() >= self.running_max {
            return None;
        }
        self.heap.peek().map(|&Reverse((due, _, _))| due)
    }

    /// Probes under way.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Backends scheduled.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no backend is scheduled.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether this backend is scheduled.
    pub fn contains(&self, key: Key) -> bool {
        self.entries.contains_key(&key)
    }

    /// Moves the clock on.
    fn live(&mut self, now: Instant) {
        let seen = *self.seen.get_or_insert(now);
        self.clock += now.saturating_duration_since(seen).min(ROUND_MAX);
        self.seen = Some(seen.max(now));
    }

    /// Lets a backend wait for its turn.
    fn put(&mut self, now: Instant, key: Key, pace: Pace, due: Instant) {
        self.stamp += 1;
        let until = due.saturating_duration_since(now);
        let entry = Entry {
            pace,
            due,
            stamp: self.stamp,
            run: None,
            hurry: None,
            late: self.clock + until + pace.interval * LATE_INTERVALS,
            suspect: false,
        };
        self.entries.insert(key, entry);
        self.heap.push(Reverse((due, self.stamp, key)));
    }

    fn drop_stale(&mut self) {
        while let Some(&Reverse((_, stamp, key))) = self.heap.peek() {
            let waits = |entry: &Entry| entry.stamp == stamp && entry.run.is_none();
            if self.entries.get(&key).is_some_and(waits) {
                return;
            }
            self.heap.pop();
        }
    }
}

/// From nine to eleven tenths of a time.
fn jittered(time: Duration, random: u32) -> Duration {
    let tenths = 9.0 + 2.0 * f64::from(random) / f64::from(u32::MAX);
    time.mul_f64(tenths / 10.0)
}

/// When, after the start of a probe, to try again on a fresh socket while nothing has answered: three times within the
/// first three quarters of the timeout. With a fifth of all packets lost each try fails in 36 % of all cases (SYN or
/// SYN-ACK), all four in 1.7 %, and three probes in a row once in 200,000.
pub fn tries(timeout: Duration) -> impl Iterator<Item = Duration> {
    let tries = FDS_PER_PROBE as u32;
    (1..tries)
        .map(move |nth| timeout / tries * nth)
        .filter(|at| *at >= TRY_MIN)
}

#[cfg(test)]
mod tests;
