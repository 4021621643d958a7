//! Members that come, go, return, are renamed, reordered and reweighed, with and without a reload.

use proptest::prelude::*;

use super::members::Changes;
use super::*;
use crate::base::Rng;
use crate::config;
use crate::config::model;
use crate::snapshot::BackendPermit;

fn member(n: usize) -> model::Backend {
    model::Backend {
        name: format!("m{n}"),
        address: model::BackendAddress::Ip(([10, 0, 0, n as u8], 80).into()),
        weight: 1,
        max_connections: None,
        backup: false,
    }
}

fn members(numbers: &[usize]) -> Vec<model::Backend> {
    numbers.iter().copied().map(member).collect()
}

/// The pool `web` as a file would have it.
fn file(keys: &str, members: Vec<model::Backend>) -> model::Pool {
    let text = format!(
        "listeners: {{l: {{bind: '127.0.0.1:80', pool: web}}}}\npools: {{web: {{{keys}, backends: ['10.9.9.9:80']}}}}"
    );
    let mut pool = config::parse("f", &text).unwrap().config.pools.remove(0);
    pool.backends = members;
    pool
}

fn configured(keys: &str, members: Vec<model::Backend>, now: Instant) -> Pools {
    let mut pools = Pools::new(1);
    pools.configure(&[file(keys, members)], 1, 8, now);
    pools
}

fn entry<'a>(pools: &'a Pools, name: &str) -> &'a Entry {
    let mut entries = pools.pools[0].entries.iter();
    entries
        .find(|entry| entry.backend.config.name == name)
        .unwrap_or_else(|| panic!("no {name}"))
}

fn names(pools: &Pools) -> String {
    let entries = pools.pools[0].entries.iter();
    let names: Vec<&str> = entries.map(|entry| entry.backend.config.name.as_str()).collect();
    names.join(" ")
}

/// Columns: members asked for, who is there then, and what came, went and changed. Seen to fail: the order of the source
/// taken over.
#[test]
fn members_by_address_in_a_steady_order() {
    let now = Instant::now();
    let renamed = |n: usize, name: &str| model::Backend {
        name: name.into(),
        ..member(n)
    };
    let weighed = |n: usize, weight| model::Backend { weight, ..member(n) };
    #[rustfmt::skip]
    let rows: Vec<(Vec<model::Backend>, &str, [usize; 3])> = vec![
        (members(&[1, 2, 3]), "m1 m2 m3", [0, 0, 0]),
        (members(&[3, 1, 2]), "m1 m2 m3", [0, 0, 0]),
        (members(&[4, 3, 1]), "m1 m3 m4", [1, 1, 0]),
        (vec![renamed(1, "x"), member(3), member(4)], "x m3 m4", [0, 0, 1]),
        (vec![renamed(1, "x"), member(3), member(4), member(3)], "x m3 m4", [0, 0, 0]),
        (vec![renamed(1, "x"), member(3), renamed(4, "x")], "x m3 10.0.0.4:80", [0, 0, 1]),
        (vec![weighed(1, 7), weighed(3, 0)], "m1 m3", [0, 1, 2]),
        (vec![], "", [0, 2, 0]),
        (members(&[2, 1]), "m2 m1", [2, 0, 0]),
    ];
    for balance in ["least_conn", "source_hash", "round_robin", "random", "least_time"] {
        let mut pools = configured(&format!("balance: {balance}"), members(&[1, 2, 3]), now);
        pools.tick(now);
        for (wanted, there, counts) in &rows {
            let changes = pools.set_members("web", wanted, now).unwrap();
            assert_eq!(names(&pools), *there, "{wanted:?}");
            assert_eq!([changes.came, changes.went, changes.changed], *counts, "{there:?}");
            let told = pools.tick(now);
            assert_eq!(
                told,
                changes != Changes::default(),
                "{there:?}: published only if something changed"
            );
            let pool = pools.publish(now).remove(0);
            let choice = pool.choose(&mut crate::balance::Cursor::new(1), 5, &[], Duration::ZERO);
            let serves = matches!(choice, crate::snapshot::Choice::Backend(_));
            assert_eq!(serves, !there.is_empty(), "{balance} {there:?}");
        }
    }
    let mut pools = configured("balance: random", members(&[1]), now);
    assert!(pools.set_members("other", &[], now).is_err());
    assert!(pools.set_members("web", &vec![member(1); 70_000], now).is_err());
    assert_eq!(names(&pools), "m1");
}

/// Health, orders, drain, weight and counts are those of the address, in the pool or out of it, until the last connection
/// ends; a reload ends the orders. Seen to fail: one that leaves forgotten at once.
#[test]
fn what_is_known_stays_with_the_address() {
    let now = Instant::now();
    let mut pools = configured("balance: random", members(&[1, 2]), now);
    pools.tick(now);
    let run = pools.take_probes()[0].run;
    let verdict = Verdict {
        run,
        result: Ok(crate::health::Reason::ConnectOk.into()),
        untried: false,
        took: Duration::ZERO,
    };
    pools.on_verdict(&verdict, now);
    pools.order("web", "m1", BackendOrder::Weight(7), false, now).unwrap();
    pools.order("web", "m2", BackendOrder::Drain, false, now).unwrap();
    let places = ["m1", "m2"].map(|name| BackendPermit::take(&entry(&pools, name).backend).unwrap());
    let known = |pools: &Pools, name: &str| {
        let Entry { state, backend, .. } = entry(pools, name);
        (state.state(), entry(pools, name).weight(), backend.stats.active.get())
    };
    let wanted = [(State::Up, 7, 1), (State::Drain, 1, 1)];
    for present in [&[1, 2][..], &[2, 3, 1], &[3], &[1, 2], &[], &[2, 1]] {
        pools.set_members("web", &members(present), now).unwrap();
        pools.tick(now);
        for n in present.iter().filter(|&&n| n < 3) {
            assert_eq!(known(&pools, &format!("m{n}")), wanted[n - 1], "{present:?}");
        }
    }
    pools.configure(&[file("balance: random", members(&[1, 2]))], 1, 8, now);
    assert_eq!(known(&pools, "m1"), (State::Up, 1, 1));
    assert_eq!(known(&pools, "m2"), (State::Starting, 1, 1));
    pools.set_members("web", &[], now).unwrap();
    drop(places);
    pools.tick(now);
    pools.set_members("web", &members(&[1]), now).unwrap();
    assert_eq!(known(&pools, "m1"), (State::Starting, 1, 0), "nothing was left of it");
}

/// Where so many clients go.
fn homes(pools: &mut Pools, clients: u64) -> Vec<String> {
    let pool = pools.publish(Instant::now()).remove(0);
    let choose = |key| pool.choose(&mut crate::balance::Cursor::new(1), key, &[], Duration::ZERO);
    let name = |choice| match choice {
        crate::snapshot::Choice::Backend(permit) => permit.backend().config.name.clone(),
        _ => String::new(),
    };
    (0..clients)
        .map(|key| name(choose(key.wrapping_mul(0x9e37_79b9_7f4a_7c15))))
        .collect()
}

/// One member in N that goes or comes moves at most 1.5 / N of the clients; one that makes way for another is two. Seen to fail: a
/// picker whose table depends on the places of the members.
#[test]
fn one_member_moves_its_share_of_the_clients() {
    const CLIENTS: u64 = 20_000;
    let now = Instant::now();
    for n in [3usize, 5, 10, 30, 100] {
        let all: Vec<usize> = (1..=n).collect();
        let gone: Vec<usize> = all[1..].to_vec();
        let come: Vec<usize> = [&all[..], &[n + 1]].concat();
        let another: Vec<usize> = [&all[1..], &[n + 1]].concat();
        for (changes, wanted) in [(1.0, gone), (1.0, come), (2.0, another)] {
            let mut pools = configured("balance: source_hash, health: {type: none}", members(&all), now);
            let before = homes(&mut pools, CLIENTS);
            pools.set_members("web", &members(&wanted), now).unwrap();
            let after = homes(&mut pools, CLIENTS);
            let moved = before.iter().zip(&after).filter(|(was, is)| was != is).count();
            let share = moved as f64 / CLIENTS as f64;
            assert!(
                share <= changes * 1.5 / n as f64,
                "{moved} of {CLIENTS} moved: {share} with {n} members, {wanted:?}"
            );
        }
    }
}

/// A reload that lists the backends in another order moves no client.
#[test]
fn another_order_moves_no_client() {
    let now = Instant::now();
    let keys = "balance: source_hash, health: {type: none}";
    let mut pools = configured(keys, members(&[1, 2, 3, 4, 5]), now);
    let before = homes(&mut pools, 1000);
    pools.configure(&[file(keys, members(&[5, 3, 1, 4, 2]))], 1, 8, now);
    assert_eq!(names(&pools), "m5 m3 m1 m4 m2", "a file's order is shown");
    assert!(homes(&mut pools, 1000) == before);
    pools.set_members("web", &members(&[1, 2, 3, 4, 5]), now).unwrap();
    assert!(homes(&mut pools, 1000) == before);
}

/// What is said of a pool's supply waits until workers have been told; the code of before logged it while the snapshot was made.
#[test]
fn news_wait_for_publication() {
    let now = Instant::now();
    let mut pools = configured("balance: random", members(&[1]), now);
    pools.publish(now);
    assert_eq!(
        pools.news.last().unwrap().to_string(),
        "pool web: 1 backend takes new work"
    );
    pools.tell();
    assert!(pools.news.is_empty());
}

proptest! {
    /// Any course of memberships, reloads and connections: the members are those asked for, each once, probed and found where
    /// it is; whoever left and has connections is kept, and its count is that of the connections.
    #[test]
    fn counts_add_up(seed in any::<u64>()) {
        let now = Instant::now();
        let mut rng = Rng::new(seed);
        let mut pools = configured("balance: least_conn", members(&[0, 1, 2]), now);
        let mut held: Vec<(u64, BackendPermit)> = Vec::new();
        for _ in 0..60 {
            let mut present: Vec<usize> = (0..6).filter(|_| rng.below(2) == 0).collect();
            match rng.below(6) {
                0 | 1 => {
                    let turn = rng.below(present.len().max(1) as u64) as usize;
                    present.rotate_left(turn);
                    pools.set_members("web", &members(&present), now).unwrap();
                    let mut there: Vec<String> = names(&pools).split_whitespace().map(String::from).collect();
                    let mut wanted: Vec<String> = present.iter().map(|n| format!("m{n}")).collect();
                    there.sort();
                    wanted.sort();
                    prop_assert_eq!(there, wanted);
                }
                2 => pools.configure(&[file("balance: least_conn", members(&present))], 1, 8, now),
                3 => if !held.is_empty() {
                    let ix = rng.below(held.len() as u64) as usize;
                    held.swap_remove(ix);
                },
                _ => if let Some(entry) = pools.pools[0].entries.first() {
                    held.push((entry.backend.identity, BackendPermit::take(&entry.backend).unwrap()));
                },
            }
            pools.tick(now);
            let entries = &pools.pools[0].entries;
            prop_assert_eq!(pools.schedule.len(), entries.len());
            prop_assert_eq!(pools.positions.len(), entries.len());
            for (ix, entry) in entries.iter().enumerate() {
                let identity = entry.backend.identity;
                prop_assert_eq!(pools.find(identity), Some((0, ix)));
                prop_assert!(pools.schedule.contains(identity) && !pools.leaving.contains_key(&identity));
            }
            for entry in entries.iter().chain(pools.leaving.values()) {
                let identity = entry.backend.identity;
                let live = held.iter().filter(|(of, _)| *of == identity).count();
                prop_assert_eq!(entry.backend.stats.active.get() as usize, live);
            }
            for (identity, _) in &held {
                prop_assert!(pools.find(*identity).is_some() || pools.leaving.contains_key(identity));
            }
        }
    }
}
