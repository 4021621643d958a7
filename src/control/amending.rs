//! Carrying out orders that add and remove backends, and whatever else changes who is in a pool; [`amend`](super::amend) has what is amended.

use std::time::Instant;

use super::amend::{OPERATOR, lasts, member};
use super::discovery;
use super::events;
use super::thread::Control;
use crate::config::Rules;
use crate::config::model::{Backend, BackendAddress};
use crate::discovery::amend::Refused;

impl Control {
    /// Who is named by the configuration and the sources of a pool.
    fn named(&mut self, pool: &str) -> Vec<Backend> {
        match self.discovery.members(pool) {
            Some(members) => members,
            None => {
                let mut pools = self.config.pools.iter();
                pools
                    .find(|known| known.policy.name == pool)
                    .map_or_else(Vec::new, |pool| pool.backends.clone())
            }
        }
    }

    /// Puts those into a pool who are to be there now.
    pub(super) fn follow_members(&mut self, pool: &str) {
        if let Err(error) = self.set_members(pool) {
            log::error!("members of pool {pool} stay as they were: {error}");
        }
    }

    fn set_members(&mut self, pool: &str) -> Result<(), String> {
        let named = self.named(pool);
        let members = match self.amended.get(pool) {
            Some(amendments) => amendments.apply(&named),
            None => named,
        };
        self.pools.set_members(pool, &members, Instant::now()).map(drop)
    }

    /// Adds a backend to a pool.
    pub(super) fn add_backend(
        &mut self,
        pool: &str,
        address: &str,
        weight: Option<u32>,
        keep: bool,
    ) -> Result<String, String> {
        let ix = self.pools.place_of(pool)?;
        let parsed = BackendAddress::parse(address).map_err(|error| format!("{address}: {error}"))?;
        if let Some(refusal) = Rules::of(&self.config, ix).refusal(&parsed) {
            return Err(format!("pool {pool}: {refusal}"));
        }
        let named = self.named(pool);
        let before = self.amended.clone();
        let amendments = self.amended.entry(pool.to_string()).or_default();
        let outcome = amendments.add(member(parsed.clone(), weight.unwrap_or(1)), keep, &named);
        let returned = !amendments.adds(&parsed);
        if outcome == Err(Refused::Present) {
            self.amended = before;
            return Err(format!("pool {pool} has {parsed} already"));
        }
        if let Err(error) = self.set_members(pool) {
            self.amended = before;
            return Err(error);
        }
        if returned {
            self.tell_members(pool, &format!("{parsed} is not removed any more"));
            return Ok(format!("{pool}/{parsed}: is back, as it is named"));
        }
        self.tell_members(pool, &format!("{parsed} was added {}", lasts(keep)));
        Ok(format!("{pool}/{parsed}: added {}", lasts(keep)))
    }

    /// Takes a backend out of a pool.
    pub(super) fn remove_backend(&mut self, pool: &str, name: &str, keep: bool) -> Result<String, String> {
        let ix = self.pools.place_of(pool)?;
        let member = self.pools.config_of(pool, name)?;
        let address = member.address.clone();
        let named = self.named(pool);
        let may_come = !self.config.pools[ix].members.is_empty();
        let before = self.amended.clone();
        let amendments = self.amended.entry(pool.to_string()).or_default();
        if amendments.remove(member, keep, &named, may_come).is_err() {
            self.amended = before;
            return Err(format!(
                "{pool}/{name} is the last backend of its pool: add another one first"
            ));
        }
        self.amended.retain(|_, amendments| !amendments.is_empty());
        if let Err(error) = self.set_members(pool) {
            self.amended = before;
            return Err(error);
        }
        // What was added is gone for good.
        let until = match named.iter().any(|member| member.address == address) {
            true => format!(" {}", lasts(keep)),
            false => String::new(),
        };
        self.tell_members(pool, &format!("{address} was removed{until}"));
        Ok(format!("{pool}/{name}: removed{until}"))
    }

    fn tell_members(&self, pool: &str, text: &str) {
        let amendments = self.amended.get(pool);
        let added = amendments.map_or(0, |amendments| amendments.iter().filter(|a| a.added).count());
        events::tell(&discovery::News {
            pool: pool.to_string(),
            source: OPERATOR.into(),
            members: added,
            error: None,
            level: log::Level::Info,
            text: text.into(),
        });
    }
}
