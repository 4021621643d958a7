//! Resource limits of this process.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit on open files to the hard one; returns the limit in force.
pub fn raise_open_files() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// The soft limit on open files.
pub fn open_files() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
}

/// CPUs that this process may use.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// A descriptor kept so that one more connection can be taken when there are no others.
#[derive(Debug)]
pub struct Reserve(Option<std::fs::File>);

impl Reserve {
    /// Takes a descriptor, if there is one.
    pub fn new() -> Reserve {
        Reserve(spare_descriptor())
    }

    /// Gives it up; false if it was in use.
    pub fn spend(&mut self) -> bool {
        self.0.take().is_some()
    }

    /// Takes a descriptor again. True if there is one, and at least one more.
    pub fn refill(&mut self) -> bool {
        if self.0.is_none() {
            self.0 = spare_descriptor();
        }
        self.0.is_some() && spare_descriptor().is_some()
    }
}

impl Default for Reserve {
    fn default() -> Reserve {
        Reserve::new()
    }
}

fn spare_descriptor() -> Option<std::fs::File> {
    std::fs::File::open("/dev/null").ok()
}
