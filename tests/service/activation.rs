//! Sockets that the service manager opens.

use std::process::Stdio;

use super::common::{Port, Server, client, command, find, have, wait_until};

/// Break tried: binding anew although a socket was passed (the port is taken then).
#[test]
fn a_listener_takes_the_socket_with_its_name() {
    if !have(&["systemd-socket-activate"]) {
        return;
    }
    let server = Server::named("a");
    let (port, dir) = (Port::reserve(), tempfile::tempdir().unwrap());
    let file = dir.path().join("weir.yaml");
    let yaml = format!(
        "admin: {}/admin.sock\nworkers: 2\nlog: {{access: off}}\n\
         listeners: {{web: {{bind: '{}', pool: web}}}}\npools: {{web: {{backends: ['{}']}}}}\n",
        dir.path().display(),
        port.address(),
        server.address
    );
    std::fs::write(&file, yaml).unwrap();
    let mut start = command(find("systemd-socket-activate").unwrap());
    start.args(["-l", &port.address().to_string(), "--fdname=web"]);
    start.args([env!("CARGO_BIN_EXE_weir"), "run", "-c"]).arg(&file);
    let log = std::fs::File::create(dir.path().join("log")).unwrap();
    let mut child = start.stderr(log).stdout(Stdio::null()).spawn().unwrap();
    let address = port.address().to_string();
    wait_until("activation", || client::try_connect(&address, None).is_ok());
    for _ in 0..20 {
        let answer = client::fetch(&address).unwrap();
        assert!(answer.starts_with('a'), "{answer}");
    }
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = child.wait().unwrap();
    let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
    assert!(status.success(), "{log}");
    assert!(!log.contains("fits no listener"), "{log}");
}
