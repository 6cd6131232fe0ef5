//! `envoy.filters.http.ext_authz`: another service decides.

mod cache;
mod decision;
mod grpc;
mod http;
mod shown;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use ::http::{HeaderName, HeaderValue, StatusCode};
use bytes::Bytes;
use hyper::body::Body as _;
use smallvec::SmallVec;

use crate::config::model::filter::ext_authz::{BodySettings, CheckSettings, ExtAuthz, Service};
use crate::config::model::response_flag::ResponseFlag;
use crate::proxy::http::body::RequestBody;
use crate::proxy::http::call::CallError;
use crate::proxy::http::message::{Reply, Request};
use crate::proxy::http::reply::local;
use crate::proxy::http::upgrade;

use super::{Call, Step, buffer};
use cache::Cache;
use decision::{Decision, Denial};
use shown::Body;

/// Where filters behind find what the service told.
const NAMESPACE: &str = "envoy.filters.http.ext_authz";
const FAILURE_ALLOWED: HeaderName = HeaderName::from_static("x-envoy-auth-failure-mode-allowed");
/// Stands for a status that was not told.
const UNTOLD: StatusCode = StatusCode::CONTINUE;

/// Why there is no decision.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Call(CallError),
    #[error("the service answers {0}")]
    Status(StatusCode),
    /// The service says itself that it cannot decide.
    #[error("the service tells of an error")]
    Told(Box<Denial>),
}

/// A check on its way.
struct Asking<'a, 'c> {
    call: &'a Call<'c>,
    config: &'a ExtAuthz,
    extensions: BTreeMap<String, String>,
}

/// Asks about a request. `said` is what the levels say, the most specific one first.
pub(super) async fn check(
    call: &Call<'_>,
    config: &Arc<ExtAuthz>,
    said: SmallVec<[Arc<CheckSettings>; 2]>,
    request: &mut Request,
    body: &mut RequestBody,
    steps: &mut SmallVec<[Step; 2]>,
) -> Result<(), Box<Reply>> {
    let concerned = config.enabled.holds(fastrand::u64(..))
        && config
            .enabled_metadata
            .as_ref()
            .is_none_or(|matcher| matcher.matches(request.metadata.get(&matcher.filter)));
    if !concerned {
        return if config.deny_at_disable {
            Err(Box::new(erroneous(local(config.status_on_error, ""))))
        } else {
            Ok(())
        };
    }
    let mut extensions = BTreeMap::new();
    for level in said.iter().rev() {
        let level = level.context_extensions.iter();
        extensions.extend(level.map(|(key, value)| (key.clone(), value.clone())));
    }
    let first = said.first();
    let service = first
        .and_then(|said| said.service.as_ref())
        .unwrap_or(&config.service);
    let wanted = match first {
        Some(said) if said.without_body => None,
        Some(said) => said.body.or(config.body),
        None => config.body,
    };
    let wanted = wanted.filter(|_| !body.is_end_stream() && upgrade::wanted(request).is_none());
    let shown = match wanted {
        Some(settings) => {
            // Envoy: routes may say how much, not how it is told.
            let as_bytes = config.body.is_some_and(|body| body.pack_as_bytes);
            Some(read(settings, as_bytes, body).await?)
        }
        None => None,
    };
    let asking = Asking {
        call,
        config,
        extensions,
    };
    let decision = asking.decide(config, service, request, shown).await;
    match decision {
        Ok(decision) => enforce(call, config, &decision, request, steps),
        Err(error) => {
            tracing::debug!(cluster = %service.cluster(), %error, "no decision about a request");
            failed(config, error, request)
        }
    }
}

impl Asking<'_, '_> {
    async fn decide(
        &self,
        config: &Arc<ExtAuthz>,
        service: &Service,
        request: &Request,
        body: Option<Body>,
    ) -> Result<Arc<Decision>, Error> {
        let cache = config.cache.as_ref().filter(|_| body.is_none());
        let cache = cache.map(|settings| config.decisions.of(|| Cache::new(settings)));
        let key = cache.and_then(|_| self.key(service, request));
        if let (Some(cache), Some(key)) = (cache, &key)
            && let Some(decision) = cache.find(key)
        {
            return Ok(decision);
        }
        let decision = match service {
            Service::Grpc(grpc) => grpc::ask(self, grpc, request, body).await?,
            Service::Http(http) => http::ask(self, http, request, body).await?,
        };
        let decision = Arc::new(decision);
        if let (Some(cache), Some(key)) = (cache, key) {
            cache.keep(key, decision.clone());
        }
        Ok(decision)
    }

    fn key(&self, service: &Service, request: &Request) -> Option<Vec<u8>> {
        let connection = self.call.connection;
        let names = connection.peer_names().unwrap_or_default();
        let names: Vec<&str> = names.iter().map(|name| &**name).collect();
        let source = format!("{}\0{}", connection.caught.peer.ip(), names.join("\0"));
        let destination = connection.caught.destination.to_string();
        let extensions: String = self
            .extensions
            .iter()
            .map(|(key, value)| format!("{}:{key}{}:{value}", key.len(), value.len()))
            .collect();
        let namespaces = self.config.metadata_namespaces.iter();
        let metadata: String = namespaces
            .filter_map(|name| Some(format!("{name}\0{}\0", request.metadata.get(name)?)))
            .collect();
        let parts = [
            &**service.cluster(),
            &source,
            &destination,
            connection.server_name(),
            &extensions,
            &metadata,
        ];
        let over = shown::Over::of(service);
        shown::key(self.config, over, request, &parts.map(str::as_bytes))
    }
}

/// Reads as much of the body as the service is shown.
async fn read(
    settings: BodySettings,
    as_bytes: bool,
    body: &mut RequestBody,
) -> Result<Body, Box<Reply>> {
    if !settings.allow_partial {
        let bytes = buffer::gather(settings.max_bytes, body).await?.concat();
        return Ok(Body {
            received: bytes.len(),
            bytes,
            partial: false,
            as_bytes,
        });
    }
    let mut pieces: Vec<Bytes> = Vec::new();
    let mut length = 0;
    while length < settings.max_bytes && !body.is_end_stream() {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
        // What breaks off is sent on and ends the same way.
        let Some(Ok(frame)) = frame else { break };
        if let Ok(data) = frame.into_data() {
            length += data.len();
            pieces.push(data);
        }
    }
    let mut bytes = pieces.concat();
    let partial = bytes.len() > settings.max_bytes || !body.is_end_stream();
    bytes.truncate(settings.max_bytes);
    body.put_back(pieces);
    Ok(Body {
        bytes,
        received: length,
        partial,
        as_bytes,
    })
}

fn enforce(
    call: &Call<'_>,
    config: &ExtAuthz,
    decision: &Decision,
    request: &mut Request,
    steps: &mut SmallVec<[Step; 2]>,
) -> Result<(), Box<Reply>> {
    let changes = match decision {
        Decision::Denied(denial) => {
            tell(request, denial.metadata.as_ref());
            let reply = denial.reply().because("ext_authz_denied");
            let flag = ResponseFlag::UnauthorizedExternalService;
            return Err(Box::new(reply.flagged(flag)));
        }
        Decision::Allowed(changes) => changes,
    };
    if changes.invalid && config.validate_mutations {
        let reply = local(StatusCode::INTERNAL_SERVER_ERROR, "");
        return Err(Box::new(reply.because("ext_authz_invalid")));
    }
    tell(request, changes.metadata.as_ref());
    changes.apply(request);
    if config.clear_route_cache && changes.touches_request() {
        call.reroute(request);
    }
    if !changes.response.is_empty() {
        steps.push(Step::Headers(changes.response.clone()));
    }
    Ok(())
}

fn tell(request: &mut Request, metadata: Option<&serde_json::Value>) {
    if let Some(metadata) = metadata {
        let namespace = Arc::from(NAMESPACE);
        request.metadata.insert(namespace, metadata.clone());
    }
}

fn failed(config: &ExtAuthz, error: Error, request: &mut Request) -> Result<(), Box<Reply>> {
    if config.failure_mode_allow {
        if config.failure_mode_allow_header_add {
            let yes = HeaderValue::from_static("true");
            request.headers.insert(FAILURE_ALLOWED, yes);
        }
        return Ok(());
    }
    let reply = match error {
        Error::Told(mut denial) => {
            if denial.status == UNTOLD {
                denial.status = config.status_on_error;
            }
            denial.reply()
        }
        _ => local(config.status_on_error, ""),
    };
    Err(Box::new(erroneous(reply)))
}

/// As the access log knows it.
fn erroneous(reply: Reply) -> Reply {
    reply
        .because("ext_authz_error")
        .flagged(ResponseFlag::UnauthorizedExternalService)
}
