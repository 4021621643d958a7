//! `weir config-reference`: every key of the configuration.

use std::io::Write;
use std::process::ExitCode;

/// Prints the reference; it is itself a configuration that can be loaded.
pub fn run() -> ExitCode {
    // A reader such as `head` may close the pipe early; that is no failure.
    let _ = std::io::stdout().write_all(crate::config::reference().as_bytes());
    ExitCode::SUCCESS
}
