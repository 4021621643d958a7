//! The kernel engine end to end: client, balancer and backends in network namespaces of their own, with real programs; one file
//! a subject. They need root.

#[path = "../common/mod.rs"]
mod common;

mod admission;
mod ends;
mod guards;
mod hosts;

mod choices;
mod demo;
mod disturbed;
mod load;
mod many;
mod model;
mod narrow;
mod nodes;
mod object;
mod packets;
mod programs;
mod service;
mod shared;
mod shown;
mod sources;
mod streams;
