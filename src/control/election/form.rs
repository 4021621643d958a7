//! What goes from one process to the next in an upgrade, and the name of the form that it is written in.
//!
//! Both processes may be of different versions, and the state is read when nothing can be taken back any more. So the form has a
//! name, which they compare before ([`upgrade`](crate::control::upgrade)).

use serde::{Deserialize, Serialize};

use super::notify::Change;
use super::plan::Known;
use crate::failover::table::Table;
use crate::{keeper, runner};

/// How names of forms begin.
pub const FORMS: &str = "failover state ";

/// The form of [`Remembered`], all of its parts included: what an older version cannot read, or would take for something else, is a
/// form with another number.
const STATE: &str = "failover state 1";

/// The name of the form in which this version hands an election over, and goes on with one. The processes beside it are handed over
/// as they are, so what is said to them is part of it.
pub fn form() -> String {
    format!("{STATE}, keeper {}, runner {}", keeper::PROTOCOL, runner::PROTOCOL)
}

/// What goes from one process to the next.
#[derive(Serialize, Deserialize)]
pub(super) struct Remembered {
    pub boot: u64,
    pub resets: u64,
    pub known: Known,
    pub table: Table,
    /// What `notify` has yet to be told.
    pub untold: Vec<Change>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::words::{Fit, Holders, Lack, Phase, Reason, State};

    /// A state with something in every place. When this fails, the form is another one: give [`STATE`] the next number, and put the
    /// change into the file.
    ///
    /// Seen to fail with one more field in a unit.
    #[test]
    fn the_number_of_the_form_stands_for_this_one() {
        let sample: serde_json::Value = serde_json::from_str(include_str!("form.json")).unwrap();
        let read: Remembered = serde_json::from_value(sample.clone()).unwrap();
        let written = serde_json::to_value(&read).unwrap();
        assert!(written == sample, "another form: {written:#}");
        assert!(STATE.starts_with(FORMS));
    }

    /// The words that a place may have; a sample shows one of them. When this fails, the form is another one as well.
    ///
    /// Seen to fail with one more word for how many nodes hold an address.
    #[test]
    fn it_stands_for_these_words() {
        // serde tells them of a word that is none.
        fn words<T: serde::de::DeserializeOwned>() -> String {
            let error = serde_json::from_str::<T>("\"?\"").err().expect("no word").to_string();
            error.split('`').skip(3).step_by(2).collect::<Vec<_>>().join(" ")
        }
        let rows = [
            (words::<Holders>(), "one all"),
            (words::<Phase>(), "Free Claiming Held Yielding Leaving"),
            (words::<Fit>(), "Unable Soon NoBackend Ready"),
            (
                words::<Lack>(),
                "Nothing Unknown Listening Frozen NotListed Demoted Stopping NotServing NoQuorum NoBackend Keeper Fault \
                 LinkDown Track",
            ),
            (words::<State>(), "standby claiming active releasing fault"),
            (
                words::<Reason>(),
                "Starting Frozen NotListed Demoted Stopping Track NotServing NoQuorum NoBackend Keeper Fault LinkDown HeldBy \
                 LeftTo Waiting Arbiter Quiet First Silent Gone From To Rival Unconfigured Serves",
            ),
        ];
        for (words, expected) in rows {
            assert_eq!(words, expected);
        }
    }
}
