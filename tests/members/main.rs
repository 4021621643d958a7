//! Members that come and go, each source the real thing where there is one.
//!
//! | file | is about |
//! |---|---|
//! | `file` | lists in files: written in one go and in pieces, replaced, broken, absent, behind links |
//! | `dns` | names and services: nsd, and a server that lies |
//! | `etcd` | keys: an etcd of one member |
//! | `docker` | containers: an engine in the test |
//! | `load` | all of them, changing under load |
//! | `life` | what members and pools go through, whatever the source: drains, reloads, upgrades, the sandbox |

#[path = "../common/mod.rs"]
mod common;

mod dns;
mod docker;
mod etcd;
mod file;
mod life;
mod load;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Weir, client, operator, wait_until};
use serde_json::Value;

/// A file of members in a directory of its own.
struct List {
    dir: tempfile::TempDir,
}

impl List {
    fn new(text: &str) -> List {
        let list = List::absent();
        list.replace(text);
        list
    }

    fn absent() -> List {
        List {
            dir: tempfile::Builder::new().prefix("weir-members-").tempdir().unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("web.yaml")
    }

    /// Another file takes its place.
    fn replace(&self, text: &str) {
        let beside = self.dir.path().join("web.yaml.new");
        fs::write(&beside, text).unwrap();
        fs::rename(&beside, self.path()).unwrap();
    }

    fn yaml(&self) -> String {
        configuration(&self.path(), "")
    }
}

/// A listener `web`, and a pool `web` with a file of members and `keys`.
fn configuration(file: &Path, keys: &str) -> String {
    format!(
        "listeners: {{web: {{bind: '127.0.0.1:0', pool: web}}}}\n\
         pools: {{web: {{balance: round_robin, health: {{interval: 50ms}}, members: [{{file: {}}}]{keys}}}}}\n",
        file.display()
    )
}

/// `weir members web --json`.
fn members(weir: &Weir) -> Value {
    operator::json(weir, &["members", "web"])
}

/// Addresses and states, sorted: `127.0.0.1:80 up`.
fn states(weir: &Weir) -> Vec<String> {
    let document = members(weir);
    let members = document["members"].as_array().unwrap().iter();
    let word = |member: &Value, key: &str| member[key].as_str().unwrap().to_owned();
    let mut states: Vec<String> = members
        .map(|m| format!("{} {}", word(m, "address"), word(m, "state")))
        .collect();
    states.sort();
    states
}

/// Waits until these addresses, and no others, are in the pool and up.
#[track_caller]
fn wait_until_up(weir: &Weir, addresses: &[&str]) {
    let mut wanted: Vec<String> = addresses.iter().map(|address| format!("{address} up")).collect();
    wanted.sort();
    let mut found = Vec::new();
    let mut same = || {
        found = states(weir);
        found == wanted
    };
    let deadline = std::time::Instant::now() + common::PATIENCE;
    while !same() {
        assert!(
            std::time::Instant::now() < deadline,
            "wanted {wanted:?}, found {:?}",
            states(weir)
        );
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// The source's error, as `weir members` shows it.
fn error(weir: &Weir) -> Option<String> {
    members(weir)["sources"][0]["error"].as_str().map(str::to_owned)
}

/// Names that answer, over so many connections.
fn answers(weir: &Weir, count: usize) -> Vec<String> {
    let address = weir.address("web");
    let mut names: Vec<String> = (0..count)
        .map(|_| client::fetch(&address).unwrap_or_default())
        .collect();
    names.sort();
    names.dedup();
    names
}

#[track_caller]
fn wait_until_answers(weir: &Weir, names: &[&str]) {
    wait_until(&format!("{names:?} answer"), || answers(weir, 8) == names);
}
