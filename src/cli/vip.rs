//! `weir vip`: a planned move of a virtual address.

use std::net::IpAddr;
use std::process::ExitCode;

use super::client::{self, Options};
use crate::api::question::{Question, VipOrder};

/// Move a VIP to the next node, or take part again.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The virtual address; a prefix length may follow.
    #[arg(value_parser = address)]
    address: IpAddr,
    /// demote: let the next node have it; allow: take part again.
    #[arg(value_enum)]
    order: OrderArg,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum OrderArg {
    Demote,
    Allow,
}

fn address(text: &str) -> Result<IpAddr, String> {
    let bare = text.split_once('/').map_or(text, |(address, _)| address);
    bare.parse().map_err(|_| "not an IP address".into())
}

/// Gives the order; 1 if it is refused.
pub fn run(args: Args) -> ExitCode {
    let question = Question::Vip {
        address: args.address,
        order: match args.order {
            OrderArg::Demote => VipOrder::Demote,
            OrderArg::Allow => VipOrder::Allow,
        },
    };
    client::order(&args.options, &question)
}
