//! Listening sockets that this process did not bind itself: from the process before it in an upgrade, or from the service manager.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use crate::config::model::{Listener, Protocol};
use crate::link::Address;

/// A listening socket as both processes name it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Label {
    /// Of a listener of the configuration.
    Listener {
        /// Name of the listener.
        name: String,
        /// Datagrams instead of streams.
        udp: bool,
        /// What the file says (the port may be 0).
        wanted: Address,
        /// What it is bound to.
        local: Address,
    },
    /// One of our own, such as `admin /run/weir/admin.sock`.
    Own(String),
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Label::Listener { name, local, .. } => write!(f, "{name} {}", local),
            Label::Own(name) => f.write_str(name),
        }
    }
}

impl Label {
    /// The label of a listener's socket.
    pub fn listener(name: &str, protocol: Protocol, wanted: &Address, local: &Address) -> Label {
        Label::Listener {
            name: name.to_string(),
            udp: protocol == Protocol::Udp,
            wanted: wanted.clone(),
            local: local.clone(),
        }
    }
}

/// Sockets that nobody has claimed yet.
#[derive(Debug, Default)]
pub struct InheritedSockets(Vec<(Label, OwnedFd)>);

/// A socket that was inherited for an address.
#[derive(Debug)]
pub struct InheritedSocket {
    /// What it is bound to.
    pub local: Address,
    /// Its descriptor.
    pub fd: OwnedFd,
}

impl InheritedSockets {
    /// Adds sockets that a predecessor or a service manager handed over.
    pub fn extend(&mut self, sockets: impl IntoIterator<Item = (Label, OwnedFd)>) {
        self.0.extend(sockets);
    }

    /// Claims the sockets of one address of a listener. An address that has moved to another listener is found too,
    /// unless the kernel chose its port.
    pub fn claim(&mut self, listener: &Listener, wanted: &Address) -> Vec<InheritedSocket> {
        let is_fixed = wanted.ip().is_none_or(|address| address.port() != 0);
        let fits = |label: &Label| match label {
            Label::Listener {
                name,
                udp,
                wanted: its,
                local,
            } if *udp == (listener.protocol == Protocol::Udp)
                && (*name == listener.name && *its == *wanted || is_fixed && *local == *wanted) =>
            {
                Some(local.clone())
            }
            _ => None,
        };
        // All of one place: a service manager may have sockets of one address on several interfaces.
        let place = self.0.iter().find_map(|(label, _)| fits(label));
        let (claimed, left) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|(label, _)| place.is_some() && fits(label) == place);
        self.0 = left;
        let claimed: Vec<(Label, OwnedFd)> = claimed;
        claimed
            .into_iter()
            .filter_map(|(label, fd)| match label {
                Label::Listener { local, .. } => Some(InheritedSocket { local, fd }),
                Label::Own(_) => None,
            })
            .collect()
    }

    /// Claims a socket of our own.
    pub fn claim_own(&mut self, name: &str) -> Option<OwnedFd> {
        let is_it = |(label, _): &(Label, OwnedFd)| matches!(label, Label::Own(its) if its == name);
        let ix = self.0.iter().position(is_it)?;
        Some(self.0.swap_remove(ix).1)
    }

    /// Claims all of our own whose names begin like this; returns the names.
    pub fn claim_all_own(&mut self, prefix: &str) -> Vec<String> {
        let begins = |(label, _): &mut (Label, OwnedFd)| matches!(label, Label::Own(its) if its.starts_with(prefix));
        let claimed = self.0.extract_if(.., begins);
        claimed.map(|(label, _)| label.to_string()).collect()
    }

    /// Closes what is left; returns the names.
    pub fn discard(&mut self) -> Vec<Label> {
        let mut labels: Vec<Label> = self.0.drain(..).map(|(label, _)| label).collect();
        labels.dedup();
        labels
    }
}
