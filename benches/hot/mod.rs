//! The hot paths of a worker that are pure, each as a closure that does it once: for time (`benches/hot.rs`) and for
//! instruction counts (`examples/hot_paths.rs`, `scripts/bench-instructions`).

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use weir::balance::limits::{SourceLimits, SourceTable};
use weir::balance::{Cursor, Loads, Mask, Member, Picker, Shares, identity, source_key};
use weir::base::{Key, Kind, RunQueue, Side, Slab, Timers, Token, Weight};
use weir::config::model::{Balance, SourceHash};
use weir::relay::{Budget, Conduit, Done, Io, Pair, pump};

/// One path, ready to be run any number of times.
pub type Path = Box<dyn FnMut()>;

/// Makes a path with everything that it needs.
pub type Make = fn() -> Path;

/// Name and constructor of every path.
pub const ALL: [(&str, Make); 10] = [
    ("pair_short_connection", short_connection),
    ("pair_exchange", exchange),
    ("pair_bulk_megabyte", bulk),
    ("timers_set_and_cancel", set_and_cancel),
    ("timers_expire_10000", expire),
    ("slab_insert_and_remove", slab),
    ("token_round_trip", token),
    ("pick_least_conn_3", || pick(Balance::LeastConn)),
    ("pick_source_hash_3", || pick(Balance::SourceHash)),
    ("admit_and_release", admit),
];

/// Sockets that always take everything, and give what the script says.
struct Script {
    /// What fills bring next, for each lane; `Blocked` when there is nothing.
    gives: [Vec<Done>; 2],
}

impl Io for Script {
    fn copy_buffer(&self) -> usize {
        32 << 10
    }
    fn acquire_pipe(&mut self, _: Side) -> bool {
        true
    }
    fn unread(&mut self, _: Side) -> usize {
        0
    }

    fn has_urgent(&mut self, _: Side) -> bool {
        false
    }

    fn at_mark(&mut self, _: Side) -> bool {
        false
    }

    fn fill(&mut self, lane: Side, _: Conduit, _: usize, _: usize) -> Done {
        self.gives[lane as usize].pop().unwrap_or(Done::Blocked)
    }
    fn drain(&mut self, _: Side, _: Conduit, bytes: usize, _: bool) -> Done {
        Done::Moved { bytes, short: false }
    }
    fn shut(&mut self, _: Side) -> Done {
        Done::Eof
    }
    fn discard(&mut self, _: Side) {}
}

const BUDGET: [Budget; 2] = [Budget {
    bytes: 256 << 10,
    exact: false,
}; 2];

fn short(bytes: usize) -> Done {
    Done::Moved { bytes, short: true }
}

fn open_pair() -> Pair {
    let mut pair = Pair::new(true);
    for side in Side::BOTH {
        pair.mark_writable(side);
    }
    pair
}

/// Request, answer with FIN, the client's FIN.
fn short_connection() -> Path {
    let mut io = Script {
        gives: Default::default(),
    };
    Box::new(move || {
        let mut pair = open_pair();
        io.gives[0].push(short(100));
        pair.mark_readable(Side::Client);
        black_box(pump(&mut pair, &mut io, BUDGET));
        io.gives[1].push(short(200));
        pair.mark_fin(Side::Backend);
        black_box(pump(&mut pair, &mut io, BUDGET));
        io.gives[0].push(Done::Eof);
        pair.mark_fin(Side::Client);
        black_box(pump(&mut pair, &mut io, BUDGET));
        black_box(pair.outcome());
    })
}

/// Request and answer on an open connection.
fn exchange() -> Path {
    let mut io = Script {
        gives: Default::default(),
    };
    let mut pair = open_pair();
    Box::new(move || {
        for side in Side::BOTH {
            io.gives[side as usize].push(short(100));
            pair.mark_readable(side);
            black_box(pump(&mut pair, &mut io, BUDGET));
        }
    })
}

/// A megabyte in fills of 64 KiB, through the pipe.
fn bulk() -> Path {
    let mut io = Script {
        gives: Default::default(),
    };
    let mut pair = open_pair();
    Box::new(move || {
        for _ in 0..16 {
            io.gives[0].push(short(64 << 10));
            pair.mark_readable(Side::Client);
            black_box(pump(&mut pair, &mut io, BUDGET));
        }
    })
}

/// The timers of a connection that ends before they fire, among a thousand others.
fn set_and_cancel() -> Path {
    let mut timers = Timers::new();
    (1..1000).for_each(|ix| timers.set(ix, 600_000 + u64::from(ix)));
    Box::new(move || {
        timers.set(0, 2_000);
        timers.set(0, 600_000);
        black_box(timers.next());
        timers.cancel(0);
    })
}

/// Ten thousand timers over ten seconds.
fn expire() -> Path {
    let (mut timers, mut due, mut now) = (Timers::new(), Vec::new(), 0u64);
    Box::new(move || {
        for ix in 0..10_000 {
            timers.set(ix, now + 1 + u64::from(ix) * 7919 % 10_000);
        }
        now += 10_000;
        timers.expire(now, &mut due);
        assert_eq!(due.len(), 10_000);
        due.clear();
    })
}

fn slab() -> Path {
    let mut slab: Slab<[u64; 48]> = Slab::new();
    for n in 0..1000 {
        slab.insert([n; 48]);
    }
    let mut run = RunQueue::default();
    Box::new(move || {
        let key = slab.insert([7; 48]);
        run.push(key, Weight::Light, &mut false);
        let key = run.pop(Weight::Light).expect("just pushed");
        black_box(slab.get_mut(key));
        black_box(slab.remove(key));
    })
}

fn token() -> Path {
    let mut index = 0;
    Box::new(move || {
        index += 1;
        let key = Key { index, generation: 77 };
        let token = Token {
            kind: Kind::Pair,
            side: Side::Backend,
            key,
        };
        black_box(Token::unpack(black_box(token.pack())));
    })
}

struct Even;

impl Loads for Even {
    fn active(&self, ix: usize) -> u32 {
        3 + ix as u32 % 2
    }
    fn latency_ns(&self, _: usize) -> u64 {
        100_000
    }
}

fn pick(balance: Balance) -> Path {
    let hash = SourceHash {
        prefix_v4: 32,
        prefix_v6: 128,
        port: false,
        bounded_load: None,
        seed: 0,
    };
    let members: Vec<Member> = (0..3)
        .map(|ix| Member {
            identity: identity("bench", &ix.to_string()),
            weight: 1 + ix,
        })
        .collect();
    let picker = Picker::new(balance, &hash, &members);
    let (mut cursor, shares, mask) = (Cursor::new(7), Shares::full(), Mask::full(3));
    let mut n = 0u32;
    Box::new(move || {
        n = n.wrapping_add(2_654_435_761);
        let key = source_key(&hash, SocketAddr::new(Ipv4Addr::from(n).into(), 4000));
        black_box(picker.pick(&mut cursor, key, &Even, &shares, &mask));
    })
}

fn admit() -> Path {
    let limits = SourceLimits {
        connections: Some(100),
        ..SourceLimits::default()
    };
    let (mut table, start, mut n) = (SourceTable::new(limits, 1 << 16), Instant::now(), 0u32);
    Box::new(move || {
        n = n.wrapping_add(1);
        let ip = IpAddr::from(Ipv4Addr::from(n % 1000));
        if let Ok(admission) = table.admit(start + Duration::from_micros(u64::from(n)), ip) {
            table.release(admission);
        }
    })
}
