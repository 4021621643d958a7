//! Caps, rates and bandwidth of clients: pure.
