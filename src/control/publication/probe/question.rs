//! What is asked of whom: a pool's rules and a backend, as one probe.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::tls::Secured;
use crate::config::model::{HttpMethod, HttpProbe, PoolPolicy, ProbeKind};
use crate::health::answer::Expected;
use crate::health::schedule::Run;
use crate::route::{self, Purpose};
use crate::snapshot::Backend;
use crate::sys::route::{Route, Target};

/// Longest that an agent may take, unless the backend's own probe may take longer.
const AGENT_TIMEOUT_MIN: Duration = Duration::from_secs(1);

/// One probe to carry out.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Handed back with the verdict.
    pub run: Run,
    /// Where to, and from where.
    pub route: Route,
    /// Whether it is a datagram rather than a stream.
    pub datagram: bool,
    /// The TLS that it runs over; `None` = none.
    pub tls: Option<Secured>,
    /// Time that the probe may take from its start to its verdict.
    pub timeout: Duration,
    /// Whether further sockets try while nothing answers.
    pub insists: bool,
    /// What to send; empty = nothing.
    pub send: Arc<[u8]>,
    /// What has to come.
    pub expected: Expected,
}

impl Probe {
    /// A probe of this backend by the rules of its pool.
    pub fn new(run: Run, pool: &PoolPolicy, tls: Option<&Secured>, backend: &Backend, insists: bool) -> Probe {
        let health = &pool.health;
        let route = route::resolve(&backend.config, pool, Purpose::Probe);
        let datagram = health.kind == ProbeKind::Udp;
        let (send, expected) = match &health.http {
            Some(http) => (
                question(http, &route.target).into(),
                Expected::Http(http.expect.as_slice().into()),
            ),
            None if health.expect.is_empty() && !datagram => (health.send.as_slice().into(), Expected::Connection),
            None => (
                health.send.as_slice().into(),
                Expected::Bytes(health.expect.as_slice().into()),
            ),
        };
        Probe {
            run,
            route,
            datagram,
            tls: tls.cloned(),
            timeout: health.timeout,
            insists,
            send,
            expected,
        }
    }

    /// A question to this backend's agent; nothing if it has none.
    pub fn agent(run: Run, pool: &PoolPolicy, backend: &Backend) -> Option<Probe> {
        let agent = pool.health.agent.as_ref()?;
        Some(Probe {
            run,
            route: route::resolve(&backend.config, pool, Purpose::Agent(agent.port)),
            datagram: false,
            tls: None,
            timeout: pool.health.timeout.max(AGENT_TIMEOUT_MIN),
            insists: false,
            send: agent.send.as_slice().into(),
            expected: Expected::Line,
        })
    }
}

/// A question in HTTP/1.1, after whose answer the backend closes.
fn question(http: &HttpProbe, target: &Target) -> Vec<u8> {
    let method = match http.method {
        HttpMethod::Get => "GET",
        HttpMethod::Head => "HEAD",
        HttpMethod::Options => "OPTIONS",
    };
    let host = match (&http.host, target) {
        (Some(host), _) => host.clone(),
        (None, Target::Ip(address)) => SocketAddr::new(address.ip(), address.port()).to_string(),
        (None, Target::Unix(_)) => "localhost".into(),
    };
    let path = &http.path;
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: weir/{version}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    )
    .into()
}
