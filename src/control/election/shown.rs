//! What is shown of the election: plain data, made anew in every tick.

use serde::Serialize;

use crate::failover::words::{Holders, State};

/// One address, as in `/status`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VipStatus {
    /// Address with prefix length.
    pub address: String,
    /// Its interface.
    pub interface: String,
    /// How many nodes hold it.
    pub hold: Holders,
    /// `standby`, `claiming`, `active`, `releasing` or `fault`.
    pub state: State,
    /// The node that holds it, as far as we know.
    pub holder: Option<String>,
    /// Seconds in this state.
    pub since_s: u64,
    /// What put it into its state, in words.
    pub reason: String,
    /// An operator demoted it here.
    pub demoted: bool,
    /// When nobody holds it: for each node, what stands in the way.
    pub obstacles: Option<Vec<String>>,
    /// Changes of state since the process started; `weir_vip_transitions_total`.
    #[serde(skip)]
    pub transitions: u64,
}

/// One node, as in `/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// Name of the node.
    pub name: String,
    /// It is heard; this node always is.
    pub alive: bool,
    /// Age of its last beat; none for this node.
    pub last_beat_ms: Option<u64>,
    /// In which way it is configured otherwise than this one.
    pub mismatch: Option<String>,
}

/// One witness, as in `/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WitnessStatus {
    /// Address and port of the witness.
    pub address: std::net::SocketAddr,
    /// It has answered lately; `None` = too early to tell.
    pub up: Option<bool>,
}

/// The arbiter, as in `/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ArbiterStatus {
    /// It has answered lately; `None` = too early to tell.
    pub up: Option<bool>,
    /// Why it does not answer; `None` if it does, or has not been asked yet.
    pub problem: Option<String>,
    /// Addresses and groups on which its vote counts for this node.
    pub votes: Vec<String>,
}

/// Something that is tracked, as in `/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TrackStatus {
    /// Its name in the configuration.
    pub name: String,
    /// What is watched, in words.
    pub what: String,
    /// Whether it holds; `None` = too early to tell.
    pub holds: Option<bool>,
    /// What it adds to this node's rank while it holds; `None` = it must hold.
    pub weight: Option<u32>,
    /// What the last answer said, if it was a bad one.
    pub problem: Option<String>,
}

/// What a node shows of its election, as one copy.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Status {
    /// In the order of the configuration.
    pub vips: Vec<VipStatus>,
    /// In the order of the configuration.
    pub nodes: Vec<NodeStatus>,
    /// In the order of the configuration.
    pub witnesses: Vec<WitnessStatus>,
    /// The arbiter, if there is one.
    pub arbiter: Option<ArbiterStatus>,
    /// In the order of the configuration.
    pub tracks: Vec<TrackStatus>,
    /// Refused beats by reason; `weir_beats_rejected_total{reason}`.
    pub rejected: Vec<(&'static str, u64)>,
    /// Why the keeper is of no use, if so.
    pub keeper: Option<String>,
    /// The keeper has ended, and its leases with it: only another process can hold addresses again.
    pub useless: bool,
}
