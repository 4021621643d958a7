//! `weir import FILE...`: the configuration of HAProxy, nginx or keepalived as one of weir.
//!
//! ```text
//! files --lex--> statements --dialect--> draft (a tree of weir's keys, remarks) --check--> what passes --> YAML
//! ```
//!
//! What has a meaning here goes to standard output; what has none, or another one, goes to standard error, a line for each
//! statement. Several files make one configuration: keepalived's addresses and the balancer that they are for.

mod draft;
mod files;
mod haproxy;
mod keepalived;
mod lex;
mod nginx;
mod rules;
#[cfg(test)]
mod tests;
mod time;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;

use self::draft::Draft;
pub use self::draft::Finished;
pub use self::files::Failed;
use self::files::Loader;
use self::lex::{Statement, Style};
use crate::app::EXIT_CONFIG;

/// What `weir import` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files of HAProxy, nginx or keepalived; several make one configuration, such as keepalived.conf and haproxy.cfg.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Whose files they are; left out: recognised, each by itself.
    #[arg(long)]
    from: Option<Dialect>,
}

/// Whose configuration it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dialect {
    /// haproxy.cfg
    Haproxy,
    /// nginx.conf, or what is included in its `stream`
    Nginx,
    /// keepalived.conf
    Keepalived,
}

impl Dialect {
    fn style(self) -> Style {
        match self {
            Dialect::Haproxy => Style::Lines {
                sections: haproxy::SECTIONS,
            },
            Dialect::Nginx => Style::Semicolons,
            Dialect::Keepalived => Style::Braces,
        }
    }

    /// By the first line that only one of them would write.
    fn recognise(text: &str) -> Option<Dialect> {
        text.lines().find_map(|line| {
            let line = line.trim();
            let indented = line.split(['#', '!']).next().unwrap_or_default().trim_end();
            let word = indented.split([' ', '\t', '{']).next().unwrap_or_default();
            match word {
                word if keepalived::BLOCKS.contains(&word) => Some(Dialect::Keepalived),
                "global" | "defaults" | "frontend" | "backend" | "listen" if !indented.ends_with(['{', ';']) => {
                    Some(Dialect::Haproxy)
                }
                "" => None,
                _ if indented.ends_with(';') => Some(Dialect::Nginx),
                "stream" | "http" | "events" | "upstream" | "server" | "mail" => Some(Dialect::Nginx),
                _ => None,
            }
        })
    }
}

/// Runs `weir import`.
pub fn run(args: &Args) -> ExitCode {
    match import(&args.files, args.from) {
        Ok(Finished { yaml, remarks }) => {
            remarks.iter().for_each(|remark| eprintln!("{remark}"));
            match yaml {
                Some(yaml) => {
                    print!("{}{yaml}", head(&args.files));
                    ExitCode::SUCCESS
                }
                None => {
                    eprintln!(
                        "weir import: nothing is left: there is neither a listener with a pool nor an address that moves"
                    );
                    ExitCode::from(EXIT_CONFIG)
                }
            }
        }
        Err(Failed::Unreadable(why)) => {
            eprintln!("weir import: {why}");
            ExitCode::FAILURE
        }
        Err(Failed::Refused(why)) => {
            eprintln!("{why}");
            ExitCode::from(EXIT_CONFIG)
        }
    }
}

fn head(files: &[PathBuf]) -> String {
    let plain = |file: &PathBuf| file.display().to_string().escape_debug().to_string();
    let files: Vec<String> = files.iter().map(plain).collect();
    format!(
        "# Made by `weir import {}`. What has no meaning here was listed on standard error: read it, then `weir check`.\n",
        files.join(" ")
    )
}

/// Reads files and makes one configuration of them.
pub fn import(files: &[PathBuf], from: Option<Dialect>) -> Result<Finished, Failed> {
    let mut loader = Loader::default();
    let mut read = Vec::new();
    for path in files {
        let text = loader.text(path)?;
        let dialect = from.or_else(|| Dialect::recognise(&text)).ok_or_else(|| {
            Failed::Refused(format!(
                "{}: whose configuration this is cannot be seen: say `--from haproxy`, `nginx` or `keepalived`",
                path.display()
            ))
        })?;
        read.push((dialect, loader.statements(path, &text, dialect)?));
    }
    let (sources, unread) = loader.done();
    let mut draft = Draft::new(sources);
    for (statement, why) in &unread {
        draft.remark(statement, why);
    }
    translate(&read, &mut draft);
    Ok(draft.finish())
}

fn translate(read: &[(Dialect, Vec<Statement>)], draft: &mut Draft) {
    for (dialect, statements) in read {
        match dialect {
            Dialect::Haproxy => haproxy::import(statements, draft),
            Dialect::Nginx => nginx::import(statements, draft),
            Dialect::Keepalived => keepalived::import(statements, draft),
        }
    }
}
