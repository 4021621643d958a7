//! Whether two processes can hand virtual addresses over to each other: noticed before anything is handed over.
//!
//! Sockets and what is known of backends are read before Ready; whoever cannot read them refuses there. The state of the election
//! comes last, after Serving, when nothing can be taken back. So the predecessor gives the name of the form in which it keeps that
//! state ([`election::form()`]) as if it were a socket of its own, and the successor takes it from there. A version that
//! knows nothing of forms leaves it, as it leaves every socket that it has no use for, and says so in Ready.
//!
//! | predecessor | successor | who notices |
//! |---|---|---|
//! | names no form, or another one | has `failover` | the successor, which refuses |
//! | has an election | leaves the form's name | the predecessor, which gives the upgrade up |
//! | has none, or the successor has no `failover` | | nobody: there is nothing to go on with |
//!
//! What else is handed over with a protocol of its own has that in its name, and whoever does not find the name refuses before Ready:
//! the helper of the kernel engine, the keeper of return rules.

use crate::control::election;
use crate::control::publication::inherited::{InheritedSockets, Label};

/// For both logs, so it speaks of both processes.
const REFUSAL: &str = "failover: the version that serves and the new one keep the state of virtual addresses in different forms, \
                       so they cannot be handed over: restart weir instead (systemctl restart weir)";

/// In the successor: takes the names of forms from what is handed over. `needed`: its configuration has `failover`.
pub(super) fn take(offered: &mut InheritedSockets, needed: bool) -> Result<(), String> {
    let names = offered.claim_all_own(election::FORMS);
    agree(names.contains(&election::form()), needed)
}

/// In the predecessor: what the successor has left. `needed`: there is an election to be handed over.
pub(super) fn was_taken(unused: &[Label], needed: bool) -> Result<(), String> {
    agree(!unused.contains(&Label::Own(election::form())), needed)
}

fn agree(same: bool, needed: bool) -> Result<(), String> {
    match same || !needed {
        true => Ok(()),
        false => Err(REFUSAL.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor() -> std::os::fd::OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    /// What a predecessor names, what a successor of this version makes of it, and what it leaves.
    ///
    /// Seen to fail with forms that always agree.
    #[test]
    fn a_successor_goes_on_with_its_own_form_alone() {
        let own = election::form();
        let other = own.replace("runner ", "runner 1");
        let rows: [(&str, Option<&str>, bool, bool); 6] = [
            ("the same version", Some(&own), true, true),
            ("another form", Some(&other), true, false),
            ("from before there were forms", None, true, false),
            ("another form, nothing configured", Some(&other), false, true),
            ("the same, nothing configured", Some(&own), false, true),
            ("from before, nothing configured", None, false, true),
        ];
        for (what, named, needed, expected) in rows {
            let mut offered = InheritedSockets::default();
            let labels = ["admin /run/weir/admin.sock", "http"].into_iter().chain(named);
            offered.extend(labels.map(|label| (Label::Own(label.into()), descriptor())));
            let outcome = take(&mut offered, needed);
            assert_eq!(outcome.is_ok(), expected, "{what}: {outcome:?}");
            assert_eq!(offered.discard().len(), 2, "{what}: nothing but the name is taken");
        }
    }

    /// Seen to fail with forms that always agree.
    #[test]
    fn a_predecessor_hands_nothing_to_whoever_leaves_its_form() {
        let left = [Label::Own("http".into()), Label::Own(election::form())];
        for (what, unused, needed, expected) in [
            ("taken", &left[..1], true, true),
            ("left", &left[..], true, false),
            ("left, nothing to hand over", &left[..], false, true),
        ] {
            assert_eq!(was_taken(unused, needed).is_ok(), expected, "{what}");
        }
    }
}
