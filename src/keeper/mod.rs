//! The small process that alone may change addresses.
