//! Addresses that move, and nothing that is balanced: what keepalived is used for beside other programs. It needs root.

use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal;

use super::common::netns::{Netns, link};
use super::common::operator::status;
use super::common::{Launch, command, wait_until};

#[test]
fn an_address_is_held_without_any_listener() {
    let (here, there) = (Netns::new("here"), Netns::new("there"));
    link("eth0", [(&here, "10.9.0.1/24"), (&there, "10.9.0.2/24")]);
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "long enough for a secret of thirty-two bytes").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    // As keepalived says it.
    let theirs = dir.path().join("keepalived.conf");
    let text = "vrrp_instance one {\n  interface eth0\n  state MASTER\n  virtual_router_id 51\n  unicast_src_ip 10.9.0.1\n  \
                unicast_peer {\n    10.9.0.2\n  }\n  virtual_ipaddress {\n    10.9.0.100/24\n  }\n}\n";
    std::fs::write(&theirs, text).unwrap();
    let imported = command(env!("CARGO_BIN_EXE_weir"))
        .arg("import")
        .arg(&theirs)
        .output()
        .unwrap();
    let yaml = String::from_utf8(imported.stdout).unwrap();
    assert!(
        imported.status.success(),
        "{yaml}{}",
        String::from_utf8_lossy(&imported.stderr)
    );
    assert!(!yaml.contains("listeners:") && yaml.contains("10.9.0.100/24"), "{yaml}");

    let yaml = yaml.replace("/etc/weir/secret", secret.to_str().unwrap());
    let yaml = yaml.replace("failover:\n", "failover:\n  startup_delay: 100ms\n");
    let weir = Launch::new(&yaml).inside(&here).start();
    let held = || {
        here.ip(&["-4", "addr", "show", "dev", "eth0"])
            .contains("10.9.0.100/24")
    };
    wait_until("the address is there", held);
    assert_eq!(status(&weir)["listeners"].as_array().unwrap().len(), 0);
    weir.signal(Signal::SIGTERM);
    wait_until("the address is let go", || !held());
}
