//! Listeners, filter chains and their terminal filters.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::balance::subset;

use super::Name;
use super::access_log::AccessLogs;
use super::filter::HttpFilter;
use super::filter::rbac::Rbac;
use super::local_reply::LocalReplyConfig;
use super::route::{RouteConfiguration, WeightedCluster};
use super::tls::{DownstreamTls, DownstreamTransport};

/// An Envoy listener.
///
/// The kernel programs catch connections, so a listener never binds a socket of the node: it is
/// selected by the original destination of a caught connection, as Envoy does under
/// `use_original_dst` with `bind_to_port: false`.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Unique among the listeners of a view.
    pub name: Name,
    /// `address` and `additional_addresses`.
    pub addresses: Vec<ListenAddress>,
    /// From the client pod's (outbound) or the server pod's (inbound) point of view.
    pub direction: TrafficDirection,
    /// Where its connections come from.
    pub role: Role,
    /// This listener only hands connections to the one whose address is the original
    /// destination; its own chains serve what no other listener takes (`virtualOutbound`).
    pub use_original_dst: bool,
    /// In order of the configuration; selected by Envoy's most-specific rule.
    pub filter_chains: Vec<FilterChain>,
    /// Serves connections no chain matches.
    pub default_filter_chain: Option<FilterChain>,
    /// What must be sniffed before a chain is selected.
    pub inspect: Inspectors,
    /// How long sniffing may take; `None` is without limit (Envoy: 0 disables it). Default 15 s.
    pub listener_filters_timeout: Option<Duration>,
    /// Go on without the sniffed facts after the timeout instead of closing.
    pub continue_on_listener_filters_timeout: bool,
    /// What is written of its connections.
    pub access_logs: Arc<AccessLogs>,
}

/// An address a listener answers for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ListenAddress {
    /// `0.0.0.0` or `::` stand for every address of that family.
    pub ip: IpAddr,
    /// The port; 0 stands for every port.
    pub port: u16,
}

/// Which side of a connection a listener serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TrafficDirection {
    /// Connections pods make. Also what `UNSPECIFIED` means here.
    #[default]
    Outbound,
    /// Connections pods receive.
    Inbound,
}

/// Where a listener's connections come from.
#[derive(Debug, Clone, Default)]
pub enum Role {
    /// The kernel programs caught them.
    #[default]
    Caught,
    /// Other listeners hand them on (`internal_listener`): inbound, they came through HBONE
    /// tunnels.
    Internal,
    /// It ends HBONE tunnels and hands on what they carry.
    Terminates(Arc<DownstreamTls>),
}

impl Role {
    /// Whether the kernel programs catch its connections.
    pub fn is_caught(&self) -> bool {
        matches!(self, Self::Caught)
    }
}

/// The listener filters that look at the first bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inspectors {
    /// `envoy.filters.listener.tls_inspector`
    pub tls: Inspector,
    /// `envoy.filters.listener.http_inspector`
    pub http: Inspector,
}

/// A listener filter that looks at the first bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Inspector {
    /// There is none.
    #[default]
    Off,
    /// It looks at all connections but those to these ports (`filter_disabled`).
    On {
        /// `None`: at all.
        disabled: Option<PortPredicate>,
    },
}

impl Inspector {
    /// Whether it looks at connections whose original destination has this port.
    pub fn looks_at(&self, port: u16) -> bool {
        match self {
            Self::Off => false,
            Self::On { disabled } => !disabled
                .as_ref()
                .is_some_and(|disabled| disabled.matches(port)),
        }
    }
}

/// Envoy's `ListenerFilterChainMatchPredicate`: a condition on the original destination's port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortPredicate {
    /// Every port.
    Any,
    /// A port of the range.
    In(std::ops::Range<u32>),
    /// One of them holds.
    Or(Vec<PortPredicate>),
    /// All of them hold.
    And(Vec<PortPredicate>),
    /// It does not hold.
    Not(Box<PortPredicate>),
}

impl PortPredicate {
    /// Whether it holds for a port.
    pub fn matches(&self, port: u16) -> bool {
        match self {
            Self::Any => true,
            Self::In(range) => range.contains(&port.into()),
            Self::Or(rules) => rules.iter().any(|rule| rule.matches(port)),
            Self::And(rules) => rules.iter().all(|rule| rule.matches(port)),
            Self::Not(rule) => !rule.matches(port),
        }
    }
}

/// A filter chain: a match and what serves the connections that match.
#[derive(Debug, Clone)]
pub struct FilterChain {
    /// Empty when the configuration gives none.
    pub name: Name,
    /// Tells it from the listener's other chains, from one configuration to the next: names may
    /// be absent, and matches differ.
    pub key: u64,
    /// Which connections it takes.
    pub matcher: FilterChainMatch,
    /// `envoy.filters.network.rbac`, in order: who may connect at all.
    pub rbac: Vec<Rbac>,
    /// The terminal filter.
    pub terminal: Terminal,
    /// How the downstream speaks.
    pub transport: DownstreamTransport,
}

/// Envoy's `FilterChainMatch`. An empty list matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilterChainMatch {
    /// The original destination's port.
    pub destination_port: Option<u16>,
    /// The original destination's address.
    pub prefix_ranges: Vec<IpNet>,
    /// SNI: exact names or `*.suffix`, lower case.
    pub server_names: Vec<Arc<str>>,
    /// `raw_buffer` or `tls`.
    pub transport_protocol: Option<Arc<str>>,
    /// ALPN or sniffed protocols (`http/1.1`, `h2c`, `istio`...).
    pub application_protocols: Vec<Arc<str>>,
    /// The directly connected peer's address.
    pub direct_source_prefix_ranges: Vec<IpNet>,
    /// Where the connection comes from.
    pub source_type: SourceType,
    /// The source address.
    pub source_prefix_ranges: Vec<IpNet>,
    /// The source port.
    pub source_ports: Vec<u16>,
}

impl FilterChainMatch {
    /// Whether a connection exists for which neither of two matches is the more specific one.
    /// Envoy refuses a listener with such a pair.
    pub fn conflicts_with(&self, other: &Self) -> bool {
        fn share<T: PartialEq>(a: &[T], b: &[T]) -> bool {
            (a.is_empty() && b.is_empty()) || a.iter().any(|item| b.contains(item))
        }
        self.destination_port == other.destination_port
            && self.transport_protocol == other.transport_protocol
            && self.source_type == other.source_type
            && share(&self.prefix_ranges, &other.prefix_ranges)
            && share(&self.server_names, &other.server_names)
            && share(&self.application_protocols, &other.application_protocols)
            && share(
                &self.direct_source_prefix_ranges,
                &other.direct_source_prefix_ranges,
            )
            && share(&self.source_prefix_ranges, &other.source_prefix_ranges)
            && share(&self.source_ports, &other.source_ports)
    }
}

/// Envoy's `ConnectionSourceType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SourceType {
    /// Anywhere.
    #[default]
    Any,
    /// The same address or loopback.
    SameIpOrLoopback,
    /// Another host.
    External,
}

/// The filter that ends a chain.
#[derive(Debug, Clone)]
pub enum Terminal {
    /// `envoy.filters.network.tcp_proxy`
    Tcp(Arc<TcpProxy>),
    /// `envoy.filters.network.http_connection_manager`
    Http(Arc<HttpConnectionManager>),
}

/// Envoy's `TcpProxy`.
#[derive(Debug, Clone)]
pub struct TcpProxy {
    /// Prefix of the statistics.
    pub stat_prefix: Name,
    /// One cluster, or several by weight. Never empty; weights sum to more than 0.
    pub clusters: Vec<TcpWeightedCluster>,
    /// Closes a connection without bytes either way. Envoy's default is 1 h; `None` is never.
    pub idle_timeout: Option<Duration>,
    /// How often a connect is tried. At least 1.
    pub max_connect_attempts: u32,
    /// What is written of its connections.
    pub access_logs: Arc<AccessLogs>,
    /// Where endpoints are chosen by hash, the client's address decides
    /// (`hash_policy: [{source_ip: {}}]`; Istio: `consistentHash.useSourceIp`).
    pub hash_source_ip: bool,
}

/// A destination of a [`TcpProxy`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpWeightedCluster {
    /// The cluster.
    pub cluster: Name,
    /// Its share of the sum of weights.
    pub weight: u32,
    /// Which of its subsets.
    pub subset: Option<Arc<subset::Metadata>>,
}

/// Envoy's `HttpConnectionManager`.
#[derive(Debug, Clone)]
pub struct HttpConnectionManager {
    /// Prefix of the statistics.
    pub stat_prefix: Name,
    /// What the downstream may speak.
    pub codec: Codec,
    /// Where the routes are.
    pub routes: RouteSource,
    /// `server` header written to responses (`server_name`, default `envoy`).
    pub server_name: Arc<str>,
    /// What happens to an upstream's `server` header.
    pub server_header: ServerHeader,
    /// `x-forwarded-for` gets the downstream address and `x-forwarded-proto` etc. follow the
    /// edge rules.
    pub use_remote_address: bool,
    /// Do not append to `x-forwarded-for` although `use_remote_address`.
    pub skip_xff_append: bool,
    /// Proxies between the client and us whose `x-forwarded-for` entries are trusted.
    pub xff_num_trusted_hops: u32,
    /// Clients of these addresses may steer the mesh by `x-envoy-` headers
    /// (`internal_address_config`).
    pub internal_networks: Vec<IpNet>,
    /// A fresh `x-request-id` is made when the request has none (default true).
    pub generate_request_id: bool,
    /// A request's own `x-request-id` is kept even at the edge.
    pub preserve_external_request_id: bool,
    /// `x-request-id` is copied to the response.
    pub always_set_request_id_in_response: bool,
    /// A stream without activity ends after this. Envoy's default is 5 min; `None` is never.
    pub stream_idle_timeout: Option<Duration>,
    /// The whole request must have arrived by then. `None` is never.
    pub request_timeout: Option<Duration>,
    /// The request's headers must have arrived by then. `None` is never.
    pub request_headers_timeout: Option<Duration>,
    /// A connection without streams is closed after this. Envoy's default is 1 h.
    pub idle_timeout: Option<Duration>,
    /// The longest life of a stream, unless its route says otherwise; `None` is without limit.
    pub max_stream_duration: Option<Duration>,
    /// A connection is drained after this age.
    pub max_connection_duration: Option<Duration>,
    /// A connection is drained after that many requests; `None` is without limit.
    pub max_requests_per_connection: Option<u32>,
    /// Largest header block accepted, in KiB (default 60).
    pub max_request_headers_kib: u32,
    /// Most headers accepted (default 100).
    pub max_headers_count: u32,
    /// What becomes of headers with an underscore in their name.
    pub underscores: Underscores,
    /// The dot at the end of a host is dropped before matching (`strip_trailing_host_dot`).
    pub strip_trailing_host_dot: bool,
    /// Largest number of concurrent HTTP/2 streams (Envoy 1.40: 1024 by default).
    pub max_concurrent_streams: u32,
    /// Upgrades allowed for all routes (`websocket`, `CONNECT`), lower case.
    pub upgrades: Vec<Arc<str>>,
    /// Path normalisation (RFC 3986) before matching.
    pub normalize_path: bool,
    /// `//` becomes `/` before matching.
    pub merge_slashes: bool,
    /// What becomes of `x-forwarded-client-cert`.
    pub client_cert: ClientCert,
    /// What an escaped slash in the path means.
    pub escaped_slashes: EscapedSlashes,
    /// Port is dropped from `:authority` before matching.
    pub strip_port: StripPort,
    /// HTTP/1.0 requests are served (Envoy: `accept_http_10`).
    pub accept_http_10: bool,
    /// Host for HTTP/1.0 requests without one.
    pub default_host_for_http_10: Option<Arc<str>>,
    /// `via` appended to requests and responses.
    pub via: Option<Arc<str>>,
    /// How long a draining HTTP/2 connection lives between the two GOAWAYs (default 5 s).
    pub drain_timeout: Duration,
    /// How long a client may take to close after it was told that its connection ends (default
    /// 1 s); `None`: the connection is closed at once.
    pub delayed_close_timeout: Option<Duration>,
    /// What requests go through before they are routed on.
    pub http_filters: Vec<HttpFilter>,
    /// What requests offer in TLS handshakes with endpoints, instead of what the cluster says
    /// (`istio.alpn`).
    pub alpn: Option<Arc<AlpnOverride>>,
    /// What is written of its requests.
    pub access_logs: Arc<AccessLogs>,
    /// What answers of our own look like.
    pub local_reply: Option<Arc<LocalReplyConfig>>,
    /// `x-forwarded-port` tells where the client wanted to go.
    pub append_x_forwarded_port: bool,
    /// `expect: 100-continue` is the upstream's to answer, and clients see all that comes before
    /// a response (Envoy: `proxy_100_continue`).
    pub proxy_100_continue: bool,
    /// HTTP/1 messages may have trailers, both ways (`enable_trailers`).
    pub trailers: bool,
}

/// Protocols offered in TLS handshakes; `None`: those of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AlpnOverride {
    /// Before HTTP/1.1.
    pub http1: Option<Arc<[Arc<str>]>>,
    /// Before HTTP/2.
    pub http2: Option<Arc<[Arc<str>]>>,
}

/// Envoy's codec type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Codec {
    /// HTTP/2 when the client preface says so, else HTTP/1.
    #[default]
    Auto,
    /// Only HTTP/1.
    Http1,
    /// Only HTTP/2.
    Http2,
}

/// Envoy's `ServerHeaderTransformation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServerHeader {
    /// Always ours.
    #[default]
    Overwrite,
    /// Ours when the upstream sent none.
    AppendIfAbsent,
    /// The upstream's, or none.
    PassThrough,
}

/// Envoy's `HeadersWithUnderscoresAction`: some servers take `_` for `-`, and with it a header
/// that a proxy set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Underscores {
    /// They are headers as others.
    #[default]
    Allow,
    /// The request is refused.
    Reject,
    /// They are removed.
    Drop,
}

/// What is told of a client's certificate in `x-forwarded-client-cert`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClientCert {
    /// What becomes of the header.
    pub forward: ForwardClientCert,
    /// With the certificate's subject.
    pub subject: bool,
    /// With the certificate, in PEM.
    pub cert: bool,
    /// With the chain, in PEM.
    pub chain: bool,
    /// With its DNS names.
    pub dns: bool,
    /// With its URIs.
    pub uri: bool,
}

/// Envoy's `ForwardClientCertDetails`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ForwardClientCert {
    /// The header is removed.
    #[default]
    Sanitize,
    /// It is left alone on connections with mutual TLS, else removed.
    ForwardOnly,
    /// On connections with mutual TLS the client is appended, else it is removed.
    AppendForward,
    /// On connections with mutual TLS it is made anew, else removed.
    SanitizeSet,
    /// It is left alone.
    AlwaysForwardOnly,
}

/// Envoy's `PathWithEscapedSlashesAction`, for `%2F` and `%5C`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EscapedSlashes {
    /// Nothing.
    #[default]
    Keep,
    /// The request is refused.
    Reject,
    /// The client is sent to the path without escapes.
    UnescapeAndRedirect,
    /// The path without escapes is used.
    UnescapeAndForward,
}

/// Which port is removed from the host header before routing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StripPort {
    /// None.
    #[default]
    No,
    /// The one equal to the listener's (`strip_matching_host_port`).
    Matching,
    /// Every one (`strip_any_host_port`).
    Any,
}

/// Where a connection manager's routes come from.
#[derive(Debug, Clone)]
pub enum RouteSource {
    /// `route_config`
    Inline(Arc<RouteConfiguration>),
    /// `rds`: the route configuration of that name.
    Rds(Name),
}

impl TcpProxy {
    /// Sum of the clusters' weights.
    pub fn total_weight(&self) -> u64 {
        self.clusters
            .iter()
            .map(|cluster| u64::from(cluster.weight))
            .sum()
    }
}

impl From<&TcpWeightedCluster> for WeightedCluster {
    fn from(cluster: &TcpWeightedCluster) -> Self {
        Self::plain(cluster.cluster.clone(), cluster.weight)
    }
}
