//! `use_backend B if { req.ssl_sni -i NAME }`: pools by server name.
//!
//! The first rule that fits wins there; here a name wins over a wildcard, whatever comes first.

use std::collections::HashMap;

use super::Proxy;
use crate::cli::import::draft::Draft;
use crate::cli::import::lex::Statement;
use crate::cli::import::time;
use crate::config::shorten;

/// What a test of the server name comes to: names, wildcards among them, and whether it meant more names than those.
type Names = Result<(Vec<String>, bool), &'static str>;

/// The ACLs of a section that are about the server name.
pub struct NameAcls<'s>(HashMap<&'s str, Names>);

impl<'s> NameAcls<'s> {
    /// Lines of the same name add up.
    pub fn of(lines: &[&'s Statement]) -> NameAcls<'s> {
        let mut acls: HashMap<&str, Names> = HashMap::new();
        for line in lines.iter().filter(|line| is_about_names(line)) {
            let more = test(&line.words[2..]);
            match (acls.get_mut(line.word(1)), more) {
                (Some(Ok((names, wide))), Ok((more, wider))) => {
                    names.extend(more);
                    *wide |= wider;
                }
                (Some(Err(_)), _) => {}
                (_, more) => drop(acls.insert(line.word(1), more)),
            }
        }
        NameAcls(acls)
    }
}

/// Whether a line is an ACL that looks at the server name.
pub fn is_about_names(line: &Statement) -> bool {
    line.word(0) == "acl" && line.words.len() > 2 && is_server_name(line.word(2))
}

/// Whether a rule lets hellos through, or all but them: where there are routes, that is so anyway.
pub fn awaits_hello(line: &Statement) -> bool {
    let condition: Vec<&str> = line.words.iter().skip(3).map(String::as_str).collect();
    let is_type = |word: &str| matches!(word, "req.ssl_hello_type" | "req_ssl_hello_type");
    matches!(condition[..], ["if", "{", word, "1", "}"] if is_type(word)) && line.word(2) == "accept"
}

fn is_server_name(fetch: &str) -> bool {
    matches!(fetch.split(',').next(), Some("req.ssl_sni" | "req_ssl_sni")) && !fetch.contains("map")
}

/// `req.ssl_sni -i NAME ...`
fn test(words: &[String]) -> Names {
    let (fetch, values) = words.split_first().ok_or("is empty")?;
    if !is_server_name(fetch) {
        return Err("asks for more than the server name");
    }
    let (mut names, mut end, mut values) = (Vec::new(), false, values.iter());
    while let Some(value) = values.next() {
        match value.as_str() {
            "-i" | "-n" | "--" => {}
            "-f" | "-M" => return Err("reads names from a file: write them into `routes`"),
            "-m" => match values.next().map(String::as_str) {
                Some("str") => end = false,
                Some("end") => end = true,
                _ => return Err("looks for a part of a name: write the names into `routes`"),
            },
            value if !end => names.push(value.to_string()),
            value => match value.strip_prefix('.') {
                Some(parent) => names.push(format!("*.{parent}")),
                None => {
                    return Err("looks for the end of a name in the midst of a label: write the names into `routes`");
                }
            },
        }
    }
    match names.is_empty() {
        true => Err("asks for no certain name"),
        false => Ok((names, end)),
    }
}

/// The names of a condition: one test, or several with `or`.
fn condition(words: &[String], acls: &NameAcls) -> Result<(Vec<String>, bool), String> {
    let (mut names, mut wide) = (Vec::new(), false);
    for part in words.split(|word| word == "or" || word == "||") {
        let (more, wider) = match part {
            [open, inner @ .., close] if open == "{" && close == "}" && !inner.contains(close) => test(inner)?,
            [name] => match acls.0.get(name.as_str()) {
                Some(found) => found.clone()?,
                None => return Err(format!("goes by `{}`, which is not the server name", shorten(name))),
            },
            _ => return Err("joins several conditions: a pool is chosen by the server name alone".into()),
        };
        names.extend(more);
        wide |= wider;
    }
    Ok((names, wide))
}

/// Server names of a frontend, the pools that they lead to, and the lines that say so.
pub fn routes<'s>(
    proxy: &Proxy<'s>,
    pools: &HashMap<&str, (String, &Proxy)>,
    draft: &mut Draft,
) -> Vec<(String, String, &'s Statement)> {
    let acls = NameAcls::of(&proxy.lines);
    let mut routes: Vec<(String, String, &Statement)> = Vec::new();
    for line in proxy.lines.iter().filter(|line| line.word(0) == "use_backend") {
        let read = match line.word(2) {
            "if" => condition(&line.words[3..], &acls),
            "unless" => Err("leaves names out: a pool is chosen by the names that it is for".into()),
            _ => Err("has no condition on the server name: a listener has one pool for the rest".into()),
        };
        let (names, wide) = match read {
            Ok(read) => read,
            Err(why) => {
                draft.remark(line, why);
                continue;
            }
        };
        let Some((pool, _)) = pools.get(line.word(1)) else {
            let why = format!(
                "there is no backend `{}` in mode tcp with servers",
                shorten(line.word(1))
            );
            draft.remark(line, why);
            continue;
        };
        if wide {
            draft.remark(
                line,
                "`*` is for one label: names of several more need routes of their own",
            );
        }
        for name in names {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            let parent = name.split_once('.').map(|(_, parent)| format!("*.{parent}"));
            match routes
                .iter()
                .find(|(known, ..)| *known == name || Some(known) == parent.as_ref())
            {
                Some((known, to, _)) if to != pool => {
                    let why = format!("`{}` is taken by `{}` in a line before", shorten(&name), shorten(known));
                    draft.remark(line, why);
                }
                Some(_) => {}
                None => routes.push((name, pool.clone(), line)),
            }
        }
    }
    routes
}

/// Whether it chooses among backends at all.
pub fn has_rules(proxy: &Proxy) -> bool {
    proxy.lines.iter().any(|line| line.word(0) == "use_backend")
}

/// How long a hello may take, if a line says so.
pub fn delay<'s>(proxy: &Proxy<'s>) -> Option<(String, &'s Statement)> {
    let line = proxy.last(&["tcp-request", "inspect-delay"])?;
    Some((time::text(time::haproxy(line.word(2))?), line))
}
