//! One configuration replaced by another: whole, or not at all.
//!
//! Everything that can fail comes first and changes nothing: reading, checking, binding, starting workers, opening the log
//! ([`Control::prepare`], whose outcome gives everything back when it is dropped). The rest cannot fail ([`Control::commit`]). The
//! election is prepared before and follows after: the pools that its addresses require must be published first.

use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Instant;

use super::access_log::Opened;
use super::amend;
use super::capacity::Capacity;
use super::election;
use super::event_log;
use super::events;
use super::life::Life;
use super::operator::http;
use super::phase::{Operation, Phase};
use super::publication::endpoints::{Changes, PreparedEndpoints};
use super::publication::probe::tls::{self, Secured};
use super::publication::workers::NewWorkers;
use super::returns;
use super::thread::Control;
use crate::api::question::Refusal;
use crate::config::model::{self, AccessTarget};
use crate::config::{Config, FDS_PER_PROBE};
use crate::snapshot::Snapshot;
use crate::sys::{route, sandbox};

impl Control {
    /// Acquires what `config` needs and what is not there yet. It changes nothing; dropping the outcome gives everything back.
    pub(super) fn prepare(&mut self, config: &Config, capacity: Capacity) -> Result<Prepared, Refusal> {
        if let Some(failover) = &config.failover {
            election::check(failover).map_err(|error| format!("failover: {error}"))?;
        }
        let discovery = self.discovery.prepare(config);
        discovery.map_err(|error| format!("members: {error}"))?;
        let secured = tls::load(&config.pools)?;
        let workers = capacity.workers;
        let new = self.engines.workers.start(workers);
        let new = new.map_err(|error| format!("workers: cannot start: {error}"))?;
        let inherited = &mut self.upgrade.inherited;
        let duplicate = |endpoints| self.engines.workers.duplicate(endpoints);
        let owner = |listener: &model::Listener| self.engines.owner(listener);
        let endpoints = self
            .endpoints
            .prepare(&config.listeners, workers, inherited, owner, duplicate);
        let endpoints = endpoints.map_err(|error| error.to_string())?;
        self.engines.prepare(config)?;
        self.returns.prepare(config, Instant::now())?;
        if let Some(pool) = config.marking_pool() {
            route::may_mark().map_err(|error| {
                let key = format!("pools.{}.connect.mark", pool.policy.name);
                format!(
                    "{key}: this process may not mark packets ({error}): {}; a running one takes a restart",
                    returns::REMEDY
                )
            })?;
        }
        Ok(Prepared {
            capacity,
            endpoints,
            new,
            secured,
        })
    }

    /// Makes `config` the one in force. Cannot fail.
    pub(super) fn commit(&mut self, config: Config, prepared: Prepared) {
        let Prepared {
            capacity,
            endpoints,
            new,
            secured,
        } = prepared;
        let workers = capacity.workers;
        let lacking = self.endpoints.lacking(self.engines.workers.size(), workers);
        self.engines.workers.activate(new);
        let probes = capacity.budget.probes;
        self.prober.set_sockets_max((probes * FDS_PER_PROBE) as usize);
        self.pools.secure(secured);
        self.discovery.follow(&config, |pool| self.pools.members(pool));
        let pools = self.discovery.fill(&config.pools);
        let pools = amend::reloaded(&mut self.amended, &config, pools);
        self.pools.configure(&pools, workers, probes as usize, Instant::now());
        let Changes {
            assigned,
            closed_streams,
            closed_datagrams,
        } = self.endpoints.commit(endpoints, &config, workers);
        self.generation += 1;
        self.config = config;
        self.budget = capacity.budget;
        let snapshot = self.next_snapshot();
        self.returns.follow(&snapshot, Instant::now());
        self.engines.adopt_beside_workers(&snapshot);
        // Clients in a queue are served by the listener that they connected to: before workers learn that it is gone.
        self.engines.workers.close_and_wait(&closed_streams);
        self.engines.workers.adopt(&snapshot);
        self.engines.workers.serve(self.upgrade.hold(assigned), Vec::new());
        // A socket that takes the place of another one at the same address must be there before that one goes.
        self.engines.workers.close_and_wait(&closed_datagrams);
        // After that, so that no socket moves that is about to be closed.
        for (endpoint, positions) in lacking {
            self.engines.workers.spread(&endpoint, positions);
        }
        self.engines.workers.retire(workers);
    }

    /// Engines act on what is in force now.
    pub(super) fn publish(&mut self) {
        let snapshot = self.next_snapshot();
        self.returns.follow(&snapshot, Instant::now());
        self.engines.adopt(&snapshot);
    }

    /// What is in force now, under the next version.
    fn next_snapshot(&mut self) -> Arc<Snapshot> {
        self.version += 1;
        Arc::new(Snapshot {
            version: self.version,
            generation: self.generation,
            listeners: self.endpoints.listeners(),
            pools: self.pools.publish(Instant::now()),
            connections_max: self.budget.connections as u32,
            connections_stated: self.config.limits.connections.is_some(),
            sessions_max: self.budget.sessions as u32,
            sessions_stated: self.config.limits.udp_sessions.is_some(),
            interim: self.config.log.interim,
        })
    }

    /// Reads the configuration again and puts it in force.
    pub(super) fn reload(&mut self) -> Result<String, Refusal> {
        if let Err(why) = self.admit(Operation::Reload) {
            // systemd has sent HUP and waits until the reload is over.
            if self.phase() == Phase::Upgrading {
                self.notifier.reloading();
                self.notifier.ready(self.status_line());
            }
            return Err(why.to_string().into());
        }
        self.notifier.reloading();
        let outcome = self.read_again();
        let status = self.status_line();
        self.notifier.ready(status);
        outcome
    }

    fn read_again(&mut self) -> Result<String, Refusal> {
        let outcome = self
            .source
            .load()
            .map_err(Refusal::configuration)
            .and_then(|config| self.replace(config));
        match outcome {
            Ok(()) => {
                self.reload_error = None;
                events::tell(&Life::Reload {
                    generation: self.generation,
                });
                Ok(format!("generation {}", self.generation))
            }
            Err(mut refusal) => {
                refusal.reason += sandbox::hint(&refusal.reason);
                events::tell(&Life::ReloadRefused {
                    reason: refusal.reason.clone(),
                });
                self.reload_failures += 1;
                self.reload_error = Some(refusal.reason.clone());
                Err(refusal)
            }
        }
    }

    /// Replaces the running configuration. Everything that can fail comes first; the election follows when everything that it
    /// speaks of is there.
    fn replace(&mut self, config: Config) -> Result<(), Refusal> {
        if config.admin != self.config.admin {
            return Err(Refusal::configuration("admin: moving the admin socket needs a restart"));
        }
        let http = match config.metrics == self.config.metrics {
            true => None,
            false => Some(config.metrics.map(http::bind).transpose()?),
        };
        // Also when it is the same file: it may have been rotated.
        let log = config.log.clone();
        let records = Opened::new(&log.access, log.format).map_err(|error| error.to_string())?;
        let prepared = self.prepare(&config, Capacity::measure(&config)?)?;
        let change = self
            .vips
            .prepare(config.failover.as_ref(), None)
            .map_err(|error| format!("failover: {error}"))?;
        self.commit(config, prepared);
        // Only now are the pools there that the addresses require.
        if let Err(error) = self.vips.commit(change) {
            log::error!("failover: {error}; it goes on as before");
        }
        if let Some(http) = http
            && let Err(error) = self.move_http(http)
        {
            log::error!("metrics: {error}");
        }
        event_log::follow(&log);
        if let Err(error) = self.follow_log(&log, records) {
            log::error!("access log: {error}; it goes on as before");
        }
        Ok(())
    }

    /// Serves HTTP elsewhere, or nowhere. Requests under way on the old socket are answered.
    fn move_http(&mut self, http: Option<TcpListener>) -> std::io::Result<()> {
        let served = http.as_ref().map(TcpListener::try_clone).transpose()?;
        self.http = http;
        match &self.observer {
            Some(observer) => observer.set_http(served),
            None => Ok(()),
        }
    }

    /// Brings the access log in line with the configuration.
    fn follow_log(&mut self, log: &model::Log, opened: Opened) -> std::io::Result<()> {
        let wanted = log.access != AccessTarget::Off;
        let outcome = match &self.access_log {
            Some((_, handle)) if wanted => handle.retarget(opened),
            None if wanted => opened.start().map(|started| self.access_log = Some(started)),
            _ => Ok(()),
        };
        let records = self
            .access_log
            .as_ref()
            .filter(|_| wanted)
            .map(|(records, _)| records.clone());
        self.shared.set_records(records);
        outcome
    }
}

/// What a configuration asks for, at hand and not in use yet.
pub(super) struct Prepared {
    capacity: Capacity,
    endpoints: PreparedEndpoints,
    new: NewWorkers,
    secured: HashMap<String, Secured>,
}
