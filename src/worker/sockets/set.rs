//! The listening sockets of one protocol: found by key and by place, registered with epoll while they are served.

use std::collections::{HashMap, HashSet};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use crate::base::{Key, Kind, Side, Slab, Token};
use crate::link::{Address, ListenSocket};
use crate::snapshot::{Listener, Listeners};
use crate::worker::Context;
use crate::worker::os::epoll::Poller;

/// How long the socket of a UDP listener that is gone stays open for replies, milliseconds.
pub(in crate::worker) const LINGER_MS: u64 = 500;
/// After how long a socket that could not be registered with epoll is tried again, milliseconds.
const DEAF_MS: u64 = 50;

/// A listening socket; `T` is what its protocol keeps with it.
pub(in crate::worker) struct Listening<T> {
    /// [`Listener::id`].
    pub id: u32,
    pub local: Arc<Address>,
    pub fd: OwnedFd,
    /// `None` while the snapshot that knows the listener has not arrived.
    pub listener: Option<Arc<Listener>>,
    /// The listener is gone: closed then at the latest, milliseconds since the epoch.
    pub closes_ms: Option<u64>,
    pub own: T,
}

impl<T> Listening<T> {
    pub(in crate::worker) fn duplicate(&self) -> io::Result<ListenSocket> {
        Ok(ListenSocket {
            listener: self.id,
            local: (*self.local).clone(),
            fd: self.fd.try_clone()?,
        })
    }

    pub(in crate::worker) fn into_socket(self) -> ListenSocket {
        ListenSocket {
            listener: self.id,
            local: (*self.local).clone(),
            fd: self.fd,
        }
    }
}

/// The sockets of one protocol.
pub(in crate::worker) struct Set<T> {
    kind: Kind,
    pub(in crate::worker) sockets: Slab<Listening<T>>,
    by_place: HashMap<(u32, Address), Vec<Key>>,
    /// Registered, but nothing is told of them.
    paused: bool,
    /// Some could not be registered; tried again then.
    pub(in crate::worker) deaf_ms: Option<u64>,
}

impl<T> Set<T> {
    pub(in crate::worker) fn new(kind: Kind) -> Set<T> {
        Set {
            kind,
            sockets: Slab::new(),
            by_place: HashMap::new(),
            paused: false,
            deaf_ms: None,
        }
    }

    pub(in crate::worker) fn get(&self, key: Key) -> Option<&Listening<T>> {
        self.sockets.get(key)
    }

    pub(in crate::worker) fn get_mut(&mut self, key: Key) -> Option<&mut Listening<T>> {
        self.sockets.get_mut(key)
    }

    pub(in crate::worker) fn iter(&self) -> impl Iterator<Item = (Key, &Listening<T>)> {
        self.sockets.iter()
    }

    /// Those whose listeners are there.
    pub(in crate::worker) fn served(&self) -> Vec<Key> {
        let served = self
            .sockets
            .iter()
            .filter(|(_, listening)| listening.closes_ms.is_none());
        served.map(|(key, _)| key).collect()
    }

    /// Those of a place, as long as the listener is there.
    pub(in crate::worker) fn at(&self, listener: u32, local: &Address) -> Vec<Key> {
        let place = (listener, local.clone());
        let mut keys = self.by_place.get(&place).cloned().unwrap_or_default();
        keys.retain(|key| self.get(*key).is_some_and(|listening| listening.closes_ms.is_none()));
        keys
    }

    /// Those whose listeners have gone and whose time is over.
    pub(in crate::worker) fn due(&self, now_ms: u64) -> Vec<Key> {
        let due = |closes_ms: Option<u64>| closes_ms.is_some_and(|at| at <= now_ms);
        let due = self.sockets.iter().filter(|(_, listening)| due(listening.closes_ms));
        due.map(|(key, _)| key).collect()
    }

    pub(in crate::worker) fn token(&self, key: Key) -> u64 {
        Token {
            kind: self.kind,
            side: Side::Client,
            key,
        }
        .pack()
    }

    pub(in crate::worker) fn add(&mut self, context: &Context, listening: Listening<T>) -> Key {
        let place = (listening.id, (*listening.local).clone());
        let key = self.sockets.insert(listening);
        let keys = self.by_place.entry(place).or_default();
        keys.push(key);
        if let Err(error) = self.register(&context.poller, key) {
            log::error!(
                "worker {}: cannot watch a listening socket, trying again: {error}",
                context.id
            );
            self.deaf_ms = Some(context.now_ms() + DEAF_MS);
        }
        key
    }

    /// Takes a socket out.
    pub(in crate::worker) fn take(&mut self, poller: &Poller, key: Key) -> Option<Listening<T>> {
        let listening = self.sockets.remove(key)?;
        let _ = poller.remove(listening.fd.as_raw_fd());
        let place = (listening.id, (*listening.local).clone());
        if let Some(keys) = self.by_place.get_mut(&place) {
            keys.retain(|other| *other != key);
            if keys.is_empty() {
                self.by_place.remove(&place);
            }
        }
        Some(listening)
    }

    pub(in crate::worker) fn register(&self, poller: &Poller, key: Key) -> io::Result<()> {
        let Some(listening) = self.get(key) else {
            return Ok(());
        };
        let (fd, token) = (listening.fd.as_raw_fd(), self.token(key));
        match poller.add_level(fd, token) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            _ => poller.set_level(fd, token, !self.paused),
        }
    }

    /// Has nothing told of any socket.
    pub(in crate::worker) fn pause(&mut self, poller: &Poller) {
        self.paused = true;
        for (key, listening) in self.sockets.iter() {
            let _ = poller.set_level(listening.fd.as_raw_fd(), self.token(key), false);
        }
    }

    /// The reverse of [`pause`](Self::pause).
    pub(in crate::worker) fn unpause(&mut self, poller: &Poller, now_ms: u64) {
        self.paused = false;
        self.register_all(poller, now_ms);
    }

    /// Registers all that are served, whether they are already or could not be before.
    pub(in crate::worker) fn register_all(&mut self, poller: &Poller, now_ms: u64) {
        let failed = self
            .served()
            .into_iter()
            .filter(|key| self.register(poller, *key).is_err());
        self.deaf_ms = (failed.count() > 0).then_some(now_ms + DEAF_MS);
    }

    pub(in crate::worker) fn adopt(&mut self, listeners: &Listeners, mut changed: impl FnMut(&mut Listening<T>)) {
        for key in self.sockets.keys() {
            if let Some(listening) = self.sockets.get_mut(key) {
                let known = listeners.get(listening.id).cloned();
                listening.listener = known.or(listening.listener.take());
                changed(listening);
            }
        }
    }

    /// The listeners that have any, also those that are gone.
    pub(in crate::worker) fn listeners(&self) -> HashSet<u32> {
        self.sockets.iter().map(|(_, listening)| listening.id).collect()
    }
}
