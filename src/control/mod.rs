//! The control-plane shell: configuration, health, publication, administration.
//!
//! One thread owns all of its state and works off one queue of [`Input`]s; everybody else (signal handler, prober,
//! workers, admin socket, HTTP, election) only sends. Whoever asks something sends a [`Request`] with a reply channel in
//! it and waits with a timeout.
//!
//! A change of anything that workers act on ends in one [`Shared::publish`] at the end of the round that made it.

pub mod access_log;
pub mod election;
pub mod etcd;
pub mod event_log;
mod notifier;
pub mod operator;
mod phase;
mod publication;
pub mod request;
pub mod upgrade;

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, select, unbounded};

use crate::api::question::Refusal;
use crate::config::model::{self, AccessTarget};
use crate::config::{self, Budget, Config};
use crate::link::{Command, Record, Report, Shared, SpawnWorker};
use crate::relay::Cause;
use crate::snapshot::Snapshot;
use crate::sys::{limits, sandbox};

use access_log::Opened;
use election::Helpers;
use election::vips::Vips;
use notifier::Notifier;
use operator::metrics::Peak;
use operator::{admin, observer};
use phase::{Answer, Order, Phase, Why};
use publication::crew::{Crew, Hired};
use publication::endpoints::{Changes, Endpoints, Plan};
use publication::pools::{self, Pools};
use publication::probe::{NotStarted, Prober, Verdict};
use upgrade::Inheritance;
use upgrade::succession::Succession;

pub use request::{Input, Request};

/// Failures seen by real traffic that may wait.
const REPORTS_MAX: usize = 4096;
/// How often a stopping process looks whether it is idle.
const DRAIN_CHECK: Duration = Duration::from_millis(20);
/// Longest sleep.
const IDLE_MAX: Duration = Duration::from_secs(1);

/// Where the configuration comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file, read again on reload.
    File(PathBuf),
    /// The command line.
    Flags(Box<Config>),
}

impl Source {
    /// Where the configuration is, if it is in a file.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Source::File(path) => Some(path),
            Source::Flags(_) => None,
        }
    }

    /// Reads the configuration; warnings are logged.
    pub fn load(&self) -> Result<Config, config::Errors> {
        match self {
            Source::File(path) => {
                let loaded = config::load(path)?;
                for warning in &loaded.warnings {
                    log::warn!("{warning}");
                }
                Ok(loaded.config)
            }
            Source::Flags(config) => Ok((**config).clone()),
        }
    }

    fn file(&self) -> Option<String> {
        match self {
            Source::File(path) => Some(path.display().to_string()),
            Source::Flags(_) => None,
        }
    }
}

/// The control thread's state.
pub struct Control {
    source: Source,
    config: Config,
    /// Of the limit on open files when the configuration came into force: what is lowered after that shows when calls fail.
    budget: Budget,
    shared: Arc<Shared>,
    inputs: Receiver<Input>,
    reports: Receiver<Report>,
    crew: Crew,
    endpoints: Endpoints,
    pools: Pools,
    prober: Prober,
    version: u64,
    generation: u64,
    stopping: Option<Instant>,
    /// Closes when workers have closed their listening sockets.
    unlistened: Option<Receiver<()>>,
    access_log: Option<(Sender<Record>, access_log::Handle)>,
    admin: UnixListener,
    /// Kept for a successor.
    http: Option<TcpListener>,
    observer: Option<observer::Handle>,
    inputs_sender: Sender<Input>,
    peaks: HashMap<usize, Peak>,
    reload_error: Option<String>,
    reload_failures: u64,
    vips: Vips,
    succession: Succession,
    notifier: Notifier,
}

impl Control {
    /// Binds every socket that was not inherited, starts every thread and serves (or waits until its predecessor lets go).
    /// Nothing is left behind if it fails.
    pub fn start(
        source: Source,
        config: Config,
        inheritance: Inheritance,
        spawn: SpawnWorker,
        helpers: Option<Helpers>,
    ) -> anyhow::Result<(Control, Sender<Input>)> {
        let (mut succession, knowledge) = Succession::new(inheritance);
        let (sender, inputs) = unbounded();
        let (report_sender, reports) = bounded(REPORTS_MAX);
        // First of all: it finds out whether another weir is running here.
        let heirlooms = &mut succession.heirlooms;
        let admin = match heirlooms.claim_own(&admin_name(&config)) {
            Some(fd) => fd.into(),
            None => admin::bind(&config.admin)?,
        };
        let http = match heirlooms.claim_own(&http_name(&config)) {
            Some(fd) => Some(fd.into()),
            None => config.metrics.map(bind_http).transpose()?,
        };
        let access_log = access_log::start(&config.log)?;
        let records = access_log.as_ref().map(|(records, _)| records.clone());
        let shared = Shared::new(records, report_sender, Instant::now());
        let vips = Vips::new(shared.clone());
        let mut control = Control {
            vips,
            source,
            inputs,
            reports,
            crew: Crew::new(shared.clone(), spawn),
            endpoints: Endpoints::default(),
            pools: Pools::new(u64::from(std::process::id())),
            // Bounded by the budget, when there is one.
            prober: Prober::start(sender.clone(), 0)?,
            config: config.clone(),
            budget: Budget::default(),
            shared,
            version: 0,
            generation: 0,
            stopping: None,
            unlistened: None,
            access_log,
            observer: None,
            http: None,
            inputs_sender: sender.clone(),
            peaks: HashMap::new(),
            reload_error: None,
            reload_failures: 0,
            admin,
            notifier: Notifier::new(succession.is_waiting(), Instant::now()),
            succession,
        };
        match control.prepare(&config) {
            Ok(prepared) => control.put_in_force(config, prepared),
            Err(refusal) => {
                control.remove_admin();
                return Err(refusal.into());
            }
        }
        control.pools.learn(knowledge, Instant::now());
        control.http = http;
        if !control.succession.is_waiting() {
            control.observe()?;
            control.shared.note_control();
            control.vips.follow(control.config.failover.as_ref(), helpers)?;
        }
        Ok((control, sender))
    }

    /// Serves the admin socket, and HTTP if it is wanted.
    fn observe(&mut self) -> std::io::Result<()> {
        let http = self.http.as_ref().map(TcpListener::try_clone).transpose()?;
        let handle = observer::start(self.admin.try_clone()?, http, self.inputs_sender.clone())?;
        self.observer = Some(handle);
        Ok(())
    }

    /// Gets hold of what `config` asks for and what is not there yet. Nothing is changed by it; dropping the outcome gives
    /// everything back.
    fn prepare(&mut self, config: &Config) -> Result<Prepared, Refusal> {
        let workers = config.workers.unwrap_or_else(limits::cpus);
        let budget = Budget::new(config, limits::open_files(), workers);
        if let Some(refusal) = budget.refusal(config) {
            return Err(Refusal::configuration(format!("limits: {refusal}")));
        }
        if let Some(failover) = &config.failover {
            election::check(failover).map_err(|error| format!("failover: {error}"))?;
        }
        let hired = self.crew.hire(workers);
        let hired = hired.map_err(|error| format!("workers: cannot start: {error}"))?;
        let heirlooms = &mut self.succession.heirlooms;
        let share = |places| self.crew.share(places);
        let plan = self.endpoints.plan(&config.listeners, workers, heirlooms, share);
        let plan = plan.map_err(|error| error.to_string())?;
        Ok(Prepared {
            workers,
            budget,
            plan,
            hired,
        })
    }

    /// Makes `config` the one in force. Cannot fail.
    fn put_in_force(&mut self, config: Config, prepared: Prepared) {
        let Prepared {
            workers,
            budget,
            plan,
            hired,
        } = prepared;
        let lacking = self.endpoints.lacking(self.crew.size(), workers);
        self.crew.admit(hired);
        self.prober
            .set_sockets_max((budget.probes * config::FDS_PER_PROBE) as usize);
        self.pools
            .configure(&config.pools, workers, budget.probes as usize, Instant::now());
        let Changes {
            dealt,
            closed_streams,
            closed_datagrams,
        } = self.endpoints.commit(plan, &config, workers);
        // Whoever waits in a queue is served by the listener that he came to: before workers learn that it is gone.
        self.crew.unlisten_and_wait(&closed_streams);
        self.generation += 1;
        self.config = config;
        self.budget = budget;
        self.publish();
        self.crew.settle(self.succession.hold(dealt), Vec::new());
        // A socket that takes the place of another one at the same address must be there before that one goes.
        self.crew.unlisten_and_wait(&closed_datagrams);
        // After that: what is closed moves no more.
        for (listener, local, positions) in lacking {
            self.crew.spread(listener, &local, positions);
        }
        self.crew.retire(workers);
    }

    fn publish(&mut self) {
        self.version += 1;
        self.shared.publish(Arc::new(Snapshot {
            version: self.version,
            generation: self.generation,
            listeners: self.endpoints.listeners(),
            pools: self.pools.publish(Instant::now()),
            connections_max: self.budget.connections as u32,
            connections_stated: self.config.limits.connections.is_some(),
            sessions_max: self.budget.sessions as u32,
            interim: self.config.log.interim,
        }));
    }

    /// What workers and control share.
    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Names and addresses of all bound sockets.
    pub fn bound(&self) -> impl Iterator<Item = (&str, &crate::link::Local)> {
        self.endpoints.bound()
    }

    /// Serves until told to stop.
    pub fn run(mut self) -> anyhow::Result<()> {
        for (ix, (name, local)) in self.endpoints.bound().enumerate() {
            log::info!("listening: {name} {local}");
            // Thousands of them are more than may wait; who does not read in a second loses some.
            if ix % 1024 == 1023 {
                event_log::finish();
            }
        }
        self.announce()?;
        log::info!("ready");
        let status = self.status_line();
        self.notifier.ready(status);
        let mut failure = None;
        loop {
            let now = Instant::now();
            self.shared.note_control();
            self.follow_pools(now);
            self.crew.reap();
            self.show_life(now);
            if self.stopping.is_none() && self.vips.is_useless() {
                log::error!(
                    "the keeper of the VIPs has ended and its privileges with it: this process ends, to be started again"
                );
                failure = Some("the keeper of the VIPs has ended");
                self.begin_stop();
            }
            if self.stopping.is_some_and(|deadline| self.is_idle() || now >= deadline) {
                break;
            }
            let wait = match self.stopping {
                Some(_) => DRAIN_CHECK,
                None => self
                    .pools
                    .deadline(now)
                    .map_or(IDLE_MAX, |at| at.saturating_duration_since(now)),
            };
            let wait = self
                .notifier
                .deadline()
                .map_or(wait, |at| wait.min(at.saturating_duration_since(now)));
            select! {
                recv(self.inputs) -> input => match input {
                    Ok(input) => if !self.handle(input) { break },
                    Err(_) => break,
                },
                recv(self.reports) -> report => if let Ok(report) = report {
                    self.pools.on_report(&report);
                },
                default(wait.min(IDLE_MAX)) => {}
            }
        }
        self.crew.all(|| Command::ShedAll(Cause::Shutdown));
        self.crew.stop();
        self.vips.stop();
        self.observer = None;
        self.remove_admin();
        if let Some((_, log)) = self.access_log.take() {
            log.finish();
        }
        match failure {
            Some(reason) => Err(anyhow::anyhow!(reason)),
            None => Ok(()),
        }
    }

    /// Lets time do its work on pools, and workers know what came of that and of orders.
    fn follow_pools(&mut self, now: Instant) {
        let changed = self.pools.tick(now);
        self.start_probes(now);
        if changed {
            self.publish();
        }
        // After that: a worker that sheds does not choose that backend again.
        for shed in self.pools.take_shed() {
            self.shed(shed);
        }
        self.pools.tell();
    }

    /// Has probes carried out that are due.
    fn start_probes(&mut self, now: Instant) {
        for probe in self.pools.take_probes() {
            let run = probe.run;
            match self.prober.start_probe(probe) {
                Ok(()) => {}
                Err(NotStarted::Busy) => self.pools.on_verdict(&Verdict::untried(run), now),
                Err(NotStarted::Gone) => {
                    log::error!("the prober has ended: starting another");
                    if let Err(error) = self.prober.restart() {
                        log::error!("prober: {error}");
                    }
                    return self.pools.on_probes_lost(now);
                }
            }
        }
    }

    /// Removes the admin socket's file, unless another process serves there.
    fn remove_admin(&self) {
        if self.succession.is_in_office() {
            admin::remove(&self.admin);
        }
    }

    /// Whether workers have accepted what was queued on the sockets that they were told to close, and nothing is open any more.
    fn is_idle(&mut self) -> bool {
        if self.succession.is_upgrading() {
            return false;
        }
        if let Some(unlistened) = &self.unlistened
            && unlistened.try_recv() != Err(TryRecvError::Disconnected)
        {
            return false;
        }
        self.unlistened = None;
        self.shared.process.connections.get() == 0 && self.shared.process.udp_sessions.get() == 0
    }

    /// False ends the process.
    fn handle(&mut self, input: Input) -> bool {
        match input {
            Input::Verdict(verdict) => self.pools.on_verdict(&verdict, Instant::now()),
            Input::Signal(libc::SIGHUP) => {
                let _ = self.reload();
            }
            Input::Signal(libc::SIGUSR2) => self.begin_upgrade(),
            Input::Upgrade(event) => return self.on_upgrade(event),
            Input::Signal(_) => match phase::answer(Order::Stop, self.phase()) {
                Answer::End => return false,
                Answer::Already => {
                    self.succession.note_stop();
                    log::info!("stopping, as soon as the connections that are left have finished");
                }
                _ => self.begin_stop(),
            },
            Input::Request(request) => self.answer(request),
        }
        true
    }

    /// Where this process is in its life.
    fn phase(&self) -> Phase {
        match self.succession.phase() {
            Phase::Serving | Phase::Arriving | Phase::Upgrading if self.stopping.is_some() => Phase::Stopping,
            phase => phase,
        }
    }

    /// Whether an order is taken at this time. Whoever gave it by signal finds the reason in the log.
    fn admit(&self, order: Order) -> Result<(), Why> {
        match phase::answer(order, self.phase()) {
            Answer::Refuse(why) => {
                let word = format!("{order:?}").to_lowercase();
                log::warn!("{word} refused: {why}");
                Err(why)
            }
            _ => Ok(()),
        }
    }

    fn begin_stop(&mut self) {
        let grace = self.config.shutdown_grace;
        let open = self.shared.process.connections.get();
        log::info!(
            "stopping: {open} connections may finish within {}",
            humantime::format_duration(grace)
        );
        // First of all: the next node takes over while this one still serves.
        self.vips.stop();
        self.stopping = Some(Instant::now() + grace);
        self.succession.abandon();
        self.notifier
            .stopping(format!("stopping: {open} connections may finish"));
        self.crew.unlisten(&self.endpoints.close_all());
        self.unlistened = Some(self.crew.barrier());
    }

    /// One line for the service manager.
    fn status_line(&self) -> String {
        let mut line = format!(
            "generation {}: {} listeners, {} connections, {} UDP sessions",
            self.generation,
            self.config.listeners.len(),
            self.shared.process.connections.get(),
            self.shared.process.udp_sessions.get(),
        );
        let errors = [
            ("reload refused", &self.reload_error),
            ("upgrade failed", &self.succession.error),
        ];
        for (what, error) in errors {
            if let Some(error) = error {
                line = format!("{what}: {error}; {line}");
            }
        }
        line
    }

    /// Signs of life for the service manager, as long as every worker turns.
    fn show_life(&mut self, now: Instant) {
        let epoch = self.shared.epoch;
        let busy = self.crew.handles().filter_map(|worker| {
            let since_ms = worker.stats.busy_since_ms.get();
            let since = epoch.checked_add(Duration::from_millis(since_ms))?;
            Some((worker.id, now.saturating_duration_since(since)))
        });
        self.notifier.feed(now, busy);
        if self.notifier.wants_status(now) {
            let status = self.status_line();
            self.notifier.status(status);
        }
    }

    fn reload(&mut self) -> Result<String, Refusal> {
        if let Err(why) = self.admit(Order::Reload) {
            // A service manager that has sent HUP waits until it hears of the reload.
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
                log::info!("reloaded: generation {}", self.generation);
                Ok(format!("generation {}", self.generation))
            }
            Err(mut refusal) => {
                refusal.reason += sandbox::hint(&refusal.reason);
                log::error!("reload refused, the old configuration stays in force: {refusal}");
                self.reload_failures += 1;
                self.reload_error = Some(refusal.reason.clone());
                Err(refusal)
            }
        }
    }

    /// Replaces the running configuration. Everything that can fail comes first, and the election, which is asked and
    /// follows in one step, is the last of it.
    fn replace(&mut self, config: Config) -> Result<(), Refusal> {
        if config.admin != self.config.admin {
            return Err(Refusal::configuration("admin: moving the admin socket needs a restart"));
        }
        let http = match config.metrics == self.config.metrics {
            true => None,
            false => Some(config.metrics.map(bind_http).transpose()?),
        };
        // Also when it is the same file: it may have been rotated.
        let log = config.log.clone();
        let records = Opened::new(&log.access, log.format).map_err(|error| error.to_string())?;
        let prepared = self.prepare(&config)?;
        self.vips
            .follow(config.failover.as_ref(), None)
            .map_err(|error| format!("failover: {error}"))?;
        self.put_in_force(config, prepared);
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

    /// Serves HTTP elsewhere, or nowhere. Whoever asked over the old socket hears the answer.
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

    fn shed(&mut self, shed: pools::Shed) {
        // Divided evenly: the workers hold about equal numbers of a backend's connections.
        let workers = self.crew.handles().count();
        for (ix, handle) in self.crew.handles().enumerate() {
            let turn = (ix + shed.first % workers) % workers;
            let count = shed.count / workers + usize::from(turn < shed.count % workers);
            if count > 0 {
                handle.send(Command::Shed {
                    backend: shed.backend,
                    protocol: shed.protocol,
                    count,
                    cause: shed.cause,
                });
            }
        }
    }
}

/// What a configuration asks for, at hand and not in use yet.
struct Prepared {
    workers: usize,
    budget: Budget,
    plan: Plan,
    hired: Hired,
}

/// What the admin socket is called in an upgrade.
fn admin_name(config: &Config) -> String {
    format!("admin {}", config.admin.display())
}

/// What the socket of the metrics is called in an upgrade.
fn http_name(config: &Config) -> String {
    match config.metrics {
        Some(address) => format!("metrics {address}"),
        None => String::new(),
    }
}

fn bind_http(address: SocketAddr) -> Result<TcpListener, Refusal> {
    TcpListener::bind(address).map_err(|error| format!("metrics: cannot bind {address}: {error}").into())
}
