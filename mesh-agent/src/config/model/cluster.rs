//! Clusters: how endpoints are found, chosen and spoken to.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::Name;
use crate::balance::hash::HashFunction;
use crate::balance::ring::RingSize;
use crate::balance::subset;

use super::client_weights::ClientWeights;
use super::endpoint::LoadAssignment;
use super::health_check::HealthCheck;
use super::outlier::OutlierDetection;
use super::tls::{TransportMatch, UpstreamTls, UpstreamTransport};

/// An Envoy cluster.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Unique among the clusters of a view.
    pub name: Name,
    /// Where the endpoints come from.
    pub discovery: Discovery,
    /// How one is chosen.
    pub lb: LbPolicy,
    /// Endpoints that are new, or well again, get fewer requests at first.
    pub slow_start: Option<SlowStart>,
    /// How reports make weights, for [`LbPolicy::ClientWeighted`].
    pub client_weights: Option<Arc<ClientWeights>>,
    /// Endpoints are grouped by their metadata, and requests choose a group.
    pub subsets: Option<Arc<Subsetting>>,
    /// Below this share of healthy endpoints, all are used (percent, default 50; 0 disables).
    pub panic_threshold_percent: u32,
    /// Locality weights are honoured (`locality_weighted_lb_config`).
    pub locality_weighted: bool,
    /// A TCP connect must be done by then. Envoy's default is 5 s.
    pub connect_timeout: Duration,
    /// What the upstream speaks.
    pub protocol: UpstreamProtocol,
    /// HTTP/1 messages may have trailers, both ways (`enable_trailers`).
    pub http1_trailers: bool,
    /// Endpoints that fail are left alone for a while.
    pub outlier: Option<OutlierDetection>,
    /// Endpoints are asked how they are.
    pub health_check: Option<HealthCheck>,
    /// Limits per priority.
    pub circuit_breakers: CircuitBreakers,
    /// A connection is closed after that many requests.
    pub max_requests_per_connection: Option<u32>,
    /// Idle pooled connections close after this. Envoy's default is 1 h; `None` is never.
    pub idle_timeout: Option<Duration>,
    /// TCP keepalive of upstream sockets.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Upstream sockets bind to the first of these of the endpoint's family (Istio: `127.0.0.6`
    /// and `::6` on inbound); without one the kernel chooses.
    pub source_addresses: Arc<[IpAddr]>,
    /// Upstream connections are encrypted like this.
    pub transport: UpstreamTransport,
    /// Endpoints with such metadata have another transport; the first match counts.
    pub transport_matches: Vec<TransportMatch>,
    /// How tunnels to endpoints are secured that ask for HBONE.
    pub hbone: Arc<UpstreamTls>,
    /// The service behind it, where the control plane tells.
    pub service: Option<Arc<ServiceName>>,
    /// Connections to an endpoint that leaves the cluster are closed at once instead of when
    /// they end by themselves.
    pub close_connections_on_host_removal: bool,
}

/// A service's name, as Istio's control plane puts it into a cluster's metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceName {
    /// `reviews.default.svc.cluster.local`
    pub host: Arc<str>,
    /// `reviews`
    pub name: Arc<str>,
    /// `default`
    pub namespace: Arc<str>,
}

/// Envoy's `SlowStartConfig`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SlowStart {
    /// How long it lasts.
    pub window: Duration,
    /// How fast it grows: 1 in a straight line, more faster at first.
    pub aggression: f64,
    /// The least share of an endpoint's weight, from 0 to 1.
    pub min_weight: f64,
}

impl SlowStart {
    /// The share of its weight that an endpoint has which is there for so long
    /// (Envoy: `EdfLoadBalancerBase::applySlowStartFactor`).
    pub fn factor(&self, age: Duration) -> f64 {
        if age >= self.window {
            return 1.0;
        }
        let time = age.max(Duration::from_millis(1)).as_secs_f64() / self.window.as_secs_f64();
        time.powf(1.0 / self.aggression).max(self.min_weight)
    }
}

/// Envoy's `LbSubsetConfig`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subsetting {
    /// How endpoints are grouped, and what stands in for a group that does not exist.
    pub settings: subset::Settings,
    /// Localities' weights count within a group, if they count in the cluster.
    pub locality_weight_aware: bool,
}

/// Envoy's discovery types.
#[derive(Debug, Clone)]
pub enum Discovery {
    /// Literal addresses in the cluster.
    Static(Arc<LoadAssignment>),
    /// Endpoints of this name from EDS or the file.
    Eds {
        /// `service_name`, or the cluster's name.
        service_name: Name,
    },
    /// Every address every name resolves to is an endpoint.
    StrictDns {
        /// The names.
        assignment: Arc<LoadAssignment>,
        /// How they are resolved.
        dns: DnsOptions,
    },
    /// One endpoint, whose address is the first one resolved when connecting.
    LogicalDns {
        /// Exactly one name.
        assignment: Arc<LoadAssignment>,
        /// How it is resolved.
        dns: DnsOptions,
    },
    /// The connection's original destination.
    OriginalDst(OriginalDst),
}

/// How names are resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsOptions {
    /// Time between resolutions (default 5 s).
    pub refresh_rate: Duration,
    /// The records' TTL is used instead.
    pub respect_ttl: bool,
    /// Which addresses are asked for.
    pub lookup_family: DnsLookupFamily,
}

/// Envoy's `DnsLookupFamily`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum DnsLookupFamily {
    /// IPv6, else IPv4 (Envoy's default).
    #[default]
    Auto,
    /// Only IPv4.
    V4Only,
    /// Only IPv6.
    V6Only,
    /// IPv4, else IPv6.
    V4Preferred,
    /// Both.
    All,
}

/// Options of an ORIGINAL_DST cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OriginalDst {
    /// A request header may name the destination (`x-envoy-original-dst-host` by default).
    pub http_header: Option<http::HeaderName>,
    /// The destination's port is replaced.
    pub port_override: Option<u16>,
}

/// Load-balancing policies.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum LbPolicy {
    /// Weighted round robin.
    #[default]
    RoundRobin,
    /// Each as likely as the other, whatever its weight.
    Random,
    /// Power of `choice_count` choices on active requests.
    LeastRequest {
        /// At least 2 (Envoy's default).
        choice_count: u32,
        /// How much active requests count against endpoints of unequal weights: 1 by default,
        /// 0 not at all.
        active_request_bias: f64,
    },
    /// By the request's hash, on a ring.
    RingHash {
        /// How large the ring is.
        size: RingSize,
        /// What endpoints are placed with.
        function: HashFunction,
        /// Endpoints are told by their names instead of their addresses.
        by_hostname: bool,
    },
    /// By the request's hash, in a table.
    Maglev {
        /// A prime.
        table_size: u64,
        /// Endpoints are told by their names instead of their addresses.
        by_hostname: bool,
    },
    /// Weighted round robin, by the weights that endpoints' reports make.
    ClientWeighted,
    /// Only for ORIGINAL_DST clusters.
    ClusterProvided,
}

/// What an upstream speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1 (`explicit_http_config.http_protocol_options`, the default).
    Http1,
    /// HTTP/2 prior knowledge (`http2_protocol_options`).
    Http2(Http2Options),
    /// The downstream's protocol (`use_downstream_protocol_config`).
    Downstream(Http2Options),
}

/// HTTP/2 limits of an upstream connection. `None` leaves Envoy's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Http2Options {
    /// Most concurrent streams on a connection.
    pub max_concurrent_streams: Option<u32>,
    /// Stream window in bytes.
    pub initial_stream_window_bytes: Option<u32>,
    /// Connection window in bytes.
    pub initial_connection_window_bytes: Option<u32>,
}

/// Envoy's circuit breakers; the defaults are Envoy's.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CircuitBreakers {
    /// Thresholds of the default priority.
    pub default: Thresholds,
    /// Thresholds of high-priority routes.
    pub high: Thresholds,
    /// Most connections to one endpoint (`per_host_thresholds`); `None` is without limit.
    pub max_connections_per_endpoint: Option<u32>,
}

/// Envoy's `RetryBudget`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    /// Retries may be that share of the requests in flight (default 20).
    pub percent: f64,
    /// So many retries are always allowed (default 3).
    pub min_concurrency: u32,
}

/// Envoy's `RoutingPriority`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RoutingPriority {
    /// What routes have that say nothing.
    #[default]
    Default,
    /// Routes of high priority.
    High,
}

/// Limits of one priority.
#[derive(Debug, Clone, PartialEq)]
pub struct Thresholds {
    /// Most connections (default 1024).
    pub max_connections: u32,
    /// Most requests waiting for a connection (default 1024).
    pub max_pending_requests: u32,
    /// Most active requests (default 1024).
    pub max_requests: u32,
    /// Most active retries (default 3).
    pub max_retries: u32,
    /// Limits retries by what is in flight, instead of `max_retries`.
    pub retry_budget: Option<RetryBudget>,
    /// Whether any was configured: limits that only the agent can enforce keep a service from
    /// being balanced in the kernel.
    pub configured: bool,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 3,
            retry_budget: None,
            configured: false,
        }
    }
}

/// Envoy's `TcpKeepalive`. `None` leaves the kernel's setting.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TcpKeepalive {
    /// Probes before the connection is dead.
    pub probes: Option<u32>,
    /// Idle time before the first probe.
    pub time: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
}
