//! The control-plane shell: configuration, health, publication, administration.

pub mod election;
