//! Clients of one socket: a bounded number, and a rule for who goes when there are more.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::{AbortHandle, JoinHandle};

/// Pause after a failed accept (descriptors exhausted).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts for ever.
pub(super) async fn accept<S>(accept: impl AsyncFn() -> io::Result<S>, mut serve: impl FnMut(S)) {
    loop {
        match accept().await {
            Ok(stream) => {
                serve(stream);
                // Who was accepted is looked at before the next one can claim the place.
                tokio::task::yield_now().await;
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// Slots for the clients of one socket.
#[derive(Debug, Default)]
pub(super) struct Clients {
    next: u64,
    taken: Vec<Slot>,
}

#[derive(Debug)]
struct Slot {
    id: u64,
    use_: Use,
    /// Since when it has been in this use.
    since: Instant,
    task: Option<AbortHandle>,
}

/// What a slot is used for: who goes first when there is no room, first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Use {
    /// Nothing has been asked.
    Idle,
    /// A request has come in full and is being answered.
    Answer,
    /// Events are followed. There must be fewer of these than slots.
    Follow,
}

/// One taken slot; free again when this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    id: u64,
    clients: Rc<RefCell<Clients>>,
}

impl Clients {
    /// Runs `client` in a place of its own. If all `max` are taken, who has been idle longest goes; if none is idle, who has
    /// been answered longest.
    pub(super) fn serve<F>(
        clients: &Rc<RefCell<Clients>>,
        max: usize,
        client: impl FnOnce(Rc<Held>) -> F,
    ) -> JoinHandle<()>
    where
        F: Future<Output = ()> + 'static,
    {
        let id = {
            let mut this = clients.borrow_mut();
            if this.taken.len() >= max
                && let Some(ix) = this.longest_idle()
                && let Some(task) = this.taken.swap_remove(ix).task
            {
                task.abort();
            }
            this.next += 1;
            let id = this.next;
            this.taken.push(Slot {
                id,
                use_: Use::Idle,
                since: Instant::now(),
                task: None,
            });
            id
        };
        let held = Rc::new(Held {
            id,
            clients: clients.clone(),
        });
        let task = tokio::task::spawn_local(client(held));
        if let Some(slot) = clients.borrow_mut().taken.iter_mut().find(|slot| slot.id == id) {
            slot.task = Some(task.abort_handle());
        }
        task
    }

    fn longest_idle(&self) -> Option<usize> {
        (0..self.taken.len()).min_by_key(|&ix| (self.taken[ix].use_, self.taken[ix].since))
    }
}

impl Held {
    /// Says what it is used for.
    pub(super) fn set(&self, use_: Use) {
        if let Some(slot) = self
            .clients
            .borrow_mut()
            .taken
            .iter_mut()
            .find(|slot| slot.id == self.id)
        {
            (slot.use_, slot.since) = (use_, Instant::now());
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.clients.borrow_mut().taken.retain(|slot| slot.id != self.id);
    }
}
