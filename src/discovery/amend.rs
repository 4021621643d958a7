//! What an operator has added to a pool and taken out of it, beside what the configuration and the sources say.

use crate::config::model::{Backend, BackendAddress};

/// One addition or removal.
#[derive(Debug, Clone, PartialEq)]
pub struct Amendment {
    /// Who; of one that is removed only the address matters.
    pub member: Backend,
    /// True if the member was added, false if it was removed.
    pub added: bool,
    /// The amendment outlasts reloads.
    pub keep: bool,
}

/// Those of one pool, each address once.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Amendments(Vec<Amendment>);

/// Why nothing was amended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It is in the pool.
    Present,
    /// The pool would have nobody.
    Last,
}

impl Amendments {
    /// Who is in the pool, of those `named` by the configuration and the sources. Whoever is named is as it is named there, also if it
    /// was added.
    pub fn apply(&self, named: &[Backend]) -> Vec<Backend> {
        let gone = |member: &&Backend| !self.0.iter().any(|a| !a.added && a.member.address == member.address);
        let mut members: Vec<Backend> = named.iter().filter(gone).cloned().collect();
        for amendment in self.0.iter().filter(|amendment| amendment.added) {
            if !members.iter().any(|member| member.address == amendment.member.address) {
                members.push(amendment.member.clone());
            }
        }
        members
    }

    /// Adds one, or takes its removal back.
    pub fn add(&mut self, member: Backend, keep: bool, named: &[Backend]) -> Result<(), Refused> {
        let present = |list: &[Backend]| list.iter().any(|other| other.address == member.address);
        if present(&self.apply(named)) {
            return Err(Refused::Present);
        }
        self.0.retain(|amendment| amendment.member.address != member.address);
        if !present(named) {
            self.0.push(Amendment {
                member,
                added: true,
                keep,
            });
        }
        Ok(())
    }

    /// Removes one that is in the pool. The last one stays unless others `may_come`.
    pub fn remove(&mut self, member: Backend, keep: bool, named: &[Backend], may_come: bool) -> Result<(), Refused> {
        if self.apply(named).len() == 1 && !may_come {
            return Err(Refused::Last);
        }
        self.0.retain(|amendment| amendment.member.address != member.address);
        if named.iter().any(|other| other.address == member.address) {
            self.0.push(Amendment {
                member,
                added: false,
                keep,
            });
        }
        Ok(())
    }

    /// Whether it is there because it was added.
    pub fn adds(&self, address: &BackendAddress) -> bool {
        self.0.iter().any(|a| a.added && a.member.address == *address)
    }

    /// A reload ends what is not to be kept; so does a configuration that says the same by itself, and one that cannot use an
    /// address (`refuses`). The addresses of additions that end for that last reason.
    pub fn end(&mut self, configured: &[Backend], refuses: impl Fn(&BackendAddress) -> bool) -> Vec<BackendAddress> {
        let mut unusable = Vec::new();
        self.0.retain(|amendment| {
            let address = &amendment.member.address;
            let said = configured.iter().any(|other| other.address == *address);
            let useless = amendment.added && amendment.keep && !said && refuses(address);
            if useless {
                unusable.push(address.clone());
            }
            amendment.keep && !useless && !(amendment.added && said)
        });
        unusable
    }

    /// All of them, in the order in which they were made.
    pub fn iter(&self) -> impl Iterator<Item = &Amendment> {
        self.0.iter()
    }

    /// What a predecessor has had amended.
    pub fn inherit(&mut self, amendment: Amendment) {
        self.0.push(amendment);
    }

    /// Nothing is amended.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::known::tests::list;
    use super::*;

    /// Steps on a pool whose configuration names 1 and 2 and whose source names 3: what is done, and who is there then. `+4` adds,
    /// `-1` removes, `!` keeps, `R` is a reload, `R4` one whose configuration names 4 besides, `S` a source that names nobody.
    #[test]
    fn who_is_there_after_each_step() {
        #[rustfmt::skip]
        let rows: &[&[(&str, &str)]] = &[
            &[("+4", "1 2 3 4"), ("+4", "present"), ("-4", "1 2 3"), ("-1", "2 3"), ("+1", "1 2 3"), ("R", "1 2 3")],
            &[("+4", "1 2 3 4"), ("R", "1 2 3")],
            &[("+4!", "1 2 3 4"), ("R", "1 2 3 4"), ("S", "1 2 4"), ("-4", "1 2"), ("R", "1 2")],
            &[("+4!", "1 2 3 4"), ("R4", "1 2 4 3"), ("R", "1 2 3")],
            &[("-1", "2 3"), ("-2", "3"), ("-3", "last"), ("R", "1 2 3")],
            &[("-1!", "2 3"), ("R", "2 3"), ("+1", "1 2 3"), ("R", "1 2 3")],
            &[("-3", "1 2"), ("S", "1 2"), ("+3", "1 2 3"), ("R", "1 2")],
            &[("+3", "present"), ("-3", "1 2"), ("R", "1 2 3")],
            &[("S", "1 2"), ("+3", "1 2 3")],
            // An address that cannot be used after a reload.
            &[("+9!", "1 2 3 9"), ("R", "1 2 3")],
        ];
        for steps in rows {
            let mut amendments = Amendments::default();
            let (mut configured, mut source) = (list("1 2"), list("3"));
            for (step, expected) in *steps {
                let keep = step.ends_with('!');
                let member = || list(&step[1..2]).remove(0);
                let named = [configured.clone(), source.clone()].concat();
                let outcome = match step.as_bytes()[0] {
                    b'+' => amendments.add(member(), keep, &named),
                    b'-' => amendments.remove(member(), keep, &named, false),
                    b'R' => {
                        configured = list(if *step == "R4" { "1 2 4" } else { "1 2" });
                        let nine = list("9").remove(0).address;
                        amendments.end(&configured, |address| *address == nine);
                        Ok(())
                    }
                    _ => {
                        source.clear();
                        Ok(())
                    }
                };
                let named = [configured.clone(), source.clone()].concat();
                match outcome {
                    Err(Refused::Present) => assert_eq!(*expected, "present", "{step} of {steps:?}"),
                    Err(Refused::Last) => assert_eq!(*expected, "last", "{step} of {steps:?}"),
                    Ok(()) => assert_eq!(amendments.apply(&named), list(expected), "{step} of {steps:?}"),
                }
            }
        }
    }
}
