//! What people are told of the election: the log, `notify`, and whoever wants to hear of it.

use serde::{Serialize, Serializer};

use crate::control::events::Telling;
use crate::failover::beat::Rejected;
use crate::failover::words::State;

/// What people are told; also sent to whoever gave [`super::Election::start`] a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// An address changed its state on this node.
    #[serde(rename = "vip")]
    Transition {
        /// Address with prefix length.
        #[serde(rename = "address")]
        vip: String,
        /// Its interface.
        interface: String,
        /// The state before.
        #[serde(rename = "was")]
        from: State,
        /// The state now.
        #[serde(rename = "state")]
        to: State,
        /// What changed it, in words.
        reason: String,
        /// Who holds it now, as far as we know.
        holder: Option<String>,
    },
    /// A node began or ceased to be heard.
    Node {
        /// Name of the node.
        #[serde(rename = "node")]
        name: String,
        /// True once it is heard, false once it is not.
        alive: bool,
    },
    /// A node is configured otherwise than this one.
    #[serde(rename = "node_config")]
    Mismatch {
        /// Name of the node.
        #[serde(rename = "node")]
        name: String,
        /// What differs, in words.
        what: String,
    },
    /// A witness began or ceased to answer.
    Witness {
        /// Address and port of the witness.
        address: std::net::SocketAddr,
        /// True once it answers, false once it does not.
        up: bool,
    },
    /// The arbiter began or ceased to answer; its words if not.
    Arbiter {
        /// Why it is of no use.
        #[serde(rename = "error")]
        problem: Option<String>,
    },
    /// The arbiter's vote became this node's, or is so no longer.
    Vote {
        /// On which address, or on the first one of which group.
        #[serde(rename = "address")]
        unit: String,
        /// It counts for us.
        ours: bool,
    },
    /// Something that is tracked holds, or does so no longer.
    Track {
        /// Its name in the configuration.
        #[serde(rename = "track")]
        name: String,
        /// What is watched, in words.
        what: String,
        /// Why it does not hold.
        #[serde(rename = "error")]
        problem: Option<String>,
    },
    /// The keeper can install addresses again, or cannot for this reason.
    Keeper {
        /// Why nothing can be installed; `None` = the keeper works.
        #[serde(rename = "error")]
        problem: Option<String>,
    },
    /// A beat was refused; at most one a second is told, all are counted.
    #[serde(rename = "beat_refused")]
    Rejected {
        /// Why the beat was refused.
        #[serde(rename = "reason", serialize_with = "word")]
        why: Rejected,
        /// Address and port of the sender; `?` if they are not known.
        from: String,
    },
    /// Any other line of the event log.
    #[serde(rename = "log")]
    Note {
        /// The line's words.
        #[serde(skip)]
        text: String,
    },
}

fn word<S: Serializer>(why: &Rejected, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(why.word())
}

impl Telling for Event {
    fn level(&self) -> log::Level {
        match self {
            Event::Transition { to: State::Fault, .. }
            | Event::Node { alive: false, .. }
            | Event::Witness { up: false, .. }
            | Event::Arbiter { problem: Some(_) }
            | Event::Track { problem: Some(_), .. }
            | Event::Mismatch { .. }
            | Event::Rejected { .. }
            | Event::Note { .. } => log::Level::Warn,
            Event::Keeper { problem: Some(_) } => log::Level::Error,
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
            Event::Keeper { problem: None } => f.write_str("keeper: works"),
            Event::Keeper { problem: Some(why) } => write!(f, "keeper: {why}"),
            Event::Rejected { why, from } => write!(f, "beat from {from} refused: {}", why.word()),
            Event::Note { text } => write!(f, "failover: {text}"),
        }
    }
}
