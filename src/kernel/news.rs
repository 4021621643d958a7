//! What the event log says of the listeners of this engine: where they serve. Pure.

use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Addresses that are named in one line; of more it says how many there are.
const NAMED: usize = 4;

/// Where each listener serves, by its name.
pub type Served = BTreeMap<String, Vec<SocketAddr>>;

/// What has changed, a line each.
pub fn news(before: &Served, now: &Served) -> Vec<String> {
    let changed = now.iter().filter(|(name, at)| before.get(*name) != Some(at));
    let mut lines: Vec<String> = changed
        .map(|(name, at)| format!("{name} serves {}", places(at)))
        .collect();
    let gone = before.keys().filter(|name| !now.contains_key(*name));
    lines.extend(gone.map(|name| format!("{name} takes nothing new any more")));
    lines
}

fn places(at: &[SocketAddr]) -> String {
    let named: Vec<String> = at.iter().take(NAMED).map(ToString::to_string).collect();
    match at.len() {
        0 => "nowhere: this host has none of its addresses".into(),
        n if n > NAMED => format!("{} and {} more", named.join(", "), n - NAMED),
        _ => named.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(rows: &[(&str, &[u16])]) -> Served {
        let at = |ports: &[u16]| {
            ports
                .iter()
                .map(|&port| SocketAddr::from(([10, 0, 0, 1], port)))
                .collect()
        };
        rows.iter().map(|(name, ports)| (name.to_string(), at(ports))).collect()
    }

    /// Columns: before, now, what is said.
    #[test]
    fn what_has_changed_is_said_once() {
        type Row<'a> = (&'a [(&'a str, &'a [u16])], &'a [(&'a str, &'a [u16])], &'a [&'a str]);
        #[rustfmt::skip]
        let rows: &[Row] = &[
            (&[], &[], &[]),
            (&[], &[("web", &[80])], &["web serves 10.0.0.1:80"]),
            (&[("web", &[80])], &[("web", &[80])], &[]),
            (&[("web", &[80])], &[("web", &[80, 81])], &["web serves 10.0.0.1:80, 10.0.0.1:81"]),
            (&[("web", &[80])], &[("dns", &[53])], &["dns serves 10.0.0.1:53", "web takes nothing new any more"]),
            (&[], &[("web", &[1, 2, 3, 4, 5, 6])],
                &["web serves 10.0.0.1:1, 10.0.0.1:2, 10.0.0.1:3, 10.0.0.1:4 and 2 more"]),
            (&[("web", &[80])], &[("web", &[])], &["web serves nowhere: this host has none of its addresses"]),
        ];
        for (before, now, said) in rows {
            assert_eq!(news(&served(before), &served(now)), *said, "{before:?} -> {now:?}");
        }
    }
}
