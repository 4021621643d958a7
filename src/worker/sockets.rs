//! The listening sockets of one worker, of both protocols: served, shared, given away, paused, closed.
//!
//! # How it works
//!
//! A socket belongs to a listener and an address, its *place*; a worker may have several at one place, from workers that have
//! retired. It is registered with epoll for as long as it is served, level-triggered (see [`crate::sys::epoll`]). An
//! epoll registration belongs to the open file, which a duplicate in another process keeps open, so each is removed by
//! hand before a descriptor is closed or leaves.
//!
//! | what happens | streams | datagrams |
//! |---|---|---|
//! | a listener goes ([`Sockets::remove`]) | the queue is served, then closed ([`Accepting`](super::listen::Accepting)) | not read any more, closed a moment later, when the replies under way have passed |
//! | another worker gets it ([`Sockets::hand_over`], [`Sockets::spread`]) | queue and all | with the sessions of its clients |
//! | another process has it too ([`Sockets::release`]) | closed as it is | the same; the sessions are given away |
//!
//! A socket that could not be registered is tried again every 50 ms.
//!
//! # Invariants
//!
//! 1. A socket whose listener has gone (`closes_ms`) never leaves this worker: it would live on elsewhere.
//! 2. A datagram of a known client never meets a worker that has its socket but not its session: both leave in one step.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

pub(super) mod set;

use super::Context;
use super::listen::Stream;
use super::udp::{Datagram, Udp};
use set::{LINGER_MS, Listening, Set};

use crate::base::{Key, Kind};
use crate::flow::Tally;
use crate::link::{self, Address, Command, HandedSession, ListenSocket, SocketMove};
use crate::snapshot::Listeners;
use crate::worker::os::udp;

/// The listening sockets of one worker, of both protocols.
pub(super) struct Sockets {
    pub streams: Set<Stream>,
    pub datagrams: Set<Datagram>,
    /// When the next datagram socket of a listener that is gone is closed, milliseconds.
    closing_ms: Option<u64>,
}

impl Sockets {
    pub(super) fn new() -> Sockets {
        Sockets {
            streams: Set::new(Kind::Listen),
            datagrams: Set::new(Kind::Datagram),
            closing_ms: None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.streams.sockets.is_empty() && self.datagrams.sockets.is_empty()
    }

    /// When [`expire`](Self::expire) has something to do.
    pub(super) fn next_timer(&self) -> Option<u64> {
        let timers = [self.streams.deaf_ms, self.datagrams.deaf_ms, self.closing_ms];
        timers.into_iter().flatten().min()
    }

    /// The listeners are others than before.
    pub(super) fn adopt(&mut self, listeners: &Listeners) {
        self.streams.adopt(listeners, Stream::set_up);
        self.datagrams.adopt(listeners, |_| {});
    }

    /// Serves a socket, with the sessions that belong to it.
    pub(super) fn serve(
        &mut self,
        context: &mut Context,
        udp: &mut Udp,
        socket: ListenSocket,
        sessions: Vec<HandedSession>,
    ) {
        let listener = context.snapshot.listener(socket.listener).cloned();
        if !socket.is_datagram() {
            let mut listening = Listening {
                id: socket.listener,
                local: Arc::new(socket.local),
                fd: socket.fd,
                listener,
                closes_ms: None,
                own: Stream::default(),
            };
            Stream::set_up(&mut listening);
            self.streams.add(context, listening);
            return;
        }
        let Some(address) = socket.local.ip() else { return };
        let device = socket.local.device().map_or(0, |device| device.index);
        let prepared = match udp::prepare(socket.fd, address, udp::LISTEN_BUFFER) {
            Ok(prepared) => prepared,
            Err(error) => return log::error!("worker {}: cannot set up {address}/udp: {error}", context.id),
        };
        if prepared.receive_buffer < udp::LISTEN_BUFFER {
            log::warn!(
                "worker {}: {address}/udp has a receive buffer of {} bytes: bursts will be lost; raise net.core.rmem_max to {} or grant CAP_NET_ADMIN",
                context.id,
                prepared.receive_buffer,
                udp::LISTEN_BUFFER,
            );
        }
        if let Some(listener) = &listener {
            udp.know(listener);
        }
        // Another process or worker may have counted up to here.
        let drops = Tally::starting_at(udp::dropped(prepared.fd.as_raw_fd()));
        let listening = Listening {
            id: socket.listener,
            local: Arc::new(socket.local),
            fd: prepared.fd,
            listener,
            closes_ms: None,
            own: Datagram::new(address, device, prepared.wildcard, drops),
        };
        let key = self.datagrams.add(context, listening);
        udp.arrive(context, &self.datagrams, key, sessions);
    }

    /// Duplicates of the sockets at these places, or of all, as far as their listeners are there.
    pub(super) fn share(&self, of: Option<&[(u32, Address)]>) -> io::Result<Vec<ListenSocket>> {
        let of: Option<HashSet<(u32, &Address)>> = of.map(|of| of.iter().map(|(id, local)| (*id, local)).collect());
        let is_meant = |id: u32, local: &Address| of.as_ref().is_none_or(|of| of.contains(&(id, local)));
        let streams = self.streams.sockets.iter().map(|(_, l)| l);
        let streams = streams.filter(|l| l.closes_ms.is_none() && is_meant(l.id, &l.local));
        let datagrams = self.datagrams.sockets.iter().map(|(_, l)| l);
        let datagrams = datagrams.filter(|l| l.closes_ms.is_none() && is_meant(l.id, &l.local));
        let streams = streams.map(Listening::duplicate);
        streams.chain(datagrams.map(Listening::duplicate)).collect()
    }

    /// Closes the sockets at these places, whose queues another process serves; returns their sessions.
    pub(super) fn release(
        &mut self,
        context: &Context,
        udp: &mut Udp,
        places: &[(u32, Address)],
    ) -> Vec<HandedSession> {
        let mut sessions = Vec::new();
        for (listener, local) in places {
            for key in self.streams.at(*listener, local) {
                self.streams.take(&context.poller, key);
            }
            for key in self.datagrams.at(*listener, local) {
                sessions.extend(udp.leave(context, &mut self.datagrams, key));
                self.datagrams.take(&context.poller, key);
            }
        }
        sessions
    }

    /// Gives every socket to another worker, with queue and sessions. What is about to be closed is closed here.
    pub(super) fn hand_over(&mut self, context: &Context, udp: &mut Udp, to: &link::Worker) {
        for key in self.streams.served() {
            self.give_stream(context, key, to);
        }
        for key in self.datagrams.served() {
            self.give_datagram(context, udp, key, to);
        }
    }

    /// Gives all sockets of a place but one away.
    pub(super) fn spread(
        &mut self,
        context: &Context,
        udp: &mut Udp,
        (listener, local): (u32, &Address),
        to: &link::Recipients,
    ) {
        for key in self.streams.at(listener, local).into_iter().skip(1) {
            let Some(worker) = to.next() else { return };
            self.give_stream(context, key, worker);
        }
        for key in self.datagrams.at(listener, local).into_iter().skip(1) {
            let Some(worker) = to.next() else { return };
            self.give_datagram(context, udp, key, worker);
        }
    }

    fn give_stream(&mut self, context: &Context, key: Key, to: &link::Worker) {
        if let Some(listening) = self.streams.take(&context.poller, key) {
            to.send(Command::Sockets(SocketMove::Serve {
                socket: listening.into_socket(),
                sessions: Vec::new(),
            }));
        }
    }

    fn give_datagram(&mut self, context: &Context, udp: &mut Udp, key: Key, to: &link::Worker) {
        let sessions = udp.leave(context, &mut self.datagrams, key);
        if let Some(listening) = self.datagrams.take(&context.poller, key) {
            to.send(Command::Sockets(SocketMove::Serve {
                socket: listening.into_socket(),
                sessions,
            }));
        }
    }

    /// The listener at a place is gone. Datagrams are not read any more; returns the streams, whose queues are to be served
    /// first.
    pub(super) fn remove(&mut self, context: &mut Context, udp: &mut Udp, listener: u32, local: &Address) -> Vec<Key> {
        for key in self.datagrams.at(listener, local) {
            self.mute(context, udp, key);
        }
        self.streams.at(listener, local)
    }

    /// Reads no more from a socket and closes it a moment later; at once if another socket has taken its place, because the
    /// kernel would go on to give this one a share of the clients.
    fn mute(&mut self, context: &mut Context, udp: &mut Udp, key: Key) {
        let closes_ms = context.now_ms() + LINGER_MS;
        let Some(listening) = self.datagrams.get_mut(key) else {
            return;
        };
        let _ = context.poller.remove(listening.fd.as_raw_fd());
        listening.closes_ms = Some(closes_ms);
        let local = listening.local.clone();
        let succeeds = |other: &Listening<Datagram>| other.closes_ms.is_none() && other.local == local;
        let succeeded = self.datagrams.iter().any(|(_, other)| succeeds(other));
        udp.mute(context, key, succeeded);
        if succeeded {
            self.datagrams.take(&context.poller, key);
        } else {
            self.closing_ms = Some(self.closing_ms.map_or(closes_ms, |at| at.min(closes_ms)));
        }
    }

    /// Does what is due: closes the datagram sockets of listeners that are gone, registers what could not be registered.
    pub(super) fn expire(&mut self, context: &mut Context, udp: &mut Udp) {
        let now_ms = context.now_ms();
        if self.closing_ms.is_some_and(|at| at <= now_ms) {
            for key in self.datagrams.due(now_ms) {
                udp.close(context, key);
                self.datagrams.take(&context.poller, key);
            }
            self.closing_ms = self.datagrams.iter().filter_map(|(_, l)| l.closes_ms).min();
        }
        if self.streams.deaf_ms.is_some_and(|at| at <= now_ms) {
            self.streams.register_all(&context.poller, now_ms);
        }
        if self.datagrams.deaf_ms.is_some_and(|at| at <= now_ms) {
            self.datagrams.register_all(&context.poller, now_ms);
        }
    }
}
