//! The control-plane shell: configuration, health, publication, administration.
//!
//! One thread owns all of its state and works off one queue of [`Input`]s; everybody else (signal handler, prober,
//! workers, admin socket, HTTP, election) only sends. Whoever asks something sends a [`Request`] with a reply channel in
//! it and waits with a timeout.

pub mod request;

pub use request::{BackendOrder, Input, Request, VipOrder};
