//! The tables that `weir top` can show: titles, columns, order.

/// The tables that can be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// Backends of all pools.
    Backends,
    /// Listeners of the configuration.
    Listeners,
    /// Connections and sessions, busiest first.
    Connections,
    /// Virtual addresses.
    Vips,
    /// Where members of pools come from.
    Sources,
}

impl View {
    /// In the order of their keys 1 to 4.
    pub const ALL: [View; 5] = [
        View::Backends,
        View::Listeners,
        View::Connections,
        View::Vips,
        View::Sources,
    ];

    /// Name of the tab.
    pub fn title(self) -> &'static str {
        match self {
            View::Backends => "Backends",
            View::Listeners => "Listeners",
            View::Connections => "Connections",
            View::Vips => "VIPs",
            View::Sources => "Sources",
        }
    }

    /// Columns: name, least width, whether it is a figure.
    pub fn columns(self) -> &'static [(&'static str, u16, bool)] {
        match self {
            View::Backends => &[
                ("BACKEND", 10, false),
                ("ADDRESS", 14, false),
                ("STATE", 8, false),
                ("LIVE", 5, true),
                ("NEW/S", 5, true),
                ("IN/S", 7, true),
                ("OUT/S", 7, true),
                ("FAIL", 5, true),
                ("CONNECT", 7, true),
            ],
            View::Listeners => &[
                ("LISTENER", 10, false),
                ("PROTO", 5, false),
                ("ENGINE", 6, false),
                ("BIND", 9, false),
                ("POOL", 8, false),
                ("LIVE", 5, true),
                ("NEW/S", 5, true),
                ("REFUSED", 7, true),
                ("IN/S", 7, true),
                ("OUT/S", 7, true),
            ],
            View::Connections => &[
                ("ID", 8, true),
                ("CLIENT", 15, false),
                ("BACKEND", 9, false),
                ("STATE", 5, false),
                ("AGE", 5, true),
                ("IDLE", 5, true),
                ("UP/S", 7, true),
                ("DOWN/S", 7, true),
            ],
            View::Vips => &[
                ("VIP", 18, false),
                ("INTERFACE", 9, false),
                ("STATE", 9, false),
                ("HOLDER", 8, false),
                ("SINCE", 7, true),
                ("REASON", 20, false),
            ],
            View::Sources => &[
                ("POOL", 8, false),
                ("SOURCE", 24, false),
                ("MEMBERS", 7, true),
                ("AGE", 6, true),
                ("FAIL", 5, true),
                ("LAST ERROR", 20, false),
            ],
        }
    }

    /// The column sorted by at first, and whether the greatest comes first.
    pub fn first_order(self) -> (usize, bool) {
        match self {
            View::Backends => (6, true),
            View::Listeners => (9, true),
            View::Connections => (7, true),
            View::Vips | View::Sources => (0, false),
        }
    }
}
