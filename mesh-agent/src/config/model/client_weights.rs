//! Endpoints weighted by what they report of their load.

use std::sync::Arc;
use std::time::Duration;

/// Envoy's `ClientSideWeightedRoundRobin` (gRFC A58).
#[derive(Debug, Clone, PartialEq)]
pub struct ClientWeights {
    /// An endpoint reports for so long before its reports count (default 10 s).
    pub blackout: Duration,
    /// What was reported longer ago does not count (default 3 min).
    pub expiration: Duration,
    /// How often weights are computed (default 1 s, at least 100 ms).
    pub update: Duration,
    /// How much errors count against an endpoint (default 1).
    pub error_penalty: f64,
    /// Names of metrics, the largest of which is an endpoint's utilization.
    pub metrics: Vec<Arc<str>>,
}
