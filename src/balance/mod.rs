//! Choosing a backend: pure, one file an algorithm.
//!
//! A [`Picker`] is built once from a pool's backends and its algorithm and is immutable from then on (it sits in a
//! snapshot). What changes from pick to pick comes in from outside: the worker's [`Cursor`], the shared [`Loads`], and
//! the [`Mask`] of eligible backends (up, not draining, weight above zero, the right tier, not tried before). A retry is
//! the same call with the tried backends masked out. No backend is `None`.
