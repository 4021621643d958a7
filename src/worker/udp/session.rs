//! What the worker keeps with each session, beside what the table knows.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::base::Key;
use crate::flow::{Endpoints, Proof, Tally};
use crate::gate::ListenerPermit;
use crate::link::{Address, Record};
use crate::relay::{By, Cause};
use crate::routing::Asked;
use crate::snapshot::{Backend, BackendPermit, Listener};
use crate::worker::os::udp::{self, Trouble};

use super::stash::Stash;

/// Bytes of a datagram by which its quotation is recognised. Fewer than [`PROOF_MIN`] can have been guessed.
const MARK: usize = 16;
const PROOF_MIN: usize = 8;

/// Longest datagram that is worth grouping with others.
const GROUP_MAX: u16 = u16::MAX;
/// Most reads of one session in one turn.
const BURST_MAX: u8 = 32;
/// So many reads of one, and the next asks for two.
const SINGLES: u8 = 4;
/// From this many reads in one go on a session counts as bulk: the kernel merges for it, and its buffers grow.
const BURST_BULK: u8 = 4;
/// Buffers of a bulk session's socket, bytes.
const BULK_BUFFER: usize = 2 << 20;

/// Datagrams longer than this are not quoted whole, so a copy is kept while it may be needed.
pub(super) const QUOTED_WHOLE: usize = 512;

/// Enough of a datagram to recognise it in an ICMP error.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Mark {
    first: [u8; MARK],
    len: u32,
    /// It begins with the header that tells the backend who the client is.
    introduces: bool,
}

impl Mark {
    pub(super) fn of(bytes: &[u8], introduces: bool) -> Mark {
        let mut first = [0; MARK];
        let kept = bytes.len().min(MARK);
        first[..kept].copy_from_slice(&bytes[..kept]);
        Mark {
            first,
            len: bytes.len() as u32,
            introduces,
        }
    }

    /// What `quoted` has of the marked datagram, if it begins like it.
    fn quoted_by(&self, quoted: &[u8]) -> Option<Quotation> {
        let kept = (self.len as usize).min(MARK);
        match kept {
            0 => None,
            _ if quoted.get(..kept) != Some(&self.first[..kept]) => None,
            PROOF_MIN.. => Some(Quotation::Telling),
            _ => (quoted.len() == kept).then_some(Quotation::Short),
        }
    }
}

/// How much of a datagram is quoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quotation {
    /// All of it, but it is so short that it can have been guessed.
    Short,
    /// So much that nobody can have guessed it.
    Telling,
}

/// One UDP session, grouped by what changes together.
pub(super) struct Session {
    /// The listening socket it came in on and is answered through.
    pub socket: Key,
    pub local: Arc<Address>,
    /// Longest datagrams that can be grouped towards the client.
    pub group_down: u16,
    pub wire: Wire,
    pub bound: Bound,
    pub story: Story,
}

/// Its own socket, connected to the backend.
pub(super) struct Wire {
    pub fd: OwnedFd,
    /// What the kernel has dropped on it; said of bulk sessions only.
    pub drops: Tally,
    /// Longest datagrams that can be grouped towards the backend.
    pub group_max: u16,
    /// Reads at once; doubles while they are not enough.
    pub burst: u8,
    /// Reads of one since two were asked for. The first one of all counts as the last of its row, so that bulk is known by then.
    pub singles: u8,
    /// The kernel merges datagrams.
    pub gro: bool,
    /// Its buffers are large.
    pub grown: bool,
}

/// The session's backend, and its place there.
pub(super) struct Bound {
    pub backend: Arc<Backend>,
    /// Held while the session counts at its backend.
    pub permit: Option<BackendPermit>,
    /// When it got its first datagram: its answer time counts from there.
    pub since: Instant,
    /// Where the latest datagram is stashed, if it was long and unanswered.
    pub stashed: Option<u64>,
    /// The latest two datagrams to it.
    pub sent: [Mark; 2],
    /// It has answered.
    pub heard: bool,
    /// It still has to be told who the client is.
    pub introduce: bool,
}

/// What is counted and told of it; begins anew when the client comes back after the end.
pub(super) struct Story {
    /// For `weir conns`, `weir kill` and the access log.
    pub id: u64,
    pub listener: Arc<Listener>,
    /// Held while the session counts at its listener and its source.
    pub permit: Option<ListenerPermit>,
    pub opened: Instant,
    /// When the last record was written, or it began.
    pub recorded: Instant,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub first_byte_us: Option<u32>,
    pub attempts: u16,
    /// The record has been written; the table has it parked.
    pub ended: bool,
}

impl Wire {
    /// A socket about which nothing is known.
    pub(super) fn new(fd: OwnedFd) -> Wire {
        Wire {
            fd,
            drops: Tally::default(),
            group_max: GROUP_MAX,
            burst: 1,
            singles: SINGLES - 1,
            gro: false,
            grown: false,
        }
    }
}

impl Bound {
    /// A backend that has not been spoken to.
    pub(super) fn new(permit: BackendPermit, now: Instant, introduce: bool) -> Bound {
        Bound {
            backend: permit.backend().clone(),
            permit: Some(permit),
            since: now,
            stashed: None,
            sent: [Mark::default(); 2],
            heard: false,
            introduce,
        }
    }
}

impl Story {
    /// Of a session that begins now.
    pub(super) fn new(id: u64, listener: Arc<Listener>, permit: ListenerPermit, now: Instant) -> Story {
        Story {
            id,
            listener,
            permit: Some(permit),
            opened: now,
            recorded: now,
            bytes_up: 0,
            bytes_down: 0,
            first_byte_us: None,
            attempts: 0,
            ended: false,
        }
    }
}

impl Session {
    pub(super) fn new(socket: Key, local: &Arc<Address>, wire: Wire, bound: Bound, story: Story) -> Session {
        Session {
            socket,
            local: local.clone(),
            group_down: GROUP_MAX,
            wire,
            bound,
            story,
        }
    }

    /// Remembers a datagram that goes to the backend.
    pub(super) fn note_sent(&mut self, bytes: &[u8], introduces: bool) {
        self.bound.sent = [Mark::of(bytes, introduces), self.bound.sent[0]];
        self.bound.stashed = None;
    }

    /// Learns from a read how much to read next time: `got` datagrams or batches, and whether that was all. Most sessions have one
    /// answer for a request, and asking for two looks into an empty socket; what is left waits for the next turn.
    pub(super) fn adapt(&mut self, got: usize, drained: bool) {
        let wire = &mut self.wire;
        let (burst, singles) = next_burst(wire.burst, wire.singles, got, drained);
        let grows = burst > wire.burst;
        (wire.burst, wire.singles) = (burst, singles);
        if grows && burst == BURST_BULK && !wire.gro {
            wire.gro = udp::enable_bulk(wire.fd.as_raw_fd());
            self.grow_buffers();
        }
    }

    /// Makes room for bulk in the kernel.
    pub(super) fn grow_buffers(&mut self) {
        if !std::mem::replace(&mut self.wire.grown, true) {
            udp::grow_buffers(self.wire.fd.as_raw_fd(), BULK_BUFFER);
        }
    }

    /// What an ICMP error that quotes `quoted` proves.
    pub(super) fn proof(&self, trouble: Trouble, quoted: &[u8]) -> Proof {
        let quotations = self.bound.sent.iter().filter_map(|mark| mark.quoted_by(quoted));
        match (quotations.max_by_key(|quotation| *quotation as u8), trouble) {
            (Some(Quotation::Telling), Trouble::Closed) => Proof::Firm,
            (Some(Quotation::Telling), _) => Proof::Soft,
            (Some(Quotation::Short), Trouble::Closed) => Proof::Short,
            _ => Proof::Bare,
        }
    }

    /// The datagram that a refusal quotes, if all of it is there or was kept, and whether it begins with an introduction.
    pub(super) fn refused(&self, quoted: &[u8], stash: &Stash) -> Option<(Vec<u8>, bool)> {
        let [latest, _] = &self.bound.sent;
        let kept = self.bound.stashed.and_then(|at| stash.get(at, latest.len as usize));
        if let Some(bytes) = kept.filter(|bytes| bytes.starts_with(quoted)) {
            return Some((bytes.to_vec(), latest.introduces));
        }
        let whole = |mark: &&Mark| mark.len as usize == quoted.len() && mark.quoted_by(quoted).is_some();
        let mark = self.bound.sent.iter().find(whole)?;
        Some((quoted.to_vec(), mark.introduces))
    }

    /// The access record of its end.
    pub(super) fn record(&self, ends: &Endpoints, now: Instant, cause: Cause, closed_by: By) -> Record {
        // On a wildcard socket the address that the client used is not the one that the socket is bound to.
        let local = match &*self.local {
            Address::Ip(bound) if bound.ip().is_unspecified() => Arc::new(Address::Ip(ends.local())),
            Address::Device(..) => Arc::new(Address::Ip(ends.local())),
            _ => self.local.clone(),
        };
        Record {
            time: SystemTime::now(),
            id: self.story.id,
            listener: self.story.listener.clone(),
            client: Some(ends.client()),
            local,
            backend: Some(self.bound.backend.clone()),
            attempts: u32::from(self.story.attempts),
            bytes_up: self.story.bytes_up,
            bytes_down: self.story.bytes_down,
            connect_us: None,
            first_byte_us: self.story.first_byte_us.map(u64::from),
            duration_us: now.saturating_duration_since(self.story.opened).as_micros() as u64,
            spliced: 0,
            packets: None,
            closed_by,
            cause,
            interim: false,
            asked: Asked::default(),
        }
    }
}

/// How much is read next, and how many reads of one there have been by then.
fn next_burst(burst: u8, singles: u8, got: usize, drained: bool) -> (u8, u8) {
    match burst {
        1 if singles + 1 < SINGLES => (1, singles + 1),
        1 => (2, 0),
        _ if !drained => ((burst * 2).min(BURST_MAX), 0),
        _ if got <= usize::from((burst / 4).max(1)) => (burst / 2, 0),
        _ => (burst, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_follow_what_comes() {
        // Burst and reads of one before; what came, and whether that was all; burst and reads of one after.
        let rows = [
            ((1, 0), (1, false), (1, 1)),
            ((1, 2), (1, false), (1, 3)),
            ((1, 3), (1, false), (2, 0)),
            ((2, 0), (1, true), (1, 0)),
            ((2, 0), (2, false), (4, 0)),
            ((4, 0), (4, false), (8, 0)),
            ((4, 0), (3, true), (4, 0)),
            ((4, 0), (2, true), (4, 0)),
            ((4, 0), (1, true), (2, 0)),
            ((16, 0), (5, true), (16, 0)),
            ((16, 0), (4, true), (8, 0)),
            ((32, 0), (32, false), (32, 0)),
        ];
        for ((burst, singles), (got, drained), after) in rows {
            let next = next_burst(burst, singles, got, drained);
            assert_eq!(next, after, "{burst} {singles} {got} {drained}");
        }
    }

    /// With the table's own part (about 150 bytes) far below what the kernel spends on the socket.
    #[test]
    fn a_session_is_small() {
        assert!(size_of::<Session>() <= 300, "{} bytes", size_of::<Session>());
    }

    #[test]
    fn a_quotation_counts_only_if_it_is_long_enough_to_be_no_guess() {
        let long: Vec<u8> = (0..100).collect();
        let rows: [(&[u8], &[u8], Option<Quotation>); 11] = [
            (&long, &long, Some(Quotation::Telling)),
            (&long, &long[..16], Some(Quotation::Telling)),
            (&long, &long[..15], None),
            (&long, b"", None),
            (&long, &long[1..], None),
            (b"12345678", b"12345678", Some(Quotation::Telling)),
            (b"1234567", b"1234567", Some(Quotation::Short)),
            (b"1234567", b"123456", None),
            (b"1234567", b"12345678", None),
            (b"1", b"1", Some(Quotation::Short)),
            (b"", b"", None),
        ];
        for (sent, quoted, quotation) in rows {
            assert_eq!(
                Mark::of(sent, false).quoted_by(quoted),
                quotation,
                "{sent:?} {quoted:?}"
            );
        }
    }
}
