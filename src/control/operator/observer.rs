//! The thread that answers operators: admin socket and HTTP.
//!
//! # How it works
//!
//! One thread with a single-threaded runtime serves both sockets. It owns no state of the balancer: a question becomes a
//! [`Request`](crate::control::request::Request) in the control thread's queue, and the answer is waited for with a limit. Nothing here is touched by workers.
//!
//! # What a client can do to others
//!
//! Nothing. However many clients connect, however slowly they send or read:
//! - connections are bounded; when all places are taken the one that has been waiting longest makes room (`Clients`), so a
//!   scraper that asks at once is served between any number of clients that never finish a request;
//! - requests are bounded in size and time, connections in life;
//! - the thread gives way to workers and control when CPUs are short;
//! - HTTP asks control each kind of question once at a time and not more often than every
//!   [`QUESTION_GAP`](super::ask::QUESTION_GAP); clients that asked before the question was sent share its answer (`Coalesced`), so
//!   no answer is older than its question.
//!
//! The admin socket is only for the socket file's owner and group; it skips the sharing but not the bounds.

use std::cell::RefCell;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::task::LocalSet;

use super::ask::Asker;
use super::history::{self, History};
use super::{admin, http};
use crate::control::events;
use crate::control::request::Input;
use crate::link::Shared;
use crate::sys::sched;

/// Changes of the HTTP socket that may wait: each of them is a reload.
const MOVES_MAX: usize = 4;

/// How long followers may take to read the end.
const LAST_WORDS_MAX: Duration = Duration::from_millis(100);
/// How often it is looked whether they have.
const LAST_WORDS_LOOK: Duration = Duration::from_millis(2);

/// A handle on the thread.
#[derive(Debug)]
pub struct Handle {
    /// Closed: stop. Messages: serve HTTP there from now on.
    moves: Option<mpsc::Sender<Option<TcpListener>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Serves on `admin` (see [`admin::bind`]) and `http` until the handle is stopped. Questions go to `inputs`; what `shared` counts
/// makes the history.
pub fn start(
    admin: UnixListener,
    http: Option<TcpListener>,
    inputs: Sender<Input>,
    shared: Arc<Shared>,
) -> io::Result<Handle> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(16)
        .thread_name("observer-wait")
        .build()?;
    admin.set_nonblocking(true)?;
    if let Some(http) = &http {
        http.set_nonblocking(true)?;
    }
    let (moves, mut moved) = mpsc::channel(MOVES_MAX);
    let serve = move || {
        sched::patient_thread();
        let asker = Asker::new(inputs);
        let local = LocalSet::new();
        let result = local.block_on(&runtime, async move {
            let admin = tokio::net::UnixListener::from_std(admin)?;
            let history = Rc::new(RefCell::new(History::default()));
            tokio::task::spawn_local(sample(shared, history.clone()));
            tokio::task::spawn_local(admin::serve(admin, asker.clone(), history.clone()));
            let serve_http = |http: Option<TcpListener>| -> io::Result<_> {
                let http = http.map(tokio::net::TcpListener::from_std).transpose()?;
                let serve = |http| http::serve(http, asker.clone(), history.clone());
                Ok(http.map(|http| tokio::task::spawn_local(serve(http))))
            };
            let mut serving = serve_http(http)?;
            // Ends when the handle is stopped or dropped.
            while let Some(http) = moved.recv().await {
                if let Some(old) = serving.take() {
                    old.abort();
                }
                serving = serve_http(http)?;
            }
            let gone = async {
                while events::followers() > 0 || asker.owes() {
                    tokio::time::sleep(LAST_WORDS_LOOK).await;
                }
            };
            let _ = tokio::time::timeout(LAST_WORDS_MAX, gone).await;
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
        moves: Some(moves),
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
        let moves = self.moves.as_ref().ok_or_else(ended)?;
        moves.try_send(http).map_err(|error| match error {
            TrySendError::Full(_) => io::Error::other("the observer has too much to do"),
            TrySendError::Closed(_) => ended(),
        })
    }

    /// Closes the sockets and every client, ends the thread. The socket file stays: [`admin::remove`].
    pub fn stop(self) {}
}

impl Drop for Handle {
    fn drop(&mut self) {
        drop(self.moves.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ended() -> io::Error {
    io::Error::other("the observer has ended")
}

/// Once a second, for the graphs: from what workers count, without a question to anybody.
async fn sample(shared: Arc<Shared>, history: Rc<RefCell<History>>) {
    let mut ticks = tokio::time::interval(History::INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let now = std::time::SystemTime::now();
        let samples = history::samples(&shared.snapshot());
        history.borrow_mut().push(Instant::now(), now, samples);
    }
}

#[cfg(test)]
mod tests;
