//! What a service is shown of a request.

use std::collections::HashMap;

use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderName, Version};

use crate::config::model::filter::ext_authz::{ExtAuthz, Service};
use crate::config::model::matcher::StringMatcher;
use crate::proxy::http::message::{Request, text};

/// What an HTTP service is shown in any case.
const HTTP_ALWAYS: [&str; 4] = ["authorization", ":method", ":path", ":authority"];
/// Headers of the client's connection.
const OF_CONNECTION: [HeaderName; 2] = [CONNECTION, TRANSFER_ENCODING];
/// Says whether the service sees all of the body.
const PARTIAL: &str = "x-envoy-auth-partial-body";

/// How a service is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    Grpc,
    Http,
}

impl Over {
    /// A service.
    pub(super) fn of(service: &Service) -> Self {
        match service {
            Service::Grpc(_) => Self::Grpc,
            Service::Http(_) => Self::Http,
        }
    }
}

/// The body, as far as it was read.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    /// How much has come so far, in bytes.
    pub(super) received: usize,
    /// There is more of it.
    pub(super) partial: bool,
    /// It need not be UTF-8.
    pub(super) as_bytes: bool,
}

/// Headers by name, pseudo-headers among them; several values are joined by a comma.
pub(super) fn headers(
    config: &ExtAuthz,
    over: Over,
    request: &Request,
    body: Option<&Body>,
) -> HashMap<String, String> {
    let any = |matchers: &[StringMatcher], name: &str| matchers.iter().any(|m| m.matches(name));
    let shown = |name: &str| {
        let allowed = match (&config.allowed_headers, over) {
            (None, Over::Grpc) => true,
            (Some(allowed), Over::Grpc) => any(allowed, name),
            (allowed, Over::Http) => {
                HTTP_ALWAYS.contains(&name)
                    || allowed.as_ref().is_some_and(|allowed| any(allowed, name))
            }
        };
        allowed && !any(&config.disallowed_headers, name)
    };
    let mut headers = HashMap::new();
    for (name, value) in [
        (":method", request.method.as_str()),
        (":path", request.path.as_str()),
        (":authority", text(&request.authority)),
        (":scheme", request.scheme),
    ] {
        if shown(name) {
            headers.insert(name.to_owned(), value.to_owned());
        }
    }
    let names = request.headers.keys();
    for name in names.filter(|name| !OF_CONNECTION.contains(name) && shown(name.as_str())) {
        let mut whole = String::new();
        for value in request.headers.get_all(name) {
            if !whole.is_empty() {
                whole.push(',');
            }
            whole.push_str(&String::from_utf8_lossy(value.as_bytes()));
        }
        headers.insert(name.as_str().to_owned(), whole);
    }
    if let Some(body) = body {
        headers.insert(PARTIAL.to_owned(), body.partial.to_string());
    }
    headers
}

/// As Envoy names protocols.
pub(super) fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

/// Headers of tracing and of single requests: no decision depends on them.
const UNIQUE: [&str; 12] = [
    "x-request-id",
    "traceparent",
    "tracestate",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "b3",
    "x-ot-span-context",
    "x-cloud-trace-context",
    "x-envoy-expected-rq-timeout-ms",
];

/// All that a decision about a request may depend on, in full: each part behind its length.
pub(super) fn key(
    config: &ExtAuthz,
    over: Over,
    request: &Request,
    parts: &[&[u8]],
) -> Option<Vec<u8>> {
    let settings = config.cache.as_ref()?;
    let mut key = Vec::with_capacity(256);
    let mut add = |part: &[u8]| {
        key.extend_from_slice(&(part.len() as u64).to_be_bytes());
        key.extend_from_slice(part);
    };
    parts.iter().for_each(|part| add(part));
    match &settings.headers {
        Some(names) => {
            for part in [
                request.method.as_str(),
                request.path.as_str(),
                text(&request.authority),
            ] {
                add(part.as_bytes());
            }
            for name in names {
                let values = request.headers.get_all(name);
                add(&(values.iter().count() as u64).to_be_bytes());
                values.iter().for_each(|value| add(value.as_bytes()));
            }
        }
        None => {
            let headers = headers(config, over, request, None);
            let mut headers: Vec<_> = headers
                .iter()
                .filter(|(name, _)| !UNIQUE.contains(&name.as_str()))
                .filter(|(name, _)| **name != CONTENT_LENGTH.as_str())
                .collect();
            headers.sort();
            for (name, value) in headers {
                add(name.as_bytes());
                add(value.as_bytes());
            }
        }
    }
    Some(key)
}
