//! Nothing happens.

use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::hosts::*;

/// The addresses stay while `work` goes on.
fn steady(seconds: u64, work: Option<&str>) {
    let net = Net::new(&["a", "b", "c"]);
    let (a, b) = net.pair();
    let watches = [a.watch(VIP), a.watch(VIP6), b.watch(VIP), b.watch(VIP6)];
    let mut stress = work.map(|w| {
        Command::new("sh")
            .args(["-c", &format!("exec {w}")])
            .current_dir(net.dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    });
    std::thread::sleep(Duration::from_secs(seconds));
    if let Some(stress) = &mut stress {
        let _ = kill(Pid::from_raw(stress.id() as i32), Signal::SIGTERM);
        stress.wait().unwrap();
    }
    let [a4, a6, b4, b6] = watches.map(Watch::finish);
    for (who, changes, want) in [("a", a4, true), ("a", a6, true), ("b", b4, false), ("b", b6, false)] {
        let states: Vec<bool> = changes.iter().map(|(_, there)| *there).collect();
        assert_eq!(states, [want], "{who}: {changes:?}\n{}\n{}", a.log(), b.log());
    }
}

const STRESS: &str = "stress-ng --cpu 8 --hdd 2 --hdd-bytes 64M --vm 2 --vm-bytes 128M --quiet -t 70";

#[test]
fn a_short_stress_moves_nothing() {
    steady(8, Some(STRESS));
}

#[test]
#[ignore = "long: a minute"]
fn a_minute_of_stress_moves_nothing() {
    steady(60, Some(STRESS));
}

#[test]
#[ignore = "long: ten minutes"]
fn ten_healthy_minutes() {
    steady(600, None);
}
