//! Which listeners exist, which addresses they are bound to, and what a new configuration changes about that.

use std::sync::Arc;

use super::sockets::{self, BindError, Bound, Dealt};
use crate::config::model::{self, Config, Protocol};
use crate::gate::Gate;
use crate::link::Local;
use crate::snapshot::Listener;
use crate::stats::ListenerStats;

/// See the module.
#[derive(Debug, Default)]
pub struct Endpoints {
    entries: Vec<Entry>,
    next_id: u32,
}

#[derive(Debug)]
struct Entry {
    listener: Arc<Listener>,
    /// What the file says, and the address that came of it, with the number of sockets it has.
    bound: Vec<(Local, Local, usize)>,
}

/// Sockets bound for a configuration that is not in force yet; dropping it closes them.
#[derive(Debug)]
pub struct Plan {
    bound: Vec<(usize, Local, Bound)>,
    ids: Vec<u32>,
    next_id: u32,
}

impl Endpoints {
    fn entry(&self, name: &str, protocol: Protocol) -> Option<&Entry> {
        self.entries.iter().find(|entry| {
            entry.listener.config.name == name && entry.listener.config.protocol == protocol
        })
    }

    /// Binds what `listeners` ask for and is not bound yet.
    pub fn plan(&self, listeners: &[model::Listener], workers: usize) -> Result<Plan, BindError> {
        let mut plan = Plan {
            bound: Vec::new(),
            ids: Vec::new(),
            next_id: self.next_id,
        };
        for (ix, listener) in listeners.iter().enumerate() {
            let entry = self.entry(&listener.name, listener.protocol);
            let id = entry.map_or(plan.next_id, |entry| entry.listener.id);
            plan.next_id += u32::from(entry.is_none());
            plan.ids.push(id);
            for wanted in sockets::wanted(listener) {
                let known = entry.and_then(|e| e.bound.iter().find(|(w, _, _)| *w == wanted));
                let bound = match known {
                    None => sockets::bind(listener, id, &wanted, workers)?,
                    Some((_, local @ Local::Ip(_), have)) if *have < workers => {
                        sockets::bind(listener, id, local, workers - have)?
                    }
                    Some(_) => continue,
                };
                plan.bound.push((ix, wanted, bound));
            }
        }
        Ok(plan)
    }

    /// Puts a plan into force. Returns the sockets to be served and the addresses to be closed.
    pub fn commit(
        &mut self,
        plan: Plan,
        config: &Config,
        workers: usize,
    ) -> (Dealt, Vec<(u32, Local)>) {
        let mut entries: Vec<Entry> = Vec::new();
        for (listener, &id) in config.listeners.iter().zip(&plan.ids) {
            let old = self.entry(&listener.name, listener.protocol);
            let stats =
                old.map_or_else(|| ListenerStats::new(workers), |e| e.listener.stats.clone());
            let wanted = sockets::wanted(listener);
            let kept = old.map_or_else(Vec::new, |e| {
                e.bound
                    .iter()
                    .filter(|(w, _, _)| wanted.contains(w))
                    .cloned()
                    .collect()
            });
            let predecessor = old.map(|e| &*e.listener.gate);
            let gate = Gate::new(listener, stats.clone(), predecessor);
            let listener = Arc::new(Listener {
                id,
                config: listener.clone(),
                pool: config.pools[listener.pool].name.as_str().into(),
                stats,
                gate,
            });
            entries.push(Entry {
                listener,
                bound: kept,
            });
        }
        let mut dealt = Vec::new();
        for (ix, wanted, bound) in plan.bound {
            let sockets = bound.sockets.len();
            let known = entries[ix].bound.iter_mut().find(|(w, _, _)| *w == wanted);
            match known {
                Some((_, _, have)) => *have += sockets,
                None => entries[ix]
                    .bound
                    .push((wanted, bound.local.clone(), sockets)),
            }
            dealt.push(bound);
        }
        let old = std::mem::replace(&mut self.entries, entries);
        self.next_id = plan.next_id;
        let closed = old
            .iter()
            .flat_map(|entry| {
                entry
                    .bound
                    .iter()
                    .map(|(_, local, _)| (entry.listener.id, local.clone()))
            })
            .filter(|(id, local)| !self.has(*id, local))
            .collect();
        (sockets::deal(dealt, workers), closed)
    }

    fn has(&self, id: u32, local: &Local) -> bool {
        self.entries
            .iter()
            .any(|entry| entry.listener.id == id && entry.bound.iter().any(|(_, l, _)| l == local))
    }

    /// Listeners for the snapshot.
    pub fn listeners(&self) -> Vec<Arc<Listener>> {
        self.entries
            .iter()
            .map(|entry| entry.listener.clone())
            .collect()
    }

    /// Names and addresses of all bound sockets.
    pub fn bound(&self) -> impl Iterator<Item = (&str, &Local)> {
        self.entries.iter().flat_map(|entry| {
            entry
                .bound
                .iter()
                .map(|(_, local, _)| (entry.listener.config.name.as_str(), local))
        })
    }

    /// Gives up every address; returns them for closing.
    pub fn close_all(&mut self) -> Vec<(u32, Local)> {
        let closed: Vec<(u32, Local)> = self
            .entries
            .iter_mut()
            .flat_map(|entry| {
                entry
                    .bound
                    .drain(..)
                    .map(|(_, local, _)| (entry.listener.id, local))
            })
            .collect();
        for (_, local) in &closed {
            if let Local::Unix(path) = local {
                let _ = std::fs::remove_file(path);
            }
        }
        closed
    }
}
