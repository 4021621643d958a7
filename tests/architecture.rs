//! Holds the table of layers in `src/lib.rs`: imports point downwards, and what is dangerous or on its way out stays in
//! one place.
//!
//! Seen to fail with `use crate::control::Request;` in `src/worker/mod.rs`, `use crate::worker;` in `src/base/rng.rs`,
//! and `unsafe {}` in `src/app.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Lowest first. Modules of one layer may import each other, except those in [`STRANGERS`].
const LAYERS: &[(&str, &[&str])] = &[
    ("values", &["base"]),
    (
        "decisions",
        &["config", "balance", "health", "discovery", "relay", "flow", "failover"],
    ),
    ("kernel", &["sys"]),
    (
        "exchange",
        &["stats", "gate", "snapshot", "link", "api", "route", "routing", "queue"],
    ),
    ("keeper", &["keeper"]),
    ("runner", &["runner"]),
    ("shells", &["worker", "kernel", "control"]),
    ("rim", &["cli", "app"]),
];

/// Modules that know each other only through what lies below them.
const STRANGERS: &[&str] = &["worker", "kernel", "control"];

/// Longest file: it can be read in one go, and holds one decision.
const LINES_MAX: usize = 600;

/// Files that are longer than [`LINES_MAX`] and are neither tests nor tables. This list only shrinks.
const LONG: &[&str] = &[];

/// Files that ask clippy to bear functions of many parameters. This list only shrinks.
const MANY_ARGUMENTS: &[&str] = &[];

const SRC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src");

struct Source {
    /// Relative to `src/`.
    path: PathBuf,
    text: String,
}

impl Source {
    /// First component: `worker` for `worker/tcp.rs`, `link` for `link.rs`.
    fn module(&self) -> String {
        let first = self.path.iter().next().unwrap();
        Path::new(first).file_stem().unwrap().to_string_lossy().into_owned()
    }

    /// Lines without comments, with their numbers.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate();
        lines.map(|(ix, line)| (ix + 1, line.split("//").next().unwrap_or_default()))
    }
}

fn sources() -> Vec<Source> {
    fn walk(directory: &Path, found: &mut Vec<Source>) {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(SRC).unwrap().to_owned();
                found.push(Source { path, text });
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new(SRC), &mut found);
    assert!(found.len() > 20, "the sources are elsewhere");
    found
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|(_, modules)| modules.contains(&module))
}

/// Modules named after `crate::` in a line, in either form: `crate::base::Key`, `use crate::{link, stats::Count};`.
fn named(line: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        let end = |c: char| !c.is_ascii_alphanumeric() && c != '_';
        text.split(end).next().unwrap_or_default().to_owned()
    };
    let mut names = Vec::new();
    for rest in line.split("crate::").skip(1) {
        let Some(list) = rest.strip_prefix('{') else {
            names.push(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut start = true;
        for (at, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if c.is_whitespace() => {}
                _ if start => {
                    names.push(word(&list[at..]));
                    start = false;
                }
                _ => {}
            }
            if depth < 0 {
                break;
            }
        }
    }
    names
}

#[test]
fn both_forms_of_imports_are_read() {
    for (line, names) in [
        ("use crate::base::Key;", vec!["base"]),
        (
            "use crate::{link, stats::{Count, Gauge}, sys};",
            vec!["link", "stats", "sys"],
        ),
        ("fn f(a: crate::relay::By, b: crate::flow::X)", vec!["relay", "flow"]),
        ("use std::io;", vec![]),
    ] {
        assert_eq!(named(line), names, "{line}");
    }
}

#[test]
fn imports_point_downwards() {
    let mut wrong = Vec::new();
    for source in sources() {
        let module = source.module();
        let Some(own) = layer(&module) else { continue };
        // One import may spread over several lines.
        let code: Vec<&str> = source.code().map(|(_, line)| line.trim()).collect();
        for name in named(&code.join(" ")) {
            let strange = STRANGERS.contains(&name.as_str()) && STRANGERS.contains(&module.as_str()) && name != module;
            if strange || layer(&name).is_some_and(|other| other > own) {
                wrong.push(format!("src/{} imports {name}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Module paths as they are written in a statement, braces written out: `a::{b, c::D}` is `a::b` and `a::c::D`.
fn expand(text: &str) -> Vec<String> {
    let Some((head, rest)) = text.split_once('{') else {
        let name = text.split(" as ").next().unwrap_or_default().trim();
        return vec![name.to_owned()];
    };
    let inner = rest.rsplit_once('}').map_or(rest, |(inner, _)| inner);
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inner[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&inner[start..]);
    let parts = parts.into_iter().filter(|part| !part.trim().is_empty());
    parts
        .flat_map(|part| expand(part.trim()))
        .map(|part| format!("{}{}", head.trim(), part))
        .collect()
}

/// The files of the crate by module (`[control, upgrade]`), and what each of them imports and hands on.
struct Modules {
    /// By module: file, imports (`use`), names handed on (`pub use`) with where they come from.
    files: BTreeMap<Vec<String>, (String, Vec<String>, BTreeMap<String, String>)>,
}

impl Modules {
    fn read() -> Modules {
        let mut files = BTreeMap::new();
        for source in sources() {
            let mut module: Vec<String> = source.path.iter().map(|part| part.to_string_lossy().into()).collect();
            let file = module.pop().unwrap();
            let stem = file.trim_end_matches(".rs").to_owned();
            // Tests look at everything.
            if stem == "tests" || module.iter().any(|part| part == "tests") {
                continue;
            }
            if !["mod", "lib", "main"].contains(&&*stem) {
                module.push(stem);
            }
            let code: Vec<&str> = source.code().map(|(_, line)| line.trim()).collect();
            let code = code.join("\n");
            let code = code
                .split("#[cfg(test)]\nmod tests {")
                .next()
                .unwrap()
                .replace('\n', " ");
            let (mut imports, mut handed_on) = (Vec::new(), BTreeMap::new());
            for statement in code.split(';') {
                let start = |statement: &str| {
                    statement.rfind("use ").filter(|at| {
                        let before = &statement[..*at];
                        before.is_empty() || before.ends_with(' ')
                    })
                };
                if let Some(at) = start(statement.split('{').next().unwrap_or_default()) {
                    let paths = expand(statement[at + 4..].trim());
                    if statement[..at].contains("pub ") || statement[..at].contains("pub(") {
                        let name = |path: &String| path.rsplit("::").next().unwrap_or_default().to_owned();
                        handed_on.extend(paths.iter().map(|path| (name(path), path.clone())));
                    }
                    imports.extend(paths);
                }
            }
            // Paths within the code.
            for root in ["crate::", "super::"] {
                let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
                let found = code.match_indices(root).filter(|(at, _)| !code[..*at].ends_with(word));
                imports.extend(found.map(|(at, _)| {
                    let rest = &code[at..];
                    rest[..rest.find(|c| !word(c)).unwrap_or(rest.len())]
                        .trim_end_matches(':')
                        .to_owned()
                }));
            }
            let path = format!("src/{}", source.path.display());
            files.insert(module, (path, imports, handed_on));
        }
        Modules { files }
    }

    /// The module that defines what `path` names, seen from `module`.
    fn resolve(&self, module: &[String], path: &str, depth: usize) -> Option<Vec<String>> {
        let mut segments = path.split("::").peekable();
        let mut at = match *segments.peek()? {
            "crate" => {
                segments.next();
                Vec::new()
            }
            "self" => {
                segments.next();
                module.to_vec()
            }
            "super" => {
                let mut at = module.to_vec();
                while segments.next_if_eq(&"super").is_some() {
                    at.pop()?;
                }
                at
            }
            first => {
                let child = [module, &[first.to_owned()]].concat();
                if !self.files.contains_key(&child) {
                    return None;
                }
                module.to_vec()
            }
        };
        for segment in segments {
            let child = [&at[..], &[segment.to_owned()]].concat();
            if self.files.contains_key(&child) {
                at = child;
                continue;
            }
            let handed_on = self.files.get(&at).and_then(|(_, _, handed_on)| handed_on.get(segment));
            return match handed_on {
                Some(path) if depth < 8 => self.resolve(&at, path, depth + 1),
                _ => Some(at),
            };
        }
        Some(at)
    }
}

#[test]
fn braces_are_written_out() {
    let rows: [(&str, &[&str]); 3] = [
        ("a::b", &["a::b"]),
        ("a::{b, c::D as E}", &["a::b", "a::c::D"]),
        (
            "super::{self, x::{y, z}}",
            &["super::self", "super::x::y", "super::x::z"],
        ),
    ];
    for (text, expected) in rows {
        assert_eq!(expand(text), expected, "{text}");
    }
}

/// No file needs, by way of others, a file that needs it: each can be understood after those that it imports. What a folder's
/// files share stands in its `mod.rs`, and importing that from within the folder does not count.
///
/// Seen to fail with `use crate::control::request::Input;` in `src/control/upgrade/predecessor.rs`.
#[test]
fn no_files_import_each_other_in_a_circle() {
    let modules = Modules::read();
    let mut edges: BTreeMap<&Vec<String>, Vec<&Vec<String>>> = BTreeMap::new();
    let mut count = 0;
    for (module, (_, imports, _)) in &modules.files {
        let targets = imports.iter().filter_map(|path| modules.resolve(module, path, 0));
        for target in targets {
            let within = module.starts_with(&target);
            if let (Some((target, _)), false) = (modules.files.get_key_value(&target), within) {
                edges.entry(module).or_default().push(target);
                count += 1;
            }
        }
    }
    assert!(count > 400, "only {count} imports were understood");
    // What nothing that is left imports cannot be in a circle, nor what imports nothing that is left.
    let mut left: Vec<&Vec<String>> = modules.files.keys().collect();
    loop {
        let before = left.len();
        let imports = |module| edges.get(module).into_iter().flatten();
        let now = left.clone();
        left.retain(|module| {
            imports(*module).any(|target| now.contains(target))
                && now.iter().any(|other| imports(*other).any(|target| target == module))
        });
        if left.len() == before {
            break;
        }
    }
    let told = left.iter().map(|module| {
        let targets = edges[*module].iter().filter(|target| left.contains(target));
        let names: BTreeSet<&str> = targets.map(|target| &*modules.files[*target].0).collect();
        format!("{} -> {}", modules.files[*module].0, Vec::from_iter(names).join(", "))
    });
    let told: Vec<String> = told.collect();
    assert!(told.is_empty(), "in a circle, or between two:\n{}", told.join("\n"));
}

#[test]
fn every_module_has_a_layer() {
    for source in sources() {
        let module = source.module();
        let root = ["lib", "main"].contains(&module.as_str());
        assert!(root || layer(&module).is_some(), "{module} is in no layer");
    }
}

#[test]
fn unsafe_code_stays_under_sys() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (number, line) in source.code() {
            let found = line
                .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .any(|word| word == "unsafe");
            if found && !source.path.starts_with("sys") {
                wrong.push(format!("src/{}:{number}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Above the statement that an `unsafe` block or implementation is in stands why it holds, above an `unsafe fn` what it asks.
///
/// Seen to fail with one `// SAFETY:` in `src/sys/pipe.rs` made `// Safe:`, and with the `# Safety` in `src/sys/socket.rs`
/// taken out.
#[test]
fn every_unsafe_says_why_it_holds() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for source in sources() {
        let lines: Vec<&str> = source.text.lines().map(str::trim).collect();
        for (number, code) in source.code() {
            let Some((_, after)) = code.split_once("unsafe ") else {
                continue;
            };
            seen += 1;
            let words: &[&str] = match after.starts_with("fn ") || after.starts_with("extern ") {
                true => &["/// # Safety"],
                false => &["// SAFETY:"],
            };
            // Upwards through the statement, then through the comments above it.
            let above = lines[..number - 1].iter().rev();
            let statement =
                above.take_while(|line| line.starts_with("//") || !(line.is_empty() || line.ends_with([';', '}'])));
            let mut comments = statement.skip_while(|line| !line.starts_with("//"));
            if !comments.any(|line| words.iter().any(|word| line.starts_with(word))) {
                wrong.push(format!("src/{}:{number}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(seen > 30, "only {seen} found");
}

/// serde_yaml is no longer developed: one file to replace it in.
#[test]
fn one_file_knows_the_yaml_library() {
    let mut files: Vec<String> = sources()
        .iter()
        .filter(|source| source.code().any(|(_, line)| line.contains("serde_yaml")))
        .map(|source| source.path.display().to_string())
        .collect();
    files.sort();
    assert!(files.len() <= 1, "{files:?}");
}

/// docs/security.md names a test for each promise: files, modules of a test binary, modules with unit tests. Each exists.
///
/// Seen to fail with `control::operator::admin` and `base::latest`, which have no unit tests.
#[test]
fn the_tests_behind_each_promise_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/security.md")).unwrap();
    let (_, table) = text.split_once("| promise | how | test |").unwrap();
    let table = table.split_once("\n\n").unwrap().0;
    let has_tests = |path: PathBuf| fs::read_to_string(path).is_ok_and(|text| text.contains("#[test]"));
    let (mut missing, mut seen) = (Vec::new(), 0);
    for row in table.lines().skip(2) {
        let cell = row.trim_end_matches('|').rsplit('|').next().unwrap();
        let names: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            missing.push(format!("no test: {row}"));
        }
        for name in names {
            seen += 1;
            let path = name.replace("::", "/");
            let exists = match path.split_once('/') {
                None => {
                    fs::exists(root.join("fuzz/targets").join(&path).with_extension("rs")).unwrap()
                        || fs::exists(root.join(&path)).unwrap()
                }
                Some(("tests" | "scripts" | "fuzz" | "models", _)) => fs::exists(root.join(&path)).unwrap(),
                Some(("base" | "relay" | "flow", "")) => true,
                Some(("faults" | "udp" | "e2e" | "observe" | "service", _)) => {
                    has_tests(root.join("tests").join(&path).with_extension("rs"))
                }
                Some(_) => has_tests(root.join("src").join(&path).with_extension("rs")),
            };
            if !exists {
                missing.push(name.to_owned());
            }
        }
    }
    assert!(missing.is_empty(), "\n{}", missing.join("\n"));
    assert!(seen > 40, "only {seen} names found");
}

/// Lines of a file, less a module of tests at its end.
fn length(source: &Source) -> usize {
    let end = source.text.find("#[cfg(test)]\nmod tests {");
    source.text[..end.unwrap_or(source.text.len())].lines().count()
}

/// Seen to fail with `LINES_MAX` at 500 (`config/model.rs`), with a file in the list that is short, and with
/// `config/raw.rs` taken out of it.
#[test]
fn no_file_is_long() {
    let is_test = |source: &Source| source.path.iter().any(|part| part == "tests" || part == "tests.rs");
    let is_long = |source: &&Source| !is_test(source) && length(source) > LINES_MAX;
    let sources = sources();
    let long: BTreeSet<String> = sources
        .iter()
        .filter(is_long)
        .map(|source| source.path.display().to_string())
        .collect();
    let known: BTreeSet<String> = LONG.iter().map(|path| path.to_string()).collect();
    let new: Vec<_> = long.difference(&known).collect();
    assert!(
        new.is_empty(),
        "more than {LINES_MAX} lines: take a decision out of {new:?}"
    );
    let old: Vec<_> = known.difference(&long).collect();
    assert!(old.is_empty(), "no longer long: take {old:?} out of the list");
}

/// Seen to fail with a row taken out of the list.
#[test]
fn few_functions_have_many_parameters() {
    let sources = sources();
    let found = sources.iter().filter(|source| {
        let mut code = source.code();
        code.any(|(_, line)| line.contains("too_many_arguments"))
    });
    let found: BTreeSet<String> = found.map(|source| source.path.display().to_string()).collect();
    let known: BTreeSet<String> = MANY_ARGUMENTS.iter().map(|path| path.to_string()).collect();
    assert_eq!(found, known);
}

/// docs/architecture.md says where things are: each path exists unless it is to come, and then it does not. In the rows that
/// say what to look for in a file, the file has it.
///
/// Seen to fail with another function named than `pub fn pick`, with a file that is not there, and with `src/base` to come.
#[test]
fn the_page_on_architecture_is_true() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/architecture.md")).unwrap();
    let (mut wrong, mut paths, mut looked) = (Vec::new(), 0, 0);
    for line in page.lines() {
        let parts: Vec<&str> = line.split('`').collect();
        let quoted = |ix: usize| parts.get(ix).filter(|_| ix % 2 == 1).copied();
        let is_path = |text: &str| {
            ["src", "tests", "docs", "conf"]
                .iter()
                .any(|top| text.starts_with(&format!("{top}/")))
        };
        for (ix, text) in parts
            .iter()
            .enumerate()
            .filter(|(ix, text)| ix % 2 == 1 && is_path(text))
        {
            paths += 1;
            let to_come = parts[ix + 1].starts_with(" (to come)");
            if fs::exists(root.join(text)).unwrap() == to_come {
                let is = if to_come {
                    "is there, not to come"
                } else {
                    "does not exist"
                };
                wrong.push(format!("{text} {is}: {line}"));
            }
        }
        // `TEXT` in `FILE`, `TEXT` of `FILE`; in the first table | FILE | TEXT |.
        for ix in 1..parts.len().saturating_sub(2) {
            let (Some(a), Some(b)) = (quoted(ix), quoted(ix + 2)) else {
                continue;
            };
            let (file, text) = match parts[ix + 1] {
                " in " | " of " if b.starts_with("src/") => (b, a),
                " | " if parts.len() == 5 => (a, b),
                _ => continue,
            };
            looked += 1;
            let code = fs::read_to_string(root.join(file)).unwrap_or_default();
            if !code.contains(text) {
                wrong.push(format!("{file} has no {text}: {line}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(paths > 30 && looked > 12, "only {paths} paths and {looked} texts found");
}
