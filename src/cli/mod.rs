//! The command line, one file a command.

pub mod check;
pub mod reference;

use std::process::ExitCode;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    ExitCode::from(2)
}
