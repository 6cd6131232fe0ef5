//! Route configurations: virtual hosts, routes and their actions.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;

use crate::balance::subset;

use super::access_log::Piece;
use super::cluster::RoutingPriority;
use super::domains::DomainIndex;
use super::filter::Overrides;
use super::hash::HashPolicy;
use super::headers::HeaderMutations;
use super::internal_redirect::InternalRedirect;
use super::matcher::{HeaderMatcher, MetadataMatcher, QueryMatcher, SafeRegex, StringMatcher};
use super::mirror::Mirror;
use super::path_template::{PathTemplate, TemplateRewrite};
use super::rate_limit::RateLimit;
use super::retry::RetryPolicy;
use super::{Fraction, Name};

/// Envoy's `RouteConfiguration`.
#[derive(Debug, Clone)]
pub struct RouteConfiguration {
    /// Unique among the route configurations of a view; may be empty when inline.
    pub name: Name,
    /// In order of the configuration; selected by domain through `domains`.
    pub virtual_hosts: Vec<Arc<VirtualHost>>,
    /// The virtual hosts by domain.
    pub domains: DomainIndex,
    /// Mutations of every request.
    pub request_headers: HeaderMutations,
    /// Mutations of every response.
    pub response_headers: HeaderMutations,
    /// Header mutations run from the least specific level to the most specific one.
    pub most_specific_header_mutations_wins: bool,
    /// The port is dropped from the host when matching domains.
    pub ignore_port_in_host_matching: bool,
    /// What it says of HTTP filters.
    pub overrides: Overrides,
    /// Whether routes to clusters that do not exist are refused when loading. Not said: a file
    /// refuses them; a control plane may deliver clusters later, so xDS checks inline ones only.
    pub validate_clusters: Option<bool>,
}

impl RouteConfiguration {
    /// The virtual host that serves a `:authority`.
    pub fn virtual_host(&self, authority: &str) -> Option<&Arc<VirtualHost>> {
        let host = if self.ignore_port_in_host_matching {
            without_port(authority)
        } else {
            authority
        };
        self.domains.find(host)
    }

    /// Every cluster the routes name, with the place that names it.
    pub fn clusters(&self) -> impl Iterator<Item = (String, &Name)> {
        self.virtual_hosts.iter().enumerate().flat_map(|(v, host)| {
            host.routes.iter().enumerate().flat_map(move |(r, route)| {
                let at = format!("virtual_hosts[{v}].routes[{r}].route");
                match &route.action {
                    RouteAction::Forward(forward) => {
                        let mut names = forward.cluster.names(&at);
                        names.extend(super::mirror::names(&forward.mirrors, &at));
                        names
                    }
                    _ => Vec::new(),
                }
            })
        })
    }
}

/// A host without its port. Brackets of IPv6 addresses stay.
pub fn without_port(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(colon) if !authority[colon..].contains(']') => {
            let digits = &authority[colon + 1..];
            if digits.bytes().all(|byte| byte.is_ascii_digit()) {
                &authority[..colon]
            } else {
                authority
            }
        }
        _ => authority,
    }
}

/// Envoy's `VirtualHost`.
#[derive(Debug, Clone)]
pub struct VirtualHost {
    /// Unique within its route configuration.
    pub name: Name,
    /// Exact (`a.b`), suffix (`*.b`, `*-b.c`), prefix (`a.*`) or `*`; lower case.
    pub domains: Vec<Arc<str>>,
    /// First match wins.
    pub routes: Vec<Arc<Route>>,
    /// Plain requests are redirected to https.
    pub require_tls: RequireTls,
    /// Mutations of requests.
    pub request_headers: HeaderMutations,
    /// Mutations of responses.
    pub response_headers: HeaderMutations,
    /// `x-envoy-attempt-count` to the upstream.
    pub include_request_attempt_count: bool,
    /// `x-envoy-attempt-count` to the client.
    pub include_attempt_count_in_response: bool,
    /// What it says of HTTP filters.
    pub overrides: Overrides,
    /// What requests are counted by.
    pub rate_limits: Vec<RateLimit>,
    /// `x-envoy-is-timeout-retry` to the upstream.
    pub include_is_timeout_retry_header: bool,
}

impl VirtualHost {
    /// One without routes that changes nothing.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            domains: Vec::new(),
            routes: Vec::new(),
            require_tls: RequireTls::None,
            request_headers: HeaderMutations::default(),
            response_headers: HeaderMutations::default(),
            include_request_attempt_count: false,
            include_attempt_count_in_response: false,
            overrides: Overrides::default(),
            rate_limits: Vec::new(),
            include_is_timeout_retry_header: false,
        }
    }
}

/// Envoy's `TlsRequirementType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RequireTls {
    /// Plaintext is served.
    #[default]
    None,
    /// Plaintext from outside is redirected.
    ExternalOnly,
    /// All plaintext is redirected.
    All,
}

/// One route.
#[derive(Debug, Clone)]
pub struct Route {
    /// May be empty.
    pub name: Name,
    /// Which requests it takes.
    pub matcher: RouteMatch,
    /// What it does with them.
    pub action: RouteAction,
    /// What it says of HTTP filters.
    pub overrides: Overrides,
    /// Mutations of requests.
    pub request_headers: HeaderMutations,
    /// Mutations of responses.
    pub response_headers: HeaderMutations,
}

impl Route {
    /// One without a name that takes every request and changes nothing.
    pub fn plain(action: RouteAction) -> Self {
        Self {
            name: "".into(),
            matcher: RouteMatch {
                path: PathMatcher::Prefix("/".into()),
                case_sensitive: true,
                headers: Vec::new(),
                query: Vec::new(),
                grpc: false,
                fraction: None,
                cookies: Vec::new(),
                certificate: None,
                metadata: Vec::new(),
            },
            action,
            overrides: Overrides::default(),
            request_headers: HeaderMutations::default(),
            response_headers: HeaderMutations::default(),
        }
    }
}

/// Envoy's `RouteMatch`. Everything must hold.
#[derive(Debug, Clone)]
pub struct RouteMatch {
    /// The path.
    pub path: PathMatcher,
    /// Compare paths case-sensitively (default true). Regexes are not affected.
    pub case_sensitive: bool,
    /// All must match.
    pub headers: Vec<HeaderMatcher>,
    /// All must match.
    pub query: Vec<QueryMatcher>,
    /// Only gRPC requests (`content-type: application/grpc...`).
    pub grpc: bool,
    /// Only this share of requests.
    pub fraction: Option<Fraction>,
    /// All must match.
    pub cookies: Vec<CookieMatcher>,
    /// Only clients that showed a certificate, or did not (`tls_context`).
    pub certificate: Option<bool>,
    /// What filters found out; all must match.
    pub metadata: Vec<MetadataMatcher>,
}

/// Envoy's `CookieMatcher`.
#[derive(Debug, Clone)]
pub struct CookieMatcher {
    /// The cookie's name.
    pub name: Arc<str>,
    /// What its value must be.
    pub value: StringMatcher,
    /// The result is turned round.
    pub invert: bool,
}

/// How the path (without the query) is matched.
#[derive(Debug, Clone)]
pub enum PathMatcher {
    /// Starts with.
    Prefix(Arc<str>),
    /// Equal.
    Exact(Arc<str>),
    /// Equal, or continues with `/`. No trailing slash.
    PathSeparatedPrefix(Arc<str>),
    /// Full match.
    Regex(SafeRegex),
    /// Full match of a template (`envoy.path.match.uri_template`).
    Template(PathTemplate),
    /// CONNECT requests.
    Connect,
}

/// What a route does.
#[derive(Debug, Clone)]
pub enum RouteAction {
    /// Forward to a cluster.
    Forward(Box<Forward>),
    /// Answer with a redirect.
    Redirect(Redirect),
    /// Answer at once.
    DirectResponse(DirectResponse),
    /// Answer with a redirect to https, as a virtual host's `require_tls` asks.
    ToHttps,
}

/// Envoy's `RouteAction` message.
#[derive(Debug, Clone)]
pub struct Forward {
    /// Where to.
    pub cluster: ClusterSpecifier,
    /// Which of a cluster's subsets (`metadata_match`, `envoy.lb`).
    pub subset: Option<Arc<subset::Metadata>>,
    /// The status when the cluster does not exist (default 503).
    pub cluster_not_found_status: StatusCode,
    /// Rewrites the matched prefix.
    pub prefix_rewrite: Option<Arc<str>>,
    /// Rewrites the path by regex.
    pub regex_rewrite: Option<RegexRewrite>,
    /// Rewrites the path by the variables of the route's template
    /// (`envoy.path.rewrite.uri_template`).
    pub template_rewrite: Option<TemplateRewrite>,
    /// Rewrites the path, not the query, to what operators say (`path_rewrite`).
    pub path_format: Option<Arc<[Piece]>>,
    /// Rewrites the host.
    pub host_rewrite: HostRewrite,
    /// The old host goes into `x-forwarded-host` (`append_x_forwarded_host`).
    pub append_x_forwarded_host: bool,
    /// From the end of the request to the end of the response. Envoy's default is 15 s;
    /// `None` is never (configured as 0).
    pub timeout: Option<Duration>,
    /// For gRPC requests, `grpc-timeout` instead of `timeout`, up to this; zero: however long.
    pub grpc_timeout_max: Option<Duration>,
    /// Overrides the connection manager's stream idle timeout; `Some(None)` disables it.
    pub idle_timeout: Option<Option<Duration>>,
    /// What decides over the endpoint, where endpoints are chosen by hash.
    pub hash: Vec<HashPolicy>,
    /// What is asked again when it fails.
    pub retry: Option<Arc<RetryPolicy>>,
    /// How much of a request's body is kept for another attempt, in bytes.
    pub buffer_limit: usize,
    /// Overrides the connection manager's `max_stream_duration`.
    pub stream_duration: Option<StreamDuration>,
    /// What requests are counted by.
    pub rate_limits: Vec<RateLimit>,
    /// The virtual host's count, too.
    pub include_host_rate_limits: bool,
    /// Whose circuit breakers count.
    pub priority: RoutingPriority,
    /// Clusters that get a copy of each request, and whose answers nobody sees.
    pub mirrors: Arc<[Mirror]>,
    /// Upgrades allowed or refused for this route, overriding the connection manager's;
    /// lower case.
    pub upgrades: Vec<(Arc<str>, bool)>,
    /// CONNECT ends here: the upstream gets the bytes, not the request (`connect_config`).
    pub connect_ends: bool,
    /// Redirects of the upstream that are followed.
    pub internal_redirect: Option<Arc<InternalRedirect>>,
}

/// Envoy's `MaxStreamDuration`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamDuration {
    /// The longest life of a stream; zero: without limit.
    pub max: Option<Duration>,
    /// A request's `grpc-timeout` counts, up to this; zero: however long.
    pub grpc_timeout_max: Option<Duration>,
    /// Taken off `grpc-timeout`.
    pub grpc_timeout_offset: Duration,
}

/// How the cluster of a request is found.
#[derive(Debug, Clone)]
pub enum ClusterSpecifier {
    /// Always this one.
    Cluster(Name),
    /// The one a request header names.
    Header(http::HeaderName),
    /// By weight.
    Weighted(WeightedClusters),
}

impl ClusterSpecifier {
    pub(crate) fn names(&self, at: &str) -> Vec<(String, &Name)> {
        match self {
            Self::Cluster(name) => vec![(format!("{at}.cluster"), name)],
            Self::Header(_) => Vec::new(),
            Self::Weighted(weighted) => weighted
                .clusters
                .iter()
                .enumerate()
                .filter(|(_, cluster)| cluster.header.is_none())
                .map(|(i, cluster)| {
                    (
                        format!("{at}.weighted_clusters.clusters[{i}].name"),
                        &cluster.name,
                    )
                })
                .collect(),
        }
    }
}

/// Clusters by weight.
#[derive(Debug, Clone)]
pub struct WeightedClusters {
    /// In order of the configuration.
    pub clusters: Vec<WeightedCluster>,
    /// Sum of the weights; more than 0.
    pub total: u64,
    /// What decides.
    pub random: RandomValue,
}

/// What one of several clusters is drawn by.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RandomValue {
    /// A number of our own.
    #[default]
    Own,
    /// The number that a request header holds, if it does.
    Header(http::HeaderName),
    /// The request's hash, if it has one.
    Hash,
}

/// One of several clusters.
#[derive(Debug, Clone)]
pub struct WeightedCluster {
    /// The cluster; empty: the one that a request header names.
    pub name: Name,
    /// Which header (`cluster_header`).
    pub header: Option<http::HeaderName>,
    /// Its share of the total.
    pub weight: u32,
    /// Which of its subsets: what the route says and, above that, what is said here.
    pub subset: Option<Arc<subset::Metadata>>,
    /// Mutations of requests.
    pub request_headers: HeaderMutations,
    /// Mutations of responses.
    pub response_headers: HeaderMutations,
    /// Rewrites the host for this cluster only.
    pub host_rewrite: Option<Arc<str>>,
}

impl WeightedCluster {
    /// A weighted cluster without mutations.
    pub fn plain(name: Name, weight: u32) -> Self {
        Self {
            name,
            header: None,
            weight,
            subset: None,
            request_headers: HeaderMutations::default(),
            response_headers: HeaderMutations::default(),
            host_rewrite: None,
        }
    }
}

impl WeightedClusters {
    /// The cluster a uniformly random value selects.
    pub fn pick(&self, random: u64) -> &WeightedCluster {
        let mut left = random % self.total.max(1);
        for cluster in &self.clusters {
            let weight = u64::from(cluster.weight);
            if left < weight {
                return cluster;
            }
            left -= weight;
        }
        &self.clusters[self.clusters.len() - 1]
    }
}

/// Envoy's `RegexMatchAndSubstitute`.
#[derive(Debug, Clone)]
pub struct RegexRewrite {
    /// Searched in the path, not anchored; every match is replaced.
    pub pattern: regex_automata::meta::Regex,
    /// RE2 syntax: `\1` is the first group.
    pub substitution: Arc<str>,
}

/// What happens to the host header.
#[derive(Debug, Clone, Default)]
pub enum HostRewrite {
    /// Nothing.
    #[default]
    Keep,
    /// Becomes this text.
    Literal(Arc<str>),
    /// Becomes the chosen endpoint's host name (`auto_host_rewrite`).
    Auto,
    /// Becomes another header's value.
    Header(http::HeaderName),
    /// Becomes what a regex makes of the path, the query left out.
    PathRegex(RegexRewrite),
    /// Becomes what operators say (`host_rewrite`), unless that is nothing.
    Format(Arc<[Piece]>),
}

/// Envoy's `RedirectAction`.
#[derive(Debug, Clone)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    /// The scheme is replaced.
    pub scheme: Option<Arc<str>>,
    /// The host is replaced.
    pub host: Option<Arc<str>>,
    /// The port is replaced.
    pub port: Option<u16>,
    /// How the path changes.
    pub path: RedirectPath,
    /// The query is dropped.
    pub strip_query: bool,
}

/// How a redirect changes the path.
#[derive(Debug, Clone, Default)]
pub enum RedirectPath {
    /// Not at all.
    #[default]
    Keep,
    /// The whole path (and query, when it has one) is replaced.
    Replace(Arc<str>),
    /// The matched prefix is replaced.
    Prefix(Arc<str>),
    /// By regex.
    Regex(RegexRewrite),
    /// By operators (`path_rewrite`), unless they say nothing.
    Format(Arc<[Piece]>),
}

/// Envoy's `DirectResponseAction`.
#[derive(Debug, Clone)]
pub struct DirectResponse {
    /// The status.
    pub status: StatusCode,
    /// The body; may be empty.
    pub body: Bytes,
}
