//! `weir backend`: change one backend until the next reload says otherwise.

use std::process::ExitCode;
use std::str::FromStr;

use super::client::{self, Options};
use crate::api::question::{BackendOrder, Question};

/// Change one backend until the next reload says otherwise.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which one.
    #[arg(value_name = "POOL/NAME")]
    backend: Name,
    #[command(subcommand)]
    order: OrderArg,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Clone)]
struct Name {
    pool: String,
    name: String,
}

impl FromStr for Name {
    type Err = String;
    fn from_str(text: &str) -> Result<Name, String> {
        match text.split_once('/') {
            Some((pool, name)) if !pool.is_empty() && !name.is_empty() => Ok(Name {
                pool: pool.into(),
                name: name.into(),
            }),
            _ => Err("write POOL/NAME, for example web/a".into()),
        }
    }
}

#[derive(Debug, Clone, Copy, clap::Subcommand)]
#[command(disable_help_subcommand = true)]
enum OrderArg {
    /// Back to what health says, with the configured weight.
    Ready,
    /// No new work; what is open may finish.
    Drain,
    /// As if down.
    Down,
    /// Another weight.
    Weight {
        /// 0 = no new work.
        weight: u32,
    },
}

/// Gives the order; 1 if it is refused.
pub fn run(args: Args) -> ExitCode {
    let Name { pool, name } = args.backend;
    let order = match args.order {
        OrderArg::Ready => BackendOrder::Ready,
        OrderArg::Drain => BackendOrder::Drain,
        OrderArg::Down => BackendOrder::Down,
        OrderArg::Weight { weight } => BackendOrder::Weight(weight),
    };
    client::order(&args.options, &Question::Backend { pool, name, order })
}
