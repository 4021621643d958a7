//! The program that is committed.

use std::process::Command;

use super::common::have;

/// Seen to fail with a changed constant in weir.bpf.c.
#[test]
fn the_committed_object_is_what_its_source_makes() {
    if !have(&["clang"]) {
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/kernel-object");
    let output = Command::new(script).arg("--check").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
