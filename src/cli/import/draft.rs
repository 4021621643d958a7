//! The weir configuration that comes out: sections whose places are the statements they were made from, and remarks
//! about the statements that have no meaning here.
//!
//! A dialect writes down what it understood and leaves judging to the checker: what the checker refuses is cut out and
//! said, with the checker's own words, at the statement that it came from. So whatever comes out passes `weir check`.

use std::collections::{BTreeSet, HashSet};

use super::lex::{Sources, Statement};
use super::rules::{self, Rule};
use crate::config::fields::{Missing, Shape, field};
use crate::config::{self, Entry, Node, Place, Value};

/// Said with `client_address: keep`: wherever backends are to see their clients, the way is made by weir alone.
pub const KEEP: &str = "`client_address: keep`: weir makes the rules of routing itself: take those of the packet filter and of `ip rule` for it \
                        away; servers have to answer through this host";

/// In every refusal of a backend that cannot be shown its clients.
const CLIENTS_KEPT: &str = "`client_address: keep`";

/// A section under construction.
#[derive(Debug, Clone)]
pub struct Section(Node);

fn place(from: &Statement) -> Place {
    Place {
        line: from.ix,
        column: 0,
    }
}

fn scalar(at: Place, text: impl Into<String>) -> Node {
    let value = Value::Scalar(text.into());
    Node { at, value }
}

impl Section {
    /// An empty section, made from this statement.
    pub fn new(from: &Statement) -> Section {
        let value = Value::Map(Vec::new());
        Section(Node { at: place(from), value })
    }

    /// The value of a dotted path, which is made if it is missing.
    fn at(&mut self, path: &str, from: &Statement) -> &mut Node {
        let mut node = &mut self.0;
        for key in path.split('.') {
            let Value::Map(entries) = &mut node.value else {
                unreachable!("{path}: only leaves hold something else");
            };
            let ix = entries.iter().position(|entry| entry.key == key).unwrap_or_else(|| {
                let at = place(from);
                let node = Node {
                    at,
                    value: Value::Map(Vec::new()),
                };
                let (key, first) = (key.into(), None);
                entries.push(Entry { key, at, first, node });
                entries.len() - 1
            });
            node = &mut entries[ix].node;
        }
        node
    }

    /// Sets a value; the last one counts.
    pub fn put(&mut self, path: &str, from: &Statement, text: impl Into<String>) {
        *self.at(path, from) = scalar(place(from), text);
    }

    /// Sets a list; the last one counts.
    pub fn put_list<'t>(&mut self, path: &str, from: &Statement, texts: impl Iterator<Item = &'t str>) {
        let nodes = texts.map(|text| scalar(place(from), text)).collect();
        self.at(path, from).value = Value::List(nodes);
    }

    /// Adds to a list.
    pub fn push(&mut self, path: &str, from: &Statement, text: impl Into<String>) {
        self.push_node(path, from, scalar(place(from), text));
    }

    /// Adds to a list of sections.
    pub fn push_section(&mut self, path: &str, from: &Statement, section: Section) {
        self.push_node(path, from, section.0);
    }

    fn push_node(&mut self, path: &str, from: &Statement, new: Node) {
        let node = self.at(path, from);
        match &mut node.value {
            Value::List(nodes) => nodes.push(new),
            value => *value = Value::List(vec![new]),
        }
    }

    /// Puts a section at a name below a path (empty: here); names may hold dots. A name that is there is replaced.
    pub fn name(&mut self, path: &str, name: &str, from: &Statement, section: Section) {
        let node = if path.is_empty() {
            &mut self.0
        } else {
            self.at(path, from)
        };
        let Value::Map(entries) = &mut node.value else {
            unreachable!("{path} holds names");
        };
        entries.retain(|entry| entry.key != name);
        let (at, first, key) = (place(from), None, name.into());
        let node = section.0;
        entries.push(Entry { key, at, first, node });
    }

    /// As [`name`](Self::name), for a value.
    pub fn name_value(&mut self, path: &str, name: &str, from: &Statement, text: impl Into<String>) {
        self.name(path, name, from, Section(scalar(place(from), text)));
    }

    /// Puts the list `all` of a section at a name below a path.
    pub fn name_list(&mut self, path: &str, name: &str, from: &Statement, mut list: Section) {
        let node = std::mem::replace(list.at("all", from), scalar(place(from), ""));
        self.name(path, name, from, Section(node));
    }

    /// Whether a path has a value.
    pub fn has(&self, path: &str) -> bool {
        let mut node = &self.0;
        for key in path.split('.') {
            let Value::Map(entries) = &node.value else { return false };
            match entries.iter().find(|entry| entry.key == key) {
                Some(entry) => node = &entry.node,
                None => return false,
            }
        }
        true
    }

    /// Writes `allow` and `deny`.
    pub fn rules(&mut self, rules: &[(Rule, &Statement)]) {
        let Some((_, from)) = rules.first() else { return };
        let (allow, deny) = rules::lists(&rules.iter().map(|(rule, _)| rule.clone()).collect::<Vec<_>>());
        let bare = |net: &ipnet::IpNet| match net.prefix_len() == net.max_prefix_len() {
            true => net.addr().to_string(),
            false => net.to_string(),
        };
        allow
            .iter()
            .flatten()
            .for_each(|net| self.push("allow", from, bare(net)));
        deny.iter().for_each(|net| self.push("deny", from, bare(net)));
    }
}

/// What comes out of files.
pub struct Draft {
    /// Where statements stand.
    pub sources: Sources,
    /// Keys of the whole process, and failover.
    pub root: Section,
    listeners: Vec<Entry>,
    pools: Vec<Entry>,
    names: [HashSet<String>; 2],
    remarks: BTreeSet<(usize, u32, String)>,
}

/// What an import comes to.
pub struct Finished {
    /// A configuration that passes the check; `None`: nothing of it has a meaning here.
    pub yaml: Option<String>,
    /// `FILE:LINE: directive: why, and what to do instead`
    pub remarks: Vec<String>,
}

impl Draft {
    /// A draft without anything in it yet.
    pub fn new(sources: Sources) -> Draft {
        let value = Value::Map(Vec::new());
        let at = Place { line: 0, column: 0 };
        Draft {
            sources,
            root: Section(Node { at, value }),
            listeners: Vec::new(),
            pools: Vec::new(),
            names: Default::default(),
            remarks: BTreeSet::new(),
        }
    }

    /// Says that a statement has no meaning here, or another one.
    pub fn remark(&mut self, about: &Statement, text: impl AsRef<str>) {
        self.remark_ix(about.ix, text.as_ref());
    }

    fn remark_ix(&mut self, ix: u32, text: &str) {
        let (file, line, directive) = self.sources.place(ix);
        let line_text = match directive {
            "" => text.to_string(),
            directive => format!("{}: {text}", config::shorten(directive)),
        };
        self.remarks.insert((file, line, line_text));
    }

    /// A name for a listener that fits and is not taken.
    pub fn listener_name(&mut self, wanted: &str) -> String {
        unique(&mut self.names[0], wanted)
    }

    /// A name for a pool that fits and is not taken.
    pub fn pool_name(&mut self, wanted: &str) -> String {
        unique(&mut self.names[1], wanted)
    }

    /// Adds a listener.
    pub fn listener(&mut self, name: String, from: &Statement, section: Section) {
        self.listeners.push(entry(name, from, section));
    }

    /// Adds a pool.
    pub fn pool(&mut self, name: String, from: &Statement, section: Section) {
        self.pools.push(entry(name, from, section));
    }

    /// The tree, less what the checker refuses.
    pub fn finish(mut self) -> Finished {
        let yaml = self
            .tree()
            .and_then(|tree| self.prune(tree))
            .map(|tree| config::write(&tree));
        let files = &self.sources.files;
        let shown = |(file, line, text): &(usize, u32, String)| format!("{}:{line}: {text}", files[*file]);
        let remarks = self.remarks.iter().map(shown).collect();
        Finished { yaml, remarks }
    }

    fn tree(&mut self) -> Option<Node> {
        let mut root = std::mem::replace(&mut self.root.0.value, Value::Null);
        let Value::Map(entries) = &mut root else {
            unreachable!("the root is a mapping");
        };
        // Failover is the last in every document; the rest comes before the listeners.
        let failover = entries.iter().position(|entry| entry.key == "failover");
        let failover = failover.map(|ix| entries.remove(ix));
        // Addresses that move need nothing that is balanced here.
        let alone = self.listeners.is_empty() && failover.is_some();
        let named = [("listeners", &mut self.listeners), ("pools", &mut self.pools)];
        for (key, named) in named.into_iter().filter(|_| !alone) {
            let at = named.first()?.at;
            let value = Value::Map(std::mem::take(named));
            let (key, first) = (key.into(), None);
            entries.push(Entry {
                key,
                at,
                first,
                node: Node { at, value },
            });
        }
        entries.extend(failover);
        let at = self.root.0.at;
        Some(Node { at, value: root })
    }

    /// Cuts out what the checker refuses until it refuses nothing. Each round cuts something, so it ends.
    fn prune(&mut self, mut tree: Node) -> Option<Node> {
        loop {
            let Err(errors) = config::check_tree(&tree) else {
                return Some(tree);
            };
            let mut cuts = BTreeSet::new();
            // Beyond a thousand errors one line without a path counts the rest: the next round has them.
            for error in errors.0.iter().filter(|error| !error.path.is_empty()) {
                let cut = cut(&tree, &to_cut(error));
                if cut.steps.is_empty() {
                    return None;
                }
                let text = format!("{}; {} is left out", error.message, cut.path);
                self.remark_ix(error.line, &text);
                cuts.insert(cut.steps);
            }
            if cuts.is_empty() {
                return None;
            }
            // Backwards: what is deeper, and what comes later, first.
            for steps in cuts.iter().rev() {
                remove(&mut tree, steps);
            }
        }
    }
}

fn entry(key: String, from: &Statement, section: Section) -> Entry {
    let (at, first, node) = (place(from), None, section.0);
    Entry { key, at, first, node }
}

/// Letters, digits, `_`, `-` and `.`, a letter or digit first, at most 64; see [`Name`](crate::config).
pub fn fit(wanted: &str) -> String {
    let fits = |c: char| {
        if c.is_ascii_alphanumeric() || "_-.".contains(c) {
            c
        } else {
            '-'
        }
    };
    let name: String = wanted.chars().map(fits).collect();
    let name: String = name.trim_start_matches(['_', '-', '.']).chars().take(56).collect();
    match name.is_empty() {
        true => "unnamed".into(),
        false => name,
    }
}

fn unique(taken: &mut HashSet<String>, wanted: &str) -> String {
    let name = fit(wanted);
    let numbered = (2u32..).map(|n| format!("{name}-{n}"));
    let free = std::iter::once(name.clone())
        .chain(numbered)
        .find(|name| !taken.contains(name));
    let free = free.expect("there is always another number");
    taken.insert(free.clone());
    free
}

/// What is to be removed.
struct Cut {
    /// Index of the child at each level.
    steps: Vec<usize>,
    path: String,
}

/// The path of what an error is about. Backends that cannot see their clients are worth more than that they do.
fn to_cut(error: &config::Diagnostic) -> String {
    match error.path.rsplit_once(".backends[") {
        Some((pool, _)) if error.message.contains(CLIENTS_KEPT) => format!("{pool}.client_address"),
        _ => error.path.clone(),
    }
}

/// What has to go so that an error at a path goes too: what stands there; the section around it if it is missing, or if
/// the section is nothing without it; and a listener as a whole when it would else serve others than it did.
fn cut(tree: &Node, path: &str) -> Cut {
    let mut steps: Vec<(usize, String, String)> = Vec::new(); // child, its path, its row
    let (mut node, mut rest) = (tree, path);
    loop {
        let (here, rule) = steps
            .last()
            .map_or(("", ""), |(_, path, rule)| (path.as_str(), rule.as_str()));
        let next = match &node.value {
            Value::Map(entries) => {
                let named = field(rule).is_some_and(|row| row.shape == Shape::Named);
                let fits = |entry: &Entry| {
                    let behind = rest.strip_prefix(config::shorten(&entry.key).as_str());
                    behind.is_some_and(|behind| behind.is_empty() || behind.starts_with(['.', '[']))
                };
                let found = entries.iter().enumerate().filter(|(_, entry)| fits(entry));
                found.max_by_key(|(_, entry)| entry.key.len()).map(|(ix, entry)| {
                    let key = config::shorten(&entry.key);
                    let row = if named { "*" } else { &entry.key };
                    let behind = &rest[key.len()..];
                    (
                        ix,
                        join(here, &key),
                        join(rule, row),
                        &entry.node,
                        behind.strip_prefix('.').unwrap_or(behind),
                    )
                })
            }
            Value::List(nodes) => {
                let index = rest.strip_prefix('[').and_then(|rest| rest.split_once(']'));
                index.and_then(|(index, behind)| {
                    let ix: usize = index.parse().ok()?;
                    let behind = behind.strip_prefix('.').unwrap_or(behind);
                    Some((ix, format!("{here}[{ix}]"), format!("{rule}.*"), nodes.get(ix)?, behind))
                })
            }
            _ => None,
        };
        let Some((ix, path, rule, child, behind)) = next else {
            break;
        };
        steps.push((ix, path, rule));
        (node, rest) = (child, behind);
        if rest.is_empty() {
            break;
        }
    }
    let guards = |rule: &str| {
        let keys = ["allow", "deny", "accept_proxy", "limits.exempt"];
        keys.iter().any(|key| {
            rule.strip_prefix("listeners.*.")
                .is_some_and(|rest| rest.starts_with(key))
        })
    };
    if steps.iter().any(|(_, _, rule)| guards(rule)) {
        steps.truncate(2);
    }
    // A row that is required takes its section with it, and a pool its listener; of routes each is for itself.
    let takes_more = |rule: &str| match rule {
        "listeners.*.pool" => true,
        "listeners.*.routes.*" => false,
        rule => field(rule).is_some_and(|row| row.missing == Missing::Refused),
    };
    while let Some((_, _, rule)) = steps.last()
        && takes_more(rule)
        && steps.len() > 1
    {
        steps.pop();
    }
    let path = steps.last().map_or(String::new(), |(_, path, _)| format!("`{path}`"));
    let steps = steps.into_iter().map(|(ix, _, _)| ix).collect();
    Cut { steps, path }
}

fn join(path: &str, key: &str) -> String {
    match path {
        "" => key.to_string(),
        path => format!("{path}.{key}"),
    }
}

fn remove(tree: &mut Node, steps: &[usize]) {
    let Some((last, before)) = steps.split_last() else {
        return;
    };
    let mut node = tree;
    for ix in before {
        node = match &mut node.value {
            Value::Map(entries) => &mut entries[*ix].node,
            Value::List(nodes) => &mut nodes[*ix],
            _ => unreachable!("steps lead through what has children"),
        };
    }
    match &mut node.value {
        Value::Map(entries) => drop(entries.remove(*last)),
        Value::List(nodes) => drop(nodes.remove(*last)),
        _ => unreachable!("steps lead through what has children"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(sources: &mut Sources, text: &str) -> Statement {
        let file = sources.open("f".into());
        super::super::lex::lex(text, super::super::lex::Style::Braces, file, sources)
            .unwrap()
            .remove(0)
    }

    /// What is refused goes, with as little around it as possible, but never a rule that keeps somebody out.
    #[test]
    fn what_the_checker_refuses_is_cut_out() {
        for (key, text, left) in [
            (
                "timeouts.idle",
                "1y",
                "  web:\n    bind: [\"0.0.0.0:80\"]\n    pool: web\n    timeouts: {}\n",
            ),
            (
                "bind",
                "nonsense",
                "  web:\n    bind: [\"0.0.0.0:80\"]\n    pool: web\n",
            ),
            ("deny", "nonsense", ""),
            ("accept_proxy.from", "nonsense", ""),
            ("pool", "nowhere", ""),
        ] {
            let mut sources = Sources::default();
            let from = statement(&mut sources, "directive");
            let mut draft = Draft::new(sources);
            let backend = |draft: &mut Draft, name: &str| {
                let mut pool = Section::new(&from);
                pool.push("backends", &from, "10.0.0.1:80");
                pool.push("backends", &from, "no address");
                draft.pool(name.into(), &from, pool);
            };
            backend(&mut draft, "web");
            let mut other = Section::new(&from);
            other.push("bind", &from, "0.0.0.0:81");
            other.put("pool", &from, "web");
            let mut web = Section::new(&from);
            web.push("bind", &from, "0.0.0.0:80");
            web.put("pool", &from, "web");
            match key {
                "bind" | "deny" | "accept_proxy.from" => web.push(key, &from, text),
                _ => web.put(key, &from, text),
            }
            draft.listener("other".into(), &from, other);
            draft.listener("web".into(), &from, web);
            let finished = draft.finish();
            let yaml = finished.yaml.unwrap();
            config::parse("out", &yaml).unwrap();
            let rest = yaml
                .strip_prefix("listeners:\n  other:\n    bind: [\"0.0.0.0:81\"]\n    pool: web\n")
                .unwrap();
            assert_eq!(rest.split_once("pools:").unwrap().0, left, "{key}");
            assert_eq!(
                rest.split_once("pools:").unwrap().1,
                "\n  web:\n    backends: [\"10.0.0.1:80\"]\n"
            );
            assert_eq!(finished.remarks.len(), 2, "{:?}", finished.remarks);
        }
    }

    #[test]
    fn names_fit_and_are_unique() {
        let mut taken = HashSet::new();
        let long = "x".repeat(100);
        for (wanted, name) in [
            ("web", "web"),
            ("web", "web-2"),
            ("a:b/c", "a-b-c"),
            ("-", "unnamed"),
            ("é", "unnamed-2"),
            (long.as_str(), &long[..56]),
            (long.as_str(), &format!("{}-2", &long[..56])),
        ] {
            assert_eq!(unique(&mut taken, wanted), name);
        }
    }
}
