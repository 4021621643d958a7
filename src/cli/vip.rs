//! `weir vip`: a planned move of a virtual address, or why it is where it is.

use std::net::IpAddr;
use std::process::ExitCode;

use super::client::{self, Options};
use super::table;
use crate::api::question::{Question, VipOrder};
use crate::api::status::{Status, Vip};
use crate::failover::words::Holders;

/// Move a VIP to the next node, take part again, or see why it is where it is.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The virtual address; a prefix length may follow.
    #[arg(value_parser = address)]
    address: IpAddr,
    /// demote: let the next node have it, and take it no more, even if it is the last one that could (with `hold: all`:
    /// withdraw it from this node, connections go on); allow: take part again; status: who holds it, and if nobody does,
    /// what keeps each node from it.
    #[arg(value_enum)]
    order: OrderArg,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum OrderArg {
    Demote,
    Allow,
    Status,
}

fn address(text: &str) -> Result<IpAddr, String> {
    let bare = text.split_once('/').map_or(text, |(address, _)| address);
    bare.parse().map_err(|_| "not an IP address".into())
}

/// Gives the order; 1 if it is refused, or if nobody holds the address whose status is asked.
pub fn run(args: Args) -> ExitCode {
    let question = Question::Vip {
        address: args.address,
        order: match args.order {
            OrderArg::Demote => VipOrder::Demote,
            OrderArg::Allow => VipOrder::Allow,
            OrderArg::Status => return status(&args),
        },
    };
    client::order(&args.options, &question)
}

fn status(args: &Args) -> ExitCode {
    let document = match client::ask(&args.options, &Question::Status) {
        Ok(document) => document,
        Err(error) => return client::fail(&args.options, &error),
    };
    let status = serde_json::from_value::<Status>(document).unwrap_or_default();
    let bare = |vip: &Vip| address(&vip.address).ok();
    let Some(vip) = status.vips.iter().find(|vip| bare(vip) == Some(args.address)) else {
        eprintln!("weir: {} is not a virtual address of this configuration", args.address);
        return ExitCode::FAILURE;
    };
    match args.options.json {
        true => table::print_json(&serde_json::to_value(vip).unwrap_or_default()),
        false => table::print(&told(vip)),
    }
    match vip.holder {
        Some(_) => ExitCode::SUCCESS,
        None => ExitCode::FAILURE,
    }
}

/// In sentences.
fn told(vip: &Vip) -> String {
    let mut out = match &vip.holder {
        _ if vip.hold == Holders::All.word() => format!("{} is held by every node that serves\n", vip.address),
        Some(holder) => format!("{} is held by {holder}\n", vip.address),
        None => format!("nobody holds {}\n", vip.address),
    };
    out += &format!("  here: {}, {}\n", vip.state, vip.reason);
    for obstacle in vip.obstacles.iter().flatten() {
        out += &format!("  {obstacle}\n");
    }
    let all_demoted = |all: &Vec<String>| all.iter().any(|o| o.ends_with("was demoted by an operator"));
    if vip.demoted || vip.obstacles.as_ref().is_some_and(all_demoted) {
        let bare = vip.address.split('/').next().unwrap_or_default();
        out += &match vip.hold == Holders::All.word() {
            true => format!("  until `weir vip {bare} allow` this node does not hold it\n"),
            false => format!(
                "  a demoted node does not take it, whatever happens to the others: `weir vip {bare} allow` there\n"
            ),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told() {
        let held = Vip {
            address: "10.0.0.100/24".into(),
            state: "standby".into(),
            reason: "held by b".into(),
            holder: Some("b".into()),
            ..Vip::default()
        };
        assert_eq!(told(&held), "10.0.0.100/24 is held by b\n  here: standby, held by b\n");
        let nobody = Vip {
            holder: None,
            reason: "demoted".into(),
            demoted: true,
            obstacles: Some(vec!["a was demoted by an operator".into(), "b is not heard".into()]),
            ..held
        };
        let said = told(&nobody);
        assert!(said.starts_with("nobody holds 10.0.0.100/24\n"));
        assert!(
            said.contains("\n  b is not heard\n") && said.contains("`weir vip 10.0.0.100 allow`"),
            "{said}"
        );
        let shared = Vip {
            hold: "all".into(),
            obstacles: None,
            ..nobody
        };
        assert_eq!(
            told(&shared),
            "10.0.0.100/24 is held by every node that serves\n  here: standby, demoted\n  \
             until `weir vip 10.0.0.100 allow` this node does not hold it\n"
        );
    }
}
