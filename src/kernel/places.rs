//! Which listener and which backend stands where in the maps.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::layout::Tally;
use crate::base::Gauge;
use crate::snapshot::{Backend, Listener};

/// How long a place stays empty after its last flow: entries of ended flows still name it.
const EMPTY: Duration = Duration::from_secs(120);

/// Somebody with a place.
#[derive(Debug)]
pub struct Tenant<T> {
    /// Who; unknown if it is from the time of another process and has not come back.
    pub who: Option<Arc<T>>,
    identity: u64,
    /// Live flows when last counted.
    pub active: u32,
    /// What another process has counted.
    pub before: Tally,
    /// Not in the configuration since.
    gone: Option<Instant>,
}

/// Places of listeners, or of backends.
#[derive(Debug)]
pub struct Places<T> {
    tenants: Vec<Option<Tenant<T>>>,
    by_identity: HashMap<u64, u32>,
}

/// What has a stable identity.
pub trait Identified {
    /// The identity, which stays the same over reloads.
    fn identity(&self) -> u64;
}

impl Identified for Backend {
    fn identity(&self) -> u64 {
        self.identity
    }
}

impl Identified for Listener {
    fn identity(&self) -> u64 {
        crate::balance::identity(&self.config.name, &format!("{:?}", self.config.protocol))
    }
}

impl<T: Identified> Places<T> {
    /// As `found` in the maps: the identity at each place, 0 = free, and what was counted there.
    pub fn new(found: impl Iterator<Item = (u64, Tally)>) -> Places<T> {
        let tenants: Vec<Option<Tenant<T>>> = found
            .map(|(identity, before)| {
                (identity != 0).then(|| Tenant {
                    who: None,
                    identity,
                    active: 0,
                    before,
                    gone: None,
                })
            })
            .collect();
        let taken = tenants.iter().enumerate();
        let by_identity = taken.filter_map(|(ix, tenant)| Some((tenant.as_ref()?.identity, ix as u32)));
        Places {
            by_identity: by_identity.collect(),
            tenants,
        }
    }

    /// Whoever is in the configuration now gets a place, or keeps it. `counted` tells what was counted at a place that is new
    /// for somebody. `None` where all places are taken.
    pub fn settle(&mut self, all: &[Arc<T>], now: Instant, counted: impl Fn(u32) -> Tally) -> Vec<Option<u32>> {
        for tenant in self.tenants.iter_mut().flatten() {
            tenant.gone = tenant.gone.or(Some(now));
        }
        let mut free = 0;
        let mut places = Vec::new();
        for who in all {
            let identity = who.identity();
            let known = self.by_identity.get(&identity).copied();
            let place = known.or_else(|| {
                while self.tenants.get(free)?.is_some() {
                    free += 1;
                }
                Some(free as u32)
            });
            places.push(place);
            let Some(place) = place else { continue };
            self.by_identity.insert(identity, place);
            let tenant = self.tenants[place as usize].get_or_insert_with(|| Tenant {
                who: None,
                identity,
                active: 0,
                before: counted(place),
                gone: None,
            });
            tenant.who = Some(who.clone());
            tenant.gone = None;
        }
        places
    }

    /// Frees places whose last flow ended long ago; `active` tells how many there are. Returns the places.
    pub fn sweep(&mut self, now: Instant, active: impl Fn(u32) -> u32) -> Vec<u32> {
        let mut freed = Vec::new();
        for (ix, slot) in self.tenants.iter_mut().enumerate() {
            let Some(tenant) = slot else { continue };
            if active(ix as u32) > 0 {
                tenant.gone = tenant.gone.map(|_| now);
            } else if tenant.active == 0 && tenant.gone.is_some_and(|at| now > at + EMPTY) {
                self.by_identity.remove(&tenant.identity);
                *slot = None;
                freed.push(ix as u32);
            }
        }
        freed
    }

    /// The one that has this place, if any.
    pub fn get(&self, place: u32) -> Option<&Arc<T>> {
        self.tenants.get(place as usize)?.as_ref()?.who.as_ref()
    }

    /// The place of the one with this identity, if it has one.
    pub fn find(&self, identity: u64) -> Option<u32> {
        self.by_identity.get(&identity).copied()
    }

    /// Takes what is live here out of the gauge of everybody with a place.
    pub fn forget(&mut self, gauge: impl Fn(&T) -> &Gauge) {
        for tenant in self.tenants.iter_mut().flatten() {
            let was = std::mem::take(&mut tenant.active);
            if let Some(who) = &tenant.who {
                gauge(who).follow(was, 0);
            }
        }
    }

    /// Everybody with a place.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut Tenant<T>)> {
        let tenants = self.tenants.iter_mut().enumerate();
        tenants.filter_map(|(ix, tenant)| Some((ix as u32, tenant.as_mut()?)))
    }
}
