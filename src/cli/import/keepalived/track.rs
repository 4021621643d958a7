//! What an instance tracks: `vrrp_script` with `track_script`, and `track_interface`.
//!
//! There it moves the priority of one instance, here the rank of the node for all addresses. A weight that is added while a script
//! succeeds and one that is taken off while it fails come to the same order.

use crate::cli::import::draft::{Draft, Section, fit};
use crate::cli::import::lex::Statement;
use crate::cli::import::time;
use crate::config::shorten;

/// What a shell would do something with.
const FOR_A_SHELL: &[char] = &[
    '|', '&', ';', '<', '>', '(', ')', '$', '`', '\\', '"', '\'', '*', '?', '#', '~',
];

/// Writes what the instances and groups track.
pub fn tracks(trackers: &[&Statement], scripts: &[&Statement], section: &mut Section, draft: &mut Draft) {
    let blocks: Vec<(usize, &Statement)> = trackers
        .iter()
        .enumerate()
        .flat_map(|(ix, tracker)| tracker.block.iter().map(move |block| (ix, block)))
        .collect();
    let lines = |word: &'static str| {
        let of = blocks.iter().filter(move |(_, block)| block.word(0) == word);
        of.flat_map(|&(ix, block)| block.block.iter().map(move |line| (ix, line)))
    };
    let mut done: Vec<(&str, usize)> = Vec::new();
    for (ix, line) in lines("track_script").chain(lines("track_interface")) {
        let name = line.word(0);
        if let Some((_, first)) = done.iter().find(|(known, _)| *known == name) {
            if *first != ix {
                draft.remark(line, "counts for the node, and so for all of its addresses");
            }
            continue;
        }
        done.push((name, ix));
        let is_script = lines("track_script").any(|(_, other)| std::ptr::eq(other, line));
        let mut track = Section::new(line);
        let mut weight = stated(&line.words[1..]);
        if is_script {
            let Some(script) = scripts.iter().find(|script| script.word(1) == name) else {
                draft.remark(line, format!("there is no vrrp_script `{}`", shorten(name)));
                continue;
            };
            let of_script = of(script, &mut track, draft);
            weight = weight.or(of_script);
        } else {
            track.put("interface", line, name);
        }
        if line.words[1..].iter().any(|word| word == "reverse") {
            draft.remark(
                line,
                "is left out: what is tracked counts while it holds, `reverse` is not there",
            );
            continue;
        }
        match weight {
            Some(0) | None => {}
            Some(weight) => track.put("weight", line, weight.unsigned_abs().to_string()),
        }
        section.name("track", &fit(name), line, track);
    }
    for script in scripts
        .iter()
        .filter(|script| !done.iter().any(|(name, _)| *name == script.word(1)))
    {
        draft.remark(script, "nothing tracks it");
    }
}

/// The number after `weight`.
fn stated(words: &[String]) -> Option<i32> {
    let at = words.iter().position(|word| word == "weight")?;
    words.get(at + 1)?.parse().ok()
}

/// What a script says of itself; its weight.
fn of(script: &Statement, track: &mut Section, draft: &mut Draft) -> Option<i32> {
    let mut weight = None;
    for line in &script.block {
        match line.word(0) {
            "script" => {
                let command = command(&line.words[1..].join(" "));
                track.put_list("exec", line, command.iter().map(String::as_str));
            }
            key @ ("interval" | "timeout") => match time::keepalived(line.word(1)) {
                Some(time) => track.put(key, line, time::text(time)),
                None => draft.remark(line, "is no number of seconds"),
            },
            key @ ("rise" | "fall") => track.put(key, line, line.word(1)),
            "weight" => {
                weight = line.word(1).parse().ok();
                if line.word(2) == "reverse" {
                    draft.remark(line, "`reverse` is not there: what is tracked counts while it holds");
                }
            }
            "user" => draft.remark(line, "commands run as the user of weir"),
            "init_fail" => draft.remark(line, "nothing is taken to hold, or not to, before the first answer"),
            _ => draft.remark(line, "has no meaning here"),
        }
    }
    weight
}

/// Program and arguments. What is not a path is looked for as there, and what needs a shell gets one.
fn command(text: &str) -> Vec<String> {
    if text.contains(FOR_A_SHELL) {
        return ["/bin/sh", "-c", text].map(String::from).to_vec();
    }
    let words = text.split_whitespace().map(String::from);
    match text.trim_start().starts_with('/') {
        true => words.collect(),
        false => std::iter::once("/usr/bin/env".to_string()).chain(words).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_split_or_given_to_a_shell() {
        for (text, expected) in [
            ("/usr/bin/killall -0 haproxy", "/usr/bin/killall|-0|haproxy"),
            ("killall -0 haproxy", "/usr/bin/env|killall|-0|haproxy"),
            ("  /bin/true ", "/bin/true"),
            ("</dev/tcp/127.0.0.1/80", "/bin/sh|-c|</dev/tcp/127.0.0.1/80"),
            ("/bin/a && /bin/b", "/bin/sh|-c|/bin/a && /bin/b"),
        ] {
            assert_eq!(command(text).join("|"), expected, "{text}");
        }
    }
}
