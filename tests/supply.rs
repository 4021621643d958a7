//! What the program is made of: licences that may be combined with ours, one version of each library, one source. The rules
//! are those of deny.toml, read from there, so that cargo-deny and this test cannot disagree.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

const RULES: &str = include_str!("../deny.toml");

/// The strings in the brackets that follow `key = [`, or the crate names of `{ crate = "name:..." }` entries.
fn list(key: &str) -> BTreeSet<String> {
    let (_, rest) = RULES.split_once(&format!("\n{key} = [")).expect(key);
    let inside = &rest[..rest.find(']').unwrap()];
    let entries = inside.split('"').skip(1).step_by(2);
    let names = entries.filter(|_| key != "skip").map(str::to_owned);
    let skipped = inside.lines().filter(|_| key == "skip").filter_map(|line| {
        let (_, crate_) = line.split_once("crate = \"")?;
        Some(crate_.split([':', '"']).next()?.to_owned())
    });
    names.chain(skipped).collect()
}

/// Whether an SPDX expression can be satisfied with the allowed licences.
fn allowed(expression: &str, licences: &BTreeSet<String>) -> bool {
    let flat = expression.replace(['(', ')'], "").replace('/', " OR ");
    // AND binds closer; an expression with parentheses around OR needs both halves good.
    if let Some((left, right)) = expression.split_once(") AND ") {
        return allowed(&left[1..], licences) && allowed(right, licences);
    }
    flat.split(" OR ")
        .any(|choice| choice.split(" AND ").all(|one| licences.contains(one.trim())))
}

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let used: BTreeSet<&str> = metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n["id"].as_str().unwrap())
        .collect();
    let all = metadata["packages"].as_array().unwrap();
    all.iter()
        .filter(|p| used.contains(p["id"].as_str().unwrap()))
        .cloned()
        .collect()
}

#[test]
fn licences_versions_and_sources() {
    let (licences, skipped) = (list("allow"), list("skip"));
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in packages() {
        let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
        let (name, licence, source) = (text("name"), text("license"), text("source"));
        assert!(allowed(&licence, &licences), "{name} has the licence {licence}");
        let ours = source.is_empty() && name == "weir";
        assert!(ours || source.starts_with("registry+"), "{name} comes from {source}");
        versions.entry(name).or_default().insert(text("version"));
    }
    versions.retain(|_, versions| versions.len() > 1);
    let twice: BTreeSet<String> = versions.into_keys().collect();
    let unknown: Vec<_> = twice.difference(&skipped).collect();
    assert!(unknown.is_empty(), "more than one version of {unknown:?}");
    let gone: Vec<_> = skipped.difference(&twice).collect();
    assert!(
        gone.is_empty(),
        "only one version of {gone:?} is left: take it off the list"
    );
}

#[test]
fn expressions() {
    let licences = BTreeSet::from(["MIT".to_owned(), "Zlib".to_owned()]);
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-2.0", false),
        ("GPL-2.0 OR MIT", true),
        ("GPL-2.0/MIT", true),
        ("GPL-2.0 AND MIT", false),
        ("(GPL-2.0 OR MIT) AND Zlib", true),
        ("(GPL-2.0 OR MIT) AND BSD", false),
    ] {
        assert_eq!(allowed(expression, &licences), expected, "{expression}");
    }
}

/// Names in the brackets after each `start` in a text.
fn named<'a>(text: &'a str, start: &str) -> Vec<&'a str> {
    let lists = text.split(start).skip(1);
    let inside = lists.filter_map(|rest| rest.split_once(']')).map(|(inside, _)| inside);
    inside.flat_map(|list| list.split('"').skip(1).step_by(2)).collect()
}

/// Seen to fail with `adduser`, which the service tests need and nothing installed.
#[test]
fn programs_that_tests_ask_for_are_installed_by_setup() {
    let setup = include_str!("../scripts/setup");
    let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests"))];
    let (mut asked, mut missing) = (0, BTreeSet::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()) {
            if entry.is_dir() {
                folders.push(entry);
                continue;
            }
            let text = std::fs::read_to_string(&entry).unwrap();
            if entry.ends_with(file!()) {
                continue;
            }
            for program in [named(&text, "have(&["), named(&text, "let needed = [")].concat() {
                asked += 1;
                if !setup.contains(&format!("\n{program}:")) && program != "cargo-deb" {
                    missing.insert(program.to_owned());
                }
            }
        }
    }
    assert!(asked > 20, "tests ask in another way: {asked} found");
    assert!(missing.is_empty(), "not in the list of scripts/setup: {missing:?}");
}
