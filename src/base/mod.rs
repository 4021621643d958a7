//! Building blocks without I/O and without a clock.
