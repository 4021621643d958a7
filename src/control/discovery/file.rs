//! `{file: PATH}`: a list of backends in a file.
//!
//! inotify says when to look, at every directory that the path leads through. Where that cannot be had (no instance is left, a
//! file system without events), and now and then anyway, it is looked without.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::watcher::Watch;
use super::{Shared, Source, Tell};
use crate::config::members;
use crate::discovery::{Heard, Next, Print, Settling};
use crate::sys::ways;

/// How often the file is looked at beside events.
const LOOK: Duration = Duration::from_secs(10);
/// The same without events.
const LOOK_ALONE: Duration = Duration::from_millis(500);

/// A source that reads the file at this path.
pub struct File(pub PathBuf);

impl Source for File {
    fn watch(self: Box<Self>, tell: Tell, shared: Rc<Shared>) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(follow(self.0, tell, shared))
    }
}

async fn follow(path: PathBuf, tell: Tell, shared: Rc<Shared>) {
    let mut watch: Option<Watch> = None;
    let mut unwatched: Option<String> = None;
    let mut settling = Settling::default();
    // What was read, until it is known whether that counts.
    let mut read = Heard::Same;
    let mut is_good = false;
    loop {
        let Seen {
            directories,
            names,
            print,
        } = look(&path).await;
        if watch.as_ref().is_none_or(|watch| !watch.covers(&directories)) {
            let had = watch.take().is_some();
            match shared.watcher.watch(&directories, &names) {
                Ok(new) => {
                    (watch, unwatched) = (Some(new), None);
                    // What happened before that is not heard of.
                    continue;
                }
                Err(why) => {
                    if had || unwatched.as_ref() != Some(&why) {
                        log::warn!(
                            "pool {}: members: {}: looked at without events: {why}",
                            tell.pool,
                            tell.source
                        );
                    }
                    unwatched = Some(why);
                }
            }
        }
        let now = Instant::now();
        for hint in watch.iter_mut().flat_map(Watch::heard) {
            settling.event(hint, now);
        }
        let mut again = now + if watch.is_some() { LOOK } else { LOOK_ALONE };
        match settling.look(print, now) {
            Next::Read => {
                read = load(&path, &tell).await;
                continue;
            }
            Next::Use => {
                is_good = matches!(read, Heard::Members(_));
                tell.hear(std::mem::replace(&mut read, Heard::Same)).await;
            }
            Next::Rest if is_good => tell.hear(Heard::Same).await,
            Next::Rest => {}
            Next::LookAt(at) => again = again.min(at),
        }
        let wait = tokio::time::sleep_until(again.into());
        match &mut watch {
            None => wait.await,
            Some(watch) => tokio::select! {
                Some(hint) = watch.hints.recv() => settling.event(hint, Instant::now()),
                () = wait => {}
            },
        }
    }
}

async fn load(path: &Path, tell: &Tell) -> Heard {
    let (rules, path) = (tell.rules.clone(), path.to_path_buf());
    match tokio::task::spawn_blocking(move || members::load(&path, &rules)).await {
        Ok(Ok(members)) => Heard::Members(members),
        Ok(Err(errors)) => Heard::Failed(first_of(&errors.0)),
        Err(error) => Heard::Failed(error.to_string()),
    }
}

fn first_of(errors: &[crate::config::Diagnostic]) -> String {
    let first = errors.first().map(ToString::to_string).unwrap_or_default();
    match errors.len() {
        0 | 1 => first,
        n => format!("{first} (and {} more)", n - 1),
    }
}

/// What is to be known of a file without opening it.
pub struct Seen {
    /// Where something may happen to it.
    directories: Vec<PathBuf>,
    /// What it is called there.
    names: Vec<OsString>,
    /// `None`: it is not there.
    pub print: Option<Print>,
}

/// Looks at a file, on a thread that may have to wait for that.
pub async fn look(path: &Path) -> Seen {
    let path = path.to_path_buf();
    let look = move || {
        let real = path.canonicalize().unwrap_or_default();
        let name = |path: &Path| path.file_name().map(ToOwned::to_owned);
        Seen {
            directories: places(&path),
            names: [name(&path), name(&real)].into_iter().flatten().collect(),
            print: std::fs::metadata(&path).ok().map(|found| Print {
                file: (found.dev(), found.ino()),
                size: found.len(),
                changed: (
                    i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec()),
                    i128::from(found.ctime()) * 1_000_000_000 + i128::from(found.ctime_nsec()),
                ),
            }),
        }
    };
    tokio::task::spawn_blocking(look).await.unwrap_or(Seen {
        directories: Vec::new(),
        names: Vec::new(),
        print: None,
    })
}

/// The directories that a path leads through. Of one that is not there yet, the first above it that is.
pub fn places(path: &Path) -> Vec<PathBuf> {
    let above = |directory: PathBuf| directory.ancestors().find(|d| d.is_dir()).map(Path::to_path_buf);
    let mut found: Vec<PathBuf> = ways::directories(path).into_iter().filter_map(above).collect();
    found.sort();
    found.dedup();
    found
}
