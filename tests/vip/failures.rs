//! Processes that are killed and stopped, links that are cut.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::hosts::*;

#[test]
fn a_killed_process() {
    let net = Net::new(&["a", "b", "c"]);
    let (a, b) = net.pair();
    for vip in [VIP, VIP6] {
        assert!(a.holds(vip) && !b.holds(vip));
    }
    let (watch, watch6) = (a.watch(VIP), a.watch(VIP6));
    let probe = net.probe("c", &to(VIP), 1_500);
    let since = now_ms();
    let dying = end(a.pid());
    let answers = probe.finish();
    let gone = [watch, watch6].map(|watch| watch.gone(since) - dying);
    assert_within("killed: address gone", gone[0], 150.0);
    assert_within("killed: IPv6 address gone", gone[1], 150.0);
    assert_within("killed: other node serves", served_by(&answers, since, "b"), 350.0);
    assert_eq!(net.arping("c", VIP), Some(net.mac("b")));
}

#[test]
fn a_stopped_process() {
    let net = Net::new(&["a", "b", "c"]);
    let (a, _b) = net.pair();
    let watch = a.watch(VIP);
    let probe = net.probe("c", &to(VIP), 2_000);
    let since = now_ms();
    a.signal(Signal::SIGSTOP);
    let answers = probe.finish();
    let served = served_by(&answers, since, "b");
    assert_within("stopped: address gone", watch.gone(since), 400.0);
    assert_within("stopped: other node serves", served, 400.0);
    // It thaws, doubts itself, listens, and gets its address back in order.
    a.signal(Signal::SIGCONT);
    a.wait_holds(true);
    assert!(a.log().contains("was frozen"), "{}", a.log());
}

#[test]
fn a_stopped_process_and_keeper() {
    let net = Net::new(&["a", "b", "c", "t"]);
    let (a, _b) = net.pair();
    // Both clients know the old holder.
    for host in ["c", "t"] {
        assert_eq!(net.arping(host, VIP), Some(net.mac("a")));
    }
    let watch = a.watch(VIP);
    let (probe, third) = (net.probe("c", &to(VIP), 4_500), net.probe("t", &to(VIP), 4_500));
    let since = now_ms();
    let keeper = a.keeper();
    kill(keeper, Signal::SIGSTOP).unwrap();
    a.signal(Signal::SIGSTOP);
    let beside = net.lapse("c");
    let (answers, third) = (probe.finish(), third.finish());
    for (who, answers) in [("client", &answers), ("third host", &third)] {
        let served = served_by(answers, since, "b");
        assert_within(&format!("all stopped: {who} served"), served, 400.0);
        // While the frozen kernel still answers for the address, traffic stays with the new holder.
        let missing = lost(answers, since + served) as f64;
        assert_within(&format!("all stopped: {who} lost after that"), missing, 10.0);
    }
    let limit = lease_limit(beside, since);
    assert_within("all stopped: address gone", watch.gone(since), limit);
    kill(keeper, Signal::SIGCONT).unwrap();
    a.signal(Signal::SIGCONT);
    a.wait_holds(true);
}

#[test]
fn a_keeper_that_ends_or_stops() {
    let net = Net::new(&["a", "b", "c"]);
    let (a, b) = net.pair();
    let keeper = a.keeper();
    kill(keeper, Signal::SIGSTOP).unwrap();
    let took = until(1_000, "b takes over from a stopped keeper", || b.holds(VIP));
    assert_within("keeper stopped: other node holds", took, 400.0);
    until(1_000, "fault", || a.state() == "fault");
    kill(keeper, Signal::SIGCONT).unwrap();
    until(2_000, "it works again", || a.state() == "active");
    let watch = a.watch(VIP);
    let since = now_ms();
    kill(keeper, Signal::SIGKILL).unwrap();
    let beside = net.lapse("c");
    until(1_000, "fault", || a.state() == "fault");
    let reason = a.status()["vips"][0]["reason"].to_string();
    assert!(reason.contains("has ended"), "{reason}");
    until(1_000, "b takes over from a dead keeper", || b.holds(VIP));
    let limit = lease_limit(beside, since);
    assert_within("keeper dead: address gone", watch.gone(since), limit);
}

#[test]
fn a_cut_link() {
    let net = Net::new(&["a", "b", "c"]);
    let (a, b) = net.pair();
    let probe = net.probe("c", &to(VIP), 1_500);
    let since = now_ms();
    net.bridge_link("a", "down");
    // How long the command itself takes is not our affair.
    let cut = now_ms();
    let answers = probe.finish();
    assert_within(
        "link cut: other node serves",
        served_by(&answers, since, "b") - (cut - since),
        350.0,
    );
    until(500, "no carrier, no address", || !a.holds(VIP));
    assert_eq!(a.state(), "fault");
    net.bridge_link("a", "up");
    until(5_000, "one holder again", || a.holds(VIP) && !b.holds(VIP));
}

/// The link between the nodes breaks for a while; both are reached by everybody else.
fn partitions(times: usize, length_ms: u64, mut seed: u64) {
    let net = Net::new(&["a", "b", "t"]);
    let (a, b) = net.pair();
    let (mac_a, mut worst): (String, f64) = (net.mac("a"), 0.0);
    let probe_ms = 400;
    for round in 0..times {
        net.part(&["a", "b"], true);
        until(1_000, "both hold", || b.holds(VIP));
        assert!(a.holds(VIP), "without a quorum both hold");
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let jitter = (seed >> 33) % (length_ms / 4 + 1);
        std::thread::sleep(Duration::from_millis(length_ms - length_ms / 8 + jitter));
        let watch = b.watch(VIP);
        let since = now_ms();
        net.part(&["a"], false);
        let mended = now_ms();
        until(1_000, "one holder", || !b.holds(VIP));
        let gone = watch.gone(since) - (mended - since);
        worst = worst.max(gone);
        assert_within(&format!("round {round}: one holder"), gone, 100.0);
        assert!(a.holds(VIP));
        // The third host is told, without asking.
        until(200, "the third host has the winner", || {
            net.neighbour("t", VIP).as_ref().is_none_or(|m| *m == mac_a)
        });
        let answers = net.probe("t", &to(VIP), probe_ms).finish();
        assert_eq!(net.neighbour("t", VIP).as_ref(), Some(&mac_a));
        assert!(
            answers.iter().all(|(_, by)| by.as_deref() == Some("a")),
            "round {round}: {answers:?}"
        );
    }
    println!("one holder at most {worst:.1} ms after the link was mended");
}

#[test]
fn partitions_heal_within_two_beats() {
    partitions(4, 800, 1);
}

#[test]
#[ignore = "long: 50 partitions of about 5 s"]
fn partitions_heal_fifty_times() {
    partitions(50, 5_000, now_ms() as u64);
}

#[test]
fn a_stuck_worker_and_failing_pools() {
    let net = Net::new(&["a", "b", "c"]);
    let (a, b) = net.pair();
    a.ask("serving no");
    let took = until(1_000, "b takes over", || b.holds(VIP) && !a.holds(VIP));
    assert_within("worker stuck: moved", took, 250.0);
    a.ask("serving yes");
    a.wait_holds(true);
    a.ask("pool 0 down");
    let took = until(1_000, "b takes over", || b.holds(VIP) && !a.holds(VIP));
    assert_within("pool down: moved", took, 250.0);
    // Nobody has a backend: it stays where it is.
    b.ask("pool 0 down");
    std::thread::sleep(Duration::from_millis(800));
    assert!(b.holds(VIP) && !a.holds(VIP));
    let reason = b.status()["vips"][0]["reason"].to_string();
    assert!(reason.contains("no backend"), "{reason}");
    a.ask("pool 0 up");
    until(1_000, "a takes it", || a.holds(VIP) && !b.holds(VIP));
    // Stuck without anybody to hand over to: an address without a service goes.
    b.ask("serving no");
    a.ask("serving no");
    until(1_000, "nobody", || !a.holds(VIP) && !b.holds(VIP));
}
