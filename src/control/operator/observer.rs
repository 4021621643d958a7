//! The thread that answers operators: admin socket and HTTP.
//!
//! # How it works
//!
//! One thread with a single-threaded runtime serves both sockets. It owns no state of the balancer: a question becomes a
//! [`Request`] in the control thread's queue, and the answer is waited for with a limit. Nothing here is touched by workers.
//!
//! # What a client can do to others
//!
//! Nothing. However many clients connect, however slowly they send or read:
//! - connections are bounded; when all places are taken the one that has been waiting longest makes room (`Seats`), so a
//!   scraper that asks at once is served between any number of clients that never finish a request;
//! - requests are bounded in size and time, connections in life;
//! - the thread gives way to workers and control when CPUs are short;
//! - HTTP asks control each kind of question once at a time and not more often than every [`FLIGHT_GAP`]; everybody who asked
//!   before that question was sent shares its answer (`Flight`). Nobody gets an answer older than the question.
//!
//! The admin socket is only for the socket file's owner and group; it skips the sharing but not the bounds.

use std::cell::RefCell;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinHandle, LocalSet};

use super::history::History;
use super::{admin, http};
use crate::control::{Input, Request};
use crate::sys::sched;

/// How long control may take to answer.
pub const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Between two questions of a kind that HTTP clients cause.
pub const FLIGHT_GAP: Duration = Duration::from_millis(20);
/// Clients that may wait for one answer.
const WAITING_MAX: usize = 1024;
/// Pause after a failed accept (descriptors exhausted).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A handle on the thread.
#[derive(Debug)]
pub struct Handle {
    /// Closed: stop. Messages: serve HTTP there from now on.
    orders: Option<mpsc::UnboundedSender<Option<TcpListener>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Serves on `admin` (see [`admin::bind`]) and `http` until the handle is stopped. Questions go to `inputs`.
pub fn start(admin: UnixListener, http: Option<TcpListener>, inputs: Sender<Input>) -> io::Result<Handle> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(16)
        .thread_name("observer-wait")
        .build()?;
    admin.set_nonblocking(true)?;
    if let Some(http) = &http {
        http.set_nonblocking(true)?;
    }
    let (orders, mut ordered) = mpsc::unbounded_channel();
    let serve = move || {
        sched::patient_thread();
        let asker = Asker { inputs };
        let local = LocalSet::new();
        let result = local.block_on(&runtime, async move {
            let admin = tokio::net::UnixListener::from_std(admin)?;
            let history = Rc::new(RefCell::new(History::default()));
            tokio::task::spawn_local(sample(asker.clone(), history.clone()));
            tokio::task::spawn_local(admin::serve(admin, asker.clone(), history.clone()));
            let serve_http = |http: Option<TcpListener>| -> io::Result<_> {
                let http = http.map(tokio::net::TcpListener::from_std).transpose()?;
                let serve = |http| http::serve(http, asker.clone(), history.clone());
                Ok(http.map(|http| tokio::task::spawn_local(serve(http))))
            };
            let mut serving = serve_http(http)?;
            // Ends when the handle is stopped or dropped.
            while let Some(http) = ordered.recv().await {
                if let Some(old) = serving.take() {
                    old.abort();
                }
                serving = serve_http(http)?;
            }
            io::Result::Ok(())
        });
        if let Err(error) = result {
            log::error!("admin socket and HTTP are not served: {error}");
        }
        drop(local);
        runtime.shutdown_background();
    };
    let thread = std::thread::Builder::new().name("observer".into()).spawn(serve)?;
    Ok(Handle {
        orders: Some(orders),
        thread: Some(thread),
    })
}

impl Handle {
    /// Serves HTTP on `http` from now on, or nowhere, and closes the socket before it. Clients of that one may finish what they
    /// do; the history and the admin socket's clients are kept. Returns at once.
    pub fn set_http(&self, http: Option<TcpListener>) -> io::Result<()> {
        if let Some(http) = &http {
            http.set_nonblocking(true)?;
        }
        let orders = self.orders.as_ref();
        match orders.is_some_and(|orders| orders.send(http).is_ok()) {
            true => Ok(()),
            false => Err(io::Error::other("the observer has ended")),
        }
    }

    /// Closes the sockets and every client, ends the thread. The socket file stays: [`admin::remove`].
    pub fn stop(self) {}
}

impl Drop for Handle {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Asks the control thread.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    inputs: Sender<Input>,
}

impl Asker {
    /// Sends the request that `make` makes around a reply channel and waits for the reply. The error is a sentence.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        patience: Duration,
        make: impl FnOnce(Sender<T>) -> Request,
    ) -> Result<T, String> {
        let (reply, answer) = bounded(1);
        if self.inputs.try_send(Input::Request(make(reply))).is_err() {
            return Err("weir is ending".into());
        }
        // A place in the pool of waiting threads, not the observer's own time.
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
pub(super) struct Flight<T> {
    waiting: mpsc::Sender<oneshot::Sender<Result<T, String>>>,
}

impl<T: Clone + 'static> Flight<T> {
    pub(super) fn new<F>(question: impl Fn() -> F + 'static) -> Flight<T>
    where
        F: Future<Output = Result<T, String>> + 'static,
    {
        let (waiting, mut queue) = mpsc::channel::<oneshot::Sender<_>>(WAITING_MAX);
        tokio::task::spawn_local(async move {
            while let Some(first) = queue.recv().await {
                let mut passengers = vec![first];
                while let Ok(next) = queue.try_recv() {
                    passengers.push(next);
                }
                let answer = question().await;
                for passenger in passengers {
                    let _ = passenger.send(answer.clone());
                }
                tokio::time::sleep(FLIGHT_GAP).await;
            }
        });
        Flight { waiting }
    }

    pub(super) async fn board(&self) -> Result<T, String> {
        let (seat, arrival) = oneshot::channel();
        let busy = "too many clients wait for this".to_string();
        self.waiting.try_send(seat).map_err(|_| busy)?;
        arrival.await.unwrap_or_else(|_| Err("weir is ending".into()))
    }
}

/// Once a second, for the graphs.
async fn sample(asker: Asker, history: Rc<RefCell<History>>) {
    let mut ticks = tokio::time::interval(History::INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let Ok(status) = asker.ask(ANSWER_MAX, |reply| Request::Status { reply }).await else {
            continue;
        };
        if let Ok(status) = serde_json::from_value(status) {
            let now = std::time::SystemTime::now();
            history.borrow_mut().push(Instant::now(), now, &status);
        }
    }
}

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

/// Places for clients of one socket.
#[derive(Debug, Default)]
pub(super) struct Seats {
    next: u64,
    taken: Vec<Seat>,
}

#[derive(Debug)]
struct Seat {
    id: u64,
    /// A request has come in full and is being answered.
    busy: bool,
    /// Since when.
    since: Instant,
    task: Option<AbortHandle>,
}

/// One taken place; free again when this is dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    id: u64,
    seats: Rc<RefCell<Seats>>,
}

impl Seats {
    /// Runs `client` in a place of its own. If all `max` are taken, who has been idle longest goes; if none is idle, who has
    /// been answered longest.
    pub(super) fn seat<F>(
        seats: &Rc<RefCell<Seats>>,
        max: usize,
        client: impl FnOnce(Rc<Ticket>) -> F,
    ) -> JoinHandle<()>
    where
        F: Future<Output = ()> + 'static,
    {
        let id = {
            let mut this = seats.borrow_mut();
            if this.taken.len() >= max
                && let Some(ix) = this.dullest()
                && let Some(task) = this.taken.swap_remove(ix).task
            {
                task.abort();
            }
            this.next += 1;
            let id = this.next;
            this.taken.push(Seat {
                id,
                busy: false,
                since: Instant::now(),
                task: None,
            });
            id
        };
        let ticket = Rc::new(Ticket {
            id,
            seats: seats.clone(),
        });
        let task = tokio::task::spawn_local(client(ticket));
        if let Some(seat) = seats.borrow_mut().taken.iter_mut().find(|seat| seat.id == id) {
            seat.task = Some(task.abort_handle());
        }
        task
    }

    fn dullest(&self) -> Option<usize> {
        (0..self.taken.len()).min_by_key(|&ix| (self.taken[ix].busy, self.taken[ix].since))
    }
}

impl Ticket {
    /// Says whether a request is being answered.
    pub(super) fn set_busy(&self, busy: bool) {
        if let Some(seat) = self.seats.borrow_mut().taken.iter_mut().find(|seat| seat.id == self.id) {
            (seat.busy, seat.since) = (busy, Instant::now());
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.seats.borrow_mut().taken.retain(|seat| seat.id != self.id);
    }
}

#[cfg(test)]
mod tests;
