//! Counters of tunnels.

use std::sync::atomic::AtomicU64;

/// Counters and gauges of both sides.
#[derive(Debug, Default)]
pub struct HboneStats {
    /// Tunnels made to other pods.
    pub tunnels_made: AtomicU64,
    /// Of these, open ones.
    pub tunnels_active: AtomicU64,
    /// Connections to endpoints that found no stream.
    pub connect_fail: AtomicU64,
    /// Tunnels of clients whose handshake is done.
    pub tunnels_taken: AtomicU64,
    /// Connections refused because too many were in their handshake.
    pub handshakes_refused: AtomicU64,
    /// Tunnels of clients that broke HTTP/2.
    pub protocol_error: AtomicU64,
    /// Streams of clients.
    pub streams: AtomicU64,
    /// Of these, open ones.
    pub streams_active: AtomicU64,
    /// Streams that were granted.
    pub granted: AtomicU64,
    /// Requests that were malformed, or for somebody else (400).
    pub bad_request: AtomicU64,
    /// Streams that access rules denied (401).
    pub denied: AtomicU64,
    /// Streams whose application could not be reached, or that no filter chain took (503).
    pub unavailable: AtomicU64,
    /// Standing streams that new rules or roots ended.
    pub revoked: AtomicU64,
}

impl HboneStats {
    /// Every counter: its name, whether it is a gauge, itself.
    pub fn all(&self) -> [(&'static str, bool, &AtomicU64); 13] {
        [
            (
                "mesh_hbone_upstream_tunnels_total",
                false,
                &self.tunnels_made,
            ),
            (
                "mesh_hbone_upstream_tunnels_active",
                true,
                &self.tunnels_active,
            ),
            (
                "mesh_hbone_upstream_connect_fail_total",
                false,
                &self.connect_fail,
            ),
            (
                "mesh_hbone_downstream_tunnels_total",
                false,
                &self.tunnels_taken,
            ),
            (
                "mesh_hbone_downstream_handshakes_refused_total",
                false,
                &self.handshakes_refused,
            ),
            (
                "mesh_hbone_downstream_protocol_error_total",
                false,
                &self.protocol_error,
            ),
            ("mesh_hbone_downstream_streams_total", false, &self.streams),
            (
                "mesh_hbone_downstream_streams_active",
                true,
                &self.streams_active,
            ),
            (
                "mesh_hbone_downstream_streams_granted_total",
                false,
                &self.granted,
            ),
            (
                "mesh_hbone_downstream_streams_bad_request_total",
                false,
                &self.bad_request,
            ),
            (
                "mesh_hbone_downstream_streams_denied_total",
                false,
                &self.denied,
            ),
            (
                "mesh_hbone_downstream_streams_unavailable_total",
                false,
                &self.unavailable,
            ),
            (
                "mesh_hbone_downstream_streams_revoked_total",
                false,
                &self.revoked,
            ),
        ]
    }
}
