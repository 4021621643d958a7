//! VIP failover between nodes: pure.
