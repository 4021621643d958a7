//! What workers act on: pools and the health of their backends, listeners and their sockets, and the workers themselves.

pub mod endpoints;
pub mod inherited;
pub mod pools;
pub mod probe;
pub mod sockets;
pub mod workers;
