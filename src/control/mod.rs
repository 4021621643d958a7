//! The control-plane shell: configuration, health, publication, administration.
//!
//! One thread owns all of its state and works off one queue of [`Input`]s; everybody else (signal handler, prober,
//! workers, admin socket, HTTP, election) only sends. Whoever asks something sends a [`Request`] with a reply channel in
//! it and waits with a timeout.
//!
//! A change of anything that workers act on ends in one [`Shared::publish`] at the end of the round that made it.

pub mod access_log;
mod crew;
mod endpoints;
mod pools;
pub mod probe;
pub mod request;
mod sockets;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select, unbounded};

use crate::config::{self, Budget, Config};
use crate::link::{Command, Report, Shared};
use crate::relay::Cause;
use crate::snapshot::Snapshot;
use crate::sys::limits;

use crew::Crew;
use endpoints::Endpoints;
use pools::Pools;
use probe::Prober;
pub use request::{BackendOrder, Input, Request, VipOrder};

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
}

/// The control thread's state.
pub struct Control {
    source: Source,
    config: Config,
    shared: Arc<Shared>,
    inputs: Receiver<Input>,
    reports: Receiver<Report>,
    crew: Crew,
    endpoints: Endpoints,
    pools: Pools,
    version: u64,
    generation: u64,
    stopping: Option<Instant>,
    access_log: Option<access_log::Handle>,
}

impl Control {
    /// Binds every socket, starts every thread and serves. Nothing is left behind if it fails.
    pub fn start(source: Source, config: Config) -> anyhow::Result<(Control, Sender<Input>)> {
        let (sender, inputs) = unbounded();
        let (report_sender, reports) = bounded(REPORTS_MAX);
        let access = access_log::start(&config.log)?;
        let (records, access_log) = access.unzip();
        let shared = Shared::new(records, report_sender, Instant::now());
        let mut control = Control {
            source,
            inputs,
            reports,
            crew: Crew::new(shared.clone()),
            endpoints: Endpoints::default(),
            pools: Pools::new(Prober::start(sender.clone())?),
            config: config.clone(),
            shared,
            version: 0,
            generation: 0,
            stopping: None,
            access_log,
        };
        control.apply(config)?;
        Ok((control, sender))
    }

    /// Makes `config` the one in force. What cannot be had is found out before anything is changed.
    fn apply(&mut self, config: Config) -> anyhow::Result<()> {
        let workers = config.workers.unwrap_or_else(limits::cpus);
        let budget = Budget::new(&config, limits::open_files(), workers);
        if let Some(refusal) = budget.refusal(&config) {
            anyhow::bail!("limits: {refusal}");
        }
        let plan = self.endpoints.plan(&config.listeners, workers)?;
        self.crew.resize(workers, budget.pipes as usize)?;
        self.pools.configure(&config.pools, workers, Instant::now());
        let (dealt, closed) = self.endpoints.commit(plan, &config.listeners, workers);
        self.generation += 1;
        self.config = config;
        self.publish();
        self.crew.listen(dealt);
        for (listener, local) in closed {
            self.crew.all(|| Command::Unlisten(listener, local.clone()));
        }
        Ok(())
    }

    fn publish(&mut self) {
        self.version += 1;
        let workers = self.crew.size();
        let budget = Budget::new(&self.config, limits::open_files(), workers);
        self.shared.publish(Arc::new(Snapshot {
            version: self.version,
            generation: self.generation,
            listeners: self.endpoints.listeners(),
            pools: self.pools.publish(Instant::now()),
            connections_max: budget.connections as u32,
            connections_stated: self.config.limits.connections.is_some(),
            sessions_max: budget.sessions as u32,
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
        for (name, local) in self.endpoints.bound() {
            log::info!("listening: {name} {local}");
        }
        log::info!("ready");
        loop {
            let now = Instant::now();
            let changed = self.pools.tick(now);
            for shed in self.pools.take_shed() {
                self.shed(shed);
            }
            if changed {
                self.publish();
            }
            self.crew.reap();
            if self
                .stopping
                .is_some_and(|deadline| self.is_idle() || now >= deadline)
            {
                break;
            }
            let wait = match self.stopping {
                Some(_) => DRAIN_CHECK,
                None => self
                    .pools
                    .deadline(now)
                    .map_or(IDLE_MAX, |at| at.saturating_duration_since(now)),
            };
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
        if let Some(log) = self.access_log.take() {
            drop(self.shared);
            log.finish();
        }
        Ok(())
    }

    fn is_idle(&self) -> bool {
        self.shared.process.connections.get() == 0 && self.shared.process.udp_sessions.get() == 0
    }

    /// False ends the process.
    fn handle(&mut self, input: Input) -> bool {
        match input {
            Input::Verdict(verdict) => self.pools.on_verdict(&verdict, Instant::now()),
            Input::Signal(libc::SIGHUP) => {
                let _ = self.reload();
            }
            Input::Signal(_) if self.stopping.is_some() => return false,
            Input::Signal(_) => self.begin_stop(),
            Input::Request(request) => self.answer(request),
        }
        true
    }

    fn begin_stop(&mut self) {
        let grace = self.config.shutdown_grace;
        let open = self.shared.process.connections.get();
        log::info!(
            "stopping: {open} connections may finish within {}",
            humantime::format_duration(grace)
        );
        self.stopping = Some(Instant::now() + grace);
        for (listener, local) in self.endpoints.close_all() {
            self.crew.all(|| Command::Unlisten(listener, local.clone()));
        }
    }

    fn reload(&mut self) -> Result<String, String> {
        let outcome = self
            .source
            .load()
            .map_err(|errors| errors.to_string())
            .and_then(|config| self.apply(config).map_err(|error| format!("{error:#}")));
        match outcome {
            Ok(()) => {
                log::info!("reloaded: generation {}", self.generation);
                Ok(format!("generation {}", self.generation))
            }
            Err(error) => {
                log::error!("reload refused, the old configuration stays in force: {error}");
                Err(error)
            }
        }
    }

    fn shed(&self, shed: pools::Shed) {
        // Divided evenly: the workers hold about equal numbers of a backend's connections.
        let workers = self.crew.handles().count();
        for (ix, handle) in self.crew.handles().enumerate() {
            let count = shed.count / workers + usize::from(ix < shed.count % workers);
            if count > 0 {
                handle.send(Command::Shed {
                    backend: shed.backend,
                    count,
                    cause: shed.cause,
                });
            }
        }
    }

    fn answer(&mut self, request: Request) {
        match request {
            Request::Reload { reply } => drop(reply.send(self.reload())),
            Request::Backend {
                pool,
                name,
                order,
                reply,
            } => {
                let _ = reply.send(self.pools.order(&pool, &name, order, Instant::now()));
            }
            _ => {}
        }
    }
}
