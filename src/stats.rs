//! Counters shared between workers and control.
