//! Why a datagram was not passed on: one vocabulary for metrics, status and tests.

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $word:literal,)*) => {
        /// Why a datagram was not passed on.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Dropped { $($(#[$doc])* $variant,)* }

        impl Dropped {
            /// All reasons, in declaration order (`ALL[reason as usize] == reason`).
            pub const ALL: &[Dropped] = &[$(Dropped::$variant,)*];

            /// The word in metrics.
            pub fn as_str(self) -> &'static str {
                match self { $(Dropped::$variant => $word,)* }
            }
        }
    };
}

reasons! {
    /// The kernel's receive buffer of a listening socket was full.
    KernelBuffer = "kernel_buffer",
    /// A send buffer was full.
    SendBuffer = "send_buffer",
    /// No route, interface down, filtered on this host, or the local address has moved away.
    Unreachable = "unreachable",
    /// Larger than the way out can carry.
    TooBig = "too_big",
    /// No backend was eligible.
    NoBackend = "no_backend",
    /// Sessions of the process are at their cap and none could make room.
    LimitProcess = "limit_process",
    /// Sessions of the listener are at their cap and none could make room.
    LimitListener = "limit_listener",
    /// Sessions of the source are at their cap and none could make room.
    LimitSource = "limit_source",
    /// New sessions of the source come too fast.
    LimitRate = "limit_rate",
    /// The source is not allowed.
    Denied = "denied",
    /// No descriptor or memory for a session.
    NoDescriptor = "no_descriptor",
    /// No local port for a session.
    NoPort = "no_port",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_indexed_by_the_discriminant_and_words_are_unique() {
        for (ix, &reason) in Dropped::ALL.iter().enumerate() {
            assert_eq!(reason as usize, ix);
            assert!(
                Dropped::ALL[..ix]
                    .iter()
                    .all(|other| other.as_str() != reason.as_str())
            );
        }
    }
}
