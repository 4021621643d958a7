//! Bulk beside small talk: who sends much does not make others wait.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::common::program::Program;
use super::common::{self, Server, Weir, client};
use super::one_backend;

/// 99th percentile of the round trips of `flows` connections during `time`.
fn p99(address: &str, flows: usize, time: Duration) -> Duration {
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..flows)
        .map(|_| {
            let (mut stream, stop) = (client::connect(address), stop.clone());
            std::thread::spawn(move || {
                let mut seen = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    client::round_trip(&mut stream, b"ping");
                    seen.push(start.elapsed());
                    std::thread::sleep(Duration::from_millis(2));
                }
                seen
            })
        })
        .collect();
    std::thread::sleep(time);
    stop.store(true, Ordering::Relaxed);
    let mut all: Vec<_> = threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
    all.sort_unstable();
    all[all.len() * 99 / 100]
}

/// On a quiet machine only: what is compared is a matter of microseconds, and the sender competes for the same CPUs.
#[test]
#[ignore = "long: compares latencies, which takes a quiet machine"]
fn iperf3_beside_ping_pong() {
    if !common::have(&["iperf3"]) {
        return;
    }
    let (echo, iperf) = (Server::echo(), Program::iperf3());
    let weir = Weir::start(&format!(
        "log: {{access: off}}\nlisteners: {{web: {{bind: '127.0.0.1:0', pool: web}}, bulk: {{bind: '127.0.0.1:0', pool: bulk}}}}\n\
         pools: {{web: {{backends: '{}'}}, bulk: {{backends: '{}', health: {{type: none}}}}}}\n",
        echo.address,
        iperf.address()
    ));
    let alone = p99(&weir.address("web"), 64, Duration::from_secs(5));
    let bulk = weir.address("bulk");
    let port = bulk.rsplit_once(':').unwrap().1;
    let mut sender = common::command("iperf3")
        // As a line of ten gigabit would, not as fast as loopback can.
        .args(["-c", "127.0.0.1", "-p", port, "-t", "8", "-b", "4G"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let beside = p99(&weir.address("web"), 64, Duration::from_secs(5));
    let _ = sender.wait();
    println!("p99 alone {alone:?}, beside bulk {beside:?}");
    assert!(beside <= 2 * alone, "p99 {beside:?} beside bulk, {alone:?} alone");
}

/// The rule behind it, without a stopwatch: while a connection pours, small ones get their turn at once.
/// Not sharp enough for the budget of one pump: without it a reader on the same machine still makes the sender pause.
#[test]
fn a_pouring_connection_leaves_turns_to_others() {
    let pour = Server::each(|mut stream| {
        let chunk = vec![7; 256 << 10];
        while stream.write_all(&chunk).is_ok() {}
    });
    let echo = Server::echo();
    let weir = Weir::start(&format!(
        "workers: 1\n{}",
        one_backend(pour.address, "")
            .replace(
                "listeners: {",
                "listeners: {small: {bind: '127.0.0.1:0', pool: small}, "
            )
            .replace(
                "pools: {",
                &format!(
                    "pools: {{small: {{backends: '{}', health: {{type: none}}}}, ",
                    echo.address
                )
            )
    ));
    let stop = Arc::new(AtomicBool::new(false));
    let (address, ended) = (weir.address("web"), stop.clone());
    let drinker = std::thread::spawn(move || {
        let mut stream = client::connect(&address);
        let (mut buffer, mut bytes) = (vec![0; 256 << 10], 0u64);
        while !ended.load(Ordering::Relaxed) {
            bytes += stream.read(&mut buffer).unwrap() as u64;
        }
        bytes
    });
    let mut small = client::connect(&weir.address("small"));
    let start = Instant::now();
    let mut rounds = 0;
    while start.elapsed() < Duration::from_secs(2) || rounds < 40 {
        client::round_trip(&mut small, b"ping");
        rounds += 1;
        // Slow are a busy machine, or turns that are not given.
        assert!(start.elapsed() < Duration::from_secs(20), "{rounds} round trips");
    }
    stop.store(true, Ordering::Relaxed);
    let bytes = drinker.join().unwrap();
    assert!(bytes > 1 << 20, "{rounds} round trips beside {bytes} bytes");
}

/// How long a request waits is decided by what weir moves between two questions to the kernel: the data of one bulk stream,
/// not of each.
///
/// Break tried: every heavy connection in every turn.
#[test]
fn of_many_bulk_streams_one_moves_at_a_time() {
    if !common::have(&["strace"]) {
        return;
    }
    let pour = Server::each(|mut stream| {
        let chunk = vec![7; 256 << 10];
        while stream.write_all(&chunk).is_ok() {}
    });
    let weir = Weir::start(&format!("workers: 1\n{}", one_backend(pour.address, "")));
    let stop = Arc::new(AtomicBool::new(false));
    let drinkers: Vec<_> = (0..8)
        .map(|_| {
            let (mut stream, stop) = (client::connect(&weir.address("web")), stop.clone());
            // It is known as bulk by then.
            stream.read_exact(&mut vec![0; 4 << 20]).unwrap();
            std::thread::spawn(move || {
                let mut buffer = vec![0; 256 << 10];
                while !stop.load(Ordering::Relaxed) {
                    assert!(stream.read(&mut buffer).unwrap() > 0);
                }
            })
        })
        .collect();
    // All of them have data to move and room for it when it goes on.
    weir.signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_millis(200));
    let report = weir.dir().join("calls");
    let worker = weir.worker_threads()[0];
    let mut tracer = common::command("strace")
        .args(["-qq", "-e", "trace=epoll_wait,recvfrom,splice", "-p"])
        .args([&worker.to_string(), "-e", "signal=none", "-o"])
        .arg(&report)
        .spawn()
        .unwrap();
    let traced = || {
        let status = std::fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
        !status.contains("TracerPid:\t0")
    };
    common::wait_until("strace has attached", traced);
    weir.signal(Signal::SIGCONT);
    let calls = || std::fs::read_to_string(&report).unwrap_or_default();
    common::wait_until("there are 300 calls", || calls().lines().count() > 300);
    kill(Pid::from_raw(tracer.id() as i32), Signal::SIGINT).unwrap();
    tracer.wait().unwrap();
    stop.store(true, Ordering::Relaxed);
    for drinker in drinkers {
        drinker.join().unwrap();
    }
    // Descriptors of a turn that were read from: one of a stream that is copied, two of one that is spliced (socket, pipe).
    let mut turns = vec![(BTreeSet::new(), BTreeSet::new())];
    for line in calls().lines().take(300) {
        let (call, arguments) = line.split_once('(').unwrap();
        let (copied, spliced) = turns.last_mut().unwrap();
        let from = arguments.split(',').next().unwrap().to_owned();
        match call {
            "recvfrom" => drop(copied.insert(from)),
            "splice" => drop(spliced.insert(from)),
            _ => turns.push(Default::default()),
        }
    }
    // In the first turn some may still be taken for light ones.
    let streams: Vec<usize> = turns
        .iter()
        .map(|(copied, spliced)| copied.len() + spliced.len() / 2)
        .filter(|streams| *streams > 0)
        .skip(1)
        .collect();
    let each = streams.iter().sum::<usize>() as f64 / streams.len() as f64;
    println!("{each:.2} streams in each of {} turns", streams.len());
    assert!(each < 2.0, "streams turn by turn: {streams:?}");
}
