//! The words of the failover machine: what it is told, what it says, and the states between.
//!
//! Plain data. [`super::table`] decides with it, beats carry [`Claim`]s, and the shells turn [`Action`]s into effects.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::arbiter::{Answer, Question, Terms};
use super::timers::Timers;
use super::{NodeIx, VipIx};

/// What the configuration says, in indices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// Index of this node in `names`.
    pub me: NodeIx,
    /// Names of the nodes, by index.
    pub names: Vec<String>,
    /// How many witnesses there are.
    pub witnesses: usize,
    /// Voters that must back a holder, itself included; 1 = no quorum.
    pub quorum: u32,
    /// Periods and patiences.
    pub timers: Timers,
    /// How long a node that has not heard anybody claims nothing.
    pub startup_delay: Duration,
    /// Beats are numbered from here; another number for every start of the process.
    pub boot: u64,
    /// What this node watches beside its own service.
    pub tracks: Vec<Track>,
    /// One more voter, with a memory of its own.
    pub arbiter: Option<Arbiter>,
    /// The addresses.
    pub vips: Vec<Rule>,
}

/// A voter with a memory of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arbiter {
    /// What all nodes should agree on: where the votes are kept.
    pub prefix: String,
    /// Where it is. Votes of one that is elsewhere count for nothing.
    pub place: String,
    /// Periods and patiences.
    pub terms: Terms,
    /// Nothing is claimed that another kernel may still have.
    pub strict: bool,
}

/// Something that this node watches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Track {
    /// Its name in the configuration.
    pub name: String,
    /// What it adds to this node's rank while it holds; none = it must hold.
    pub weight: Option<u32>,
    /// How much later than one node another may notice the same.
    pub skew: Duration,
}

/// How many nodes hold an address at a time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Holders {
    /// One, which the nodes agree on.
    #[default]
    One,
    /// Every one that serves, whatever the others do: a routing daemon announces it from each of them.
    All,
}

impl Holders {
    /// As it is written in a file.
    pub fn word(self) -> &'static str {
        match self {
            Holders::One => "one",
            Holders::All => "all",
        }
    }
}

/// What the configuration says about one address.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// How many nodes hold it.
    #[serde(default)]
    pub hold: Holders,
    /// Nodes that may hold it, best first.
    pub prefer: Vec<NodeIx>,
    /// Whether a better node takes it back from a fit holder.
    pub preempt: bool,
    /// How long the better node must have been fit before.
    pub preempt_delay: Duration,
    /// Pools that must have a backend, by name.
    pub requires: Vec<String>,
    /// Addresses of one group are held by one node, always together.
    pub group: Option<String>,
}

/// How this process is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Local {
    /// Every worker turns and every listener is bound.
    pub serving: bool,
    /// What is wrong, if not; for people.
    pub detail: String,
    /// Names of the pools that have no backend to offer. By name, because two configurations number theirs differently.
    pub without_backend: Vec<String>,
}

/// What a node does with an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// It neither holds nor claims it.
    Free,
    /// About to hold it.
    Claiming,
    /// It has the address installed and answers for it.
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
    /// What keeps it from being [`Fit::Ready`].
    pub lacks: Lack,
    /// It asks the present, less preferred holder for it.
    pub wants: bool,
    /// The node to which it gives its vote.
    pub backs: Option<NodeIx>,
    /// Differs when the sender's rules for the address differ; 0 = the sender does not know the address.
    pub rules: u32,
}

impl Claim {
    /// The claim of a node that knows nothing of the address.
    pub const NONE: Claim = Claim {
        phase: Phase::Free,
        fit: Fit::Unable,
        lacks: Lack::Unknown,
        wants: false,
        backs: None,
        rules: 0,
    };
}

/// In one word, what keeps a node from holding an address; [`Reason`] says more, but only at home.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Lack {
    /// Nothing: it could hold the address.
    Nothing = 0,
    /// The node does not know the address, or has not been heard on it.
    Unknown = 1,
    /// It has just started, or its link has just come up, and it listens.
    Listening = 2,
    /// It was frozen, and listens.
    Frozen = 3,
    /// It is not in `prefer`.
    NotListed = 4,
    /// An operator demoted it.
    Demoted = 5,
    /// Its process is about to end.
    Stopping = 6,
    /// Workers or listeners are not well.
    NotServing = 7,
    /// It reaches, or is backed by, fewer voters than the quorum.
    NoQuorum = 8,
    /// A required pool has no backend.
    NoBackend = 9,
    /// Its keeper is of no use.
    Keeper = 10,
    /// The address cannot be held there.
    Fault = 11,
    /// The interface has no carrier.
    LinkDown = 12,
    /// Something that it watches, and that must hold, does not.
    Track = 13,
}

impl Lack {
    /// All of them, in the order of their numbers.
    pub const ALL: [Lack; 14] = [
        Lack::Nothing,
        Lack::Unknown,
        Lack::Listening,
        Lack::Frozen,
        Lack::NotListed,
        Lack::Demoted,
        Lack::Stopping,
        Lack::NotServing,
        Lack::NoQuorum,
        Lack::NoBackend,
        Lack::Keeper,
        Lack::Fault,
        Lack::LinkDown,
        Lack::Track,
    ];

    /// The obstacle as a clause that follows the name of a node, as the status shows it.
    pub fn text(self) -> &'static str {
        match self {
            Lack::Nothing => "could hold it",
            Lack::Unknown => "does not know the address",
            Lack::Listening => "has just started and listens",
            Lack::Frozen => "was frozen and listens",
            Lack::NotListed => "is not in prefer",
            Lack::Demoted => "was demoted by an operator",
            Lack::Stopping => "is stopping",
            Lack::NotServing => "does not serve",
            Lack::NoQuorum => "has no quorum",
            Lack::NoBackend => "has no backend in a required pool",
            Lack::Keeper => "has no keeper that works",
            Lack::Fault => "cannot install the address",
            Lack::LinkDown => "has no carrier on the interface",
            Lack::Track => "lacks something that it tracks",
        }
    }
}

/// What a node says to another one, once a beat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Rises with every beat of a process.
    pub number: u64,
    /// The newest beat of the receiver that the sender has heard.
    pub echo: Option<u64>,
    /// Time between two beats of the sender.
    pub beat: Duration,
    /// The silence after which the sender is to be taken for dead.
    pub dead_after: Duration,
    /// The longest `dead_after` that the sender knows of: how long a forgotten promise may last.
    pub patience: Duration,
    /// Differs when what all nodes should agree on differs.
    pub settings: u64,
    /// Sum of the weights of what the sender tracks; more comes first.
    pub score: u32,
    /// One for each of the receiver's VIPs.
    pub claims: Vec<Claim>,
}

/// What the machine is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// Nothing but that time has passed.
    Tick,
    /// A beat with a good signature and a new sequence number.
    Beat {
        /// The node that sent it.
        from: NodeIx,
        /// Its contents, translated to this node's indices.
        beat: Beat,
        /// It cannot be older than this: it answers a challenge that we sent then.
        age_max: Duration,
    },
    /// This node's process is known to have ended.
    Gone {
        /// The node that ended.
        node: NodeIx,
    },
    /// A witness answered. One that does not is not told: its last answer ends by age.
    Witness {
        /// Index of the witness, below [`Setup::witnesses`].
        ix: usize,
        /// How long ago it was asked.
        asked: Duration,
    },
    /// Something that this node watches holds, or does not.
    Track {
        /// Index into [`Setup::tracks`].
        ix: usize,
        /// True once it holds, false once it does not.
        holds: bool,
    },
    /// How this process is doing.
    Local(Local),
    /// The whole machine stood still for so long, by a clock that also counts suspension.
    Frozen {
        /// How long the machine stood still.
        gap: Duration,
    },
    /// The keeper did what was asked, or could not.
    Done {
        /// The virtual address concerned.
        vip: VipIx,
        /// The request that this answers.
        effect: Effect,
        /// `Err` gives the keeper's reason.
        result: Result<(), String>,
    },
    /// The keeper lost the address: somebody removed it, or the kernel refuses to renew.
    Lost {
        /// The virtual address concerned.
        vip: VipIx,
        /// The keeper's reason, in words.
        why: String,
    },
    /// The keeper let the address go because it had no proof of life.
    Expired {
        /// The virtual address concerned.
        vip: VipIx,
    },
    /// Whether the interface of an address has a carrier.
    Link {
        /// The virtual address concerned.
        vip: VipIx,
        /// True if its interface is switched on and has a carrier.
        up: bool,
    },
    /// Whether somebody else has configured the address on this host.
    Foreign {
        /// The virtual address concerned.
        vip: VipIx,
        /// True while somebody else's copy is on this host.
        present: bool,
    },
    /// Whether the keeper works; its words if not.
    Keeper(Result<(), String>),
    /// What the arbiter said.
    Arbiter(Answer),
    /// An operator's wish.
    Admin(Order),
}

/// What the keeper was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// To install the address.
    Hold,
    /// To remove the address.
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

/// What the shell is to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Prove life to the keeper.
    Prove,
    /// Have the keeper install the address.
    Hold {
        /// The virtual address concerned.
        vip: VipIx,
    },
    /// Have the keeper tell the neighbours where the address is.
    Announce {
        /// The virtual address concerned.
        vip: VipIx,
        /// A predecessor may still answer for it, so it is announced again and again for a while.
        insist: bool,
    },
    /// Have the keeper remove the address.
    Release {
        /// The virtual address concerned.
        vip: VipIx,
    },
    /// Send [`Table::beat_to`](super::table::Table::beat_to) to every peer.
    Beat,
    /// The keeper reads, but an address is still not gone: have it let go of everything.
    Distrust {
        /// The virtual address concerned.
        vip: VipIx,
    },
    /// Put this question to the arbiter.
    Ask(Question),
    /// Log the change of state and pass it on to whoever is notified.
    Transition {
        /// The virtual address concerned.
        vip: VipIx,
        /// The state before.
        from: State,
        /// The state from now on.
        to: State,
        /// What made it change.
        reason: Reason,
    },
}

/// State of an address on this node, as shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not held here; another node or nobody has it.
    Standby,
    /// Being installed.
    Claiming,
    /// Installed and answered for here.
    Active,
    /// Being removed; the keeper has not yet said that it is gone.
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
        /// How long it stood still, in milliseconds.
        gap_ms: u64,
    },
    /// The node is not in `prefer`.
    NotListed,
    /// An operator said so.
    Demoted,
    /// The process is about to end.
    Stopping,
    /// Something that is tracked, and must hold, does not.
    Track(String),
    /// Workers or listeners are not well.
    NotServing(String),
    /// Fewer voters are reached, or back this node, than the quorum asks for.
    NoQuorum {
        /// Voters reached, or backing us.
        have: u32,
        /// Voters that the quorum asks for, this node included.
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
    /// Nobody holds it, and the arbiter's vote decides, which we do not have.
    Arbiter(String),
    /// We could hold it, but wait until no other kernel can have it any more.
    Quiet,
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
    /// Every node that serves holds it, and this one does.
    Serves,
}

impl Reason {
    /// The same in one word.
    pub fn lack(&self) -> Lack {
        match self {
            Reason::Starting => Lack::Listening,
            Reason::Frozen { .. } => Lack::Frozen,
            Reason::NotListed => Lack::NotListed,
            Reason::Demoted => Lack::Demoted,
            Reason::Stopping => Lack::Stopping,
            Reason::Track(_) => Lack::Track,
            Reason::NotServing(_) => Lack::NotServing,
            Reason::NoQuorum { .. } | Reason::Arbiter(_) => Lack::NoQuorum,
            Reason::NoBackend => Lack::NoBackend,
            Reason::Keeper(_) => Lack::Keeper,
            Reason::Fault(_) => Lack::Fault,
            Reason::LinkDown => Lack::LinkDown,
            _ => Lack::Nothing,
        }
    }

    /// The reason in words; `name` gives the names of nodes.
    pub fn text<'a>(&self, name: impl Fn(NodeIx) -> &'a str) -> String {
        match self {
            Reason::Starting => "just started, listening".into(),
            Reason::Frozen { gap_ms } => format!("was frozen for {gap_ms} ms, listening"),
            Reason::NotListed => "not in prefer".into(),
            Reason::Demoted => "demoted".into(),
            Reason::Track(what) => format!("track {what} does not hold"),
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
            Reason::Arbiter(why) => format!("waiting for the arbiter: {why}"),
            Reason::Quiet => "strict: waiting until no other kernel can have it".into(),
            Reason::First => "first in order".into(),
            Reason::Silent(n) => format!("{} is silent", name(*n)),
            Reason::Gone(n) => format!("{} is gone", name(*n)),
            Reason::From(n) => format!("handed over by {}", name(*n)),
            Reason::To(n) => format!("handed over to {}", name(*n)),
            Reason::Rival(n) => format!("{} holds it too and comes first", name(*n)),
            Reason::Unconfigured => "no longer configured".into(),
            Reason::Serves => "this node serves".into(),
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
    /// The state of the address on this node.
    pub state: State,
    /// The node that holds it, as far as we know.
    pub holder: Option<NodeIx>,
    /// For how long it has been in this state.
    pub since: Duration,
    /// What put it into this state.
    pub reason: Reason,
    /// An operator demoted it.
    pub demoted: bool,
    /// When nobody holds it: what stands in the way, node by node.
    pub nobody: Option<Vec<(NodeIx, Option<Lack>)>>,
}

/// One node as shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// Its beats arrive; see `last_beat`.
    pub alive: bool,
    /// Age of its last beat; `None` before the first one.
    pub last_beat: Option<Duration>,
    /// In which way its configuration differs from this node's, for people; `None` if it does not.
    pub mismatch: Option<String>,
}
