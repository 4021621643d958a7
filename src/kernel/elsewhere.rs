//! What the workers have at a backend, where the program reads it.

use std::sync::atomic::Ordering::Relaxed;

use super::layout::{BACKEND_ACTIVE_ELSEWHERE, BACKEND_LATENCY, LATENCY_MAX};
use crate::sys::bpf::Array;

/// Has the program count so many connections besides its own at the backend in a place, and know how long it takes by them.
pub fn tell(backends: &Array, place: usize, active: u32, latency_ns: u64) {
    // What has not changed is not written: packets read it on every processor.
    let word = &backends.words(place)[BACKEND_ACTIVE_ELSEWHERE];
    if word.load(Relaxed) != active {
        word.store(active, Relaxed);
    }
    let long = &backends.longs(place)[BACKEND_LATENCY[2]];
    let latency_ns = latency_ns.min(LATENCY_MAX);
    if long.load(Relaxed) != latency_ns {
        long.store(latency_ns, Relaxed);
    }
}
