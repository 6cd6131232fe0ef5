//! Active health checks.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};

/// Envoy's `HealthCheck`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// A check that takes longer has failed.
    pub timeout: Duration,
    /// Between checks.
    pub interval: Duration,
    /// Most that is waited before the first check.
    pub initial_jitter: Duration,
    /// Most that is added to an interval.
    pub interval_jitter: Duration,
    /// As [`Self::interval_jitter`], in percent of the interval.
    pub interval_jitter_percent: u32,
    /// So many failures in a row make an endpoint unhealthy.
    pub unhealthy_threshold: u32,
    /// So many successes in a row make it healthy again.
    pub healthy_threshold: u32,
    /// One connection serves many checks (default true).
    pub reuse_connection: bool,
    /// The interval while the cluster has never had a connection (default 60 s).
    pub no_traffic_interval: Duration,
    /// As [`Self::no_traffic_interval`], of healthy endpoints.
    pub no_traffic_healthy_interval: Duration,
    /// The interval of unhealthy endpoints.
    pub unhealthy_interval: Duration,
    /// The interval after an endpoint became unhealthy.
    pub unhealthy_edge_interval: Duration,
    /// The interval after an endpoint became healthy.
    pub healthy_edge_interval: Duration,
    /// What is asked.
    pub probe: Probe,
}

/// What an endpoint is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// `http_health_check`
    Http(HttpProbe),
    /// `tcp_health_check`
    Tcp(TcpProbe),
    /// `grpc_health_check`
    Grpc(GrpcProbe),
}

/// A request whose response's status tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpProbe {
    /// `None`: the endpoint's name for health checks, or the cluster's name.
    pub host: Option<Arc<str>>,
    /// The path.
    pub path: Arc<str>,
    /// GET unless configured.
    pub method: Method,
    /// Headers of the request.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Headers that are left out.
    pub remove: Vec<HeaderName>,
    /// Statuses of a healthy endpoint (default 200).
    pub expected: Vec<Range<u16>>,
    /// Statuses that count towards `unhealthy_threshold`; others make the endpoint unhealthy at
    /// once.
    pub retriable: Vec<Range<u16>>,
    /// HTTP/2 is spoken.
    pub http2: bool,
}

/// A connection, and perhaps bytes both ways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpProbe {
    /// Sent once connected; empty: the connection alone tells.
    pub send: Bytes,
    /// Each must come, in this order, whatever comes between.
    pub receive: Vec<Bytes>,
}

/// `grpc.health.v1.Health/Check`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrpcProbe {
    /// The service asked for; may be empty.
    pub service: Arc<str>,
    /// `None`: the endpoint's name for health checks, or the cluster's name.
    pub authority: Option<Arc<str>>,
    /// Headers of the request.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// Envoy's `Endpoint.HealthCheckConfig`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndpointCheck {
    /// Checks go to this port.
    pub port: Option<u16>,
    /// The host of HTTP and gRPC checks; may be empty.
    pub hostname: Arc<str>,
    /// It is not checked, and healthy.
    pub disabled: bool,
}
