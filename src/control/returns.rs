//! Which rules bring answers to clients whose addresses were kept back to this host, and when one may go.
//!
//! A rule is there before workers know the backend that it is for. It stays for as long as anything is open at a backend that has
//! left, and [`LINGER`] longer, while the kernel ends its last connections.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::config::model::{BackendAddress, Bind, ClientAddress, Listener, Protocol};
use crate::keeper::returns::ReturnsHandle;
use crate::link::Inherit;
use crate::snapshot::{Owner, Snapshot};
use crate::stats::BackendStats;
use crate::sys::route;
use crate::sys::rules::Rule;

/// How long a rule outlives the last connection that needed it.
const LINGER: Duration = Duration::from_secs(5);

/// As what a successor inherits the channel. Another way of speaking to the keeper takes another name: whoever does not find the one
/// that it knows refuses to take over.
const NAME: &str = "keeper.returns";

/// What a process without privileges is told.
pub const REMEDY: &str = "start weir as root or give the service AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW";

/// The rules that are there, and who needs them.
#[derive(Debug, Default)]
pub struct Returns {
    keeper: Option<ReturnsHandle>,
    rules: HashMap<Rule, Need>,
}

/// Why a rule is there.
#[derive(Debug)]
struct Need {
    /// New connections may need it.
    wanted: bool,
    /// Of the backends that it is for.
    stats: Vec<Arc<BackendStats>>,
    /// When it was last known to be needed.
    at: Instant,
}

impl Returns {
    /// With a keeper of its own, or that of a predecessor, if there is one.
    pub fn new(own: Option<ReturnsHandle>, inherit: Inherit) -> Returns {
        Returns {
            keeper: own.or_else(|| inherit(NAME).map(ReturnsHandle::from)),
            rules: HashMap::new(),
        }
    }

    /// Makes the rules of a configuration that are not there. What is not [followed](Returns::follow) soon goes again.
    ///
    /// # Errors
    /// What is missing, with the key that asks for it.
    pub fn prepare(&mut self, config: &Config, now: Instant) -> Result<(), String> {
        let Some((_, pool)) = config.kept_pools().next() else {
            return Ok(());
        };
        let key = format!("pools.{}.client_address", pool.policy.name);
        route::may_be_transparent().map_err(|error| {
            format!("{key}: this process may not use addresses of clients ({error}): {REMEDY}; a running one takes a restart")
        })?;
        let rules = config.kept_pools().flat_map(|(listener, pool)| {
            let backends = pool.backends.iter();
            backends.flat_map(|backend| rules(listener, &backend.address))
        });
        let rules: Vec<Rule> = rules.collect();
        self.make(&rules, now).map_err(|why| format!("{key}: {why}"))
    }

    /// Makes the rules that a snapshot takes, and notes which ones it does without.
    pub fn follow(&mut self, snapshot: &Snapshot, now: Instant) {
        let wanted = wanted(snapshot);
        if wanted.is_empty() && self.rules.is_empty() {
            return;
        }
        let rules: Vec<Rule> = wanted.keys().copied().collect();
        if let Err(why) = self.make(&rules, now) {
            log::error!("client_address: keep: {why}; answers of the backends concerned do not arrive");
        }
        for (rule, need) in &mut self.rules {
            match wanted.get(rule) {
                Some(stats) => {
                    need.wanted = true;
                    need.at = now;
                    need.stats.retain(|known| known.active.get() > 0);
                    for stats in stats {
                        if !need.stats.iter().any(|known| Arc::ptr_eq(known, stats)) {
                            need.stats.push(stats.clone());
                        }
                    }
                }
                None => need.wanted = false,
            }
        }
    }

    /// Removes rules that nobody needs any more.
    pub fn tick(&mut self, now: Instant) {
        let mut over = Vec::new();
        for (rule, need) in &mut self.rules {
            if need.wanted || need.stats.iter().any(|stats| stats.active.get() > 0) {
                need.at = now;
            } else if now.saturating_duration_since(need.at) >= LINGER {
                over.push(*rule);
            }
        }
        let Some(keeper) = self.keeper.as_ref().filter(|_| !over.is_empty()) else {
            return;
        };
        match keeper.remove(&over) {
            Ok(()) => self.rules.retain(|rule, _| !over.contains(rule)),
            Err(why) => log::warn!("client_address: keep: {why}"),
        }
    }

    /// Whether the process that makes rules is gone, although they are needed.
    pub fn is_useless(&self) -> bool {
        let wanted = self.rules.values().any(|need| need.wanted);
        wanted && self.keeper.as_ref().is_some_and(ReturnsHandle::has_ended)
    }

    /// What a successor needs. This process keeps its own channel, and its rules, until it ends.
    pub fn hand_over(&self) -> std::io::Result<Option<(String, OwnedFd)>> {
        let shared = self.keeper.as_ref().map(ReturnsHandle::share).transpose()?;
        Ok(shared.map(|channel| (NAME.to_string(), channel)))
    }

    fn make(&mut self, rules: &[Rule], now: Instant) -> Result<(), String> {
        let Some(keeper) = &self.keeper else {
            return Err(
                "the process that makes the rules for it is started with weir, which began without: it needs a restart"
                    .into(),
            );
        };
        let missing = rules.iter().filter(|rule| !self.rules.contains_key(rule));
        let missing: Vec<Rule> = missing.copied().collect();
        if missing.is_empty() {
            return Ok(());
        }
        keeper.add(&missing)?;
        for rule in missing {
            let need = Need {
                wanted: false,
                stats: Vec::new(),
                at: now,
            };
            self.rules.insert(rule, need);
        }
        Ok(())
    }
}

/// The rules of a snapshot, each with the statistics of the backends that it is for.
fn wanted(snapshot: &Snapshot) -> HashMap<Rule, Vec<Arc<BackendStats>>> {
    let mut wanted: HashMap<Rule, Vec<Arc<BackendStats>>> = HashMap::new();
    let proxied = snapshot.listeners.iter().filter(|l| l.owner == Owner::WORKERS);
    for listener in proxied {
        let pools = listener.config.pools().filter_map(|ix| snapshot.pools.get(ix));
        let kept = pools.filter(|pool| pool.config.client_address == ClientAddress::Keep);
        for backend in kept.flat_map(|pool| &pool.backends) {
            for rule in rules(&listener.config, &backend.config.address) {
                wanted.entry(rule).or_default().push(backend.stats.clone());
            }
        }
    }
    wanted
}

/// What a backend sends to clients of a listener.
fn rules(listener: &Listener, backend: &BackendAddress) -> Vec<Rule> {
    let udp = listener.protocol == Protocol::Udp;
    match backend {
        BackendAddress::Ip(address) => vec![Rule {
            from: address.ip(),
            udp,
            ports: (address.port(), address.port()),
        }],
        BackendAddress::SamePort(ip) => {
            let ports = listener.bind.iter().filter_map(|bind| match bind {
                // The kernel chooses one.
                Bind::Ip { ports, .. } if *ports.start() == 0 => Some((1, u16::MAX)),
                Bind::Ip { ports, .. } => Some((*ports.start(), *ports.end())),
                Bind::Unix(_) => None,
            });
            let mut ports: Vec<(u16, u16)> = ports.collect();
            ports.sort_unstable();
            ports.dedup();
            ports.into_iter().map(|ports| Rule { from: *ip, udp, ports }).collect()
        }
        BackendAddress::Unix(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    /// Columns: a listener, a backend, the rules.
    #[test]
    fn what_a_backend_sends_to_clients() {
        let rows = [
            (
                "bind: '10.0.0.9:80'",
                "10.0.0.1:8080",
                "from 10.0.0.1 ipproto tcp sport 8080-8080",
            ),
            (
                "protocol: udp, bind: ['10.0.0.9:53', '10.0.0.8:53']",
                "10.0.0.1:53",
                "from 10.0.0.1 ipproto udp sport 53-53",
            ),
            (
                "bind: ['10.0.0.9:80', '10.0.0.9:8000-8010', '10.0.0.8:80']",
                "10.0.0.1",
                "from 10.0.0.1 ipproto tcp sport 80-80, from 10.0.0.1 ipproto tcp sport 8000-8010",
            ),
            (
                "bind: '10.0.0.9:0'",
                "10.0.0.1",
                "from 10.0.0.1 ipproto tcp sport 1-65535",
            ),
            (
                "bind: '[2001:db8::9]:80'",
                "[2001:db8::1]:80",
                "from 2001:db8::1 ipproto tcp sport 80-80",
            ),
        ];
        for (listener, backend, expected) in rows {
            let text = format!(
                "listeners: {{l: {{{listener}, pool: p}}}}\n\
                 pools: {{p: {{client_address: keep, health: {{port: 22}}, backends: ['{backend}']}}}}"
            );
            let config = config::parse("f", &text).unwrap().config;
            let (listener, pool) = config.kept_pools().next().unwrap();
            let rules = rules(listener, &pool.backends[0].address);
            let rules: Vec<String> = rules.iter().map(Rule::to_string).collect();
            assert_eq!(rules.join(", "), expected, "{text}");
        }
    }

    /// A backend that has left keeps its rule while anything is open there, and a while longer.
    #[test]
    fn a_rule_is_needed_by_what_is_open() {
        let rule = Rule {
            from: "10.0.0.1".parse().unwrap(),
            udp: false,
            ports: (80, 80),
        };
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let stats = BackendStats::new(1);
        stats.active.raise();
        let need = Need {
            wanted: false,
            stats: vec![stats.clone()],
            at: start,
        };
        let mut returns = Returns {
            keeper: None,
            rules: HashMap::from([(rule, need)]),
        };
        let at = |returns: &Returns| returns.rules[&rule].at;
        returns.tick(start + 100 * second);
        assert_eq!(at(&returns), start + 100 * second);
        stats.active.lower();
        returns.tick(start + 101 * second);
        assert_eq!(at(&returns), start + 100 * second);
    }
}
