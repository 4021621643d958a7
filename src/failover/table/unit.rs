//! What is known of the addresses that are held together.

use super::*;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Yield {
    pub to: NodeIx,
    /// The successor must have begun to claim it by then.
    pub until: At,
    /// The successor must hold it by then.
    pub finish: At,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Trouble {
    pub why: String,
    pub until: At,
}

/// An address within its unit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Member {
    pub vip: VipIx,
    pub link_up: bool,
    pub foreign: bool,
    /// The keeper has it installed.
    pub installed: bool,
    /// The keeper was asked to remove it, and has not answered.
    pub leaving: bool,
}

/// Addresses that are held together; most have one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Unit {
    pub members: Vec<Member>,
    /// Of the first member, requiring what any of them does.
    pub rule: Rule,
    /// See [`Claim::rules`].
    pub mark: u32,
    /// Never `Fault`: that is derived.
    pub state: State,
    /// Why we hold it, or why we let it go last.
    pub reason: Reason,
    pub since: At,
    pub shown: State,
    pub demoted: bool,
    pub trouble: Option<Trouble>,
    pub troubles: u32,
    pub yields: Option<Yield>,
    /// Successors that did not take it in time, and until when they are passed over.
    pub snubbed: Vec<(NodeIx, At)>,
    /// Since when we have been fit without a break.
    pub ready_since: Option<At>,
    pub last_holder: Option<NodeIx>,
    pub insist: bool,
    pub rivals: bool,
    /// Some live node has other rules for it.
    pub disputed: bool,
    /// When we began to listen on it: process started, link came up, address configured.
    pub began: At,
    /// When a peer was heard first after that.
    pub heard: Option<At>,
    pub vote: Option<Vote>,
    /// What the vote of the last step said.
    pub backs: Option<NodeIx>,
    /// Number of the first beat that says that we back ourselves.
    pub candidate_since: Option<u64>,
    /// Votes may be lacking until then: a planned move to this node has failed, and they are on their way back.
    pub excused: Option<(NodeIx, At)>,
    /// When the keeper was asked first, and last.
    pub asked: (At, At),
    /// Since when enough have backed us without a break; kept only with `strict`.
    pub backed_since: Option<At>,
    /// Until then our kernel may have it although nobody here holds it; kept only with `strict`.
    pub lingers_until: At,
}

impl Unit {
    pub fn new(rule: Rule, mark: u32) -> Unit {
        Unit {
            members: Vec::new(),
            rule,
            mark,
            state: State::Standby,
            reason: Reason::Starting,
            since: 0,
            shown: State::Standby,
            demoted: false,
            trouble: None,
            troubles: 0,
            yields: None,
            snubbed: Vec::new(),
            ready_since: None,
            last_holder: None,
            insist: false,
            rivals: false,
            disputed: false,
            began: 0,
            heard: None,
            vote: None,
            backs: None,
            candidate_since: None,
            excused: None,
            asked: (0, 0),
            backed_since: None,
            lingers_until: 0,
        }
    }

    /// Whether other nodes may hold it at the same time.
    pub fn is_shared(&self) -> bool {
        self.rule.hold == Holders::All
    }

    /// Listens from now on.
    pub fn begin(&mut self, now: At) {
        self.began = now;
        self.heard = None;
        self.ready_since = None;
    }
}

impl Member {
    pub fn forget(&mut self) {
        self.installed = false;
        self.leaving = false;
    }
}
