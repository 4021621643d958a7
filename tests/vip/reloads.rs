//! Reloads of the whole balancer beside an address that is held.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::hosts::*;
use crate::whole::Whole;

/// Writes another configuration of a node, and has it taken over.
fn reload(net: &Net, whole: &Whole, node: &str, change: impl FnOnce(&mut Value)) {
    let path = net.dir.path().join(format!("{node}.yaml"));
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(&path, config.to_string()).unwrap();
    let mut reload = Command::new(env!("CARGO_BIN_EXE_weir"));
    let out = reload.args(["reload", "--socket"]).arg(&whole.admin).output().unwrap();
    assert!(out.status.success(), "{out:?}");
}

/// Pools without a backend come before the one that an address requires, and go, on the node that holds it.
/// A plan that spoke of pools by their place, or of pools that are not published yet, would take one of them for the required one.
#[test]
fn pools_that_come_and_go_around_the_required_one_move_nothing() {
    let net = Net::new(&["a", "b", "c"]);
    let (a, b) = Whole::pair(&net);
    let watches = [watch(&a.ns, VIP), watch(&b.ns, VIP)];
    let empty = || {
        json!({"backends": [{"name": "one", "address": "127.0.0.1:1"}],
                          "health": {"type": "tcp", "interval": "100ms", "timeout": "80ms", "rise": 1, "fall": 1}})
    };
    let rounds: [(&str, bool); 8] = [
        ("aaa", true),
        ("aab", true),
        ("aac", true),
        ("zzz", true),
        ("aab", false),
        ("aaa", false),
        ("aac", false),
        ("aaa", true),
    ];
    for (name, comes) in rounds {
        reload(&net, &a, "a", |config| {
            let pools = config["pools"].as_object_mut().unwrap();
            let rest = std::mem::take(pools);
            if comes {
                // In the order of the file, before all others.
                pools.insert(name.into(), empty());
            }
            pools.extend(rest.into_iter().filter(|(other, _)| other != name));
        });
        // Its backend is found to be down, which is what would count.
        if comes {
            until(10_000, &format!("{name} is down"), || {
                let mut status = Command::new(env!("CARGO_BIN_EXE_weir"));
                let out = status
                    .args(["status", "--json", "--socket"])
                    .arg(&a.admin)
                    .output()
                    .unwrap();
                let status: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
                let pools = status["pools"].as_array().cloned().unwrap_or_default();
                pools
                    .iter()
                    .any(|pool| pool["name"] == name && pool["backends"][0]["state"] == "down")
            });
        }
    }
    let seen = watches.map(|watch| watch.finish().into_iter().map(|(_, there)| there).collect::<Vec<_>>());
    assert_eq!(seen, [vec![true], vec![false]], "held by the first node all the time");
}
