//! What a configuration says about what carries a listener: see [`model`](super::model).

use std::time::Duration;

/// The section `kernel:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Where the program is attached; empty = every Ethernet interface.
    pub interfaces: Vec<String>,
    /// Bound of the table of established flows; `None` = [`FLOWS_AUTO`].
    pub flows: Option<u32>,
    /// How long flows outlive a process that is gone.
    pub restart_grace: Duration,
}

/// Established flows of the kernel engine, if the file does not say.
pub const FLOWS_AUTO: u32 = 262_144;

/// `listeners.NAME.engine`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Engine {
    /// Sockets and worker threads.
    Proxy,
    /// Packets are translated by a program in the kernel.
    Kernel,
}

impl Engine {
    /// The word in files and documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Engine::Proxy => "proxy",
            Engine::Kernel => "kernel",
        }
    }
}

/// `pools.NAME.kernel.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KernelMode {
    /// Backends see an address of this host.
    Nat,
    /// Backends see the client and answer through this host.
    Keep,
    /// Backends have the service's address and answer the client.
    Dsr,
}

/// Transport protocol of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Byte streams.
    Tcp,
    /// Datagrams.
    Udp,
}
