//! Why a connection or session ended: one vocabulary for the access log, the metrics and the tests.

use crate::base::{Side, words};

words! {
    /// Why a connection or session ended.
    pub enum Cause {
        /// Both sides ended their streams.
        Finished = "finished",
        /// The client reset the connection.
        ClientReset = "client_reset",
        /// The backend reset the connection.
        BackendReset = "backend_reset",
        /// No byte for `timeouts.idle`.
        IdleTimeout = "idle_timeout",
        /// One direction had ended and the other was silent for `timeouts.half_close`.
        HalfCloseTimeout = "half_close_timeout",
        /// Every attempt to connect failed.
        ConnectFailed = "connect_failed",
        /// `connect.timeout` passed.
        ConnectTimeout = "connect_timeout",
        /// No backend was eligible.
        NoBackend = "no_backend",
        /// Every eligible backend was full, and none had room within `queue.timeout`.
        QueueTimeout = "queue_timeout",
        /// Every eligible backend was full, and as many as `queue.length` were waiting already.
        QueueFull = "queue_full",
        /// The source is not allowed.
        Denied = "denied",
        /// `listeners.NAME.limits.connections` was reached.
        LimitListener = "limit_listener",
        /// `listeners.NAME.limits.per_source` was reached.
        LimitSource = "limit_source",
        /// `listeners.NAME.limits.new_per_source` was exceeded.
        LimitRate = "limit_rate",
        /// `limits` of the process, or the descriptors, were exhausted.
        LimitProcess = "limit_process",
        /// A source that must send a PROXY header did not.
        BadProxyHeader = "bad_proxy_header",
        /// A listener with `routes` and without `pool`: no TLS hello within `timeouts.hello`.
        HelloTimeout = "hello_timeout",
        /// A listener with `routes` and without `pool`: a TLS hello of more than 16 KiB.
        HelloTooLarge = "hello_too_large",
        /// A listener with `routes` and without `pool`: no TLS, no server name, or none that the routes have.
        NoRoute = "no_route",
        /// `timeouts.max_age` passed.
        MaxAge = "max_age",
        /// The backend went down and its pool says `on_down: close`.
        BackendDown = "backend_down",
        /// A primary came back, and its pool says `on_marked_up: close_backup`.
        PrimaryBack = "primary_back",
        /// The backend is draining and `on_drain.finish` passed.
        Drained = "drained",
        /// A UDP session made room at a cap: it had been silent for longer than half of its idle time.
        Evicted = "evicted",
        /// Ended by the operator.
        Killed = "killed",
        /// The virtual address that it came to went to another node.
        VipMoved = "vip_moved",
        /// weir stopped and `shutdown_grace` passed.
        Shutdown = "shutdown",
    }
}

words! {
    /// Who ended it.
    pub enum By {
        /// The client.
        Client = "client",
        /// The backend.
        Backend = "backend",
        /// weir itself.
        Weir = "weir",
    }
}

impl From<Side> for By {
    fn from(side: Side) -> By {
        match side {
            Side::Client => By::Client,
            Side::Backend => By::Backend,
        }
    }
}

impl Cause {
    /// Whether the connection was turned away before a backend was asked.
    pub fn is_refusal(self) -> bool {
        use Cause::*;
        matches!(
            self,
            NoBackend
                | QueueTimeout
                | QueueFull
                | Denied
                | LimitListener
                | LimitSource
                | LimitRate
                | LimitProcess
                | BadProxyHeader
                | HelloTimeout
                | HelloTooLarge
                | NoRoute
        )
    }
}
