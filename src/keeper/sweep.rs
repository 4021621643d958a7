//! `weir keeper --sweep`: removes what a dead weir has left, without waiting for the leases to end.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use crate::config;
use crate::config::model::{Holders, Vip};
use crate::sys::netlink::Netlink;

/// Removes those VIPs of the configuration that a weir has installed on this host. Addresses that somebody else has
/// installed stay. Without a configuration that can be read nothing is known of VIPs, and the leases end by themselves.
pub fn sweep(path: &Path) -> ExitCode {
    let vips = match config::load(path) {
        Ok(loaded) => loaded.config.failover.map_or_else(Vec::new, |f| f.vips),
        Err(_) => {
            eprintln!("weir keeper: {} cannot be read: nothing is swept", path.display());
            return ExitCode::SUCCESS;
        }
    };
    match remove(&vips) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir keeper: {error}");
            ExitCode::FAILURE
        }
    }
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
