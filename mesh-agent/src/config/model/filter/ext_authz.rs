//! `envoy.filters.http.ext_authz`: another service decides about requests.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};

use crate::config::model::matcher::{MetadataMatcher, StringMatcher};
use crate::config::model::{Fraction, Name};

use super::service::{GrpcService, HttpUri};

/// Envoy's `ExtAuthz`.
#[derive(Debug)]
pub struct ExtAuthz {
    /// Who decides.
    pub service: Service,
    /// Requests pass if the service does not answer.
    pub failure_mode_allow: bool,
    /// Such requests are told from others by `x-envoy-auth-failure-mode-allowed`.
    pub failure_mode_allow_header_add: bool,
    /// The service is shown the body.
    pub body: Option<BodySettings>,
    /// The request is routed anew if the service changed it.
    pub clear_route_cache: bool,
    /// The answer if the service does not answer (403 unless configured).
    pub status_on_error: StatusCode,
    /// Changes that do not fit HTTP are answered with 500 instead of left out.
    pub validate_mutations: bool,
    /// Dynamic metadata that the service is shown.
    pub metadata_namespaces: Vec<Name>,
    /// Which share of requests is asked about.
    pub enabled: Fraction,
    /// Only requests that match are asked about.
    pub enabled_metadata: Option<MetadataMatcher>,
    /// What is not asked about is refused.
    pub deny_at_disable: bool,
    /// Headers the service is shown; `None`: a gRPC service sees all, an HTTP service a few.
    pub allowed_headers: Option<Vec<StringMatcher>>,
    /// Headers it is not shown.
    pub disallowed_headers: Vec<StringMatcher>,
    /// It is shown the name asked for in the TLS handshake.
    pub include_tls_session: bool,
    /// Its answers are kept.
    pub cache: Option<Arc<CacheSettings>>,
    /// Those that are kept, as the proxy has them.
    pub decisions: Kept,
}

/// Something that the proxy keeps for as long as this configuration of a filter lives.
#[derive(Debug, Default)]
pub struct Kept(OnceLock<Box<dyn Any + Send + Sync>>);

impl Kept {
    /// What is kept, made when it is first asked for.
    ///
    /// # Panics
    /// It is asked for as another type than before.
    pub fn of<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> &T {
        self.0
            .get_or_init(|| Box::new(make()))
            .downcast_ref()
            .expect("one filter keeps one type")
    }
}

/// Who decides.
#[derive(Debug, Clone)]
pub enum Service {
    /// `envoy.service.auth.v3.Authorization`
    Grpc(GrpcService),
    /// A server that answers 200 to what is allowed.
    Http(Arc<HttpService>),
}

impl Service {
    /// Its cluster.
    pub fn cluster(&self) -> &Name {
        match self {
            Self::Grpc(service) => &service.cluster,
            Self::Http(service) => &service.uri.cluster,
        }
    }
}

/// Envoy's `HttpService`.
#[derive(Debug)]
pub struct HttpService {
    /// The server; of the URI only cluster and timeout matter.
    pub uri: HttpUri,
    /// Stands before the request's path.
    pub path_prefix: String,
    /// Stands instead of it.
    pub path_override: String,
    /// Put into the check.
    pub headers_to_add: Vec<(HeaderName, HeaderValue)>,
    /// Headers of a 200 that replace the request's.
    pub upstream: Vec<StringMatcher>,
    /// Headers of a 200 that are added to those of the request.
    pub upstream_append: Vec<StringMatcher>,
    /// Headers of a refusal that the client gets; empty: all.
    pub client: Vec<StringMatcher>,
    /// Headers of a 200 that the client gets.
    pub client_on_success: Vec<StringMatcher>,
    /// Headers of a 200 that become dynamic metadata.
    pub metadata: Vec<StringMatcher>,
}

/// Envoy's `BufferSettings`.
#[derive(Debug, Clone, Copy)]
pub struct BodySettings {
    /// How much of the body is waited for.
    pub max_bytes: usize,
    /// Of a longer body the service sees the beginning; otherwise the answer is 413.
    pub allow_partial: bool,
    /// The body need not be UTF-8.
    pub pack_as_bytes: bool,
}

/// What a route says of the filter.
#[derive(Debug, Clone, Default)]
pub struct CheckSettings {
    /// Told to the service; more specific levels add to and replace less specific ones.
    pub context_extensions: BTreeMap<String, String>,
    /// The body is not shown.
    pub without_body: bool,
    /// Instead of the filter's.
    pub body: Option<BodySettings>,
    /// Instead of the filter's.
    pub service: Option<Service>,
}

/// How long answers are kept (`filter_metadata.check_cache`, which Envoy takes and does nothing
/// with).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheSettings {
    /// That a request is allowed.
    pub positive: Duration,
    /// That it is refused.
    pub negative: Duration,
    /// About so many at most.
    pub max_entries: usize,
    /// Headers the service decides by; `None`: all it is shown but those of tracing.
    pub headers: Option<Vec<HeaderName>>,
}
