//! What was seen to go wrong on hosts, and must not again: lost directions, ports that do not forward yet, nodes that are
//! configured otherwise, secrets changed one by one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::hosts::*;

fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// The longest time for which both had it, ms. What they have at the end they have until now.
fn longest_both(a: &Changes, b: &Changes) -> f64 {
    let spans = |changes: &Changes| -> Vec<(f64, f64)> {
        let ends = changes.iter().skip(1).map(|(at, _)| *at).chain([now_ms()]);
        let all = changes.iter().zip(ends);
        all.filter(|((_, there), _)| *there)
            .map(|((from, _), to)| (*from, to))
            .collect()
    };
    let (a, b) = (spans(a), spans(b));
    let both = a
        .iter()
        .flat_map(|a| b.iter().map(move |b| a.1.min(b.1) - a.0.max(b.0)));
    both.fold(0.0, f64::max)
}

/// Waits until a node holds its addresses, and not just for a moment of its start.
fn settled(node: &Node) {
    node.wait_holds(true);
    // The start of everything at once is the busiest moment of all.
    until(20_000, "settled", || {
        let vip = &node.status()["vips"][0];
        vip["state"] == json!("active") && vip["since_s"].as_u64().unwrap() >= 1
    });
}

fn never(changes: &Changes) -> bool {
    changes.iter().all(|(_, there)| !there)
}

fn always(changes: &Changes) -> bool {
    changes.iter().all(|(_, there)| *there)
}

/// Loads rules of nftables in a namespace.
fn nft(net: &Net, host: &str, rules: &str) {
    let file = net.dir.path().join(format!("{host}.nft"));
    fs::write(&file, rules).unwrap();
    sh(&format!("ip netns exec {} nft -f {}", net.ns(host), file.display()));
}

/// Nothing of a host's interface gets through, although its link is up: a switch port that does not forward yet.
const MUTE: &str = "table netdev mute {
    chain in { type filter hook ingress device eth0 priority 0; drop; }
}
table inet mute {
    chain out { type filter hook output priority 0; oifname eth0 drop; }
}";

const SPEAK: &str = "delete table netdev mute\ndelete table inet mute";

/// What the holder says is lost, what it hears is not: it must not live on votes for what nobody hears any more.
///
/// Seen to fail with votes that count from when they arrive (`votes::ballots_of_nodes`).
#[test]
fn a_holder_that_is_not_heard_lets_go_before_another_one_claims() {
    let net = Net::new(&["a", "b", "d"]);
    let nodes = ["a", "b", "d"];
    let (a, b, _d) = (net.start("a", &nodes), net.start("b", &nodes), net.start("d", &nodes));
    settled(&a);
    let (watch_a, watch_b) = (a.watch(VIP), b.watch(VIP));
    let since = now_ms();
    nft(
        &net,
        "a",
        "table inet deaf {
            chain out { type filter hook output priority 0; oifname eth0 drop; }
        }",
    );
    until(2_000, "the next one takes it", || b.holds(VIP));
    until(1_000, "the one that is not heard lets go", || !a.holds(VIP));
    println!("moved within {:.0} ms", now_ms() - since);
    pause(500);
    let both = longest_both(&watch_a.finish(), &watch_b.finish());
    assert_within("one direction lost: both held it for", both, 10.0);
}

/// A link that comes up is a start: the port may not forward yet, and silence says nothing.
///
/// Seen to fail with `Unit::begin` left out where a link comes up.
#[test]
fn a_link_that_comes_up_claims_nothing_before_it_has_heard_somebody() {
    let net = Net::beside(&["a", "b", "c"]);
    let config = |node: &str| {
        let mut config = net.config(node, &["a", "b"]);
        config["startup_delay_ms"] = json!(3_000);
        config
    };
    let (a, b) = (
        net.start_with("a", &config("a"), &[]),
        net.start_with("b", &config("b"), &[]),
    );
    settled(&a);
    net.bridge_link("a", "down");
    until(2_000, "the other one takes it", || b.holds(VIP) && !a.holds(VIP));
    nft(&net, "a", MUTE);
    let (watch_a, watch_b) = (a.watch(VIP), b.watch(VIP));
    net.bridge_link("a", "up");
    pause(900);
    assert!(never(&watch_a.finish()), "claimed before the port forwarded");
    assert!(always(&watch_b.finish()));
    nft(&net, "a", SPEAK);
    until(5_000, "in order again", || a.holds(VIP) && !b.holds(VIP));
}

/// Each prefers itself: by the names of both, the lesser one holds, and says why.
///
/// Seen to fail with `disputed` always false.
#[test]
fn nodes_that_each_prefer_themselves_have_one_holder() {
    let net = Net::beside(&["a", "b"]);
    let config = |node: &str, prefer: [&str; 2]| {
        let mut config = net.config(node, &["a", "b"]);
        config["vips"]
            .as_array_mut()
            .unwrap()
            .iter_mut()
            .for_each(|vip| vip["prefer"] = json!(prefer));
        config
    };
    let b = net.start_with("b", &config("b", ["b", "a"]), &[]);
    settled(&b);
    let a = net.start_with("a", &config("a", ["a", "b"]), &[]);
    let sees = |node: &Node, other: usize| node.status()["nodes"][other]["mismatch"].is_string();
    until(5_000, "they see that they differ", || sees(&a, 1) && sees(&b, 0));
    let (watch_a, watch_b) = (a.watch(VIP), b.watch(VIP));
    pause(1_200);
    let (had_a, had_b) = (watch_a.finish(), watch_b.finish());
    assert!(never(&had_a) && always(&had_b), "nobody preempts: {had_a:?} {had_b:?}");
    // Both claim it at the same moment, and hear of each other.
    net.part(&["a", "b"], true);
    until(2_000, "both hold", || a.holds(VIP) && b.holds(VIP));
    net.part(&["a"], false);
    until(1_000, "one holds", || a.holds(VIP) && !b.holds(VIP));
    let (watch_a, watch_b) = (a.watch(VIP), b.watch(VIP));
    pause(800);
    assert!(always(&watch_a.finish()) && never(&watch_b.finish()));
}

/// A node is silent when it says so itself: by its own `dead_after`, which comes with its beats.
///
/// Seen to fail with `alive` by the hearer's `dead_after`.
#[test]
fn a_slower_node_is_not_taken_for_dead() {
    let net = Net::beside(&["a", "b"]);
    let slow = {
        let mut config = net.config("b", &["b", "a"]);
        (config["beat_ms"], config["dead_after_ms"]) = (json!(300), json!(1_500));
        config
    };
    let b = net.start_with("b", &slow, &[]);
    settled(&b);
    let a = net.start("a", &["b", "a"]);
    // It has listened to the end, and would take the address now.
    until(10_000, "ready to take it", || {
        a.status()["vips"][0]["reason"].as_str().unwrap().contains("held by b")
    });
    let (watch_a, watch_b) = (a.watch(VIP), b.watch(VIP));
    // Longer than the fast one's own patience, and well within the slow one's.
    b.signal(Signal::SIGSTOP);
    pause(600);
    b.signal(Signal::SIGCONT);
    pause(600);
    assert!(never(&watch_a.finish()) && always(&watch_b.finish()));
}

/// A secret is changed node by node: nothing moves, and they hear each other all along.
///
/// Seen to fail with a verifier that knows the first secret only.
#[test]
fn a_secret_is_changed_node_by_node() {
    let net = Net::beside(&["a", "b"]);
    let (a, mut b) = net.pair();
    let [old, new] = ["secret", "new"].map(|name| net.dir.path().join(name));
    fs::write(&new, "another secret of the test bench").unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    let (watch_a, watch_b) = (a.watch(VIP), b.watch(VIP));
    let reload = |node: &Node, files: &Value| {
        let mut config = net.config(&node.name, &["a", "b"]);
        config["secret_files"] = files.clone();
        let path = net.write(&format!("{}-next", node.name), &config);
        assert_eq!(node.ask(&format!("reload {}", path.display())), "Ok(())");
        pause(300);
    };
    let both = json!([new, old]);
    // Connections stay when a secret changes, so one that restarts is what has to sign anew: with the old one alone, ...
    reload(&a, &both);
    b.stop();
    drop(b);
    b = net.start("b", &["a", "b"]);
    let alive = |node: &Node, other: usize| node.status()["nodes"][other]["alive"] == json!(true);
    until(5_000, "heard with the old one", || alive(&a, 1) && alive(&b, 0));
    reload(&b, &both);
    until(2_000, "heard with both", || alive(&a, 1) && alive(&b, 0));
    // ... and with the new one alone.
    reload(&a, &json!([new]));
    b.stop();
    drop(b);
    let mut config = net.config("b", &["a", "b"]);
    config["secret_files"] = both.clone();
    b = net.start_with("b", &config, &[]);
    until(5_000, "heard with the new one", || alive(&a, 1) && alive(&b, 0));
    reload(&b, &json!([new]));
    until(2_000, "heard by both", || alive(&a, 1) && alive(&b, 0));
    assert!(always(&watch_a.finish()) && never(&watch_b.finish()));
}

/// Beats go over all paths, and any of them proves life.
///
/// Seen to fail with the second path of `b` left out.
#[test]
fn one_of_two_paths_is_enough() {
    let net = Net::beside(&["a", "b"]);
    let (ns_a, ns_b) = (net.ns("a"), net.ns("b"));
    sh(&format!(
        "ip link add eth1 netns {ns_a} type veth peer name eth1 netns {ns_b} &&
         ip -n {ns_a} addr add 10.8.0.1/24 dev eth1 && ip -n {ns_b} addr add 10.8.0.2/24 dev eth1 &&
         ip -n {ns_a} link set eth1 up && ip -n {ns_b} link set eth1 up"
    ));
    let config = |node: &str| {
        let mut config = net.config(node, &["a", "b"]);
        config["paths"] = json!({"a": ["10.8.0.1:7400"], "b": ["10.8.0.2:7400"]});
        config
    };
    let (a, b) = (
        net.start_with("a", &config("a"), &[]),
        net.start_with("b", &config("b"), &[]),
    );
    settled(&a);
    pause(300);
    let (watch_a, watch_b) = (a.watch(VIP), b.watch(VIP));
    // The first path, then that one again and the other one.
    net.part(&["a", "b"], true);
    pause(800);
    net.part(&["a"], false);
    until(3_000, "heard over the first", || {
        let seen = sh(&format!("ip netns exec {ns_b} ss -Htn state established"));
        seen.lines().filter(|line| line.contains("10.9.0.1:")).count() > 0
    });
    pause(300);
    sh(&format!("ip -n {ns_a} link set eth1 down"));
    pause(800);
    assert!(always(&watch_a.finish()) && never(&watch_b.finish()));
    net.part(&["a"], true);
    until(2_000, "none is left", || b.holds(VIP));
}

/// Addresses of a group go together, also when only one of them has to.
///
/// Seen to fail without `group` in the configuration.
#[test]
fn a_group_moves_together() {
    let net = Net::beside(&["a", "b"]);
    let config = |node: &str| {
        let mut config = net.config(node, &["a", "b"]);
        config["vips"]
            .as_array_mut()
            .unwrap()
            .iter_mut()
            .for_each(|vip| vip["group"] = json!("outside"));
        config
    };
    let (a, b) = (
        net.start_with("a", &config("a"), &[]),
        net.start_with("b", &config("b"), &[]),
    );
    settled(&a);
    pause(300);
    let holds = |node: &Node| [VIP, VIP6].map(|ip| node.holds(ip));
    a.ask(&format!("demote {VIP}"));
    until(2_000, "both have moved", || {
        holds(&b) == [true; 2] && holds(&a) == [false; 2]
    });
    a.ask(&format!("allow {VIP}"));
    until(3_000, "both are back", || {
        holds(&a) == [true; 2] && holds(&b) == [false; 2]
    });
    // Somebody takes one of them off, twice.
    for _ in 0..2 {
        sh(&format!("ip -n {} addr del {VIP6}/64 dev eth0", a.ns));
        pause(150);
    }
    until(3_000, "both have moved", || {
        holds(&b) == [true; 2] && holds(&a) == [false; 2]
    });
}

/// Who stands by may come and go: the holder has a witness.
///
/// Seen to fail with votes of witnesses that count from the answer before last.
#[test]
fn the_end_of_a_standby_moves_nothing() {
    let net = Net::new(&["a", "b", "w"]);
    let config = net.witnessed_by("w");
    let a = net.start_with("a", &config("a"), &[]);
    let mut b = net.start_with("b", &config("b"), &[]);
    settled(&a);
    for round in 0..2 {
        until(5_000, "heard", || a.status()["nodes"][1]["alive"] == json!(true));
        let watch = a.watch(VIP);
        end(b.pid());
        pause(500);
        // A reload without the peer.
        let path = net.write("again", &config("a"));
        assert_eq!(a.ask(&format!("reload {}", path.display())), "Ok(())");
        pause(400);
        let changes = watch.finish();
        assert!(always(&changes), "killed, round {round}: {changes:?}\n{}", a.log());
        drop(b);
        b = net.start_with("b", &config("b"), &[]);
        until(5_000, "heard", || a.status()["nodes"][1]["alive"] == json!(true));
        let watch = a.watch(VIP);
        net.bridge_link("b", "down");
        pause(900);
        let changes = watch.finish();
        assert!(always(&changes), "cut, round {round}: {changes:?}\n{}", a.log());
        net.bridge_link("b", "up");
    }
}

/// All of a thousand addresses are taken over, soon, and by one node.
#[test]
fn a_thousand_addresses_move() {
    let net = Net::new(&["a", "b"]);
    let config = |node: &str| {
        let mut config = net.config(node, &["a", "b"]);
        let vip = |n: usize| {
            json!({"address": format!("10.20.{}.{}/32", n / 250, n % 250 + 1), "interface": "eth0", "prefer": ["a", "b"],
                   "preempt": true, "preempt_delay_ms": 300, "requires": [0]})
        };
        config["vips"] = (0..1_000).map(vip).collect();
        config
    };
    let (a, b) = (
        net.start_with("a", &config("a"), &[]),
        net.start_with("b", &config("b"), &[]),
    );
    let count = |node: &Node| {
        let ns = node.ns.clone();
        in_ns(&ns, || {
            let all = weir::sys::netlink::Netlink::open().unwrap().addresses().unwrap();
            all.iter().filter(|a| a.net.to_string().starts_with("10.20.")).count()
        })
    };
    until(20_000, "all are held", || count(&a) == 1_000 && count(&b) == 0);
    until(5_000, "heard", || b.status()["nodes"][0]["alive"] == json!(true));
    let died = end(a.pid());
    let took = died + until(10_000, "all have moved", || count(&b) == 1_000);
    until(5_000, "none is left", || count(&a) == 0);
    // 500 ms is what an idle machine does; this one may have others to serve.
    assert_within("a thousand addresses moved", took, 5_000.0);
    pause(300);
    assert_eq!(count(&b), 1_000);
}
