//! "Did you mean": from what was typed to the word that is known here.

/// Words of other programs, and ours for them.
const FOREIGN: &[(&str, &str)] = &[
    ("address", "bind"),
    ("addr", "address"),
    ("algorithm", "balance"),
    ("backend", "pool"),
    ("check", "health"),
    ("clitcpka", "keepalive"),
    ("cluster", "pool"),
    ("clusters", "pools"),
    ("default_backend", "pool"),
    ("endpoints", "backends"),
    ("frontends", "listeners"),
    ("hash", "source_hash"),
    ("health_check", "health"),
    ("health_checks", "health"),
    ("host", "address"),
    ("inter", "interval"),
    ("ip", "address"),
    ("ip_hash", "source_hash"),
    ("ipvs", "tcp"),
    ("l4", "tcp"),
    ("lb_policy", "balance"),
    ("least_request", "least_conn"),
    ("listen", "bind"),
    ("maglev", "source_hash"),
    ("max_conns", "max_connections"),
    ("max_fails", "passive"),
    ("maxconn", "max_connections"),
    ("maxconn", "connections"),
    ("mode", "protocol"),
    ("outlier_detection", "passive"),
    ("peers", "nodes"),
    ("proxy_protocol", "send_proxy"),
    ("proxy_protocol", "accept_proxy"),
    ("ring_hash", "source_hash"),
    ("server", "backends"),
    ("servers", "backends"),
    ("services", "listeners"),
    ("slowstart", "slow_start"),
    ("so_keepalive", "keepalive"),
    ("source", "source_hash"),
    ("source", "source_address"),
    ("srvtcpka", "keepalive"),
    ("tcp_keepalive", "keepalive"),
    ("tcp_ut", "user_timeout"),
    ("threads", "workers"),
    ("tls", "tcp"),
    ("http", "tcp"),
    ("track_file", "track"),
    ("track_interface", "track"),
    ("track_script", "track"),
    ("upstream", "pool"),
    ("upstreams", "pools"),
    ("virtual_ipaddress", "vips"),
    ("vrrp_instance", "failover"),
    ("worker_processes", "workers"),
];

/// The known word that was probably meant.
pub fn suggestion<'w>(typed: &str, known: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    const CLOSE: f64 = 0.8;
    let typed = plain(typed);
    let known: Vec<&str> = known.collect();
    if let Some(word) = known.iter().find(|word| is_foreign(&typed, word)) {
        return Some(word);
    }
    let best = known
        .into_iter()
        .map(|word| (likeness(&typed, word), word))
        .max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= CLOSE).then_some(best.1)
}

/// A key that stands deeper than where it was typed, as a path from there: `timeouts.idle` for `idle`.
pub fn deeper(section: &str, typed: &str, paths: impl Iterator<Item = &'static str> + Clone) -> Option<&'static str> {
    let typed = plain(typed);
    let below = |path: &'static str| match section {
        "" => Some(path),
        _ => path.strip_prefix(section)?.strip_prefix('.'),
    };
    // Another program's word for a key that stands right here.
    let mut direct = paths.clone().filter_map(below).filter(|path| !path.contains('.'));
    if direct.any(|path| is_foreign(&typed, path)) {
        return None;
    }
    let here = paths
        .filter_map(below)
        .filter(|path| path.contains('.') && !path.contains('*'));
    let key = |path: &&'static str| path.rsplit('.').next().unwrap_or(path);
    let same: Vec<_> = here.clone().filter(|path| key(path) == typed).collect();
    let meant = here.filter(|path| is_foreign(&typed, key(path)));
    same.into_iter().chain(meant).next()
}

fn plain(typed: &str) -> String {
    const CHARS_MAX: usize = 64;
    typed
        .chars()
        .take(CHARS_MAX)
        .collect::<String>()
        .to_lowercase()
        .replace('-', "_")
}

fn is_foreign(typed: &str, word: &str) -> bool {
    FOREIGN.contains(&(typed, word))
}

/// From 0 to 1. One wrong letter in six is near, whatever the beginning.
fn likeness(typed: &str, word: &str) -> f64 {
    let slips = strsim::osa_distance(typed, word);
    match word.replace('_', "") == typed.replace('_', "") {
        true => 1.0,
        false if typed.len() > 2 && slips <= 1 + word.len() / 6 => 0.95 - slips as f64 / 100.0,
        false => strsim::jaro_winkler(typed, word).min(0.9),
    }
}
