//! `weir check -c FILE`: every error and every warning, in one go.

mod host;
mod kernel;
mod ready;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::model::{Failover, Holders, MembersFrom, Track, Tracked};
use crate::config::{self, Config, Diagnostic, Loaded, Rules, members};
use crate::control::discovery::Discovery;
use crate::control::etcd::Settings;
use crate::failover::bounds::{Bound, bounds, strictly};
use crate::failover::timers::{Timers, quorum};
use crate::sys::{neigh, secret};

/// For sources of members to answer.
const SOURCES_MAX: Duration = Duration::from_secs(5);

/// Checks a file; 0 = it can be run, possibly with warnings on stderr; 3 = it is refused.
pub fn run(path: &Path) -> ExitCode {
    match config::load(path) {
        Err(errors) => {
            eprintln!("{errors}");
            ExitCode::from(3)
        }
        Ok(Loaded { config, warnings }) => {
            let file = path.display().to_string();
            let here = host::here(path);
            for warning in warnings.iter().chain(&ready::warnings(&file, &config, &here)) {
                eprintln!("{}", warning.as_warning());
            }
            for advice in config.failover.iter().flat_map(host_advice) {
                eprintln!("{file}: failover: warning: {advice}");
            }
            for warning in kernel::advice(&file, &config, &kernel::Host::read(&here)) {
                eprintln!("{}", warning.as_warning());
            }
            for bound in config.failover.iter().flat_map(failover_bounds) {
                println!("{file}: failover: {bound}");
            }
            let backends: usize = config.pools.iter().map(|pool| pool.backends.len()).sum();
            for error in member_files(&config) {
                eprintln!("{}", error.as_warning());
            }
            for silent in member_sources(&config) {
                eprintln!("{file}: warning: {silent}");
            }
            let sources: usize = config.pools.iter().map(|pool| pool.members.len()).sum();
            let more = match sources {
                0 => String::new(),
                1 => ", 1 source of members".to_string(),
                n => format!(", {n} sources of members"),
            };
            println!(
                "{file}: configuration ok: {}, {}, {}{more}",
                count(config.listeners.len(), "listener"),
                count(config.pools.len(), "pool"),
                count(backends, "backend"),
            );
            ExitCode::SUCCESS
        }
    }
}

/// What is wrong with files of members as they are now. This may not be the machine that they are for, and they may come later.
fn member_files(config: &Config) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for (ix, pool) in config.pools.iter().enumerate() {
        let rules = Rules::of(config, ix);
        for source in &pool.members {
            let MembersFrom::File(path) = &source.from else {
                continue;
            };
            found.extend(
                members::load(path, &rules)
                    .err()
                    .into_iter()
                    .flat_map(|errors| errors.0),
            );
        }
    }
    found
}

/// Which of the other sources of members do not answer, asked from here. This may not be the machine that they are for.
fn member_sources(config: &Config) -> Vec<String> {
    let mut asked = config.clone();
    for pool in &mut asked.pools {
        pool.members
            .retain(|source| !matches!(source.from, MembersFrom::File(_)));
    }
    let mut discovery = Discovery::new(Arc::new(|_| true), Vec::new());
    if let Err(why) = discovery.prepare(&asked) {
        return vec![format!("members: {why}")];
    }
    discovery.follow(&asked, |_| Vec::new());
    discovery.wait(SOURCES_MAX);
    let mut silent = Vec::new();
    for pool in asked.pools.iter().map(|pool| &pool.policy.name) {
        for source in discovery.sources(pool, Instant::now()) {
            let unheard = source
                .age_s
                .is_none()
                .then(|| format!("no answer within {SOURCES_MAX:?}"));
            if let Some(why) = source.error.or(unheard) {
                silent.push(format!("pool {pool}: members: {}: {why}", source.source));
            }
        }
    }
    silent
}

/// What stands in the way of the VIPs on this machine; it may not be the one that the file is for, so nothing is refused.
fn host_advice(failover: &Failover) -> Vec<String> {
    let unusable = |path: &std::path::PathBuf| secret::read(path).err();
    let mut advice: Vec<String> = failover.secret_files.iter().filter_map(unusable).collect();
    if let Some(arbiter) = &failover.arbiter {
        let unusable = Settings::load(&arbiter.servers).err();
        advice.extend(unusable.map(|why| format!("arbiter: {why}")));
    }
    for vip in &failover.vips {
        let address = vip.address.addr();
        advice.extend(match vip.hold {
            Holders::One => neigh::advice(Path::new("/proc/sys/net"), &vip.interface, address),
            Holders::All => neigh::shared_advice(Path::new("/sys/class/net"), &vip.interface, address)
                .into_iter()
                .collect(),
        });
    }
    advice.extend(failover.track.iter().filter_map(track_advice));
    advice.dedup();
    advice
}

fn track_advice(track: &Track) -> Option<String> {
    let name = &track.name;
    match &track.what {
        Tracked::Tcp(_) => None,
        Tracked::Interface(interface) => (!Path::new("/sys/class/net").join(interface).exists())
            .then(|| format!("track {name}: there is no interface `{interface}` here")),
        Tracked::Script(command) => {
            let program = command.first()?;
            match std::fs::metadata(program) {
                Err(error) => Some(format!("track {name}: {program}: {error}")),
                Ok(about) if about.is_dir() || about.permissions().mode() & 0o111 == 0 => {
                    Some(format!("track {name}: {program} cannot be executed: `chmod +x` it"))
                }
                Ok(_) => None,
            }
        }
    }
}

/// How long two nodes may hold an address, and nobody.
fn failover_bounds(failover: &Failover) -> Vec<Bound> {
    let needed = quorum(
        failover.quorum,
        failover.nodes.len(),
        failover.witnesses.len() + usize::from(failover.arbiter.is_some()),
    );
    let timers = Timers::derive(failover.beat, failover.dead_after);
    match failover.nodes.len() {
        1 => Vec::new(),
        _ if failover.arbiter.as_ref().is_some_and(|arbiter| arbiter.strict) => {
            let witnesses = failover.witnesses.len();
            strictly(bounds(&timers, failover.startup_delay, needed, witnesses), &timers)
        }
        _ => bounds(&timers, failover.startup_delay, needed, failover.witnesses.len()),
    }
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_pass_and_errors_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let rows = [
            (
                "listeners: {a: {bind: '0.0.0.0:80', pool: a}}\npools: {a: {backends: 10.0.0.1:80}}",
                ExitCode::SUCCESS,
            ),
            (
                "listeners: {a: {bind: '0.0.0.0:80', pool: a}}\npools: {a: {backends: 10.0.0.1:80}, b: {backends: 10.0.0.1:80}}",
                ExitCode::SUCCESS,
            ),
            (
                "listeners: {a: {bind: '0.0.0.0:80', pool: b}}\npools: {a: {backends: 10.0.0.1:80}}",
                ExitCode::from(3),
            ),
        ];
        for (text, expected) in rows {
            let path = dir.path().join("weir.yaml");
            std::fs::write(&path, text).unwrap();
            assert_eq!(format!("{:?}", run(&path)), format!("{expected:?}"), "{text}");
        }
        assert_eq!(format!("{:?}", run(dir.path())), format!("{:?}", ExitCode::from(3)));
    }
}
