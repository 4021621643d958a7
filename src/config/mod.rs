//! Configuration: what a file says, what it means ([`model`]), and every reason to refuse it.
//!
//! ```text
//! text --yaml--> tree of nodes, each with line and column
//!      --raw---> sections, read by the one table of keys (fields): unknown keys, types, ranges, defaults
//!      --check-> Config: references resolved, combinations that make sense
//! ```
//!
//! Nothing stops at the first error: a [`Config`] is handed out only when there is none, and otherwise [`Errors`] has
//! all of them in the order of the file. The same path serves the command line ([`Config::from_flags`]), by way of a
//! tree made from the flags.

pub mod fields;
pub mod members;
pub mod model;

mod address;
mod budget;
mod check;
mod engine;
mod flags;
mod http;
mod load;
mod meant;
mod notes;
mod raw;
mod reference;
mod reweigh;
mod rules;
mod value;
mod write;
mod written;
mod yaml;

#[cfg(test)]
mod tests;

use std::fmt;

pub use budget::{Budget, FDS_PER_PROBE, MORE_DESCRIPTORS, PROBES_MAX};
pub use check::{KERNEL_POOLS_MAX, KERNEL_SOURCES_MAX};
pub use http::RouteName;
pub use load::load;
pub use model::Config;
pub use reference::{manual, reference};
pub use reweigh::{reweighted, with_members};
pub use rules::Rules;
pub use write::write;
pub use yaml::{Entry, FILE_BYTES_MAX, Node, Place, Value, shorten};

/// One thing to say about a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file, or the flag that the value came from.
    pub file: String,
    /// Line, from 1; 0 = none.
    pub line: u32,
    /// Column in characters, from 1; 0 = none.
    pub column: u32,
    /// Path of the key, for example `listeners.web.bind[1]`; empty if it is about the whole file.
    pub path: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl Diagnostic {
    /// The same line with `warning: ` before the message.
    pub fn as_warning(&self) -> String {
        Diagnostic {
            message: format!("warning: {}", self.message),
            ..self.clone()
        }
        .to_string()
    }
}

/// Why a configuration is refused: at least one diagnostic, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errors(pub Vec<Diagnostic>);

impl fmt::Display for Errors {
    /// One line a diagnostic.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (i, diagnostic) in self.0.iter().enumerate() {
            let newline = if i == 0 { "" } else { "\n" };
            write!(f, "{newline}{diagnostic}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

impl Errors {
    /// One error about a whole file.
    fn whole(file: &str, message: impl Into<String>) -> Errors {
        let file = file.to_string();
        Errors(vec![Diagnostic {
            file,
            line: 0,
            column: 0,
            path: String::new(),
            message: message.into(),
        }])
    }
}

/// A configuration that was not refused.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// What it means.
    pub config: Config,
    /// What to think about again, in the order of the file.
    pub warnings: Vec<Diagnostic>,
}

/// Reads a configuration from text; `file_name` is for the diagnostics.
pub fn parse(file_name: &str, text: &str) -> Result<Loaded, Errors> {
    parse_with(notes::Notes::default(), file_name, text)
}

fn parse_with(notes: notes::Notes, file: &str, text: &str) -> Result<Loaded, Errors> {
    let diagnostic = |finding: notes::Finding| Diagnostic {
        file: file.to_string(),
        line: finding.at.line,
        column: finding.at.column,
        path: finding.path,
        message: finding.message,
    };
    match yaml::read(text) {
        Err((at, message)) => Err(Errors(vec![diagnostic(notes::Finding {
            at,
            path: String::new(),
            message,
        })])),
        Ok(tree) => conclude(check::check(&notes, &tree), notes, diagnostic),
    }
}

/// Checks a tree that was made from something else than YAML. Lines and columns are those that the tree gives its nodes.
pub fn check_tree(tree: &Node) -> Result<Loaded, Errors> {
    let notes = notes::Notes::default();
    conclude(check::check(&notes, tree), notes, |finding| Diagnostic {
        file: String::new(),
        line: finding.at.line,
        column: finding.at.column,
        path: finding.path,
        message: finding.message,
    })
}

/// The configuration if nothing speaks against it.
fn conclude(
    config: Config,
    notes: notes::Notes,
    diagnostic: impl Fn(notes::Finding) -> Diagnostic,
) -> Result<Loaded, Errors> {
    let sorted = |mut findings: Vec<notes::Finding>| -> Vec<Diagnostic> {
        findings.sort_by_key(|finding| finding.at);
        findings.into_iter().map(&diagnostic).collect()
    };
    let mut errors = sorted(notes.errors.into_inner());
    if let (more @ 1.., Some(last)) = (notes.more.get(), errors.last().cloned()) {
        let message = format!("and {more} more");
        errors.push(Diagnostic {
            path: String::new(),
            message,
            ..last
        });
    }
    match errors.is_empty() {
        true => Ok(Loaded {
            config,
            warnings: sorted(notes.warnings.into_inner()),
        }),
        false => Err(Errors(errors)),
    }
}
