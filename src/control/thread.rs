//! The control thread: its state, its start, its rounds and its end.

use std::collections::HashMap;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded, select};

use super::Processes;
use super::access_log;
use super::amend::{self, Amended};
use super::capacity::Capacity;
use super::discovery::{Changed, Discovery};
use super::election::vips::Vips;
use super::engines::Engines;
use super::event_log;
use super::events;
use super::leaving::Leaving;
use super::life::Life;
use super::notifier::Notifier;
use super::operator::metrics::Peak;
use super::operator::{admin, http, observer};
use super::phase::{self, Answer, Operation, Phase, Why};
use super::publication::endpoints::Endpoints;
use super::publication::pools::Pools;
use super::publication::probe::{NotStarted, Prober, Verdict};
use super::publication::workers::Workers;
use super::request::Input;
use super::returns::Returns;
use super::source::Source;
use super::upgrade::{Inheritance, State as Upgrade};
use crate::config::{Budget, Config};
use crate::link::{Failure, Record, Shared, SpawnWorker, StartEngine};

/// Inputs that may wait: more than all probes, clients and steps of an upgrade together. Further signals wait in the kernel.
const INPUTS_MAX: usize = 4096;
/// Failures seen by real traffic that may wait.
const FAILURES_MAX: usize = 4096;
/// How long a start waits for the first answers of sources of members.
const MEMBERS_MAX: Duration = Duration::from_secs(3);
/// How often a stopping process looks whether it is idle.
const DRAIN_CHECK: Duration = Duration::from_millis(20);
/// Longest time that the thread sleeps without a message.
const IDLE_MAX: Duration = Duration::from_secs(1);

/// The control thread's state.
pub struct Control {
    pub(super) source: Source,
    pub(super) config: Config,
    /// Computed when the configuration came into force: a limit on open files that is lowered later shows when calls fail.
    pub(super) budget: Budget,
    pub(super) shared: Arc<Shared>,
    pub(super) inputs: Receiver<Input>,
    pub(super) failures: Receiver<Failure>,
    pub(super) engines: Engines,
    pub(super) endpoints: Endpoints,
    pub(super) pools: Pools,
    pub(super) discovery: Discovery,
    pub(super) amended: Amended,
    pub(super) prober: Prober<Input>,
    pub(super) version: u64,
    pub(super) generation: u64,
    pub(super) stopping: Option<Instant>,
    /// When it stops accepting, if that comes after the end of its service was told to others.
    pub(super) close_at: Option<Instant>,
    /// Closes when workers have closed their listening sockets.
    pub(super) closing: Option<Receiver<()>>,
    pub(super) access_log: Option<(Sender<Record>, access_log::Handle)>,
    pub(super) admin: UnixListener,
    /// Kept for a successor.
    pub(super) http: Option<TcpListener>,
    pub(super) observer: Option<observer::Handle>,
    pub(super) inputs_sender: Sender<Input>,
    pub(super) peaks: HashMap<usize, Peak>,
    pub(super) reload_error: Option<String>,
    pub(super) reload_failures: u64,
    pub(super) vips: Vips,
    pub(super) leaving: Leaving,
    pub(super) returns: Returns,
    pub(super) upgrade: Upgrade,
    pub(super) notifier: Notifier,
}

impl Control {
    /// Binds every socket that was not inherited, starts every thread and serves (or waits until its predecessor lets go).
    /// Nothing is left behind if it fails.
    pub fn start(
        source: Source,
        config: Config,
        capacity: Capacity,
        mut inheritance: Inheritance,
        spawn: SpawnWorker,
        engines: Vec<StartEngine>,
        processes: Processes,
    ) -> anyhow::Result<(Control, Sender<Input>)> {
        let amended = amend::inherited(std::mem::take(&mut inheritance.amended));
        let (mut upgrade, knowledge, members) = Upgrade::new(inheritance);
        let (sender, inputs) = bounded(INPUTS_MAX);
        let told = sender.clone();
        let notify =
            Arc::new(move |changed: Changed| !matches!(told.try_send(changed.into()), Err(TrySendError::Full(_))));
        let (failure_sender, failures) = bounded(FAILURES_MAX);
        // First, because it finds out whether another weir is running here.
        let inherited = &mut upgrade.inherited;
        let admin = match inherited.claim_own(&admin::inherited_name(&config.admin)) {
            Some(fd) => fd.into(),
            None => admin::bind(&config.admin)?,
        };
        let http = match inherited.claim_own(&http::inherited_name(config.metrics)) {
            Some(fd) => Some(fd.into()),
            None => config.metrics.map(http::bind).transpose()?,
        };
        let access_log = access_log::start(&config.log)?;
        let records = access_log.as_ref().map(|(records, _)| records.clone());
        let shared = Shared::new(records, failure_sender, Instant::now());
        let workers = Workers::new(shared.clone(), spawn);
        let waiting = upgrade.is_waiting();
        let mut inherit = |name: &str| upgrade.inherited.claim_own(name);
        let engines = Engines::start(workers, engines, &shared, &mut inherit, waiting)?;
        let leaving = Leaving::new(shared.clone());
        let told = leaving.clone();
        let vips = Vips::new(
            shared.clone(),
            Arc::new(move |address, finished| told.leave(address, finished)),
        );
        let returns = Returns::new(processes.returns, &mut inherit);
        let mut control = Control {
            vips,
            leaving,
            returns,
            source,
            inputs,
            failures,
            engines,
            endpoints: Endpoints::default(),
            pools: Pools::new(u64::from(std::process::id())),
            discovery: Discovery::new(notify, members),
            amended: Amended::new(),
            // Bounded by the budget, when there is one.
            prober: Prober::start(sender.clone(), 0)?,
            config: config.clone(),
            budget: Budget::default(),
            shared,
            version: 0,
            generation: 0,
            stopping: None,
            close_at: None,
            closing: None,
            access_log,
            observer: None,
            http: None,
            inputs_sender: sender.clone(),
            peaks: HashMap::new(),
            reload_error: None,
            reload_failures: 0,
            admin,
            notifier: Notifier::new(upgrade.is_waiting(), Instant::now()),
            upgrade,
        };
        match control.prepare(&config, capacity) {
            Ok(prepared) => {
                control.discovery.follow(&config, |_| Vec::new());
                if !control.discovery.wait(MEMBERS_MAX) {
                    log::warn!("not every source of members has answered within {MEMBERS_MAX:?}: starting without");
                }
                control.commit(config, prepared);
            }
            Err(refusal) => {
                control.remove_admin();
                return Err(refusal.into());
            }
        }
        control.amended = amended;
        let pools: Vec<String> = control.amended.keys().cloned().collect();
        pools.iter().for_each(|pool| control.follow_members(pool));
        control.pools.learn(knowledge, Instant::now());
        control.http = http;
        if !control.upgrade.is_waiting() {
            control.observe()?;
            control.shared.note_control();
            control
                .vips
                .follow(control.config.failover.as_ref(), processes.failover)?;
        }
        Ok((control, sender))
    }

    /// Serves the admin socket, and HTTP if it is wanted.
    pub(super) fn observe(&mut self) -> std::io::Result<()> {
        let http = self.http.as_ref().map(TcpListener::try_clone).transpose()?;
        let handle = observer::start(
            self.admin.try_clone()?,
            http,
            self.inputs_sender.clone(),
            self.shared.clone(),
        )?;
        self.observer = Some(handle);
        Ok(())
    }

    /// What workers and control share.
    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Names and addresses of all bound sockets.
    pub fn bound(&self) -> impl Iterator<Item = (&str, &crate::link::Address)> {
        self.endpoints.bound()
    }

    /// Serves until told to stop.
    pub fn run(mut self) -> anyhow::Result<()> {
        for (ix, (name, local)) in self.endpoints.bound().enumerate() {
            log::info!("listening: {name} {local}");
            // Thousands of lines are more than the queue holds; a reader that is slower than a second loses some.
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
            self.engines.refresh(now);
            self.follow_pools(now);
            self.engines.workers.reap();
            self.returns.tick(now);
            self.show_life(now);
            if self.stopping.is_none() && self.vips.is_useless() {
                log::error!(
                    "the keeper of the VIPs has ended and its privileges with it: this process ends, to be started again"
                );
                failure = Some("the keeper of the VIPs has ended");
                self.begin_stop();
            }
            // The rules are still there: what is open may finish.
            if self.stopping.is_none() && self.returns.is_useless() {
                log::error!("the keeper of return rules has ended: this process ends, to be started again");
                failure = Some("the keeper of return rules has ended");
                self.begin_stop();
            }
            if self.close_at.is_some_and(|at| now >= at) {
                self.close_listeners();
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
                recv(self.failures) -> failure => if let Ok(failure) = failure {
                    self.pools.on_failure(&failure);
                },
                default(wait.min(IDLE_MAX)) => {}
            }
        }
        self.engines.stop();
        self.vips.stop();
        events::end(&events::End { successor: None });
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

    /// Lets time act on pools, and publishes what has changed by that or by orders.
    pub(super) fn follow_pools(&mut self, now: Instant) {
        let changed = self.pools.tick(now);
        self.start_probes(now);
        if changed {
            self.publish();
        }
        // After publication, so that a worker that sheds does not choose that backend again.
        for shed in self.pools.take_shed() {
            self.engines.shed(shed);
        }
        self.pools.tell();
    }

    /// Starts probes that are due.
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
    pub(super) fn remove_admin(&self) {
        if self.upgrade.is_service() {
            admin::remove(&self.admin);
        }
    }

    /// Whether workers have emptied and closed their listening sockets, and nothing is open any more.
    fn is_idle(&mut self) -> bool {
        if self.upgrade.is_upgrading() || self.close_at.is_some() {
            return false;
        }
        if let Some(closing) = &self.closing
            && closing.try_recv() != Err(TryRecvError::Disconnected)
        {
            return false;
        }
        self.closing = None;
        self.engines.collect(Instant::now());
        self.shared.process.connections.get() == 0 && self.shared.process.udp_sessions.get() == 0
    }

    /// False ends the process.
    fn handle(&mut self, input: Input) -> bool {
        match input {
            Input::Verdict(verdict) => self.pools.on_verdict(&verdict, Instant::now()),
            Input::Signal(libc::SIGHUP) => {
                let _ = self.reload();
            }
            Input::Signal(libc::SIGUSR2) => self.begin_upgrade(None),
            Input::Upgrade(event) => return self.on_upgrade(event),
            Input::Signal(_) => match phase::answer(Operation::Stop, self.phase()) {
                Answer::End => return false,
                Answer::Already => {
                    self.upgrade.note_stop();
                    log::info!("stopping, as soon as the connections that are left have finished");
                }
                _ => self.begin_stop(),
            },
            Input::Request(request) => self.answer(request),
            Input::Members(Changed(pool)) => self.follow_members(&pool),
        }
        true
    }

    /// Where this process is in its life.
    pub(super) fn phase(&self) -> Phase {
        match self.upgrade.phase() {
            Phase::Serving | Phase::Arriving | Phase::Upgrading if self.stopping.is_some() => Phase::Stopping,
            phase => phase,
        }
    }

    /// Whether an operation is taken at this time. The reason of a refusal is logged, for those who sent a signal.
    pub(super) fn admit(&self, operation: Operation) -> Result<(), Why> {
        match phase::answer(operation, self.phase()) {
            Answer::Refuse(why) => {
                let word = format!("{operation:?}").to_lowercase();
                log::warn!("{word} refused: {why}");
                Err(why)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn begin_stop(&mut self) {
        let grace = self.config.shutdown_grace;
        let open = self.shared.process.connections.get();
        events::tell(&Life::Stopping {
            connections: open,
            grace_ms: grace.as_millis() as u64,
        });
        // First, so that the next node takes over while this one still serves.
        let withdrawn = self.vips.stop();
        let now = Instant::now();
        self.stopping = Some(now + grace);
        self.upgrade.abandon();
        self.notifier
            .stopping(format!("stopping: {open} connections may finish"));
        match &self.config.failover {
            // Until routers have learnt of it, they send new clients here.
            Some(failover) if withdrawn => self.close_at = Some(now + failover.withdraw_delay.min(grace)),
            _ => self.close_listeners(),
        }
    }

    /// Accepts no more.
    fn close_listeners(&mut self) {
        self.close_at = None;
        self.engines.close(&self.endpoints.close_all());
        self.closing = Some(self.engines.workers.barrier());
    }

    /// One line for the service manager.
    pub(super) fn status_line(&self) -> String {
        let mut line = format!(
            "generation {}: {} listeners, {} connections, {} UDP sessions",
            self.generation,
            self.config.listeners.len(),
            self.shared.process.connections.get(),
            self.shared.process.udp_sessions.get(),
        );
        let errors = [
            ("reload refused", &self.reload_error),
            ("upgrade failed", &self.upgrade.error),
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
        let busy = self.engines.workers.handles().filter_map(|worker| {
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
}
