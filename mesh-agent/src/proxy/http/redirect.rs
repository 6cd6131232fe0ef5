//! Redirects.

use http::uri::PathAndQuery;
use http::{HeaderValue, Response, header, request};

use crate::config::model::route::{PathMatcher, Redirect, RedirectPath, without_port};

use super::body::ProxyBody;
use super::reply::local;
use super::rewrite;

/// The answer that sends the client elsewhere.
pub(super) fn response(
    redirect: &Redirect,
    matcher: &PathMatcher,
    authority: &str,
    parts: &request::Parts,
) -> Response<ProxyBody> {
    let mut response = local(redirect.status, "");
    if let Ok(location) = HeaderValue::try_from(location(redirect, matcher, authority, parts)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn location(
    redirect: &Redirect,
    matcher: &PathMatcher,
    authority: &str,
    parts: &request::Parts,
) -> String {
    let path = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let (bare, query) = match path.split_once('?') {
        Some((bare, query)) => (bare, Some(query)),
        None => (path, None),
    };
    let new = match &redirect.path {
        RedirectPath::Keep => bare.to_owned(),
        RedirectPath::Replace(new) => new.to_string(),
        RedirectPath::Prefix(prefix) => {
            rewrite::prefix(bare, matcher, prefix).unwrap_or_else(|| bare.into())
        }
        RedirectPath::Regex(regex) => rewrite::regex(bare, regex),
    };
    // Plain text: what TLS wraps is told by the transport, which there is none of yet.
    let old_scheme = "http";
    let scheme = redirect.scheme.as_deref().unwrap_or(old_scheme);
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
