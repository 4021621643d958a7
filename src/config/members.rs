//! Files with a list of members.

use std::collections::HashMap;
use std::path::Path;

use super::check::backends;
use super::load::{read, text};
use super::model::*;
use super::notes::{Finding, Notes, Spot};
use super::raw::Section;
use super::rules::Rules;
use super::yaml::{self, Entry, Node, Value};
use super::{Diagnostic, Errors};

/// Reads a file of members.
///
/// # Errors
/// All of them, as of a configuration file.
pub fn load(path: &Path, rules: &Rules) -> Result<Vec<Backend>, Errors> {
    let name = path.display().to_string();
    match std::fs::metadata(path) {
        Ok(found) if !found.is_file() && !found.is_dir() => return Err(Errors::whole(&name, "is not a regular file")),
        _ => {}
    }
    let bytes = read(path).map_err(|reason| Errors::whole(&name, reason))?;
    parse(&name, &text(&name, bytes)?, rules)
}

/// Reads members from text: a list of backends as it stands under `backends`. A list without entries is one; a text
/// without anything in it, such as a file that is just being written, is an error.
///
/// # Errors
/// All of them, in the order of the text.
pub fn parse(file_name: &str, text: &str, rules: &Rules) -> Result<Vec<Backend>, Errors> {
    let diagnostic = |finding: Finding| Diagnostic {
        file: file_name.to_string(),
        line: finding.at.line,
        column: finding.at.column,
        path: finding.path,
        message: finding.message,
    };
    let whole = |at, message: String| {
        let path = String::new();
        Errors(vec![diagnostic(Finding { at, path, message })])
    };
    let tree = yaml::read(text).map_err(|(at, message)| whole(at, message))?;
    match &tree.value {
        Value::List(entries) if entries.is_empty() => return Ok(Vec::new()),
        Value::List(_) => {}
        other => {
            let message = format!(
                "expected a list of backends, such as `- 10.0.0.1:80` on each line, found {}; `[]` is a list without any",
                other.describe()
            );
            return Err(whole(tree.at, message));
        }
    }
    let at = tree.at;
    let list = Entry {
        key: "backends".into(),
        at,
        first: None,
        node: tree,
    };
    let pool = Node {
        at,
        value: Value::Map(vec![list]),
    };
    let notes = Notes::default();
    let mut names = HashMap::new();
    let (found, _) = backends(&notes, &Section::part(&notes, "pools.*", &pool), rules, &mut names);
    for (name, at) in names {
        let spot = Spot {
            at,
            path: "backends".into(),
            value: (),
        };
        notes.error(
            &spot,
            format!("`{name}`: a list in a file has addresses; names stand under `members` of the pool"),
        );
    }
    // What the listeners say against an address has been said by now.
    for backend in &found {
        if let (true, Some(why)) = (
            rules.complaints(&backend.value.address).is_empty(),
            rules.refusal(&backend.value.address),
        ) {
            notes.error(backend, why);
        }
    }
    let mut errors = notes.errors.into_inner();
    errors.sort_by_key(|finding| finding.at);
    match errors.is_empty() {
        true => Ok(found.into_iter().map(|backend| backend.value).collect()),
        false => Err(Errors(errors.into_iter().map(diagnostic).collect())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(fragment: &str) -> Rules {
        let text = format!(
            "listeners: {{l: {{bind: \"127.0.0.1:80\", pool: web}}}}\npools: {{web: {{backends: [\"10.0.0.9:80\"], {fragment}}}}}"
        );
        let config = super::super::parse("weir.yaml", &text).unwrap().config;
        Rules::of(&config, 0)
    }

    /// What a file may say, or the first error. Seen to fail: an empty text taken for an empty list, which empties a pool
    /// in the middle of a write.
    #[test]
    fn texts_of_members() {
        #[rustfmt::skip]
        let rows: [(&str, &str, Result<&str, &str>); 17] = [
            ("", "- 10.0.0.1:80\n- 10.0.0.2:80\n",                       Ok("10.0.0.1:80 10.0.0.2:80")),
            ("", "[\"10.0.0.1:80\", {\"address\": \"10.0.0.2:80\", \"weight\": 3, \"name\": \"b\"}]", Ok("10.0.0.1:80 b=10.0.0.2:80*3")),
            ("", "- {name: a, address: \"[2001:db8::1]:80\", backup: true}", Ok("a=[2001:db8::1]:80 backup")),
            ("", "# nobody today\n[]\n",                                   Ok("")),
            ("", "",                                                         Err("m:1:1: expected a list of backends")),
            ("", "# a comment alone\n",                                    Err("m:2:1: expected a list of backends")),
            ("", "10.0.0.1:80",                                              Err("m:1:1: expected a list of backends")),
            ("", "backends: [10.0.0.1:80]",                                  Err("m:1:1: expected a list of backends")),
            ("", "- 10.0.0.1:80\n- {name: b, address: 10.0",               Err("m:")),
            ("", "- 10.0.0.1:80\n- 10.0.0.1:80\n",                       Err("m:2:3: backends[1].address: `10.0.0.1:80` is in this pool already")),
            ("", "- {address: 10.0.0.1:80, wieght: 3}",                      Err("m:1:26: backends[0].wieght: unknown key")),
            ("", "- db.internal:80",                                         Err("m:1:3: backends: `dns:db.internal:80`: a list in a file has addresses")),
            ("", "- 127.0.0.1:80",                                           Err("m:1:3: backends[0].address: is bound by listener `l` itself")),
            ("", "- 10.0.0.1",                                               Err("m:1:3: backends[0]: 10.0.0.1 has no port")),
            ("health: {type: none}", "- 10.0.0.1",                           Ok("10.0.0.1")),
            ("source_address: 10.0.0.5", "- \"[2001:db8::1]:80\"",         Err("m:1:3: backends[0]: [2001:db8::1]:80 is of another family")),
            ("kernel: {source_addresses: 10.0.0.5}", "- \"[2001:db8::1]:80\"", Err("m:1:3: backends[0]: [2001:db8::1]:80 is of another family")),
        ];
        for (policy, text, expected) in rows {
            let found = parse("m", text, &rules(policy));
            let shown = |backend: &Backend| {
                let address = backend.address.to_string();
                let name = if backend.name == address {
                    String::new()
                } else {
                    format!("{}=", backend.name)
                };
                let weight = if backend.weight == 1 {
                    String::new()
                } else {
                    format!("*{}", backend.weight)
                };
                format!("{name}{address}{weight}{}", if backend.backup { " backup" } else { "" })
            };
            let found = found.map(|found| found.iter().map(shown).collect::<Vec<_>>().join(" "));
            match (&found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text:?}"),
                (Err(errors), Err(expected)) => assert!(errors.to_string().starts_with(expected), "{text:?}: {errors}"),
                _ => panic!("{text:?}: {found:?}"),
            }
        }
    }
}
