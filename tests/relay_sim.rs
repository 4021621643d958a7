//! The relay against a fake edge-triggered kernel: every seed is one connection with random peers, buffers and timing.
//!
//! The fake keeps the promises of the real one and no more: an event is told once, its mask is computed when it is
//! fetched, EAGAIN re-arms, a read stops before the urgent mark and runs over it when it begins there, a splice stops at it
//! for good, a pipe has slots rather than bytes, what was received before a RST can still be read, and an error is
//! reported once and then looks like the end of the stream. Bytes arrive at any time, also between two calls of a pump.
//!
//! Some peers fall silent for ever, some stop reading for ever, some lanes have a bandwidth limit, and weir's timers (idle,
//! half-close) and orders (age, drain, kill, a backend that is down, shutdown) end what does not end by itself. Then what a
//! peer sees is either everything that the other has sent, or a reset: never a FIN behind a part.
//!
//! Checked on every seed: no byte lost, repeated or reordered; urgent bytes are urgent at the other end; FIN only after its
//! bytes; everything that a side sent before its RST reaches the other; no stall. Rules that were broken to see this fail: inferring the end of the stream
//! without looking at `fin_announced`; ignoring `mark_urgent`; believing a splice that says EAGAIN, end or failure at the mark;
//! reading on without looking for the mark; looking for the mark before looking how much is unread; taking the FIN bit of a broken socket for a FIN; trusting
//! short reads of a broken socket; dropping `mark_source` when a write finds the peer gone;
//! promising a FIN before the source has ended;
//! not clearing `sink_ready` on EAGAIN (livelock) or clearing `source_ready` after every fill (stall).
//!
//! `WEIR_SEED=n cargo test --test relay_sim` replays one seed.

use std::collections::VecDeque;

use weir::base::{Rng, Side};
use weir::relay::{Budget, Cause, Conduit, Done, Ending, Io, Outcome, Pair, Pumped, Source, pump};

const SEEDS: u64 = 4_000;
const COPY_BUFFER: usize = 16;
/// Steps without a byte after which an open and a half-closed connection end.
const IDLE: usize = 900;
const HALF_CLOSE: usize = 600;

/// The byte at position `at` of the stream that `side` sends.
fn byte(side: Side, at: usize) -> u8 {
    (at.wrapping_mul(31) ^ (at >> 8) ^ (side as usize * 0x55)) as u8
}

/// weir's socket towards one peer, and that peer.
#[derive(Default)]
struct Socket {
    /// Positions `read..arrived` of the peer's stream are in the receive queue.
    arrived: usize,
    read: usize,
    fin: bool,
    reset: bool,
    error_reported: bool,
    /// The kernel knows one mark, the latest.
    urgent_at: Option<usize>,
    /// Bytes that the peer sent as urgent, and whether the next one took the mark away before this one was read.
    marks: Vec<(usize, bool)>,
    /// What weir wrote and the peer has not read yet, urgent or not.
    tx: VecDeque<(u8, bool)>,
    tx_room: usize,
    tx_blocked: bool,
    tx_fin: bool,
    /// The last bytes wait for the FIN (MSG_MORE).
    held_back: bool,
    /// An edge that has not been fetched yet.
    edge: bool,
    // The peer.
    to_send: usize,
    ends_with_reset: bool,
    /// It says nothing more, not even goodbye, after so many bytes.
    silent_after: Option<usize>,
    /// It reads nothing more after so many bytes.
    deaf_after: Option<usize>,
    received: usize,
    received_urgent: Vec<usize>,
    saw_fin: bool,
}

impl Socket {
    fn at_mark(&self) -> bool {
        self.urgent_at == Some(self.read)
    }

    /// What an operation on the socket finds that can take `available` bytes.
    fn take(&mut self, available: usize, room: usize) -> Result<usize, Done> {
        match available {
            0 if self.reset && !std::mem::replace(&mut self.error_reported, true) => Err(Done::Failed),
            0 if self.reset || self.fin => Err(Done::Eof),
            0 => Err(Done::Blocked),
            available => Ok(available.min(room)),
        }
    }

    fn stop(&self) -> usize {
        self.urgent_at.filter(|at| *at >= self.read).unwrap_or(self.arrived)
    }

    fn recv(&mut self, conduit: Conduit, room: usize) -> Result<usize, Done> {
        match conduit {
            Conduit::Pipe => self.take(self.stop() - self.read, room),
            Conduit::Buffer => {
                assert!(!self.at_mark(), "ran over the urgent mark");
                self.take(self.stop() - self.read, room)
            }
            Conduit::Urgent => {
                assert!(room == 1 && self.marks.iter().any(|(at, _)| *at == self.read));
                self.take(self.arrived - self.read, room)
            }
        }
    }

    /// Bytes that weir wrote to it.
    fn written(&self) -> usize {
        self.received + self.tx.len()
    }

    fn is_silent(&self) -> bool {
        self.fin || self.reset || self.silent_after.is_some_and(|bytes| self.arrived >= bytes)
    }

    fn is_deaf(&self) -> bool {
        self.deaf_after.is_some_and(|bytes| self.received >= bytes)
    }

    /// More of the peer's stream arrives.
    fn arrive(&mut self, rng: &mut Rng) {
        let left = self.silent_after.map_or(usize::MAX, |bytes| bytes - self.arrived);
        let n = (1 + rng.below(300) as usize).min(self.to_send).min(left);
        if n > 0 && rng.below(20) == 0 {
            let at = self.arrived + rng.below(n as u64) as usize;
            let before = self.urgent_at.replace(at);
            if let (Some(before), Some(last)) = (before, self.marks.last_mut()) {
                last.1 |= before >= self.read;
            }
            self.marks.push((at, false));
        }
        self.arrived += n;
        self.to_send -= n;
        // FIN and RST come right behind the last byte, or later.
        if self.to_send == 0 && !self.is_silent() && (n == 0 || rng.below(2) == 0) {
            self.fin = !self.ends_with_reset;
            self.reset = self.ends_with_reset;
        }
        self.edge = true;
    }

    fn send(&mut self, bytes: &[(u8, bool)]) -> Done {
        assert!(!self.tx_fin, "write after FIN");
        if self.reset {
            self.error_reported = true;
            return Done::Failed;
        }
        let room = self.tx_room - self.tx.len();
        let n = room.min(bytes.len());
        self.tx.extend(&bytes[..n]);
        self.tx_blocked |= n < bytes.len();
        if n == 0 {
            Done::Blocked
        } else {
            Done::Moved {
                bytes: n,
                short: n < bytes.len(),
            }
        }
    }
}

struct Fake {
    sockets: [Socket; 2],
    held: [VecDeque<(u8, bool)>; 2],
    in_pipe: [bool; 2],
    pipe_slots: usize,
    segment: usize,
    pipes_left: usize,
    copied: u64,
    spliced: u64,
    urgent: u64,
    rng: Rng,
}

impl Fake {
    /// The network does not wait for a pump to end.
    fn meanwhile(&mut self) {
        let socket = &mut self.sockets[self.rng.below(2) as usize];
        if self.rng.below(8) == 0 && !socket.is_silent() {
            socket.arrive(&mut self.rng);
        }
    }
}

impl Io for Fake {
    fn copy_buffer(&self) -> usize {
        COPY_BUFFER
    }

    fn acquire_pipe(&mut self, lane: Side) -> bool {
        if !self.in_pipe[lane as usize] && self.pipes_left > 0 {
            self.pipes_left -= 1;
            self.in_pipe[lane as usize] = true;
        }
        self.in_pipe[lane as usize]
    }

    fn unread(&mut self, lane: Side) -> usize {
        self.meanwhile();
        let socket = &self.sockets[lane as usize];
        socket.arrived - socket.read
    }

    fn has_urgent(&mut self, lane: Side) -> bool {
        self.meanwhile();
        self.sockets[lane as usize].urgent_at.is_some()
    }

    fn at_mark(&mut self, lane: Side) -> bool {
        self.meanwhile();
        self.sockets[lane as usize].at_mark()
    }

    fn fill(&mut self, lane: Side, conduit: Conduit, most: usize, unread: usize) -> Done {
        self.meanwhile();
        let room = match conduit {
            Conduit::Buffer => most.min(COPY_BUFFER),
            Conduit::Pipe => most.min(self.pipe_slots * self.segment),
            Conduit::Urgent => 1,
        };
        let held = &mut self.held[lane as usize];
        assert!(held.is_empty(), "filled over unsent bytes");
        let socket = &mut self.sockets[lane as usize];
        if unread == 0 {
            // A look at what is there takes nothing.
            return match socket.arrived - socket.read {
                0 => socket.take(0, 1).unwrap_err(),
                _ => Done::Blocked,
            };
        }
        match socket.recv(conduit, room.min(unread)) {
            Ok(n) => {
                held.extend((socket.read..socket.read + n).map(|at| (byte(lane, at), conduit == Conduit::Urgent)));
                socket.read += n;
                socket.urgent_at = socket.urgent_at.filter(|at| *at >= socket.read);
                match conduit {
                    Conduit::Buffer => self.copied += n as u64,
                    Conduit::Pipe => self.spliced += n as u64,
                    Conduit::Urgent => self.urgent += 1,
                }
                Done::Moved {
                    bytes: n,
                    short: n < room,
                }
            }
            Err(done) => done,
        }
    }

    fn drain(&mut self, lane: Side, conduit: Conduit, bytes: usize, last: bool) -> Done {
        let held = &mut self.held[lane as usize];
        assert_eq!(held.len(), bytes);
        // A splice may stop anywhere without being blocked.
        let most = if conduit == Conduit::Pipe {
            bytes.min(self.segment * 2)
        } else {
            bytes
        };
        let chunk: Vec<_> = held.iter().take(most).copied().collect();
        let done = self.sockets[lane.other() as usize].send(&chunk);
        if let Done::Moved { bytes, .. } = done {
            held.drain(..bytes);
            self.sockets[lane.other() as usize].held_back = last && held.is_empty();
        }
        done
    }

    fn shut(&mut self, lane: Side) -> Done {
        let socket = &mut self.sockets[lane.other() as usize];
        socket.held_back = false;
        assert!(!std::mem::replace(&mut socket.tx_fin, true), "FIN twice");
        Done::Eof
    }

    fn discard(&mut self, lane: Side) {
        self.held[lane as usize].clear();
    }
}

/// One step of the peer on `side`. Returns false if it had nothing to do.
fn act(socket: &mut Socket, side: Side, rng: &mut Rng, eager: bool) -> bool {
    let choice = rng.below(4);
    if choice < 2 && !socket.is_silent() {
        socket.arrive(rng);
        return true;
    }
    if socket.tx.is_empty() {
        let fin = socket.tx_fin && !std::mem::replace(&mut socket.saw_fin, socket.tx_fin);
        return fin;
    }
    if socket.is_deaf() {
        return false;
    }
    if !eager && rng.below(3) != 0 {
        return true;
    }
    let n = 1 + rng.below(socket.tx.len() as u64) as usize;
    for (got, urgent) in socket.tx.drain(..n) {
        if urgent {
            socket.received_urgent.push(socket.received);
        }
        assert_eq!(
            got,
            byte(side.other(), socket.received),
            "byte {} towards {side:?}",
            socket.received
        );
        socket.received += 1;
    }
    if socket.tx_blocked && socket.tx.len() * 3 <= socket.tx_room * 2 {
        socket.tx_blocked = false;
        socket.edge = true;
    }
    true
}

fn run(seed: u64) -> [u64; 3] {
    let mut rng = Rng::new(seed);
    let with_resets = rng.below(3) == 0;
    let bulk = rng.below(2) == 0;
    let timed = rng.below(3) == 0;
    let socket = |rng: &mut Rng| {
        let to_send = rng.below(if bulk { 20_000 } else { 500 });
        let stop = |rng: &mut Rng| (timed && rng.below(3) == 0).then(|| rng.below(to_send + 1) as usize);
        Socket {
            to_send: to_send as usize,
            silent_after: stop(rng),
            deaf_after: stop(rng),
            ends_with_reset: with_resets && rng.below(2) == 0,
            tx_room: 1 + rng.below(if rng.clone().below(2) == 0 { 40 } else { 2_000 }) as usize,
            edge: true,
            ..Socket::default()
        }
    };
    // A bandwidth limit of a lane: so many bytes a pump.
    let limits: [Option<usize>; 2] = std::array::from_fn(|_| (rng.below(6) == 0).then(|| 1 + rng.below(60) as usize));
    let order = (timed && rng.below(3) == 0).then(|| {
        let orders = [
            Cause::MaxAge,
            Cause::Drained,
            Cause::Killed,
            Cause::BackendDown,
            Cause::PrimaryBack,
            Cause::VipMoved,
            Cause::Shutdown,
        ];
        (
            rng.below(2_000) as usize,
            orders[rng.below(orders.len() as u64) as usize],
        )
    });
    let mut fake = Fake {
        sockets: [socket(&mut rng), socket(&mut rng)],
        held: Default::default(),
        in_pipe: [false; 2],
        pipe_slots: 1 + rng.below(16) as usize,
        segment: 1 + rng.below(200) as usize,
        pipes_left: rng.below(3) as usize,
        copied: 0,
        spliced: 0,
        urgent: 0,
        rng: rng.clone(),
    };
    let sent: Vec<usize> = fake.sockets.iter().map(|s| s.to_send).collect();
    let mut pair = Pair::new(true);
    let (mut outcome, mut cut) = (None, None);
    let (mut quiet, mut more) = (0, false);
    let (mut moved, mut moved_at) = (0, 0);
    for step in 0..400_000 {
        let mut active = false;
        for side in Side::BOTH {
            if rng.below(2) == 0 {
                active |= act(&mut fake.sockets[side as usize], side, &mut rng, quiet > 50);
            }
        }
        if outcome.is_none() && rng.below(3) == 0 {
            for side in Side::BOTH {
                let socket = &mut fake.sockets[side as usize];
                // The batch may hold one side's event only.
                if socket.edge && rng.below(3) > 0 {
                    socket.edge = false;
                    active = true;
                    let broken = socket.reset;
                    if broken {
                        pair.mark_broken(side);
                    }
                    if socket.arrived > socket.read || socket.fin {
                        pair.mark_readable(side);
                    }
                    if socket.fin {
                        pair.mark_fin(side);
                    }
                    if socket.urgent_at.is_some() {
                        pair.mark_urgent(side);
                    }
                    if socket.tx.len() * 3 <= socket.tx_room * 2 {
                        pair.mark_writable(side);
                    }
                }
            }
            if active || more {
                let bytes = 1 + rng.below(400) as usize;
                let budget = limits.map(|limit| Budget {
                    bytes: limit.unwrap_or(bytes),
                    exact: limit.is_some(),
                });
                let read = fake.sockets.each_ref().map(|socket| socket.read);
                let pumped = pump(&mut pair, &mut fake, budget);
                for side in Side::BOTH {
                    let bytes = fake.sockets[side as usize].read - read[side as usize];
                    assert!(
                        limits[side as usize].is_none_or(|limit| bytes <= limit),
                        "over the limit"
                    );
                }
                more = match pumped {
                    Pumped::More => true,
                    Pumped::Idle => false,
                    Pumped::Ended(how) => {
                        outcome = Some(how);
                        false
                    }
                };
                let closing = matches!(outcome, Some(Outcome::Finished { .. }));
                assert!(
                    closing || fake.sockets.iter().all(|s| !s.held_back),
                    "bytes wait for a FIN that does not follow: {pair:?}"
                );
            }
        }
        if outcome.is_some() && fake.sockets.iter().all(|s| s.tx.is_empty() || s.reset || s.is_deaf()) {
            break;
        }
        let now_moved = pair.moved_from(Side::Client) + pair.moved_from(Side::Backend);
        if now_moved != moved {
            (moved, moved_at) = (now_moved, step);
        }
        if timed && outcome.is_none() {
            let silence = step - moved_at;
            let due = match order {
                Some((at, cause)) if step >= at => Some(cause),
                _ if silence > IDLE => Some(Cause::IdleTimeout),
                _ if silence > HALF_CLOSE && pair.half_closed() => Some(Cause::HalfCloseTimeout),
                _ => None,
            };
            if let Some(cause) = due {
                cut = Some(cause);
                break;
            }
        }
        quiet = if active || more { 0 } else { quiet + 1 };
        assert!(quiet < 2_000, "stalled: {pair:?}");
    }
    if let Some(cause) = cut {
        cut_off(&fake, &pair, cause);
        return [fake.copied, fake.spliced, fake.urgent];
    }
    let outcome = outcome.unwrap_or_else(|| panic!("no end: {pair:?}"));
    let [client, backend] = &fake.sockets;
    match outcome {
        Outcome::Finished { .. } => {
            assert_eq!(
                (client.written(), backend.written()),
                (sent[1], sent[0]),
                "bytes missing"
            );
            assert!(client.saw_fin || !client.tx_fin || client.tx.is_empty() || client.is_deaf());
        }
        Outcome::Reset { by } => {
            assert!(
                fake.sockets[by as usize].reset,
                "{by:?} is blamed for a reset it did not send"
            );
            let other = &fake.sockets[by.other() as usize];
            assert!(
                other.reset || other.written() == sent[by as usize],
                "bytes before the RST of {by:?} are missing"
            );
        }
    }
    for side in Side::BOTH {
        let delivered = pair.moved_from(side) as usize;
        let other = &fake.sockets[side.other() as usize];
        assert!(other.reset || delivered == other.written(), "accounting");
        let marks = &fake.sockets[side as usize].marks;
        for &(at, superseded) in marks.iter().filter(|(at, _)| *at < other.received) {
            let urgent = other.received_urgent.contains(&at);
            assert!(
                urgent || superseded,
                "the urgent byte {at} of {side:?} came as any other"
            );
        }
        let sent_urgent = |at: &usize| marks.iter().any(|(mark, _)| mark == at);
        assert!(
            other.received_urgent.iter().all(sent_urgent),
            "towards {side:?}: more is urgent than was"
        );
    }
    [fake.copied, fake.spliced, fake.urgent]
}

/// weir ends the connection: whoever sees a FIN has everything.
fn cut_off(fake: &Fake, pair: &Pair, cause: Cause) {
    let ending = cause.ending(Side::BOTH.map(|side| {
        let (mut lane, socket) = (pair.lane(side).state(), &fake.sockets[side as usize]);
        if lane.source == Source::Quiet && socket.arrived > socket.read {
            lane.source = Source::Readable;
        }
        lane
    }));
    let timeout = matches!(cause, Cause::IdleTimeout | Cause::HalfCloseTimeout);
    if timeout && ending == Ending::Reset {
        let is_stopped = |socket: &Socket| socket.is_deaf() || socket.silent_after.is_some();
        assert!(fake.sockets.iter().any(is_stopped), "stalled: {pair:?}");
    }
    assert!(timeout || ending == Ending::Reset, "{cause:?} ended with FIN");
    for side in Side::BOTH {
        let (from, to) = (&fake.sockets[side as usize], &fake.sockets[side.other() as usize]);
        let written = to.written();
        assert_eq!(written as u64, pair.moved_from(side), "accounting");
        if to.tx_fin || ending == Ending::Fin {
            assert_eq!(
                written,
                from.arrived,
                "{cause:?}: FIN behind a part, towards {:?}",
                side.other()
            );
            assert!(
                !from.reset && (!to.tx_fin || from.fin),
                "{cause:?}: FIN in place of a reset"
            );
        }
    }
}

#[test]
fn every_seed_delivers_everything_and_ends() {
    if let Ok(seed) = std::env::var("WEIR_SEED") {
        run(seed.parse().expect("WEIR_SEED is a number"));
        return;
    }
    let mut bytes = [0; 3];
    for seed in 0..SEEDS {
        let moved = std::panic::catch_unwind(|| run(seed)).unwrap_or_else(|_| panic!("failed with WEIR_SEED={seed}"));
        bytes = std::array::from_fn(|ix| bytes[ix] + moved[ix]);
    }
    let [copied, spliced, urgent] = bytes;
    println!("{SEEDS} seeds, {copied} bytes copied, {spliced} bytes spliced, {urgent} urgent");
    assert!(
        copied > 1_000_000 && spliced > 1_000_000 && urgent > 2_000,
        "all conduits were used"
    );
}
