//! What an operator, or an agent in a backend's name, wants of it.

/// What the operator said last. The later is the more binding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AdminState {
    /// Whether the backend takes work is decided by its health.
    #[default]
    Ready,
    /// It takes no new work, and may finish what it has.
    Drain,
    /// It is out of service, whatever its probes say.
    Down,
}
