//! `weir backend`: change one backend until the next reload says otherwise; add one, remove one.

use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

use super::client::{self, Client, Options};
use super::table;
use crate::api::question::{BackendOrder, Question};
use crate::api::status::Status;

/// Change one backend until the next reload says otherwise, add one to a pool, or remove one.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which one; for `add` the pool alone.
    #[arg(value_name = "POOL/NAME")]
    backend: Name,
    #[command(subcommand)]
    order: OrderArg,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    pool: String,
    name: Option<String>,
}

impl FromStr for Name {
    type Err = String;
    fn from_str(text: &str) -> Result<Name, String> {
        let (pool, name) = match text.split_once('/') {
            Some((pool, name)) => (pool, Some(name)),
            None => (text, None),
        };
        match pool.is_empty() || name == Some("") {
            true => Err("write POOL/NAME, for example web/a".into()),
            false => Ok(Name {
                pool: pool.into(),
                name: name.map(Into::into),
            }),
        }
    }
}

/// `weight=N`.
fn setting(text: &str) -> Result<u32, String> {
    let number = text.strip_prefix("weight=").and_then(|number| number.parse().ok());
    number.ok_or_else(|| "write weight=N, for example weight=2".into())
}

#[derive(Debug, Clone, clap::Subcommand)]
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
        /// Over reloads, until weir is restarted.
        #[arg(long)]
        keep: bool,
    },
    /// Add a backend to a pool (`weir backend POOL add ADDRESS`); it takes work when a probe has passed.
    Add {
        /// As in the configuration, such as 10.0.0.11:8080.
        address: String,
        /// Its share; 1 unless stated.
        #[arg(value_name = "weight=N", value_parser = setting)]
        weight: Option<u32>,
        /// Over reloads, until weir is restarted.
        #[arg(long)]
        keep: bool,
    },
    /// Take it out of its pool; what is open there may finish as the pool's `on_drain` says.
    Remove {
        /// Over reloads, until weir is restarted.
        #[arg(long)]
        keep: bool,
    },
}

/// Gives the order; 1 if it is refused.
pub fn run(args: Args) -> ExitCode {
    let question = match question(&args.backend, &args.order) {
        Ok(question) => question,
        Err(why) => {
            eprintln!("weir backend: {why}");
            return ExitCode::from(2);
        }
    };
    match (client::ordered(&args.options, &question), args.order, &question) {
        (Err(code), ..) => code,
        (Ok(()), OrderArg::Drain { wait: Some(wait) }, Question::Backend { pool, name, .. }) => {
            wait_until_idle(&args.options, pool, name, wait)
        }
        (Ok(()), ..) => ExitCode::SUCCESS,
    }
}

/// What was typed as it is sent.
fn question(backend: &Name, order: &OrderArg) -> Result<Question, String> {
    let pool = backend.pool.clone();
    if let OrderArg::Add { address, weight, keep } = order {
        let (address, weight, keep) = (address.clone(), *weight, *keep);
        return match &backend.name {
            None => Ok(Question::BackendAdd {
                pool,
                address,
                weight,
                keep,
            }),
            Some(_) => Err(format!("write the pool alone: weir backend {pool} add {address}")),
        };
    }
    let Some(name) = backend.name.clone() else {
        return Err("write POOL/NAME, for example web/a".into());
    };
    let (order, keep) = match *order {
        OrderArg::Ready => (BackendOrder::Ready, false),
        OrderArg::Drain { .. } => (BackendOrder::Drain, false),
        OrderArg::Down => (BackendOrder::Down, false),
        OrderArg::Weight { weight, keep } => (BackendOrder::Weight(weight), keep),
        OrderArg::Add { .. } | OrderArg::Remove { .. } => {
            let keep = matches!(order, OrderArg::Remove { keep: true });
            return Ok(Question::BackendRemove { pool, name, keep });
        }
    };
    Ok(Question::Backend {
        pool,
        name,
        order,
        keep,
    })
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

    #[test]
    fn what_is_typed_is_what_is_sent() {
        let weigh = |keep| OrderArg::Weight { weight: 5, keep };
        let add = || OrderArg::Add {
            address: "10.0.0.1:80".into(),
            weight: Some(2),
            keep: true,
        };
        let rows = [
            (
                "web/a",
                weigh(false),
                r#"{"command":"backend","pool":"web","name":"a","order":{"weight":5},"keep":false}"#,
            ),
            (
                "web/a",
                weigh(true),
                r#"{"command":"backend","pool":"web","name":"a","order":{"weight":5},"keep":true}"#,
            ),
            (
                "web/10.0.0.1:80",
                OrderArg::Remove { keep: false },
                r#"{"command":"backend_remove","pool":"web","name":"10.0.0.1:80","keep":false}"#,
            ),
            (
                "web",
                add(),
                r#"{"command":"backend_add","pool":"web","address":"10.0.0.1:80","weight":2,"keep":true}"#,
            ),
            ("web/a", add(), "write the pool alone: weir backend web add 10.0.0.1:80"),
            ("web", OrderArg::Ready, "write POOL/NAME, for example web/a"),
            (
                "web",
                OrderArg::Remove { keep: true },
                "write POOL/NAME, for example web/a",
            ),
        ];
        for (typed, order, expected) in rows {
            let sent = question(&typed.parse().unwrap(), &order);
            let sent = sent.map_or_else(|why| why, |question| serde_json::to_string(&question).unwrap());
            assert_eq!(sent, expected, "{typed} {order:?}");
        }
        for wrong in ["", "/a", "web/"] {
            assert!(wrong.parse::<Name>().is_err(), "{wrong}");
        }
        assert_eq!(
            (setting("weight=3"), setting("weight=x").is_err(), setting("3").is_err()),
            (Ok(3), true, true)
        );
    }
}
