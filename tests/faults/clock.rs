//! The wall clock may jump: nothing is decided by it. It is read where a time is written for people, and nowhere else.

use std::path::Path;

/// Files that may read the wall clock, and what for.
const READERS: &[(&str, &str)] = &[
    ("app.rs", "time of a log line"),
    ("worker/tcp.rs", "time of an access record"),
    ("worker/udp", "time of an access record"),
    ("link.rs", "type of that field"),
    ("control/access_log", "writing it"),
    ("control", "start time, events shown to operators"),
    ("sys/sched.rs", "comment"),
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
