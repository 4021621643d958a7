//! The files that a package installs.

use std::path::Path;
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

/// What git knows of this tree, as it is now, somewhere else.
fn copy_sources(to: &Path) {
    let listed = Command::new("git")
        .arg("ls-files")
        .current_dir(root())
        .output()
        .unwrap();
    assert!(listed.status.success(), "not a clone");
    for name in String::from_utf8(listed.stdout).unwrap().lines() {
        let (from, into) = (root().join(name), to.join(name));
        // Listed, but deleted.
        if from.exists() {
            std::fs::create_dir_all(into.parent().unwrap()).unwrap();
            std::fs::copy(from, into).unwrap();
        }
    }
}

/// The release package of the same sources from two places, by two users' ways to their crates: the same bytes, and neither place in them.
#[test]
#[ignore = "long: two release builds, a quarter of an hour"]
fn the_release_is_the_same_wherever_it_is_built() {
    if !have(&["cargo-deb", "python3", "git"]) {
        return;
    }
    let crates = std::env::var_os("CARGO_HOME").map_or_else(
        || Path::new(&std::env::var_os("HOME").unwrap()).join(".cargo"),
        |home| home.into(),
    );
    // Both before either is built, which takes long: somebody may work here meanwhile.
    let places = ["one", "the other, which has a longer name"].map(|place| {
        let dir = tempfile::Builder::new()
            .prefix("weir-place")
            .tempdir_in("/var/tmp")
            .unwrap();
        copy_sources(&dir.path().join(place));
        (place, dir)
    });
    let made = places.map(|(place, dir)| {
        let (sources, home) = (dir.path().join(place), dir.path().join(format!("{place} home")));
        std::os::unix::fs::symlink(&crates, &home).unwrap();
        let package = dir.path().join("weir.deb");
        let mut make = Command::new("nice");
        make.args(["-n", "19"]).arg(sources.join("scripts/package"));
        make.env("CARGO_HOME", &home).env_remove("CARGO_TARGET_DIR");
        make.envs([("WEIR_COMMIT", "0123456789ab"), ("SOURCE_DATE_EPOCH", "1763800000")]);
        let done = make.arg("--output").arg(&package).status().unwrap();
        assert!(done.success(), "{place}: {done}");
        let program = std::fs::read(sources.join("target/release/weir")).unwrap();
        for trace in [dir.path(), &crates, &root()] {
            let trace = trace.to_str().unwrap().as_bytes();
            assert!(
                !program.windows(trace.len()).any(|bytes| bytes == trace),
                "{} is in the program",
                trace.escape_ascii()
            );
        }
        let sum = run(Command::new("sha256sum")
            .arg(sources.join("target/release/weir"))
            .arg(&package));
        println!("{place}:\n{sum}");
        (program, std::fs::read(package).unwrap())
    });
    assert!(made[0].0 == made[1].0, "the programs differ");
    assert!(made[0].1 == made[1].1, "the packages differ");
}
