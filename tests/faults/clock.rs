//! The wall clock may jump: nothing is decided by it. It is read where a time is written for people, and nowhere else.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::common::{self, Launch, Server, client};

/// Files that may read the wall clock, and what for.
const READERS: &[(&str, &str)] = &[
    ("control/operator", "start time, events shown to operators"),
    ("control/access_log", "writing it"),
    ("control/event_log.rs", "time of a log line"),
    ("control/events.rs", "time of an event"),
    ("kernel/account.rs", "time of an access record"),
    ("sys/sched.rs", "comment"),
    ("worker/account.rs", "time of an access record"),
    ("worker/udp", "time of an access record"),
];

#[test]
fn decisions_never_read_the_wall_clock() {
    fn walk(dir: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, found);
            } else {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                let reads = |word: &str| text.contains(word);
                if reads("SystemTime::now") || reads("CLOCK_REALTIME") {
                    found.push(path.display().to_string());
                }
            }
        }
    }
    let src = concat!(env!("CARGO_MANIFEST_DIR"), "/src/");
    let mut found = Vec::new();
    walk(Path::new(src), &mut found);
    for file in found {
        let inner = file.strip_prefix(src).unwrap();
        let known = READERS.iter().any(|(prefix, _)| inner.starts_with(prefix));
        assert!(known, "{inner} reads the wall clock");
    }
}

/// A library that lies about the wall clock, and only about that.
fn liar() -> Option<PathBuf> {
    let library = |entry: std::fs::DirEntry| entry.path().join("faketime/libfaketimeMT.so.1");
    let mut libraries = std::fs::read_dir("/usr/lib").unwrap().flatten().map(library);
    let found = libraries.find(|path| path.exists());
    if found.is_none() {
        common::skip("faketime not installed");
    }
    found
}

/// The wall clock jumps by years, forwards and back, under a process that serves: no timeout is early or late, no backend
/// is judged by it, no rate or age is renewed, and only what is written for people shows the new time.
///
/// Break tried: the epoch of all timers taken from the wall clock (connections end with the first jump).
#[test]
fn the_clock_jumps_under_a_serving_process() {
    let Some(library) = liar() else { return };
    let dir = tempfile::tempdir().unwrap();
    let clock = dir.path().join("clock");
    std::fs::write(&clock, "+0").unwrap();
    let backend = Server::echo();
    let yaml = format!(
        "admin: {}/admin.sock\nlog: {{access: stdout}}\n\
         listeners:\n  web: {{bind: '127.0.0.1:0', pool: web, timeouts: {{idle: 1h, max_age: 2h}}}}\n  \
         idle: {{bind: '127.0.0.1:0', pool: web, timeouts: {{idle: 2s}}}}\n  \
         rate: {{bind: '127.0.0.1:0', pool: web, limits: {{new_per_source: 1/h}}}}\n\
         pools: {{web: {{backends: '{}', health: {{interval: 100ms, timeout: 1s, fall: 1, rise: 1}}}}}}\n",
        dir.path().display(),
        backend.address
    );
    let weir = Launch::new(&yaml)
        .behind(&[
            "env",
            &format!("LD_PRELOAD={}", library.display()),
            &format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()),
            "FAKETIME_NO_CACHE=1",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
        ])
        .start();
    let web = weir.address("web");
    let mut old = client::connect(&web);
    client::round_trip(&mut old, b"before");
    client::round_trip(&mut client::connect(&weir.address("rate")), b"the only one");
    let year = |record: &common::Record| record.time[..4].parse::<i32>().unwrap();
    let this_year = year(&weir.wait_for_records(1)[0]);
    let mut records = 1;
    for (jump, years) in [("+800d", 2), ("-3700d", -10), ("+0", 0)] {
        let begun = Instant::now();
        let mut idle = client::connect(&weir.address("idle"));
        std::fs::write(&clock, jump).unwrap();
        // The old goes on, the new is served, the one that has used up its rate has.
        for _ in 0..5 {
            client::round_trip(&mut old, b"during");
            client::round_trip(&mut client::connect(&web), b"new");
            client::connect_to_reset(&weir.address("rate"));
        }
        // By its timeout, and not before.
        assert_eq!(client::read_to_end(&mut idle), b"", "{jump}");
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(1999), "{jump}: {took:?}");
        records += 11;
        let all = weir.wait_for_records(records);
        assert!(
            all.iter().all(|record| (0.0..20_000.0).contains(&record.duration_ms)),
            "{jump}: {all:?}"
        );
        let idle = all.iter().rfind(|record| record.listener == "idle").unwrap();
        assert!(idle.cause == "idle_timeout" && idle.duration_ms >= 1999.0, "{idle:?}");
        let shown = year(all.iter().rfind(|record| record.cause == "limit_rate").unwrap());
        assert!((shown - this_year - years).abs() <= 1, "{jump}: the log says {shown}");
    }
    let lines = weir.stderr().join("\n");
    assert!(!lines.contains(" is down") && !lines.contains("ejected"), "{lines}");
    client::round_trip(&mut old, b"after");
    drop(old);
    weir.stop();
}
