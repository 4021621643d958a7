//! The words of the failover machine: what it is told, what it says, and the states between.
//!
//! Plain data. [`super::table`] decides with it, beats carry [`Claim`]s, and the shells turn [`Action`]s into effects.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::timers::Timers;
use super::{NodeIx, VipIx};

/// What the configuration says, in indices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// This node.
    pub me: NodeIx,
    /// How many nodes there are.
    pub nodes: usize,
    /// How many witnesses there are.
    pub witnesses: usize,
    /// Voters that must back a holder, itself included; 1 = no quorum.
    pub quorum: u32,
    /// Periods and patiences.
    pub timers: Timers,
    /// The addresses.
    pub vips: Vec<Rule>,
}

/// What the configuration says about one address.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// Nodes that may hold it, best first.
    pub prefer: Vec<NodeIx>,
    /// Whether a better node takes it back from a fit holder.
    pub preempt: bool,
    /// How long the better node must have been fit before.
    pub preempt_delay: Duration,
    /// Pools (indices into [`Local::pools`]) that must have a backend.
    pub requires: Vec<usize>,
}

/// How this process is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Local {
    /// Every worker turns and every listener is bound.
    pub serving: bool,
    /// What is wrong, if not; for people.
    pub detail: String,
    /// For each pool of the configuration, whether it has a backend to offer.
    pub pools: Vec<bool>,
}

/// What a node does with an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Nothing.
    Free,
    /// About to hold it.
    Claiming,
    /// Holds it.
    Held,
    /// Holds it until this node does.
    Yielding(NodeIx),
    /// Is letting it go: the address may still be there, but it is nobody's rival any more.
    Leaving,
}

/// How fit a node is to hold an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Fit {
    /// It will not, whatever happens.
    Unable,
    /// It has just started and still listens; then it can. Lesser nodes leave it a free address.
    Soon,
    /// It serves, but a required pool has no backend.
    NoBackend,
    /// It can take the address now.
    Ready,
}

/// What a beat says about one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// What the sender does with it.
    pub phase: Phase,
    /// How fit it is.
    pub fit: Fit,
    /// It asks the present, less preferred holder for it.
    pub wants: bool,
    /// The node to which it gives its vote.
    pub backs: Option<NodeIx>,
}

impl Claim {
    /// The claim of a node that knows nothing of the address.
    pub const NONE: Claim = Claim {
        phase: Phase::Free,
        fit: Fit::Unable,
        wants: false,
        backs: None,
    };
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// Time has passed.
    Tick,
    /// A beat with a good signature and a new sequence number.
    Beat {
        /// Its sender.
        from: NodeIx,
        /// One claim for each of our VIPs.
        claims: Vec<Claim>,
    },
    /// This node's process is known to have ended.
    Gone {
        /// Which.
        node: NodeIx,
    },
    /// A witness answered, or refused to.
    Witness {
        /// Which.
        ix: usize,
        /// Whether it answered.
        up: bool,
    },
    /// How this process is doing.
    Local(Local),
    /// The whole machine stood still for so long, by a clock that also counts suspension.
    Frozen {
        /// How long.
        gap: Duration,
    },
    /// The keeper did what was asked, or could not.
    Done {
        /// Which address.
        vip: VipIx,
        /// What was asked.
        effect: Effect,
        /// The keeper's words if it could not.
        result: Result<(), String>,
    },
    /// The keeper lost the address: somebody removed it, or the kernel refuses to renew.
    Lost {
        /// Which address.
        vip: VipIx,
        /// The keeper's words.
        why: String,
    },
    /// The keeper let the address go because it had no proof of life.
    Expired {
        /// Which address.
        vip: VipIx,
    },
    /// Whether the interface of an address has a carrier.
    Link {
        /// Which address.
        vip: VipIx,
        /// Up.
        up: bool,
    },
    /// Whether somebody else has configured the address on this host.
    Foreign {
        /// Which address.
        vip: VipIx,
        /// It is there.
        present: bool,
    },
    /// Whether the keeper works; its words if not.
    Keeper(Result<(), String>),
    /// An operator's wish.
    Admin(Order),
}

/// What the keeper was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// Install.
    Hold,
    /// Remove.
    Release,
}

/// An operator's wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Move this address to the next node and stay away from it.
    Demote(VipIx),
    /// Take part again; also forgives faults.
    Allow(VipIx),
    /// The process is about to end: move everything.
    Stop,
}

/// What to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Prove life to the keeper.
    Prove,
    /// Have the keeper install the address.
    Hold {
        /// Which.
        vip: VipIx,
    },
    /// Have the keeper announce it.
    Announce {
        /// Which.
        vip: VipIx,
        /// A predecessor may still answer for it.
        insist: bool,
    },
    /// Have the keeper remove it.
    Release {
        /// Which.
        vip: VipIx,
    },
    /// Send [`Table::claims`](super::table::Table::claims) to every peer.
    Beat,
    /// Tell people.
    Transition {
        /// Which.
        vip: VipIx,
        /// From.
        from: State,
        /// To.
        to: State,
        /// Why.
        reason: Reason,
    },
}

/// State of an address on this node, as shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not held here.
    Standby,
    /// Being installed.
    Claiming,
    /// Held here.
    Active,
    /// Being removed.
    Releasing,
    /// Cannot be held here.
    Fault,
}

impl State {
    /// The word used in status, logs and metrics.
    pub fn word(self) -> &'static str {
        match self {
            State::Standby => "standby",
            State::Claiming => "claiming",
            State::Active => "active",
            State::Releasing => "releasing",
            State::Fault => "fault",
        }
    }
}

/// Why an address is in its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// The node has just started and listens.
    Starting,
    /// The node was frozen and listens.
    Frozen {
        /// For how long it was.
        gap_ms: u64,
    },
    /// The node is not in `prefer`.
    NotListed,
    /// An operator said so.
    Demoted,
    /// The process is about to end.
    Stopping,
    /// Workers or listeners are not well.
    NotServing(String),
    /// Too few voters.
    NoQuorum {
        /// Voters reached, or backing us.
        have: u32,
        /// Voters needed.
        need: u32,
    },
    /// A required pool has no backend.
    NoBackend,
    /// The keeper is of no use.
    Keeper(String),
    /// The address cannot be held.
    Fault(String),
    /// The interface has no carrier.
    LinkDown,
    /// Another node holds it.
    HeldBy(NodeIx),
    /// Nobody holds it, but a better node could.
    LeftTo(NodeIx),
    /// Nobody holds it, and we wait for votes or for the last holder's time to run out.
    Waiting,
    /// Nobody held it and we are the first in order.
    First,
    /// The last holder went silent.
    Silent(NodeIx),
    /// The last holder's process ended.
    Gone(NodeIx),
    /// The last holder yielded to us.
    From(NodeIx),
    /// We yielded to this node.
    To(NodeIx),
    /// A better node holds it too.
    Rival(NodeIx),
    /// It was removed from the configuration.
    Unconfigured,
}

impl Reason {
    /// The reason in words; `name` gives the names of nodes.
    pub fn text<'a>(&self, name: impl Fn(NodeIx) -> &'a str) -> String {
        match self {
            Reason::Starting => "just started, listening".into(),
            Reason::Frozen { gap_ms } => format!("was frozen for {gap_ms} ms, listening"),
            Reason::NotListed => "not in prefer".into(),
            Reason::Demoted => "demoted".into(),
            Reason::Stopping => "stopping".into(),
            Reason::NotServing(detail) if detail.is_empty() => "not serving".into(),
            Reason::NotServing(detail) => format!("not serving: {detail}"),
            Reason::NoQuorum { have, need } => format!("no quorum: {have} of {need} voters"),
            Reason::NoBackend => "no backend in a required pool".into(),
            Reason::Keeper(why) => format!("keeper: {why}"),
            Reason::Fault(why) => why.clone(),
            Reason::LinkDown => "the interface has no carrier".into(),
            Reason::HeldBy(n) => format!("held by {}", name(*n)),
            Reason::LeftTo(n) => format!("{} comes first", name(*n)),
            Reason::Waiting => "waiting for votes".into(),
            Reason::First => "first in order".into(),
            Reason::Silent(n) => format!("{} is silent", name(*n)),
            Reason::Gone(n) => format!("{} is gone", name(*n)),
            Reason::From(n) => format!("handed over by {}", name(*n)),
            Reason::To(n) => format!("handed over to {}", name(*n)),
            Reason::Rival(n) => format!("{} holds it too and comes first", name(*n)),
            Reason::Unconfigured => "no longer configured".into(),
        }
    }
}

impl Reason {
    /// The same reason after nodes got other indices; a node that is gone leaves the plainest reason.
    pub(super) fn renamed(&self, forward: impl Fn(NodeIx) -> Option<NodeIx>) -> Reason {
        let to = |make: fn(NodeIx) -> Reason, n: NodeIx| forward(n).map_or(Reason::First, make);
        match self {
            Reason::HeldBy(n) => to(Reason::HeldBy, *n),
            Reason::LeftTo(n) => to(Reason::LeftTo, *n),
            Reason::Silent(n) => to(Reason::Silent, *n),
            Reason::Gone(n) => to(Reason::Gone, *n),
            Reason::From(n) => to(Reason::From, *n),
            Reason::To(n) => to(Reason::To, *n),
            Reason::Rival(n) => to(Reason::Rival, *n),
            other => other.clone(),
        }
    }
}

/// One address as shown.
#[derive(Debug, Clone, PartialEq)]
pub struct VipView {
    /// State here.
    pub state: State,
    /// The node that holds it, as far as we know.
    pub holder: Option<NodeIx>,
    /// For how long it has been in this state.
    pub since: Duration,
    /// Why.
    pub reason: Reason,
    /// An operator demoted it.
    pub demoted: bool,
}

/// One node as shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// Beats arrive.
    pub alive: bool,
    /// Age of the last one.
    pub last_beat: Option<Duration>,
}
