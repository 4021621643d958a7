//! `weir backend`: change one backend until the next reload says otherwise.

use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

use super::client::{self, Client, Options};
use super::table;
use crate::api::question::{BackendOrder, Question};
use crate::api::status::Status;

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
    Drain {
        /// Wait until nothing is open any more, for so long at most; 1 if something is.
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        wait: Option<Duration>,
    },
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
        OrderArg::Drain { .. } => BackendOrder::Drain,
        OrderArg::Down => BackendOrder::Down,
        OrderArg::Weight { weight } => BackendOrder::Weight(weight),
    };
    let question = Question::Backend {
        pool: pool.clone(),
        name: name.clone(),
        order,
    };
    match (client::ordered(&args.options, &question), args.order) {
        (Err(code), _) => code,
        (Ok(()), OrderArg::Drain { wait: Some(wait) }) => wait_until_idle(&args.options, &pool, &name, wait),
        (Ok(()), _) => ExitCode::SUCCESS,
    }
}

/// How often the status is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Waits until a drained backend has nothing left.
fn wait_until_idle(options: &Options, pool: &str, name: &str, wait: Duration) -> ExitCode {
    let started = Instant::now();
    let mut client = match Client::connect(&options.socket) {
        Ok(client) => client,
        Err(error) => return client::fail(options, &error),
    };
    loop {
        let status: Status = match client.read(&Question::Status) {
            Ok(status) => status,
            Err(error) => return client::fail(options, &error),
        };
        let backends = status
            .pools
            .iter()
            .filter(|p| p.name == pool)
            .flat_map(|pool| &pool.backends);
        let look = Look::of(
            backends
                .filter(|backend| backend.name == name)
                .map(|b| (b.state.as_str(), b.active))
                .next(),
        );
        let text = match look {
            Look::Idle => {
                table::print(&format!(
                    "{}\n",
                    table::clean(&format!("{pool}/{name}: nothing is open any more"))
                ));
                return ExitCode::SUCCESS;
            }
            Look::Open(left) if started.elapsed() >= wait => {
                let waited = humantime::format_duration(wait);
                format!("{pool}/{name}: {left} open after {waited}")
            }
            Look::Open(_) => {
                std::thread::sleep(LOOK.min(wait.saturating_sub(started.elapsed())));
                continue;
            }
            Look::Otherwise(state) => format!("{pool}/{name}: is {state} meanwhile"),
        };
        eprintln!("weir: {}", table::clean(&text));
        return ExitCode::FAILURE;
    }
}

/// How far a backend is that drains.
#[derive(Debug, PartialEq)]
enum Look {
    Idle,
    Open(u32),
    /// It drains no more.
    Otherwise(String),
}

impl Look {
    /// Of a backend's state and what is open there; of one that is not there any more.
    fn of(backend: Option<(&str, u32)>) -> Look {
        match backend {
            None | Some(("drain" | "disabled", 0)) => Look::Idle,
            Some(("drain" | "disabled", open)) => Look::Open(open),
            Some((state, _)) => Look::Otherwise(state.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_a_drain_is() {
        for (backend, look) in [
            (Some(("drain", 0)), Look::Idle),
            (Some(("drain", 3)), Look::Open(3)),
            (Some(("disabled", 1)), Look::Open(1)),
            (Some(("up", 0)), Look::Otherwise("up".into())),
            (None, Look::Idle),
        ] {
            assert_eq!(Look::of(backend), look);
        }
    }
}
