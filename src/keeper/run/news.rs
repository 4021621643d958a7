//! What the kernel says by itself, and what it answers: how interfaces are, and whose addresses are where.

use super::*;

impl Keeper<'_> {
    pub(super) fn hear(&mut self) -> io::Result<()> {
        for change in self.monitor.changes()? {
            self.changed(change);
        }
        Ok(())
    }

    fn changed(&mut self, change: Change) {
        match change {
            // A list that was asked for comes later and is newer.
            Change::Link(interface) => {
                if let Some(all) = &mut self.interfaces {
                    all.retain(|i| i.index != interface.index);
                    all.push(interface);
                    self.report_links();
                }
            }
            Change::Unlinked(interface) => {
                if let Some(all) = &mut self.interfaces {
                    all.retain(|i| i.index != interface.index);
                    self.report_links();
                }
            }
            Change::Added(address) => {
                for slot in self.slots_of(address.net.addr()) {
                    if address.ours {
                        continue;
                    }
                    // Somebody has made it permanent; a permanent address would outlive us.
                    match self.leases.holds(slot) {
                        true => self.step(Input::Changed { vip: slot }),
                        false => self.list(),
                    }
                }
            }
            Change::Removed(address) => {
                if !address.secondary && address.net.addr().is_ipv4() {
                    self.gone_primaries.push((address.interface, address.net.trunc()));
                }
                for slot in self.slots_of(address.net.addr()) {
                    if address.secondary {
                        self.gone_secondaries.push(slot);
                    }
                    self.list();
                }
            }
            Change::Overrun => {
                self.kernel.interfaces();
                self.list();
            }
        }
    }

    fn slots_of(&self, ip: IpAddr) -> Vec<usize> {
        let slots = self.named.get(&ip).cloned().unwrap_or_default();
        slots.into_iter().filter(|s| !self.watched[*s].forgotten).collect()
    }

    /// Has the kernel list its addresses: news may be older than our own last change.
    pub(super) fn list(&mut self) {
        match &mut self.listing {
            Some(again) => *again = true,
            None => {
                self.listing = Some(false);
                // Behind what was decided on before.
                self.hand_on();
                self.kernel.addresses();
            }
        }
    }

    pub(super) fn answered(&mut self, news: News) -> io::Result<()> {
        match news {
            News::Did(op, at, result) => {
                let result = result.map_err(|refusal| match (refusal, op) {
                    (Refusal::Kernel(why), Op::Install(slot) | Op::Renew(slot) | Op::Remove(slot)) => {
                        Refusal::Kernel(format!("{}: {why}", self.watched[slot].target.interface))
                    }
                    (refusal, _) => refusal,
                });
                self.step_at(at, Input::Did { op, result });
            }
            News::Swept(interface, net) => {
                let name = self.interface_name(interface);
                let text = format!("swept {net} from {name}, left by a predecessor");
                self.say(FromKeeper::Note { text });
            }
            News::Accepted(ip, yes, result) => {
                self.refusing -= usize::from(!yes);
                if let Err(e) = result {
                    let what = if yes { "put on" } else { "remove" };
                    let text = format!("cannot {what} the local route of {ip}: {e}");
                    self.say(FromKeeper::Note { text });
                }
            }
            News::Interfaces(all) => {
                self.interfaces = Some(all);
                self.report_links();
            }
            News::Addresses(all) => self.compare(&all)?,
            News::Failed(e) => return Err(e),
        }
        Ok(())
    }

    /// What the kernel has, against what it should have.
    fn compare(&mut self, all: &[Address]) -> io::Result<()> {
        // Why something has gone may have been said since.
        self.hear()?;
        let mut by_ip: HashMap<IpAddr, Vec<&Address>> = HashMap::new();
        for address in all {
            by_ip.entry(address.net.addr()).or_default().push(address);
        }
        for slot in 0..self.watched.len() {
            let watched = &self.watched[slot];
            if watched.forgotten {
                continue;
            }
            let net = watched.target.net;
            let index = self.interface(&watched.target.interface).map(|i| i.index);
            let here = by_ip.get(&net.addr()).map_or(&[][..], Vec::as_slice);
            let foreign = here.iter().any(|a| !a.ours);
            if self.leases.settled(slot) {
                if index.is_some() && !here.iter().any(|a| Some(a.interface) == index && a.net == net) {
                    self.vanished(slot, index);
                }
            } else if !self.leases.holds(slot) && self.watched[slot].foreign != foreign {
                self.watched[slot].foreign = foreign;
                self.report_foreign(slot);
            }
            if std::mem::take(&mut self.watched[slot].unswept) {
                for address in here.iter().filter(|a| a.ours) {
                    let mine = self.slots_of(net.addr()).into_iter().any(|s| {
                        let target = &self.watched[s].target;
                        s != slot && !self.leases.free(s) && target.interface == self.interface_name(address.interface)
                    });
                    if !mine {
                        self.kernel.sweep(address.interface, address.net);
                    }
                }
            }
        }
        self.gone_primaries.clear();
        self.gone_secondaries.clear();
        if self.listing.take() == Some(true) {
            self.list();
        }
        Ok(())
    }

    fn vanished(&mut self, vip: usize, interface: Option<u32>) {
        let Target { net, interface: name } = &self.watched[vip].target;
        let dragged = self.gone_secondaries.contains(&vip)
            && self
                .gone_primaries
                .iter()
                .any(|(index, subnet)| Some(*index) == interface && *subnet == net.trunc());
        let text = match dragged {
            true => format!("{net} went from {name} with the primary address of its subnet, and is put back"),
            false => format!("{net} was removed from {name} by somebody else"),
        };
        self.say(FromKeeper::Note { text });
        self.step(match dragged {
            true => Input::Dragged { vip },
            false => Input::Vanished { vip },
        });
    }

    pub(super) fn report_links(&mut self) {
        if self.interfaces.is_none() {
            return;
        }
        let watched = self.watched.iter().filter(|w| !w.forgotten);
        let carriers = watched.map(|w| w.target.interface.clone());
        let names: HashSet<String> = carriers.chain(self.tracked.iter().cloned()).collect();
        for interface in names {
            let up = self.interface(&interface).is_some_and(|i| i.up);
            self.say(FromKeeper::Link { interface, up });
        }
    }

    pub(super) fn report_foreign(&mut self, slot: usize) {
        let watched = &self.watched[slot];
        if !watched.forgotten {
            let (target, present) = (watched.target.clone(), watched.foreign);
            self.say(FromKeeper::Foreign { target, present });
        }
    }
}
