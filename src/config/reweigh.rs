//! The weights that operators have ordered, written into the configuration that was read.

use super::model::BackendAddress;
use super::value::FromText;
use super::written::Written;
use super::yaml::{Entry, Node, Value};

/// The tree with other weights: `weight` knows them by pool and address. A pool of which nothing would be left to serve
/// stays as it is, because the check refuses it.
pub fn reweighted(written: &Written, weight: impl Fn(&str, &BackendAddress) -> Option<u32>) -> Node {
    let mut tree = written.node().clone();
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
    let entry = |key: &str, value: Value| {
        let node = Node { at, value };
        let (key, first) = (key.to_string(), None);
        Entry { key, at, first, node }
    };
    let weight = entry("weight", Value::Scalar(weight.to_string()));
    match &mut backend.value {
        Value::Map(entries) => match entries.iter_mut().find(|entry| entry.key == "weight") {
            Some(old) => *old = weight,
            None => entries.push(weight),
        },
        value => {
            let address = entry("address", std::mem::replace(value, Value::Null));
            *value = Value::Map(vec![address, weight]);
        }
    }
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
            let dump = crate::config::write(&reweighted(&written, weight));
            let again = crate::config::parse("dump", &dump)
                .unwrap_or_else(|e| panic!("{dump}{e}"))
                .config;
            let found: Vec<u32> = again.pools[0].backends.iter().map(|backend| backend.weight).collect();
            assert_eq!(found, expected, "{dump}");
        }
    }
}
