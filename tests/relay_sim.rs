//! The relay against a fake edge-triggered kernel: every seed is one connection with random peers, buffers and timing.
//!
//! The fake keeps the promises of the real one and no more: an event is told once, its mask is computed when it is
//! fetched, EAGAIN re-arms, a read stops at an urgent mark, a pipe has slots rather than bytes, what was received before
//! a RST can still be read, and an error is reported once and then looks like the end of the stream.
//!
//! Checked on every seed: no byte lost, repeated or reordered; FIN only after its bytes; everything that a side sent
//! before its RST reaches the other; no stall. Rules that were broken to see this fail: inferring the end of the stream
//! without looking at `fin_announced`; ignoring `mark_urgent`; taking the FIN bit of a broken socket for a FIN; trusting
//! short reads of a broken socket; dropping `mark_source` when a write finds the peer gone;
//! promising a FIN before the source has ended;
//! not clearing `sink_ready` on EAGAIN (livelock) or clearing `source_ready` after every fill (stall).
//!
//! `WEIR_SEED=n cargo test --test relay_sim` replays one seed.

use std::collections::VecDeque;

use weir::base::{Rng, Side};
use weir::relay::{Conduit, Done, Io, Outcome, Pair, Pumped, pump};

const SEEDS: u64 = 4_000;
const COPY_BUFFER: usize = 16;

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
    urgent_at: Option<usize>,
    /// What weir wrote and the peer has not read yet.
    tx: VecDeque<u8>,
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
    received: usize,
    saw_fin: bool,
}

impl Socket {
    fn urgent_ahead(&self) -> bool {
        self.urgent_at.is_some_and(|at| at > self.read && at < self.arrived)
    }

    fn recv(&mut self, room: usize) -> Result<usize, Done> {
        let stop = if self.urgent_ahead() {
            self.urgent_at.unwrap()
        } else {
            self.arrived
        };
        match stop - self.read {
            0 if self.reset && !std::mem::replace(&mut self.error_reported, true) => Err(Done::Failed),
            0 if self.reset || self.fin => Err(Done::Eof),
            0 => Err(Done::Blocked),
            available => Ok(available.min(room)),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Done {
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
    held: [VecDeque<u8>; 2],
    in_pipe: [bool; 2],
    pipe_slots: usize,
    segment: usize,
    pipes_left: usize,
    copied: u64,
    spliced: u64,
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

    fn fill(&mut self, lane: Side, conduit: Conduit, most: usize) -> Done {
        let room = match conduit {
            Conduit::Buffer => COPY_BUFFER,
            Conduit::Pipe => most.min(self.pipe_slots * self.segment),
        };
        let held = &mut self.held[lane as usize];
        assert!(held.is_empty(), "filled over unsent bytes");
        let socket = &mut self.sockets[lane as usize];
        match socket.recv(room) {
            Ok(n) => {
                held.extend((socket.read..socket.read + n).map(|at| byte(lane, at)));
                socket.read += n;
                match conduit {
                    Conduit::Buffer => self.copied += n as u64,
                    Conduit::Pipe => self.spliced += n as u64,
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
        let chunk: Vec<u8> = held.iter().take(most).copied().collect();
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
    if choice < 2 && !socket.fin && !socket.reset {
        let n = (1 + rng.below(300) as usize).min(socket.to_send);
        if n > 0 && rng.below(40) == 0 && socket.urgent_at.is_none() && n > 1 {
            socket.urgent_at = Some(socket.arrived + 1 + rng.below(n as u64 - 1) as usize);
        }
        socket.arrived += n;
        socket.to_send -= n;
        // FIN and RST come right behind the last byte, or later.
        if socket.to_send == 0 && (n == 0 || rng.below(2) == 0) {
            socket.fin = !socket.ends_with_reset;
            socket.reset = socket.ends_with_reset;
        }
        socket.edge = true;
        return true;
    }
    if socket.tx.is_empty() {
        let fin = socket.tx_fin && !std::mem::replace(&mut socket.saw_fin, socket.tx_fin);
        return fin;
    }
    if !eager && rng.below(3) != 0 {
        return true;
    }
    let n = 1 + rng.below(socket.tx.len() as u64) as usize;
    for got in socket.tx.drain(..n) {
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

fn run(seed: u64) -> (u64, u64) {
    let mut rng = Rng::new(seed);
    let with_resets = rng.below(3) == 0;
    let bulk = rng.below(2) == 0;
    let socket = |rng: &mut Rng| Socket {
        to_send: rng.below(if bulk { 20_000 } else { 500 }) as usize,
        ends_with_reset: with_resets && rng.below(2) == 0,
        tx_room: 1 + rng.below(if rng.clone().below(2) == 0 { 40 } else { 2_000 }) as usize,
        edge: true,
        ..Socket::default()
    };
    let mut fake = Fake {
        sockets: [socket(&mut rng), socket(&mut rng)],
        held: Default::default(),
        in_pipe: [false; 2],
        pipe_slots: 1 + rng.below(16) as usize,
        segment: 1 + rng.below(200) as usize,
        pipes_left: rng.below(3) as usize,
        copied: 0,
        spliced: 0,
    };
    let sent: Vec<usize> = fake.sockets.iter().map(|s| s.to_send).collect();
    let mut pair = Pair::new(true);
    let mut outcome = None;
    let (mut quiet, mut more) = (0, false);
    for _ in 0..400_000 {
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
                    if socket
                        .urgent_at
                        .is_some_and(|at| at >= socket.read && at < socket.arrived)
                    {
                        pair.mark_urgent(side);
                    }
                    if socket.tx.len() * 3 <= socket.tx_room * 2 {
                        pair.mark_writable(side);
                    }
                }
            }
            if active || more {
                let budget = 1 + rng.below(400) as usize;
                more = match pump(&mut pair, &mut fake, [budget; 2]) {
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
        if outcome.is_some() && fake.sockets.iter().all(|s| s.tx.is_empty() || s.reset) {
            break;
        }
        quiet = if active || more { 0 } else { quiet + 1 };
        assert!(quiet < 2_000, "stalled: {pair:?}");
    }
    let outcome = outcome.unwrap_or_else(|| panic!("no end: {pair:?}"));
    let [client, backend] = &fake.sockets;
    match outcome {
        Outcome::Finished { .. } => {
            assert_eq!((client.received, backend.received), (sent[1], sent[0]), "bytes missing");
            assert!(client.saw_fin || !client.tx_fin || client.tx.is_empty());
        }
        Outcome::Reset { by } => {
            assert!(
                fake.sockets[by as usize].reset,
                "{by:?} is blamed for a reset it did not send"
            );
            let other = &fake.sockets[by.other() as usize];
            assert!(
                other.reset || other.received == sent[by as usize],
                "bytes before the RST of {by:?} are missing"
            );
        }
    }
    for side in Side::BOTH {
        let delivered = pair.moved_from(side) as usize;
        let other = &fake.sockets[side.other() as usize];
        assert!(other.reset || delivered == other.received, "accounting");
    }
    (fake.copied, fake.spliced)
}

#[test]
fn every_seed_delivers_everything_and_ends() {
    if let Ok(seed) = std::env::var("WEIR_SEED") {
        run(seed.parse().expect("WEIR_SEED is a number"));
        return;
    }
    let (mut copied, mut spliced) = (0, 0);
    for seed in 0..SEEDS {
        let (c, s) = std::panic::catch_unwind(|| run(seed)).unwrap_or_else(|_| panic!("failed with WEIR_SEED={seed}"));
        copied += c;
        spliced += s;
    }
    println!("{SEEDS} seeds, {copied} bytes copied, {spliced} bytes spliced");
    assert!(copied > 1_000_000 && spliced > 1_000_000, "both conduits were used");
}
