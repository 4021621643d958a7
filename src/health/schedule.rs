//! Who is probed when.
//!
//! Probes of a pool start spread evenly over its interval and keep their distance: the next one is due an interval after
//! the last was *due*, give or take a tenth, however long that took. So a backend that swallows packets is probed no more and no
//! less often than one that answers. At most a set number run at a time; when more are due, the longest overdue comes
//! first, and missed turns are not made up for. All operations cost O(log n).
//!
//! One lost packet must not fail a probe: a first SYN is repeated by the kernel only after a second, which is the default
//! timeout. [`tries`] says when to send another one on a fresh socket.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::{Duration, Instant};

/// Probes under way at a time, unless told otherwise.
pub const RUNNING_MAX: usize = 256;

/// Connect or datagram attempts within one probe.
const TRIES: u32 = 4;

/// Shortest time between two attempts of a probe.
const TRY_MIN: Duration = Duration::from_millis(20);

/// What is probed: any number that is stable while it is scheduled.
pub type Key = u64;

#[derive(Debug, Clone, Copy)]
struct Entry {
    due: Instant,
    running: bool,
    /// Only the heap item with this stamp counts.
    stamp: u64,
}

/// Due times of all probes.
#[derive(Debug)]
pub struct Schedule {
    entries: HashMap<Key, Entry>,
    heap: BinaryHeap<Reverse<(Instant, u64, Key)>>,
    running: usize,
    running_max: usize,
    stamp: u64,
}

impl Schedule {
    /// An empty schedule that lets at most `running_max` probes (at least one) run at a time.
    pub fn new(running_max: usize) -> Schedule {
        let heap = BinaryHeap::new();
        Schedule {
            entries: HashMap::new(),
            heap,
            running: 0,
            running_max: running_max.max(1),
            stamp: 0,
        }
    }

    /// Adds backends: the first is due now, the others follow spread evenly over the interval. One that is scheduled
    /// already keeps its turn.
    pub fn add(&mut self, now: Instant, interval: Duration, keys: &[Key]) {
        for (nth, &key) in keys.iter().enumerate() {
            if !self.entries.contains_key(&key) {
                let offset = interval.as_nanos() * nth as u128 / keys.len() as u128;
                self.put(key, now + Duration::from_nanos(offset as u64));
            }
        }
    }

    /// Takes a backend out. A probe of it that is under way no longer counts, and need not be finished.
    pub fn remove(&mut self, key: Key) {
        if let Some(entry) = self.entries.remove(&key) {
            self.running -= usize::from(entry.running);
        }
    }

    /// Probes this backend no later than `at`: an ejection ends, or somebody wants to know.
    pub fn hurry(&mut self, key: Key, at: Instant) {
        if self
            .entries
            .get(&key)
            .is_some_and(|entry| !entry.running && at < entry.due)
        {
            self.put(key, at);
        }
    }

    /// The next backend whose probe is due, if one more may run; it counts as running until it is finished.
    pub fn start(&mut self, now: Instant) -> Option<Key> {
        self.drop_stale();
        let &Reverse((due, _, key)) = self.heap.peek()?;
        if due > now || self.running >= self.running_max {
            return None;
        }
        self.heap.pop();
        self.entries
            .get_mut(&key)
            .expect("items that are not stale have an entry")
            .running = true;
        self.running += 1;
        Some(key)
    }

    /// A probe has ended, with whatever result. The next one is due `next_in` after this one was due, moved by up to a
    /// tenth either way by `random`, any 32 bits. Unknown keys (removed meanwhile) are ignored.
    pub fn finish(&mut self, now: Instant, key: Key, next_in: Duration, random: u32) {
        let Some(entry) = self.entries.get_mut(&key).filter(|entry| entry.running) else {
            return;
        };
        entry.running = false;
        self.running -= 1;
        let step = jittered(next_in, random);
        let due = entry.due + step;
        self.put(key, if due < now { now + step } else { due });
    }

    /// When [`start`](Schedule::start) will have something; `None` = not before a probe finishes or one is added.
    pub fn deadline(&mut self) -> Option<Instant> {
        self.drop_stale();
        if self.running >= self.running_max {
            return None;
        }
        self.heap.peek().map(|&Reverse((due, _, _))| due)
    }

    /// Probes under way.
    pub fn running(&self) -> usize {
        self.running
    }

    /// Backends scheduled.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no backend is scheduled.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn put(&mut self, key: Key, due: Instant) {
        self.stamp += 1;
        self.entries.insert(
            key,
            Entry {
                due,
                running: false,
                stamp: self.stamp,
            },
        );
        self.heap.push(Reverse((due, self.stamp, key)));
    }

    fn drop_stale(&mut self) {
        while let Some(&Reverse((_, stamp, key))) = self.heap.peek() {
            if self.entries.get(&key).is_some_and(|entry| entry.stamp == stamp) {
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
    (1..TRIES)
        .map(move |nth| timeout / TRIES * nth)
        .filter(|at| *at >= TRY_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INTERVAL: Duration = Duration::from_secs(2);

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn starts_are_spread_over_the_interval() {
        let (mut schedule, now) = (Schedule::new(8), Instant::now());
        schedule.add(now, INTERVAL, &[7, 8, 9, 10]);
        for (at, wanted) in [
            (0, Some(7)),
            (0, None),
            (499, None),
            (500, Some(8)),
            (1000, Some(9)),
            (1500, Some(10)),
        ] {
            assert_eq!(schedule.start(now + ms(at)), wanted, "at {at} ms");
        }
        assert_eq!((schedule.deadline(), schedule.running()), (None, 4));
        schedule.finish(now + ms(1600), 8, INTERVAL, u32::MAX / 2);
        let due = schedule.deadline().unwrap() - now;
        assert!(
            due > ms(2499) && due < ms(2501),
            "an interval after it was due, not after it ended: {due:?}"
        );
    }

    #[test]
    fn hurried_removed_and_added_again() {
        let (mut schedule, now) = (Schedule::new(8), Instant::now());
        schedule.add(now, INTERVAL, &[1, 2]);
        schedule.hurry(2, now + ms(200));
        schedule.hurry(2, now + ms(900));
        assert_eq!(schedule.start(now + ms(200)), Some(1));
        assert_eq!(
            schedule.start(now + ms(200)),
            Some(2),
            "the earlier of two hurries counts"
        );
        assert_eq!(schedule.start(now + ms(5000)), None, "both are running, once each");
        schedule.remove(1);
        schedule.finish(now + ms(300), 1, INTERVAL, 0);
        assert_eq!((schedule.len(), schedule.running()), (1, 1));
        schedule.add(now + ms(400), INTERVAL, &[1, 2]);
        assert_eq!(schedule.start(now + ms(400)), Some(1));
        schedule.remove(2);
        schedule.remove(1);
        assert_eq!(
            (schedule.is_empty(), schedule.running(), schedule.deadline()),
            (true, 0, None)
        );
    }

    /// Runs a schedule for a minute of its own time; `takes` is how long a probe takes. Returns starts per second.
    fn minute(backends: u64, running_max: usize, takes: Duration) -> Vec<u32> {
        let (mut schedule, start) = (Schedule::new(running_max), Instant::now());
        schedule.add(start, INTERVAL, &(0..backends).collect::<Vec<_>>());
        let (mut now, mut running, mut seconds) = (start, std::collections::VecDeque::new(), vec![0; 60]);
        let mut random = 1u32;
        while now < start + ms(60_000) {
            while let Some(key) = schedule.start(now) {
                seconds[(now - start).as_secs() as usize] += 1;
                running.push_back((now + takes, key));
            }
            assert!(schedule.running() <= running_max);
            let ends = running.front().map(|&(at, _)| at);
            now = [ends, schedule.deadline()]
                .into_iter()
                .flatten()
                .min()
                .unwrap()
                .max(now);
            while let Some((at, key)) = running.pop_front() {
                if at > now {
                    running.push_front((at, key));
                    break;
                }
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                schedule.finish(now, key, INTERVAL, random);
            }
        }
        seconds
    }

    /// Answering in a millisecond or swallowing everything for the whole timeout: 250 probes a second either way.
    /// Broken on purpose: due an interval after the *end* (blackholed: 167 a second).
    #[test]
    fn five_hundred_backends_are_probed_at_a_flat_rate() {
        for takes in [ms(1), ms(1000)] {
            let seconds = minute(500, 300, takes);
            assert!(
                seconds.iter().all(|&starts| (200..=300).contains(&starts)),
                "{takes:?}: {seconds:?}"
            );
            let mean = f64::from(seconds.iter().sum::<u32>()) / 60.0;
            assert!((mean - 250.0).abs() < 5.0, "{takes:?}: {mean} a second");
        }
    }

    /// More work than the cap allows: the rate is flat at the cap, and everybody gets a turn.
    #[test]
    fn beyond_the_cap_the_rate_is_that_of_the_cap() {
        let seconds = minute(500, 64, ms(1000));
        assert!(seconds.iter().all(|&starts| (60..=68).contains(&starts)), "{seconds:?}");
    }

    /// The process was frozen for a minute: everybody is probed once, and then at the usual pace.
    /// Broken on purpose: missed turns made up for.
    #[test]
    fn after_a_stall_nobody_is_probed_in_a_burst() {
        let (mut schedule, start) = (Schedule::new(8), Instant::now());
        schedule.add(start, INTERVAL, &[0, 1, 2, 3, 4]);
        let mut starts = [0; 5];
        for at in 60_000..61_500 {
            while let Some(key) = schedule.start(start + ms(at)) {
                starts[key as usize] += 1;
                schedule.finish(start + ms(at), key, INTERVAL, 0);
            }
        }
        assert_eq!(starts, [1; 5]);
    }

    proptest! {
        #[test]
        fn jitter_is_a_tenth_either_way(random in any::<u32>(), time in 1u64..1_000_000) {
            let got = jittered(ms(time), random).as_secs_f64() / ms(time).as_secs_f64();
            prop_assert!((0.899..=1.101).contains(&got));
        }
    }

    #[test]
    fn a_lost_packet_leaves_time_for_another() {
        let at = |timeout| tries(ms(timeout)).map(|at| at.as_millis()).collect::<Vec<_>>();
        assert_eq!(at(1000), [250, 500, 750]);
        assert_eq!(at(60), [30, 45]);
        assert_eq!(at(10), [0u128; 0]);
    }
}
