//! The files that a package installs.

use std::process::Command;

use super::common::{command, have, run};
use super::root;

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
