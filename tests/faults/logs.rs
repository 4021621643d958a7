//! Logs that cannot be written: the disk is full, the reader of the pipe has gone. Serving goes on.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use super::common::{self, Server, Weir, client};
use super::one_backend;

#[test]
fn a_full_disk_under_the_access_log() {
    let backend = Server::echo();
    let yaml = format!("log: {{access: /dev/full}}\n{}", one_backend(backend.address, ""));
    let weir = Weir::start(&yaml);
    for _ in 0..200 {
        client::round_trip(&mut client::connect(&weir.address("web")), b"served");
    }
    let lines = weir.stderr().len();
    std::thread::sleep(std::time::Duration::from_secs(2));
    for _ in 0..200 {
        client::round_trip(&mut client::connect(&weir.address("web")), b"served");
    }
    let lines = weir.stderr().len() - lines;
    assert!(
        lines <= 6,
        "{lines} lines about a full disk: {}",
        weir.stderr().join("\n")
    );
    assert!(
        weir.stderr().join("\n").contains("No space left"),
        "the operator is told: {}",
        weir.stderr().join("\n")
    );
    weir.stop();
}

#[test]
fn the_readers_of_both_logs_are_gone() {
    let backend = Server::echo();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("weir.yaml");
    let yaml = format!(
        "admin: {}/admin.sock\nlog: {{access: stdout}}\n{}",
        dir.path().display(),
        one_backend(backend.address, "")
    );
    std::fs::write(&file, yaml).unwrap();
    let mut weir = common::command(env!("CARGO_BIN_EXE_weir"))
        .args(["run", "-c"])
        .arg(&file)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(weir.stdout.take());
    let mut address = None;
    for line in BufReader::new(weir.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some((_, found)) = line.split_once("listening: web ") {
            address = Some(found.trim().to_owned());
        }
        if line.ends_with("ready") {
            break;
        }
    }
    // The reader, dropped with the loop, was the last of both pipes.
    let address = address.expect("an address before it is ready");
    for _ in 0..100 {
        client::round_trip(&mut client::connect(&address), b"served");
    }
    // Something to say on stderr: a reload that is refused.
    std::fs::write(&file, "nonsense").unwrap();
    let pid = nix::unistd::Pid::from_raw(weir.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
    for _ in 0..100 {
        client::round_trip(&mut client::connect(&address), b"served");
    }
    assert!(weir.try_wait().unwrap().is_none(), "it still runs");
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = weir.wait().unwrap();
    assert!(status.success(), "{status}");
}
