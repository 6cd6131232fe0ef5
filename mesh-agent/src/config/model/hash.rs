//! What of a request decides over its endpoint, where endpoints are chosen by hash.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use super::route::RegexRewrite;

/// Envoy's `HashPolicy`.
#[derive(Debug, Clone)]
pub struct HashPolicy {
    /// What is hashed.
    pub source: HashSource,
    /// When a hash is there already, what follows is not looked at.
    pub terminal: bool,
}

/// What is hashed.
#[derive(Debug, Clone)]
pub enum HashSource {
    /// A header.
    Header {
        /// Its name.
        name: HeaderName,
        /// Rewritten like this first.
        rewrite: Option<RegexRewrite>,
    },
    /// A cookie.
    Cookie(CookieHash),
    /// The client's address.
    SourceIp,
    /// A query parameter.
    Query(Arc<str>),
}

/// A cookie, which clients that have none are given.
#[derive(Debug, Clone)]
pub struct CookieHash {
    /// Its name.
    pub name: Arc<str>,
    /// How long it lasts; zero: as long as the client's session. `None`: clients are given none.
    pub ttl: Option<Duration>,
    /// Its path.
    pub path: Arc<str>,
    /// Further attributes.
    pub attributes: Vec<(Arc<str>, Arc<str>)>,
}
