//! The last minutes, second by second, for the graphs on the page: pure (times are parameters).
//!
//! Counters become rates here, over the time that really passed between two samples. A series that begins later than the
//! window is padded with absent values, so that all series share one axis; one that has been absent for a whole window is
//! forgotten.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant, SystemTime};

use hyper::body::Bytes;
use indexmap::IndexMap;
use serde_json::{Value, json};

use crate::snapshot::Snapshot;

/// Listeners and backends beyond so many have no series of their own.
const SERIES_MAX: usize = 128;

/// The samples of the last minutes, for every listener and backend that has a series.
#[derive(Debug, Default)]
pub struct History {
    /// Number of the newest sample; the first is 1.
    seq: u64,
    times_ms: VecDeque<u64>,
    series: IndexMap<String, Series>,
    last: Option<Instant>,
    /// Answers to questions since the newest sample.
    answers: HashMap<u64, Bytes>,
}

/// One thing's rows.
#[derive(Debug)]
struct Series {
    counters: [u64; COUNTERS],
    /// Seen in the newest sample.
    fresh: bool,
    values: [VecDeque<Option<f32>>; COUNTERS + 1],
}

/// How many counters a sample has.
const COUNTERS: usize = 4;
/// Names of a sample's values: a gauge, then rates per second.
const NAMES: [&str; COUNTERS + 1] = ["active", "new", "in", "out", "failed"];

/// A gauge, and counters: new, bytes in, bytes out, failed or refused.
pub type Sample = (u32, [u64; COUNTERS]);

impl History {
    /// Time between samples.
    pub const INTERVAL: Duration = Duration::from_secs(1);
    /// Samples kept: ten minutes.
    pub const SAMPLES_MAX: usize = 600;
    /// A reader who is no further behind gets only what is new.
    const RECENT: u64 = 30;

    /// Adds one sample.
    pub fn push(&mut self, now: Instant, time: SystemTime, samples: Vec<(String, Sample)>) {
        let passed = self.last.map(|last| now.saturating_duration_since(last).as_secs_f64());
        self.last = Some(now);
        self.seq += 1;
        self.answers.clear();
        let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.times_ms.push_back(since_epoch.as_millis() as u64);
        if self.times_ms.len() > Self::SAMPLES_MAX {
            self.times_ms.pop_front();
        }
        for (name, sample) in samples {
            if self.series.len() < SERIES_MAX || self.series.contains_key(&name) {
                let series = self.series.entry(name).or_insert_with(|| Series::new(sample.1));
                series.push(sample, passed);
            }
        }
        let length = self.times_ms.len();
        self.series.retain(|_, series| series.align(length));
    }

    /// [`since`](Self::since) as text. However many clients ask between two samples, few texts are made: one for each of the
    /// latest numbers, and one with all samples for all others.
    pub fn text_since(&mut self, since: u64) -> Bytes {
        let recent = self.seq.saturating_sub(Self::RECENT)..=self.seq;
        let since = if recent.contains(&since) { since } else { 0 };
        if let Some(answer) = self.answers.get(&since) {
            return answer.clone();
        }
        let answer = Bytes::from(self.since(since).to_string());
        self.answers.insert(since, answer.clone());
        answer
    }

    /// The samples after number `since`, all of them if there are no such. `from` in the answer is the number before its
    /// first sample: a reader whose newest is another starts afresh.
    pub fn since(&self, since: u64) -> Value {
        let oldest = self.seq - self.times_ms.len() as u64;
        let from = if (oldest..=self.seq).contains(&since) {
            since
        } else {
            oldest
        };
        let skip = (from - oldest) as usize;
        let series: serde_json::Map<String, Value> = self
            .series
            .iter()
            .map(|(name, series)| {
                let rows = NAMES.iter().zip(&series.values);
                let rows = rows.map(|(&name, row)| {
                    let row: Vec<Value> = row.iter().skip(skip).map(|&value| number(value)).collect();
                    (name.to_string(), row.into())
                });
                (name.clone(), Value::Object(rows.collect()))
            })
            .collect();
        json!({
            "interval_ms": Self::INTERVAL.as_millis() as u64,
            "samples_max": Self::SAMPLES_MAX,
            "from": from,
            "seq": self.seq,
            "times_ms": self.times_ms.iter().skip(skip).collect::<Vec<_>>(),
            "series": series,
        })
    }
}

/// One decimal, and none where there is nothing behind the point.
fn number(value: Option<f32>) -> Value {
    match value.map(|value| (f64::from(value) * 10.0).round() / 10.0) {
        None => Value::Null,
        Some(value) if value.fract() == 0.0 => (value as u64).into(),
        Some(value) => value.into(),
    }
}

impl Series {
    fn new(counters: [u64; COUNTERS]) -> Series {
        Series {
            counters,
            fresh: false,
            values: Default::default(),
        }
    }

    fn push(&mut self, (active, counters): Sample, passed: Option<f64>) {
        self.values[0].push_back(Some(active as f32));
        for (ix, row) in self.values[1..].iter_mut().enumerate() {
            // A counter that went back belongs to something new under an old name.
            let grown = counters[ix].checked_sub(self.counters[ix]);
            let rate = grown.zip(passed).filter(|&(_, passed)| passed > 0.0);
            row.push_back(rate.map(|(grown, passed)| (grown as f64 / passed) as f32));
        }
        self.counters = counters;
        self.fresh = true;
    }

    /// Makes every row `length` long. False: there is nothing in it any more.
    fn align(&mut self, length: usize) -> bool {
        let fresh = std::mem::take(&mut self.fresh);
        for row in &mut self.values {
            if !fresh {
                row.push_back(None);
            }
            while row.len() > length {
                row.pop_front();
            }
            while row.len() < length {
                row.push_front(None);
            }
        }
        self.values[0].iter().any(Option::is_some)
    }
}

/// What one sample consists of: the whole, each listener, each backend.
pub fn samples(snapshot: &Snapshot) -> Vec<(String, Sample)> {
    let listeners = snapshot.listeners.iter().map(|listener| {
        let stats = &listener.stats;
        let counters = [
            stats.shards.sum(|shard| &shard.accepted),
            stats.shards.sum(|shard| &shard.bytes_in),
            stats.shards.sum(|shard| &shard.bytes_out),
            stats.refused(),
        ];
        (
            format!("listener/{}", listener.config.name),
            (stats.active.get(), counters),
        )
    });
    let backends = snapshot.pools.iter().flat_map(|pool| {
        pool.backends.iter().map(|backend| {
            let stats = &backend.stats;
            let counters = [
                stats.shards.sum(|shard| &shard.total),
                stats.shards.sum(|shard| &shard.bytes_in),
                stats.shards.sum(|shard| &shard.bytes_out),
                stats.failed(),
            ];
            let name = format!("backend/{}/{}", pool.config.name, backend.config.name);
            (name, (stats.active.get(), counters))
        })
    });
    let listeners: Vec<_> = listeners.collect();
    let total = listeners
        .iter()
        .fold((0, [0; COUNTERS]), |(active, mut sum), (_, sample)| {
            for (total, n) in sum.iter_mut().zip(sample.1) {
                *total += n;
            }
            (active + sample.0, sum)
        });
    std::iter::once(("total".to_string(), total))
        .chain(listeners)
        .chain(backends)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One listener, which is the whole, and backends with what they have served.
    fn sampled(accepted: u64, bytes: u64, backends: &[(&str, u64)]) -> Vec<(String, Sample)> {
        let listener = (3, [accepted, 0, bytes, 0]);
        let backends = backends
            .iter()
            .map(|&(name, total)| (format!("backend/p/{name}"), (0, [total, 0, 0, 0])));
        let whole = ["total", "listener/web"].map(|name| (name.to_string(), listener));
        whole.into_iter().chain(backends).collect()
    }

    fn push(history: &mut History, start: Instant, at_ms: u64, samples: Vec<(String, Sample)>) {
        let at = Duration::from_millis(at_ms);
        history.push(start + at, SystemTime::UNIX_EPOCH + at, samples);
    }

    #[test]
    fn counters_become_rates_over_the_time_that_passed() {
        let (mut history, start) = (History::default(), Instant::now());
        push(&mut history, start, 0, sampled(100, 0, &[("a", 50)]));
        push(&mut history, start, 1000, sampled(110, 2000, &[("a", 60)]));
        push(&mut history, start, 3000, sampled(111, 2000, &[("a", 50), ("b", 7)]));
        push(&mut history, start, 4000, sampled(111, 2000, &[("b", 9)]));
        assert_eq!(
            history.since(0),
            json!({
                "interval_ms": 1000, "samples_max": 600, "from": 0, "seq": 4,
                "times_ms": [0, 1000, 3000, 4000],
                "series": {
                    "total": {"active": [3, 3, 3, 3], "new": [null, 10, 0.5, 0], "in": [null, 0, 0, 0],
                        "out": [null, 2000, 0, 0], "failed": [null, 0, 0, 0]},
                    "listener/web": {"active": [3, 3, 3, 3], "new": [null, 10, 0.5, 0], "in": [null, 0, 0, 0],
                        "out": [null, 2000, 0, 0], "failed": [null, 0, 0, 0]},
                    // Its counter went back: no rate.
                    "backend/p/a": {"active": [0, 0, 0, null], "new": [null, 10, null, null], "in": [null, 0, 0, null],
                        "out": [null, 0, 0, null], "failed": [null, 0, 0, null]},
                    "backend/p/b": {"active": [null, null, 0, 0], "new": [null, null, 0, 2], "in": [null, null, 0, 0],
                        "out": [null, null, 0, 0], "failed": [null, null, 0, 0]},
                }
            })
        );
    }

    #[test]
    fn a_reader_gets_what_it_has_not_seen_or_everything() {
        let (mut history, start) = (History::default(), Instant::now());
        for n in 0..700 {
            push(&mut history, start, n * 1000, sampled(n, 0, &[]));
        }
        // (asked for, from, samples)
        for (since, from, samples) in [
            (700, 700, 0),
            (698, 698, 2),
            (100, 100, 600),
            (99, 100, 600),
            (701, 100, 600),
        ] {
            let answer = history.since(since);
            let row = |key: &str| answer["series"]["total"][key].as_array().unwrap().len();
            assert_eq!(
                (
                    answer["from"].as_u64().unwrap(),
                    answer["times_ms"].as_array().unwrap().len()
                ),
                (from, samples)
            );
            assert_eq!((row("active"), row("new")), (samples, samples));
        }
    }

    #[test]
    fn few_texts_are_made_between_two_samples_and_none_is_out_of_date() {
        let (mut history, start) = (History::default(), Instant::now());
        for n in 0..100 {
            push(&mut history, start, n * 1000, sampled(n, 0, &[]));
            let seq = history.seq;
            for since in (0..200).chain([u64::MAX]) {
                let text: Value = serde_json::from_slice(&history.text_since(since)).unwrap();
                let near = seq.saturating_sub(History::RECENT)..=seq;
                let asked = if near.contains(&since) { since } else { 0 };
                assert_eq!(text, history.since(asked), "{since} at {seq}");
            }
            assert!(history.answers.len() <= 2 + History::RECENT as usize);
        }
    }

    #[test]
    fn what_is_gone_for_a_whole_window_is_forgotten() {
        let (mut history, start) = (History::default(), Instant::now());
        push(&mut history, start, 0, sampled(0, 0, &[("gone", 1)]));
        let has = |history: &History| history.since(0)["series"].get("backend/p/gone").is_some();
        for n in 1..History::SAMPLES_MAX as u64 {
            push(&mut history, start, n * 1000, sampled(0, 0, &[]));
            assert!(has(&history));
        }
        push(&mut history, start, 600_000, sampled(0, 0, &[]));
        assert!(!has(&history));
    }
}
