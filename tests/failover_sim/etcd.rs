//! What nodes may expect of etcd: one vote a key, taken if it is free or one's own and older, gone with its lease, and a lease
//! that ends late, never early. Delays and lost answers are the caller's.

use std::collections::BTreeMap;

/// A lease by who asked for it, and the number of the question.
pub type LeaseId = (usize, u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    Granted,
    Taken {
        by: usize,
    },
    Superseded,
    /// The lease is not there: nothing was done.
    NoLease,
}

/// Times are microseconds.
#[derive(Debug, Default)]
pub struct Etcd {
    votes: BTreeMap<usize, (usize, u64)>,
    /// When each ends, and for how long it was granted.
    leases: BTreeMap<LeaseId, (u64, u64)>,
}

impl Etcd {
    /// `late`: how much later than it might the lease ends.
    pub fn grant(&mut self, now: u64, lease: LeaseId, ttl: u64, late: u64) {
        // Carried out twice, it is the same lease.
        self.leases.entry(lease).or_insert((now + ttl + late, ttl));
    }

    pub fn vote(&mut self, unit: usize, who: usize, number: u64) -> Said {
        match self.votes.get(&unit) {
            Some((by, _)) if *by != who => return Said::Taken { by: *by },
            Some((_, later)) if *later > number => return Said::Superseded,
            Some((_, same)) if *same == number => return Said::Granted,
            _ => {}
        }
        if !self.leases.contains_key(&(who, number)) {
            return Said::NoLease;
        }
        self.votes.insert(unit, (who, number));
        Said::Granted
    }

    pub fn give_back(&mut self, unit: usize, who: usize, number: u64) {
        if self.votes.get(&unit).is_some_and(|(by, n)| *by == who && *n <= number) {
            self.votes.remove(&unit);
        }
    }

    pub fn revoke(&mut self, lease: LeaseId) {
        self.leases.remove(&lease);
        self.votes.retain(|_, vote| *vote != lease);
    }

    /// Ends the leases that are due.
    pub fn expire(&mut self, now: u64) {
        let due: Vec<LeaseId> = self
            .leases
            .iter()
            .filter(|(_, (end, _))| *end <= now)
            .map(|(id, _)| *id)
            .collect();
        due.into_iter().for_each(|lease| self.revoke(lease));
    }

    /// A new leader knows only how long leases were granted for, and lets them begin anew.
    pub fn new_leader(&mut self, now: u64) {
        for (end, ttl) in self.leases.values_mut() {
            *end = (*end).max(now + *ttl);
        }
    }

    pub fn owner(&self, unit: usize) -> Option<usize> {
        self.votes.get(&unit).map(|(by, _)| *by)
    }
}
