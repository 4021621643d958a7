//! What an operator, or an agent in a backend's name, wants of it.

/// What the operator said last. The later is the more binding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AdminState {
    /// Let health decide.
    #[default]
    Ready,
    /// No new work.
    Drain,
    /// Out of service.
    Down,
}
