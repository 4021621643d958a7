//! Control's part in an upgrade, as the old process and as the new one; [`upgrade`](super::upgrade) has the theory.

use std::os::fd::OwnedFd;
use std::time::Instant;

use crossbeam_channel::Sender;

use super::amend;
use super::election;
use super::events;
use super::life::Life;
use super::operator::{admin, http};
use super::phase::{Operation, Phase, Why};
use super::publication::endpoints;
use super::publication::sockets::reassign;
use super::request::Input;
use super::thread::Control;
use super::upgrade::{Back, Event, Handover, KNOWLEDGE_MAX, Predecessor};
use crate::sys::sandbox;

impl Control {
    /// Tells a predecessor that this process could serve.
    pub(super) fn announce(&mut self) -> anyhow::Result<()> {
        let inputs = self.inputs_sender.clone();
        let tell = move |event| inputs.send(Input::Upgrade(event)).is_ok();
        let upgrade = &mut self.upgrade;
        match &upgrade.waiting {
            Some((successor, _)) => successor.announce(&mut upgrade.inherited, self.leaving.before.clone(), tell)?,
            None => {
                for label in upgrade.inherited.discard() {
                    log::warn!("a socket that was passed fits no listener and is closed: {label}");
                }
            }
        }
        Ok(())
    }

    /// Starts the binary on disk; `asked` hears what comes of it.
    pub(super) fn begin_upgrade(&mut self, asked: Option<Sender<Result<String, String>>>) {
        if let Err(why) = self.admit(Operation::Upgrade) {
            if let Some(asked) = asked {
                let _ = asked.send(Err(why.to_string()));
            }
            return;
        }
        self.upgrade.ask(asked);
        let own = match self.own_sockets() {
            Ok(own) => own,
            Err(error) => return self.upgrade_failed(error.to_string()),
        };
        let handover = Handover {
            workers: self.engines.workers.handles().cloned().collect(),
            listeners: self.endpoints.labels(),
            knowledge: self.pools.knowledge(),
            members: self.discovery.told(KNOWLEDGE_MAX, Instant::now()),
            amended: amend::told(&self.amended),
            own,
            election: self.vips.is_running(),
        };
        let program = self.upgrade.program.clone();
        self.upgrade.error = None;
        // What became of an earlier one is not to be taken for this one's.
        let status = self.status_line();
        self.notifier.status(status);
        events::tell(&Life::Upgrade {
            program: program.path.display().to_string(),
        });
        let inputs = self.inputs_sender.clone();
        let tell = move |event| drop(inputs.send(Input::Upgrade(event)));
        match Predecessor::begin(program, handover, tell) {
            Ok(predecessor) => self.upgrade.predecessor = Some(predecessor),
            Err(error) => self.upgrade_failed(format!("{error:#}")),
        }
    }

    /// Duplicates of our own sockets, with their names; and one more that stands for nothing but its name.
    fn own_sockets(&self) -> std::io::Result<Vec<(String, OwnedFd)>> {
        let mut own = vec![(
            admin::inherited_name(&self.config.admin),
            self.admin.try_clone()?.into(),
        )];
        if let Some(http) = &self.http {
            own.push((http::inherited_name(self.config.metrics), http.try_clone()?.into()));
        }
        own.push((election::form(), self.admin.try_clone()?.into()));
        own.extend(self.engines.hand_over()?);
        own.extend(self.returns.hand_over()?);
        Ok(own)
    }

    fn upgrade_failed(&mut self, mut reason: String) {
        reason += sandbox::hint(&reason);
        events::tell(&Life::UpgradeFailed { reason: reason.clone() });
        self.upgrade.tell(Err(reason.clone()));
        self.upgrade.error = Some(reason);
        let status = self.status_line();
        self.notifier.status(status);
    }

    /// A step of an upgrade; false ends the process.
    pub(super) fn on_upgrade(&mut self, event: Event) -> bool {
        let phase = self.phase();
        match event {
            Event::Failed { reason, back } => {
                let Back { sockets, sessions } = back;
                self.upgrade.predecessor = None;
                let endpoints = sockets.iter().map(|socket| (socket.listener, socket.local.clone()));
                let endpoints: Vec<_> = endpoints.collect();
                let workers = &self.engines.workers;
                workers.serve(reassign(sockets, workers.size()), sessions);
                // The engines of the other process may have begun.
                self.publish();
                if phase == Phase::Stopping {
                    // Clients in the queues are served, later ones are not.
                    self.engines.workers.close(&endpoints);
                    self.closing = Some(self.engines.workers.barrier());
                    log::info!("upgrade given up: {reason}");
                    self.upgrade.tell(Err(Why::Stopping.to_string()));
                    return true;
                }
                self.upgrade_failed(reason);
            }
            // This process was told to stop while the successor was about to say that it serves: it has the sockets, and has been
            // told to stop as well.
            Event::Done(_) if phase == Phase::Stopping => {
                self.upgrade.predecessor = None;
                self.upgrade.tell(Err(Why::Stopping.to_string()));
            }
            Event::Done(done) => {
                let grace = self.config.shutdown_grace;
                self.upgrade.tell(Ok(format!("process {} serves", done.pid)));
                events::tell(&Life::Upgraded {
                    pid: done.pid,
                    connections: self.shared.process.connections.get(),
                    grace_ms: grace.as_millis() as u64,
                });
                events::end(&events::End {
                    successor: Some(done.pid),
                });
                self.upgrade.predecessor = None;
                self.upgrade.handed_over = Some((done.pid, false));
                self.discovery.stop();
                self.observer = None;
                self.notifier.hand_over(done.pid);
                for (_, local) in &done.unused {
                    endpoints::remove_file(local);
                }
                self.engines.workers.close(&done.unused);
                if done.unused_own.contains(&admin::inherited_name(&self.config.admin)) {
                    admin::remove(&self.admin);
                }
                if let Some(election) = self.vips.detach() {
                    done.hand_vips(election);
                }
                let leaving = self.leaving.clone();
                done.tell(move |address, finished| leaving.leave(address, finished));
                self.endpoints.forget();
                self.engines.let_go();
                self.closing = Some(self.engines.workers.barrier());
                self.stopping = Some(Instant::now() + grace);
            }
            Event::Go(sessions) => {
                if let Some((successor, held)) = self.upgrade.waiting.take() {
                    self.upgrade.arriving = true;
                    self.engines.take_over(&self.shared.snapshot());
                    self.engines.workers.serve(held, sessions);
                    if let Err(error) = self.observe() {
                        log::error!("admin socket and metrics: {error}");
                    }
                    successor.serving();
                    log::info!("upgrade: serving");
                }
            }
            Event::Vips(_) if phase == Phase::Stopping => log::warn!("upgrade: stopping, so the VIPs are let go"),
            Event::Vips(election) => {
                if let Err(error) = self.vips.resume(self.config.failover.as_ref(), election) {
                    log::error!("upgrade: the VIPs are let go, and come back when weir is restarted: {error}");
                }
            }
            Event::Main => {
                self.upgrade.arriving = false;
                if phase != Phase::Stopping
                    && let Err(error) = self.vips.follow(self.config.failover.as_ref(), None)
                {
                    log::error!("failover: {error}");
                }
                let status = self.status_line();
                self.notifier.speak(status);
            }
            Event::Abandoned if phase == Phase::Waiting => {
                log::error!("upgrade: the old process gave it up");
                return false;
            }
            // It serves already, and its connections may finish.
            Event::Abandoned if phase != Phase::Stopping => {
                log::info!("upgrade: the old process has been told to stop, and so does this one");
                self.begin_stop();
            }
            Event::Abandoned => {}
        }
        true
    }
}
