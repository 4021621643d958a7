//! Nothing happens.

use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::hosts::*;
use crate::lock;

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
    unmoved(&a, &b, watches);
}

/// Everybody who changes the network's configuration waits for one lock, which others may hold for long.
#[test]
fn a_kernel_that_is_busy_moves_nothing() {
    let net = Net::new(&["a", "b", "c"]);
    let (a, b) = net.pair();
    let watches = [a.watch(VIP), a.watch(VIP6), b.watch(VIP), b.watch(VIP6)];
    for round in 0..4 {
        // Renewals are due every half second.
        lock::hold(&net.ns("c"), "eth0", Duration::from_millis(450 + 100 * round));
        std::thread::sleep(Duration::from_millis(600));
    }
    unmoved(&a, &b, watches);
}

/// The first has held what is watched all the time, the second never.
fn unmoved(a: &Node, b: &Node, watches: [Watch; 4]) {
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

/// Seconds that `a_long_stress_moves_nothing` takes.
const LONG_VARIABLE: &str = "WEIR_STRESS_SECONDS";

/// Load on CPUs, memory and disks, and namespaces with a thousand pairs of interfaces deleted one after the other.
#[test]
#[ignore = "long: five minutes, or WEIR_STRESS_SECONDS"]
fn a_long_stress_moves_nothing() {
    let seconds = std::env::var(LONG_VARIABLE).map_or(300, |text| text.parse().expect(LONG_VARIABLE));
    let net = Net::new(&["a", "b", "c"]);
    let (a, b) = net.pair();
    let watches = [a.watch(VIP), a.watch(VIP6), b.watch(VIP), b.watch(VIP6)];
    let work = format!("stress-ng --cpu 4 --vm 2 --vm-bytes 128M --io 2 --hdd 1 --hdd-bytes 64M --quiet -t {seconds}");
    let mut stress = Command::new("sh")
        .args(["-c", &format!("exec {work}")])
        .current_dir(net.dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Somebody who does this is no urgent thread.
    let crowds = std::thread::scope(|scope| {
        let deleting = scope.spawn(|| {
            let mut round = 0;
            while stress.try_wait().unwrap().is_none() {
                net.crowd(&format!("crowd{round}"), 1_000).delete();
                round += 1;
            }
            round
        });
        deleting.join().unwrap()
    });
    println!("{crowds} namespaces deleted in {seconds} s of stress");
    assert!(crowds > 0);
    unmoved(&a, &b, watches);
}
