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

use super::{Detached, Election, ElectionHandle, Helpers, NodeStatus, Order, Process, VipStatus};
use crate::api::question::VipOrder;
use crate::api::status;
use crate::config::model::Failover;
use crate::failover::words::Local;
use crate::link::{Command, Finished, Shared};

/// The control thread must have gone round within this time; it sleeps a second at most.
const CONTROL_MAX: Duration = Duration::from_secs(10);

/// The running election, if there is one.
pub struct Vips {
    shared: Arc<Shared>,
    running: Option<(ElectionHandle, String)>,
}

impl Vips {
    /// Nothing runs yet.
    pub fn new(shared: Arc<Shared>) -> Vips {
        Vips { shared, running: None }
    }

    /// Brings the election in line with the configuration. `helpers` were started early, before privileges
    /// were given up; without them others are started now.
    pub fn follow(&mut self, config: Option<&Failover>, helpers: Option<Helpers>) -> io::Result<()> {
        match (config, &self.running) {
            (None, None) => Ok(()),
            (None, Some(_)) => {
                self.stop();
                Ok(())
            }
            (Some(config), Some((handle, _))) => handle.reconfigure(config),
            (Some(config), None) => {
                let helpers = match helpers {
                    Some(helpers) => helpers,
                    None => Helpers::start(config, None)?,
                };
                let process = process(&self.shared, config.dead_after);
                // Events are logged by the election itself; nobody else wants them.
                let (events, _) = bounded(1);
                let handle = Election::start(config, helpers, process, events)?;
                self.running = Some((handle, config.node.clone()));
                Ok(())
            }
        }
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
        let process = process(&self.shared, config.dead_after);
        let (events, _) = bounded(1);
        let handle = Election::resume(config, election, process, events)?;
        self.running = Some((handle, config.node.clone()));
        Ok(())
    }

    /// Moves every address to its next node, or lets it go.
    pub fn stop(&mut self) {
        if let Some((handle, _)) = self.running.take() {
            handle.stop();
        }
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

    /// VIPs and other nodes, for status and metrics.
    pub fn view(&self) -> (Vec<status::Vip>, Vec<status::Node>, Vec<(&'static str, u64)>) {
        let Some((handle, me)) = &self.running else {
            return Default::default();
        };
        let status = handle.status();
        let others = status.nodes.iter().filter(|node| node.name != *me);
        (
            status.vips.iter().map(vip).collect(),
            others.map(node).collect(),
            status.rejected.clone(),
        )
    }
}

fn vip(vip: &VipStatus) -> status::Vip {
    status::Vip {
        address: vip.address.clone(),
        interface: vip.interface.clone(),
        state: vip.state.word().into(),
        holder: vip.holder.clone(),
        since_s: vip.since_s,
        reason: vip.reason.clone(),
        transitions: vip.transitions,
    }
}

fn node(node: &NodeStatus) -> status::Node {
    status::Node {
        name: node.name.clone(),
        alive: node.alive,
        last_beat_ms: node.last_beat_ms,
    }
}

/// This process as the election sees it.
fn process(shared: &Arc<Shared>, patience: Duration) -> Process {
    let workers = shared.clone();
    let leave = move |address: IpAddr, finished: Arc<Finished>| {
        for worker in workers.workers().iter() {
            let finished = finished.clone();
            // A queue that is full belongs to a worker that does not turn.
            let _ = worker.try_send(Command::Leave { address, finished });
        }
    };
    Process {
        local: Box::new(local(shared.clone(), patience)),
        leave: Box::new(leave),
    }
}

/// How this process is doing: every worker turns, control goes round, and which pools have a healthy backend.
fn local(shared: Arc<Shared>, patience: Duration) -> impl FnMut() -> Local + Send {
    move || {
        let detail = shared.stuck(patience, CONTROL_MAX);
        let snapshot = shared.snapshot();
        let pools = snapshot.pools.iter().map(|pool| pool.eligibility.healthy > 0).collect();
        Local {
            serving: detail.is_none(),
            detail: detail.unwrap_or_default(),
            pools,
        }
    }
}
