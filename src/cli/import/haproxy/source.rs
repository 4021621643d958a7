//! Rules about sources: `acl NAME src`, `tcp-request connection|content accept|reject`.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::cli::import::draft::Draft;
use crate::cli::import::lex::Statement;
use crate::cli::import::rules::{Rule, everybody};

/// The ACLs of a section that are about source addresses.
pub struct Acls<'s>(HashMap<&'s str, Result<Vec<IpNet>, &'static str>>);

/// What a rule comes to.
pub enum Read {
    Rule(Rule),
    Other(String),
}

const OTHER: &str = "asks for more than the source address, which is all that `allow` and `deny` go by";

impl<'s> Acls<'s> {
    /// Lines of the same name add up.
    pub fn of(lines: &[&'s Statement]) -> Acls<'s> {
        let mut acls: HashMap<&str, Result<Vec<IpNet>, &'static str>> = HashMap::new();
        for line in lines.iter().filter(|line| line.word(0) == "acl") {
            let new = test(&line.words[2.min(line.words.len())..]);
            let so_far = acls.entry(line.word(1)).or_insert_with(|| Ok(Vec::new()));
            match (so_far, new) {
                (Ok(nets), Ok(more)) => nets.extend(more),
                (so_far @ Ok(_), Err(why)) => *so_far = Err(why),
                (Err(_), _) => {}
            }
        }
        Acls(acls)
    }

    /// Says why an ACL cannot be used.
    pub fn explain(&self, line: &Statement, draft: &mut Draft) {
        if let Some(Err(why)) = self.0.get(line.word(1)) {
            draft.remark(line, format!("`{}` {why}", crate::config::shorten(line.word(1))));
        }
    }
}

/// `src 10.0.0.0/8 ...`
fn test(words: &[String]) -> Result<Vec<IpNet>, &'static str> {
    let Some((fetch, values)) = words.split_first().filter(|(fetch, _)| *fetch == "src") else {
        return Err(OTHER);
    };
    debug_assert_eq!(fetch, "src");
    let mut nets = Vec::new();
    for value in values {
        if value == "-f" || value == "-M" {
            return Err("reads addresses from a file: write them into `allow` or `deny`");
        }
        if value == "-m" || value == "-n" || value == "--" || value == "ip" {
            continue;
        }
        let net = value
            .parse::<IpNet>()
            .or_else(|_| value.parse::<IpAddr>().map(IpNet::from));
        nets.push(
            net.map_err(|_| "names something else than addresses and prefixes")?
                .trunc(),
        );
    }
    Ok(nets)
}

/// A rule of `tcp-request connection` or `content`.
pub fn rule(line: &Statement, acls: &Acls) -> Read {
    let accept = match line.word(2) {
        "accept" => true,
        "reject" => false,
        word if word.starts_with("track-sc") => {
            return Read::Other(
                "nothing is tracked in tables: `limits.per_source` and `limits.new_per_source` count what each source has".into(),
            );
        }
        "expect-proxy" => {
            return Read::Other("write `accept_proxy: {from: [...]}` with the sources that send a header".into());
        }
        _ => return Read::Other("only `accept` and `reject` have a meaning here".into()),
    };
    let (negated, condition) = match line.word(3) {
        "" if accept => return Read::Rule(Rule::Accept(everybody().to_vec())),
        "" => return Read::Rule(Rule::RefuseOthers(Vec::new())),
        "if" => (false, &line.words[4..]),
        "unless" => (true, &line.words[4..]),
        _ => return Read::Other("its condition is not understood".into()),
    };
    let limits = |word: &String| {
        ["conn_cur", "conn_rate", "conn_cnt"]
            .iter()
            .any(|what| word.contains(what))
    };
    if condition.iter().any(limits) {
        return Read::Other(
            "write `limits: {per_source: N}` for connections at a time, `new_per_source: N/s` for new ones".into(),
        );
    }
    let nets = terms(condition, acls);
    match (nets, negated, accept) {
        (Err(why), ..) => Read::Other(format!("{why}: nobody is refused by it here")),
        (Ok((nets, false)), false, true) | (Ok((nets, true)), true, true) => Read::Rule(Rule::Accept(nets)),
        (Ok((nets, false)), false, false) | (Ok((nets, true)), true, false) => Read::Rule(Rule::Refuse(nets)),
        (Ok((nets, _)), _, false) => Read::Rule(Rule::RefuseOthers(nets)),
        (Ok(_), _, true) => Read::Other("accepts all but some: write who is refused as `deny`".into()),
    }
}

/// A condition: one term, or several with `or`. Prefixes, and whether those outside are meant.
fn terms(condition: &[String], acls: &Acls) -> Result<(Vec<IpNet>, bool), String> {
    let mut nets = Vec::new();
    let parts: Vec<&[String]> = condition.split(|word| word == "or" || word == "||").collect();
    let alone = parts.len() == 1;
    for part in parts {
        let (negated, found) = term(part, acls)?;
        match (negated, alone) {
            (true, true) => return Ok((found, true)),
            (true, false) => return Err("joins a negation with something else".into()),
            (false, _) => nets.extend(found),
        }
    }
    Ok((nets, false))
}

fn term(words: &[String], acls: &Acls) -> Result<(bool, Vec<IpNet>), String> {
    let (first, rest) = words.split_first().ok_or("has no condition")?;
    let (negated, first) = match first.strip_prefix('!') {
        // `! name`
        Some("") => return term(rest, acls).map(|(negated, nets)| (!negated, nets)),
        Some(first) => (true, first),
        None => (false, first.as_str()),
    };
    if first == "{" {
        let inner = rest
            .strip_suffix(&["}".to_string()])
            .ok_or("joins several conditions")?;
        return match inner.iter().any(|word| word == "}") {
            true => Err("joins several conditions".into()),
            false => test(inner).map(|nets| (negated, nets)).map_err(String::from),
        };
    }
    if !rest.is_empty() {
        return Err("joins several conditions".into());
    }
    match acls.0.get(first) {
        Some(Ok(nets)) => Ok((negated, nets.clone())),
        Some(Err(why)) => Err(format!("its `{first}` {why}")),
        None => Err(format!("there is no acl `{}`", crate::config::shorten(first))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::import::lex::{Sources, Style, lex};

    #[test]
    fn conditions() {
        let text = "\
frontend f
  acl office src 10.0.0.0/8 192.0.2.7
  acl office src 2001:db8::/32
  acl bad src 203.0.113.0/24
  acl page path_beg /x
  acl listed src -f /etc/list
";
        let style = Style::Lines {
            sections: &["frontend"],
        };
        let mut sources = Sources::default();
        let file = sources.open("f".into());
        let read = lex(text, style, file, &mut sources).unwrap();
        let acls = Acls::of(&read[0].block.iter().collect::<Vec<_>>());
        let office = "10.0.0.0/8 192.0.2.7/32 2001:db8::/32";
        for (condition, expected) in [
            ("accept if office", format!("accept {office}")),
            ("reject unless office", format!("others {office}")),
            ("reject if !office", format!("others {office}")),
            ("reject if ! office", format!("others {office}")),
            ("reject if bad", "refuse 203.0.113.0/24".into()),
            ("reject unless !bad", "refuse 203.0.113.0/24".into()),
            (
                "reject if { src 10.1.0.0/16 } or bad",
                "refuse 10.1.0.0/16 203.0.113.0/24".into(),
            ),
            ("reject if !{ src 10.1.0.0/16 }", "others 10.1.0.0/16".into()),
            ("reject", "others ".into()),
            ("accept", "accept 0.0.0.0/0 ::/0".into()),
            ("reject if bad office", "other".into()),
            ("reject if !bad or office", "other".into()),
            ("reject if page", "other".into()),
            ("reject if listed", "other".into()),
            ("reject if nowhere", "other".into()),
            ("reject if { src_conn_cur ge 10 }", "other".into()),
            ("reject if", "other".into()),
            ("reject if {", "other".into()),
            ("accept unless bad", "other".into()),
            ("silent-drop", "other".into()),
        ] {
            let line = format!("tcp-request connection {condition}");
            let line = lex(&line, Style::Lines { sections: &[] }, file, &mut sources)
                .unwrap()
                .remove(0);
            let nets = |nets: Vec<IpNet>| nets.iter().map(IpNet::to_string).collect::<Vec<_>>().join(" ");
            let read = match rule(&line, &acls) {
                Read::Rule(Rule::Accept(list)) => format!("accept {}", nets(list)),
                Read::Rule(Rule::Refuse(list)) => format!("refuse {}", nets(list)),
                Read::Rule(Rule::RefuseOthers(list)) => format!("others {}", nets(list)),
                Read::Other(_) => "other".into(),
            };
            assert_eq!(read, expected, "{condition}");
        }
    }
}
