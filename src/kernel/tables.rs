//! What a pool looks like to the program: slots, and who stands in each. Pure.

use std::net::IpAddr;

use super::layout::{
    BALANCE_CHANCE, BALANCE_HASH, BALANCE_LEAST, BALANCE_TIME, BALANCE_TURN, MODE_DSR, MODE_KEEP, MODE_NAT,
    Pool as Shape, Slot, address,
};
use crate::balance::{Cursor, Loads, Mask, Member, Picker, Shares, seeds};
use crate::config::model::{Balance, KernelMode};
use crate::snapshot::Pool;

/// Slots of a table of source_hash. Behind them stand those who take work, once each, in order of their identities.
pub const HASH_SLOTS: usize = 65_537;

/// Slots of other tables, unless there are more backends.
pub const SLOTS_MAX: usize = 4096;

/// Nobody has any load: schedules do not ask.
struct Idle;

impl Loads for Idle {
    fn active(&self, _: usize) -> u32 {
        0
    }
    fn latency_ns(&self, _: usize) -> u64 {
        0
    }
}

/// The slots of a pool. `place` says where a backend (its index in the pool) stands; those without a place take nothing.
pub fn slots(pool: &Pool, place: impl Fn(usize) -> Option<u32>) -> Vec<Slot> {
    let eligible = |ix: usize| pool.eligibility.first.get(ix);
    let share = |ix: usize| pool.eligibility.shares.get(ix);
    let members = pool.picker.members();
    let takers = || (0..members.len()).filter(|&ix| eligible(ix) && members[ix].weight > 0);
    let slot = |ix: usize, weight: u32| place(ix).map(|backend| Slot { backend, weight });
    // Undivided while nobody ramps: weights are compared, and only their proportions count.
    let weight = |ix: usize| match pool.eligibility.shares == Shares::full() {
        true => members[ix].weight,
        false => members[ix].weight * share(ix),
    };
    match pool.config.balance {
        Balance::SourceHash => {
            let table = pool
                .picker
                .table()
                .unwrap_or_default()
                .iter()
                .map(|&ix| usize::from(ix));
            let taken = |ix: usize| if eligible(ix) { share(ix) } else { 0 };
            let nobody = Slot::default();
            let mut slots: Vec<Slot> = table.map(|ix| slot(ix, taken(ix)).unwrap_or(nobody)).collect();
            if !slots.is_empty() {
                let mut in_order: Vec<usize> = takers().collect();
                in_order.sort_by_key(|&ix| members[ix].identity);
                slots.extend(in_order.into_iter().filter_map(|ix| slot(ix, members[ix].weight)));
            }
            slots
        }
        Balance::LeastConn | Balance::LeastTime => takers().filter_map(|ix| slot(ix, weight(ix))).collect(),
        Balance::RoundRobin | Balance::Random => {
            let takers: Vec<(usize, Slot)> = takers().filter_map(|ix| Some((ix, slot(ix, 1)?))).collect();
            let weights = takers.iter().map(|&(ix, _)| weight(ix));
            let members: Vec<Member> = std::iter::zip(&takers, weights)
                .map(|(&(ix, _), weight)| Member {
                    identity: members[ix].identity,
                    weight,
                })
                .collect();
            cycle(&members, &pool.config.source_hash)
                .into_iter()
                .map(|at| takers[at].1)
                .collect()
        }
    }
}

/// One round of a smooth weighted schedule, as the workers' round robin has it.
fn cycle(members: &[Member], source_hash: &crate::config::model::SourceHash) -> Vec<usize> {
    let gcd = |a: u64, b: u64| {
        let (mut a, mut b) = (a, b);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let weights = || members.iter().map(|member| u64::from(member.weight));
    let divisor = weights().fold(0, gcd).max(1);
    let length = (weights().sum::<u64>() / divisor).min(SLOTS_MAX.max(members.len()) as u64);
    let picker = Picker::new(Balance::RoundRobin, source_hash, members);
    let (mut cursor, all) = (Cursor::new(0), Mask::from_fn(members.len(), |_| true));
    let picks = (0..length).map_while(|_| picker.pick(&mut cursor, 0, &Idle, &Shares::full(), &all));
    picks.collect()
}

/// Which of the addresses that a pool states its connections come from, and which are not on this host (`is_here`) now. Those are
/// left out while there are others: answers to them go elsewhere. If all are, somebody may have routed them here.
pub fn sources(stated: &[IpAddr], is_here: impl Fn(IpAddr) -> bool) -> (Vec<IpAddr>, Vec<IpAddr>) {
    let (here, absent): (Vec<IpAddr>, Vec<IpAddr>) = stated.iter().partition(|&&source| is_here(source));
    match here.is_empty() {
        true => (absent.clone(), absent),
        false => (here, absent),
    }
}

/// The pool itself, with `slots` at `table`, and connections to its backends from `sources`.
pub fn shape(pool: &Pool, slots: &[Slot], table: u32, sources: &[IpAddr]) -> Shape {
    let config = &pool.config;
    let (seed_v4, seed_v6) = seeds(&config.source_hash);
    let bits = |prefix: u8, of: u32| u128::MAX.checked_shl(of - u32::from(prefix)).unwrap_or(0);
    let takers = slots.iter().filter(|slot| slot.weight > 0);
    let first = takers.clone().next();
    let is_only = first.is_some_and(|first| takers.clone().all(|slot| slot.backend == first.backend));
    Shape {
        balance: match config.balance {
            Balance::SourceHash => BALANCE_HASH,
            Balance::RoundRobin => BALANCE_TURN,
            Balance::Random => BALANCE_CHANCE,
            Balance::LeastConn => BALANCE_LEAST,
            Balance::LeastTime => BALANCE_TIME,
        },
        mode: match config.kernel_mode {
            KernelMode::Nat => MODE_NAT,
            KernelMode::Keep => MODE_KEEP,
            KernelMode::Dsr => MODE_DSR,
        },
        table,
        length: slots.len() as u32,
        only: first.filter(|_| is_only).map_or(0, |slot| slot.backend + 1),
        with_port: u32::from(config.source_hash.port),
        turn: 0,
        seed_v4,
        seed_v6,
        mask_v4: bits(config.source_hash.prefix_v4, 32) as u32,
        bound: pool.picker.bound().unwrap_or(0),
        mask_v6: bits(config.source_hash.prefix_v6, 128).to_be_bytes(),
        sources_count: sources.len() as u32,
        pad2: 0,
        sources: std::array::from_fn(|nth| sources.get(nth).map_or([0; 16], |&source| address(source))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Columns: stated, those on this host; in use, absent.
    #[test]
    fn connections_come_from_addresses_of_this_host() {
        type Row<'a> = (&'a [u8], &'a [u8], &'a [u8], &'a [u8]);
        let rows: &[Row] = &[
            (&[], &[1], &[], &[]),
            (&[1, 2], &[1, 2, 3], &[1, 2], &[]),
            (&[2, 1], &[1, 2], &[2, 1], &[]),
            (&[1, 2, 4], &[4, 2], &[2, 4], &[1]),
            (&[1, 2], &[], &[1, 2], &[1, 2]),
        ];
        let ip = |&host: &u8| IpAddr::from([10, 0, 0, host]);
        let all = |hosts: &[u8]| hosts.iter().map(ip).collect::<Vec<_>>();
        for (row, &(stated, here, used, absent)) in rows.iter().enumerate() {
            let got = sources(&all(stated), |source| all(here).contains(&source));
            assert_eq!(got, (all(used), all(absent)), "row {row}");
        }
    }
}
