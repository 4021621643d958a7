//! placeholder until health is merged
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::probe::{Prober, Verdict};
use super::request::BackendOrder;
use crate::balance::{Mask, Member, Picker, Shares, identity};
use crate::config::model;
use crate::link::Report;
use crate::relay::Cause;
use crate::snapshot::{Backend, Pool};
use crate::stats::BackendStats;

/// Shed.
#[derive(Debug, Clone, Copy)]
pub struct Shed {
    /// b
    pub backend: u64,
    /// n
    pub count: usize,
    /// c
    pub cause: Cause,
}

/// Pools.
pub struct Pools {
    _prober: Prober,
    pools: Vec<Arc<Pool>>,
    stats: HashMap<u64, Arc<BackendStats>>,
}

impl Pools {
    /// n
    pub fn new(prober: Prober, _epoch: Instant) -> Self {
        Self {
            _prober: prober,
            pools: vec![],
            stats: HashMap::new(),
        }
    }
    /// c
    pub fn configure(&mut self, pools: &[model::Pool], workers: usize, _now: Instant) {
        self.pools = pools
            .iter()
            .map(|pool| {
                let config = Arc::new(pool.clone());
                let name: Arc<str> = pool.name.as_str().into();
                let backends: Vec<Arc<Backend>> = pool
                    .backends
                    .iter()
                    .map(|b| {
                        let identity = identity(&pool.name, &b.address.to_string());
                        let stats = self
                            .stats
                            .entry(identity)
                            .or_insert_with(|| BackendStats::new(workers))
                            .clone();
                        Arc::new(Backend {
                            identity,
                            pool: name.clone(),
                            config: b.clone(),
                            stats,
                        })
                    })
                    .collect();
                let members: Vec<Member> = backends
                    .iter()
                    .map(|b| Member {
                        identity: b.identity,
                        weight: b.config.weight,
                    })
                    .collect();
                let picker = Picker::new(pool.balance, &pool.source_hash, &members);
                let tiers = [
                    Mask::from_fn(backends.len(), |i| !backends[i].config.backup),
                    Mask::from_fn(backends.len(), |i| backends[i].config.backup),
                ];
                Arc::new(Pool {
                    config,
                    backends,
                    picker,
                    shares: Shares::full(),
                    tiers,
                    desperate: false,
                })
            })
            .collect();
    }
    /// t
    pub fn tick(&mut self, _now: Instant) -> bool {
        false
    }
    /// s
    pub fn take_shed(&mut self) -> Vec<Shed> {
        vec![]
    }
    /// d
    pub fn deadline(&self) -> Option<Instant> {
        Some(Instant::now() + Duration::from_secs(1))
    }
    /// p
    pub fn publish(&mut self) -> Vec<Arc<Pool>> {
        self.pools.clone()
    }
    /// r
    pub fn on_report(&mut self, _report: &Report) {}
    /// v
    pub fn on_verdict(&mut self, _verdict: &Verdict, _now: Instant) {}
    /// o
    pub fn order(
        &mut self,
        _p: &str,
        _n: &str,
        _o: BackendOrder,
        _now: Instant,
    ) -> Result<String, String> {
        Err("no".into())
    }
}
