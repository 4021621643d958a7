//! One TCP connection pair as a pure state machine.
