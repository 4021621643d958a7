//! The `notify` command.

use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::hosts::*;
use crate::whole::Whole;

#[test]
fn notify_is_told_every_transition() {
    let net = Net::new(&["a", "c"]);
    let script = net.dir.path().join("notify");
    let told = net.dir.path().join("told");
    fs::write(
        &script,
        format!(
            "#!/bin/sh\necho \"$WEIR_VIP $WEIR_OLD_STATE $WEIR_STATE $WEIR_INTERFACE $WEIR_NODE $WEIR_REASON\" >> {}\n",
            told.display()
        ),
    )
    .unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut config = net.config("a", &["a"]);
    config["notify"] = json!([script]);
    config["vips"].as_array_mut().unwrap().truncate(1);
    let a = net.start_with("a", &config, &[]);
    until(5_000, "told", || {
        fs::read_to_string(&told).is_ok_and(|t| t.lines().count() == 2)
    });
    assert_eq!(
        fs::read_to_string(&told).unwrap(),
        "10.9.0.100/24 standby claiming eth0 a first in order\n10.9.0.100/24 claiming active eth0 a first in order\n"
    );
    drop(a);
}

/// Changes of many addresses at once, and a command that takes its time.
#[test]
fn notify_is_told_the_last_state_of_every_address() {
    let net = Net::new(&["a", "c"]);
    let script = net.dir.path().join("notify");
    let told = net.dir.path().join("told");
    let text = format!(
        "#!/bin/sh\nsleep 0.05\necho \"$WEIR_VIP $WEIR_STATE\" >> {}\n",
        told.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut config = net.config("a", &["a"]);
    config["notify"] = json!([script]);
    let vip =
        |n: u32| json!({"address": format!("10.9.1.{n}/32"), "interface": "eth0", "prefer": ["a"], "requires": [0]});
    config["vips"] = (1..=60).map(vip).collect();
    let a = net.start_with("a", &config, &[]);
    let all_are = |state: &str| {
        let text = fs::read_to_string(&told).unwrap_or_default();
        let last: std::collections::HashMap<&str, &str> = text.lines().filter_map(|l| l.split_once(' ')).collect();
        last.len() == 60 && last.values().all(|s| *s == state)
    };
    until(20_000, "all are told that they are active", || all_are("active"));
    // Back and forth while it is still being told.
    for serving in ["no", "yes", "no", "yes", "no"] {
        a.ask(&format!("serving {serving}"));
        let state = if serving == "yes" { "active" } else { "standby" };
        until(5_000, "changed", || {
            let vips = a.status()["vips"].as_array().unwrap().clone();
            vips.iter().all(|v| (v["state"] == "active") == (state == "active"))
        });
    }
    let state = a.state();
    until(30_000, "all are told the last state", || all_are(&state));
}

/// The process that is exposed to the network keeps its sandbox, and the command is outside of it.
#[test]
fn a_command_leaves_the_sandbox_as_it_is() {
    let net = Net::new(&["a", "b", "c"]);
    let elsewhere = tempfile::tempdir().unwrap();
    let told = elsewhere.path().join("told");
    let script = elsewhere.path().join("notify");
    fs::write(
        &script,
        format!("#!/bin/sh\necho $WEIR_VIP $WEIR_STATE >> {}\n", told.display()),
    )
    .unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let filters = |whole: &Whole| {
        // `ip netns exec` has become weir.
        let status = fs::read_to_string(format!("/proc/{}/status", whole.child.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with("Seccomp_filters:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u32>().unwrap()
    };
    let (a, b) = (Whole::start_with(&net, "a", json!([script])), Whole::start(&net, "b"));
    until(10_000, "told", || {
        fs::read_to_string(&told).is_ok_and(|t| t.contains("10.9.0.100/24 active"))
    });
    assert_eq!(filters(&a), filters(&b));
    // An upgrade takes the same runner along.
    a.signal(nix::sys::signal::Signal::SIGUSR2);
    until(10_000, "upgraded", || {
        fs::read_to_string(net.log("a"))
            .unwrap()
            .contains("connections may finish here")
    });
    drop(a);
    drop(b);
}
