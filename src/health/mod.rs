//! Judging backends: pure. Every call takes `now`; nothing here probes, sleeps or draws a random number.
//!
//! | file | decides |
//! |---|---|
//! | [`answer`] | what an answer to a probe means, as far as it has come |
//! | [`agent`] | what a backend's agent says |
//! | [`verdict`] | what a run of probe results means (rise, fall), and how soon to look again |
//! | [`outlier`] | what failures of real traffic mean: ejection with back-off |
//! | [`reason`] | why a backend is in its state: the words of log, metrics and status |
//! | [`admin_state`] | what an operator or an agent wants |
//! | [`slow_start`] | how much a returning backend gets |
//! | [`backend`] | all of that and the operator's orders together: one state word, one reason, one share |
//! | [`eligibility`] | which backends of a pool take new work |
//! | [`schedule`] | which backend is probed when |
//! | [`drain`] | how many connections to close now so that a drained backend empties at a flat rate |

pub mod admin_state;
pub mod agent;
pub mod answer;
pub mod backend;
pub mod drain;
pub mod eligibility;
pub mod outlier;
pub mod reason;
pub mod schedule;
pub mod slow_start;
pub mod verdict;

pub use backend::{AdminState, BackendState, Change, Criteria, Standing, State};
pub use eligibility::{Candidate, Eligibility, Serving};
pub use reason::{FailureKind, Reason, Remark};
