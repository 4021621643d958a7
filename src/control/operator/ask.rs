//! Asking the control thread: with a limit in time, and the same question once for all clients that wait for its answer.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, TrySendError, bounded};
use tokio::sync::{mpsc, oneshot};

use crate::control::request::{Input, Request};

/// How long control may take to answer.
pub const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Between two questions of a kind that HTTP clients cause.
pub const QUESTION_GAP: Duration = Duration::from_millis(20);
/// Clients that may wait for one answer.
const WAITING_MAX: usize = 1024;

/// Asks the control thread.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    inputs: Sender<Input>,
    owed: Rc<Cell<usize>>,
}

/// An answer that has to be written before the clients of a process that hands its service over are left alone.
#[derive(Debug)]
pub(super) struct Owed(Rc<Cell<usize>>);

impl Drop for Owed {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Asker {
    pub(super) fn new(inputs: Sender<Input>) -> Asker {
        Asker {
            inputs,
            owed: Rc::default(),
        }
    }

    /// From now until what is returned is dropped an answer is owed.
    pub(super) fn owe(&self) -> Owed {
        self.owed.set(self.owed.get() + 1);
        Owed(self.owed.clone())
    }

    /// Whether answers are owed.
    pub(super) fn owes(&self) -> bool {
        self.owed.get() > 0
    }

    /// Sends the request that `make` makes around a reply channel and waits for the reply. The error is a sentence.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        patience: Duration,
        make: impl FnOnce(Sender<T>) -> Request,
    ) -> Result<T, String> {
        let (reply, answer) = bounded(1);
        match self.inputs.try_send(Input::Request(make(reply))) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err("the control thread has too much to do; ask again".into()),
            Err(TrySendError::Disconnected(_)) => return Err("weir is ending".into()),
        }
        // A thread of the pool waits, not the observer.
        match tokio::task::spawn_blocking(move || answer.recv_timeout(patience)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(RecvTimeoutError::Timeout)) => Err(format!("the control thread has not answered for {patience:?}")),
            Ok(Err(RecvTimeoutError::Disconnected)) | Err(_) => {
                Err("the control thread did not take the request".into())
            }
        }
    }
}

/// One kind of question, asked once for everybody who wants to know.
#[derive(Debug)]
pub(super) struct Coalesced<T> {
    waiting: mpsc::Sender<oneshot::Sender<Result<T, String>>>,
}

impl<T: Clone + 'static> Coalesced<T> {
    pub(super) fn new<F>(question: impl Fn() -> F + 'static) -> Coalesced<T>
    where
        F: Future<Output = Result<T, String>> + 'static,
    {
        let (waiting, mut queue) = mpsc::channel::<oneshot::Sender<_>>(WAITING_MAX);
        tokio::task::spawn_local(async move {
            while let Some(first) = queue.recv().await {
                let mut waiting_too = vec![first];
                while let Ok(next) = queue.try_recv() {
                    waiting_too.push(next);
                }
                let answer = question().await;
                for client in waiting_too {
                    let _ = client.send(answer.clone());
                }
                tokio::time::sleep(QUESTION_GAP).await;
            }
        });
        Coalesced { waiting }
    }

    pub(super) async fn ask(&self) -> Result<T, String> {
        let (reply, answer) = oneshot::channel();
        let busy = "too many clients wait for this".to_string();
        self.waiting.try_send(reply).map_err(|_| busy)?;
        answer.await.unwrap_or_else(|_| Err("weir is ending".into()))
    }
}
