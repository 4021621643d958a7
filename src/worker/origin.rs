//! Where a connection comes from and what it asks for: what is known of it before it has a backend.

use std::net::SocketAddr;
use std::sync::Arc;

use super::Context;
use crate::balance::Cursor;
use crate::config::model::{Protocol, SendProxy};
use crate::gate::ListenerPermit;
use crate::link::Address;
use crate::relay::proxy_header;
use crate::routing::Asked;
use crate::snapshot::{Backend, Listener, Pool};

/// So many connections of a listener in a row, on one worker, whose client spoke first: the next one will, too.
const CLIENTS_FIRST: u64 = 64;

/// Who the client is and how it came in.
pub(super) struct Origin {
    pub listener: Arc<Listener>,
    pub local: Arc<Address>,
    pub client: Option<SocketAddr>,
    /// What a PROXY header said that the client connected to.
    pub destination: Option<SocketAddr>,
    /// Its place among the listener's connections, once it was let in.
    pub permit: Option<ListenerPermit>,
    /// The server that it asked for by name, and where that led.
    pub asked: Asked,
}

impl Origin {
    /// The pool that is to serve it, with this worker's cursor for it.
    pub(super) fn pool<'a>(&self, context: &'a mut Context) -> Option<(Arc<Pool>, &'a mut Cursor)> {
        match &self.asked.way {
            Some(way) => context.pool_by_name(way),
            None => context.pool_of(&self.listener),
        }
    }

    /// Whether clients of its listener have been the first to speak lately.
    pub(super) fn speaks_first(&self, worker: usize) -> bool {
        let shard = self.listener.stats.shards.of(worker);
        shard.clients_first.get() >= CLIENTS_FIRST
    }

    /// Notes who spoke first, when the backend has spoken.
    pub(super) fn note_first_speaker(&self, worker: usize, client_spoke: bool) {
        let shard = self.listener.stats.shards.of(worker);
        match client_spoke {
            false => shard.clients_first.set(0),
            true => shard.clients_first.add(1),
        }
    }

    /// The PROXY header that the pool wants its backends to see.
    pub(super) fn header_for(&self, backend: &Backend) -> Vec<u8> {
        if backend.send_proxy == SendProxy::Off {
            return Vec::new();
        }
        let used = self.destination.or(self.local.ip());
        proxy_header::build(backend.send_proxy, Protocol::Tcp, self.client.zip(used))
    }
}
