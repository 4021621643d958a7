//! `weir keeper --sweep`: removes what a dead weir has left: addresses without waiting for their leases to end, and rules.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use super::returns;
use crate::config;
use crate::config::model::{Holders, Vip};
use crate::sys::netlink::Netlink;

/// Removes those VIPs of the configuration that a weir has installed on this host, and the rules of its `client_address: keep`.
/// Addresses and rules that somebody else has made stay. Without a configuration that can be read nothing is known of them; the
/// leases end by themselves, and the next start removes rules.
pub fn sweep(path: &Path) -> ExitCode {
    let (vips, table) = match config::load(path) {
        Ok(loaded) => {
            let table = returns::table(&loaded.config.admin);
            (loaded.config.failover.map_or_else(Vec::new, |f| f.vips), table)
        }
        Err(_) => {
            eprintln!("weir keeper: {} cannot be read: nothing is swept", path.display());
            return ExitCode::SUCCESS;
        }
    };
    match remove(&vips).and_then(|()| remove_rules(table)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir keeper: {error}");
            ExitCode::FAILURE
        }
    }
}

fn remove_rules(table: u32) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let swept = netlink.sweep_rules(table)?;
    if swept > 0 {
        eprintln!("weir keeper: swept {swept} rules of table {table}");
        netlink.deliver_all(table, false)?;
    }
    Ok(())
}

fn remove(vips: &[Vip]) -> io::Result<()> {
    if vips.is_empty() {
        return Ok(());
    }
    let mut netlink = Netlink::open()?;
    for address in netlink.addresses()? {
        let is_vip = vips.iter().any(|vip| vip.address == address.net);
        if !is_vip || !address.ours {
            continue;
        }
        match netlink.remove(address.interface, address.net) {
            Ok(()) => eprintln!("weir keeper: swept {}", address.net),
            // The lease has ended, or its keeper was quicker.
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
            Err(error) => return Err(error),
        }
    }
    for vip in vips.iter().filter(|vip| vip.hold == Holders::All) {
        netlink.accept(vip.address.addr(), false)?;
    }
    Ok(())
}
