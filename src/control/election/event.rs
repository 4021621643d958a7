//! What people are told of the election: the log, `notify`, and whoever wants to hear of it.

use crate::failover::beat::Rejected;
use crate::failover::words::State;

/// What people are told; also sent to whoever gave [`super::Election::start`] a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An address changed its state on this node.
    Transition {
        /// Address with prefix length.
        vip: String,
        /// Its interface.
        interface: String,
        /// From.
        from: State,
        /// To.
        to: State,
        /// Why, in words.
        reason: String,
        /// Who holds it now, as far as we know.
        holder: Option<String>,
    },
    /// A node began or ceased to be heard.
    Node {
        /// Its name.
        name: String,
        /// It is heard.
        alive: bool,
    },
    /// A node is configured otherwise than this one.
    Mismatch {
        /// Its name.
        name: String,
        /// In which way.
        what: String,
    },
    /// A witness began or ceased to answer.
    Witness {
        /// Its address.
        address: std::net::SocketAddr,
        /// It answers.
        up: bool,
    },
    /// The arbiter began or ceased to answer; its words if not.
    Arbiter {
        /// Why it is of no use.
        problem: Option<String>,
    },
    /// The arbiter's vote became this node's, or is so no longer.
    Vote {
        /// On which address, or on the first one of which group.
        unit: String,
        /// It counts for us.
        ours: bool,
    },
    /// Something that is tracked holds, or does so no longer.
    Track {
        /// Its name.
        name: String,
        /// What is watched, in words.
        what: String,
        /// Why it does not hold.
        problem: Option<String>,
    },
    /// The keeper can install addresses again, or cannot for this reason.
    Keeper(Option<String>),
    /// A beat was refused; at most one a second is told, all are counted.
    Rejected {
        /// Why.
        why: Rejected,
        /// From where.
        from: String,
    },
    /// Something else.
    Note(String),
}

impl Event {
    /// Of the line in the log.
    pub fn level(&self) -> log::Level {
        match self {
            Event::Transition { to: State::Fault, .. }
            | Event::Node { alive: false, .. }
            | Event::Witness { up: false, .. }
            | Event::Arbiter { problem: Some(_) }
            | Event::Track { problem: Some(_), .. }
            | Event::Mismatch { .. }
            | Event::Rejected { .. }
            | Event::Note(_) => log::Level::Warn,
            Event::Keeper(Some(_)) => log::Level::Error,
            _ => log::Level::Info,
        }
    }
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Event::Transition {
                vip,
                interface,
                from,
                to,
                reason,
                ..
            } => write!(
                f,
                "vip {vip} on {interface}: {} -> {}: {reason}",
                from.word(),
                to.word()
            ),
            Event::Node { name, alive: true } => write!(f, "node {name} is alive"),
            Event::Node { name, alive: false } => write!(f, "node {name} is not heard any more"),
            Event::Mismatch { name, what } => write!(f, "node {name} is configured otherwise: {what}"),
            Event::Witness { address, up: true } => write!(f, "witness {address} answers"),
            Event::Witness { address, up: false } => write!(f, "witness {address} does not answer"),
            Event::Arbiter { problem: None } => f.write_str("the arbiter answers"),
            Event::Arbiter { problem: Some(why) } => write!(f, "the arbiter does not answer: {why}"),
            Event::Vote { unit, ours: true } => write!(f, "the arbiter's vote on {unit} is ours"),
            Event::Vote { unit, ours: false } => write!(f, "the arbiter's vote on {unit} is ours no longer"),
            Event::Track {
                name,
                what,
                problem: None,
            } => write!(f, "track {name} holds: {what}"),
            Event::Track {
                name,
                what,
                problem: Some(why),
            } => write!(f, "track {name} does not hold: {what}: {why}"),
            Event::Keeper(None) => f.write_str("keeper: works"),
            Event::Keeper(Some(why)) => write!(f, "keeper: {why}"),
            Event::Rejected { why, from } => write!(f, "beat from {from} refused: {}", why.word()),
            Event::Note(text) => write!(f, "failover: {text}"),
        }
    }
}
