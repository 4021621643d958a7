//! What the handle asks for: orders, another configuration, the end.

use super::*;

impl Driver {
    pub(super) fn obey(&mut self, now: Instant, command: Command) -> Option<Ending> {
        match command {
            Command::Order(order, reply) => {
                let _ = reply.try_send(self.order(now, order));
            }
            Command::Reconfigure(prepared, reply) => {
                let _ = reply.try_send(self.reconfigure(now, *prepared));
            }
            Command::Stop => {
                let timers = self.plan.setup.timers;
                self.step(now, Input::Admin(TableOrder::Stop));
                // One handover, the keeper's answers, and a little.
                self.stop_by = Some(now + timers.handover + timers.keeper_patience);
            }
            Command::Abandon => return Some(Ending::Stopped),
            Command::Detach(reply) => return Some(Ending::Detach(reply)),
        }
        None
    }

    fn order(&mut self, now: Instant, order: Order) -> Result<String, String> {
        let (Order::Demote(ip) | Order::Allow(ip)) = order;
        let vip = self
            .plan
            .addresses
            .iter()
            .position(|a| *a == ip)
            .ok_or_else(|| format!("{ip} is not a virtual address of this configuration"))?;
        let held = self.table.claims()[vip].phase != Phase::Free;
        let heir = (0..self.plan.identity.nodes.len())
            .any(|n| self.table.peer_claim(n, vip).is_some_and(|c| c.fit == Fit::Ready));
        Ok(match order {
            Order::Demote(_) if self.is_shared(vip) => {
                self.step(now, Input::Admin(TableOrder::Demote(vip)));
                format!("{ip}: withdrawn from this node; what is open may go on, the other nodes are not asked")
            }
            Order::Demote(_) => {
                self.step(now, Input::Admin(TableOrder::Demote(vip)));
                match (held, heir) {
                    (false, _) => format!("{ip}: this node stays away from it"),
                    (true, true) => format!("{ip}: moving to the next node"),
                    (true, false) => {
                        format!("{ip}: no other node can take it now; it moves as soon as one can")
                    }
                }
            }
            Order::Allow(_) => {
                self.step(now, Input::Admin(TableOrder::Allow(vip)));
                format!("{ip}: this node takes part again")
            }
        })
    }

    fn reconfigure(&mut self, now: Instant, prepared: Prepared) -> io::Result<()> {
        let Prepared { plan, listener, .. } = prepared;
        let (old, new) = (&self.plan.identity, &plan.identity);
        if old.nodes == new.nodes && old.me == new.me {
            self.links.adjust(plan.identity.clone());
        } else {
            let identity = plan.identity.clone();
            self.links.rebuild(self.poll.registry(), listener, identity)?;
        }
        let table = plan.carried(&self.table, &self.plan.known());
        // What is not watched any more is released by the keeper.
        let transitions = plan
            .targets
            .iter()
            .map(|t| self.vip(t).map_or(0, |v| self.transitions[v]))
            .collect();
        self.notes.reload(!plan.notify.is_empty());
        self.transitions = transitions;
        self.visited = vec![true; plan.targets.len()];
        self.told.forget_nodes(plan.identity.nodes.len());
        self.refusals.forget_nodes(plan.identity.nodes.len());
        let asked = std::mem::replace(&mut self.witnesses, witnesses(&plan, now));
        self.witnesses.carry(asked);
        let tracked = std::mem::replace(&mut self.tracks, tracks(&plan, now, &table));
        self.tracks.carry(tracked);
        self.table = table;
        self.vips = places(&plan);
        self.plan = plan;
        self.arbiter = self.start_arbiter().unwrap_or_else(|error| {
            self.tell(Event::Note {
                text: format!("no thread for the arbiter: {error}"),
            });
            None
        });
        self.recorder = Recorder::new(now, &self.table);
        self.instruct();
        self.step(now, Input::Tick);
        self.beat_due = true;
        self.publish_due = true;
        Ok(())
    }

    pub(super) fn hand_over(self, reply: &Sender<Detached>) {
        let (runner, untold) = self.notes.hand_over();
        let remembered = Remembered {
            untold,
            boot: self.plan.identity.boot,
            resets: self.trust.resets(),
            known: self.plan.known(),
            table: self.table,
        };
        let raw = self.keeper.as_fd().as_raw_fd();
        let _ = self.poll.registry().deregister(&mut SourceFd(&raw));
        let listener = self.links.close(self.poll.registry(), true);
        if let Ok(state) = serde_json::to_vec(&remembered) {
            let _ = reply.try_send(Detached {
                keeper: self.keeper.into_fd(),
                listener,
                runner,
                state,
            });
        }
    }
}
