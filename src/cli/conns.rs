//! `weir conns`: live connections and sessions.

use std::process::ExitCode;

use super::client::{self, Options};
use super::table::{self, Rows, age, bytes};
use crate::api::question::Question;
use crate::api::status::Connection;

/// List live connections and UDP sessions.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// List so many at most.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
    #[command(flatten)]
    options: Options,
}

/// Prints them, oldest first.
pub fn run(args: Args) -> ExitCode {
    let Args { limit, options } = &args;
    let document = match client::ask(options, &Question::Conns { limit: *limit }) {
        Err(error) => return client::fail(options, &error),
        Ok(document) => document,
    };
    match serde_json::from_value::<Vec<Connection>>(document.clone()) {
        Ok(connections) if !options.json => {
            let full = connections.len() >= *limit;
            table::print(&text(connections));
            if full {
                eprintln!("only {limit} are listed, there may be more: --limit N");
            }
        }
        _ => table::print_json(&document),
    }
    ExitCode::SUCCESS
}

fn text(mut connections: Vec<Connection>) -> String {
    connections.sort_by_key(|connection| (std::cmp::Reverse(connection.age_ms), connection.id));
    let mut rows = Rows::new(&[
        ">ID", "PROTO", "ENGINE", "LISTENER", "CLIENT", "BACKEND", "STATE", ">AGE", ">IDLE", ">UP", ">DOWN",
    ]);
    for connection in &connections {
        rows.row([
            connection.id.into(),
            (&connection.protocol).into(),
            (&connection.engine).into(),
            (&connection.listener).into(),
            (&connection.client).into(),
            connection.place().into(),
            (&connection.state).into(),
            age(connection.age_ms / 1000).into(),
            age(connection.idle_ms / 1000).into(),
            bytes(connection.bytes_up).into(),
            bytes(connection.bytes_down).into(),
        ]);
    }
    rows.finish("")
}
