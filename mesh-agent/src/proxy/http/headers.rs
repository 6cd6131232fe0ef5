//! Headers on their way through: hop-by-hop ones, Envoy's own, and configured mutations.

use std::fmt::Write as _;
use std::net::SocketAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Version, request};

use crate::config::model::headers::{AppendAction, FormatPart, HeaderMutations, HeaderTemplate};

/// `x-request-id`
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// `x-forwarded-proto`
pub(super) const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// `x-forwarded-for`
pub(super) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// `x-forwarded-host`
pub(super) const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// `x-envoy-expected-rq-timeout-ms`
pub(super) const EXPECTED_TIMEOUT: HeaderName =
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
/// `x-envoy-original-path`
pub(super) const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
/// `x-envoy-upstream-service-time`
pub(super) const SERVICE_TIME: HeaderName =
    HeaderName::from_static("x-envoy-upstream-service-time");
/// `x-envoy-attempt-count`
pub(super) const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Removes what is about one connection only, what `connection` lists included (RFC 9110, 7.6.1).
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if let Some(listed) = headers.remove(header::CONNECTION)
        && let Ok(listed) = listed.to_str()
    {
        for name in listed.split(',').map(str::trim) {
            // `te: trailers` is asked for end to end by gRPC.
            if !name.eq_ignore_ascii_case("te") {
                headers.remove(name);
            }
        }
    }
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ] {
        headers.remove(name);
    }
    if headers.get(header::TE).is_some_and(|te| te != "trailers") {
        headers.remove(header::TE);
    }
}

/// What format strings may refer to.
pub(super) struct Facts<'a> {
    pub(super) peer: SocketAddr,
    pub(super) local: SocketAddr,
    pub(super) request: &'a HeaderMap,
    pub(super) method: &'a http::Method,
    pub(super) path: &'a str,
    pub(super) authority: &'a str,
    pub(super) version: Version,
    pub(super) route: &'a str,
    pub(super) cluster: &'a str,
    pub(super) upstream: Option<SocketAddr>,
    /// Of the response, when there is one.
    pub(super) response: Option<(&'a HeaderMap, http::StatusCode)>,
}

/// Applies one level of mutations.
pub(super) fn mutate(headers: &mut HeaderMap, mutations: &HeaderMutations, facts: &Facts<'_>) {
    for addition in &mutations.add {
        let value = match &addition.value {
            HeaderTemplate::Literal(value) => value.clone(),
            HeaderTemplate::Format(parts) => match HeaderValue::try_from(format(parts, facts)) {
                Ok(value) => value,
                Err(_) => continue,
            },
        };
        if value.is_empty() && !addition.keep_empty_value {
            continue;
        }
        let there = headers.contains_key(&addition.name);
        match addition.append {
            AppendAction::AppendIfExistsOrAdd => {
                headers.append(addition.name.clone(), value);
            }
            AppendAction::AddIfAbsent if there => {}
            AppendAction::OverwriteIfExists if !there => {}
            _ => {
                headers.insert(addition.name.clone(), value);
            }
        }
    }
    for name in &mutations.remove {
        headers.remove(name);
    }
}

fn format(parts: &[FormatPart], facts: &Facts<'_>) -> String {
    let mut text = String::new();
    for part in parts {
        match part {
            FormatPart::Text(literal) => text.push_str(literal),
            FormatPart::Operator {
                name,
                argument,
                max_length,
            } => {
                let start = text.len();
                operator(
                    name,
                    argument.as_deref().unwrap_or_default(),
                    facts,
                    &mut text,
                );
                if let Some(max) = max_length {
                    let mut end = text.len().min(start + max);
                    while !text.is_char_boundary(end) {
                        end -= 1;
                    }
                    text.truncate(end);
                }
            }
        }
    }
    text
}

/// Writes an operator's value. Writing to a string cannot fail.
fn operator(name: &str, argument: &str, facts: &Facts<'_>, out: &mut String) {
    let _ = match name {
        "DOWNSTREAM_REMOTE_ADDRESS" => write!(out, "{}", facts.peer),
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => write!(out, "{}", facts.peer.ip()),
        "DOWNSTREAM_REMOTE_PORT" => write!(out, "{}", facts.peer.port()),
        "DOWNSTREAM_LOCAL_ADDRESS" => write!(out, "{}", facts.local),
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => write!(out, "{}", facts.local.ip()),
        "DOWNSTREAM_LOCAL_PORT" => write!(out, "{}", facts.local.port()),
        "PROTOCOL" => out.write_str(match facts.version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2",
            _ => "HTTP/1.1",
        }),
        "REQ" => {
            let mut names = argument.split('?');
            let value = names.find_map(|name| match name.to_ascii_lowercase().as_str() {
                ":method" => Some(facts.method.as_str()),
                ":path" => Some(facts.path),
                ":authority" => Some(facts.authority),
                name => facts
                    .request
                    .get(name)
                    .and_then(|value| value.to_str().ok()),
            });
            out.write_str(value.unwrap_or_default())
        }
        "RESP" => {
            let value = facts
                .response
                .and_then(|(headers, _)| headers.get(argument));
            out.write_str(
                value
                    .and_then(|value| value.to_str().ok())
                    .unwrap_or_default(),
            )
        }
        "RESPONSE_CODE" => match facts.response {
            Some((_, status)) => write!(out, "{}", status.as_u16()),
            None => Ok(()),
        },
        "ROUTE_NAME" => out.write_str(facts.route),
        "UPSTREAM_CLUSTER" => out.write_str(facts.cluster),
        "UPSTREAM_HOST" | "UPSTREAM_REMOTE_ADDRESS" => match facts.upstream {
            Some(address) => write!(out, "{address}"),
            None => Ok(()),
        },
        "HOSTNAME" => {
            let name = nix::unistd::gethostname().unwrap_or_default();
            out.write_str(&name.to_string_lossy())
        }
        _ => Ok(()),
    };
}

/// A random UUID (version 4).
pub(super) fn request_id() -> HeaderValue {
    let bits = fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    let text = format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    );
    HeaderValue::try_from(text).expect("hexadecimal digits are a header value")
}

/// The authority of a request: of its URI, or its host header.
pub(super) fn authority(parts: &request::Parts) -> String {
    match parts.uri.authority() {
        Some(authority) => authority.as_str().to_owned(),
        None => parts
            .headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok())
            .unwrap_or_default()
            .to_owned(),
    }
}
