//! Time of the pure hot paths of a worker.
//!
//! `cargo bench --bench hot_paths`; `scripts/bench-instructions` counts their instructions, which does not depend on what else
//! the machine does.

mod hot;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

fn paths(c: &mut Criterion) {
    for (name, make) in hot::ALL {
        let mut path = make();
        c.bench_function(name, |b| b.iter(&mut path));
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(800))
        .sample_size(20);
    targets = paths
}
criterion_main!(benches);
