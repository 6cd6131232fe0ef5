//! Redirects.

use http::{HeaderValue, StatusCode, header};

use crate::config::model::access_log::Piece;
use crate::config::model::route::{PathMatcher, Redirect, RedirectPath, without_port};

use super::message::{Path, Reply, Request, text};
use super::reply::local;
use super::rewrite;

/// The answer that sends the client elsewhere.
pub(super) fn reply(
    redirect: &Redirect,
    matcher: &PathMatcher,
    request: &Request,
    text_of: impl Fn(&[Piece]) -> Vec<u8>,
) -> Reply {
    let mut reply = local(redirect.status, "").because("direct_response");
    if let Ok(location) = HeaderValue::try_from(location(redirect, matcher, request, text_of)) {
        reply.headers.insert(header::LOCATION, location);
    }
    reply
}

/// Says where the request itself went, as Envoy does in direct responses of 201 and 3xx.
pub(super) fn locate(reply: &mut Reply, request: &Request) {
    let (scheme, authority) = (request.scheme, text(&request.authority));
    let uri = format!("{scheme}://{authority}{}", request.path.as_str());
    if let Ok(location) = HeaderValue::try_from(uri) {
        reply.headers.insert(header::LOCATION, location);
    }
}

/// The answer that sends the client to another path of the same host.
pub(super) fn to_path(path: &Path) -> Reply {
    let mut reply = local(StatusCode::TEMPORARY_REDIRECT, "").because("path_normalization_failed");
    if let Some(location) = path.to_value() {
        reply.headers.insert(header::LOCATION, location);
    }
    reply
}

/// The answer to a plain request where encrypted ones are wanted
/// (Envoy: `Utility::createSslRedirectPath`).
pub(super) fn to_https(request: &Request) -> Reply {
    let mut reply = local(StatusCode::MOVED_PERMANENTLY, "").because("direct_response");
    let uri = format!(
        "https://{}{}",
        text(&request.authority),
        request.path.as_str()
    );
    if let Ok(location) = HeaderValue::try_from(uri) {
        reply.headers.insert(header::LOCATION, location);
    }
    reply
}

fn location(
    redirect: &Redirect,
    matcher: &PathMatcher,
    request: &Request,
    text_of: impl Fn(&[Piece]) -> Vec<u8>,
) -> String {
    let authority = text(&request.authority);
    let (bare, query) = (request.path.path(), request.path.query());
    let new = match &redirect.path {
        RedirectPath::Keep => bare.to_owned(),
        RedirectPath::Replace(new) => new.to_string(),
        RedirectPath::Prefix(prefix) => {
            rewrite::prefix(bare, matcher, prefix).unwrap_or_else(|| bare.into())
        }
        RedirectPath::Regex(regex) => rewrite::regex(bare, regex),
        RedirectPath::Format(pieces) => match String::from_utf8(text_of(pieces)) {
            Ok(new) if !new.is_empty() => new,
            _ => bare.to_owned(),
        },
    };
    let scheme = redirect.scheme.as_deref().unwrap_or(request.scheme);
    let host = match (&redirect.host, redirect.port) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_string(),
        (None, Some(port)) => format!("{}:{port}", without_port(authority)),
        (None, None) => {
            // The default port of the old scheme would be wrong under the new one.
            match authority.strip_suffix(":80") {
                Some(bare) if scheme == "https" => bare.to_owned(),
                _ => authority.to_owned(),
            }
        }
    };
    let mut location = format!("{scheme}://{host}{new}");
    if let Some(query) = query
        && !redirect.strip_query
        && !new.contains('?')
    {
        location.push('?');
        location.push_str(query);
    }
    location
}
