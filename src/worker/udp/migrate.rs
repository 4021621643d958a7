//! Sessions that go to another process or worker together with their listening socket, or come back because that process
//! failed.
//!
//! A datagram of a known client must never meet a worker that has its listening socket but not its session: it would open
//! another session, perhaps at another backend. So both leave in one step ([`Udp::release`]) and arrive in one
//! ([`Udp::settle`]); in between datagrams of both directions wait in the kernel's buffers.

use std::io;
use std::os::fd::AsRawFd;

use mio::Poll;

use super::life::{leave_seat, take_seat};
use super::session::{Mark, Session};
use super::{Context, GROUP_MAX, Listening, Udp, token};
use crate::base::{Key, Kind};
use crate::flow::{Dropped, Endpoints, ListenerIx, State, Tally};
use crate::link::{self, Command, ListenSocket, Local, Migrant, Passport};
use crate::relay::{By, Cause};
use crate::snapshot::{Listener, Place};
use crate::sys::{epoll, socket, udp};

impl Udp {
    /// Duplicates of the listening sockets that are read here and meant, by listener and address.
    pub(in crate::worker) fn share(&self, is_meant: impl Fn(u32, &Local) -> bool) -> io::Result<Vec<ListenSocket>> {
        let sockets = self.sockets.iter();
        let read = sockets.filter(|(_, l)| !l.mute && is_meant(l.id, &l.local));
        let duplicates = read.map(|(_, listening)| {
            Ok(ListenSocket {
                listener: listening.id,
                local: (*listening.local).clone(),
                fd: listening.socket.fd.try_clone()?,
            })
        });
        duplicates.collect()
    }

    /// Closes the listening sockets at `places`, whose queues another process serves, and gives away their sessions.
    pub(in crate::worker) fn release(
        &mut self,
        poll: &Poll,
        context: &Context,
        places: &[(u32, Local)],
    ) -> Vec<Migrant> {
        let mut migrants = Vec::new();
        for key in self.sockets.keys() {
            let Some(listening) = self.sockets.get(key) else {
                continue;
            };
            let is_here = |(id, local): &(u32, Local)| *id == listening.id && *local == *listening.local;
            if !places.iter().any(is_here) {
                continue;
            }
            let fd = listening.socket.fd.as_raw_fd();
            if !listening.mute {
                let _ = epoll::remove(poll, fd);
            }
            let identity = socket::identity(fd);
            self.leave(poll, context, key, identity, &mut migrants);
            self.sockets.remove(key);
        }
        migrants
    }

    /// Gives every listening socket and its sessions to another worker.
    pub(in crate::worker) fn hand_over(&mut self, poll: &Poll, context: &Context, to: &link::Worker) {
        for key in self.sockets.keys() {
            // What is muted closes here, in a moment.
            if self.sockets.get(key).is_some_and(|l| !l.mute) {
                self.give(poll, context, key, to);
            }
        }
    }

    /// Gives all listening sockets of `listener` at `local` but one away, with their sessions.
    pub(in crate::worker) fn spread(
        &mut self,
        poll: &Poll,
        context: &Context,
        listener: u32,
        local: &Local,
        to: &link::Recipients,
    ) {
        let is_it = |l: &Listening| !l.mute && l.id == listener && *l.local == *local;
        let mut keys = self.sockets.keys();
        keys.retain(|key| self.sockets.get(*key).is_some_and(is_it));
        for key in keys.into_iter().skip(1) {
            let Some(worker) = to.next() else { return };
            self.give(poll, context, key, worker);
        }
    }

    fn give(&mut self, poll: &Poll, context: &Context, key: Key, to: &link::Worker) {
        let Some(listening) = self.sockets.get(key) else {
            return;
        };
        let fd = listening.socket.fd.as_raw_fd();
        let _ = epoll::remove(poll, fd);
        let mut migrants = Vec::new();
        self.leave(poll, context, key, socket::identity(fd), &mut migrants);
        if let Some(listening) = self.sockets.remove(key) {
            let socket = ListenSocket {
                listener: listening.id,
                local: (*listening.local).clone(),
                fd: listening.socket.fd,
            };
            to.send(Command::Settle { socket, migrants });
        }
    }

    /// Takes the sessions of a listening socket out of the table. Of those that go on elsewhere nothing is accounted for but
    /// what the kernel has dropped so far. Those without a place at a backend end here: their clients' next datagrams open
    /// others.
    fn leave(&mut self, poll: &Poll, context: &Context, socket: Key, identity: u64, migrants: &mut Vec<Migrant>) {
        let lost = |listener: &Listener, drops: &mut Tally, fd| {
            let lost = drops.rise(udp::dropped(fd));
            let shard = listener.stats.shards.of(context.id);
            shard.dropped[Dropped::KernelBuffer as usize].add(u64::from(lost));
        };
        if let Some(listening) = self.sockets.get_mut(socket)
            && let Some(listener) = &listening.listener
        {
            lost(listener, &mut listening.drops, listening.socket.fd.as_raw_fd());
        }
        let here = self.table.iter().filter(|(_, view)| view.data.socket == socket);
        let sessions: Vec<(Key, Passport)> = here
            .map(|(key, view)| {
                let session = view.data;
                let passport = Passport {
                    socket: identity,
                    client: view.ends.client(),
                    local: view.ends.local(),
                    backend: session.backend.identity,
                    age: context.now.saturating_duration_since(session.opened),
                    requests: view.requests,
                    replies: view.replies,
                    bytes_up: session.bytes_up,
                    bytes_down: session.bytes_down,
                    attempts: session.attempts,
                    introduce: session.introduce,
                    merges: session.gro,
                    grown: session.grown,
                    astray: view.state == State::Astray,
                };
                (key, passport)
            })
            .collect();
        for (key, passport) in sessions {
            if self.table.view(key).is_some_and(|view| view.data.place.is_none()) {
                self.account_end(context, key, Cause::Shutdown, By::Weir);
            }
            let Some(mut session) = self.table.remove(key) else {
                continue;
            };
            if session.gro {
                lost(&session.listener, &mut session.drops, session.fd.as_raw_fd());
            }
            leave_seat(context);
            if !session.ended
                && let (Some(pass), Some(place)) = (session.pass, session.place)
            {
                let _ = epoll::remove(poll, session.fd.as_raw_fd());
                migrants.push(Migrant {
                    passport,
                    fd: session.fd,
                    held: Some((pass, place)),
                });
            }
        }
    }

    /// Serves a listening socket together with sessions that belong to it.
    pub(in crate::worker) fn settle(
        &mut self,
        poll: &Poll,
        context: &mut Context,
        socket: ListenSocket,
        migrants: Vec<Migrant>,
    ) {
        let Some(key) = self.add(poll, context, socket) else {
            return;
        };
        for migrant in migrants {
            self.arrive(poll, context, key, migrant);
        }
    }

    /// Goes on with one session. One from another process whose backend is not configured any more, or that no limit leaves
    /// room for, ends here: its client's next datagram opens another.
    fn arrive(&mut self, poll: &Poll, context: &mut Context, socket: Key, migrant: Migrant) {
        let Migrant { passport, fd, held } = migrant;
        let Some(listening) = self.sockets.get(socket) else {
            return;
        };
        let (Some(listener), local) = (listening.listener.clone(), listening.local.clone()) else {
            return;
        };
        if !take_seat(context) {
            return;
        }
        let is_new_here = held.is_none();
        let admitted = held.or_else(|| {
            let (pool, _) = context.pool_of(&listener)?;
            let mut known = pool.backends.iter();
            let place = Place::take(known.find(|b| b.identity == passport.backend)?)?;
            let gate = listener.gate.readmit(Some(passport.client.ip()), context.now);
            Some((gate.ok()?, place))
        });
        let Some((pass, place)) = admitted else {
            return leave_seat(context);
        };
        self.next_id += 1;
        let raw = fd.as_raw_fd();
        let session = Session {
            id: self.next_id,
            fd,
            socket,
            listener: listener.clone(),
            local,
            backend: place.backend().clone(),
            pass: Some(pass),
            place: Some(place),
            opened: context.now.checked_sub(passport.age).unwrap_or(context.now),
            bound: context.now,
            recorded: context.now,
            bytes_up: passport.bytes_up,
            bytes_down: passport.bytes_down,
            first_byte_us: None,
            attempts: passport.attempts,
            burst: 1,
            // Of others nothing has been counted yet.
            drops: if passport.merges {
                Tally::starting_at(udp::dropped(raw))
            } else {
                Tally::default()
            },
            heard: passport.replies > 0,
            gro: passport.merges,
            grown: passport.grown,
            ended: false,
            introduce: passport.introduce,
            group_up: GROUP_MAX,
            group_down: GROUP_MAX,
            sent: [Mark::default(); 2],
            stashed: None,
        };
        let ends = Endpoints::new(ListenerIx(listener.id), passport.client, passport.local);
        let counted = listener.config.limits.per_source.is_some();
        // What was counted before counts: a session of one request must not get a second one.
        let had = [passport.requests, passport.replies];
        let key = self.table.resume(context.now, ends, counted, had, session);
        if passport.astray {
            self.table.astray(key);
        }
        if is_new_here {
            listener.stats.shards.of(context.id).accepted.add(1);
        }
        if let Err(error) = epoll::add_level(poll, raw, token(Kind::Session, key)) {
            context.shared.exhausted(&error);
            if self.table.remove(key).is_some() {
                leave_seat(context);
            }
        }
    }
}
