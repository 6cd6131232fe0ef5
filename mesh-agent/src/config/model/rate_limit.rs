//! What requests are counted by: descriptors, which routes and virtual hosts make.

use std::sync::Arc;

use http::HeaderName;
use ipnet::IpNet;

use super::matcher::{HeaderMatcher, QueryMatcher};

/// Envoy's `RateLimit`: one descriptor, if all its actions have something to say.
#[derive(Debug, Clone)]
pub struct RateLimit {
    /// Filters of the same stage use it.
    pub stage: u32,
    /// In order; each adds an entry.
    pub actions: Vec<Action>,
    /// Asks for another limit than the service has.
    pub limit: Option<LimitOverride>,
    /// How much the request counts; `None`: what the service takes.
    pub hits: Option<u64>,
}

/// Envoy's `RateLimit.Action`.
#[derive(Debug, Clone)]
pub enum Action {
    /// `source_cluster`: who asks.
    SourceCluster,
    /// `destination_cluster`: the route's.
    DestinationCluster,
    /// `remote_address`: whose request it is, as trusted proxies say.
    RemoteAddress,
    /// `masked_remote_address`
    MaskedRemoteAddress {
        /// Bits kept of an IPv4 address.
        v4: u8,
        /// Bits kept of an IPv6 address.
        v6: u8,
    },
    /// A header's value.
    Header {
        /// Whose.
        name: HeaderName,
        /// The entry's key.
        key: Arc<str>,
        /// Without it the entry is left out, not the descriptor.
        skip_if_absent: bool,
    },
    /// A query parameter's value.
    Query {
        /// Whose.
        name: Arc<str>,
        /// The entry's key.
        key: Arc<str>,
        /// Without it the entry is left out, not the descriptor.
        skip_if_absent: bool,
    },
    /// Always the same.
    Fixed {
        /// The entry's key.
        key: Arc<str>,
        /// The entry's value.
        value: Arc<str>,
    },
    /// If headers match, or do not.
    HeaderMatch {
        /// The entry's key.
        key: Arc<str>,
        /// The entry's value.
        value: Arc<str>,
        /// Whether they must match.
        expected: bool,
        /// All of them.
        headers: Vec<HeaderMatcher>,
    },
    /// If query parameters match, or do not.
    QueryMatch {
        /// The entry's key.
        key: Arc<str>,
        /// The entry's value.
        value: Arc<str>,
        /// Whether they must match.
        expected: bool,
        /// All of them.
        parameters: Vec<QueryMatcher>,
    },
    /// If the address is in a range, or not.
    AddressMatch {
        /// The entry's key.
        key: Arc<str>,
        /// The entry's value.
        value: Arc<str>,
        /// One of them.
        ranges: Vec<IpNet>,
        /// None of them.
        invert: bool,
    },
    /// Text that filters before found out.
    Metadata {
        /// The entry's key.
        key: Arc<str>,
        /// Where it is.
        source: MetadataKey,
        /// Its value otherwise; empty: none.
        default: Arc<str>,
        /// Without it the entry is left out, not the descriptor.
        skip_if_absent: bool,
    },
}

/// Envoy's `MetadataKey`.
#[derive(Debug, Clone)]
pub struct MetadataKey {
    /// The filter's name.
    pub filter: Arc<str>,
    /// Keys from the outside in.
    pub path: Vec<Arc<str>>,
}

/// Where another limit is from.
#[derive(Debug, Clone)]
pub enum LimitOverride {
    /// The configuration.
    Fixed {
        /// Requests in a unit of time.
        requests_per_unit: u32,
        /// The unit, as `envoy.type.v3.RateLimitUnit` numbers it.
        unit: i32,
    },
    /// Dynamic metadata with `requests_per_unit` and `unit`.
    Metadata(MetadataKey),
}

/// Whether limits of the virtual host count beside the route's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HostLimits {
    /// If the route has none.
    #[default]
    Override,
    /// Always.
    Include,
    /// Never.
    Ignore,
}
