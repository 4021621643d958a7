//! Replays the corpus that fuzzing has grown (`fuzz/corpus`, `scripts/fuzz`): what once was found stays fixed.

#[path = "../fuzz/entries.rs"]
mod entries;

fn replay(target: &str, entry: fn(&[u8])) {
    let dir = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().flatten().map(|f| f.path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{dir} is empty");
    for file in files {
        // Named in case it panics.
        println!("{}", file.display());
        entry(&std::fs::read(&file).unwrap());
    }
}

#[test]
fn config() {
    replay("config", entries::config);
}

/// Seen to fail when half a version 1 line was refused.
#[test]
fn proxy_header() {
    replay("proxy_header", entries::proxy_header);
}

#[test]
fn beats() {
    replay("beats", entries::beats);
}

#[test]
fn admin() {
    replay("admin", entries::admin);
}

#[test]
fn http() {
    replay("http", entries::http);
}
