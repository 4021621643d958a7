//! The immutable view that workers act on.
