//! `map $ssl_preread_server_name $pool { NAME upstream; default other; }`: pools by server name.

use crate::cli::import::draft::Draft;
use crate::cli::import::lex::Statement;
use crate::config::shorten;

const VARIABLE: &str = "$ssl_preread_server_name";

/// Whether a statement is such a map.
pub fn is_map(statement: &Statement) -> bool {
    statement.word(0) == "map" && statement.word(1) == VARIABLE && statement.word(2).starts_with('$')
}

/// Server names with their targets in normal form, then the target of the rest, each with the line that says so.
pub type Targets<'s> = (Vec<(String, &'s str, &'s Statement)>, Option<(&'s str, &'s Statement)>);

/// What a `proxy_pass` with this variable goes by; `None`: no map of server names makes it.
pub fn targets<'s>(around: &'s [Statement], variable: &str, draft: &mut Draft) -> Option<Targets<'s>> {
    let map = around.iter().find(|s| is_map(s) && s.word(2) == variable)?;
    let hostnames = map.block.iter().any(|line| line.word(0) == "hostnames");
    let (mut names, mut rest) = (Vec::<(String, &str, &Statement)>::new(), None);
    for line in &map.block {
        let (key, target) = (line.word(0), line.word(1));
        match key {
            "hostnames" | "volatile" => continue,
            "include" => {
                draft.remark(line, "names of another file are not read: write them into `routes`");
                continue;
            }
            "default" => {
                rest = (!target.is_empty()).then_some((target, line));
                continue;
            }
            _ => {}
        }
        let key = key
            .strip_prefix('\\')
            .unwrap_or(key)
            .trim_end_matches('.')
            .to_ascii_lowercase();
        let (found, wide) = match (key.strip_prefix('.'), key.strip_prefix("*.")) {
            _ if key.starts_with('~') => {
                draft.remark(
                    line,
                    "regular expressions are not looked for: write the names into `routes`",
                );
                continue;
            }
            (Some(_), _) | (_, Some(_)) if !hostnames => {
                draft.remark(line, "is no mask without `hostnames`, and no name either");
                continue;
            }
            (Some(host), _) => (vec![host.to_string(), format!("*.{host}")], true),
            (_, Some(_)) => (vec![key.clone()], true),
            _ => (vec![key.clone()], false),
        };
        if target.contains('$') {
            draft.remark(line, format!("`{}` is another variable", shorten(target)));
            continue;
        }
        if wide {
            draft.remark(
                line,
                "`*` is for one label: names of several more need routes of their own",
            );
        }
        for name in found {
            // A name that stands by itself comes before a mask.
            match names.iter_mut().find(|(known, ..)| *known == name) {
                Some(known) if !wide => *known = (name, target, line),
                Some(_) => {}
                None => names.push((name, target, line)),
            }
        }
    }
    Some((names, rest))
}
