//! What operators have ordered, written into the configuration that was read: weights, and backends that come and go.

use super::model::{Backend, BackendAddress};
use super::value::FromText;
use super::yaml::{Entry, Node, Place, Value};

/// The tree with other weights: `weight` knows them by pool and address. A pool of which nothing would be left to serve
/// stays as it is, because the check refuses it.
pub fn reweighted(mut tree: Node, weight: impl Fn(&str, &BackendAddress) -> Option<u32>) -> Node {
    let pools = child(&mut tree, "pools").map(|pools| &mut pools.value);
    let Some(Value::Map(pools)) = pools else { return tree };
    for pool in pools {
        let Some(Value::List(backends)) = child(&mut pool.node, "backends").map(|node| &mut node.value) else {
            continue;
        };
        let before = backends.clone();
        for backend in backends.iter_mut() {
            if let Some(weight) = address(backend).and_then(|address| weight(&pool.key, &address)) {
                set_weight(backend, weight);
            }
        }
        let idle = |node: &Node| weight_of(node) == Some("0");
        if backends.iter().all(idle) && !before.iter().all(idle) {
            *backends = before;
        }
    }
    tree
}

fn child<'n>(node: &'n mut Node, key: &str) -> Option<&'n mut Node> {
    match &mut node.value {
        Value::Map(entries) => entries
            .iter_mut()
            .find(|entry| entry.key == key)
            .map(|entry| &mut entry.node),
        _ => None,
    }
}

fn scalar_of<'n>(node: &'n Node, key: &str) -> Option<&'n str> {
    match &node.value {
        Value::Map(entries) => match &entries.iter().find(|entry| entry.key == key)?.node.value {
            Value::Scalar(text) => Some(text),
            _ => None,
        },
        _ => None,
    }
}

fn weight_of(node: &Node) -> Option<&str> {
    scalar_of(node, "weight")
}

/// The address of an entry of `backends`, which may be nothing else.
fn address(node: &Node) -> Option<BackendAddress> {
    let text = match &node.value {
        Value::Scalar(text) => Some(text.as_str()),
        _ => scalar_of(node, "address"),
    };
    text.and_then(|text| BackendAddress::from_text(text).ok())
}

fn set_weight(backend: &mut Node, weight: u32) {
    let at = backend.at;
    let weight = entry(at, "weight", weight.to_string());
    match &mut backend.value {
        Value::Map(entries) => match entries.iter_mut().find(|entry| entry.key == "weight") {
            Some(old) => *old = weight,
            None => entries.push(weight),
        },
        value => {
            let mut address = entry(at, "address", String::new());
            address.node.value = std::mem::replace(value, Value::Null);
            *value = Value::Map(vec![address, weight]);
        }
    }
}

/// The tree with these backends added to a pool and those addresses taken out of its list. A list of which nothing is left goes.
pub fn with_members(mut tree: Node, pool: &str, added: &[&Backend], removed: &[&BackendAddress]) -> Node {
    let Some(pool) = child(&mut tree, "pools").and_then(|pools| child(pools, pool)) else {
        return tree;
    };
    let at = pool.at;
    let Value::Map(keys) = &mut pool.value else { return tree };
    let before = keys.iter().position(|entry| entry.key == "backends");
    let mut list = match before.map(|ix| std::mem::replace(&mut keys[ix].node.value, Value::Null)) {
        Some(Value::List(backends)) => backends,
        None | Some(Value::Null) => Vec::new(),
        Some(value) => vec![Node { at, value }],
    };
    list.retain(|backend| !address(backend).is_some_and(|address| removed.contains(&&address)));
    list.extend(added.iter().map(|backend| {
        let address = entry(at, "address", backend.address.to_string());
        let weight = (backend.weight != 1).then(|| entry(at, "weight", backend.weight.to_string()));
        let value = Value::Map(std::iter::once(address).chain(weight).collect());
        Node { at, value }
    }));
    match (before, list.is_empty()) {
        (Some(ix), true) => drop(keys.remove(ix)),
        (Some(ix), false) => keys[ix].node.value = Value::List(list),
        (None, true) => {}
        (None, false) => keys.push(Entry {
            key: "backends".into(),
            at,
            first: None,
            node: Node {
                at,
                value: Value::List(list),
            },
        }),
    }
    tree
}

fn entry(at: Place, key: &str, text: String) -> Entry {
    let node = Node {
        at,
        value: Value::Scalar(text),
    };
    let (key, first) = (key.to_string(), None);
    Entry { key, at, first, node }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Meant to fail without the rule for a pool of which nothing would be left.
    #[test]
    fn weights_by_order_are_written() {
        let text = "listeners: {l: {bind: '0.0.0.0:80', pool: p}}\npools: {p: {backends: [10.0.0.1:80, {name: b, address: '10.0.0.2:80', weight: 3}]}}\n";
        let written = crate::config::parse("f", text).unwrap().config.written;
        for (weights, expected) in [
            ([None, None], [1, 3]),
            ([Some(0), None], [0, 3]),
            ([None, Some(7)], [1, 7]),
            ([Some(0), Some(0)], [1, 3]),
        ] {
            let weight = |pool: &str, address: &BackendAddress| {
                assert_eq!(pool, "p");
                weights[usize::from(address.to_string() == "10.0.0.2:80")]
            };
            let dump = crate::config::write(&reweighted(written.node().clone(), weight));
            let again = crate::config::parse("dump", &dump)
                .unwrap_or_else(|e| panic!("{dump}{e}"))
                .config;
            let found: Vec<u32> = again.pools[0].backends.iter().map(|backend| backend.weight).collect();
            assert_eq!(found, expected, "{dump}");
        }
    }

    #[test]
    fn backends_by_order_are_written() {
        let backend = |text: &str| {
            let (address, weight) = text.split_once('*').unwrap_or((text, "1"));
            let address = BackendAddress::from_text(address).unwrap();
            let (name, weight) = (address.to_string(), weight.parse().unwrap());
            Backend {
                name,
                address,
                weight,
                max_connections: None,
                backup: false,
            }
        };
        // What is under the pool's name, who is added and removed, who is in the file then.
        for (pool, added, removed, expected) in [
            (
                "backends: [10.0.0.1:80, {name: b, address: '10.0.0.2:80'}]",
                "10.0.0.3:80*4",
                "10.0.0.2:80",
                "10.0.0.1:80*1 10.0.0.3:80*4",
            ),
            (
                "backends: 10.0.0.1:80",
                "10.0.0.3:80",
                "",
                "10.0.0.1:80*1 10.0.0.3:80*1",
            ),
            ("backends: 10.0.0.1:80", "10.0.0.3:80", "10.0.0.1:80", "10.0.0.3:80*1"),
            (
                "members: [{dns: w.internal, port: 80}]",
                "10.0.0.3:80",
                "10.0.0.9:80",
                "10.0.0.3:80*1",
            ),
            (
                "members: [{dns: w.internal, port: 80}], backends: 10.0.0.1:80",
                "",
                "10.0.0.1:80",
                "",
            ),
            (
                "members: [{dns: w.internal, port: 80}]",
                "unix:/run/a",
                "",
                "unix:/run/a*1",
            ),
        ] {
            let text = format!(
                "listeners: {{l: {{bind: '0.0.0.0:80', pool: p}}}}\npools: {{p: {{{pool}}}, q: {{backends: 10.0.0.1:80}}}}\n"
            );
            let tree = crate::config::parse("f", &text).unwrap().config.written.node().clone();
            let added: Vec<Backend> = added.split_whitespace().map(backend).collect();
            let removed: Vec<BackendAddress> = removed.split_whitespace().map(|text| backend(text).address).collect();
            let tree = with_members(tree, "p", &Vec::from_iter(&added), &Vec::from_iter(&removed));
            let dump = crate::config::write(&tree);
            let again = crate::config::parse("dump", &dump)
                .unwrap_or_else(|e| panic!("{dump}{e}"))
                .config;
            let found = again.pools[0]
                .backends
                .iter()
                .map(|b| format!("{}*{}", b.address, b.weight));
            assert_eq!(Vec::from_iter(found).join(" "), expected, "{dump}");
            assert_eq!(again.pools[1].backends.len(), 1);
        }
    }
}
