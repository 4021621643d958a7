//! Three nodes, witnesses.

use serde_json::json;
use std::time::Duration;

use crate::hosts::*;

#[test]
fn with_a_quorum_the_cut_off_node_lets_go() {
    let net = Net::new(&["a", "b", "d", "c"]);
    let nodes = ["a", "b", "d"];
    let (a, b, d) = (net.start("a", &nodes), net.start("b", &nodes), net.start("d", &nodes));
    a.wait_holds(true);
    // Cut off with its carrier up: only the bridge forgets it.
    let (watch_a, watch_b) = (a.watch(VIP), b.watch(VIP));
    let since = now_ms();
    net.bridge_link("a", "nomaster");
    let cut = now_ms();
    until(1_000, "the majority takes it", || b.holds(VIP));
    until(1_000, "the minority lets go", || !a.holds(VIP));
    let taken = watch_b.finish().iter().find(|(_, t)| *t).unwrap().0 - cut;
    let gone = watch_a.gone(since) - (cut - since);
    assert_within("cut off: minority let go", gone, 350.0);
    assert_within("cut off: majority took it", taken, 400.0);
    assert_within("cut off: both held it for", gone - taken, 10.0);
    assert!(!d.holds(VIP));
    let reason = a.status()["vips"][0]["reason"].to_string();
    assert!(reason.contains("no quorum"), "{reason}");
    net.bridge_link("a", "master br0");
    until(5_000, "back in order", || a.holds(VIP) && !b.holds(VIP));
    // Two nodes that cannot hear each other but share the third: it backs one of them.
    net.part(&["a", "b"], true);
    std::thread::sleep(Duration::from_millis(900));
    assert!(a.holds(VIP) && !b.holds(VIP) && !d.holds(VIP));
    let view = b.status()["nodes"][0]["alive"].clone();
    assert_eq!(view, json!(false), "b does not hear a");
}

#[test]
fn a_witness_keeps_the_cut_off_node_from_holding() {
    let net = Net::new(&["a", "b", "w"]);
    let config = net.witnessed_by("w");
    let (a, b) = (
        net.start_with("a", &config("a"), &[]),
        net.start_with("b", &config("b"), &[]),
    );
    a.wait_holds(true);
    net.bridge_link("a", "nomaster");
    let since = now_ms();
    until(1_000, "the one with the witness takes it", || b.holds(VIP));
    until(1_000, "the other lets go", || !a.holds(VIP));
    assert_within("with a witness: moved", now_ms() - since, 500.0);
}
