//! nginx, `stream`: `upstream` becomes a pool, `server` a listener. What the blocks around a server say counts unless it
//! says it itself.
//!
//! How to connect stands with the server there and with the pool here, so servers that share an upstream and connect in
//! different ways get a pool each.

mod names;
mod words;

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::draft::{Draft, KEEP, Section};
use super::lex::Statement;
use super::rules::{Rule, everybody};
use super::time;
use words::remark;

/// Directives of a server that are read by [`server`], wherever they stand.
const SERVER: &[&str] = &[
    "listen",
    "proxy_pass",
    "proxy_timeout",
    "proxy_connect_timeout",
    "proxy_next_upstream",
    "proxy_next_upstream_tries",
    "proxy_protocol",
    "proxy_bind",
    "proxy_download_rate",
    "proxy_upload_rate",
    "proxy_responses",
    "proxy_requests",
    "limit_conn",
    "allow",
    "deny",
    "set_real_ip_from",
    "proxy_ssl",
    "ssl_preread",
    "preread_timeout",
];

/// What stands around a server, and the names that it may use.
struct Stream<'s> {
    upstreams: HashMap<&'s str, &'s Statement>,
    /// Zones of `limit_conn_zone`, and what they count by.
    zones: HashMap<String, &'s str>,
    /// Statements of `stream` itself, which its servers inherit.
    around: &'s [Statement],
    /// Pools that were made: by upstream and by what connecting takes.
    pools: HashMap<(String, Vec<String>), String>,
}

/// Makes listeners and pools of a file.
pub fn import(file: &[Statement], draft: &mut Draft) {
    for statement in file {
        match statement.word(0) {
            "stream" => stream(&statement.block, draft),
            "events" => statement.block.iter().for_each(|inner| remark(inner, draft)),
            "worker_processes" => {
                let workers = statement.word(1);
                draft.root.put("workers", statement, workers);
            }
            // A file that is included in `stream` is read as what stands in it.
            "upstream" | "server" => {}
            "worker_shutdown_timeout" => match time::nginx(statement.word(1)) {
                Some(grace) => draft.root.put("shutdown_grace", statement, time::text(grace)),
                None => remark(statement, draft),
            },
            word if SERVER.contains(&word) => {}
            _ => remark(statement, draft),
        }
    }
    if file
        .iter()
        .any(|statement| matches!(statement.word(0), "upstream" | "server"))
    {
        stream(file, draft);
    }
}

fn stream(block: &[Statement], draft: &mut Draft) {
    let named = |word: &'static str| block.iter().filter(move |statement| statement.word(0) == word);
    let zone = |statement| -> Option<(String, &str)> {
        let statement: &Statement = statement;
        let name = statement.words.iter().find_map(|word| word.strip_prefix("zone="))?;
        Some((
            name.split(':').next().unwrap_or_default().to_string(),
            statement.word(1),
        ))
    };
    let mut stream = Stream {
        upstreams: named("upstream")
            .map(|statement| (statement.word(1), statement))
            .collect(),
        zones: named("limit_conn_zone").filter_map(zone).collect(),
        around: block,
        pools: HashMap::new(),
    };
    for statement in block {
        match statement.word(0) {
            "server" => server(statement, &mut stream, draft),
            "upstream" => {}
            _ if names::is_map(statement) => {}
            word if SERVER.contains(&word) => {}
            _ => remark(statement, draft),
        }
    }
    for upstream in named("upstream") {
        if !stream.pools.keys().any(|(name, _)| name == upstream.word(1)) {
            draft.remark(
                upstream,
                format!(
                    "no server uses `{}`: it is left out",
                    crate::config::shorten(upstream.word(1))
                ),
            );
        }
    }
}

/// A socket of a `listen`.
struct Listen<'s> {
    from: &'s Statement,
    bind: String,
    udp: bool,
    proxy: bool,
    keepalive: Option<&'s str>,
    backlog: Option<&'s str>,
}

fn server<'s>(server: &'s Statement, stream: &mut Stream<'s>, draft: &mut Draft) {
    let around = stream.around;
    let own = |word: &str| server.block.iter().filter(|s| s.word(0) == word).collect::<Vec<_>>();
    let inherited = |word: &str| match own(word) {
        own if own.is_empty() => around.iter().filter(|s| s.word(0) == word).collect::<Vec<_>>(),
        own => own,
    };
    // `allow` and `deny` are inherited together, in their order.
    let access = |statements: &'s [Statement]| -> Vec<&'s Statement> {
        statements
            .iter()
            .filter(|s| matches!(s.word(0), "allow" | "deny"))
            .collect()
    };
    for statement in &server.block {
        if !SERVER.contains(&statement.word(0)) {
            remark(statement, draft);
        }
    }
    let Some(pass) = own("proxy_pass").pop() else {
        let why = match server
            .block
            .iter()
            .any(|s| matches!(s.word(0), "location" | "root" | "server_name"))
        {
            true => "is a server for HTTP: keep nginx for it, with weir before or behind it",
            false => "has no `proxy_pass`: it is left out",
        };
        return draft.remark(server, why);
    };
    if let Some(ssl) = inherited("proxy_ssl").pop().filter(|ssl| ssl.word(1) == "on") {
        return draft.remark(
            ssl,
            "TLS to servers is not begun here: the server is left out; pass the clients' own TLS through",
        );
    }
    let listens: Vec<Listen> = own("listen")
        .into_iter()
        .filter_map(|line| listen(line, draft))
        .collect();
    if listens.is_empty() {
        return draft.remark(server, "has no `listen` that can be used: it is left out");
    }
    let rules = match access(&server.block) {
        own if own.is_empty() => access(around),
        own => own,
    };
    let rules: Vec<_> = rules.into_iter().filter_map(|s| Some((rule(s, draft)?, s))).collect();
    for udp in [false, true] {
        let of_kind: Vec<&Listen> = listens.iter().filter(|listen| listen.udp == udp).collect();
        let Some(first) = of_kind.first() else { continue };
        let target = pass.word(1);
        let connect = connect(&inherited, udp, draft);
        let mut section = Section::new(server);
        of_kind
            .iter()
            .for_each(|listen| section.push("bind", listen.from, &listen.bind));
        if udp {
            section.put("protocol", first.from, "udp");
        }
        let reads = inherited("ssl_preread").pop().is_some_and(|s| s.word(1) == "on") && !udp;
        let named = match target.starts_with('$') {
            true => names::targets(around, target, draft),
            false => None,
        };
        let (routes, rest) = named.unwrap_or((Vec::new(), Some((target, pass))));
        for (name, target, line) in routes.iter().filter(|_| reads) {
            if let Some(pool) = pool(line, target, &connect, stream, draft) {
                section.name_value("routes", name, line, pool);
            }
        }
        let has_routes = section.has("routes");
        let rest = rest.and_then(|(target, from)| Some((pool(from, target, &connect, stream, draft)?, from)));
        if rest.is_none() && !has_routes {
            return;
        }
        if let Some((pool, from)) = &rest {
            section.put("pool", from, pool);
        }
        if let Some(timeout) = inherited("preread_timeout").pop().filter(|_| has_routes) {
            match time::nginx(timeout.word(1)) {
                Some(time) => section.put("timeouts.hello", timeout, time::text(time)),
                None => draft.remark(timeout, "is no duration"),
            }
        }
        section.rules(&rules);
        if let Some(listen) = of_kind.iter().find(|listen| listen.proxy) {
            let trusted = inherited("set_real_ip_from");
            let all = everybody().map(|net| (listen.from, net.to_string()));
            let from: Vec<_> = trusted.iter().map(|s| (*s, s.word(1).to_string())).collect();
            if from.is_empty() {
                draft.remark(
                    listen.from,
                    "`proxy_protocol` is believed from everybody, as it was: name your proxies in `accept_proxy.from`",
                );
            }
            let from = if from.is_empty() { all.to_vec() } else { from };
            from.into_iter()
                .for_each(|(at, net)| section.push("accept_proxy.from", at, net));
        }
        if let Some((from, most)) = of_kind.iter().find_map(|listen| Some((listen.from, listen.backlog?))) {
            section.put("backlog", from, most);
        }
        if let Some((from, text)) = of_kind.iter().find_map(|listen| Some((listen.from, listen.keepalive?))) {
            keepalive(from, text, &mut section, draft);
        }
        for word in SERVER {
            for statement in inherited(word) {
                limit(statement, udp, &stream.zones, &mut section, draft);
            }
        }
        let named = rest.map_or("tls".into(), |(pool, _)| pool);
        let name = draft.listener_name(&named);
        draft.listener(name, server, section);
    }
}

/// One directive that belongs to the listener here.
fn limit(statement: &Statement, udp: bool, zones: &HashMap<String, &str>, section: &mut Section, draft: &mut Draft) {
    let value = statement.word(1);
    let shown = crate::config::shorten(value);
    match statement.word(0) {
        "proxy_timeout" => match (time::nginx(value), udp) {
            (Some(time), false) => section.put("timeouts.idle", statement, time::text_or_off(time)),
            (Some(time), true) => section.put("udp.idle", statement, time::text(time)),
            (None, _) => draft.remark(statement, format!("`{shown}` is no duration")),
        },
        "proxy_requests" if udp && value != "0" => section.put("udp.requests", statement, value),
        "proxy_responses" if udp => section.put("udp.replies", statement, value),
        "proxy_download_rate" | "proxy_upload_rate" if value == "0" => {}
        "proxy_download_rate" | "proxy_upload_rate" => {
            let digits = value.trim_end_matches(['k', 'K', 'm', 'M']);
            let unit = match value[digits.len()..].to_ascii_lowercase().as_str() {
                "" => "B",
                "k" => "KiB",
                _ => "MiB",
            };
            let key = &statement.word(0)["proxy_".len()..];
            let key = key.strip_suffix("_rate").unwrap_or(key);
            section.put(&format!("limits.{key}"), statement, format!("{digits}{unit}/s"));
        }
        "limit_conn" => match zones.get(value) {
            Some(&"$binary_remote_addr" | &"$remote_addr") => {
                section.put("limits.per_source", statement, statement.word(2))
            }
            Some(&"$server_addr" | &"$server_port") => section.put("limits.connections", statement, statement.word(2)),
            _ => draft.remark(
                statement,
                "counts by a variable: `limits` count each source, or all of a listener",
            ),
        },
        _ => {}
    }
}

fn listen<'s>(line: &'s Statement, draft: &mut Draft) -> Option<Listen<'s>> {
    let address = line.word(1);
    let bind = match address {
        address if address.starts_with("unix:") => address.to_string(),
        address if address.parse::<u16>().is_ok() => format!("0.0.0.0:{address}"),
        // A range of ports alone.
        address if address.bytes().all(|b| b.is_ascii_digit() || b == b'-') => format!("0.0.0.0:{address}"),
        address => address
            .strip_prefix("*:")
            .map_or(address.to_string(), |port| format!("0.0.0.0:{port}")),
    };
    let mut listen = Listen {
        from: line,
        bind,
        udp: false,
        proxy: false,
        keepalive: None,
        backlog: None,
    };
    for word in &line.words[2.min(line.words.len())..] {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let why = match name {
            "ssl" => {
                draft.remark(
                    line,
                    "TLS is not ended here, and is not served without: it is left out; pass TLS through to the servers",
                );
                return None;
            }
            "quic" | "http2" | "http3" => "belongs to HTTP",
            "udp" => {
                listen.udp = true;
                continue;
            }
            "proxy_protocol" => {
                listen.proxy = true;
                continue;
            }
            "so_keepalive" => {
                listen.keepalive = Some(value);
                continue;
            }
            "reuseport" | "bind" | "default_server" | "deferred" => continue,
            "ipv6only" if value == "off" => "sockets for IPv6 take no IPv4: bind `0.0.0.0` too",
            "ipv6only" => continue,
            "backlog" => {
                // -1 is the longest that there is.
                listen.backlog = Some(value).filter(|value| *value != "-1");
                continue;
            }
            "rcvbuf" | "sndbuf" => {
                "buffers are the kernel's (net.ipv4.tcp_rmem, tcp_wmem), and as large as they may be for UDP"
            }
            "fastopen" => "TCP fast open is not used",
            "setfib" | "accept_filter" => "belongs to another system",
            _ => "has no meaning here",
        };
        draft.remark(line, format!("`{}`: {why}", crate::config::shorten(word)));
    }
    Some(listen)
}

/// `on`, `off`, or `idle:interval:count`, each of which may be empty.
fn keepalive(from: &Statement, text: &str, section: &mut Section, draft: &mut Draft) {
    match text {
        "on" => {}
        "off" => section.put("keepalive", from, "off"),
        text => {
            let mut parts = text.split(':');
            for key in ["idle", "interval"] {
                match parts.next().filter(|part| !part.is_empty()).map(time::nginx) {
                    Some(Some(time)) => section.put(&format!("keepalive.{key}"), from, time::text(time)),
                    Some(None) => draft.remark(
                        from,
                        format!("`so_keepalive={}` is not understood", crate::config::shorten(text)),
                    ),
                    None => {}
                }
            }
            if let Some(probes) = parts.next().filter(|part| !part.is_empty()) {
                section.put("keepalive.probes", from, probes);
            }
        }
    }
}

fn rule(statement: &Statement, draft: &mut Draft) -> Option<Rule> {
    let allow = statement.word(0) == "allow";
    let value = statement.word(1);
    let net = match value {
        "all" if allow => return Some(Rule::Accept(everybody().to_vec())),
        "all" => return Some(Rule::RefuseOthers(Vec::new())),
        _ => value
            .parse::<IpNet>()
            .or_else(|_| value.parse::<IpAddr>().map(IpNet::from)),
    };
    match net {
        Ok(net) if allow => Some(Rule::Accept(vec![net.trunc()])),
        Ok(net) => Some(Rule::Refuse(vec![net.trunc()])),
        Err(_) if allow => {
            draft.remark(statement, "names something else than an address or a prefix");
            None
        }
        // Whoever was to be kept out must not come in unseen.
        Err(_) => {
            draft.remark(
                statement,
                "names something else than an address or a prefix: it refuses nobody here, write `deny`",
            );
            None
        }
    }
}

/// How servers are connected to: keys of the pool, their values, and where they stand.
fn connect<'s>(
    inherited: &impl Fn(&str) -> Vec<&'s Statement>,
    udp: bool,
    draft: &mut Draft,
) -> Vec<(&'static str, String, &'s Statement)> {
    let mut keys = Vec::new();
    let mut put = |key, value: String, from| keys.push((key, value, from));
    for word in [
        "proxy_connect_timeout",
        "proxy_next_upstream",
        "proxy_next_upstream_tries",
        "proxy_protocol",
        "proxy_bind",
    ] {
        let Some(statement) = inherited(word).pop() else {
            continue;
        };
        let value = statement.word(1);
        match (word, value) {
            ("proxy_connect_timeout", _) if udp => {}
            ("proxy_connect_timeout", value) => match time::nginx(value) {
                Some(time) => put("connect.timeout", time::text(time), statement),
                None => draft.remark(statement, "is no duration"),
            },
            ("proxy_next_upstream", "off") if !udp => put("connect.attempts", "1".into(), statement),
            ("proxy_next_upstream_tries", tries) if !udp && tries != "0" => {
                put("connect.attempts", tries.into(), statement)
            }
            // Version 1 is for streams.
            ("proxy_protocol", "on") => put("send_proxy", if udp { "v2" } else { "v1" }.into(), statement),
            ("proxy_bind", "off") => {}
            ("proxy_bind", "$remote_addr" | "$remote_addr:$remote_port") if statement.word(2) == "transparent" => {
                put("client_address", "keep".into(), statement);
                draft.remark(statement, KEEP);
            }
            ("proxy_bind", _) if value.contains('$') || statement.word(2) == "transparent" => draft.remark(
                statement,
                "backends see the client's own address (`client_address: keep`) or one of this host (`source_address`)",
            ),
            ("proxy_bind", address) => put("source_address", address.into(), statement),
            _ => {}
        }
    }
    keys
}

/// The pool of an upstream, or of an address, for one way to connect; made when it is first needed.
fn pool(
    pass: &Statement,
    target: &str,
    connect: &[(&'static str, String, &Statement)],
    stream: &mut Stream,
    draft: &mut Draft,
) -> Option<String> {
    let manner = connect.iter().map(|(key, value, _)| format!("{key}={value}")).collect();
    let made = (target.to_string(), manner);
    if let Some(name) = stream.pools.get(&made) {
        return Some(name.clone());
    }
    if target.contains('$') {
        draft.remark(pass, "a pool is not chosen by a variable: give each case an address, and a listener, of its own; the server is left out");
        return None;
    }
    let upstream = stream.upstreams.get(target).copied();
    let mut section = Section::new(upstream.unwrap_or(pass));
    match upstream {
        Some(upstream) => servers(upstream, &mut section, draft),
        None => section.push("backends", pass, target),
    }
    connect
        .iter()
        .for_each(|(key, value, from)| section.put(key, from, value));
    let name = draft.pool_name(target.strip_prefix("unix:").unwrap_or(target));
    draft.pool(name.clone(), pass, section);
    stream.pools.insert(made, name.clone());
    Some(name)
}

fn servers(upstream: &Statement, section: &mut Section, draft: &mut Draft) {
    section.put("balance", upstream, "round_robin");
    let mut passive: Option<(String, String, &Statement)> = None;
    for line in &upstream.block {
        match line.word(0) {
            "server" => {
                let mut backend = Section::new(line);
                let address = line.word(1);
                backend.put("address", line, address);
                let (mut fails, mut timeout) = (None, None);
                for word in &line.words[2.min(line.words.len())..] {
                    let (name, value) = word.split_once('=').unwrap_or((word, ""));
                    match name {
                        "weight" => backend.put("weight", line, value),
                        "max_conns" if value == "0" => {}
                        "max_conns" => backend.put("max_connections", line, value),
                        "backup" => backend.put("backup", line, "true"),
                        "down" => backend.put("weight", line, "0"),
                        "max_fails" => fails = Some(value.to_string()),
                        "fail_timeout" => timeout = time::nginx(value).map(time::text),
                        "slow_start" => match time::nginx(value) {
                            Some(time) => section.put("slow_start", line, time::text(time)),
                            None => draft.remark(line, "`slow_start` is no duration"),
                        },
                        "resolve" | "service" => {
                            draft.remark(line, format!("`{name}`: names are not resolved: write addresses"));
                        }
                        _ => draft.remark(line, format!("`{}` has no meaning here", crate::config::shorten(word))),
                    }
                }
                section.push_section("backends", line, backend);
                if fails.is_some() || timeout.is_some() {
                    let new = (fails.unwrap_or("1".into()), timeout.unwrap_or("10s".into()), line);
                    match &passive {
                        Some(old) if (&old.0, &old.1) != (&new.0, &new.1) => draft.remark(
                            line,
                            "`max_fails` and `fail_timeout` hold for the pool here: those of its first server do",
                        ),
                        Some(_) => {}
                        None => passive = Some(new),
                    }
                }
            }
            "least_conn" => section.put("balance", line, "least_conn"),
            "least_time" => section.put("balance", line, "least_time"),
            "random" => section.put("balance", line, "random"),
            "hash" | "ip_hash" => {
                section.put("balance", line, "source_hash");
                let key = line.word(1);
                if line.word(0) == "hash" && !matches!(key, "$remote_addr" | "$binary_remote_addr") {
                    draft.remark(
                        line,
                        format!(
                            "`{}`: only the source address is looked at",
                            crate::config::shorten(key)
                        ),
                    );
                }
            }
            _ => remark(line, draft),
        }
    }
    match passive {
        Some((fails, ..)) if fails == "0" => section.put("passive", upstream, "off"),
        Some((fails, timeout, from)) => {
            section.put("passive.failures", from, fails);
            section.put("passive.window", from, &timeout);
            section.put("passive.eject", from, &timeout);
        }
        None => {}
    }
}
