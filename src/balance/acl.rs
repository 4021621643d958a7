//! Allow and deny lists: pure.
