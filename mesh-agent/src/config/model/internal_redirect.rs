//! Redirects of upstreams that are followed here instead of by the client.

use http::{HeaderName, StatusCode};

use super::Name;

/// Envoy's `InternalRedirectPolicy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InternalRedirect {
    /// How often a request may be sent elsewhere (default 1).
    pub max: u32,
    /// Which responses send it elsewhere (default 302).
    pub statuses: Vec<StatusCode>,
    /// All must agree.
    pub predicates: Vec<Predicate>,
    /// `http` may become `https` and the other way round.
    pub cross_scheme: bool,
    /// Headers of the response that the next request has instead of its own.
    pub copied: Vec<HeaderName>,
}

/// What must hold of a redirect's target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Predicate {
    /// The route was not led to from this one before (`previous_routes`).
    PreviousRoutes,
    /// The route is one of these (`allow_listed_routes`).
    AllowListed(Vec<Name>),
    /// A plain request does not become an encrypted one (`safe_cross_scheme`).
    SafeCrossScheme,
}
