//! Members that come and go: asking and watching their sources.
//!
//! # How it works
//! One thread with a single-threaded runtime watches all sources, each a task with its own way to find out ([`Source`]). What it
//! finds goes by way of [`Tell`] into what is known of the source ([`Known`], shared with control), and only when that changes
//! who is there, control hears of it ([`Changed`]) and asks for the pool's members.
//!
//! # What it never does
//! It never makes control, workers or the election wait, whatever a source does or leaves undone; files are read by threads
//! of their own. It never takes a member away because a source fails.

mod board;
mod dns;
mod docker;
mod etcd;
mod file;
mod thread;
mod watcher;

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::config::Rules;
use crate::config::model::Backend;
use crate::discovery::{Heard, Known};
use crate::sys::sandbox;

pub use board::{Discovery, Told};

/// Who is in this pool has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed(pub String);

/// Tells control; false if it has too much to do at the moment.
pub type Notify = Arc<dyn Fn(Changed) -> bool + Send + Sync>;

/// Before control is told again.
const AGAIN: Duration = Duration::from_millis(20);

/// One kind of source. What it needs of the system is declared in `app::needs`, beside what else the sandbox lets through.
trait Source: Send {
    /// Finds out who is there, tells it, and goes on until it is dropped.
    fn watch(self: Box<Self>, tell: Tell, shared: Rc<Shared>) -> Pin<Box<dyn Future<Output = ()>>>;
}

/// What the sources of the thread have in common.
#[derive(Default)]
struct Shared {
    watcher: Rc<watcher::Watcher>,
}

/// For those who wait until a source has answered.
#[derive(Debug, Default)]
struct Bell {
    rung: Mutex<()>,
    rings: Condvar,
}

/// How a source tells what it has found.
#[derive(Clone)]
struct Tell {
    pool: String,
    source: String,
    allow_empty: bool,
    rules: Rules,
    known: Arc<Mutex<Known>>,
    notify: Notify,
    bell: Arc<Bell>,
}

impl Tell {
    /// Those that the pool can use.
    fn let_in(&self, mut members: Vec<Backend>, mut error: Option<String>) -> Heard {
        let was_empty = members.is_empty();
        members.retain(|member| match self.rules.refusal(&member.address) {
            None => true,
            Some(refusal) => {
                error.get_or_insert(refusal);
                false
            }
        });
        match error {
            Some(error) if members.is_empty() && !was_empty => Heard::Failed(error),
            Some(error) => Heard::Partly(members, error),
            None => Heard::Members(members),
        }
    }

    /// Returns when control knows.
    async fn hear(&self, heard: Heard) {
        let heard = match heard {
            Heard::Failed(error) => Heard::Failed(format!("{error}{}", sandbox::hint(&error))),
            Heard::Members(members) => self.let_in(members, None),
            Heard::Partly(members, error) => self.let_in(members, Some(error)),
            heard => heard,
        };
        let outcome = self.known.lock().hear(heard, self.allow_empty, Instant::now());
        if let Some((level, text)) = outcome.say {
            log::log!(level, "pool {}: members: {}: {text}", self.pool, self.source);
        }
        {
            let _waiting = self.bell.rung.lock();
            self.bell.rings.notify_all();
        }
        while outcome.changed && !(self.notify)(Changed(self.pool.clone())) {
            tokio::time::sleep(AGAIN).await;
        }
    }
}
