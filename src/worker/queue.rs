//! Connections of this worker for whom [`Choice::Full`](crate::snapshot::Choice::Full) came back, and whose pool has a queue.
//!
//! The pool's queue knows the order over all workers, and wakes the worker whose connection is next; here that connection is
//! found. A connection leaves the queue by dropping its [`Queued`], whatever becomes of it, so an entry here may outlive it:
//! such entries go when they come to the front.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::balance::line::Ticket;
use crate::base::Key;
use crate::queue::{PoolQueue, Queued};

/// The connections of this worker that wait for a place at a backend.
#[derive(Default)]
pub(super) struct Waiting {
    lines: Vec<Here>,
}

/// Those that wait in one queue, in order.
struct Here {
    queue: Arc<PoolQueue>,
    waiting: VecDeque<(Ticket, Key)>,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub(super) fn add(&mut self, queued: &Queued, key: Key) {
        let queue = queued.queue();
        let at = self.lines.iter().position(|here| Arc::ptr_eq(&here.queue, queue));
        let at = at.unwrap_or_else(|| {
            self.lines.push(Here {
                queue: queue.clone(),
                waiting: VecDeque::new(),
            });
            self.lines.len() - 1
        });
        self.lines[at].waiting.push_back((queued.ticket(), key));
    }

    /// Forgets those that do not wait any more.
    pub(super) fn tidy(&mut self, waits: impl Fn(Key, Ticket) -> bool) {
        self.lines.retain_mut(|here| {
            while here.waiting.front().is_some_and(|&(ticket, key)| !waits(key, ticket)) {
                here.waiting.pop_front();
            }
            !here.waiting.is_empty()
        });
    }

    /// Those that are called.
    pub(super) fn called(&self) -> Vec<Key> {
        let called = self.lines.iter().filter_map(|here| {
            let ticket = here.queue.called()?;
            let at = here.waiting.binary_search_by_key(&ticket, |&(ticket, _)| ticket).ok()?;
            Some(here.waiting[at].1)
        });
        called.collect()
    }

    /// Backends may have room now for reasons of which no connection tells: they came up, or may have more connections.
    pub(super) fn call_all(&self) {
        for here in &self.lines {
            here.queue.call();
        }
    }
}
