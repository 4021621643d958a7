//! The files that a package installs.

use std::process::Command;

use super::common::{command, have, run, skip};
use super::root;
use super::systemd::package;

/// Breaks tried: removing ProtectSystem= and SystemCallFilter= from the unit in turn.
#[test]
fn the_unit_is_sandboxed() {
    if !have(&["systemd-analyze"]) {
        return;
    }
    let mut analyze = Command::new("systemd-analyze");
    // Exposure in tenths.
    analyze.args(["security", "--offline=true", "--no-pager", "--threshold=20"]);
    let report = run(analyze.arg(root().join("conf/weir.service")));
    let overall = report.lines().find(|line| line.contains("Overall exposure"));
    println!("{}", overall.unwrap_or_default());
}

#[test]
fn man_pages_and_completions_are_made_of_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let weir = env!("CARGO_BIN_EXE_weir");
    for what in ["man", "completions"] {
        run(command(weir).args(["generate", what]).arg(dir.path()));
    }
    let text = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    for (file, word) in [
        ("weir.1", "USR2"),
        ("weir-run.1", "backend"),
        ("weir.yaml.5", "max_connections"),
        ("weir", "complete -F"),
        ("_weir", "#compdef weir"),
        ("weir.fish", "complete -c weir"),
    ] {
        assert!(text(file).contains(word), "{file}");
    }
    assert!(!dir.path().join("weir-generate.1").exists());
}

/// Twice the same bytes, whatever the times of the files; lintian has nothing to say that is not overridden with a reason; the
/// list of what is linked in names what Cargo.lock has.
#[test]
fn the_package_is_reproducible_and_clean() {
    if !have(&["cargo-deb", "lintian", "python3"])
        || !root().join("target/debug/weir").exists() && !skip("not a debug build")
    {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let made = [1, 2].map(|n| {
        let into = dir.path().join(n.to_string());
        std::fs::create_dir(&into).unwrap();
        package(&into)
    });
    let [first, second] = made.each_ref().map(|file| std::fs::read(file).unwrap());
    assert!(first == second, "the packages differ");
    let mut lintian = Command::new("lintian");
    let said = run(lintian
        .args(["--allow-root", "--fail-on", "error,warning"])
        .arg(&made[0]));
    assert_eq!(said, "");

    let list = std::fs::read_to_string(root().join("target/package/sbom.cdx.json")).unwrap();
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let names: Vec<&str> = list["components"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|c| c["name"].as_str())
        .collect();
    for name in ["mio", "socket2", "serde", "rustls"] {
        assert!(names.contains(&name), "{name} is linked in");
    }
    for name in ["criterion", "proptest", "weir"] {
        assert!(!names.contains(&name), "{name} is not");
    }
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    for component in list["components"].as_array().unwrap() {
        let hash = component["hashes"][0]["content"].as_str().unwrap();
        assert!(lock.contains(hash) && component["licenses"].is_array(), "{component}");
    }
}
