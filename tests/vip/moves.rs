//! Moves that somebody asked for, and those that must not happen.

use serde_json::json;
use std::time::Duration;

use crate::hosts::*;

#[test]
fn a_planned_move_loses_at_most_ten_milliseconds() {
    let net = Net::new(&["a", "b", "c"]);
    let (a, b) = net.pair();
    for (vip, other) in [(VIP, VIP6), (VIP6, VIP)] {
        let probe = net.probe("c", &to(vip), 3_000);
        let since = now_ms();
        a.ask(&format!("demote {vip}"));
        until(1_000, "moved", || b.holds(vip) && !a.holds(vip));
        assert!(a.holds(other), "the other address was not asked to move");
        std::thread::sleep(Duration::from_millis(300));
        let back = now_ms();
        a.ask(&format!("allow {vip}"));
        until(2_000, "moved back", || a.holds(vip) && !b.holds(vip));
        let answers = probe.finish();
        assert_within(&format!("demote {vip}"), served_by(&answers, since, "b"), 50.0);
        let missing = lost(&answers, since) as f64;
        assert_within(&format!("lost in two moves of {vip}"), missing, 10.0);
        // Back only after preempt_delay.
        assert!(served_by(&answers, back, "a") >= 290.0);
    }
    let probe = net.probe("c", &to(VIP), 1_500);
    let since = now_ms();
    println!("stop took {}", a.stop());
    let answers = probe.finish();
    assert_within("lost when a node stops", lost(&answers, since) as f64, 10.0);
    assert_eq!(net.arping("c", VIP), Some(net.mac("b")));
}

#[test]
fn an_upgrade_and_a_reload_move_nothing() {
    let net = Net::new(&["a", "b", "c"]);
    let (a, b) = net.pair();
    let probe = net.probe("c", &to(VIP), 3_000);
    let since = now_ms();
    assert_eq!(a.ask("upgrade"), "ok");
    std::thread::sleep(Duration::from_millis(600));
    // One address less, one more, another beat period.
    let mut config = net.config("a", &["a", "b"]);
    config["vips"][1]["address"] = json!("10.9.0.101/32");
    config["beat_ms"] = json!(40);
    let path = net.write("a2", &config);
    assert_eq!(a.ask(&format!("reload {}", path.display())), "Ok(())");
    until(1_000, "the removed address goes", || !a.holds(VIP6));
    until(2_000, "the added address comes", || a.holds("10.9.0.101"));
    until(2_000, "the other node takes what we dropped", || b.holds(VIP6));
    let bad = net.write("bad", &{
        let mut bad = config.clone();
        bad["dead_after_ms"] = json!(60);
        bad
    });
    assert!(a.ask(&format!("reload {}", bad.display())).starts_with("Err"));
    let answers = probe.finish();
    assert_eq!(lost(&answers, since), 0);
    assert!(answers.iter().all(|(_, by)| by.as_deref() != Some("b")));
    assert!(!b.holds(VIP));
}
