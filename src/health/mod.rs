//! Judging backends: pure.
