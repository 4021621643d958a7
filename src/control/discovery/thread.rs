//! The thread of all sources.

use std::collections::HashMap;
use std::io;
use std::rc::Rc;

use tokio::sync::mpsc;
use tokio::task::LocalSet;

use super::{Shared, Source, Tell};

/// Threads that read files, and wait for nobody else.
const READERS_MAX: usize = 8;

enum Order {
    Begin(u64, Box<dyn Source>, Tell),
    End(u64),
}

/// The running thread. It ends when this is dropped, without being waited for.
pub struct Thread {
    orders: mpsc::UnboundedSender<Order>,
    /// Number of the next task.
    next: u64,
}

impl Thread {
    pub fn start() -> io::Result<Thread> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(READERS_MAX)
            .thread_name("discovery-read")
            .build()?;
        let (orders, mut ordered) = mpsc::unbounded_channel();
        std::thread::Builder::new().name("discovery".into()).spawn(move || {
            let local = LocalSet::new();
            local.block_on(&runtime, async move {
                let shared = Rc::<Shared>::default();
                let mut tasks = HashMap::new();
                while let Some(order) = ordered.recv().await {
                    match order {
                        Order::Begin(id, source, tell) => {
                            let task = tokio::task::spawn_local(source.watch(tell, shared.clone()));
                            tasks.insert(id, task);
                        }
                        Order::End(id) => {
                            if let Some(task) = tasks.remove(&id) {
                                task.abort();
                            }
                        }
                    }
                }
            });
            drop(local);
            // Reading from a disk that hangs is not waited for.
            runtime.shutdown_background();
        })?;
        Ok(Thread { orders, next: 0 })
    }

    /// Watches a source until it is told to [`end`](Self::end).
    pub fn begin(&mut self, source: Box<dyn Source>, tell: Tell) -> u64 {
        self.next += 1;
        let _ = self.orders.send(Order::Begin(self.next, source, tell));
        self.next
    }

    pub fn end(&self, task: u64) {
        let _ = self.orders.send(Order::End(task));
    }
}
