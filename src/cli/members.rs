//! `weir members POOL`: who is in a pool, and because of whom.

use std::fmt::Write;
use std::process::ExitCode;

use serde_json::json;

use super::client::{self, Options};
use super::table::{self, Rows, Tone, Value, age, tone, trouble};
use crate::api::question::Question;
use crate::api::status::{Pool, Source, Status};

/// Show who is in a pool, where each came from, how old that knowledge is, and the last error.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The pool.
    pool: String,
    #[command(flatten)]
    options: Options,
}

/// Runs `weir members`: prints where each backend of a pool comes from.
pub fn run(args: Args) -> ExitCode {
    let Args { pool, options } = &args;
    let read = client::Client::connect(&options.socket).and_then(|mut client| client.read(&Question::Status));
    let status: Status = match read {
        Ok(status) => status,
        Err(error) => return client::fail(options, &error),
    };
    match status.pools.iter().find(|found| found.name == *pool) {
        None => {
            let known: Vec<&str> = status.pools.iter().map(|pool| pool.name.as_str()).collect();
            let text = format!("there is no pool {pool:?}; there are: {}", known.join(", "));
            eprintln!("weir: {}", table::clean(&text));
            ExitCode::FAILURE
        }
        Some(found) => {
            match options.json {
                true => table::print_json(&document(found)),
                false => table::print(&text(found)),
            }
            ExitCode::SUCCESS
        }
    }
}

fn document(pool: &Pool) -> serde_json::Value {
    let members = pool.backends.iter().map(|member| {
        json!({
            "name": member.name,
            "address": member.address,
            "source": member.source,
            "weight": member.weight,
            "backup": member.backup,
            "state": member.state,
            "since_s": member.since_s,
            "active": member.active,
        })
    });
    json!({"pool": pool.name, "sources": pool.sources, "members": members.collect::<Vec<_>>()})
}

fn text(pool: &Pool) -> String {
    let mut rows = Rows::new(&["MEMBER", "ADDRESS", "STATE", ">SINCE", ">WEIGHT", ">ACTIVE", "FROM"]);
    for member in &pool.backends {
        rows.row([
            match member.backup {
                true => format!("{} (backup)", member.name).into(),
                false => (&member.name).into(),
            },
            (&member.address).into(),
            Value(member.state.clone(), tone(&member.state)),
            age(member.since_s).into(),
            member.weight.into(),
            member.active.into(),
            match &*member.source {
                "" => Value("configuration".into(), Tone::Dim),
                source => source.into(),
            },
        ]);
    }
    let count = pool.backends.len();
    let name = table::clean(&pool.name);
    let mut out = format!("pool {name}: {count} member{}\n", if count == 1 { "" } else { "s" });
    out.push_str(&rows.finish("  "));
    let _ = write!(out, "{}", sources(&pool.sources));
    out
}

/// The sources of a pool as a table; nothing if there are none.
pub fn sources(sources: &[Source]) -> String {
    if sources.is_empty() {
        return String::new();
    }
    let mut rows = Rows::new(&["SOURCE", ">MEMBERS", ">AGE", ">FAILURES", "LAST ERROR"]);
    for source in sources {
        rows.row([
            (&source.source).into(),
            source.members.into(),
            match source.age_s {
                None => Value("never".into(), Tone::Bad),
                Some(seconds) => age(seconds as u64).into(),
            },
            trouble(source.failures),
            match (&source.error, source.error_s) {
                (Some(error), Some(since)) => Value(format!("{error} (for {})", age(since)), Tone::Bad),
                _ => Value("-".into(), Tone::Dim),
            },
        ]);
    }
    format!("\n{}", rows.finish("  "))
}
