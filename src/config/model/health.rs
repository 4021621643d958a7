//! `pools.NAME.health`: how backends are probed, and what their agents say.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// `pools.NAME.health`.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    /// What a probe does, and what it expects.
    pub kind: ProbeKind,
    /// Time between probes of one backend.
    pub interval: Duration,
    /// Time one probe may take, connect to verdict.
    pub timeout: Duration,
    /// Successes in a row that bring a backend up.
    pub rise: u32,
    /// Failures in a row that take it down.
    pub fall: u32,
    /// Port if not the backend's own.
    pub port: Option<u16>,
    /// Bytes sent after connecting.
    pub send: Vec<u8>,
    /// Bytes that the answer must contain.
    pub expect: Vec<u8>,
    /// A question in HTTP in their place.
    pub http: Option<HttpProbe>,
    /// TLS below whatever is asked.
    pub tls: Option<ProbeTls>,
    /// A program beside the backend that says how it is.
    pub agent: Option<Agent>,
}

/// `pools.NAME.health.http`.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpProbe {
    /// How it is asked for.
    pub method: HttpMethod,
    /// What is asked for.
    pub path: String,
    /// The `Host` header; `None` = the backend's address.
    pub host: Option<String>,
    /// Statuses of an answer that pass, in ranges.
    pub expect: Vec<RangeInclusive<u16>>,
}

/// `pools.NAME.health.http.method`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpMethod {
    /// `GET`: headers and body are asked for.
    Get,
    /// `HEAD`: headers alone are asked for.
    Head,
    /// What may be asked.
    Options,
}

/// `pools.NAME.health.tls`, `ca` and `server_name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeTls {
    /// Certificates are verified against these; `None` = not verified.
    pub ca: Option<PathBuf>,
    /// Sent as the server's name, and looked for in its certificate; `None` = none is sent, the address is looked for.
    pub server_name: Option<String>,
}

/// `pools.NAME.health.agent`.
#[derive(Debug, Clone, PartialEq)]
pub struct Agent {
    /// Port of the agent, at each backend's address.
    pub port: u16,
    /// Time between questions.
    pub interval: Duration,
    /// Bytes sent after connecting.
    pub send: Vec<u8>,
}

/// `pools.NAME.health.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeKind {
    /// Connect; optionally send and expect.
    Tcp,
    /// Send a datagram and expect an answer.
    Udp,
    /// No probes: always up.
    None,
}
