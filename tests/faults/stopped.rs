//! Fast senders to readers that have stopped: what is on its way is bounded, and arrives when they go on.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use super::common::{self, Server, Weir, client, wait_until};
use super::one_backend;

/// Byte number `at` of what sender `id` sends.
fn byte(id: u8, at: usize) -> u8 {
    (at as u64)
        .wrapping_mul(0x9E37_79B9)
        .wrapping_add(u64::from(id))
        .to_le_bytes()[2]
}

fn fast_senders(senders: usize, bytes: usize, memory_max_kib: u64) {
    common::raise_descriptor_limit();
    // Readers take the first byte, then stop until told.
    let gate = Arc::new((Mutex::new(false), std::sync::Condvar::new()));
    let done = Arc::new(Mutex::new(Vec::new()));
    let (wait, results) = (gate.clone(), done.clone());
    let backend = Server::each(move |mut stream| {
        let mut id = [0];
        stream.read_exact(&mut id).unwrap();
        let mut open = wait.0.lock().unwrap();
        while !*open {
            open = wait.1.wait(open).unwrap();
        }
        drop(open);
        let (mut at, mut buffer, mut right) = (1, vec![0; 64 << 10], true);
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            right &= (0..n).all(|ix| buffer[ix] == byte(id[0], at + ix));
            at += n;
        }
        results.lock().unwrap().push((right, at));
    });
    let weir = Weir::start(&one_backend(backend.address, ""));
    let address = weir.address("web");
    let started = Arc::new(Barrier::new(senders + 1));
    let threads: Vec<_> = (0..senders)
        .map(|ix| {
            let (address, started) = (address.clone(), started.clone());
            std::thread::spawn(move || {
                let mut stream: TcpStream = client::connect(&address);
                started.wait();
                let id = ix as u8;
                let mut chunk = vec![0; 64 << 10];
                chunk[0] = id;
                let mut at = 0;
                while at < bytes {
                    for (ix, slot) in chunk.iter_mut().enumerate() {
                        *slot = if at + ix == 0 { id } else { byte(id, at + ix) };
                    }
                    stream.write_all(&chunk).unwrap();
                    at += chunk.len();
                }
            })
        })
        .collect();
    started.wait();

    // Every way is full once nothing moves any more.
    let (mut last, mut polls) = ((u64::MAX, u64::MAX), 0);
    wait_until("all ways are full", || {
        std::thread::sleep(Duration::from_millis(500));
        let now = (weir.cpu_ticks(), weir.memory_kib("RssAnon"));
        // Twice the same: once may be because the senders wait for a CPU.
        polls = if last == now { polls + 1 } else { 0 };
        last = now;
        polls == 2
    });
    let full_kib = weir.memory_kib("RssAnon");
    assert!(
        full_kib < memory_max_kib,
        "{full_kib} KiB for {senders} stopped readers"
    );
    std::thread::sleep(Duration::from_secs(1));
    let later_kib = weir.memory_kib("RssAnon");
    assert!(later_kib <= full_kib + 256, "grew from {full_kib} to {later_kib} KiB");

    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    for thread in threads {
        thread.join().unwrap();
    }
    wait_until("all have arrived", || done.lock().unwrap().len() == senders);
    assert!(done.lock().unwrap().iter().all(|&got| got == (true, bytes)));
}

#[test]
fn stopped_readers_cost_a_bounded_amount() {
    fast_senders(60, 12 << 20, 24 << 10);
}

#[test]
#[ignore = "long: 1,000 connections and 12 GB, two minutes"]
fn a_thousand_stopped_readers() {
    fast_senders(1000, 12 << 20, 80 << 10);
}
