//! `envoy.filters.http.ratelimit`: a service for all nodes counts requests.

use http::StatusCode;

use crate::config::model::headers::HeaderMutations;
use crate::config::model::rate_limit::{HostLimits, RateLimit};
use crate::config::model::{Fraction, Name};

use super::service::GrpcService;

/// Envoy's `RateLimit` filter.
#[derive(Debug)]
pub struct GlobalRateLimit {
    /// Whose limits.
    pub domain: Name,
    /// Limits of this stage are asked for.
    pub stage: u32,
    /// Requests of this kind.
    pub requests: Requests,
    /// Who counts.
    pub service: GrpcService,
    /// The share of requests that are refused if the service does not answer.
    pub failure_mode_deny: Fraction,
    /// gRPC clients are told RESOURCE_EXHAUSTED instead of UNAVAILABLE.
    pub as_resource_exhausted: bool,
    /// Adds `x-ratelimit-limit`, `-remaining` and `-reset` to responses.
    pub x_ratelimit_headers: bool,
    /// Refusals say `x-envoy-ratelimited`.
    pub ratelimited_header: bool,
    /// The answer to what is too much (429 unless configured).
    pub status: StatusCode,
    /// The answer if the service does not answer (500 unless configured).
    pub status_on_error: StatusCode,
    /// Put into refusals.
    pub response_headers: HeaderMutations,
    /// Which share of requests is asked about.
    pub enabled: Fraction,
    /// Which share of what is too much is refused.
    pub enforced: Fraction,
    /// Instead of limits of routes and virtual hosts.
    pub limits: Vec<RateLimit>,
}

/// Envoy's `request_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requests {
    /// All.
    Both,
    /// Those of the mesh (`x-envoy-internal`).
    Internal,
    /// The others.
    External,
}

/// What a route says of the filter.
#[derive(Debug, Clone, Default)]
pub struct PerRoute {
    /// Limits of the virtual host.
    pub host_limits: HostLimits,
    /// Instead of the route's.
    pub limits: Vec<RateLimit>,
    /// Instead of the filter's; empty: that one.
    pub domain: String,
}
