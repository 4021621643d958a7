//! Configuration: what a file says ([`raw`](self)), what it means ([`model`]), and every reason to refuse it.

pub mod model;

pub use model::Config;
