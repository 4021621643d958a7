//! UDP end to end: the built binary between real clients and real servers, one file a subject.

#[path = "../common/mod.rs"]
mod common;

mod peers;

mod errors;
mod flood;
mod programs;
mod sessions;
mod travel;
