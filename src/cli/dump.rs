//! `weir dump` and `weir diff`: the configuration in force, as a file, and against a file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::client::{self, Options};
use super::table;
use crate::api::question::Question;
use crate::app::EXIT_CONFIG;
use crate::config::fields::{Missing, Shape, field};
use crate::config::{self, Node, Value};

/// The configuration in force as a file that `weir check` accepts; weights and drains by order are in it.
#[derive(Debug, clap::Args)]
pub struct DumpArgs {
    #[command(flatten)]
    options: Options,
}

/// What a reload of a file would change; 0 = nothing, 1 = something.
#[derive(Debug, clap::Args)]
pub struct DiffArgs {
    /// Configuration file.
    #[arg(short, long, default_value = super::DEFAULT_CONFIG)]
    config: PathBuf,
    #[command(flatten)]
    options: Options,
}

/// Runs `weir dump`: prints the configuration in force.
pub fn dump(args: &DumpArgs) -> ExitCode {
    match client::ask(&args.options, &Question::Dump) {
        Ok(answer) if args.options.json => {
            table::print(&format!("{}\n", json!({ "ok": answer })));
            ExitCode::SUCCESS
        }
        Ok(answer) => {
            table::print(answer.as_str().unwrap_or_default());
            ExitCode::SUCCESS
        }
        Err(error) => client::fail(&args.options, &error),
    }
}

/// Runs `weir diff`: prints what a reload of the file would change.
pub fn diff(args: &DiffArgs) -> ExitCode {
    let file = match config::load(&args.config) {
        Ok(loaded) => loaded.config.written.node().clone(),
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let running = match client::ask(&args.options, &Question::Dump) {
        Ok(answer) => answer.as_str().unwrap_or_default().to_string(),
        Err(error) => return client::fail(&args.options, &error),
    };
    let running = match config::parse("running", &running) {
        Ok(loaded) => loaded.config.written.node().clone(),
        Err(errors) => {
            eprintln!("weir diff: this weir and the running one are of different versions: {errors}");
            return ExitCode::FAILURE;
        }
    };
    let changes = changes(&running, &file);
    if args.options.json {
        let row = |c: &Change| json!({"path": c.path, "running": c.running, "file": c.file});
        let rows: Vec<_> = changes.iter().map(row).collect();
        table::print(&format!("{}\n", json!({ "changes": rows })));
    } else {
        let none = || "(none)".to_string();
        for Change { path, running, file } in &changes {
            let (running, file) = (running.clone().unwrap_or_else(none), file.clone().unwrap_or_else(none));
            table::print(&format!(
                "{}: {} -> {}\n",
                table::clean(path),
                table::clean(&running),
                table::clean(&file)
            ));
        }
    }
    match changes.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// One key whose values differ; `None` = not there.
#[derive(Debug, PartialEq)]
struct Change {
    path: String,
    running: Option<String>,
    file: Option<String>,
}

/// What differs, leaving out what is a default on one side and left out on the other.
fn changes(running: &Node, file: &Node) -> Vec<Change> {
    let [running, file] = [running, file].map(|tree| {
        let mut flat = BTreeMap::new();
        flatten(tree, "", "", &mut flat);
        flat
    });
    let mut changes = Vec::new();
    let mut paths: Vec<&String> = running.keys().chain(file.keys()).collect();
    paths.sort_unstable();
    paths.dedup();
    for path in paths {
        let sides = [running.get(path), file.get(path)];
        let row = sides.iter().flatten().next().map_or("", |leaf| leaf.row.as_str());
        let meant = sides.map(|side| meaning(row, side.map(|leaf| leaf.text.as_str())));
        if meant[0] != meant[1] {
            let [running, file] = sides.map(|side| side.map(|leaf| leaf.text.clone()));
            let path = path.clone();
            changes.push(Change { path, running, file });
        }
    }
    changes
}

/// A value, and the row of the table of keys that it belongs to.
struct Leaf {
    row: String,
    text: String,
}

/// What a text means: the default if it is left out, and one way to write a duration.
fn meaning(row: &str, text: Option<&str>) -> Option<String> {
    let field = field(row);
    let text = text.or(match field.map(|field| field.missing) {
        Some(Missing::Default(default)) => Some(default),
        _ => None,
    })?;
    let duration = field
        .filter(|field| field.kind == "duration")
        .and(humantime::parse_duration(text).ok());
    Some(duration.map_or_else(|| text.to_string(), |duration| format!("{duration:?}")))
}

fn flatten(node: &Node, path: &str, row: &str, into: &mut BTreeMap<String, Leaf>) {
    let join = |path: &str, key: &str| {
        if path.is_empty() {
            key.into()
        } else {
            format!("{path}.{key}")
        }
    };
    match &node.value {
        Value::Map(entries) => {
            let named = field(row).is_some_and(|field| field.shape == Shape::Named);
            for entry in entries {
                let row = join(row, if named { "*" } else { &entry.key });
                flatten(&entry.node, &join(path, &entry.key), &row, into);
            }
        }
        Value::List(nodes) if field(row).is_some_and(|field| field.shape == Shape::Items) => {
            for item in nodes {
                let row = join(row, "*");
                let key = |name: &str| match &item.value {
                    Value::Map(entries) => entries.iter().find(|e| e.key == name).map(|e| shown(&e.node)),
                    _ => None,
                };
                match &item.value {
                    Value::Map(_) => {
                        let name = key("name").or_else(|| key("address")).unwrap_or_else(|| shown(item));
                        flatten(item, &join(path, &name), &row, into);
                    }
                    // An address alone is short for a section with it.
                    _ => {
                        let text = shown(item);
                        let path = join(path, &text);
                        let row = join(&row, "address");
                        into.insert(join(&path, "address"), Leaf { row, text });
                    }
                }
            }
        }
        _ => {
            let (row, text) = (row.to_string(), shown(node));
            into.insert(path.into(), Leaf { row, text });
        }
    }
}

/// A value in one line; a list of one is the same without brackets.
fn shown(node: &Node) -> String {
    match &node.value {
        Value::Scalar(text) => text.clone(),
        Value::Null => "~".into(),
        Value::List(nodes) if nodes.len() == 1 => shown(&nodes[0]),
        Value::List(nodes) => format!("[{}]", nodes.iter().map(shown).collect::<Vec<_>>().join(", ")),
        Value::Map(entries) => {
            let pair = |e: &config::Entry| format!("{}: {}", e.key, shown(&e.node));
            format!("{{{}}}", entries.iter().map(pair).collect::<Vec<_>>().join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str) -> Node {
        config::parse("f", text).unwrap().config.written.node().clone()
    }

    /// Meant to fail with defaults taken for differences, and with backends compared by their place.
    #[test]
    fn what_differs() {
        let base = "listeners: {l: {bind: '0.0.0.0:80', pool: p}}\npools: {p: {backends: [{name: a, address: 10.0.0.1:80}, 10.0.0.2:80]}}\n";
        for (file, expected) in [
            (base.to_string(), ""),
            (format!("{base}shutdown_grace: 30s\n"), ""),
            (
                format!("{base}shutdown_grace: 90s\n"),
                "shutdown_grace None Some(\"90s\")",
            ),
            (base.replace("'0.0.0.0:80'", "['0.0.0.0:80']"), ""),
            (base.replace("pool: p}", "pool: p, timeouts: {idle: 600s}}"), ""),
            (
                base.replace(
                    "[{name: a, address: 10.0.0.1:80}, 10.0.0.2:80]",
                    "[10.0.0.2:80, {name: a, address: 10.0.0.1:80}]",
                ),
                "",
            ),
            (
                base.replace("address: 10.0.0.1:80", "address: 10.0.0.1:80, weight: 3"),
                "pools.p.backends.a.weight None Some(\"3\")",
            ),
            (
                base.replace(", 10.0.0.2:80]", "]"),
                "pools.p.backends.10.0.0.2:80.address Some(\"10.0.0.2:80\") None",
            ),
        ] {
            let found = changes(&tree(base), &tree(&file));
            let found: Vec<String> = found
                .iter()
                .map(|c| format!("{} {:?} {:?}", c.path, c.running, c.file))
                .collect();
            assert_eq!(found.join("; "), expected, "{file}");
        }
    }
}
