//! UDP session table: pure, decides on addresses, never sees payload.
