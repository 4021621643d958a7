//! Control's part in an upgrade, on both sides; [`upgrade`](super::upgrade) has the theory.

use std::os::fd::OwnedFd;
use std::time::Instant;

use super::pools::Knowledge;
use super::sockets::Dealt;
use super::upgrade::{Back, Estate, Event, Heirlooms, Inheritance, Predecessor, Program, Successor};
use super::{Control, admin, admin_name, endpoints, http_name};

/// Where this process stands between one that came before it and one that comes after it.
#[derive(Debug)]
pub struct Succession {
    program: Program,
    /// Not claimed yet.
    pub heirlooms: Heirlooms,
    /// Since this process was started by another one, until it serves; with what it will serve then.
    waiting: Option<(Successor, Dealt)>,
    /// An upgrade is under way.
    predecessor: Option<Predecessor>,
    /// Another process serves; this one drains.
    handed_over: bool,
    /// That was the only reason to end so far: nobody has told it to stop.
    pub retired: bool,
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
            predecessor: None,
            handed_over: false,
            retired: false,
            error: None,
        };
        (succession, inheritance.knowledge)
    }

    /// Whether this process is the service: what bears the service's name (files of sockets) is its own.
    pub fn is_in_office(&self) -> bool {
        self.waiting.is_none() && !self.handed_over
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

    /// Why the configuration cannot change now.
    pub fn busy(&self) -> Result<(), String> {
        match self.waiting.is_some() || self.predecessor.is_some() {
            true => Err("an upgrade is under way".to_string()),
            false => Ok(()),
        }
    }

    /// Gives an upgrade under way up.
    pub fn abandon(&mut self) {
        if let Some(predecessor) = self.predecessor.take() {
            predecessor.abandon();
        }
    }
}

impl Control {
    /// Tells a predecessor that this process could serve.
    pub(super) fn announce(&mut self) -> anyhow::Result<()> {
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
    pub(super) fn begin_upgrade(&mut self) {
        let refused = match (self.stopping, self.succession.busy()) {
            (Some(_), _) => Some("this process is about to end".to_string()),
            (None, busy) => busy.err(),
        };
        if let Some(reason) = refused {
            log::warn!("upgrade refused: {reason}");
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

    fn upgrade_failed(&mut self, reason: String) {
        log::error!("upgrade failed, this process goes on: {reason}");
        self.succession.error = Some(reason);
        let status = self.status_line();
        self.notifier.status(status);
    }

    /// A step of an upgrade; false ends the process.
    pub(super) fn on_upgrade(&mut self, event: Event) -> bool {
        match event {
            Event::Failed { reason, back } => {
                let Back { sockets, migrants } = back;
                self.succession.predecessor = None;
                let mut dealt = Dealt::new();
                for (ix, socket) in sockets.into_iter().enumerate() {
                    let worker = ix % self.crew.size().max(1);
                    dealt.entry(worker).or_default().push(socket);
                }
                self.crew.settle(dealt, migrants);
                self.upgrade_failed(reason);
            }
            Event::Done(done) => {
                let grace = self.config.shutdown_grace;
                log::info!(
                    "upgrade: process {} serves; {} connections may finish here within {}",
                    done.pid,
                    self.shared.process.connections.get(),
                    humantime::format_duration(grace)
                );
                self.succession.predecessor = None;
                self.succession.retired = true;
                self.succession.handed_over = true;
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
                    self.crew.settle(held, migrants);
                    if let Err(error) = self.observe() {
                        log::error!("admin socket and metrics: {error}");
                    }
                    successor.serving();
                    log::info!("upgrade: serving");
                }
            }
            Event::Vips(election) => {
                if let Err(error) = self.vips.resume(self.config.failover.as_ref(), election) {
                    log::error!("upgrade: the VIPs are let go: {error}");
                }
            }
            Event::Main => {
                if let Err(error) = self.vips.follow(self.config.failover.as_ref(), None) {
                    log::error!("failover: {error}");
                }
                let status = self.status_line();
                self.notifier.speak(status);
            }
            Event::Abandoned => {
                log::error!("upgrade: the old process gave it up");
                return false;
            }
        }
        true
    }
}
