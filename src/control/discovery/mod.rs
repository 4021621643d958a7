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

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde::Serialize;

use crate::config::Rules;
use crate::config::model::Backend;
use crate::control::events::{self, Telling};
use crate::discovery::{Heard, Known};
use crate::sys::sandbox;

pub use board::{Discovery, Told};

/// Who is in this pool has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed(pub String);

/// Tells control; false if it has too much to do at the moment.
pub type Notify = Arc<dyn Fn(Changed) -> bool + Send + Sync>;

/// Pause before control is told again.
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

/// A source names other members, does not answer, or answers again.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename = "members")]
pub struct News {
    /// Name of the pool.
    pub pool: String,
    /// Kind and place of the source.
    pub source: String,
    /// How many it names.
    pub members: usize,
    /// Why it cannot be asked, or its answer cannot be used.
    pub error: Option<String>,
    /// Level of the line in the log.
    #[serde(skip)]
    pub level: log::Level,
    /// The rest of that line.
    #[serde(skip)]
    pub text: String,
}

impl Telling for News {
    fn level(&self) -> log::Level {
        self.level
    }
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pool {}: members: {}: {}", self.pool, self.source, self.text)
    }
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
        let now = Instant::now();
        let (outcome, members, error) = {
            let mut known = self.known.lock();
            let outcome = known.hear(heard, self.allow_empty, now);
            let error = known.error(now).map(|(error, _)| error.to_string());
            (outcome, known.members().len(), error)
        };
        if let Some((level, text)) = outcome.say {
            let (pool, source) = (self.pool.clone(), self.source.clone());
            events::tell(&News {
                pool,
                source,
                members,
                error,
                level,
                text,
            });
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
