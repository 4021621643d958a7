//! What the worker keeps with each session, beside what the table knows.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::base::Key;
use crate::flow::{Endpoints, Proof, Tally};
use crate::gate::ListenerPermit;
use crate::link::{Address, Record};
use crate::relay::{By, Cause};
use crate::snapshot::{Backend, BackendPermit, Listener};
use crate::sys::udp::{self, Trouble};

use super::stash::Stash;

/// Bytes of a datagram by which its quotation is recognised. Fewer than [`PROOF_MIN`] can have been guessed.
const MARK: usize = 16;
const PROOF_MIN: usize = 8;

/// Most reads of one session in one turn.
const BURST_MAX: u8 = 32;
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

/// See the module.
pub(super) struct Session {
    /// For `weir conns`, `weir kill` and the access log.
    pub id: u64,
    /// Connected to the backend.
    pub fd: OwnedFd,
    /// The listening socket it came in on and is answered through.
    pub socket: Key,
    pub listener: Arc<Listener>,
    pub local: Arc<Address>,
    pub backend: Arc<Backend>,
    /// Held while the session counts at its listener and its source.
    pub pass: Option<ListenerPermit>,
    /// Held while the session counts at its backend.
    pub place: Option<BackendPermit>,
    pub opened: Instant,
    /// When this backend got its first datagram: its answer time counts from there.
    pub bound: Instant,
    /// When the last record was written, or it began.
    pub recorded: Instant,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub first_byte_us: Option<u32>,
    pub attempts: u16,
    /// Reads at once; doubles while they are not enough.
    pub burst: u8,
    /// What the kernel has dropped on `fd`; said of bulk sessions only.
    pub drops: Tally,
    /// This backend has answered.
    pub heard: bool,
    /// The kernel merges datagrams on `fd`.
    pub gro: bool,
    /// The buffers of `fd` are large.
    pub grown: bool,
    /// The record has been written; the table has it parked.
    pub ended: bool,
    /// The backend still has to be told who the client is.
    pub introduce: bool,
    /// Longest datagrams that can be grouped towards the backend and towards the client.
    pub group_up: u16,
    pub group_down: u16,
    /// The latest two datagrams to this backend.
    pub sent: [Mark; 2],
    /// Where the latest one is stashed, if it was long and unanswered.
    pub stashed: Option<u64>,
}

impl Session {
    /// Remembers a datagram that goes to the backend.
    pub(super) fn note_sent(&mut self, bytes: &[u8], introduces: bool) {
        self.sent = [Mark::of(bytes, introduces), self.sent[0]];
        self.stashed = None;
    }

    /// Learns from a read how much to read next time: `got` datagrams or batches, and whether that was all.
    pub(super) fn adapt(&mut self, got: usize, drained: bool) {
        if !drained && self.burst < BURST_MAX {
            self.burst *= 2;
            if self.burst == BURST_BULK && !self.gro {
                self.gro = udp::enable_bulk(self.fd.as_raw_fd());
                self.grow_buffers();
            }
        } else if got * 4 <= usize::from(self.burst) {
            self.burst = (self.burst / 2).max(1);
        }
    }

    /// Makes room for bulk in the kernel.
    pub(super) fn grow_buffers(&mut self) {
        if !std::mem::replace(&mut self.grown, true) {
            udp::grow_buffers(self.fd.as_raw_fd(), BULK_BUFFER);
        }
    }

    /// The same client again, after the session had ended: for everybody else a new one.
    pub(super) fn reopen(&mut self, id: u64, listener: Arc<Listener>, pass: ListenerPermit, now: Instant) {
        self.id = id;
        self.pass = Some(pass);
        self.listener = listener;
        self.opened = now;
        self.recorded = now;
        self.bytes_up = 0;
        self.bytes_down = 0;
        self.first_byte_us = None;
        self.attempts = 0;
        self.ended = false;
    }

    /// Another socket, about which nothing is known.
    pub(super) fn take_socket(&mut self, fd: OwnedFd) {
        self.fd = fd;
        self.burst = 1;
        self.drops = Tally::default();
        self.gro = false;
        self.grown = false;
        self.group_up = u16::MAX;
    }

    /// Starts over with the backend it is bound to now.
    pub(super) fn start_over(&mut self, now: Instant, introduce: bool) {
        self.bound = now;
        self.heard = false;
        self.introduce = introduce;
        self.sent = [Mark::default(); 2];
        self.stashed = None;
    }

    /// What an ICMP error that quotes `quoted` proves.
    pub(super) fn proof(&self, trouble: Trouble, quoted: &[u8]) -> Proof {
        let quotations = self.sent.iter().filter_map(|mark| mark.quoted_by(quoted));
        match (quotations.max_by_key(|quotation| *quotation as u8), trouble) {
            (Some(Quotation::Telling), Trouble::Closed) => Proof::Firm,
            (Some(Quotation::Telling), _) => Proof::Soft,
            (Some(Quotation::Short), Trouble::Closed) => Proof::Short,
            _ => Proof::Bare,
        }
    }

    /// The datagram that a refusal quotes, if all of it is there or was kept, and whether it begins with an introduction.
    pub(super) fn refused(&self, quoted: &[u8], stash: &Stash) -> Option<(Vec<u8>, bool)> {
        let [latest, _] = &self.sent;
        let kept = self.stashed.and_then(|at| stash.get(at, latest.len as usize));
        if let Some(bytes) = kept.filter(|bytes| bytes.starts_with(quoted)) {
            return Some((bytes.to_vec(), latest.introduces));
        }
        let whole = |mark: &&Mark| mark.len as usize == quoted.len() && mark.quoted_by(quoted).is_some();
        let mark = self.sent.iter().find(whole)?;
        Some((quoted.to_vec(), mark.introduces))
    }

    /// The access record of its end.
    pub(super) fn record(&self, ends: &Endpoints, now: Instant, cause: Cause, closed_by: By) -> Record {
        // On a wildcard socket the address that the client used is not the one that the socket is bound to.
        let local = match &*self.local {
            Address::Ip(bound) if bound.ip().is_unspecified() => Arc::new(Address::Ip(ends.local())),
            _ => self.local.clone(),
        };
        Record {
            time: SystemTime::now(),
            id: self.id,
            listener: self.listener.clone(),
            client: Some(ends.client()),
            local,
            backend: Some(self.backend.clone()),
            attempts: u32::from(self.attempts),
            bytes_up: self.bytes_up,
            bytes_down: self.bytes_down,
            connect_us: None,
            first_byte_us: self.first_byte_us.map(u64::from),
            duration_us: now.saturating_duration_since(self.opened).as_micros() as u64,
            spliced: 0,
            closed_by,
            cause,
            interim: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
