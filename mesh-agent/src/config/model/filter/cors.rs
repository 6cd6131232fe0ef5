//! Cross-origin requests.

use http::HeaderValue;

use crate::config::model::Fraction;
use crate::config::model::matcher::StringMatcher;

/// Envoy's `CorsPolicy`.
#[derive(Debug, Clone)]
pub struct CorsPolicy {
    /// Origins that may ask. One that matches `*` stands for all.
    pub allow_origins: Vec<StringMatcher>,
    /// `access-control-allow-methods`
    pub allow_methods: Option<HeaderValue>,
    /// `access-control-allow-headers`
    pub allow_headers: Option<HeaderValue>,
    /// `access-control-expose-headers`
    pub expose_headers: Option<HeaderValue>,
    /// `access-control-max-age`
    pub max_age: Option<HeaderValue>,
    /// `access-control-allow-credentials: true`
    pub allow_credentials: Option<bool>,
    /// `access-control-allow-private-network: true`, when asked for.
    pub allow_private_network: Option<bool>,
    /// For which share of requests the policy holds.
    pub enabled: Fraction,
    /// Preflights of other origins go to the upstream (default true) instead of being answered.
    pub forward_not_matching_preflights: Option<bool>,
}
