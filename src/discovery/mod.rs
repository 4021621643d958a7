//! Members that come and go: what is known of each source, and what a pool makes of several.
//!
//! A source answers with a list of members, or fails. [`Known`] keeps the last answer that counts, whatever comes after it:
//! an error, silence, a list without members. [`mod@merge`] puts the answers beside the backends that the configuration lists,
//! [`amend`] what operators add and remove.
//! [`Settling`] says when a file that changes has changed. All of it is pure; who asks and watches is `control::discovery`.

pub mod amend;
pub mod containers;
pub mod dns;
mod keys;
mod known;
mod merge;
mod settling;

pub use keys::Keys;
pub use known::{Heard, Known, Outcome};
pub use merge::{Merged, Origin, merge};
pub use settling::{Hint, Next, Print, Settling};
