//! Several nodes, each with its machine, its keeper and its kernel, on a virtual clock.
//!
//! Every run is decided by its seed. What goes wrong is in `faults`: loss, delay, directions and links that die, connections that
//! deliver late what they could not deliver in time, links that come up before their port forwards, partitions, freezes of the main
//! process, of the keeper, of both and of the whole machine, kills, power loss, restarts, reloads node by node to other
//! configurations and back, a kernel that is locked, failing pools and workers, witnesses that refuse, operators' orders.
//! What is checked all the time is in `checks`, and is judged by the kernels, not by what the machines believe:
//!
//! * two kernels hold an address at once no longer than the bound for what happened to them;
//! * somebody holds it within a bounded time while enough nodes that reach each other could; after the last fault, the right one;
//! * the record of a machine's inputs replays to the same actions.
//!
//! `WEIR_SIM_SEEDS=n` runs n seeds (as many as fit into half a minute by default), `WEIR_SIM_SEED=s` only that one, with its story.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use weir::failover::timers::Timers;

use faults::Fault;
use world::{Case, Event, MS, S, World};

mod arbiter;
mod checks;
mod etcd;
mod faults;
mod network;
mod world;

/// One seed from start to rest; the reason if it breaks a rule.
fn run(seed: u64, timers: Timers, tell: bool) -> Result<(), String> {
    run_case(seed, Case::of(seed), timers, tell)
}

fn run_case(seed: u64, case: Case, timers: Timers, tell: bool) -> Result<(), String> {
    let mut world = World::new(seed, &case, timers, tell);
    for n in 0..world.nodes.len() {
        let at = world.rng.between(0, 300 * MS);
        world.at(at, Event::Fault(Fault::Start(n)));
    }
    let begin = if case.cold { 4_500 * MS } else { 1_500 * MS };
    world.run_until(begin);
    let last = world.plan(begin, begin + 4 * S);
    world.run_until(last + 1);
    if world.failure.is_none() {
        world.restore();
        world.settle();
    }
    outcome(world)
}

fn outcome(world: World) -> Result<(), String> {
    match world.failure {
        None => Ok(()),
        Some(why) => Err(format!(
            "seed {}: at {} ms: {why}\n{}",
            world.seed,
            world.now / MS,
            world.story.join("\n")
        )),
    }
}

fn safe() -> Timers {
    Timers::derive(Duration::from_millis(50), Duration::from_millis(250))
}

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().expect(name))
}

/// The seeds below `seeds` that fail within `time`, how many were run, and the story of the first.
fn failures(seeds: u64, time: Duration, timers: Timers) -> (Vec<u64>, u64, String) {
    let (failed, count) = failing(seeds, time, |seed| run(seed, timers, false).is_err());
    let story = failed.first().map(|seed| run(*seed, timers, true).unwrap_err());
    (failed, count, story.unwrap_or_default())
}

fn failing(seeds: u64, time: Duration, fails: impl Fn(u64) -> bool + Sync) -> (Vec<u64>, u64) {
    let fails = &fails;
    let until = Instant::now() + time;
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let all: Vec<(u64, bool)> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..threads)
            .map(|t| {
                scope.spawn(move || {
                    (t..seeds)
                        .step_by(threads as usize)
                        .take_while(|_| Instant::now() < until)
                        .map(|seed| (seed, fails(seed)))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        runs.into_iter().flat_map(|r| r.join().unwrap()).collect()
    });
    let count = all.len() as u64;
    let mut failed: Vec<u64> = all.into_iter().filter(|(_, bad)| *bad).map(|(seed, _)| seed).collect();
    failed.sort();
    (failed, count)
}

fn check_seeds(seeds: u64, time: Duration) {
    if let Some(seed) = env("WEIR_SIM_SEED") {
        return run(seed, safe(), true).unwrap_or_else(|why| panic!("{why}"));
    }
    let seeds = env("WEIR_SIM_SEEDS").unwrap_or(seeds);
    let (failed, count, story) = failures(seeds, time, safe());
    println!("{count} seeds");
    assert!(
        failed.is_empty(),
        "{} of {count} fail: {failed:?}; {story}",
        failed.len()
    );
}

#[test]
fn every_seed_ends_with_one_holder_and_no_overlap_beyond_its_bound() {
    check_seeds(5_000, Duration::from_secs(15));
}

#[test]
#[ignore = "long: minutes"]
fn five_thousand_seeds() {
    check_seeds(5_000, Duration::from_secs(3_600));
}

/// The same with an arbiter: every other seed is strict, and its bound is none at all.
fn check_arbitrated_seeds(seeds: u64, time: Duration) {
    let one = |seed: u64, tell: bool| run_case(seed, Case::arbitrated(seed), safe(), tell);
    if let Some(seed) = env("WEIR_SIM_SEED") {
        return one(seed, true).unwrap_or_else(|why| panic!("{why}"));
    }
    let seeds = env("WEIR_SIM_SEEDS").unwrap_or(seeds);
    let (failed, count) = failing(seeds, time, |seed| one(seed, false).is_err());
    println!("{count} seeds");
    let story = failed
        .first()
        .map(|seed| one(*seed, true).unwrap_err())
        .unwrap_or_default();
    assert!(
        failed.is_empty(),
        "{} of {count} fail: {failed:?}; {story}",
        failed.len()
    );
}

#[test]
fn with_an_arbiter_there_is_one_holder_and_with_strict_never_two() {
    check_arbitrated_seeds(5_000, Duration::from_secs(12));
}

#[test]
#[ignore = "long: minutes"]
fn five_thousand_seeds_with_an_arbiter() {
    check_arbitrated_seeds(5_000, Duration::from_secs(3_600));
}

/// While the nodes hear each other nothing is asked of the arbiter in a good network, and its outage moves nothing in a bad one.
#[test]
fn an_arbiter_that_is_down_costs_nothing_while_it_is_not_needed() {
    for (seed, loss) in [(0, 0), (1, 0), (2, 5), (3, 5), (4, 5)] {
        let case = Case {
            cold: false,
            drift: false,
            ..Case::arbitrated(seed)
        };
        let mut world = World::new(seed, &case, safe(), false);
        world.network.loss = loss;
        for n in 0..world.nodes.len() {
            world.at(0, Event::Fault(Fault::Start(n)));
        }
        world.run_until(8 * S);
        let (before, asked) = (world.moved, world.store.asked);
        world.fault(Fault::Outage(true));
        world.run_until(68 * S);
        assert_eq!(world.failure, None, "seed {seed}");
        assert_eq!(
            world.moved, before,
            "seed {seed}: moved in an outage of the arbiter, {loss} % loss"
        );
        assert!(
            loss > 0 || world.store.asked == asked,
            "seed {seed}: asked although nothing was missing"
        );
    }
}

/// The holder is cut off, dies or stands still, with an arbiter that works: how long nobody serves.
#[test]
fn with_an_arbiter_the_other_node_takes_over() {
    for (strict, limit) in [(false, 600 * MS), (true, 3_600 * MS)] {
        for fault in [
            Fault::Kill(0),
            Fault::PowerOff(0),
            Fault::LinkDown(0),
            Fault::FreezeMain(0),
        ] {
            let case = Case {
                strict,
                vips: 1,
                preempt: true,
                cold: false,
                drift: false,
                ..Case::arbitrated(0)
            };
            let mut world = World::new(3, &case, safe(), true);
            for n in 0..2 {
                world.at(0, Event::Fault(Fault::Start(n)));
            }
            world.run_until(8 * S);
            assert_eq!(world.holders(0), [0], "{:?}", world.failure);
            world.fault(fault);
            let began = world.now;
            while world.holders(0) != [1] {
                world.run_until(world.now + MS);
                let took = world.now - began;
                assert!(
                    took <= limit,
                    "{fault:?}, strict {strict}: {} ms\n{}",
                    took / MS,
                    world.story.join("\n")
                );
            }
            println!("{fault:?}, strict {strict}: {} ms", (world.now - began) / MS);
        }
    }
}

/// Both nodes live and reach the arbiter, but not each other: the holder keeps the address, for as long as that lasts.
#[test]
fn a_cut_between_two_nodes_moves_nothing() {
    for seed in 0..40 {
        let case = Case {
            nodes: 2,
            witnesses: 0,
            cold: false,
            drift: false,
            ..Case::arbitrated(seed % 8)
        };
        let mut world = World::new(seed, &case, safe(), true);
        for n in 0..2 {
            world.at(0, Event::Fault(Fault::Start(n)));
        }
        world.run_until(8 * S);
        // An answer that takes longer than the votes of the other node last would cost the address.
        world.store.quick = true;
        let before = world.moved;
        world.fault(Fault::Cut(0, 1));
        world.run_until(68 * S);
        world.fault(Fault::Mend(0, 1));
        world.run_until(78 * S);
        assert_eq!(world.failure, None, "seed {seed}\n{}", world.story.join("\n"));
        let holder = world.watches[0].holder;
        assert_eq!(
            (world.moved, holder),
            (before, Some(0)),
            "seed {seed}\n{}",
            world.story.join("\n")
        );
    }
}

/// A world in which nothing but ordinary loss happens, for so long: the address stays where it is.
fn nothing_moves(seed: u64, loss: u64, length: u64) {
    let case = Case {
        cold: false,
        drift: false,
        ..Case::of(seed)
    };
    let mut world = World::new(seed, &case, safe(), false);
    world.network.loss = loss;
    for n in 0..world.nodes.len() {
        world.at(0, Event::Fault(Fault::Start(n)));
    }
    world.run_until(8 * S);
    for node in &mut world.nodes {
        // A day of inputs is too much to keep.
        node.base = None;
        node.record.clear();
    }
    let before = (world.moved, world.gaps);
    world.run_until(8 * S + length);
    assert_eq!(world.failure, None, "seed {seed}");
    let after = (world.moved, world.gaps);
    assert_eq!(after, before, "seed {seed}: moved with nothing wrong but {loss} % loss");
}

/// Some seconds after a start without loss or faults: the first node holds.
fn steady(seed: u64, nodes: usize, witnesses: usize, preempt: bool) -> World {
    let case = Case {
        nodes,
        witnesses,
        preempt,
        quorum: 2,
        vips: 1,
        grouped: false,
        cold: false,
        drift: false,
        tracked: false,
        arbiter: false,
        strict: false,
    };
    let mut world = World::new(seed, &case, safe(), true);
    world.network.loss = 0;
    for n in 0..nodes {
        world.at(0, Event::Fault(Fault::Start(n)));
    }
    let at = 2 * S + world.rng.between(0, S);
    world.run_until(at);
    world
}

/// With a witness, the holder does not let go for a moment when the other node dies, is cut off or stands still, nor at reloads and
/// upgrades while it is away, although the witness is asked seldom and refuses now and then.
#[test]
fn the_end_of_the_standby_costs_the_holder_nothing() {
    let faults = [
        Fault::Kill(1),
        Fault::PowerOff(1),
        Fault::LinkDown(1),
        Fault::Pause(1),
        Fault::FreezeMain(1),
        Fault::Partition(2),
    ];
    for seed in 0..60 {
        let mut world = steady(seed, 2, 1, true);
        let before = (world.moved, world.gaps);
        world.fault(faults[seed as usize % faults.len()]);
        for _ in 0..8 {
            let next = world.now + world.rng.between(50 * MS, 600 * MS);
            world.run_until(next);
            world.fault(Fault::Upgrade(0));
        }
        world.run_until(world.now + S);
        let after = (world.moved, world.gaps);
        let story = std::mem::take(&mut world.story).join("\n");
        assert_eq!((world.failure, after), (None, before), "seed {seed}\n{story}");
    }
}

/// What the holder sends is lost, or what it should receive, or both, for longer and shorter than TCP gives a connection; what
/// waited comes in a burst. The address moves at most once, and never is there more than a moment with two holders.
#[test]
fn old_words_move_nothing() {
    let faults = [Fault::Mute(0), Fault::Deafen(0), Fault::Partition(1)];
    for seed in 0..90 {
        let mut world = steady(seed, 3, 0, false);
        let before = (world.moved, world.gaps);
        world.fault(faults[seed as usize % faults.len()]);
        let length = world.rng.between(500 * MS, 1_100 * MS);
        world.run_until(world.now + length);
        world.fault(Fault::Hear(0));
        world.fault(Fault::Heal);
        world.run_until(world.now + 3 * S);
        let (moved, gaps) = (world.moved - before.0, world.gaps - before.1);
        let story = std::mem::take(&mut world.story).join("\n");
        assert_eq!(world.failure, None, "seed {seed}\n{story}");
        assert!(
            moved <= 1 && gaps <= 1,
            "seed {seed}: {moved} moves, {gaps} gaps\n{story}"
        );
    }
}

/// With the link as bad as the timers are made for, and nothing else wrong, the address stays.
#[test]
fn a_lossy_network_alone_moves_nothing() {
    for seed in 0..60 {
        nothing_moves(seed, 5, 18 * S);
    }
}

#[test]
fn a_quarter_of_an_hour_without_a_fault() {
    for seed in 0..4 {
        nothing_moves(seed, 0, 900 * S);
    }
}

#[test]
#[ignore = "long: minutes"]
fn twenty_four_hours_without_a_fault() {
    for seed in 0..4 {
        nothing_moves(seed, 1, 6 * 3_600 * S);
    }
}

/// A thousand addresses, one by one and as a group: killed, frozen, cut, stopped by hand, and back.
#[test]
fn a_thousand_addresses_move_within_half_a_second() {
    for grouped in [false, true] {
        let case = Case {
            nodes: 2,
            witnesses: 0,
            preempt: true,
            quorum: 1,
            vips: 1_000,
            grouped,
            cold: false,
            drift: false,
            tracked: false,
            arbiter: false,
            strict: false,
        };
        for fault in [Fault::Kill(0), Fault::Serving(0, false), Fault::LinkDown(0)] {
            let mut world = World::new(7, &case, safe(), false);
            for n in 0..2 {
                world.at(0, Event::Fault(Fault::Start(n)));
            }
            world.run_until(3 * S);
            let held_by = |world: &World, n: usize| (0..1_000).filter(|v| world.holders(*v) == [n]).count();
            assert_eq!(
                held_by(&world, 0),
                1_000,
                "{fault:?}, grouped {grouped}: {:?}",
                world.failure
            );
            world.fault(fault);
            let began = world.now;
            while held_by(&world, 1) < 1_000 {
                world.run_until(world.now + 5 * MS);
                let took = (world.now - began) / MS;
                let limit = if matches!(fault, Fault::LinkDown(_)) { 750 } else { 500 };
                let held = held_by(&world, 1);
                assert!(
                    took <= limit,
                    "{fault:?}, grouped {grouped}: {held} of 1000 after {took} ms"
                );
            }
        }
    }
}

/// The simulation is worth something only if it notices when a rule of `timers.rs` is broken.
#[test]
fn every_broken_inequality_is_noticed() {
    type Break = fn(&mut Timers);
    let rows: [(&str, Break); 6] = [
        ("the keeper outlasts the peers' patience", |t| {
            t.keeper_patience = t.dead_after + Duration::from_millis(200)
        }),
        ("the lease is far too long", |t| t.lease = Duration::from_secs(8)),
        ("the lease is shorter than its renewal", |t| {
            t.lease = Duration::from_millis(0)
        }),
        ("a node claims before it has listened", |t| t.listen = Duration::ZERO),
        ("a frozen node and its keeper never doubt", |t| {
            t.doubt = Duration::from_secs(3_600);
            t.keeper_patience = Duration::from_secs(3_600);
        }),
        ("one late segment is a death", |t| {
            t.dead_after = Duration::from_millis(60);
            t.vote_hold = Duration::ZERO;
        }),
    ];
    for (what, break_it) in rows {
        let mut timers = safe();
        break_it(&mut timers);
        assert!(!timers.broken().is_empty(), "{what}: check passes it");
        let noticed = AtomicBool::new(false);
        let (failed, _) = failing(5_000, Duration::from_secs(60), |seed| {
            let fails = !noticed.load(Relaxed) && run(seed, timers, false).is_err();
            noticed.fetch_or(fails, Relaxed);
            fails
        });
        println!("{what}: seed {failed:?}");
        assert!(!failed.is_empty(), "{what}: not noticed");
    }
}
