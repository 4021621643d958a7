//! Nothing happens.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weir::sys::sched::urgent_thread;

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
    unmoved_but(a, b, watches, &[]);
}

/// The same, except for what happened while the whole machine stood still, or within a second of it.
fn unmoved_but(a: &Node, b: &Node, watches: [Watch; 4], stills: &[[f64; 2]]) {
    let [a4, a6, b4, b6] = watches.map(Watch::finish);
    for (who, mut changes, want) in [("a", a4, true), ("a", a6, true), ("b", b4, false), ("b", b6, false)] {
        changes.retain(|(at, _)| !stills.iter().any(|[from, to]| (*from..to + 1_000.0).contains(at)));
        let states: Vec<bool> = changes.iter().map(|(_, there)| *there).collect();
        assert_eq!(states, [want], "{who}: {changes:?}\n{}\n{}", a.log(), b.log());
    }
}

/// Looks for moments in which no processor runs even the most urgent thread: nothing that a program does lets a node go on then, and both
/// nodes are on this machine.
struct Stillness {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<[f64; 2]>>>,
}

/// Well below what makes a node let go (200 ms).
const STILL_MS: f64 = 120.0;

impl Stillness {
    fn watch() -> Stillness {
        let stop = Arc::new(AtomicBool::new(false));
        let cpus = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let mine = (0..CpuSet::count()).filter(|&cpu| cpus.is_set(cpu).unwrap());
        let threads = mine.map(|cpu| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let mut only = CpuSet::new();
                only.set(cpu).unwrap();
                sched_setaffinity(Pid::from_raw(0), &only).unwrap();
                urgent_thread();
                let (mut gaps, mut last) = (Vec::new(), now_ms());
                while !stop.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(5));
                    let now = now_ms();
                    if now - last > STILL_MS {
                        gaps.push([last, now]);
                    }
                    last = now;
                }
                gaps
            })
        });
        Stillness {
            threads: threads.collect(),
            stop,
        }
    }

    /// From when to when all stood still together.
    fn finish(self) -> Vec<[f64; 2]> {
        self.stop.store(true, Ordering::Relaxed);
        let each = self.threads.into_iter().map(|thread| thread.join().unwrap());
        each.reduce(|these, those| common_parts(&these, &those)).unwrap()
    }
}

fn common_parts(these: &[[f64; 2]], those: &[[f64; 2]]) -> Vec<[f64; 2]> {
    let pairs = these
        .iter()
        .flat_map(|a| those.iter().map(move |b| [a[0].max(b[0]), a[1].min(b[1])]));
    pairs.filter(|[from, to]| to - from > STILL_MS).collect()
}

#[test]
fn only_what_stops_all_processors_stops_the_machine() {
    let some = [[0.0, 130.0], [1_000.0, 1_400.0], [5_000.0, 5_200.0]];
    let rows: [(&[[f64; 2]], &[[f64; 2]]); 5] = [
        (&[], &[]),
        (&[[200.0, 900.0]], &[]),
        (&[[50.0, 200.0]], &[]),
        (&[[1_100.0, 1_500.0]], &[[1_100.0, 1_400.0]]),
        (&[[0.0, 9_000.0]], &some),
    ];
    for (others, both) in rows {
        assert_eq!(common_parts(&some, others), both, "{others:?}");
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
    let stillness = Stillness::watch();
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
    let stills = stillness.finish();
    for [from, to] in &stills {
        println!("the whole machine stood still for {:.0} ms", to - from);
    }
    assert!(crowds > 0);
    unmoved_but(&a, &b, watches, &stills);
}
