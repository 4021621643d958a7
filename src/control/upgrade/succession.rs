//! Control's part in an upgrade, on both sides; [`upgrade`](super::upgrade) has the theory.

use std::os::fd::OwnedFd;
use std::time::Instant;

use super::{Back, Estate, Event, Heirlooms, Inheritance, Predecessor, Program, Successor};
use crate::control::operator::admin;
use crate::control::phase::{Order, Phase};
use crate::control::publication::endpoints;
use crate::control::publication::pools::Knowledge;
use crate::control::publication::sockets::{Dealt, deal_again};
use crate::control::{Control, admin_name, http_name};
use crate::sys::sandbox;

/// Where this process stands between one that came before it and one that comes after it.
#[derive(Debug)]
pub struct Succession {
    program: Program,
    /// Not claimed yet.
    pub heirlooms: Heirlooms,
    /// Since this process was started by another one, until it serves; with what it will serve then.
    waiting: Option<(Successor, Dealt)>,
    /// It serves; the process before it has not let go of everything yet.
    arriving: bool,
    /// An upgrade is under way.
    predecessor: Option<Predecessor>,
    /// Another process serves, and this one drains; whether somebody has told it to stop besides.
    handed_over: Option<(u32, bool)>,
    /// Why the last upgrade failed.
    pub error: Option<String>,
}

impl Succession {
    /// At the start of a process.
    pub fn new(inheritance: Inheritance) -> (Succession, Vec<Knowledge>) {
        let succession = Succession {
            program: Program::own(),
            heirlooms: inheritance.heirlooms,
            waiting: inheritance.successor.map(|s| (s, Dealt::new())),
            arriving: false,
            predecessor: None,
            handed_over: None,
            error: None,
        };
        (succession, inheritance.knowledge)
    }

    /// Whether this process is the service: what bears the service's name (files of sockets) is its own.
    pub fn is_in_office(&self) -> bool {
        self.waiting.is_none() && self.handed_over.is_none()
    }

    /// Whether another process still serves in place of this one.
    pub fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Keeps sockets back until this process is to serve.
    pub fn hold(&mut self, dealt: Dealt) -> Dealt {
        match &mut self.waiting {
            Some((_, held)) => std::mem::replace(held, dealt),
            None => dealt,
        }
    }

    /// As far as upgrades decide it: nothing is known here of an order to stop.
    pub fn phase(&self) -> Phase {
        match self.handed_over {
            Some((successor, told)) => Phase::HandedOver { successor, told },
            None if self.waiting.is_some() => Phase::Waiting,
            None if self.predecessor.is_some() => Phase::Upgrading,
            None if self.arriving => Phase::Arriving,
            None => Phase::Serving,
        }
    }

    /// An operator has told this process to stop, which has handed over already.
    pub fn note_stop(&mut self) {
        if let Some((_, told)) = &mut self.handed_over {
            *told = true;
        }
    }

    /// Gives an upgrade under way up. It is over when its [`Event`] comes, with the sockets that nobody serves meanwhile.
    pub fn abandon(&self) {
        if let Some(predecessor) = &self.predecessor {
            predecessor.abandon();
        }
    }

    /// Whether sockets may be in nobody's hand but an upgrade's.
    pub fn is_upgrading(&self) -> bool {
        self.predecessor.is_some()
    }
}

impl Control {
    /// Tells a predecessor that this process could serve.
    pub(in crate::control) fn announce(&mut self) -> anyhow::Result<()> {
        let Succession { heirlooms, waiting, .. } = &mut self.succession;
        match waiting {
            Some((successor, _)) => successor.announce(heirlooms, self.inputs_sender.clone())?,
            None => {
                for label in heirlooms.discard() {
                    log::warn!("a socket that was passed fits no listener and is closed: {label}");
                }
            }
        }
        Ok(())
    }

    /// Starts the binary on disk.
    pub(in crate::control) fn begin_upgrade(&mut self) {
        if self.admit(Order::Upgrade).is_err() {
            return;
        }
        let own = match self.own_sockets() {
            Ok(own) => own,
            Err(error) => return self.upgrade_failed(error.to_string()),
        };
        let estate = Estate {
            workers: self.crew.handles().cloned().collect(),
            listeners: self.endpoints.labels(),
            knowledge: self.pools.knowledge(),
            own,
        };
        let program = self.succession.program.clone();
        self.succession.error = None;
        log::info!("upgrade: starting {}", program.path.display());
        match Predecessor::begin(program, estate, self.inputs_sender.clone()) {
            Ok(predecessor) => self.succession.predecessor = Some(predecessor),
            Err(error) => self.upgrade_failed(format!("{error:#}")),
        }
    }

    /// Duplicates of our own sockets, with their names.
    fn own_sockets(&self) -> std::io::Result<Vec<(String, OwnedFd)>> {
        let mut own = vec![(admin_name(&self.config), self.admin.try_clone()?.into())];
        if let Some(http) = &self.http {
            own.push((http_name(&self.config), http.try_clone()?.into()));
        }
        Ok(own)
    }

    fn upgrade_failed(&mut self, mut reason: String) {
        reason += sandbox::hint(&reason);
        log::error!("upgrade failed, this process goes on: {reason}");
        self.succession.error = Some(reason);
        let status = self.status_line();
        self.notifier.status(status);
    }

    /// A step of an upgrade; false ends the process.
    pub(in crate::control) fn on_upgrade(&mut self, event: Event) -> bool {
        let phase = self.phase();
        match event {
            Event::Failed { reason, back } => {
                let Back { sockets, migrants } = back;
                self.succession.predecessor = None;
                let places = sockets.iter().map(|socket| (socket.listener, socket.local.clone()));
                let places: Vec<_> = places.collect();
                self.crew.settle(deal_again(sockets, self.crew.size()), migrants);
                if phase == Phase::Stopping {
                    // Who is queued there is served; nobody else is.
                    self.crew.unlisten(&places);
                    self.unlistened = Some(self.crew.barrier());
                    log::info!("upgrade given up: {reason}");
                    return true;
                }
                self.upgrade_failed(reason);
            }
            // The order to stop and the successor's word that it serves have crossed: it has been told to stop as well, and
            // has the sockets.
            Event::Done(_) if phase == Phase::Stopping => self.succession.predecessor = None,
            Event::Done(done) => {
                let grace = self.config.shutdown_grace;
                log::info!(
                    "upgrade: process {} serves; {} connections may finish here within {}",
                    done.pid,
                    self.shared.process.connections.get(),
                    humantime::format_duration(grace)
                );
                self.succession.predecessor = None;
                self.succession.handed_over = Some((done.pid, false));
                self.observer = None;
                self.notifier.hand_over(done.pid);
                for (_, local) in &done.unused {
                    endpoints::remove_file(local);
                }
                self.crew.unlisten(&done.unused);
                if done.unused_own.contains(&admin_name(&self.config)) {
                    admin::remove(&self.admin);
                }
                if let Some(election) = self.vips.detach() {
                    done.hand_vips(election);
                }
                done.tell();
                self.endpoints.forget();
                self.unlistened = Some(self.crew.barrier());
                self.stopping = Some(Instant::now() + grace);
            }
            Event::Go(migrants) => {
                if let Some((successor, held)) = self.succession.waiting.take() {
                    self.succession.arriving = true;
                    self.crew.settle(held, migrants);
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
                    log::error!("upgrade: the VIPs are let go: {error}");
                }
            }
            Event::Main => {
                self.succession.arriving = false;
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
            // It serves already: who has come to it may finish.
            Event::Abandoned if phase != Phase::Stopping => {
                log::info!("upgrade: the old process has been told to stop, and so does this one");
                self.begin_stop();
            }
            Event::Abandoned => {}
        }
        true
    }
}
