//! What the service that runs the file may do.

use std::path::Path;
use std::time::Duration;

use super::{Advice, Host, number};
use crate::config::Config;
use crate::config::model::*;

const REMEDY: &str = "(systemctl edit weir)";

/// What a configuration takes.
struct Need {
    capability: &'static str,
    /// The key that takes it, and what it takes it for; `None` if the configuration does without.
    taken_by: fn(&Config, &dyn Host) -> Option<(String, String)>,
}

const NEEDS: &[Need] = &[
    Need {
        capability: "cap_net_bind_service",
        taken_by: low_port,
    },
    Need {
        capability: "cap_net_admin",
        taken_by: |config, _| vips(config, "installing addresses"),
    },
    Need {
        capability: "cap_net_raw",
        taken_by: |config, _| vips(config, "announcing addresses"),
    },
    Need {
        capability: "cap_net_admin",
        taken_by: kept_clients,
    },
    Need {
        capability: "cap_net_raw",
        taken_by: kept_clients,
    },
    Need {
        capability: "cap_net_raw",
        taken_by: marks,
    },
    Need {
        capability: "cap_net_admin",
        taken_by: kernel_engine,
    },
    Need {
        capability: "cap_bpf",
        taken_by: kernel_engine,
    },
    Need {
        capability: "cap_perfmon",
        taken_by: kernel_engine,
    },
];

/// Capabilities that the service lacks.
pub fn capabilities(config: &Config, host: &dyn Host) -> Vec<Advice> {
    let needs = NEEDS
        .iter()
        .filter(|need| granted(host, need.capability) == Some(false));
    let lacking = needs.filter_map(|need| {
        let (key, what) = (need.taken_by)(config, host)?;
        let message = format!(
            "{what} takes {}, which weir.service does not give: add it to AmbientCapabilities= and CapabilityBoundingSet= {REMEDY}",
            need.capability,
        );
        Some(Advice::new(key, message))
    });
    lacking.collect()
}

/// A port that takes a privilege.
fn low_port(config: &Config, host: &dyn Host) -> Option<(String, String)> {
    let first_free = number(host.sysctl("net.ipv4.ip_unprivileged_port_start")).unwrap_or(1024);
    config
        .listeners
        .iter()
        .filter(|l| l.engine == Engine::Proxy)
        .find_map(|listener| {
            let low = listener.bind.iter().find_map(|bind| match bind {
                Bind::Ip { ports, .. } => Some(*ports.start()).filter(|&port| port > 0 && u64::from(port) < first_free),
                Bind::Unix(_) => None,
            })?;
            Some((format!("listeners.{}.bind", listener.name), format!("port {low}")))
        })
}

fn vips(config: &Config, what: &str) -> Option<(String, String)> {
    let failover = config.failover.as_ref().filter(|failover| !failover.vips.is_empty());
    failover.map(|_| ("failover.vips".into(), what.into()))
}

fn kernel_engine(config: &Config, _: &dyn Host) -> Option<(String, String)> {
    let listener = config.listeners.iter().find(|l| l.engine == Engine::Kernel)?;
    Some((
        format!("listeners.{}.engine", listener.name),
        "the kernel engine".into(),
    ))
}

fn marks(config: &Config, _: &dyn Host) -> Option<(String, String)> {
    let pool = config.marking_pool()?;
    Some((
        format!("pools.{}.connect.mark", pool.policy.name),
        "marking packets".into(),
    ))
}

fn kept_clients(config: &Config, _: &dyn Host) -> Option<(String, String)> {
    let (_, pool) = config.kept_pools().next()?;
    Some((
        format!("pools.{}.client_address", pool.policy.name),
        "keeping clients' addresses".into(),
    ))
}

/// Whether the service has a capability; `None` where no service runs the file.
pub(super) fn granted(host: &dyn Host, capability: &str) -> Option<bool> {
    let lists = |property: &str| {
        let list = host.unit(property)?;
        Some(list.split_whitespace().any(|one| one == capability))
    };
    let bounding = lists("CapabilityBoundingSet")?;
    Some(match host.unit("User").as_deref() {
        None | Some("" | "root" | "0") => bounding,
        Some(_) => bounding && lists("AmbientCapabilities")?,
    })
}

/// Whether a weir has a capability that is started by the service or, where no service runs the file, as this command was;
/// `None` if that is not known.
pub fn has(host: &dyn Host, capability: &str) -> Option<bool> {
    granted(host, capability).or_else(|| {
        let number: caps::Capability = capability.to_uppercase().parse().ok()?;
        let status = host.read("/proc/self/status")?;
        let mask = status.lines().find_map(|line| line.strip_prefix("CapPrm:"))?;
        let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
        Some(mask & number.bitmask() != 0)
    })
}

/// What a stop takes against when systemd loses patience.
pub fn time_to_stop(config: &Config, host: &dyn Host) -> Vec<Advice> {
    let patience = host
        .unit("TimeoutStopUSec")
        .and_then(|text| humantime::parse_duration(&text).ok());
    let withdrawn = |failover: &Failover| match failover.vips.iter().any(|vip| vip.hold == Holders::All) {
        true => failover.withdraw_delay,
        false => Duration::ZERO,
    };
    let needed = config.shutdown_grace + config.failover.as_ref().map_or(Duration::ZERO, withdrawn);
    let short = patience.filter(|&patience| patience <= needed);
    let message = |patience| {
        format!(
            "connections may finish within {} when weir stops, and weir.service is killed after {}: raise TimeoutStopSec= {REMEDY}, or lower shutdown_grace",
            humantime::format_duration(needed),
            humantime::format_duration(patience),
        )
    };
    short
        .map(|patience| Advice::new("shutdown_grace", message(patience)))
        .into_iter()
        .collect()
}

/// Directories that the service may not write to.
pub fn writable(config: &Config, host: &dyn Host) -> Vec<Advice> {
    if host.unit("ProtectSystem").as_deref() != Some("strict") {
        return Vec::new();
    }
    let words = |property: &str| host.unit(property).unwrap_or_default();
    let below = |property: &str, root: &str| -> Vec<String> {
        let text = words(property);
        text.split_whitespace().map(|name| format!("{root}{name}")).collect()
    };
    let mut open = vec!["/dev".to_string(), "/proc".into(), "/sys".into()];
    open.extend(below("RuntimeDirectory", "/run/"));
    open.extend(below("LogsDirectory", "/var/log/"));
    open.extend(below("StateDirectory", "/var/lib/"));
    open.extend(below("CacheDirectory", "/var/cache/"));
    // With `-` or `+` before it (systemd.exec(5)).
    let named = words("ReadWritePaths");
    open.extend(
        named
            .split_whitespace()
            .map(|path| path.trim_start_matches(['-', '+']).into()),
    );
    if words("PrivateTmp") == "yes" {
        open.extend(["/tmp".to_string(), "/var/tmp".into()]);
    }
    let access = match &config.log.access {
        AccessTarget::File(path) => Some(("log.access", path.as_path())),
        AccessTarget::Off | AccessTarget::Stdout => None,
    };
    let written = [Some(("admin", config.admin.as_path())), access];
    let closed = written.into_iter().flatten().filter_map(|(key, path)| {
        let directory = path.parent().unwrap_or(Path::new("/"));
        let message = || {
            format!(
                "weir.service may not write to {} (ProtectSystem=strict): choose a place below its LogsDirectory= or RuntimeDirectory=, or name the directory in ReadWritePaths= {REMEDY}",
                directory.display(),
            )
        };
        (!open.iter().any(|open| directory.starts_with(open))).then(|| Advice::new(key, message()))
    });
    closed.collect()
}
