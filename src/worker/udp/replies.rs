//! From backends to clients: what a turn's ready sessions have received leaves through the listening sockets in batches.

use std::os::fd::{AsRawFd, RawFd};

use super::plan::Course;
use super::{Context, Datagram, Udp, lower, reason};
use crate::base::Key;
use crate::flow::{After, Dropped};
use crate::relay::By;
use crate::worker::os::mmsg::{Ask, Part};
use crate::worker::os::udp::Sent;
use crate::worker::sockets::set::Set;

impl Udp {
    pub(super) fn replies(&mut self, context: &mut Context, sockets: &Set<Datagram>) {
        let mut sessions = std::mem::take(&mut self.ready_sessions);
        self.inbox.clear();
        for (key, broken) in sessions.drain(..) {
            if broken {
                self.read_errors(context, key);
            }
            if self.inbox.room() == 0 {
                self.deliver(context, sockets);
            }
            self.collect(context, sockets, key);
        }
        self.deliver(context, sockets);
        self.ready_sessions = sessions;
    }

    /// Reads one session's socket and plans its messages to the client.
    fn collect(&mut self, context: &mut Context, sockets: &Set<Datagram>, key: Key) {
        let Some(session) = self.table.get_mut(key) else {
            return;
        };
        let (fd, burst) = (session.wire.fd.as_raw_fd(), usize::from(session.wire.burst));
        let ask = Ask {
            from: false,
            control: session.wire.gro,
        };
        let received = match self.inbox.receive(fd, ask, burst) {
            Ok(received) => received,
            // The error of an earlier datagram.
            Err(_) => {
                self.read_errors(context, key);
                return;
            }
        };
        let slots = received.slots;
        if slots.is_empty() {
            return;
        }
        session.adapt(slots.len(), received.drained);
        for slot in slots.clone() {
            if let Some(drops) = self.inbox.meta(slot).drops {
                let lost = session.wire.drops.rise(drops);
                let shard = session.story.listener.stats.shards.of(context.id);
                shard.dropped[Dropped::KernelBuffer as usize].add(u64::from(lost));
            }
        }
        let socket = session.socket;
        let group_max = usize::from(session.group_down);
        let datagrams: usize = slots.clone().map(|slot| self.inbox.meta(slot).datagrams()).sum();
        let bytes: usize = slots.clone().map(|slot| self.inbox.meta(slot).len).sum();
        let Some(after) = self.table.on_backend(context.now, key, datagrams as u32) else {
            return;
        };
        let Some(view) = self.table.view(key) else {
            return;
        };
        let (client, local) = (view.ends.client(), view.ends.local());
        let Some(listening) = sockets.get(socket) else {
            return;
        };

        let from = listening.own.wildcard.then(|| local.ip());
        let course = Course {
            to: Some(client),
            from,
            group_max,
        };
        self.plan.turn();
        for slot in slots {
            let meta = self.inbox.meta(slot);
            self.plan.push(
                &course,
                Part {
                    slot: slot as u32,
                    start: 0,
                    len: meta.len as u32,
                },
                meta.segment,
            );
        }
        self.owners.resize(self.plan.messages.len(), (key, socket));
        self.account_replies(context, key, datagrams as u64, bytes as u64);
        if after == After::Finished {
            self.finish(context, key, By::Backend);
        }
    }

    fn account_replies(&mut self, context: &Context, key: Key, datagrams: u64, bytes: u64) {
        let Some(session) = self.table.get_mut(key) else {
            return;
        };
        session.story.bytes_down += bytes;
        if !std::mem::replace(&mut session.bound.heard, true) {
            let us = context.now.saturating_duration_since(session.story.opened).as_micros();
            session
                .story
                .first_byte_us
                .get_or_insert(us.min(u128::from(u32::MAX)) as u32);
            let waited = context.now.saturating_duration_since(session.bound.since);
            session
                .bound
                .backend
                .stats
                .observe_latency(waited, context.now - context.shared.epoch);
        }
        let shard = session.story.listener.stats.shards.of(context.id);
        shard.datagrams_out.add(datagrams);
        shard.bytes_out.add(bytes);
        session.bound.backend.stats.shards.of(context.id).bytes_out.add(bytes);
    }

    /// Sends what was planned for clients, one call for each listening socket, and clears the inbox.
    fn deliver(&mut self, context: &mut Context, sockets: &Set<Datagram>) {
        let one_socket = self.owners.windows(2).all(|pair| pair[0].1 == pair[1].1);
        if !one_socket {
            let mut order: Vec<usize> = (0..self.owners.len()).collect();
            order.sort_by_key(|&ix| self.owners[ix].1.index);
            self.owners = order.iter().map(|&ix| self.owners[ix]).collect();
            self.plan.messages = order.iter().map(|&ix| self.plan.messages[ix].clone()).collect();
        }
        let mut start = 0;
        while start < self.owners.len() {
            let socket = self.owners[start].1;
            let alike = self.owners[start..]
                .iter()
                .take_while(|owner| owner.1 == socket)
                .count();
            if let Some(listening) = sockets.get(socket) {
                self.deliver_through(context, listening.fd.as_raw_fd(), start, start + alike);
            }
            start += alike;
        }
        self.owners.clear();
        self.plan.clear();
        self.inbox.clear();
    }

    fn deliver_through(&mut self, context: &Context, fd: RawFd, mut start: usize, end: usize) {
        while start < end {
            let messages = &self.plan.messages[start..end];
            let (gone, sent) = self.outbox.send(fd, &self.inbox, &self.plan.parts, messages);
            start += gone;
            if sent == Sent::Gone {
                return;
            }
            let owner = self.owners[start].0;
            match sent {
                Sent::Full => {
                    for ix in start..end {
                        self.count_drop(context, self.owners[ix].0, Dropped::SendBuffer);
                    }
                    return;
                }
                Sent::NoSegmentation | Sent::SegmentTooBig => {
                    let apart = self.plan.apart(start..start + 1);
                    if let Some(session) = self.table.get_mut(owner) {
                        session.group_down = lower(self.plan.messages[start].segment, sent);
                    }
                    let mut at = 0;
                    while at < apart.messages.len() {
                        let messages = &apart.messages[at..];
                        let (gone, sent) = self.outbox.send(fd, &self.inbox, &apart.parts, messages);
                        at += gone;
                        if let Some(why) = reason(sent) {
                            self.count_drop(context, owner, why);
                            at += 1;
                        }
                    }
                }
                sent => {
                    if let Some(why) = reason(sent) {
                        self.count_drop(context, owner, why);
                    }
                }
            }
            start += 1;
        }
    }

    pub(super) fn count_drop(&self, context: &Context, owner: Key, why: Dropped) {
        if let Some(view) = self.table.view(owner) {
            let shard = view.data.story.listener.stats.shards.of(context.id);
            shard.dropped[why as usize].add(1);
        }
    }
}
