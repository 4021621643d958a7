//! Who may come, and how much of it: the program against the workers' own rules, packet by packet, on several processors at once.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use aya::maps::{Array, PerCpuArray};
use weir::balance::acl::NetSet;
use weir::balance::limits::{Admission, Limit, SourceLimits, SourceTable};
use weir::base::Rng;
use weir::config::model::Rate;
use weir::kernel::layout::{Bucket, Guard, Listener, Plain, Process, Service, Tally, VERDICT_DENIED, VERDICT_EXEMPT};

use super::common::netns::Netns;
use super::common::{may_make_namespaces, seed};
use super::model::{
    ACK, BACKEND_PORT, BACKENDS, Build, Bytes, Program, RST, SERVICES, SOURCES, SYN, UDP, Verdict, forward_everything,
    ip, judge, parse, put, segment, sent, serve,
};

/// The service of these tests, and its listener's place.
const PORT: u16 = 90;
const LISTENER: u32 = 3;

/// Of `refused` of a tally.
const LISTENER_FULL: usize = 1;
const SOURCE: usize = 2;
const RATE: usize = 3;
const PROCESS_FULL: usize = 4;

/// The service under a guard, both protocols and families.
fn guarded(guard: &Guard, active_max: u32) -> Program {
    let mut program = Program::new();
    program.state_sources(0, &[SOURCES[0]]);
    let ebpf = &mut program.0;
    // Beyond that of the model's own.
    put(ebpf, "guards", 0, &guard.bytes());
    let listener = Listener {
        identity: 77,
        active: 0,
        active_max,
    };
    put(ebpf, "listeners", LISTENER, &listener.bytes());
    for family in [0, 1] {
        let service = Service {
            listener: LISTENER,
            pool: 2 * family as u32,
            guard: 1,
            ..Service::default()
        };
        serve(ebpf, (SERVICES[family], PORT), &service);
    }
    program
}

fn refused(program: &Program) -> [u64; 7] {
    let tallies: PerCpuArray<_, Bytes<{ Tally::SIZE }>> =
        program.0.map("listener_tallies").unwrap().try_into().unwrap();
    let mut all = [0; 7];
    for tally in tallies.get(&LISTENER, 0).unwrap().iter() {
        for (all, one) in all.iter_mut().zip(Tally::of(&tally.0).refused) {
            *all += one;
        }
    }
    all
}

/// Flows that count as one of some source's.
fn sourced(program: &Program) -> u64 {
    let buckets: Array<_, Bytes<{ Bucket::SIZE }>> = program.0.map("sources").unwrap().try_into().unwrap();
    let slots = (0..buckets.len()).flat_map(|ix| Bucket::of(&buckets.get(&ix, 0).unwrap().0).slots);
    slots.map(|slot| slot & 0xff_ffff).sum()
}

fn active(program: &Program) -> [u32; 2] {
    let listeners: Array<_, Bytes<{ Listener::SIZE }>> = program.0.map("listeners").unwrap().try_into().unwrap();
    let process: Array<_, Bytes<{ Process::SIZE }>> = program.0.map("process").unwrap().try_into().unwrap();
    let process = Process::of(&process.get(&0, 0).unwrap().0);
    [
        Listener::of(&listeners.get(&LISTENER, 0).unwrap().0).active,
        process.active.iter().sum(),
    ]
}

/// A client's address and port.
type Client = (IpAddr, u16);

fn family(client: Client) -> usize {
    usize::from(client.0.is_ipv6())
}

/// A client's segment, and whether it went on; else it was answered by RST.
#[track_caller]
fn goes_on(program: &Program, client: Client, flags: u8) -> Option<weir::kernel::layout::Tuple> {
    let (address, service) = (client.0.to_string(), SERVICES[family(client)]);
    let (verdict, out) = program
        .run(&segment((&address, client.1), (service, PORT), flags), 0)
        .unwrap();
    assert_eq!(verdict, Verdict::Sent);
    let out = parse(&out).unwrap();
    match out.key.dst == ip(&address) {
        false => Some(out.key),
        true => {
            assert_eq!(out.flags & RST, RST, "whoever does not come in is told");
            None
        }
    }
}

/// The backend has answered.
fn answers(program: &Program, client: Client) -> bool {
    let Some(there) = goes_on(program, client, SYN) else {
        return false;
    };
    let backend = (BACKENDS[family(client)], BACKEND_PORT);
    let us = there.source();
    let us = (us.ip().to_string(), us.port());
    sent(program, &segment(backend, (&us.0, us.1), SYN | ACK));
    true
}

fn opens(program: &Program, client: Client) -> bool {
    answers(program, client) && goes_on(program, client, ACK).is_some()
}

fn closes(program: &Program, client: Client) {
    assert!(goes_on(program, client, RST | ACK).is_some());
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Runs in a namespace where everything has a way out.
fn alone(role: &str, test: impl FnOnce() + Send) {
    if !may_make_namespaces() {
        return;
    }
    let netns = Netns::new(role);
    forward_everything(&netns);
    netns.enter(test);
}

/// Connections come and go by chance; each is admitted if and only if the workers' table admits it, and for the same reason not.
/// Seen to fail with whole addresses of IPv6, without exempt ones, with places that are not given back.
#[test]
fn sources_are_judged_as_by_the_workers() {
    alone("sources", || {
        // No time passes for such a rate.
        let rate = Rate {
            events: 60,
            per: Duration::from_secs(600_000),
        };
        let guard = Guard {
            listed: 1,
            per_source: 3,
            cost: 10_000 * 1_000_000_000,
            depth: 600_000 * 1_000_000_000,
            ..Guard::default()
        };
        let mut program = guarded(&guard, 0);
        judge(&mut program.0, "10.1.0.9", 128, 1, VERDICT_EXEMPT);
        let limits = SourceLimits {
            connections: Some(3),
            new: Some(rate),
            exempt: NetSet::new(&["10.1.0.9/32".parse().unwrap()]),
        };
        let (mut table, now) = (SourceTable::new(limits, 1000), Instant::now());
        let mut rng = Rng::new(seed(1));
        // Two of one /64.
        let clients = [
            "10.1.0.2",
            "10.1.0.3",
            "10.1.0.9",
            "fd01::2",
            "fd01::3",
            "fd01:0:0:1::2",
        ]
        .map(address);
        let mut held: HashMap<IpAddr, Vec<(u16, Admission)>> = HashMap::new();
        let mut wanted = [0; 7];
        for nth in 0..1_500 {
            let client = clients[rng.below(clients.len() as u64) as usize];
            let open = held.entry(client).or_default();
            if rng.below(2) == 0 && !open.is_empty() {
                let (port, admission) = open.swap_remove(rng.below(open.len() as u64) as usize);
                closes(&program, (client, port));
                table.release(admission);
                continue;
            }
            let port = 2_000 + nth;
            let judged = table.admit(now, client);
            assert_eq!(opens(&program, (client, port)), judged.is_ok(), "{client} {judged:?}");
            match judged {
                Ok(admission) => open.push((port, admission)),
                Err(Limit::Connections | Limit::Table) => wanted[SOURCE] += 1,
                Err(Limit::Rate(_)) => wanted[RATE] += 1,
            }
            assert_eq!(refused(&program), wanted);
        }
        println!("{wanted:?}");
        assert!(wanted[SOURCE] > 50 && wanted[RATE] > 50);
        for (client, ports) in held {
            ports.iter().for_each(|(port, _)| closes(&program, (client, *port)));
        }
        assert_eq!((sourced(&program), active(&program)), (0, [0, 0]));
    });
}

/// Handshakes that are all under way before one of them ends: as many as may come in do, the others are reset, and so is their
/// backend as soon as it speaks. Seen to fail with each limit looked at with the SYN only, and with a backend's side that is not cut.
#[test]
fn a_burst_of_handshakes_is_counted_exactly() {
    const BURST: u16 = 40;
    const MOST: usize = 7;
    alone("burst", || {
        let rows = [
            (MOST as u32, 0, u32::MAX, SOURCE),
            (0, MOST as u32, u32::MAX, LISTENER_FULL),
            (0, 0, MOST as u32, PROCESS_FULL),
        ];
        for (per_source, listener, process, why) in rows {
            let guard = Guard {
                per_source,
                ..Guard::default()
            };
            let mut program = guarded(&guard, listener);
            let process = Process {
                active_max: [process; 2],
                seed: 5,
                buckets: 65_536,
                ..Process::default()
            };
            put(&mut program.0, "process", 0, &process.bytes());
            let clients: Vec<Client> = (0..BURST).map(|nth| (address("10.1.0.2"), 2_000 + nth)).collect();
            assert!(clients.iter().all(|&client| answers(&program, client)));
            let (open, late): (Vec<Client>, Vec<Client>) = clients
                .iter()
                .partition(|&&client| goes_on(&program, client, ACK).is_some());
            assert_eq!(open.len(), MOST);
            let mut wanted = [0; 7];
            wanted[why] = late.len() as u64;
            assert_eq!(refused(&program), wanted);
            // Port for port, as this host speaks to the backend.
            let (_, out) = program
                .run(
                    &segment((BACKENDS[0], BACKEND_PORT), ("10.2.0.1", late[0].1), SYN | ACK),
                    0,
                )
                .unwrap();
            let out = parse(&out).unwrap();
            assert_eq!((out.flags & RST, out.key.dst), (RST, ip(BACKENDS[0])));
            assert!(goes_on(&program, late[0], ACK).is_none());
            // Beyond the burst they are refused at once.
            assert!(!answers(&program, (address("10.1.0.2"), 5_000)));
            open.iter().for_each(|&client| closes(&program, client));
            assert!(answers(&program, (address("10.1.0.2"), 5_001)));
            assert_eq!((sourced(&program), active(&program)), (0, [0, 0]));
        }
    });
}

/// Runs on each of two processors; fewer: they take turns.
fn on_both<T: Send>(each: impl Fn(usize) -> T + Sync) -> [T; 2] {
    let both = Barrier::new(2);
    std::thread::scope(|scope| {
        let (each, both) = (&each, &both);
        let threads = [0, 1].map(|processor| {
            scope.spawn(move || {
                let mut only = nix::sched::CpuSet::new();
                only.set(processor).unwrap();
                let _ = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &only);
                both.wait();
                each(processor)
            })
        });
        threads.map(|thread| thread.join().unwrap())
    })
}

/// One source opens and closes on two processors at once: never more than may be, exactly as many when all are held, none left
/// behind; and what its rate allows, not one more. Seen to fail with a meter that is written without a compare, and with a count
/// that is read and written with a pause between.
#[test]
fn one_source_is_counted_over_all_processors() {
    const MOST: usize = 500;
    const EACH: u16 = 3_000;
    alone("processors", || {
        let guard = Guard {
            per_source: MOST as u32,
            ..Guard::default()
        };
        let program = guarded(&guard, 0);
        let client = |processor: usize, nth: u16| (address("10.1.0.2"), 2_000 + 10_000 * processor as u16 + nth);
        {
            let held = on_both(|processor| {
                let mut held: Vec<Client> = Vec::new();
                for nth in 0..EACH {
                    let client = client(processor, nth);
                    if opens(&program, client) {
                        held.push(client);
                    }
                    if nth % 10 != 0
                        && let Some(client) = held.pop()
                    {
                        closes(&program, client);
                    }
                }
                held
            });
            let counts = held.each_ref().map(Vec::len);
            assert_eq!(counts.iter().sum::<usize>() as u64, sourced(&program), "{counts:?}");
            assert!(counts.iter().sum::<usize>() <= MOST);
            let more = (0..MOST as u16 + 5).filter(|&nth| opens(&program, (address("10.1.0.2"), 28_000 + nth)));
            let more: Vec<u16> = more.collect();
            assert_eq!(counts.iter().sum::<usize>() + more.len(), MOST);
            on_both(|processor| held[processor].iter().for_each(|&client| closes(&program, client)));
            more.iter()
                .for_each(|nth| closes(&program, (address("10.1.0.2"), 28_000 + nth)));
            assert_eq!((sourced(&program), active(&program)), (0, [0, 0]));
        }

        let guard = Guard {
            cost: 1_000_000_000_000,
            depth: 4_000_000_000_000_000,
            ..Guard::default()
        };
        let program = guarded(&guard, 0);
        let taken = on_both(|processor| (0..EACH).filter(|&nth| opens(&program, client(processor, nth))).count());
        assert_eq!(taken.iter().sum::<usize>(), 4_000, "{taken:?}");
    });
}

/// SYNs in the name of others, of one above all, use up nothing of theirs and take no room. Seen to fail with a meter that counts
/// SYNs.
#[test]
fn spoofed_handshakes_count_for_nobody() {
    alone("spoofed", || {
        let guard = Guard {
            per_source: 2,
            cost: 1_000_000_000_000,
            depth: 4_000_000_000_000,
            ..Guard::default()
        };
        let program = guarded(&guard, 0);
        let victim = address("10.1.0.2");
        assert!(opens(&program, (victim, 1_500)));
        // Those of each family have half of the ports towards their backend; together they are more than the table has room for.
        for nth in 0..17_000u32 {
            let v4: IpAddr = std::net::Ipv4Addr::from_bits(0x0b00_0000 + nth).into();
            let v6: IpAddr = std::net::Ipv6Addr::from_bits(0xfd03 << 112 | u128::from(nth) << 64).into();
            goes_on(&program, (v4, 2_000), SYN);
            goes_on(&program, (v6, 2_000), SYN);
            if nth % 50 == 0 {
                goes_on(&program, (victim, 2_000 + nth as u16), SYN);
            }
        }
        assert_eq!((sourced(&program), active(&program)), (1, [1, 1]));
        assert!(opens(&program, (victim, 1_501)));
        assert!(!opens(&program, (victim, 1_502)), "it has two");
        closes(&program, (victim, 1_500));
        assert!(opens(&program, (victim, 1_503)));
    });
}

/// The longest network that has a client says whether it may come: whoever may not is told so over TCP, and hears nothing over UDP.
/// Seen to fail without an RST, and with the last byte of addresses left out.
#[test]
fn whoever_is_denied_is_told() {
    alone("denied", || {
        let guard = Guard {
            listed: 1,
            ..Guard::default()
        };
        let mut program = guarded(&guard, 0);
        let networks = [
            ("10.1.0.0", 96 + 24, 1, VERDICT_DENIED),
            ("10.1.0.9", 128, 1, 0),
            ("fd01::", 64, 0, VERDICT_DENIED),
            ("fd01::9", 128, 0, 0),
            // All of IPv6 is nothing of IPv4.
            ("::", 0, 0, VERDICT_DENIED),
        ];
        for (network, bits, is_v4, verdict) in networks {
            judge(&mut program.0, network, bits, is_v4, verdict);
        }
        let rows = [
            ("10.1.0.2", false),
            ("10.1.0.9", true),
            ("10.1.1.2", true),
            ("fd01::2", false),
            ("fd01::9", true),
            ("fd02::9", false),
        ];
        for (client, wanted) in rows {
            let client = address(client);
            assert_eq!(opens(&program, (client, 2_000)), wanted, "{client}");
            assert_eq!(goes_on(&program, (client, 2_000), ACK).is_some(), wanted, "{client}");
            let (verdict, _) = program.run(&datagram((client, 2_000)), 0).unwrap();
            assert_eq!(verdict == Verdict::Sent, wanted, "{client}");
            assert!(wanted || verdict == Verdict::Dropped, "{client}");
        }
        assert_eq!(refused(&program), [6, 0, 0, 0, 0, 0, 0]);
    });
}

fn datagram(client: Client) -> Vec<u8> {
    let source = client.0.to_string();
    let build = Build {
        src: &source,
        dst: SERVICES[family(client)],
        protocol: UDP,
        hops: 64,
        extra: (0, Vec::new()),
        fragment: None,
        l4: [
            &client.1.to_be_bytes()[..],
            &PORT.to_be_bytes(),
            &[0, 12, 0, 0],
            b"word",
        ]
        .concat(),
        check: Some(6),
    };
    build.frame()
}

/// A datagram proves nothing, so the meter is asked with the first one of a session, and those that are too many vanish.
/// Seen to fail with a meter that is not asked then.
#[test]
fn sessions_of_a_source_come_at_its_rate() {
    alone("sessions", || {
        let guard = Guard {
            cost: 1_000_000_000_000,
            depth: 5_000_000_000_000,
            ..Guard::default()
        };
        let program = guarded(&guard, 0);
        for client in ["10.1.0.2", "fd01::2"].map(address) {
            for nth in 0..8 {
                let wanted = if nth < 5 { Verdict::Sent } else { Verdict::Dropped };
                // The second of a session asks for nothing.
                for _ in 0..2 {
                    let (verdict, _) = program.run(&datagram((client, 3_000 + nth)), 0).unwrap();
                    assert_eq!(verdict, wanted, "{client} {nth}");
                }
            }
        }
        assert_eq!(refused(&program)[RATE], 2 * 3 * 2);
    });
}
