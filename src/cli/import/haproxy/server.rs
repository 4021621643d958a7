//! The side of the servers: `server`, `default-server`, `balance`, checks.

use std::time::Duration;

use super::address::{Address, address, written};
use super::words::{self, remark};
use super::{Proxy, label};
use crate::cli::import::draft::{Draft, KEEP, Section};
use crate::cli::import::lex::Statement;
use crate::cli::import::time;

/// What a `server` line says, together with the `default-server` lines before it.
#[derive(Clone, Default)]
struct Server<'s> {
    address: String,
    check: bool,
    weight: Option<&'s str>,
    maxconn: Option<&'s str>,
    backup: bool,
    disabled: bool,
    pool: PoolWide<'s>,
}

/// What HAProxy says for each server and weir for the pool.
#[derive(Clone, Default, PartialEq)]
struct PoolWide<'s> {
    inter: Option<Duration>,
    rise: Option<&'s str>,
    fall: Option<&'s str>,
    port: Option<&'s str>,
    send_proxy: Option<&'static str>,
    source: Option<&'s str>,
    slow_start: Option<Duration>,
    user_timeout: Option<Duration>,
    keep_clients: bool,
    close_on_down: bool,
    observe: bool,
    error_limit: Option<&'s str>,
    eject: bool,
    close_backups: bool,
    tls: Tls<'s>,
    agent: Agent<'s>,
}

/// TLS of checks.
#[derive(Clone, Default, PartialEq)]
struct Tls<'s> {
    on: bool,
    server_name: Option<&'s str>,
    ca: Option<&'s str>,
    unverified: bool,
}

#[derive(Clone, Default, PartialEq)]
struct Agent<'s> {
    on: bool,
    port: Option<&'s str>,
    interval: Option<Duration>,
    send: Option<&'s str>,
}

/// Why an interface towards backends has no key.
const LED_BY_ROUTES: &str =
    "connections to backends go where routing sends them: `connect: {mark: N}` and `ip rule add fwmark N`";

/// Parameters without a counterpart: how many words follow, and why. "" = it is so anyway.
const PARAMETERS: &[(&str, usize, &str)] = &[
    ("id", 1, ""),
    (
        "cookie",
        1,
        "cookies belong to HTTP: `balance: source_hash` keeps a client with its server",
    ),
    ("minconn", 1, "the cap does not move: `max_connections` is `maxconn`"),
    (
        "maxqueue",
        1,
        "connections do not wait for a server: beyond `max_connections` another one is chosen",
    ),
    (
        "fastinter",
        1,
        "probes of a backend that changes its state are not made sooner",
    ),
    (
        "downinter",
        1,
        "probes of a backend that is down are as frequent as others",
    ),
    ("check-send-proxy", 0, "probes send no PROXY header"),
    ("check-via-socks4", 0, "SOCKS is not spoken"),
    ("check-alpn", 1, "TLS of probes has no such choice"),
    ("check-proto", 1, "probes speak no HTTP/2"),
    ("agent-addr", 1, "an agent is asked at the backend's own address"),
    ("no-agent-check", 0, ""),
    ("init-addr", 1, "names are not resolved"),
    (
        "resolvers",
        1,
        "names are looked up by the system's resolver: write other servers as `resolver: {servers: [..]}` of the pool",
    ),
    ("resolve-prefer", 1, "names are not resolved"),
    ("resolve-net", 1, "names are not resolved"),
    ("resolve-opts", 1, "names are not resolved"),
    ("track", 1, "each pool probes its own servers"),
    ("redir", 1, "belongs to HTTP"),
    ("proto", 1, "belongs to HTTP"),
    ("alpn", 1, "belongs to TLS"),
    ("npn", 1, "belongs to TLS"),
    ("pool-max-conn", 1, "belongs to HTTP"),
    ("pool-purge-delay", 1, "belongs to HTTP"),
    ("pool-low-conn", 1, "belongs to HTTP"),
    ("max-reuse", 1, "belongs to HTTP"),
    ("tfo", 0, "TCP fast open is not used"),
    ("interface", 1, LED_BY_ROUTES),
    (
        "namespace",
        1,
        "run weir in the namespace: `ip netns exec`, or NetworkNamespacePath= in the unit",
    ),
    ("enabled", 0, ""),
    ("stick", 0, ""),
    ("non-stick", 0, ""),
    ("proxy-v2-options", 1, "the PROXY header carries addresses alone"),
    ("set-proxy-v2-tlv-fmt", 1, "the PROXY header carries addresses alone"),
    ("log-proto", 1, "belongs to log forwarding"),
    ("ws", 1, "belongs to HTTP"),
    ("shard", 1, "belongs to peers"),
    ("verifyhost", 1, ""),
    ("ca-verify-file", 1, ""),
    ("crl-file", 1, ""),
    ("crt", 1, ""),
    ("sni", 1, ""),
    ("ciphers", 1, ""),
    ("ciphersuites", 1, ""),
    ("ssl-min-ver", 1, ""),
    ("ssl-max-ver", 1, ""),
    ("no-ssl", 0, ""),
    ("no-backup", 0, ""),
    ("no-check", 0, ""),
];

/// Parameters without which a server is another one: it is left out, and this is why.
const BREAKING: &[(&str, &str)] = &[
    (
        "ssl",
        "TLS to servers is not begun here: pass the clients' own TLS through, or keep a program that begins it",
    ),
    (
        "socks4",
        "SOCKS is not spoken: route to the server, or keep a program that speaks it",
    ),
];

/// Makes the pool of a `backend` or `listen`; nothing without servers.
pub fn pool(proxy: &Proxy, draft: &mut Draft) -> Option<Section> {
    let mut section = Section::new(proxy.head);
    let mut defaults = Server::default();
    let mut first: Option<Server> = None;
    let mut said = Vec::new();
    for line in &proxy.lines {
        match line.word(0) {
            "default-server" => _ = parameters(line, 1, &mut defaults, draft),
            "server" => {
                let mut server = defaults.clone();
                if !parameters(line, 3, &mut server, draft) {
                    continue;
                }
                match host(line.word(2)) {
                    Ok(address) => server.address = address,
                    Err(why) => {
                        draft.remark(line, format!("`{}`: {why}", crate::config::shorten(line.word(2))));
                        continue;
                    }
                }
                backend(line, &server, &mut section);
                match &first {
                    None => first = Some(server),
                    Some(first) if (&first.pool, first.check) != (&server.pool, server.check) => said.push(*line),
                    Some(_) => {}
                }
            }
            "server-template" => {
                draft.remark(line, "names are not resolved: write the servers with their addresses");
            }
            _ => {}
        }
    }
    for line in said {
        let text = "differs from the first server in what holds for a whole pool here (checks, PROXY, source, slow start): the first \
                    server's holds";
        draft.remark(line, text);
    }
    let first = match first {
        Some(first) => first,
        None => {
            draft.remark(proxy.head, format!("`{}` has no server that can be used", proxy.name()));
            Server::default()
        }
    };
    pool_wide(proxy, &first, &mut section);
    for line in &proxy.lines {
        policy(proxy, line, &mut section, draft);
    }
    if !section.has("balance") {
        section.put("balance", proxy.head, "round_robin");
    }
    checks(proxy, &first, &mut section, draft);
    section.has("backends").then_some(section)
}

/// A server's address as it is written here.
fn host(text: &str) -> Result<String, &'static str> {
    match address(text) {
        Address::Unix(path) => Ok(format!("unix:{path}")),
        Address::Other(why) => Err(why),
        Address::Ip { port, .. } if port.starts_with(['+', '-']) => {
            Err("a port that is counted from the client's has no counterpart: leave the port out for the client's own")
        }
        Address::Ip { host, port: "0" } => Ok(written(host, "")),
        Address::Ip { host, port } => Ok(written(host, port)),
    }
}

fn backend(line: &Statement, server: &Server, section: &mut Section) {
    let mut backend = Section::new(line);
    if let Some(name) = label(line.word(1)) {
        backend.put("name", line, name);
    }
    backend.put("address", line, &server.address);
    match (server.disabled, server.weight) {
        (true, _) => backend.put("weight", line, "0"),
        (false, Some(weight)) => backend.put("weight", line, weight),
        (false, None) => {}
    }
    if let Some(cap) = server.maxconn.filter(|cap| *cap != "0") {
        backend.put("max_connections", line, cap);
    }
    if server.backup {
        backend.put("backup", line, "true");
    }
    section.push_section("backends", line, backend);
}

/// Reads parameters from a word on; false if the server cannot be used.
fn parameters<'s>(line: &'s Statement, mut at: usize, server: &mut Server<'s>, draft: &mut Draft) -> bool {
    let mut usable = true;
    while at < line.words.len() {
        let word = line.word(at);
        let value = line.word(at + 1);
        at += 1;
        let mut takes = 1;
        match word {
            "check" => (server.check, takes) = (true, 0),
            "no-check" => (server.check, takes) = (false, 0),
            "backup" => (server.backup, takes) = (true, 0),
            "no-backup" => (server.backup, takes) = (false, 0),
            "disabled" => (server.disabled, takes) = (true, 0),
            "enabled" => (server.disabled, takes) = (false, 0),
            "weight" => server.weight = Some(value),
            "maxconn" => server.maxconn = Some(value),
            "inter" => server.pool.inter = time::haproxy(value),
            "rise" => server.pool.rise = Some(value),
            "fall" => server.pool.fall = Some(value),
            "port" => server.pool.port = Some(value),
            "slowstart" => server.pool.slow_start = time::haproxy(value),
            "tcp-ut" => server.pool.user_timeout = time::haproxy(value),
            "source" => server.pool.source = Some(value),
            "usesrc" => server.pool.keep_clients = keeps_clients(line, value, draft),
            "send-proxy" => (server.pool.send_proxy, takes) = (Some("v1"), 0),
            "send-proxy-v2" => (server.pool.send_proxy, takes) = (Some("v2"), 0),
            "send-proxy-v2-ssl" | "send-proxy-v2-ssl-cn" => {
                (server.pool.send_proxy, takes) = (Some("v2"), 0);
                draft.remark(line, format!("`{word}`: the header carries addresses alone"));
            }
            "no-send-proxy" | "no-send-proxy-v2" => (server.pool.send_proxy, takes) = (None, 0),
            "on-marked-down" => server.pool.close_on_down = value == "shutdown-sessions",
            "on-marked-up" => server.pool.close_backups = value == "shutdown-backup-sessions",
            "check-ssl" => (server.pool.tls.on, takes) = (true, 0),
            "no-check-ssl" => (server.pool.tls.on, takes) = (false, 0),
            "check-sni" => server.pool.tls.server_name = Some(value),
            "ca-file" => server.pool.tls.ca = Some(value),
            "verify" => server.pool.tls.unverified = value == "none",
            "agent-check" => (server.pool.agent.on, takes) = (true, 0),
            "no-agent-check" => (server.pool.agent.on, takes) = (false, 0),
            "agent-port" => server.pool.agent.port = Some(value),
            "agent-inter" => server.pool.agent.interval = time::haproxy(value),
            "agent-send" => server.pool.agent.send = Some(value),
            "observe" => server.pool.observe = value == "layer4",
            "error-limit" => server.pool.error_limit = Some(value),
            "on-error" => server.pool.eject = matches!(value, "mark-down" | "sudden-death" | "fail-check"),
            "addr" => draft.remark(
                line,
                "`addr`: probes go to the backend's own address: `health.port` changes the port",
            ),
            _ => match BREAKING.iter().find(|(name, _)| *name == word) {
                Some((_, why)) => {
                    draft.remark(line, format!("`{word}`: {why}; the server is left out"));
                    (usable, takes) = (false, usize::from(word == "socks4"));
                }
                None => {
                    let known = PARAMETERS.iter().find(|(name, ..)| *name == word);
                    takes = known.map_or(0, |(_, takes, _)| *takes);
                    let why = known.map_or("has no meaning here", |(_, _, why)| *why);
                    if !why.is_empty() {
                        draft.remark(line, format!("`{}`: {why}", crate::config::shorten(word)));
                    }
                }
            },
        }
        at += takes;
    }
    usable
}

/// What the first server says for all.
fn pool_wide(proxy: &Proxy, server: &Server, section: &mut Section) {
    let from = proxy.lines.iter().find(|line| line.word(0) == "server");
    let Some(from) = from else { return };
    let wide = &server.pool;
    if let Some(version) = wide.send_proxy {
        section.put("send_proxy", from, version);
    }
    if let Some(source) = wide.source {
        put_source(section, from, source);
    }
    if wide.keep_clients {
        section.put("client_address", from, "keep");
    }
    if let Some(time) = wide.slow_start.filter(|time| !time.is_zero()) {
        section.put("slow_start", from, time::text(time));
    }
    if let Some(timeout) = wide.user_timeout {
        section.put("connect.keepalive.user_timeout", from, time::text_or_off(timeout));
    }
    if wide.close_on_down {
        section.put("on_down", from, "close");
    }
    if wide.close_backups {
        section.put("on_marked_up", from, "close_backup");
    }
    if let (true, Some(port)) = (wide.agent.on, wide.agent.port) {
        section.put("health.agent.port", from, port);
        if let Some(interval) = wide.agent.interval {
            section.put("health.agent.interval", from, time::text(interval));
        }
        if let Some(send) = wide.agent.send {
            section.put("health.agent.send", from, send);
        }
    }
    if wide.observe && wide.eject {
        section.put("passive.failures", from, wide.error_limit.unwrap_or("10"));
    }
}

/// Whether `usesrc` means the address of the connection's client.
fn keeps_clients(line: &Statement, whose: &str, draft: &mut Draft) -> bool {
    let keeps = matches!(whose, "client" | "clientip");
    let text = match keeps {
        true => KEEP.to_string(),
        false => format!(
            "`usesrc {}`: backends see the client's own address (`client_address: keep`) or one of this host",
            crate::config::shorten(whose)
        ),
    };
    draft.remark(line, text);
    keeps
}

fn put_source(section: &mut Section, from: &Statement, source: &str) {
    if let Address::Ip { host, .. } = address(source)
        && !matches!(host, "" | "*" | "0.0.0.0" | "::")
    {
        section.put("source_address", from, host);
    }
}

/// One line of a backend other than servers and checks.
fn policy(proxy: &Proxy, line: &Statement, section: &mut Section, draft: &mut Draft) {
    let value = line.word(1);
    let duration = |draft: &mut Draft, text: &str| {
        let time = time::haproxy(text);
        if time.is_none() {
            draft.remark(line, format!("`{}` is no duration", crate::config::shorten(text)));
        }
        time.map(time::text)
    };
    match (line.word(0), value) {
        ("balance", algorithm) => {
            let (balance, why) = words::balance(algorithm);
            section.put("balance", line, balance);
            if let Some(why) = why {
                draft.remark(
                    line,
                    format!(
                        "`{}`: `{balance}` is the nearest: {why}",
                        crate::config::shorten(algorithm)
                    ),
                );
            }
        }
        ("hash-balance-factor", _) => match value.parse::<u32>() {
            Ok(0) => {}
            Ok(percent) => section.put(
                "source_hash.bounded_load",
                line,
                format!("{}", f64::from(percent) / 100.0),
            ),
            Err(_) => draft.remark(line, "is no percentage"),
        },
        ("timeout", "connect") => {
            if let Some(time) = duration(draft, line.word(2)) {
                section.put("connect.timeout", line, time);
            }
        }
        // The first attempt is not a retry there.
        ("retries", _) => match value.parse::<u32>() {
            Ok(retries) => section.put("connect.attempts", line, retries.saturating_add(1).to_string()),
            Err(_) => draft.remark(line, "is no number"),
        },
        ("source", source) => {
            put_source(section, line, source);
            if line.words.iter().any(|word| word == "interface") {
                draft.remark(line, format!("`interface`: {LED_BY_ROUTES}"));
            }
            if let Some(at) = line.words.iter().position(|word| word == "usesrc")
                && keeps_clients(line, line.word(at + 1), draft)
            {
                section.put("client_address", line, "keep");
            }
        }
        ("srvtcpka-idle", text) | ("srvtcpka-intvl", text) => {
            let key = if line.word(0).ends_with("idle") {
                "idle"
            } else {
                "interval"
            };
            if let Some(time) = duration(draft, text) {
                section.put(&format!("connect.keepalive.{key}"), line, time);
            }
        }
        ("srvtcpka-cnt", probes) => section.put("connect.keepalive.probes", line, probes),
        ("tcp-request", _) if proxy.kind() == "backend" => {
            draft.remark(line, "rules about sources stand with the listener: `allow`, `deny`");
        }
        // Said with the listener's routes.
        ("tcp-request", "inspect-delay") if super::names::has_rules(proxy) => {}
        _ => remark(line, words::PROXY, draft),
    }
}

/// Probes, as they are there: none of servers without `check`.
fn checks(proxy: &Proxy, first: &Server, section: &mut Section, draft: &mut Draft) {
    let Some(from) = proxy.lines.iter().find(|line| line.word(0) == "server") else {
        return;
    };
    if !first.check {
        section.put("health.type", from, "none");
        return;
    }
    let wide = &first.pool;
    if let Some((timeout, line)) = proxy.time("check") {
        section.put("health.timeout", line, time::text(timeout));
    }
    if let Some(inter) = wide.inter {
        section.put("health.interval", from, time::text(inter));
    }
    if wide.tls.on {
        section.put("health.tls", from, "true");
        if let Some(name) = wide.tls.server_name {
            section.put("health.server_name", from, name);
        }
        if let Some(ca) = wide.tls.ca.filter(|_| !wide.tls.unverified) {
            section.put("health.ca", from, ca);
        }
    }
    for (key, value) in [("rise", wide.rise), ("fall", wide.fall), ("port", wide.port)] {
        if let Some(value) = value {
            section.put(&format!("health.{key}"), from, value);
        }
    }
    for line in &proxy.lines {
        match (line.word(0), line.word(1)) {
            ("option", "redis-check") => {
                section.put("health.send", line, "*1\r\n$4\r\nPING\r\n");
                section.put("health.expect", line, "+PONG");
            }
            ("option", "smtpchk") => section.put("health.expect", line, "220"),
            ("option", "ssl-hello-chk") => section.put("health.tls", line, "true"),
            ("option", "httpchk") => {
                let words: Vec<&str> = line.words[2..].iter().map(String::as_str).collect();
                let (method, path) = match words.as_slice() {
                    [] => ("OPTIONS", "/"),
                    [path] => ("OPTIONS", *path),
                    [method, path, ..] => (*method, *path),
                };
                section.put("health.http.method", line, method);
                section.put("health.http.path", line, path);
                if let Some(header) = words.get(3) {
                    draft.remark(
                        line,
                        format!("`{}`: write `health.http.host`", crate::config::shorten(header)),
                    );
                }
            }
            ("http-check", what) => http_check(what, line, section, draft),
            ("tcp-check", what) => tcp_check(what, line, section, draft),
            _ => {}
        }
    }
}

/// `http-check send` and `expect`.
fn http_check(what: &str, line: &Statement, section: &mut Section, draft: &mut Draft) {
    let mut words = line.words[2..].iter().map(String::as_str);
    match what {
        "send" => {
            while let Some(word) = words.next() {
                let value = words.next().unwrap_or_default();
                match word {
                    "meth" => section.put("health.http.method", line, value),
                    "uri" => section.put("health.http.path", line, value),
                    "ver" => {}
                    "hdr" if value.eq_ignore_ascii_case("host") => {
                        section.put("health.http.host", line, words.next().unwrap_or_default());
                    }
                    "hdr" => {
                        words.next();
                        draft.remark(line, "of the headers only `host` can be chosen");
                    }
                    _ => draft.remark(line, format!("`{}` has no meaning here", crate::config::shorten(word))),
                }
            }
        }
        "expect" => match (words.next(), words.next()) {
            (Some("status"), Some(statuses)) => {
                section.put_list("health.http.expect", line, statuses.split(','));
            }
            _ => draft.remark(line, "of an answer only the status counts: `health.http.expect`"),
        },
        _ => draft.remark(line, "a probe asks once: `health.http`"),
    }
}

/// `tcp-check`: one thing is sent, one is expected.
fn tcp_check(what: &str, line: &Statement, section: &mut Section, draft: &mut Draft) {
    let once = "a probe sends one thing and expects one: the first of each holds";
    // `comment "..."` and flags may stand before the pattern.
    let plain = line.words[2.min(line.words.len())..].iter();
    let words: Vec<&str> = plain
        .map(String::as_str)
        .take_while(|word| *word != "comment")
        .collect();
    match (what, words.as_slice()) {
        ("connect", []) => {}
        ("connect", ["port", port]) => section.put("health.port", line, *port),
        ("send" | "send-binary", _) if section.has("health.send") => draft.remark(line, once),
        ("expect", _) if section.has("health.expect") => draft.remark(line, once),
        ("send", [text, ..]) => section.put("health.send", line, *text),
        ("send-binary", [hex, ..]) => section.put("health.send", line, format!("hex:{hex}")),
        ("expect", ["string", text]) => section.put("health.expect", line, *text),
        ("expect", ["binary", hex]) => section.put("health.expect", line, format!("hex:{hex}")),
        ("expect", _) => draft.remark(line, "an answer is searched for a text: `health.expect`"),
        _ => draft.remark(
            line,
            "a probe connects, sends and expects: `health.send`, `health.expect`",
        ),
    }
}
