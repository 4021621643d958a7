//! Where the configuration comes from, at the start and at every reload.

use std::path::{Path, PathBuf};

use crate::config::{self, Config};

/// Where the configuration comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file, read again on reload.
    File(PathBuf),
    /// The command line.
    Flags(Box<Config>),
}

impl Source {
    /// Reads the configuration; warnings are logged.
    pub fn load(&self) -> Result<Config, config::Errors> {
        match self {
            Source::File(path) => {
                let loaded = config::load(path)?;
                for warning in &loaded.warnings {
                    log::warn!("{warning}");
                }
                Ok(loaded.config)
            }
            Source::Flags(config) => Ok((**config).clone()),
        }
    }

    /// Where the configuration is, if it is in a file.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Source::File(path) => Some(path),
            Source::Flags(_) => None,
        }
    }

    /// Its path in words.
    pub fn file(&self) -> Option<String> {
        match self {
            Source::File(path) => Some(path.display().to_string()),
            Source::Flags(_) => None,
        }
    }
}
