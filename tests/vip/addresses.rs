//! What is on the interface: put there by others, left there by the dead, or not permitted.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::hosts::*;

#[test]
fn what_others_do_to_the_address() {
    let net = Net::new(&["a", "b", "c"]);
    let (a, b) = net.pair();
    let delete = format!("ip -n {} addr del 10.9.0.100/24 dev eth0", net.ns("a"));
    sh(&delete);
    until(200, "put back once", || a.holds(VIP));
    assert_eq!(a.state(), "active");
    // Made permanent by somebody: it must not outlive us.
    sh(&format!("ip -n {} addr replace 10.9.0.100/24 dev eth0", net.ns("a")));
    until(500, "a lease again", || {
        let shown = sh(&format!("ip -n {} addr show to {VIP}", net.ns("a")));
        shown.contains("valid_lft 2sec")
    });
    sh(&delete);
    until(500, "given up, and taken by the other", || b.holds(VIP));
    assert_eq!(a.state(), "fault");
    let reason = a.status()["vips"][0]["reason"].to_string();
    assert!(reason.contains("somebody else removed"), "{reason}");
    assert!(a.holds(VIP6), "the other address has done nothing");
    // Put on the standby by somebody: it says so, and does not touch it.
    sh(&format!("ip -n {} addr add fd09::100/64 dev eth0 nodad", net.ns("b")));
    until(500, "seen", || b.status()["vips"][1]["state"].as_str() == Some("fault"));
    std::thread::sleep(Duration::from_millis(300));
    assert!(b.holds(VIP6));
    sh(&format!("ip -n {} addr del fd09::100/64 dev eth0", net.ns("b")));
    until(500, "forgotten", || {
        b.status()["vips"][1]["state"].as_str() == Some("standby")
    });
}

#[test]
fn leftovers_are_swept() {
    let net = Net::new(&["a", "c"]);
    let a = net.start("a", &["a"]);
    a.wait_holds(true);
    kill(a.keeper(), Signal::SIGKILL).unwrap();
    a.signal(Signal::SIGKILL);
    assert!(a.holds(VIP), "nobody is there to remove it");
    let again = net.start("a", &["a"]);
    let log = || again.log();
    until(1_000, "swept", || log().matches("swept").count() == 2);
    again.stop();
    until(500, "nothing is left", || !a.holds(VIP) && !a.holds(VIP6));
    // A permanent address is somebody's.
    sh(&format!("ip -n {} addr add 10.9.0.100/24 dev eth0", net.ns("a")));
    let third = net.start("a", &["a"]);
    until(1_000, "refused", || third.state() == "fault");
    let reason = third.status()["vips"][0]["reason"].to_string();
    assert!(reason.contains("somebody else has configured"), "{reason}");
    third.stop();
    assert!(a.holds(VIP), "not ours to remove");
}

#[test]
fn without_the_capability_it_says_so() {
    let net = Net::new(&["a", "c"]);
    let config = net.config("a", &["a"]);
    let drop = ["setpriv", "--bounding-set", "-net_admin,-net_raw"];
    let a = net.start_with("a", &config, &drop);
    until(2_000, "fault", || a.state() == "fault");
    let status = a.status();
    let reason = status["vips"][0]["reason"].to_string();
    assert!(reason.contains("CAP_NET_ADMIN"), "{reason}");
}
