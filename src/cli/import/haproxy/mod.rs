//! HAProxy, `mode tcp`: `global`, `defaults` with inheritance, `listen`, `frontend`, `backend`.
//!
//! A frontend becomes a listener, a backend a pool, a `listen` both. What `defaults` say counts as if it stood at the head
//! of each section that inherits it.

mod address;
mod names;
mod server;
mod source;
mod words;

use std::collections::HashMap;
use std::time::Duration;

use super::draft::{Draft, Section, fit};
use super::lex::Statement;
use super::rules::Rule;
use super::time;
use address::Bound;
use words::{SECTION_REMARKS, remark};

/// Words with which a section begins.
pub const SECTIONS: &[&str] = &[
    "global",
    "defaults",
    "frontend",
    "backend",
    "listen",
    "peers",
    "resolvers",
    "userlist",
    "mailers",
    "cache",
    "program",
    "http-errors",
    "ring",
    "log-forward",
    "fcgi-app",
    "crt-store",
    "acme",
    "traces",
    "log-profile",
];

/// One `frontend`, `backend` or `listen`.
struct Proxy<'s> {
    head: &'s Statement,
    /// What it inherits, then its own.
    lines: Vec<&'s Statement>,
}

impl<'s> Proxy<'s> {
    fn kind(&self) -> &str {
        self.head.word(0)
    }
    fn name(&self) -> &str {
        self.head.word(1)
    }
    /// The last line that begins with these words: later ones override earlier ones.
    fn last(&self, words: &[&str]) -> Option<&'s Statement> {
        let fits = |line: &&&Statement| words.iter().enumerate().all(|(n, word)| line.word(n) == *word);
        self.lines.iter().rev().find(fits).copied()
    }
    fn time(&self, what: &str) -> Option<(Duration, &'s Statement)> {
        let line = self.last(&["timeout", what])?;
        Some((time::haproxy(line.word(2))?, line))
    }
}

/// Makes listeners and pools of a file.
pub fn import(file: &[Statement], draft: &mut Draft) {
    let proxies = proxies(file, draft);
    let mut tcp: Vec<&Proxy> = Vec::new();
    for proxy in &proxies {
        if let Some(line) = proxy.head.block.iter().find(|line| line.word(0) == "disabled") {
            draft.remark(line, format!("`{}` is left out, as it does not serve", proxy.name()));
            continue;
        }
        match proxy.last(&["mode"]) {
            Some(mode) if mode.word(1) == "http" => draft.remark(
                proxy.head,
                format!(
                    "`{}` is `mode http`, and HTTP is not looked into here: keep it behind weir, or write `mode tcp` if its servers \
                     can be had without",
                    proxy.name()
                ),
            ),
            Some(mode) if mode.word(1) != "tcp" => {
                draft.remark(mode, format!("`{}` is left out: only `mode tcp` has a counterpart", proxy.name()));
            }
            _ => tcp.push(proxy),
        }
    }
    // Pools first: listeners need to know what they are called here.
    let mut pools = HashMap::new();
    for proxy in tcp.iter().filter(|proxy| proxy.kind() != "frontend") {
        let plain_listen = proxy.kind() == "listen" && proxy.last(&["default_backend"]).is_some();
        if let Some(pool) = server::pool(proxy, draft).filter(|_| !plain_listen) {
            let name = draft.pool_name(proxy.name());
            pools.insert(proxy.name(), (name.clone(), *proxy));
            draft.pool(name, proxy.head, pool);
        }
    }
    for proxy in tcp.iter().filter(|proxy| proxy.kind() != "backend") {
        listener(proxy, &pools, draft);
    }
}

/// The sections that serve; `global` and all others are dealt with on the way.
fn proxies<'s>(file: &'s [Statement], draft: &mut Draft) -> Vec<Proxy<'s>> {
    let mut defaults: HashMap<&str, Vec<&Statement>> = HashMap::new();
    let mut latest: Vec<&Statement> = Vec::new();
    let mut proxies = Vec::new();
    for section in file {
        let words: Vec<&str> = section.words.iter().map(String::as_str).collect();
        let inherited = match words.iter().position(|word| *word == "from") {
            Some(at) => match defaults.get(section.word(at + 1)) {
                Some(lines) => lines.clone(),
                None => {
                    draft.remark(
                        section,
                        format!("there are no defaults `{}`: nothing is inherited", section.word(at + 1)),
                    );
                    Vec::new()
                }
            },
            None if words[0] == "defaults" => Vec::new(),
            None => latest.clone(),
        };
        let lines = inherited.into_iter().chain(&section.block).collect();
        match words[0] {
            "global" => global(section, draft),
            "defaults" => {
                latest = lines;
                defaults.insert(section.word(1), latest.clone());
            }
            "frontend" | "backend" | "listen" => proxies.push(Proxy { head: section, lines }),
            _ => {
                let why = SECTION_REMARKS
                    .iter()
                    .find(|(word, _)| *word == words[0])
                    .map(|(_, why)| *why);
                draft.remark(section, why.unwrap_or("stands in no section: it is left out"));
            }
        }
    }
    proxies
}

fn global(section: &Statement, draft: &mut Draft) {
    for line in &section.block {
        let value = line.word(1).to_string();
        match line.word(0) {
            "maxconn" => draft.root.put("limits.connections", line, value),
            "nbthread" => draft.root.put("workers", line, value),
            "hard-stop-after" => match time::haproxy(&value) {
                Some(grace) => draft.root.put("shutdown_grace", line, time::text(grace)),
                None => draft.remark(line, format!("`{value}` is no duration")),
            },
            _ => remark(line, words::GLOBAL, draft),
        }
    }
}

fn listener(proxy: &Proxy, pools: &HashMap<&str, (String, &Proxy)>, draft: &mut Draft) {
    let mut section = Section::new(proxy.head);
    let pool = match (proxy.last(&["default_backend"]), proxy.kind()) {
        (Some(line), _) => Some((line.word(1), line)),
        (None, "listen") => Some((proxy.name(), proxy.head)),
        (None, _) => None,
    };
    let bounds: Vec<(&Statement, Bound)> = proxy
        .lines
        .iter()
        .filter(|line| line.word(0) == "bind")
        .map(|line| (*line, address::bind(line, draft)))
        .collect();
    if let Some(line) = proxy.last(&["backlog"]) {
        section.put("backlog", line, line.word(1));
    }
    let mut taken: Vec<&str> = Vec::new();
    for (line, bound) in &bounds {
        for bind in &bound.addresses {
            // `bind :80` beside `bind :::80`, which is both.
            if !taken.contains(&bind.as_str()) {
                taken.push(bind);
                section.push("bind", line, bind);
            }
        }
        if let Some((from, most)) = &bound.backlog {
            section.put("backlog", from, most);
        }
        if let Some((from, timeout)) = &bound.user_timeout {
            section.put("keepalive.user_timeout", from, time::text_or_off(*timeout));
        }
        if bound.accept_proxy {
            let sources = super::rules::everybody();
            if !section.has("accept_proxy") {
                sources
                    .iter()
                    .for_each(|net| section.push("accept_proxy.from", line, net.to_string()));
            }
            draft.remark(
                line,
                "`accept-proxy` is believed from everybody, as it was: name your proxies in `accept_proxy.from`",
            );
        }
    }
    let routes = names::routes(proxy, pools, draft);
    if pool.is_none() && !routes.is_empty() && !bounds.is_empty() {
        let Some((_, behind)) = pools.values().find(|(name, _)| *name == routes[0].1) else {
            unreachable!("routes lead to pools");
        };
        timeouts(proxy, behind, &mut section);
        return finish(proxy, section, &routes, draft);
    }
    let Some((pool, from)) = pool else {
        draft.remark(
            proxy.head,
            format!("`{}` has no default_backend: it is left out", proxy.name()),
        );
        return front(proxy, &mut section, draft);
    };
    let Some((pool, behind)) = pools.get(pool) else {
        draft.remark(
            from,
            format!(
                "there is no backend `{}` in mode tcp with servers: `{}` is left out",
                config_text(pool),
                proxy.name()
            ),
        );
        return front(proxy, &mut section, draft);
    };
    if bounds.is_empty() {
        draft.remark(proxy.head, format!("`{}` has no bind: it is left out", proxy.name()));
        return front(proxy, &mut section, draft);
    }
    section.put("pool", from, pool);
    timeouts(proxy, behind, &mut section);
    finish(proxy, section, &routes, draft);
}

/// Adds a listener, with its routes by server name and what else its frontend says.
fn finish(proxy: &Proxy, mut section: Section, routes: &[(String, String, &Statement)], draft: &mut Draft) {
    for (name, pool, line) in routes {
        section.name_value("routes", name, line, pool);
    }
    if let Some((delay, line)) = names::delay(proxy).filter(|_| !routes.is_empty()) {
        section.put("timeouts.hello", line, delay);
    }
    front(proxy, &mut section, draft);
    let name = draft.listener_name(proxy.name());
    draft.listener(name, proxy.head, section);
}

fn config_text(text: &str) -> String {
    crate::config::shorten(text)
}

/// Idle time: that of the tunnel if there is one, else the longer of the two sides. After one end, the same of `-fin`.
fn timeouts(front: &Proxy, back: &Proxy, section: &mut Section) {
    // Nothing is the longest of all.
    let longer = |a: Option<(Duration, _)>, b: Option<(Duration, _)>| match (a, b) {
        (Some(a), Some(b)) => {
            let last = |timeout: &(Duration, _)| (!timeout.0.is_zero(), std::cmp::Reverse(timeout.0));
            Some(if last(&a) <= last(&b) { a } else { b })
        }
        (a, b) => a.or(b),
    };
    let tunnel = back.time("tunnel").or(front.time("tunnel"));
    if let Some((idle, from)) = tunnel.or(longer(front.time("client"), back.time("server"))) {
        section.put("timeouts.idle", from, time::text_or_off(idle));
    }
    if let Some((half_close, from)) = longer(front.time("client-fin"), back.time("server-fin")) {
        section.put("timeouts.half_close", from, time::text_or_off(half_close));
    }
}

/// What a frontend says beyond its addresses, its pool and its idle time.
fn front(proxy: &Proxy, section: &mut Section, draft: &mut Draft) {
    let acls = source::Acls::of(&proxy.lines);
    let mut rules: Vec<(Rule, &Statement)> = Vec::new();
    for line in &proxy.lines {
        let value = || line.word(1).to_string();
        match (line.word(0), line.word(1)) {
            ("maxconn", _) => section.put("limits.connections", line, value()),
            ("clitcpka-idle", _) => keepalive(section, "keepalive.idle", line, draft),
            ("clitcpka-intvl", _) => keepalive(section, "keepalive.interval", line, draft),
            ("clitcpka-cnt", _) => section.put("keepalive.probes", line, value()),
            ("tcp-request", "content") if names::awaits_hello(line) && section.has("routes") => {}
            ("tcp-request", "inspect-delay") if section.has("routes") => {}
            ("tcp-request", "connection" | "content") => match source::rule(line, &acls) {
                source::Read::Rule(rule) => rules.push((rule, line)),
                source::Read::Other(why) => draft.remark(line, why),
            },
            ("acl", _) if names::is_about_names(line) => {}
            ("acl", _) => acls.explain(line, draft),
            // Those that have a meaning are in `routes`, of others that has been said.
            ("use_backend", _) => {}
            _ if proxy.kind() == "frontend" => remark(line, words::PROXY, draft),
            // A `listen` has had the rest said as a pool.
            _ => {}
        }
    }
    section.rules(&rules);
}

fn keepalive(section: &mut Section, key: &str, line: &Statement, draft: &mut Draft) {
    match time::haproxy(line.word(1)) {
        Some(time) => section.put(key, line, time::text(time)),
        None => draft.remark(line, format!("`{}` is no duration", config_text(line.word(1)))),
    }
}

/// A server's name, if it can be one here.
fn label(name: &str) -> Option<String> {
    let fits = |b: u8| b.is_ascii_graphic() && !b"\"'\\=".contains(&b);
    match !name.is_empty() && name.len() <= 128 && name.bytes().all(fits) {
        true => Some(name.to_string()),
        false => (!name.is_empty()).then(|| fit(name)),
    }
}
