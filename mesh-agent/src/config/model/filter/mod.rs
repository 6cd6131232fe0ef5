//! HTTP filters: what requests go through between the connection manager and the router.

pub mod compressor;
pub mod cors;
pub mod ext_authz;
pub mod fault;
pub mod jwt;
pub mod local_rate_limit;
pub mod rate_limit;
pub mod rbac;
pub mod service;
pub mod stateful_session;

use std::sync::Arc;

use super::Name;
use cors::CorsPolicy;
use ext_authz::{CheckSettings, ExtAuthz};
use fault::Fault;
use jwt::{JwtAuthn, Keys, PerRoute};
use local_rate_limit::LocalRateLimit;
use rate_limit::GlobalRateLimit;
use rbac::Rbac;

/// A configured HTTP filter that is not the router.
#[derive(Debug, Clone)]
pub struct HttpFilter {
    /// Its name in the chain, which per-route configuration refers to.
    pub name: Name,
    /// Only routes that configure it have it.
    pub disabled: bool,
    /// What it does.
    pub kind: HttpFilterKind,
}

/// The HTTP filters the agent knows.
#[derive(Debug, Clone)]
pub enum HttpFilterKind {
    /// `envoy.filters.http.fault`
    Fault(Arc<Fault>),
    /// `envoy.filters.http.cors`; its policies are the routes'.
    Cors,
    /// `envoy.filters.http.rbac`
    Rbac(Arc<Rbac>),
    /// `envoy.filters.http.local_ratelimit`
    LocalRateLimit(Arc<LocalRateLimit>),
    /// `envoy.filters.http.jwt_authn`
    Jwt(Arc<JwtAuthn>),
    /// `envoy.filters.http.ext_authz`
    ExtAuthz(Arc<ExtAuthz>),
    /// `envoy.filters.http.ratelimit`
    RateLimit(Arc<GlobalRateLimit>),
    /// `envoy.filters.http.compressor`
    Compressor(Arc<compressor::Compressor>),
    /// `envoy.filters.http.stateful_session`
    StatefulSession(Arc<stateful_session::StatefulSession>),
    /// `envoy.filters.http.buffer`: the whole body is read before the request goes on.
    Buffer(usize),
}

impl HttpFilter {
    /// The clusters of services that it asks.
    pub fn clusters(&self) -> Vec<&Name> {
        match &self.kind {
            HttpFilterKind::Jwt(jwt) => {
                let keys = jwt.providers.iter().map(|provider| &provider.keys);
                keys.filter_map(|keys| match keys {
                    Keys::Remote(remote) => Some(&remote.uri.cluster),
                    Keys::Local(_) => None,
                })
                .collect()
            }
            HttpFilterKind::RateLimit(limit) => vec![&limit.service.cluster],
            HttpFilterKind::ExtAuthz(authz) => vec![authz.service.cluster()],
            _ => Vec::new(),
        }
    }
}

/// What a route, a virtual host or a route configuration says of one filter
/// (`typed_per_filter_config`).
#[derive(Debug, Clone)]
pub enum FilterOverride {
    /// Not here.
    Disabled,
    /// Here, as the chain configures it.
    Enabled,
    /// For `envoy.filters.http.fault`.
    Fault(Arc<Fault>),
    /// For `envoy.filters.http.cors`.
    Cors(Arc<CorsPolicy>),
    /// For `envoy.filters.http.rbac`.
    Rbac(Arc<Rbac>),
    /// For `envoy.filters.http.local_ratelimit`.
    LocalRateLimit(Arc<LocalRateLimit>),
    /// For `envoy.filters.http.jwt_authn`.
    Jwt(PerRoute),
    /// For `envoy.filters.http.ext_authz`.
    ExtAuthz(Arc<CheckSettings>),
    /// For `envoy.filters.http.ratelimit`.
    RateLimit(Arc<rate_limit::PerRoute>),
    /// For `envoy.filters.http.compressor`.
    Compressor(Arc<compressor::PerRoute>),
    /// For `envoy.filters.http.stateful_session`.
    StatefulSession(Arc<stateful_session::StatefulSession>),
    /// For `envoy.filters.http.buffer`.
    Buffer(usize),
}

/// Overrides by the name of the filter; few, so that a list is the quickest index.
#[derive(Debug, Clone, Default)]
pub struct Overrides(pub Vec<(Name, FilterOverride)>);

impl Overrides {
    /// What is said of a filter.
    pub fn get(&self, name: &str) -> Option<&FilterOverride> {
        self.0
            .iter()
            .find(|(known, _)| &**known == name)
            .map(|(_, said)| said)
    }
}
