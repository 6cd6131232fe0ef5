//! A check by HTTP: what the server answers 200 to is allowed.

use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Map, Value};

use crate::config::model::filter::ext_authz::HttpService;
use crate::config::model::matcher::StringMatcher;
use crate::proxy::http::call::{self, Called};
use crate::proxy::http::headers::SERVICE_TIME;
use crate::proxy::http::message::{Path, Request};

use crate::proxy::http::filters::mutation::Mutation;

use super::decision::{Changes, Decision, Denial};
use super::shown::{self, Body, Over};
use super::{Asking, Error};

/// By this the server tells which headers of the request go.
const REMOVE: &str = "x-envoy-auth-headers-to-remove";
/// Headers of a refusal that the client gets in any case.
const CLIENT_ALWAYS: [HeaderName; 3] = [
    header::CONTENT_LENGTH,
    header::WWW_AUTHENTICATE,
    header::LOCATION,
];

/// Asks.
pub(super) async fn ask(
    asking: &Asking<'_, '_>,
    service: &HttpService,
    request: &Request,
    body: Option<Body>,
) -> Result<Decision, Error> {
    let call = asking.call;
    let mut check = call::request(
        request.method.clone(),
        request.scheme,
        request.authority.clone(),
    );
    let path = if service.path_override.is_empty() {
        format!("{}{}", service.path_prefix, request.path.as_str())
    } else {
        service.path_override.clone()
    };
    check.path = Path::new(Bytes::from(path)).unwrap_or(Path::root());
    for (name, value) in shown::headers(asking.config, Over::Http, request, body.as_ref()) {
        // Pseudo-headers are no names; the length is that of what is sent.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value))
            && name != header::CONTENT_LENGTH
        {
            check.headers.insert(name, value);
        }
    }
    for (name, value) in &service.headers_to_add {
        check.headers.append(name, value.clone());
    }
    let body = Bytes::from(body.map_or_else(Vec::new, |body| body.bytes));
    if body.is_empty() {
        let zero = HeaderValue::from_static("0");
        check.headers.insert(header::CONTENT_LENGTH, zero);
    }
    let sender = call::sender(call.connection, call.hcm);
    let uri = &service.uri;
    let started = Instant::now();
    let cluster = &uri.cluster;
    let mut answer = call::call(sender, call.view, cluster, check, body, uri.timeout).await?;
    let milliseconds = HeaderValue::from(started.elapsed().as_millis() as u64);
    answer.headers.insert(SERVICE_TIME, milliseconds);
    if answer.status.is_server_error() {
        return Err(Error::Status(answer.status));
    }
    Ok(decision(service, answer))
}

fn any(matchers: &[StringMatcher], name: &HeaderName) -> bool {
    matchers.iter().any(|one| one.matches(name.as_str()))
}

fn decision(service: &HttpService, answer: Called) -> Decision {
    let Called {
        status,
        headers,
        body,
        ..
    } = answer;
    if status != StatusCode::OK {
        let all = service.client.is_empty();
        let told = headers.iter().filter(|(name, _)| {
            (all && **name != header::HOST)
                || CLIENT_ALWAYS.contains(name)
                || any(&service.client, name)
        });
        return Decision::Denied(Denial {
            status,
            body,
            headers: told
                .map(|(name, value)| Mutation::set(name, value))
                .collect(),
            metadata: None,
        });
    }
    let mut changes = Changes {
        remove: removed(&headers),
        ..Changes::default()
    };
    let mut metadata = Map::new();
    for (name, value) in &headers {
        if any(&service.upstream, name) {
            changes.request.push(Mutation::set(name, value));
        }
        if any(&service.upstream_append, name) {
            changes.request.push(Mutation::add(name, value));
        }
        if any(&service.client_on_success, name) {
            changes.response.push(Mutation::add(name, value));
        }
        if any(&service.metadata, name) {
            let value = String::from_utf8_lossy(value.as_bytes());
            metadata.insert(name.as_str().to_owned(), Value::from(value));
        }
    }
    if !metadata.is_empty() {
        changes.metadata = Some(Value::Object(metadata));
    }
    Decision::Allowed(changes)
}

fn removed(headers: &HeaderMap) -> Vec<HeaderName> {
    let lists = headers.get_all(REMOVE).iter();
    lists
        .filter_map(|list| list.to_str().ok())
        .flat_map(|list| list.split(','))
        .filter_map(|name| HeaderName::try_from(name.trim()).ok())
        .collect()
}
