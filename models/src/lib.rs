//! See Cargo.toml. Each file of `src/base` that threads share is included with loom's atomics in place of std's.
#![cfg(all(test, loom))]
#![allow(dead_code)]

mod atomic {
    pub use loom::sync::atomic::*;
}

#[path = "../../src/base/gauge.rs"]
mod gauge;
#[path = "../../src/base/latest.rs"]
mod latest;
#[path = "../../src/base/log_limit.rs"]
mod log_limit;

use std::time::Duration;

use loom::sync::{Arc, Mutex};
use loom::thread;

/// Break tried: `try_raise` by load and store (two are in where one is allowed).
#[test]
fn a_cap_is_never_exceeded_and_no_place_is_lost() {
    loom::model(|| {
        let gauge = Arc::new(gauge::Gauge::default());
        let inside = Arc::new(atomic::AtomicU32::new(0));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (gauge, inside) = (gauge.clone(), inside.clone());
                thread::spawn(move || {
                    if gauge.try_raise(Some(1)) {
                        let others = inside.fetch_add(1, atomic::Ordering::Relaxed);
                        assert_eq!(others, 0, "two are in where one is allowed");
                        inside.fetch_sub(1, atomic::Ordering::Relaxed);
                        gauge.lower();
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(gauge.get(), 0);
        assert!(gauge.try_raise(Some(1)));
    });
}

/// Break tried: the version announced before the slot is filled (a reader that saw version 2 stays with the old value).
#[test]
fn whoever_sees_a_version_finds_its_value() {
    loom::model(|| {
        let latest = Arc::new(latest::Latest::default());
        // Relaxed, so that nothing but `Latest` itself orders the value.
        let slot = Arc::new(atomic::AtomicU64::new(0));
        let writer = {
            let (latest, slot) = (latest.clone(), slot.clone());
            thread::spawn(move || {
                for version in 1..=2 {
                    latest.publish(version, || slot.store(version, atomic::Ordering::Relaxed));
                }
            })
        };
        let reader = {
            let (latest, slot) = (latest.clone(), slot.clone());
            thread::spawn(move || {
                let mut have = 0;
                for _ in 0..2 {
                    let load = || slot.load(atomic::Ordering::Relaxed);
                    if let Some(value) = latest.newer_than(have, load) {
                        assert!(value >= have, "back from {have} to {value}");
                        assert!(value > 0, "a version was seen without its value");
                        have = value;
                    }
                }
                have
            })
        };
        writer.join().unwrap();
        let have = reader.join().unwrap();
        // Woken once more after the last publication, as workers are, it has the newest.
        let load = || slot.load(atomic::Ordering::Relaxed);
        let now = latest.newer_than(have, load).unwrap_or(have);
        assert_eq!(now, 2, "the newest is missed for ever");
    });
}

/// Break tried: the line decided by load and store (two lines in one second).
#[test]
fn one_line_a_second_and_no_count_is_lost() {
    loom::model(|| {
        let limit = Arc::new(log_limit::LogLimit::default());
        let lines = Arc::new(Mutex::new(Vec::new()));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (limit, lines) = (limit.clone(), lines.clone());
                thread::spawn(move || {
                    let line = limit.admit(Duration::ZERO);
                    lines.lock().unwrap().extend(line);
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let first: u64 = lines.lock().unwrap().iter().map(|left_out| left_out.0).sum();
        assert_eq!(lines.lock().unwrap().len(), 1);
        let next = limit.admit(Duration::from_secs(1)).unwrap().0;
        assert_eq!(first + next, 1, "one line was left out");
    });
}
