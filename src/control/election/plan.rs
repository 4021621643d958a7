//! A configuration, ready to run: names have become indices, files have been read.

use std::io;
use std::net::IpAddr;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::links::{Identity, Peer};
use crate::config::model::{Failover, Track};
use crate::control::etcd::Settings;
use crate::failover::arbiter::Terms;
use crate::failover::table::Table;
use crate::failover::timers::{Timers, quorum};
use crate::failover::words::{self, Holders, Rule, Setup};
use crate::keeper::{Kept, Target};
use crate::sys::secret;

/// What the indices of a machine stand for.
#[derive(Clone, Serialize, Deserialize)]
pub struct Known {
    pub nodes: Vec<String>,
    pub targets: Vec<Target>,
    pub witnesses: Vec<std::net::SocketAddr>,
    pub tracks: Vec<String>,
}

/// A configuration, ready to run.
pub struct Plan {
    pub identity: Identity,
    pub targets: Vec<Target>,
    /// The same, with how each is kept.
    pub kept: Vec<Kept>,
    /// The targets' addresses, without prefix lengths.
    pub addresses: Vec<IpAddr>,
    /// The nodes' names, by index.
    pub names: Vec<String>,
    pub setup: Setup,
    pub witnesses: Vec<std::net::SocketAddr>,
    pub arbiter: Option<Settings>,
    pub tracks: Vec<Track>,
    pub notify: Vec<String>,
}

impl Plan {
    /// Reads what the configuration names: secrets, certificates.
    ///
    /// # Errors
    /// In words: one of them cannot be used, the timers cannot be kept, or a name is not known.
    pub fn new(config: &Failover, boot: u64) -> io::Result<Plan> {
        let other = |why: String| io::Error::other(why);
        let secrets = config.secret_files.iter().map(|path| secret::read(path).map_err(other));
        let secrets = secrets.collect::<io::Result<Vec<_>>>()?;
        let secrets = match (secrets.is_empty(), config.nodes.len()) {
            (false, _) => secrets,
            // It talks to nobody, and nobody can know what a stranger would have to sign with.
            (true, 1) => vec![getrandom::u64().map_err(io::Error::other)?.to_ne_bytes().to_vec()],
            (true, _) => return Err(other("failover: there is no secret".into())),
        };
        let me = config
            .nodes
            .get_index_of(&config.node)
            .ok_or_else(|| other(format!("failover.node {} is not in nodes", config.node)))?;
        let timers = Timers::derive(config.beat, config.dead_after);
        if let Some(broken) = timers.broken().first() {
            return Err(other(format!("failover: {broken}")));
        }
        let settings = config.arbiter.as_ref().map(|arbiter| Settings::load(&arbiter.servers));
        let settings = settings
            .transpose()
            .map_err(|why| other(format!("failover.arbiter: {why}")))?;
        let arbiter = config.arbiter.as_ref().map(|arbiter| words::Arbiter {
            prefix: arbiter.prefix.clone(),
            place: format!("{} {:?}", arbiter.prefix, arbiter.servers.endpoints),
            terms: Terms::derive(&timers),
            strict: arbiter.strict,
        });
        let voters = config.witnesses.len() + usize::from(arbiter.is_some());
        let nodes = config.nodes.iter().enumerate().map(|(n, (name, address))| {
            let further = config.paths.get(n).into_iter().flatten();
            Peer {
                name: name.clone(),
                addresses: std::iter::once(address).chain(further).copied().collect(),
            }
        });
        let rules = config.vips.iter().map(|vip| Rule {
            hold: vip.hold,
            prefer: vip.prefer.clone(),
            preempt: vip.preempt,
            preempt_delay: vip.preempt_delay,
            requires: vip.requires.clone(),
            group: vip.group.clone(),
        });
        let targets = config.vips.iter().map(|vip| Target {
            net: vip.address,
            interface: vip.interface.clone(),
        });
        Ok(Plan {
            identity: Identity {
                nodes: nodes.collect(),
                me,
                boot,
                secrets,
                beat: config.beat,
                dead_after: config.dead_after,
                startup_delay: config.startup_delay,
            },
            kept: config
                .vips
                .iter()
                .zip(targets.clone())
                .map(|(vip, target)| Kept {
                    target,
                    garp_refresh: vip.garp_refresh,
                    accepted: vip.hold == Holders::All,
                })
                .collect(),
            targets: targets.collect(),
            addresses: config.vips.iter().map(|vip| vip.address.addr()).collect(),
            names: config.nodes.keys().cloned().collect(),
            setup: Setup {
                me,
                names: config.nodes.keys().cloned().collect(),
                witnesses: config.witnesses.len(),
                quorum: quorum(config.quorum, config.nodes.len(), voters),
                timers,
                startup_delay: config.startup_delay,
                // Far from the end, so that numbers always rise, and far from those of the process before.
                boot: (boot >> 1).max(1),
                tracks: config
                    .track
                    .iter()
                    .map(|track| words::Track {
                        name: track.name.clone(),
                        weight: track.weight,
                        skew: track.interval + track.timeout,
                    })
                    .collect(),
                arbiter,
                vips: rules.collect(),
            },
            witnesses: config.witnesses.clone(),
            arbiter: settings,
            tracks: config.track.clone(),
            notify: config.notify.clone(),
        })
    }

    /// What the indices of its machine stand for.
    pub fn known(&self) -> Known {
        Known {
            nodes: self.names.clone(),
            targets: self.targets.clone(),
            witnesses: self.witnesses.clone(),
            tracks: self.tracks.iter().map(|track| track.what.to_string()).collect(),
        }
    }

    /// A machine for this plan that knows what `old` knew.
    pub fn carried(&self, old: &Table, was: &Known) -> Table {
        fn places<T: PartialEq>(new: &[T], old: &[T]) -> Vec<Option<usize>> {
            new.iter().map(|t| old.iter().position(|o| o == t)).collect()
        }
        let mut table = Table::new(Instant::now(), self.setup.clone());
        // Thousands of addresses, mostly in the same places.
        let at: std::collections::HashMap<&Target, usize> = was.targets.iter().zip(0..).collect();
        let vips: Vec<_> = self.targets.iter().map(|t| at.get(t).copied()).collect();
        let witnesses = places(&self.witnesses, &was.witnesses);
        let tracks = places(&self.known().tracks, &was.tracks);
        table.carry(old, &vips, &places(&self.names, &was.nodes), &witnesses, &tracks);
        table
    }
}
