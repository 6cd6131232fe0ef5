//! Services that filters ask: by gRPC or by HTTP, over a cluster of the same configuration.

use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::config::model::Name;

/// Envoy's `GrpcService` with an `EnvoyGrpc` target.
#[derive(Debug, Clone)]
pub struct GrpcService {
    /// The cluster; it speaks HTTP/2.
    pub cluster: Name,
    /// `:authority`; the cluster's name unless configured.
    pub authority: HeaderValue,
    /// For the whole call; `None`: however long.
    pub timeout: Option<Duration>,
    /// Sent with every call.
    pub metadata: Vec<(HeaderName, HeaderValue)>,
}

/// Envoy's `HttpUri`.
#[derive(Debug, Clone)]
pub struct HttpUri {
    /// The cluster.
    pub cluster: Name,
    /// `https` or `http`; what secures the connection is the cluster's transport socket.
    pub scheme: &'static str,
    /// Host, with the port if the URI has one.
    pub authority: HeaderValue,
    /// Path and query, `/` if the URI has none.
    pub path: String,
    /// For the whole answer; `None`: however long.
    pub timeout: Option<Duration>,
}
