//! From clients to backends: what a listening socket has received is sorted by session, and each session's leaves with one
//! call on its own socket.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::life::Rebind;
use super::plan::Course;
use super::session::QUOTED_WHOLE;
use super::{Context, Datagram, Udp, lower, reason};
use crate::base::Key;
use crate::config::model::{Protocol, SendProxy};
use crate::flow::{Dropped, Endpoints, ListenerIx, State, Step};
use crate::link::Address;
use crate::relay::{By, Cause, proxy_header};
use crate::snapshot::Listener;
use crate::worker::os::mmsg::{Ask, Part};
use crate::worker::os::udp::{self, Sent};
use crate::worker::sockets::set::Set;

/// Tries to send one datagram: see `may_retry`.
const SENDS_MAX: usize = 3;

/// Datagrams of one slot that go to one session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item {
    session: Key,
    part: Part,
    segment: usize,
    finishes: bool,
}

impl Item {
    /// Its first datagram.
    fn first(&self) -> Part {
        let len = if self.segment == 0 {
            self.part.len
        } else {
            self.part.len.min(self.segment as u32)
        };
        Part { len, ..self.part }
    }

    /// Its last datagram.
    fn last(&self) -> Part {
        self.datagrams().last().unwrap_or(self.part)
    }

    /// Its datagrams.
    fn datagrams(&self) -> impl Iterator<Item = Part> + use<> {
        let (part, segment) = (self.part, self.segment as u32);
        let step = if segment == 0 { part.len.max(1) } else { segment };
        let count = part.len.div_ceil(step).max(1);
        (0..count).map(move |nth| Part {
            start: part.start + nth * step,
            len: step.min(part.len - nth * step),
            ..part
        })
    }
}

impl Udp {
    pub(super) fn requests(&mut self, context: &mut Context, sockets: &mut Set<Datagram>, socket: Key) {
        let Some(listening) = sockets.get_mut(socket) else {
            return;
        };
        let Some(listener) = listening.listener.clone() else {
            return;
        };
        if listening.closes_ms.is_some() {
            return;
        }
        let (fd, local) = (listening.fd.as_raw_fd(), listening.local.clone());
        let listening = &mut listening.own;
        let (address, device, wildcard) = (listening.address, listening.device, listening.wildcard);
        self.inbox.clear();
        if let Err(error) = self.inbox.receive(
            fd,
            Ask {
                from: true,
                control: true,
            },
            listening.burst,
        ) {
            // A listening socket is not connected: no ICMP error comes here, and what does ends with being read.
            context.shared.unread(&listener.config.name, &error);
            return;
        }
        listening.adapt(self.inbox.len());
        let (mut datagrams, mut bytes) = (0, 0);
        for slot in 0..self.inbox.len() {
            let meta = self.inbox.meta(slot);
            datagrams += meta.datagrams() as u64;
            bytes += meta.len as u64;
            if let Some(drops) = meta.drops {
                let lost = listening.drops.rise(drops);
                let shard = listener.stats.shards.of(context.id);
                shard.dropped[Dropped::KernelBuffer as usize].add(u64::from(lost));
            }
        }
        let shard = listener.stats.shards.of(context.id);
        shard.datagrams_in.add(datagrams);
        shard.bytes_in.add(bytes);

        for slot in 0..self.inbox.len() {
            let meta = *self.inbox.meta(slot);
            let Some(client) = meta.from else { continue };
            let to = if wildcard {
                meta.to.map(|ip| SocketAddr::new(ip, address.port()))
            } else {
                Some(address)
            };
            let Some(to) = to else { continue };
            let ends = Endpoints::new(ListenerIx(listener.id), client, to).on_device(device);
            self.sort_in(context, (&listener, socket, &local), &ends, slot);
        }
        self.forward(context);
    }

    /// Finds or opens the session of a slot's datagrams.
    fn sort_in(
        &mut self,
        context: &mut Context,
        (listener, socket, local): (&Arc<Listener>, Key, &Arc<Address>),
        ends: &Endpoints,
        slot: usize,
    ) {
        let meta = *self.inbox.meta(slot);
        let (mut left, mut start) = (meta.datagrams() as u32, 0);
        while left > 0 {
            let step = self.table.on_client(context.now, ends, left);
            let (session, take, finishes) = match step {
                Step::Unknown => match self.open(context, (listener, socket, local), ends) {
                    Ok(()) => continue,
                    Err(why) => return count_refusal(context, listener, why, left),
                },
                Step::Forward { id, take, finishes } => (id, take, finishes),
                Step::Repick {
                    id,
                    take,
                    finishes,
                    reopened,
                } => {
                    let why = if reopened { Rebind::Reopened } else { Rebind::Astray };
                    match self.rebind(context, id, why) {
                        Ok(()) => {}
                        // Its backend is called down, and there is no other: it may be alive after all.
                        Err(Dropped::NoBackend | Dropped::Full) if self.holds_permit(id) => {}
                        Err(why) => {
                            count_refusal(context, listener, why, take);
                            if reopened {
                                self.retire(context, id, Cause::Finished, By::Weir);
                            }
                            left -= take;
                            start += take * meta.segment as u32;
                            continue;
                        }
                    }
                    (id, take, finishes)
                }
            };
            let len = match take < left {
                true => take * meta.segment as u32,
                false => meta.len as u32 - start,
            };
            let segment = if take > 1 { meta.segment } else { 0 };
            self.items.push(Item {
                session,
                part: Part {
                    slot: slot as u32,
                    start,
                    len,
                },
                segment,
                finishes,
            });
            start += len;
            left -= take;
        }
    }

    fn holds_permit(&self, id: Key) -> bool {
        self.table.view(id).is_some_and(|view| view.data.bound.permit.is_some())
    }

    /// Sends what was sorted in: one call for each session.
    pub(super) fn forward(&mut self, context: &mut Context) {
        let mut items = std::mem::take(&mut self.items);
        // Stable: within a session the order of arrival stays.
        items.sort_by_key(|item| item.session.index);
        for run in items.chunk_by(|a, b| a.session == b.session) {
            self.send_to_backend(context, run);
            if run.iter().any(|item| item.finishes) {
                self.finish(context, run[0].session, By::Client);
            }
        }
        items.clear();
        self.items = items;
        self.inbox.clear();
    }

    fn send_to_backend(&mut self, context: &mut Context, run: &[Item]) {
        let key = run[0].session;
        let Some(session) = self.table.get_mut(key) else {
            return;
        };
        let bytes = run.iter().map(|item| u64::from(item.part.len)).sum();
        session.story.bytes_up += bytes;
        session.bound.backend.stats.shards.of(context.id).bytes_in.add(bytes);
        if session.bound.introduce {
            return self.introduce(context, run);
        }
        match run {
            [item] if item.segment == 0 => self.send_one(context, key, item.part),
            many => self.send_many(context, key, many),
        }
    }

    /// Remembers what was sent, so that a refusal can be recognised and the refused datagram sent again.
    fn note_sent(&mut self, key: Key, first: Part, last: Part) {
        let Some(session) = self.table.get_mut(key) else {
            return;
        };
        if first != last {
            session.note_sent(self.inbox.bytes_of(first), false);
        }
        let latest = self.inbox.bytes_of(last);
        session.note_sent(latest, false);
        if !session.bound.heard && latest.len() > QUOTED_WHOLE {
            session.bound.stashed = Some(self.stash.keep(latest));
        }
    }

    fn send_one(&mut self, context: &mut Context, key: Key, part: Part) {
        for attempt in 0..SENDS_MAX {
            let Some(session) = self.table.get_mut(key) else {
                return;
            };
            if session.bound.introduce {
                let bytes = self.inbox.bytes_of(part).to_vec();
                return self.send_introduced(context, key, &bytes);
            }
            let sent = udp::send(session.wire.fd.as_raw_fd(), self.inbox.bytes_of(part));
            let Some(why) = reason(sent) else {
                return self.note_sent(key, part, part);
            };
            if !self.may_retry(context, key, sent, attempt) {
                return self.count_drop(context, key, why);
            }
        }
    }

    fn send_many(&mut self, context: &mut Context, key: Key, items: &[Item]) {
        let Some(session) = self.table.get_mut(key) else {
            return;
        };
        let course = Course {
            to: None,
            from: None,
            group_max: usize::from(session.wire.group_max),
        };
        let mut plan = std::mem::take(&mut self.plan);
        plan.clear();
        for item in items {
            plan.push(&course, item.part, item.segment);
        }
        let mut start = 0;
        let mut one_by_one = false;
        while start < plan.messages.len() {
            let Some(session) = self.table.get_mut(key) else {
                break;
            };
            let fd = session.wire.fd.as_raw_fd();
            let (gone, sent) = self.outbox.send(fd, &self.inbox, &plan.parts, &plan.messages[start..]);
            start += gone;
            let Some(why) = reason(sent) else { break };
            match sent {
                Sent::Full => {
                    session.grow_buffers();
                    for _ in start..plan.messages.len() {
                        self.count_drop(context, key, why);
                    }
                    break;
                }
                Sent::NoSegmentation | Sent::SegmentTooBig => {
                    session.wire.group_max = lower(plan.messages[start].segment, sent);
                    plan = plan.apart(start..plan.messages.len());
                    start = 0;
                }
                _ => {
                    // What is sent from here on may go to another backend, which has to be told of the client first.
                    one_by_one = true;
                    break;
                }
            }
        }
        if one_by_one {
            for part in &plan.apart(start..plan.messages.len()).parts {
                self.send_one(context, key, *part);
            }
        } else {
            self.note_sent(key, items[0].first(), items[items.len() - 1].last());
        }
        plan.clear();
        self.plan = plan;
    }

    /// Whether a datagram that was not sent should be tried once more, after what has been done about it.
    ///
    /// A connected socket tells of the error of an *earlier* datagram instead of sending. So the error queue is read first,
    /// which may lose the session its backend and find it another. If sending fails again and no such error is there to
    /// explain it, this host cannot reach the backend from that socket.
    fn may_retry(&mut self, context: &mut Context, key: Key, sent: Sent, attempt: usize) -> bool {
        if sent == Sent::Full {
            return false;
        }
        let explained = self.read_errors(context, key);
        if self.table.view(key).is_some_and(|view| view.state == State::Astray) {
            let _ = self.rebind(context, key, Rebind::Astray);
        }
        match attempt {
            0 => true,
            1 if sent != Sent::Unreachable => false,
            1 => explained || self.rebind_unsendable(context, key).is_ok(),
            _ => false,
        }
    }

    /// Tells the backend who the client is, in front of the first datagram (PROXY protocol version 2). The rest follow,
    /// one by one: this happens once a session.
    fn introduce(&mut self, context: &mut Context, run: &[Item]) {
        for part in run.iter().flat_map(Item::datagrams) {
            self.send_one(context, run[0].session, part);
        }
    }

    /// Sends one datagram with the header in front.
    pub(super) fn send_introduced(&mut self, context: &mut Context, key: Key, bytes: &[u8]) {
        let Some(view) = self.table.view(key) else {
            return;
        };
        let addresses = Some((view.ends.client(), view.ends.local()));
        let mut whole = proxy_header::build(SendProxy::V2, Protocol::Udp, addresses);
        whole.extend_from_slice(bytes);
        for attempt in 0..SENDS_MAX {
            let Some(session) = self.table.get_mut(key) else {
                return;
            };
            let sent = udp::send(session.wire.fd.as_raw_fd(), &whole);
            let Some(why) = reason(sent) else {
                session.bound.introduce = false;
                session.note_sent(&whole, true);
                if whole.len() > QUOTED_WHOLE {
                    session.bound.stashed = Some(self.stash.keep(&whole));
                }
                return;
            };
            if !self.may_retry(context, key, sent, attempt) {
                return self.count_drop(context, key, why);
            }
        }
    }
}

/// Counts datagrams for which no session was to be had.
fn count_refusal(context: &Context, listener: &Listener, why: Dropped, datagrams: u32) {
    let shard = listener.stats.shards.of(context.id);
    shard.dropped[why as usize].add(u64::from(datagrams));
    if let Some(cause) = refusal(why) {
        shard.closed[cause as usize].add(u64::from(datagrams));
        if cause == Cause::NoBackend {
            shard.no_backend[usize::from(why == Dropped::Full)].add(u64::from(datagrams));
        }
    }
}

/// The refusal that a datagram without a session counts as.
fn refusal(why: Dropped) -> Option<Cause> {
    match why {
        Dropped::NoBackend | Dropped::Full => Some(Cause::NoBackend),
        Dropped::LimitProcess | Dropped::NoDescriptor | Dropped::NoPort => Some(Cause::LimitProcess),
        Dropped::LimitListener => Some(Cause::LimitListener),
        Dropped::LimitSource => Some(Cause::LimitSource),
        Dropped::LimitRate => Some(Cause::LimitRate),
        Dropped::Denied => Some(Cause::Denied),
        _ => None,
    }
}
