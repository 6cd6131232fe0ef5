//! Faults injected on purpose.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http::StatusCode;

use crate::config::model::matcher::HeaderMatcher;
use crate::config::model::{Fraction, Name};

/// Envoy's `HTTPFault`.
#[derive(Debug, Clone, Default)]
pub struct Fault {
    /// How requests are held up.
    pub delay: Option<Delay>,
    /// How requests are refused.
    pub abort: Option<Abort>,
    /// Only requests to this cluster.
    pub upstream_cluster: Option<Name>,
    /// Only requests that match all of these.
    pub headers: Vec<HeaderMatcher>,
    /// Only requests of these nodes (`x-envoy-downstream-service-node`).
    pub downstream_nodes: Vec<Arc<str>>,
    /// At most so many at once.
    pub max_active: Option<u32>,
    /// How many are active. Lives with the configuration.
    pub active: Arc<AtomicU64>,
}

/// A delay.
#[derive(Debug, Clone)]
pub struct Delay {
    /// The share of requests.
    pub fraction: Fraction,
    /// How long; `None`: the request's `x-envoy-fault-delay-request` says so, in milliseconds.
    pub fixed: Option<Duration>,
}

/// A refusal.
#[derive(Debug, Clone)]
pub struct Abort {
    /// The share of requests.
    pub fraction: Fraction,
    /// The answer.
    pub with: AbortWith,
}

/// What an injected refusal answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbortWith {
    /// A status.
    Http(StatusCode),
    /// A status of gRPC.
    Grpc(u16),
    /// The request's `x-envoy-fault-abort-request` or `-grpc-request` says so.
    Header,
}
