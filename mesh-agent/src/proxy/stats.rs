//! Counters of the proxy as a whole, named as Envoy's listener and HTTP statistics.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::identity::SslStats;

pub use super::hbone::stats::HboneStats;

/// Counters and gauges; every increment is relaxed.
#[derive(Debug, Default)]
pub struct ProxyStats {
    /// Connections accepted.
    pub downstream_cx_total: AtomicU64,
    /// Connections open.
    pub downstream_cx_active: AtomicU64,
    /// TLS handshakes with clients.
    pub ssl: SslStats,
    /// Connections broken off because their peer is trusted no more.
    pub ssl_trust_withdrawn: AtomicU64,
    /// Connections accepted that no kernel program had redirected.
    pub no_original_dst: AtomicU64,
    /// Connections no listener or filter chain took.
    pub no_filter_chain_match: AtomicU64,
    /// Connections that access rules denied.
    pub rbac_denied: AtomicU64,
    /// Requests that access rules allowed.
    pub rbac_http_allowed: AtomicU64,
    /// Requests that access rules denied.
    pub rbac_http_denied: AtomicU64,
    /// Requests that shadow rules would have allowed.
    pub rbac_shadow_allowed: AtomicU64,
    /// Requests that shadow rules would have denied.
    pub rbac_shadow_denied: AtomicU64,
    /// Requests.
    pub downstream_rq_total: AtomicU64,
    /// Requests in flight.
    pub downstream_rq_active: AtomicU64,
    /// Responses by class: index 1 is 1xx.
    pub downstream_rq_xx: [AtomicU64; 6],
    /// Requests without a route.
    pub no_route: AtomicU64,
    /// Requests to a cluster that does not exist.
    pub no_cluster: AtomicU64,
    /// Connections closed because they broke HTTP.
    pub downstream_cx_protocol_error: AtomicU64,
    /// Tunnels and their streams.
    pub hbone: HboneStats,
    /// Requests and connections to pods of this node that were served on both sides in one pass.
    pub short_circuits: AtomicU64,
    /// Connection tasks that panicked; always a bug.
    pub panics: AtomicU64,
}

impl ProxyStats {
    /// Connections open.
    pub fn active_connections(&self) -> u64 {
        self.downstream_cx_active.load(Ordering::Relaxed)
    }
}

/// Counts one more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Counts something that lasts; drop ends it.
#[derive(Debug)]
pub(crate) struct Gauge<T: AsRef<AtomicU64>>(T);

impl<T: AsRef<AtomicU64>> Gauge<T> {
    /// Begins.
    pub(crate) fn new(gauge: T) -> Self {
        gauge.as_ref().fetch_add(1, Ordering::Relaxed);
        Self(gauge)
    }
}

impl<T: AsRef<AtomicU64>> Drop for Gauge<T> {
    fn drop(&mut self) {
        self.0.as_ref().fetch_sub(1, Ordering::Relaxed);
    }
}
