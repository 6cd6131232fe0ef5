//! Which route takes a request.

use std::sync::{Arc, LazyLock};

use http::{HeaderMap, HeaderName, Method, StatusCode};

use super::headers;
use super::message::{Request, text};
use super::reply::is_grpc;
use crate::config::model::matcher::{HeaderKey, HeaderMatcher, QueryCondition, QueryMatcher};
use crate::config::model::route::{
    CookieMatcher, PathMatcher, RequireTls, Route, RouteAction, RouteConfiguration, RouteMatch,
    VirtualHost,
};
use crate::proxy::tls::Peer;

/// A request as the matchers see it.
pub(super) struct View<'a> {
    pub(super) request: &'a Request,
    pub(super) random: u64,
    /// Who is at the other end.
    pub(super) peer: &'a Peer,
}

/// A route and its virtual host.
pub(super) type Matched<'a> = (&'a Arc<VirtualHost>, &'a Arc<Route>);

/// The first matching route of the virtual host for the request's authority.
pub(super) fn route<'a>(routes: &'a RouteConfiguration, request: &View<'_>) -> Option<Matched<'a>> {
    let host = routes.virtual_host(text(&request.request.authority))?;
    if host.require_tls != RequireTls::None
        && let Some(answer) = plaintext(host.require_tls, request.request)
    {
        return answer;
    }
    let route = host
        .routes
        .iter()
        .find(|route| matches(&route.matcher, request))?;
    Some((host, route))
}

/// What becomes of a plain request to a host that wants encrypted ones; `None`: it is fine
/// (Envoy: `VirtualHostImpl::getRouteFromEntries`).
fn plaintext(wanted: RequireTls, request: &Request) -> Option<Option<Matched<'static>>> {
    static TO_HTTPS: LazyLock<(Arc<VirtualHost>, Arc<Route>)> = LazyLock::new(|| {
        (
            Arc::new(VirtualHost::named("https")),
            Arc::new(Route::plain(RouteAction::ToHttps)),
        )
    });
    let said = |name: HeaderName| request.headers.get(name).map_or("", text);
    let proto = said(headers::FORWARDED_PROTO);
    if proto.is_empty() {
        // Nobody knows how it came.
        return Some(None);
    }
    let internal = || said(headers::INTERNAL_REQUEST) == "true";
    let refused = proto != "https" && (wanted == RequireTls::All || !internal());
    refused.then(|| Some((&TO_HTTPS.0, &TO_HTTPS.1)))
}

/// Whether everything holds.
pub(super) fn matches(matcher: &RouteMatch, request: &View<'_>) -> bool {
    path_matches(matcher, request)
        && matcher
            .headers
            .iter()
            .all(|header| header_matches(header, request.request))
        && (matcher.query.is_empty() || query_matches(&matcher.query, request.request))
        && (!matcher.grpc || is_grpc(&request.request.headers))
        && matcher
            .cookies
            .iter()
            .all(|cookie| cookie_matches(cookie, request.request))
        && matcher
            .certificate
            .is_none_or(|wanted| shows_certificate(request.peer) == Some(wanted))
        && matcher
            .metadata
            .iter()
            .all(|one| one.matches(request.request.metadata.get(&one.filter)))
        && matcher
            .fraction
            .is_none_or(|fraction| fraction.holds(request.random))
}

/// Whether the client showed a certificate; `None`: there is no TLS to show it in.
fn shows_certificate(peer: &Peer) -> Option<bool> {
    peer.encrypted.then_some(peer.certificate.is_some())
}

fn cookie_matches(matcher: &CookieMatcher, request: &Request) -> bool {
    let value = super::hash::cookie_named(&request.headers, &matcher.name);
    value.is_some_and(|value| matcher.value.matches(value)) != matcher.invert
}

fn path_matches(matcher: &RouteMatch, request: &View<'_>) -> bool {
    let path = request.request.path.path();
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
    if request.request.method == Method::CONNECT {
        return matches!(matcher.path, PathMatcher::Connect);
    }
    match &matcher.path {
        PathMatcher::Prefix(prefix) => starts(prefix),
        PathMatcher::Exact(exact) => equal(path, exact),
        PathMatcher::PathSeparatedPrefix(prefix) => {
            starts(prefix) && matches!(path.as_bytes().get(prefix.len()), None | Some(b'/'))
        }
        PathMatcher::Regex(regex) => regex.is_full_match(path.as_bytes()),
        PathMatcher::Template(template) => template.matches(path),
        PathMatcher::Connect => false,
    }
}

/// Whether a request's header matches.
pub(super) fn header_matches(matcher: &HeaderMatcher, request: &Request) -> bool {
    let one = |value: &str| matcher.matches(std::iter::once(value.into()));
    match &matcher.name {
        HeaderKey::Method => one(request.method.as_str()),
        HeaderKey::Path => one(request.path.as_str()),
        HeaderKey::Authority => one(text(&request.authority)),
        HeaderKey::Scheme => one(request.scheme),
        HeaderKey::Status => matcher.matches(std::iter::empty()),
        HeaderKey::Header(name) => {
            let values = request.headers.get_all(name).iter();
            matcher.matches(values.map(|value| String::from_utf8_lossy(value.as_bytes())))
        }
    }
}

/// As [`header_matches`], for a response.
pub(super) fn response_header_matches(
    matcher: &HeaderMatcher,
    headers: &HeaderMap,
    status: StatusCode,
) -> bool {
    match &matcher.name {
        HeaderKey::Status => matcher.matches(std::iter::once(status.as_str().to_owned().into())),
        HeaderKey::Header(name) => {
            let values = headers.get_all(name).iter();
            matcher.matches(values.map(|value| String::from_utf8_lossy(value.as_bytes())))
        }
        _ => matcher.matches(std::iter::empty()),
    }
}

/// Whether all hold.
pub(super) fn query_matches(matchers: &[QueryMatcher], request: &Request) -> bool {
    let query = request.path.query().unwrap_or_default();
    matchers.iter().all(|matcher| {
        let value = query.split('&').find_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name == &*matcher.name).then_some(value)
        });
        match &matcher.condition {
            QueryCondition::Present(wanted) => value.is_some() == *wanted,
            QueryCondition::Value(wanted) => value.is_some_and(|value| wanted.matches(value)),
        }
    })
}
