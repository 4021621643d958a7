//! The queue of a pool: connections of all workers that wait for a place at one of its backends.
//!
//! Who is next is decided in [`crate::balance::line`]; here is the lock around it, and what makes it cost nothing while nobody
//! waits: whoever gives a place back looks at one word.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use mio::Waker;
use parking_lot::Mutex;

use crate::balance::line::{Line, Ticket};
use crate::stats::Histogram;

/// The queue of one pool, shared by all workers. It lives as long as the pool's name does, whatever its configuration
/// says.
#[derive(Debug, Default)]
pub struct PoolQueue {
    /// Somebody may wait, now or later; never false again.
    in_use: AtomicBool,
    waiting: AtomicU32,
    /// The ticket that is called, or 0.
    called: AtomicU64,
    line: Mutex<Line<Arc<Waker>>>,
    /// How long they have waited, whatever came of it.
    pub seconds: Histogram,
}

/// Waiting is having this; dropping it is leaving.
#[derive(Debug)]
pub struct Queued {
    queue: Arc<PoolQueue>,
    ticket: Ticket,
    since: Instant,
}

impl PoolQueue {
    /// Whether the configuration has connections wait.
    pub fn configure(&self, wait: bool) {
        if wait {
            self.in_use.store(true, Ordering::SeqCst);
        }
    }

    /// How many connections wait.
    pub fn length(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// How long the first has waited.
    pub fn longest(&self, now: Instant) -> Option<Duration> {
        self.line.lock().longest(now)
    }

    /// Joins at the end, unless so many wait already. Whoever is alone must look for a place once more: one may have become free
    /// just before, when nobody waited.
    pub fn join(self: &Arc<Self>, now: Instant, waker: &Arc<Waker>, length_max: u32) -> Option<Queued> {
        let mut line = self.line.lock();
        let ticket = line.join(now, waker.clone(), length_max as usize)?;
        self.publish(&line);
        // Either this look comes after a place was given back, or whoever gives it back sees that somebody waits.
        fence(Ordering::SeqCst);
        Some(Queued {
            queue: self.clone(),
            ticket,
            since: now,
        })
    }

    /// A place has become free.
    pub fn place_freed(&self) {
        if self.in_use.load(Ordering::Relaxed) {
            fence(Ordering::SeqCst);
            self.call();
        }
    }

    /// There may be room: the first is to look.
    pub fn call(&self) {
        if self.length() > 0 {
            self.change(Line::call);
        }
    }

    /// The ticket that is called.
    pub fn called(&self) -> Option<Ticket> {
        Some(self.called.load(Ordering::Acquire)).filter(|&ticket| ticket != 0)
    }

    fn change(&self, change: impl FnOnce(&mut Line<Arc<Waker>>) -> Option<Arc<Waker>>) {
        let mut line = self.line.lock();
        let woken = change(&mut line);
        self.publish(&line);
        drop(line);
        if let Some(waker) = woken {
            let _ = waker.wake();
        }
    }

    fn publish(&self, line: &Line<Arc<Waker>>) {
        self.waiting.store(line.len() as u32, Ordering::Relaxed);
        self.called.store(line.called().unwrap_or(0), Ordering::Release);
    }
}

impl Queued {
    /// The queue.
    pub fn queue(&self) -> &Arc<PoolQueue> {
        &self.queue
    }

    /// Who this is.
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// Nobody has waited longer.
    pub fn is_first(&self) -> bool {
        self.queue.line.lock().is_first(self.ticket)
    }

    /// A place is looked for now: what becomes free from here on calls again.
    pub fn answer(&self) {
        self.queue.change(|line| {
            line.answer(self.ticket);
            None
        });
        fence(Ordering::SeqCst);
    }

    /// Counts how long it has waited.
    pub fn observe(&self, now: Instant) {
        let waited = now.saturating_duration_since(self.since);
        self.queue.seconds.observe_us(waited.as_micros() as u64);
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.queue.change(|line| line.leave(self.ticket));
    }
}
