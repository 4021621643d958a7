//! What `client_address: keep` takes of the host.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Advice, Host, Road, number, service};
use crate::config::Config;

/// Backends that are looked at: those of one network tell the same.
const BACKENDS_MAX: usize = 256;

/// What backends send to clients must come back through this host.
pub fn ways_back(config: &Config, host: &dyn Host) -> Vec<Advice> {
    let key = |pool: &str| format!("pools.{pool}.client_address");
    let backends: BTreeSet<(IpAddr, &str)> = config
        .kept_pools()
        .flat_map(|(_, pool)| {
            let addresses = pool.backends.iter().filter_map(|backend| backend.address.ip());
            addresses.map(|ip| (ip, pool.policy.name.as_str()))
        })
        .take(BACKENDS_MAX)
        .collect();
    let advice = backends.into_iter().filter_map(|(ip, pool)| {
        let message = match host.road_to(ip)? {
            Err(error) => format!("there is no route to backend {ip}: {error}"),
            Ok(road) => through_others(ip, &road, host)?,
        };
        Some(Advice::new(key(pool), message))
    });
    advice.collect()
}

/// What has to be seen to on a way that leads through other hosts.
fn through_others(backend: IpAddr, road: &Road, host: &dyn Host) -> Option<String> {
    let Road { interface, gateway } = road;
    let gateway = (*gateway)?;
    // Of `all` and the interface's own value the larger one counts (ip-sysctl); 1 is strict.
    let filter = |name: &str| number(host.sysctl(&format!("net.ipv4.conf.{name}.rp_filter")));
    let strict = ["all", interface].into_iter().filter_map(filter).max() == Some(1);
    let filtered = match strict && backend.is_ipv4() {
        true => {
            format!(
                " at {interface}, or is dropped (set net.ipv4.conf.{interface}.rp_filter=2 if it takes another way)"
            )
        }
        false => String::new(),
    };
    Some(format!(
        "backend {backend} is reached through {gateway}: what it sends to clients must come back through this host{filtered}: make this host its default gateway, or route its answers here on the way"
    ))
}

/// Capabilities where no service runs the file; those of a service are in [`service::capabilities`].
pub fn rights(config: &Config, host: &dyn Host) -> Vec<Advice> {
    let Some((_, pool)) = config.kept_pools().next() else {
        return Vec::new();
    };
    let lacking = ["cap_net_admin", "cap_net_raw"]
        .into_iter()
        .filter(|name| service::granted(host, name).is_none() && service::has(host, name) == Some(false));
    let lacking: Vec<String> = lacking.map(str::to_uppercase).collect();
    if lacking.is_empty() {
        return Vec::new();
    }
    let message = format!(
        "`keep` takes {}, which whoever runs this check lacks: run weir as root or give the service AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW",
        lacking.join(" and ")
    );
    vec![Advice::new(
        format!("pools.{}.client_address", pool.policy.name),
        message,
    )]
}
