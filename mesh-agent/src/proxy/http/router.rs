//! Which route takes a request.

use std::borrow::Cow;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, Method};

use crate::config::model::matcher::{HeaderCondition, HeaderKey, HeaderMatcher, QueryMatcher};
use crate::config::model::route::{
    PathMatcher, Route, RouteConfiguration, RouteMatch, VirtualHost,
};

/// A request as the matchers see it.
pub(super) struct View<'a> {
    pub(super) parts: &'a Parts,
    pub(super) authority: &'a str,
    pub(super) random: u64,
}

/// A route and its virtual host.
pub(super) type Matched<'a> = (&'a Arc<VirtualHost>, &'a Arc<Route>);

/// The first matching route of the virtual host for the request's authority.
pub(super) fn route<'a>(routes: &'a RouteConfiguration, request: &View<'_>) -> Option<Matched<'a>> {
    let host = routes.virtual_host(request.authority)?;
    let route = host
        .routes
        .iter()
        .find(|route| matches(&route.matcher, request))?;
    Some((host, route))
}

fn matches(matcher: &RouteMatch, request: &View<'_>) -> bool {
    path_matches(matcher, request)
        && matcher
            .headers
            .iter()
            .all(|header| header_matches(header, request))
        && (matcher.query.is_empty() || query_matches(&matcher.query, request))
        && (!matcher.grpc || is_grpc(&request.parts.headers))
        && matcher
            .fraction
            .is_none_or(|fraction| fraction.holds(request.random))
}

fn path_matches(matcher: &RouteMatch, request: &View<'_>) -> bool {
    let path = request.parts.uri.path();
    let equal = |a: &str, b: &str| {
        if matcher.case_sensitive {
            a == b
        } else {
            a.eq_ignore_ascii_case(b)
        }
    };
    let starts = |prefix: &str| {
        path.get(..prefix.len())
            .is_some_and(|start| equal(start, prefix))
    };
    // Only a connect_matcher takes CONNECT: its request has no path.
    if request.parts.method == Method::CONNECT {
        return matches!(matcher.path, PathMatcher::Connect);
    }
    match &matcher.path {
        PathMatcher::Prefix(prefix) => starts(prefix),
        PathMatcher::Exact(exact) => equal(path, exact),
        PathMatcher::PathSeparatedPrefix(prefix) => {
            starts(prefix) && matches!(path.as_bytes().get(prefix.len()), None | Some(b'/'))
        }
        PathMatcher::Regex(regex) => regex.is_full_match(path.as_bytes()),
        PathMatcher::Connect => false,
    }
}

fn header_matches(matcher: &HeaderMatcher, request: &View<'_>) -> bool {
    let value = header_value(&matcher.name, request);
    let matched = match (&matcher.condition, value) {
        (HeaderCondition::Present(present), value) => {
            let there = value.is_some() || matcher.treat_missing_as_empty;
            return (there == *present) != matcher.invert;
        }
        // A missing header never matches a value, inverted or not.
        (_, None) if !matcher.treat_missing_as_empty => return false,
        (HeaderCondition::Value(text), value) => text.matches(value.as_deref().unwrap_or_default()),
        (HeaderCondition::Range { start, end }, value) => value
            .and_then(|value| value.parse::<i64>().ok())
            .is_some_and(|number| (*start..*end).contains(&number)),
    };
    matched != matcher.invert
}

/// A header's value; several are joined by a comma.
fn header_value<'a>(key: &HeaderKey, request: &'a View<'_>) -> Option<Cow<'a, str>> {
    let parts = request.parts;
    Some(match key {
        HeaderKey::Method => Cow::Borrowed(parts.method.as_str()),
        HeaderKey::Path => {
            Cow::Borrowed(parts.uri.path_and_query().map_or("/", |path| path.as_str()))
        }
        HeaderKey::Authority => Cow::Borrowed(request.authority),
        HeaderKey::Scheme => Cow::Borrowed(parts.uri.scheme_str().unwrap_or("http")),
        HeaderKey::Header(name) => {
            let mut values = parts.headers.get_all(name).iter();
            let first = String::from_utf8_lossy(values.next()?.as_bytes());
            let Some(second) = values.next() else {
                return Some(first);
            };
            let mut joined = first.into_owned();
            for value in std::iter::once(second).chain(values) {
                joined.push(',');
                joined.push_str(&String::from_utf8_lossy(value.as_bytes()));
            }
            Cow::Owned(joined)
        }
    })
}

fn query_matches(matchers: &[QueryMatcher], request: &View<'_>) -> bool {
    let query = request.parts.uri.query().unwrap_or_default();
    matchers.iter().all(|matcher| {
        let value = query.split('&').find_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name == &*matcher.name).then_some(value)
        });
        match (&matcher.value, value) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(wanted), Some(value)) => wanted.matches(value),
        }
    })
}

/// `application/grpc`, alone or with a subtype or parameters.
fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}
