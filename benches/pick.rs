//! Cost of one pick at 3, 64 and 1,000 backends, healthy and with a third of them down, of admitting a client, and of
//! building the tables.
//!
//! `cargo bench --bench pick`

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ipnet::IpNet;
use weir::balance::acl::Acl;
use weir::balance::limits::{SourceLimits, SourceTable};
use weir::balance::{Cursor, Loads, Mask, Member, Picker, Shares, identity, source_key};
use weir::base::Rng;
use weir::config::model::{Balance, Rate, SourceHash};

const ALL: [(&str, Balance); 5] = [
    ("least_conn", Balance::LeastConn),
    ("source_hash", Balance::SourceHash),
    ("round_robin", Balance::RoundRobin),
    ("random", Balance::Random),
    ("least_time", Balance::LeastTime),
];

const HASH: SourceHash = SourceHash {
    prefix_v4: 32,
    prefix_v6: 128,
    port: false,
    bounded_load: None,
    seed: 0,
};

/// One cache line a backend, as counters that several workers raise are laid out.
#[repr(align(64))]
struct Stat {
    active: AtomicU32,
    latency_ns: AtomicU64,
}

struct Stats(Vec<Stat>);

impl Loads for Stats {
    fn active(&self, ix: usize) -> u32 {
        self.0[ix].active.load(Relaxed)
    }

    fn latency_ns(&self, ix: usize) -> u64 {
        self.0[ix].latency_ns.load(Relaxed)
    }
}

fn members(n: usize, weight: impl Fn(usize) -> u32) -> Vec<Member> {
    (0..n)
        .map(|ix| Member {
            identity: identity("bench", &ix.to_string()),
            weight: weight(ix),
        })
        .collect()
}

fn pick(c: &mut Criterion) {
    for (name, balance) in ALL {
        let mut group = c.benchmark_group(name);
        for n in [3, 64, 1000] {
            let mut rng = Rng::new(1);
            let stat = |_| Stat {
                active: AtomicU32::new(5 + rng.below(20) as u32),
                latency_ns: AtomicU64::new(100_000 + rng.below(900_000)),
            };
            let stats = Stats((0..n).map(stat).collect());
            let picker = Picker::new(balance, &HASH, &members(n, |ix| 1 + ix as u32 % 4));
            let masks = [
                ("up", Mask::full(n)),
                ("third_down", Mask::from_fn(n, |ix| ix % 3 != 1)),
            ];
            for (state, eligible) in masks {
                let (mut cursor, mut keys, shares) = (Cursor::new(7), Rng::new(9), Shares::full());
                group.bench_function(BenchmarkId::new(state, n), |b| {
                    b.iter(|| black_box(picker.pick(&mut cursor, keys.next_u64(), &stats, &shares, &eligible)));
                });
            }
        }
        group.finish();
    }
}

/// What `bounded_load` adds: the sum over all backends.
fn bounded(c: &mut Criterion) {
    let mut group = c.benchmark_group("source_hash_bounded");
    for n in [3, 64, 1000] {
        let stat = |_| Stat {
            active: AtomicU32::new(10),
            latency_ns: AtomicU64::new(0),
        };
        let stats = Stats((0..n).map(stat).collect());
        let hash = SourceHash {
            bounded_load: Some(1.25),
            ..HASH
        };
        let picker = Picker::new(Balance::SourceHash, &hash, &members(n, |_| 1));
        let (mut cursor, mut keys) = (Cursor::new(7), Rng::new(9));
        let (shares, eligible) = (Shares::full(), Mask::full(n));
        group.bench_function(BenchmarkId::from_parameter(n), |b| {
            b.iter(|| black_box(picker.pick(&mut cursor, keys.next_u64(), &stats, &shares, &eligible)));
        });
    }
    group.finish();
}

/// What every new connection pays before the pick: its key, the lists, the limits of its source.
fn admission(c: &mut Criterion) {
    let mut group = c.benchmark_group("admission");
    let mut rng = Rng::new(3);
    let ip = |n: u64| IpAddr::from(Ipv4Addr::from(n as u32));
    group.bench_function("source_key", |b| {
        b.iter(|| black_box(source_key(&HASH, SocketAddr::new(ip(rng.next_u64()), 4000))));
    });
    for n in [0, 10, 10_000] {
        let nets: Vec<IpNet> = (0..n).map(|_| IpNet::new(ip(rng.next_u64()), 24).unwrap()).collect();
        let acl = Acl::new(&[], &nets);
        group.bench_function(BenchmarkId::new("deny_list", n), |b| {
            b.iter(|| black_box(acl.permits(ip(rng.next_u64()))))
        });
    }
    let rate = Some(Rate {
        events: 50,
        per: Duration::from_secs(1),
    });
    let limits = SourceLimits {
        connections: Some(100),
        new: rate,
        ..SourceLimits::default()
    };
    for sources in [1_000, 1_000_000u64] {
        let (mut table, start, mut n) = (SourceTable::new(limits.clone(), 1 << 20), Instant::now(), 0);
        group.bench_function(BenchmarkId::new("admit_and_release", sources), |b| {
            b.iter(|| {
                n += 1;
                if let Ok(admission) = table.admit(start + Duration::from_micros(n), ip(rng.below(sources))) {
                    table.release(admission);
                }
            });
        });
    }
    group.finish();
}

fn build(c: &mut Criterion) {
    let mut group = c.benchmark_group("build_1000");
    for (name, balance) in ALL {
        let equal = members(1000, |_| 1);
        group.bench_function(BenchmarkId::new(name, "equal"), |b| {
            b.iter(|| Picker::new(balance, &HASH, &equal))
        });
        let weighted = members(1000, |ix| 1 + ix as u32 % 100);
        group.bench_function(BenchmarkId::new(name, "weighted"), |b| {
            b.iter(|| Picker::new(balance, &HASH, &weighted))
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(800))
        .sample_size(20);
    targets = pick, bounded, admission, build
}
criterion_main!(benches);
