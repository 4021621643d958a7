//! The data-plane shell: one event loop a core.
