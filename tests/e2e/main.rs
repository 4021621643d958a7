//! End-to-end tests: the built binary between real clients and real servers, one file a subject.

#[path = "../common/mod.rs"]
mod common;

mod programs;
