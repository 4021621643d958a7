//! This machine, as far as a configuration is concerned.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::resource::{Resource, getrlimit};

use super::ready::{Host, Road};
use crate::sys::limits;
use crate::sys::netlink::Netlink;

/// The service whose settings count, if it is what runs the file.
const UNIT: &str = "weir.service";
/// Present while systemd is what manages the machine (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";

/// This machine, with the properties of `weir.service` if that runs the file being checked.
pub struct Here {
    unit: Option<HashMap<String, String>>,
}

/// The machine that this runs on, for the configuration in `file`.
pub fn here(file: &Path) -> Here {
    Here {
        unit: unit().filter(|unit| unit.get("ExecStart").is_some_and(|start| runs(start, file))),
    }
}

impl Host for Here {
    fn descriptors(&self) -> u64 {
        getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, hard)| soft.max(hard))
    }

    fn cpus(&self) -> usize {
        limits::cpus()
    }

    fn sysctl(&self, name: &str) -> Option<String> {
        self.read(&format!("/proc/sys/{}", name.replace('.', "/")))
    }

    fn unit(&self, property: &str) -> Option<String> {
        self.unit.as_ref()?.get(property).cloned()
    }

    fn read(&self, path: &str) -> Option<String> {
        Some(std::fs::read_to_string(path).ok()?.trim().to_string())
    }

    fn road_to(&self, ip: IpAddr) -> Option<Result<Road, String>> {
        let mut netlink = Netlink::open().ok()?;
        let way = match netlink.way_to(ip) {
            Ok(way) => way,
            Err(error) => return Some(Err(error.to_string())),
        };
        let interfaces = netlink.interfaces().ok()?;
        let interface = interfaces.into_iter().find(|one| one.index == way.interface)?;
        Some(Ok(Road {
            interface: interface.name,
            gateway: way.gateway,
        }))
    }
}

/// What systemd would do with the service, its drop-in files included; `None` without systemd or without the service.
fn unit() -> Option<HashMap<String, String>> {
    if !Path::new(SYSTEMD).is_dir() {
        return None;
    }
    let shown = Command::new("systemctl")
        .args(["show", "--no-pager", UNIT])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&shown.stdout);
    let properties: HashMap<_, _> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect();
    (properties.get("LoadState")? == "loaded").then_some(properties)
}

/// Whether a service's `ExecStart`, as systemctl shows it, names the file.
fn runs(start: &str, file: &Path) -> bool {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.into());
    start.split_whitespace().any(|word| Path::new(word) == file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_counts_for_the_file_that_it_runs() {
        let start =
            "{ path=/usr/bin/weir ; argv[]=/usr/bin/weir run -c /etc/weir/weir.yaml ; ignore_errors=no ; pid=0 }";
        for (file, expected) in [
            ("/etc/weir/weir.yaml", true),
            ("/etc/weir/weir.yaml.new", false),
            ("/etc/weir/other.yaml", false),
            ("weir.yaml", false),
        ] {
            assert_eq!(runs(start, Path::new(file)), expected, "{file}");
        }
    }
}
