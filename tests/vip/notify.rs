//! The `notify` command.

use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::hosts::*;

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
