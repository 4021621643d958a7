//! The election as part of the control thread: started with the process, reconfigured by reloads, asked by operators,
//! and told how the data plane is doing.
//!
//! How the process is doing is read from shared memory by the election thread itself, twice a beat: nobody has to be alive to
//! report that something is stuck.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::bounded;

use super::{
    ArbiterStatus, Detached, Election, ElectionHandle, Helpers, NodeStatus, Order, Prepared, Process, TrackStatus,
    VipStatus, WitnessStatus,
};
use crate::api::question::VipOrder;
use crate::api::status;
use crate::config::model::Failover;
use crate::failover::words::Local;
use crate::keeper::KeeperHandle;
use crate::link::{Finished, Shared};

/// The control thread must have gone round within this time; it sleeps a second at most.
const CONTROL_MAX: Duration = Duration::from_secs(10);

/// Has connections to an address that leaves reset; the second is dropped when that is done. Never waits.
pub type Leave = Arc<dyn Fn(IpAddr, Arc<Finished>) + Send + Sync>;

/// What a configuration does to the election.
pub enum Change {
    /// Nothing: there is none, before and after.
    None,
    /// The election ends.
    Stop,
    /// It has begun, and listens.
    Start(ElectionHandle, String),
    /// It goes on otherwise.
    Reconfigure(Box<Prepared>, String),
}

/// The running election, if there is one.
pub struct Vips {
    shared: Arc<Shared>,
    leave: Leave,
    running: Option<(ElectionHandle, String)>,
    /// Of an election that has ended.
    withdrawn: Option<KeeperHandle>,
}

impl Vips {
    /// No election runs yet.
    pub fn new(shared: Arc<Shared>, leave: Leave) -> Vips {
        Vips {
            shared,
            leave,
            running: None,
            withdrawn: None,
        }
    }

    /// Brings the election in line with the configuration. `helpers` were started early, before privileges
    /// were given up; without them others are started now.
    pub fn follow(&mut self, config: Option<&Failover>, helpers: Option<Helpers>) -> io::Result<()> {
        let change = self.prepare(config, helpers)?;
        self.commit(change)
    }

    /// Everything of a change that can fail. It takes effect with [`commit`](Vips::commit), once the pools that it speaks of are
    /// published.
    pub fn prepare(&self, config: Option<&Failover>, helpers: Option<Helpers>) -> io::Result<Change> {
        match (config, &self.running) {
            (None, None) => Ok(Change::None),
            (None, Some(_)) => Ok(Change::Stop),
            (Some(config), Some((handle, _))) => {
                let prepared = Box::new(handle.prepare(config)?);
                Ok(Change::Reconfigure(prepared, config.node.clone()))
            }
            (Some(config), None) => {
                let helpers = match helpers {
                    Some(helpers) => helpers,
                    None => Helpers::start(config, None)?,
                };
                let process = process(&self.shared, &self.leave, config.dead_after);
                // Events are logged by the election itself; nobody else wants them.
                let (events, _) = bounded(1);
                let handle = Election::start(config, helpers, process, events)?;
                Ok(Change::Start(handle, config.node.clone()))
            }
        }
    }

    /// Carries a change out.
    pub fn commit(&mut self, change: Change) -> io::Result<()> {
        match change {
            Change::None => {}
            Change::Stop => {
                self.stop();
                self.withdrawn = None;
            }
            Change::Start(handle, node) => self.running = Some((handle, node)),
            Change::Reconfigure(prepared, node) => {
                if let Some((handle, me)) = &mut self.running {
                    *me = node;
                    handle.reconfigure(*prepared)?;
                }
            }
        }
        Ok(())
    }

    /// Whether there is an election, and so something to hand over.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Stops the election without letting go of anything, for a successor.
    pub fn detach(&mut self) -> Option<Detached> {
        let (handle, _) = self.running.take()?;
        handle
            .detach()
            .inspect_err(|error| log::error!("failover: {error}"))
            .ok()
    }

    /// Goes on where a predecessor stopped; without a configuration the addresses are let go.
    pub fn resume(&mut self, config: Option<&Failover>, election: Detached) -> io::Result<()> {
        let Some(config) = config else {
            return Ok(());
        };
        let process = process(&self.shared, &self.leave, config.dead_after);
        let (events, _) = bounded(1);
        let handle = Election::resume(config, election, process, events)?;
        self.running = Some((handle, config.node.clone()));
        Ok(())
    }

    /// Moves every address to its next node, or lets it go. Returns whether some are withdrawn only: packets to them are accepted
    /// until this is dropped.
    pub fn stop(&mut self) -> bool {
        if let Some((handle, _)) = self.running.take() {
            self.withdrawn = handle.stop();
        }
        self.withdrawn.is_some()
    }

    /// Whether only another process can hold addresses again, and nothing is held by this one any more.
    pub fn is_useless(&self) -> bool {
        self.running.as_ref().is_some_and(|(handle, _)| handle.status().useless)
    }

    /// Carries out an operator's order.
    pub fn order(&self, address: IpAddr, order: VipOrder) -> Result<String, String> {
        let Some((handle, _)) = &self.running else {
            return Err(format!(
                "there is no VIP {address}: the configuration has no `failover`"
            ));
        };
        handle.order(match order {
            VipOrder::Demote => Order::Demote(address),
            VipOrder::Allow => Order::Allow(address),
        })
    }

    /// VIPs, other nodes and voters, for status and metrics.
    pub fn status(&self) -> ElectionStatus {
        let Some((handle, me)) = &self.running else {
            return ElectionStatus::default();
        };
        let status = handle.status();
        let others = status.nodes.iter().filter(|node| node.name != *me);
        let arbiter = |arbiter: &ArbiterStatus| status::Arbiter {
            up: arbiter.up,
            problem: arbiter.problem.clone(),
            votes: arbiter.votes.clone(),
        };
        let witness = |witness: &WitnessStatus| status::Witness {
            address: witness.address.to_string(),
            up: witness.up,
        };
        ElectionStatus {
            vips: status.vips.iter().map(vip).collect(),
            nodes: others.map(node).collect(),
            witnesses: status.witnesses.iter().map(witness).collect(),
            arbiter: status.arbiter.as_ref().map(arbiter),
            tracks: status.tracks.iter().map(track).collect(),
            beats_rejected: status.rejected.clone(),
        }
    }
}

/// What an operator sees of the election.
#[derive(Default)]
pub struct ElectionStatus {
    /// In the order of the configuration.
    pub vips: Vec<status::Vip>,
    /// The other nodes, in the order of the configuration.
    pub nodes: Vec<status::Node>,
    /// In the order of the configuration.
    pub witnesses: Vec<status::Witness>,
    /// If there is one.
    pub arbiter: Option<status::Arbiter>,
    /// In the order of the configuration.
    pub tracks: Vec<status::Track>,
    /// Beats refused, with the reason's word, since the start.
    pub beats_rejected: Vec<(&'static str, u64)>,
}

fn vip(vip: &VipStatus) -> status::Vip {
    status::Vip {
        address: vip.address.clone(),
        interface: vip.interface.clone(),
        hold: vip.hold.word().into(),
        state: vip.state.word().into(),
        holder: vip.holder.clone(),
        since_s: vip.since_s,
        reason: vip.reason.clone(),
        transitions: vip.transitions,
        demoted: vip.demoted,
        obstacles: vip.obstacles.clone(),
    }
}

fn track(track: &TrackStatus) -> status::Track {
    status::Track {
        name: track.name.clone(),
        what: track.what.clone(),
        holds: track.holds,
        weight: track.weight,
        reason: track.problem.clone(),
    }
}

fn node(node: &NodeStatus) -> status::Node {
    status::Node {
        name: node.name.clone(),
        alive: node.alive,
        last_beat_ms: node.last_beat_ms,
        mismatch: node.mismatch.clone(),
    }
}

/// This process as the election sees it.
fn process(shared: &Arc<Shared>, leave: &Leave, patience: Duration) -> Process {
    let leave = leave.clone();
    Process {
        local: Box::new(local(shared.clone(), patience)),
        leave: Box::new(move |address, finished| leave(address, finished)),
    }
}

/// How this process is doing: every worker turns, control goes round, and which pools have a healthy backend.
fn local(shared: Arc<Shared>, patience: Duration) -> impl FnMut() -> Local + Send {
    move || {
        let detail = shared.stuck(patience, CONTROL_MAX);
        let snapshot = shared.snapshot();
        let without_backend = snapshot.pools.iter().filter(|pool| pool.eligibility.healthy == 0);
        Local {
            serving: detail.is_none(),
            detail: detail.unwrap_or_default(),
            without_backend: without_backend.map(|pool| pool.config.name.clone()).collect(),
        }
    }
}
