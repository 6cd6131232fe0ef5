//! `envoy.filters.http.stateful_session`: requests of a session go to the endpoint that has it.

use http::{HeaderName, StatusCode};

use crate::config::model::hash::CookieHash;

/// Envoy's `StatefulSession`.
#[derive(Debug)]
pub struct StatefulSession {
    /// Where the client keeps the endpoint; `None`: nowhere, nothing is done.
    pub state: Option<SessionState>,
    /// A request whose endpoint is gone is refused instead of sent to another one.
    pub strict: bool,
    /// The answer then (503 unless configured).
    pub status: StatusCode,
}

/// Where the client keeps the endpoint.
#[derive(Debug)]
pub enum SessionState {
    /// In a cookie, for requests below its path.
    Cookie(CookieHash),
    /// In a header that it sends back.
    Header(HeaderName),
}
