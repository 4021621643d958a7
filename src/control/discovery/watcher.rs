//! Directories that are watched: one inotify instance for all sources that are files.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RenameMode};
use notify::{Config, Event, RecommendedWatcher, RecursiveMode, Watcher as _};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::discovery::Hint;

/// Events that may wait for a source; those beyond are lost, and what they were about is found by looking.
const HINTS_MAX: usize = 64;

/// Who wants to know of a directory.
struct Interest {
    id: u64,
    /// What the source's own file is called.
    names: Vec<OsString>,
    hints: mpsc::Sender<Hint>,
}

type Interests = Arc<Mutex<HashMap<PathBuf, Vec<Interest>>>>;

/// Watches the directories of all sources that are files.
#[derive(Default)]
pub struct Watcher {
    inotify: RefCell<Option<RecommendedWatcher>>,
    interests: Interests,
    next: RefCell<u64>,
}

/// Directories are watched as long as this lives.
pub struct Watch {
    id: u64,
    directories: Vec<PathBuf>,
    watcher: Rc<Watcher>,
    /// What happens there.
    pub hints: mpsc::Receiver<Hint>,
}

impl Watcher {
    /// Watches directories for a file that is called one of `names` there.
    ///
    /// # Errors
    /// In words; then nothing is watched.
    pub fn watch(self: &Rc<Self>, directories: &[PathBuf], names: &[OsString]) -> Result<Watch, String> {
        let id = {
            let mut next = self.next.borrow_mut();
            *next += 1;
            *next
        };
        let (sender, hints) = mpsc::channel(HINTS_MAX);
        // Dropped if something fails, it takes back what has been done.
        let mut watch = Watch {
            id,
            directories: Vec::new(),
            watcher: self.clone(),
            hints,
        };
        let mut inotify = self.inotify.borrow_mut();
        let inotify = match &mut *inotify {
            Some(inotify) => inotify,
            none => none.insert(start(self.interests.clone()).map_err(|error| error.to_string())?),
        };
        for directory in directories {
            let interest = Interest {
                id,
                names: names.to_vec(),
                hints: sender.clone(),
            };
            let is_new = {
                let mut interests = self.interests.lock();
                let interested = interests.entry(directory.clone()).or_default();
                interested.push(interest);
                interested.len() == 1
            };
            watch.directories.push(directory.clone());
            if is_new {
                let watched = inotify.watch(directory, RecursiveMode::NonRecursive);
                watched.map_err(|error| format!("{}: {error}", directory.display()))?;
            }
        }
        Ok(watch)
    }
}

impl Watch {
    /// What has happened there and was not taken out of the queue yet.
    pub fn heard(&mut self) -> impl Iterator<Item = Hint> {
        std::iter::from_fn(|| self.hints.try_recv().ok())
    }

    /// Whether it is these that are watched.
    pub fn covers(&self, directories: &[PathBuf]) -> bool {
        self.directories == directories
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let unused: Vec<PathBuf> = {
            let mut interests = self.watcher.interests.lock();
            let mut leave = |directory: &&PathBuf| {
                let Some(interested) = interests.get_mut(*directory) else {
                    return false;
                };
                interested.retain(|interest| interest.id != self.id);
                let unused = interested.is_empty();
                if unused {
                    interests.remove(*directory);
                }
                unused
            };
            self.directories.iter().filter(|d| leave(d)).cloned().collect()
        };
        // While a watch is being made it is borrowed, and what is left over then is harmless.
        if let Ok(mut inotify) = self.watcher.inotify.try_borrow_mut()
            && let Some(inotify) = &mut *inotify
        {
            for directory in unused {
                let _ = inotify.unwatch(&directory);
            }
        }
    }
}

fn start(interests: Interests) -> notify::Result<RecommendedWatcher> {
    let pass_on = move |event: notify::Result<Event>| {
        let interests = interests.lock();
        match event {
            Ok(event) if !event.need_rescan() => {
                for path in &event.paths {
                    let parent = path.parent().and_then(|parent| interests.get(parent));
                    // Of the directory itself, too: it may have been moved away.
                    for interest in [parent, interests.get(path)].into_iter().flatten().flatten() {
                        if let Some(hint) = hint(&event.kind, path, &interest.names) {
                            let _ = interest.hints.try_send(hint);
                        }
                    }
                }
            }
            _ => {
                let all = interests.values().flatten();
                for interest in all {
                    let _ = interest.hints.try_send(Hint::Written);
                }
            }
        }
    };
    RecommendedWatcher::new(pass_on, Config::default())
}

/// What an event means for a file with one of these names; `None`: nothing.
fn hint(kind: &EventKind, path: &Path, names: &[OsString]) -> Option<Hint> {
    let own = path.file_name().is_some_and(|name| names.iter().any(|own| own == name));
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => own.then_some(Hint::Whole),
        EventKind::Access(_) => None,
        // Said of each end already.
        EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => None,
        EventKind::Modify(ModifyKind::Name(RenameMode::To)) if own => Some(Hint::Whole),
        EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Metadata(_)) => own.then_some(Hint::Written),
        // It is being made, or has gone.
        _ if own => Some(Hint::Written),
        _ => Some(Hint::Beside),
    }
}
