//! How much this process can carry with a configuration: computed once, and handed on.

use crate::api::question::Refusal;
use crate::config::{Budget, Config};
use crate::sys::limits;

/// What this process can carry with one configuration.
#[derive(Debug, Clone, Default)]
pub struct Capacity {
    /// Number of event loops.
    pub workers: usize,
    /// What the limit on open files carries.
    pub budget: Budget,
}

impl Capacity {
    /// Of this process at this moment. Refused if it is less than the configuration demands.
    pub fn measure(config: &Config) -> Result<Capacity, Refusal> {
        let workers = config.workers.unwrap_or_else(limits::cpus);
        let budget = Budget::new(config, limits::open_files(), workers);
        match budget.refusal(config) {
            Some(refusal) => Err(Refusal::configuration(format!("limits: {refusal}"))),
            None => Ok(Capacity { workers, budget }),
        }
    }

    /// The same at the start of a process, which first claims all the descriptors that it may have.
    pub fn claim(config: &Config) -> Result<Capacity, Refusal> {
        if let Err(error) = limits::raise_open_files() {
            log::warn!("cannot raise the limit on open files: {error}");
        }
        Capacity::measure(config)
    }
}
