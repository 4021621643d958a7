//! One direction of a connection: pure, and asked "what next?".
//!
//! # Theory of operation
//!
//! A lane carries bytes from a *source* socket to a *sink* socket through a *conduit* (a buffer or a pipe). It never
//! reads more than it can at once try to write: a fill is allowed only when the conduit is empty and the sink is ready.
//! So a slow reader holds at most one conduit's worth, the rest stays in the kernel's receive buffer and slows the
//! sender; and "pipe full" never has to be told from "socket empty" (splice answers EAGAIN for both), because an empty
//! pipe is not full.
//!
//! Readiness bits are set only by events and cleared only by the kernel's word: EAGAIN, or a read or write that moved
//! less than asked on a socket where that is conclusive (TCP without urgent data: epoll(7), Q9). A short read after an
//! event that announced the peer's FIN (EPOLLRDHUP) took everything there was, FIN being last by nature: it is the end
//! of the stream, known without asking again.
//!
//! # Urgent data
//!
//! A byte that was sent as urgent data (send(2), MSG_OOB) is passed on as urgent data, at its place in the stream, so a
//! receiver sees what it would see without a balancer in between, whether it reads urgent data apart (recv with MSG_OOB) or
//! in line (SO_OOBINLINE). What the kernel does at the *mark*, the place of that byte, makes this delicate:
//!
//! * a read stops before the mark, and one that begins at the mark runs over it;
//! * a splice stops at the mark for good. It says EAGAIN there, or 0 once FIN is queued behind it.
//!
//! So an answer of splice that could mean the mark is believed only after the socket was asked whether it stands there
//! ([`Done::Marked`]), and a lane that has met urgent data once (EPOLLPRI, or such an answer) is *pinned*: it is copied for
//! good. A read of a pinned lane takes no more than the socket was seen to hold before it was asked for the mark; nothing
//! that arrives in between can then be run over, because a new mark is always behind everything that has arrived. The
//! same holds for a read that no event has announced ([`Lane::must_look`]): the event that tells of urgent data might
//! still be on its way. One look clears everything that the socket holds.
//!
//! # Invariant (the no-stall lemma)
//!
//! [`Op::Wait`] on an unfinished lane means that the kernel still owes an edge: the sink is not ready, or the conduit is
//! empty and the source is not ready. [`Lane::is_owed_an_edge`] says so, and every pump asserts it.

use super::ending::{LaneState, Source};
use super::gear::{Conduit, Gear};

/// What a lane wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Read from the source into the empty conduit.
    Fill,
    /// Write `bytes` from the conduit to the sink.
    Drain {
        /// Bytes in the conduit.
        bytes: usize,
    },
    /// Send FIN to the sink.
    ShutSink,
    /// Nothing until an event.
    Wait,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// So many bytes moved; `short` if that is less than there was room or content for.
    Moved {
        /// At least 1.
        bytes: usize,
        /// Less than asked.
        short: bool,
    },
    /// The socket has nothing to read, or takes no more, for now (EAGAIN).
    Blocked,
    /// End of stream (fill), or FIN sent (shut).
    Eof,
    /// The socket is gone: reset, broken pipe, timed out.
    Failed,
    /// A splice stopped at the urgent mark (fill only).
    Marked {
        /// It said so with an error, which is not told again: behind the mark follow the last bytes of a reset stream.
        failed: bool,
    },
}

/// One direction of a connection: how far it is, and what it does next.
#[derive(Debug, Clone, Default)]
pub struct Lane {
    moved: u64,
    piped: u32,
    /// What the latest fill brought, if nothing has come of it yet.
    filled: u32,
    gear: Gear,
    /// Where the piped bytes are; changes only while there are none.
    conduit: Conduit,
    source_ready: bool,
    sink_ready: bool,
    /// The source's FIN has been announced.
    fin_announced: bool,
    /// A short read or write is as good as EAGAIN.
    short_is_dry: bool,
    /// An event since the latest fill said that there is something to read.
    announced: bool,
    /// So many bytes are known to lie before any mark that may come, and since then no event has told of more.
    cleared: usize,
    /// Urgent data was met: no splice any more.
    pinned: bool,
    eof: bool,
    shut: bool,
}

impl Lane {
    /// A lane between two sockets whose readiness is not known yet. `short_is_dry`: both are TCP sockets, so that a short
    /// transfer proves that there was no more.
    pub fn new(short_is_dry: bool) -> Lane {
        Lane {
            short_is_dry,
            ..Lane::default()
        }
    }

    /// The source is readable (or at its end, or broken).
    pub fn mark_source(&mut self) {
        self.source_ready = true;
        self.announced = true;
        // More has come than was there at the latest look.
        self.cleared = 0;
    }

    /// The source's peer has sent FIN (EPOLLRDHUP).
    pub fn mark_fin(&mut self) {
        self.mark_source();
        self.fin_announced = true;
    }

    /// The source has urgent data (EPOLLPRI; the byte may be all there is, which EPOLLIN does not tell of).
    pub fn mark_urgent(&mut self) {
        self.mark_source();
        self.pin();
    }

    /// Short reads prove nothing: an error waits behind the data, or the socket is not TCP.
    pub fn mark_inconclusive(&mut self) {
        self.short_is_dry = false;
    }

    pub(super) fn is_pinned(&self) -> bool {
        self.pinned
    }

    pub(super) fn pin(&mut self) {
        self.pinned = true;
        self.short_is_dry = false;
    }

    /// The sink is writable (or broken).
    pub fn mark_sink(&mut self) {
        self.sink_ready = true;
    }

    pub(super) fn forget_source(&mut self) {
        self.source_ready = false;
        self.fin_announced = false;
        self.pinned = false;
        self.cleared = 0;
    }

    pub(super) fn forget_sink(&mut self) {
        self.sink_ready = false;
    }

    /// What to do now.
    pub fn next(&self) -> Op {
        match (self.piped, self.sink_ready) {
            (1.., true) => Op::Drain {
                bytes: self.piped as usize,
            },
            (1.., false) => Op::Wait,
            _ if self.eof && !self.shut => Op::ShutSink,
            (0, true) if self.source_ready && !self.eof => Op::Fill,
            _ => Op::Wait,
        }
    }

    /// Learns what came of `op`. A failure is the pair's affair; here it ends the source or empties the conduit.
    pub fn done(&mut self, op: Op, done: Done, copy_buffer: usize) {
        self.announced &= op != Op::Fill;
        match (op, done) {
            (_, Done::Marked { .. }) => self.pin(),
            (Op::Fill, Done::Moved { bytes, short }) => {
                debug_assert_eq!(self.piped, 0);
                self.gear.observe(bytes >= copy_buffer);
                self.piped = bytes as u32;
                self.filled = self.piped;
                self.cleared = self.cleared.saturating_sub(bytes);
                if short && self.short_is_dry && self.conduit == Conduit::Buffer {
                    self.eof = self.fin_announced;
                    self.source_ready = false;
                }
            }
            (Op::Fill, Done::Blocked) => self.source_ready = false,
            (Op::Fill, Done::Eof | Done::Failed) => self.eof = true,
            (Op::Drain { .. }, Done::Moved { bytes, short }) => {
                debug_assert!(bytes <= self.piped as usize);
                self.observe_drain(bytes);
                self.piped -= bytes as u32;
                self.moved += bytes as u64;
                if short && self.short_is_dry && self.conduit == Conduit::Buffer {
                    self.sink_ready = false;
                }
            }
            (Op::Drain { .. }, Done::Blocked) => {
                self.observe_drain(0);
                self.sink_ready = false;
            }
            (Op::Drain { .. }, Done::Eof | Done::Failed) => self.piped = 0,
            (Op::ShutSink, _) => self.shut = true,
            (Op::Wait, _) => {}
        }
    }

    /// The first drain after a fill tells whether the sink takes as much.
    fn observe_drain(&mut self, bytes: usize) {
        let filled = std::mem::take(&mut self.filled);
        if self.conduit == Conduit::Pipe && filled > 0 {
            self.gear.delivered(bytes == filled as usize);
        }
    }

    /// Bytes that one fill of a pipe may bring.
    pub(super) fn reach(&self) -> usize {
        self.gear.reach()
    }

    /// Bytes delivered to the sink so far.
    pub fn moved(&self) -> u64 {
        self.moved
    }

    /// Bytes in the conduit.
    pub fn piped(&self) -> usize {
        self.piped as usize
    }

    /// How it stands, for whoever ends the connection.
    pub fn state(&self) -> LaneState {
        LaneState {
            source: match (self.eof, self.source_ready) {
                (true, _) => Source::Ended,
                (false, true) => Source::Readable,
                (false, false) => Source::Quiet,
            },
            held: self.piped > 0,
            sink_ready: self.sink_ready,
        }
    }

    /// The source has ended.
    pub fn eof(&self) -> bool {
        self.eof
    }

    /// Everything was delivered, FIN included.
    pub fn finished(&self) -> bool {
        self.shut
    }

    /// Everything was delivered but the FIN.
    pub(super) fn drained(&self) -> bool {
        self.eof && self.piped == 0
    }

    /// What the next fill should go through.
    pub(super) fn wanted(&self) -> Conduit {
        match self.pinned {
            true => Conduit::Buffer,
            false => self.gear.conduit(),
        }
    }

    /// The next read might run over an urgent mark: what is before it must be known first. Reading on without an event
    /// happens between TCP sockets only after a full read; others are asked again after every read, and for their sake
    /// it is not worth a call.
    pub(super) fn must_look(&self) -> bool {
        self.pinned || (self.short_is_dry && !self.announced && self.cleared == 0)
    }

    /// A look found so many bytes, and no urgent data among them.
    pub(super) fn clear(&mut self, bytes: usize) {
        self.cleared = bytes;
    }

    /// Bytes that a read may take which has not looked.
    pub(super) fn may_take(&self) -> usize {
        match self.announced || self.cleared == 0 {
            true => usize::MAX,
            false => self.cleared,
        }
    }

    /// Settles what the next fill goes through; a pipe that is not to be had makes the lane small again.
    pub(super) fn settle(&mut self, conduit: Conduit) {
        debug_assert_eq!(self.piped, 0, "the conduit changes only while empty");
        if conduit == Conduit::Buffer && self.wanted() == Conduit::Pipe {
            self.gear = Gear::default();
        }
        self.conduit = conduit;
    }

    /// Where the piped bytes are.
    pub(super) fn conduit(&self) -> Conduit {
        self.conduit
    }

    /// The no-stall lemma; see the module.
    pub fn is_owed_an_edge(&self) -> bool {
        self.shut || !self.sink_ready || (self.piped == 0 && !self.source_ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Done::*;

    /// `r`: source ready, `w`: sink ready, `f`: FIN announced, `u`: urgent, `i`: inconclusive; then pairs of expected op and result.
    fn run(short_is_dry: bool, marks: &str, steps: &[(Op, Done)]) -> Lane {
        let mut lane = Lane::new(short_is_dry);
        for mark in marks.chars() {
            match mark {
                'r' => lane.mark_source(),
                'w' => lane.mark_sink(),
                'f' => lane.mark_fin(),
                'u' => lane.mark_urgent(),
                'i' => lane.mark_inconclusive(),
                _ => unreachable!(),
            }
        }
        for (n, &(op, done)) in steps.iter().enumerate() {
            assert_eq!(lane.next(), op, "step {n}");
            if op == Op::Fill {
                lane.settle(lane.wanted());
            }
            lane.done(op, done, 100);
        }
        lane
    }

    fn moved(bytes: usize) -> Done {
        Moved { bytes, short: false }
    }
    fn short(bytes: usize) -> Done {
        Moved { bytes, short: true }
    }
    fn drain(bytes: usize) -> Op {
        Op::Drain { bytes }
    }

    #[test]
    fn what_comes_next() {
        type Row<'a> = (&'a str, bool, &'a str, &'a [(Op, Done)], Op);
        let rows: &[Row] = &[
            ("nothing known", true, "", &[], Op::Wait),
            ("no read without a ready sink", true, "r", &[], Op::Wait),
            ("no read without a ready source", true, "w", &[], Op::Wait),
            ("both ready", true, "rw", &[], Op::Fill),
            ("drain before fill", true, "rw", &[(Op::Fill, moved(100))], drain(100)),
            (
                "partial drain goes on",
                false,
                "rw",
                &[(Op::Fill, moved(9)), (drain(9), short(4))],
                drain(5),
            ),
            (
                "short write is a full sink",
                true,
                "rw",
                &[(Op::Fill, moved(9)), (drain(9), short(4))],
                Op::Wait,
            ),
            (
                "blocked sink",
                true,
                "rw",
                &[(Op::Fill, moved(9)), (drain(9), Blocked)],
                Op::Wait,
            ),
            (
                "full read: read again",
                true,
                "rw",
                &[(Op::Fill, moved(100)), (drain(100), moved(100))],
                Op::Fill,
            ),
            (
                "short read: source dry",
                true,
                "rw",
                &[(Op::Fill, short(9)), (drain(9), moved(9))],
                Op::Wait,
            ),
            (
                "inconclusive short read",
                false,
                "rw",
                &[(Op::Fill, short(9)), (drain(9), moved(9))],
                Op::Fill,
            ),
            (
                "urgent data: inconclusive",
                true,
                "rwu",
                &[(Op::Fill, short(9)), (drain(9), moved(9))],
                Op::Fill,
            ),
            ("urgent data alone is read", true, "wu", &[], Op::Fill),
            (
                "an error behind the data: inconclusive",
                true,
                "rwi",
                &[(Op::Fill, short(9)), (drain(9), moved(9))],
                Op::Fill,
            ),
            (
                "stopped at the mark: not at the end",
                true,
                "rwf",
                &[(Op::Fill, Marked { failed: false })],
                Op::Fill,
            ),
            ("EAGAIN", true, "rw", &[(Op::Fill, Blocked)], Op::Wait),
            ("end of stream", true, "rw", &[(Op::Fill, Eof)], Op::ShutSink),
            ("FIN after the bytes", true, "rwf", &[(Op::Fill, short(9))], drain(9)),
            (
                "FIN inferred",
                true,
                "rwf",
                &[(Op::Fill, short(9)), (drain(9), moved(9))],
                Op::ShutSink,
            ),
            (
                "FIN not inferred from a full read",
                true,
                "rwf",
                &[(Op::Fill, moved(100)), (drain(100), moved(100))],
                Op::Fill,
            ),
            (
                "FIN not inferred past urgent data",
                true,
                "rwfu",
                &[(Op::Fill, short(9)), (drain(9), moved(9))],
                Op::Fill,
            ),
            (
                "finished",
                true,
                "rw",
                &[(Op::Fill, Eof), (Op::ShutSink, Eof)],
                Op::Wait,
            ),
        ];
        for (name, short_is_dry, marks, steps, expected) in rows {
            let lane = run(*short_is_dry, marks, steps);
            assert_eq!(lane.next(), *expected, "{name}");
            assert!(*expected != Op::Wait || lane.is_owed_an_edge(), "{name}: stalled");
        }
    }

    #[test]
    fn a_bulk_lane_asks_for_a_pipe_and_then_trusts_only_eagain() {
        let runs = usize::from(crate::relay::gear::UP_AFTER);
        let mut steps = [(Op::Fill, moved(100)), (drain(100), moved(100))].repeat(runs);
        steps.push((Op::Fill, short(500)));
        steps.push((drain(500), short(200)));
        let lane = run(true, "rwf", &steps);
        assert_eq!(lane.conduit(), Conduit::Pipe);
        assert_eq!(lane.next(), drain(300), "a short splice says nothing about the sink");
    }

    /// Break tried: each drain observed, not the first one alone (as it was).
    #[test]
    fn what_a_slow_sink_leaves_in_the_pipe_is_bounded() {
        use crate::relay::gear::{REACH_MAX, REACH_MIN};
        let runs = usize::from(crate::relay::gear::UP_AFTER);
        let bulk = [(Op::Fill, moved(100)), (drain(100), moved(100))].repeat(runs);
        let mut lane = run(true, "rw", &bulk);
        lane.settle(lane.wanted());
        let mut cycle = |drains: &[Done]| {
            let bytes = lane.reach();
            lane.done(Op::Fill, moved(bytes), 100);
            for &done in drains {
                let left = drain(lane.piped());
                lane.mark_sink();
                lane.done(left, done, 100);
            }
            let left = lane.piped();
            if left > 0 {
                lane.done(drain(left), moved(left), 100);
            }
            lane.reach()
        };
        assert_eq!([(); 3].map(|()| cycle(&[])), [2, 4, 8].map(|n| n * REACH_MIN));
        assert_eq!(cycle(&[]), REACH_MAX);
        // Part of it, nothing for a while, then the rest.
        for kib in [512, 256, 128, 128] {
            assert_eq!(cycle(&[short(1), Blocked, Blocked, short(1)]), kib << 10);
        }
        assert_eq!(cycle(&[Blocked]), REACH_MIN);
    }

    #[test]
    fn urgent_data_ends_splicing_for_good() {
        let runs = usize::from(crate::relay::gear::UP_AFTER);
        let bulk = [(Op::Fill, moved(100)), (drain(100), moved(100))].repeat(runs);
        let mut lane = run(true, "rw", &bulk);
        assert_eq!((lane.wanted(), lane.must_look()), (Conduit::Pipe, true));
        lane.done(Op::Fill, Marked { failed: false }, 100);
        for _ in 0..=runs {
            assert_eq!((lane.wanted(), lane.must_look()), (Conduit::Buffer, true));
            lane.done(Op::Fill, moved(100), 100);
            lane.done(drain(100), moved(100), 100);
        }
    }

    #[test]
    fn a_read_that_no_event_announced_looks_first() {
        let mut lane = run(true, "rw", &[]);
        assert!(!lane.must_look());
        lane.done(Op::Fill, moved(100), 100);
        assert!(lane.must_look(), "a full read, then another");
        lane.clear(150);
        for (bytes, left) in [(100, 50), (50, 0)] {
            assert_eq!((lane.must_look(), lane.may_take()), (false, left + bytes));
            lane.done(drain(100), moved(lane.piped()), 100);
            lane.done(Op::Fill, moved(bytes), 100);
        }
        assert!(lane.must_look(), "what was cleared is taken");
        lane.clear(150);
        lane.mark_source();
        assert_eq!(
            (lane.must_look(), lane.may_take()),
            (false, usize::MAX),
            "more has come"
        );
    }
}
