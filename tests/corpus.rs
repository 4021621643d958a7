//! Replays the corpus that fuzzing has grown (`fuzz/corpus`, `scripts/fuzz`): what once was found stays fixed.

#[path = "../fuzz/entries.rs"]
mod entries;
#[path = "../fuzz/pack.rs"]
mod pack;

fn replay(target: &str, entry: fn(&[u8])) {
    let file = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let inputs = pack::read(file.as_ref());
    assert!(!inputs.is_empty(), "{file} is empty");
    for (ix, (_, bytes)) in inputs.iter().enumerate() {
        // Named in case it panics.
        println!("{file}:{}", ix + 1);
        entry(bytes);
    }
}

#[test]
fn every_byte_survives_packing() {
    let bytes: Vec<u8> = (0..=255).collect();
    let line = pack::line(None, &bytes);
    let escaped = line.trim_end_matches('\n').strip_prefix("- ").unwrap();
    assert!(escaped.is_ascii() && !escaped.contains('\n'));
    assert_eq!(pack::unescape(escaped).unwrap(), bytes);
    for broken in ["\\", "\\x", "\\x4", "\\xzz", "\\q", "\u{e4}"] {
        assert_eq!(pack::unescape(broken), None, "{broken}");
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

/// Meant to fail when half a hello is taken for one without a name.
#[test]
fn hello() {
    replay("hello", entries::hello);
}

/// Meant to fail when an answer without a line end waits for one behind its end.
#[test]
fn answers() {
    replay("answers", entries::answers);
}

/// Meant to fail when what the checker refuses is not cut out.
#[test]
fn import() {
    replay("import", entries::import);
}

#[test]
fn beats() {
    replay("beats", entries::beats);
}

/// Meant to fail when a key's member was added without a look at the addresses of the others.
#[test]
fn members() {
    replay("members", entries::members);
}

#[test]
fn admin() {
    replay("admin", entries::admin);
}

#[test]
fn http() {
    replay("http", entries::http);
}
