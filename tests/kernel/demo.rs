//! `weir demo --engine kernel`.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::common::{command, may_make_namespaces, run};

const HOSTS: [&str; 3] = ["client", "balancer", "backends"];

fn demo(time: &str) -> Command {
    let mut demo = command(env!("CARGO_BIN_EXE_weir"));
    demo.args(["demo", "--engine", "kernel", "--for", time]);
    demo
}

/// Whether a demo of this process has left something.
fn has_left(pid: u32) -> bool {
    let namespace = |host| Path::new("/run/netns").join(format!("weir-demo-{pid}-{host}")).exists();
    HOSTS.into_iter().any(namespace) || std::env::temp_dir().join(format!("weir-demo-{pid}")).exists()
}

/// It shows both engines, removes what a killed one has left, and leaves nothing itself.
#[test]
fn both_engines_are_shown_and_nothing_is_left() {
    if !may_make_namespaces() {
        return;
    }
    let mut dead = command("true").spawn().unwrap();
    dead.wait().unwrap();
    let left = format!("weir-demo-{}-client", dead.id());
    run(command("ip").args(["netns", "add", &left]));
    let child = demo("2s")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    for part in [
        "kernel engine   proxy engine",
        "pool kernel: ",
        "pool proxy: ",
        "The program in the kernel passed on ",
    ] {
        assert!(said.contains(part), "{part} in\n{said}");
    }
    for row in ["new connections/s", "requests/s, kept open"] {
        let line = said.lines().find_map(|line| line.trim().strip_prefix(row)).unwrap();
        let rates: Vec<f64> = line
            .split_whitespace()
            .take(2)
            .map(|rate| rate.parse().unwrap())
            .collect();
        assert!(rates.iter().all(|&rate| rate > 0.0), "{line}");
    }
    assert!(!has_left(pid) && !has_left(dead.id()));
}

/// Whoever stops it waits for no namespace to be cleared by hand.
#[test]
fn a_demo_that_is_interrupted_leaves_nothing() {
    if !may_make_namespaces() {
        return;
    }
    let mut child = demo("10m").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("stops:")), "it has begun");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    child.wait().unwrap();
    assert!(!has_left(child.id()));
}

/// Not a word about namespaces or programs that could not be made: what it takes, and what works without.
#[test]
fn without_privileges_the_demo_says_what_it_takes() {
    if !may_make_namespaces() {
        return;
    }
    let output = demo("1s").uid(65_534).gid(65_534).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("CAP_BPF") && said.contains("sudo weir demo --engine kernel"),
        "{said}"
    );
}
