//! `weir top`.
