//! What weir believes of the kernel, each fact pinned by a test that fails on a kernel where it does not hold, and that
//! `sys` speaks to it correctly. Tests that need a network of their own make a namespace for their thread and are skipped,
//! loudly, without the right to.

mod addresses;
mod tcp;
mod udp;
