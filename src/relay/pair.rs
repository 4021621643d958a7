//! The two lanes of a connection, and how it ends.
//!
//! # Theory of operation
//!
//! Lane `Client` carries what the client sends, lane `Backend` what the backend sends. They are independent, FIN included,
//! until one side breaks (RST, or a write that finds the peer gone). From then on only the lane *from* the broken side
//! runs: what was received before the reset still reaches the other side, then that side is reset too. What was on its
//! way to the broken side has no reader any more and is dropped.
//!
//! A write that fails may be the first to hear of a reset, with bytes of the broken side still unread (a server that
//! answers early and closes): they are read to the end and delivered before the reset.

use super::gear::Conduit;
use super::lane::{Done, Lane, Op};
use crate::base::Side;

/// How a pair ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Both streams ended; `first` ended first.
    Finished {
        /// Who sent FIN first.
        first: Side,
    },
    /// `by` broke the connection; everything received from it before has been delivered.
    Reset {
        /// The side that did.
        by: Side,
    },
}

/// Carries out what lanes ask for. `lane` is named by its source.
pub trait Io {
    /// Size of the copy buffer, bytes.
    fn copy_buffer(&self) -> usize;
    /// A pipe for `lane` is wanted (its conduit is empty); false if none is to be had.
    fn acquire_pipe(&mut self, lane: Side) -> bool;
    /// Bytes that the source of `lane` holds at least, up to its urgent mark.
    fn unread(&mut self, lane: Side) -> usize;
    /// Urgent data has arrived at the source of `lane` and was not read.
    fn has_urgent(&mut self, lane: Side) -> bool;
    /// The next byte of the source of `lane` is the urgent one, whether it has arrived yet or not.
    fn at_mark(&mut self, lane: Side) -> bool;
    /// Reads from the source of `lane` into the empty conduit: up to `most` bytes, and no more than a buffer holds; short is
    /// less than that. Of a buffer's fill, the source is known to hold only `unread` bytes before a mark may come: no more
    /// are taken, and if it is none, only the end of the stream or a failure is looked for. At the mark, exactly the
    /// urgent byte is read, with [`Conduit::Urgent`].
    fn fill(&mut self, lane: Side, conduit: Conduit, most: usize, unread: usize) -> Done;
    /// Writes up to `bytes` from the conduit to the sink of `lane`. What a buffer still holds after a short or blocked
    /// write is kept until the next drain. `last`: nothing follows but the FIN, and that at once (the same pump shuts or
    /// ends), so both may share a segment.
    fn drain(&mut self, lane: Side, conduit: Conduit, bytes: usize, last: bool) -> Done;
    /// Sends FIN to the sink of `lane`.
    fn shut(&mut self, lane: Side) -> Done;
    /// Forgets what the conduit of `lane` holds.
    fn discard(&mut self, lane: Side);
}

/// The two lanes of one connection.
#[derive(Debug, Clone)]
pub struct Pair {
    lanes: [Lane; 2],
    broken: Option<Side>,
    first_eof: Option<Side>,
}

impl Pair {
    /// A pair whose sockets' readiness is not known yet; `short_is_dry` as in [`Lane::new`].
    pub fn new(short_is_dry: bool) -> Pair {
        Pair {
            lanes: [Lane::new(short_is_dry), Lane::new(short_is_dry)],
            broken: None,
            first_eof: None,
        }
    }

    /// The backend's socket is replaced by a new one before anything was moved: what was known of it is void.
    pub fn replace_backend(&mut self) {
        self.lanes[Side::Backend as usize].forget_source();
        self.lanes[Side::Client as usize].forget_sink();
    }

    /// The lane whose source is `side`.
    pub fn lane(&self, side: Side) -> &Lane {
        &self.lanes[side as usize]
    }

    /// The socket of `side` is readable.
    pub fn mark_readable(&mut self, side: Side) {
        self.lanes[side as usize].mark_source();
    }

    /// The socket of `side` has received FIN (and no error is pending: after a RST the kernel says EPOLLRDHUP too).
    pub fn mark_fin(&mut self, side: Side) {
        self.lanes[side as usize].mark_fin();
    }

    /// The socket of `side` has urgent data.
    pub fn mark_urgent(&mut self, side: Side) {
        self.lanes[side as usize].mark_urgent();
    }

    /// The socket of `side` is such that short reads from it prove nothing.
    pub fn mark_inconclusive(&mut self, side: Side) {
        self.lanes[side as usize].mark_inconclusive();
    }

    /// The socket of `side` has an error pending: both lanes will meet it, after what can still be read.
    pub fn mark_broken(&mut self, side: Side) {
        self.mark_inconclusive(side);
        self.mark_readable(side);
        self.mark_writable(side);
    }

    /// The socket of `side` is writable.
    pub fn mark_writable(&mut self, side: Side) {
        self.lanes[side.other() as usize].mark_sink();
    }

    /// Bytes that came from `side` and were delivered to the other.
    pub fn moved_from(&self, side: Side) -> u64 {
        self.lanes[side as usize].moved()
    }

    /// The lane from `side` moves so much that it is spliced.
    pub fn is_spliced(&self, side: Side) -> bool {
        self.lane(side).wanted() == Conduit::Pipe
    }

    /// A lane moves so much that it is spliced.
    pub fn is_bulk(&self) -> bool {
        Side::BOTH.into_iter().any(|side| self.is_spliced(side))
    }

    /// Exactly one direction has ended.
    pub fn half_closed(&self) -> bool {
        self.lanes[0].eof() != self.lanes[1].eof()
    }

    /// What the lane from `side` wants.
    pub fn next(&self, side: Side) -> Op {
        let lane = self.lane(side);
        match (self.broken, lane.next()) {
            (None, Op::ShutSink) if self.lane(side.other()).drained() => Op::Wait, // both ended: closing says FIN
            (None, op) => op,
            (Some(broken), op @ (Op::Fill | Op::Drain { .. })) if broken == side => op,
            (Some(_), _) => Op::Wait,
        }
    }

    /// Learns what came of an operation of the lane from `side`.
    pub fn done(&mut self, side: Side, op: Op, done: Done, copy_buffer: usize) {
        self.lanes[side as usize].done(op, done, copy_buffer);
        if self.lane(side).eof() {
            self.first_eof.get_or_insert(side);
        }
        let culprit = match (op, done) {
            (Op::Fill, Done::Failed | Done::Marked { failed: true }) => side,
            (Op::Drain { .. }, Done::Failed) => side.other(),
            _ => return,
        };
        if self.broken.is_some() {
            if matches!(done, Done::Marked { .. }) {
                return;
            }
            // The side that was to get the last bytes is gone as well.
            self.lanes[side as usize].done(Op::Fill, Done::Eof, copy_buffer);
        } else {
            self.broken = Some(culprit);
            self.lanes[culprit as usize].mark_source();
        }
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<Outcome> {
        match self.broken {
            Some(by) => self.lane(by).drained().then_some(Outcome::Reset { by }),
            None => (self.lanes[0].drained() && self.lanes[1].drained()).then(|| Outcome::Finished {
                first: self.first_eof.unwrap_or(Side::Client),
            }),
        }
    }

    /// The no-stall lemma for the whole pair.
    pub fn is_owed_an_edge(&self) -> bool {
        match self.broken {
            Some(by) => self.lane(by).is_owed_an_edge(),
            None => self.lanes.iter().all(Lane::is_owed_an_edge),
        }
    }
}

/// Why a pump stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pumped {
    /// Every lane waits for an event.
    Idle,
    /// The budget is spent; there is more to do.
    More,
    /// The pair has ended.
    Ended(Outcome),
}

/// What a lane may read in one pump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// How many bytes may be moved.
    pub bytes: usize,
    /// Not one byte more (a bandwidth limit); else the last fill may be a full one.
    pub exact: bool,
}

/// Runs both lanes until they wait, until each has filled its `budget`, or until the pair ends.
pub fn pump(pair: &mut Pair, io: &mut impl Io, budget: [Budget; 2]) -> Pumped {
    let mut spent = [0usize; 2];
    loop {
        let mut progress = false;
        for side in Side::BOTH {
            loop {
                let op = pair.next(side);
                let Budget { bytes, exact } = budget[side as usize];
                if op == Op::Wait || (op == Op::Fill && spent[side as usize] >= bytes) {
                    break;
                }
                let left = bytes.saturating_sub(spent[side as usize]);
                // A fill cut short by the budget must not look like a lane that has become small.
                let left = if exact { left } else { left.max(io.copy_buffer()) };
                let done = carry_out(pair, io, side, op, left);
                pair.done(side, op, done, io.copy_buffer());
                match (op, done) {
                    (Op::Fill, Done::Moved { bytes, .. }) => spent[side as usize] += bytes,
                    (Op::Drain { .. }, Done::Failed) => io.discard(side),
                    _ => {}
                }
                progress = true;
            }
        }
        if let Some(outcome) = pair.outcome() {
            return Pumped::Ended(outcome);
        }
        if !progress {
            if Side::BOTH.into_iter().any(|side| pair.next(side) != Op::Wait) {
                return Pumped::More;
            }
            debug_assert!(pair.is_owed_an_edge(), "stalled: {pair:?}");
            return Pumped::Idle;
        }
    }
}

fn carry_out(pair: &mut Pair, io: &mut impl Io, side: Side, op: Op, left: usize) -> Done {
    let lane = &mut pair.lanes[side as usize];
    // A lane of a broken pair ends by a reset, which would drop what waits for a FIN.
    let last = lane.eof() && pair.broken.is_none();
    match op {
        Op::Fill => fill(lane, io, side, left),
        Op::Drain { bytes } => io.drain(side, lane.conduit(), bytes, last),
        Op::ShutSink => io.shut(side),
        Op::Wait => Done::Blocked,
    }
}

fn fill(lane: &mut Lane, io: &mut impl Io, side: Side, most: usize) -> Done {
    if lane.wanted() == Conduit::Pipe && io.acquire_pipe(side) {
        lane.settle(Conduit::Pipe);
        return match io.fill(side, Conduit::Pipe, most.min(lane.reach()), usize::MAX) {
            done @ (Done::Blocked | Done::Eof | Done::Failed) if io.at_mark(side) => Done::Marked {
                failed: done == Done::Failed,
            },
            done => done,
        };
    }
    if !lane.must_look() {
        lane.settle(Conduit::Buffer);
        return io.fill(side, Conduit::Buffer, most, lane.may_take());
    }
    // In this order: see "Urgent data" in the module of lanes.
    let unread = io.unread(side);
    if !lane.is_pinned() && !io.has_urgent(side) {
        lane.clear(unread);
        lane.settle(Conduit::Buffer);
        return io.fill(side, Conduit::Buffer, most, unread);
    }
    lane.pin();
    if io.at_mark(side) {
        lane.settle(Conduit::Urgent);
        return io.fill(side, Conduit::Urgent, 1, 1);
    }
    lane.settle(Conduit::Buffer);
    io.fill(side, Conduit::Buffer, most, unread)
}
