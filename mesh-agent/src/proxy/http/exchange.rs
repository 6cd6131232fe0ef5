//! One request: route it, carry out the route's action, finish the response.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use http::uri::PathAndQuery;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header, request,
};
use hyper::body::{Body as _, Incoming};

use crate::config::model::headers::HeaderMutations;
use crate::config::model::listener::{HttpConnectionManager, RouteSource, ServerHeader};
use crate::config::model::route::{
    Route, RouteAction, RouteConfiguration, VirtualHost, WeightedCluster,
};
use crate::proxy::stats::{Gauge, ProxyStats, count};
use crate::snapshot::View;

use super::admit::admit;
use super::body::{Progress, ProxyBody, RequestBody};
use super::headers::{Facts, Side};
use super::reply::{for_grpc, is_grpc, local, with_body};
use super::{Connection, headers, redirect, router};

struct Active(Arc<ProxyStats>);

impl AsRef<AtomicU64> for Active {
    fn as_ref(&self) -> &AtomicU64 {
        &self.0.downstream_rq_active
    }
}

/// Answers a request.
pub(super) async fn handle(
    connection: &Rc<Connection>,
    request: Request<Incoming>,
) -> Response<ProxyBody> {
    let stats = &connection.context.shared.stats;
    count(&stats.downstream_rq_total);
    let _active = Gauge::new(Active(stats.clone()));
    let version = request.version();
    let Some((view, hcm)) = connection.current() else {
        return local(StatusCode::SERVICE_UNAVAILABLE, "");
    };
    let (parts, body) = request.into_parts();
    let body = RequestBody::new(body);
    let progress = body.progress();
    let mut response = respond(connection, &view, &hcm, parts, body).await;
    let class = usize::from(response.status().as_u16() / 100);
    if let Some(counter) = stats.downstream_rq_xx.get(class) {
        count(counter);
    }
    complete(&mut response, connection, &hcm, version, &progress);
    response
}

/// Headers every response gets.
fn complete(
    response: &mut Response<ProxyBody>,
    connection: &Connection,
    hcm: &HttpConnectionManager,
    version: Version,
    progress: &Progress,
) {
    // Only a response without a body leaves its length to be guessed.
    let own_and_empty = matches!(response.body(), ProxyBody::Own(None));
    let headers = response.headers_mut();
    let keep = match hcm.server_header {
        ServerHeader::Overwrite => false,
        ServerHeader::AppendIfAbsent => headers.contains_key(header::SERVER),
        ServerHeader::PassThrough => true,
    };
    if !keep && let Ok(name) = HeaderValue::from_str(&hcm.server_name) {
        headers.insert(header::SERVER, name);
    }
    if version >= Version::HTTP_2 {
        return;
    }
    if own_and_empty && !headers.contains_key(header::CONTENT_LENGTH) {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    // What is left of the request would have to be read before the next one.
    if connection.draining() || !progress.ended() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
}

/// What a request carries from routing to the response.
pub(super) struct Exchange<'a> {
    pub(super) connection: &'a Rc<Connection>,
    pub(super) view: &'a Arc<View>,
    pub(super) hcm: &'a HttpConnectionManager,
    pub(super) routes: &'a RouteConfiguration,
    pub(super) host: &'a VirtualHost,
    pub(super) route: &'a Route,
    pub(super) authority: HeaderValue,
    pub(super) random: u64,
}

async fn respond(
    connection: &Rc<Connection>,
    view: &Arc<View>,
    hcm: &HttpConnectionManager,
    mut parts: request::Parts,
    body: RequestBody,
) -> Response<ProxyBody> {
    let authority = match admit(&mut parts, hcm, connection) {
        Ok(authority) => authority,
        Err(refusal) => return refusal.reply(),
    };
    let grpc = is_grpc(&parts.headers);
    let mut response = routed(connection, view, hcm, authority, parts, body).await;
    if grpc && matches!(response.body(), ProxyBody::Own(_)) {
        for_grpc(&mut response);
    }
    response
}

async fn routed(
    connection: &Rc<Connection>,
    view: &Arc<View>,
    hcm: &HttpConnectionManager,
    authority: HeaderValue,
    parts: request::Parts,
    body: RequestBody,
) -> Response<ProxyBody> {
    let stats = &connection.context.shared.stats;
    let routes = match &hcm.routes {
        RouteSource::Inline(routes) => Some(routes),
        RouteSource::Rds(name) => view.routes.get(name),
    };
    let random = fastrand::u64(..);
    // `*` names the server itself, which no route stands for.
    let routes = routes.filter(|_| parts.uri.path() != "*");
    let matched = routes.and_then(|routes| {
        let request = router::View {
            parts: &parts,
            authority: text(&authority),
            random,
        };
        Some((routes, router::route(routes, &request)?))
    });
    let Some((routes, (host, route))) = matched else {
        count(&stats.no_route);
        return local(StatusCode::NOT_FOUND, "");
    };
    let exchange = Exchange {
        connection,
        view,
        hcm,
        routes,
        host,
        route,
        authority,
        random,
    };
    match &route.action {
        RouteAction::Forward(forward) => exchange.forward(forward, parts, body).await,
        RouteAction::Redirect(redirect) => {
            let authority = text(&exchange.authority);
            let response = redirect::response(redirect, &route.matcher.path, authority, &parts);
            exchange.finish(response, &Asked::of(&parts), None, "", None)
        }
        RouteAction::DirectResponse(direct) => {
            let response = with_body(direct.status, direct.body.clone());
            exchange.finish(response, &Asked::of(&parts), None, "", None)
        }
    }
}

/// What the response's headers may be made of, as the client asked it.
pub(super) struct Asked {
    method: Method,
    path: PathAndQuery,
    version: Version,
    headers: HeaderMap,
}

impl Asked {
    pub(super) fn of(parts: &request::Parts) -> Self {
        Self {
            method: parts.method.clone(),
            path: path(parts).clone(),
            version: parts.version,
            headers: parts.headers.clone(),
        }
    }
}

static ROOT: std::sync::LazyLock<PathAndQuery> =
    std::sync::LazyLock::new(|| PathAndQuery::from_static("/"));

/// Path and query; CONNECT has none.
pub(super) fn path(parts: &request::Parts) -> &PathAndQuery {
    parts.uri.path_and_query().unwrap_or(&ROOT)
}

/// A header's text; one that is not ASCII is as if it were empty.
pub(super) fn text(value: &HeaderValue) -> &str {
    value.to_str().unwrap_or_default()
}

impl Exchange<'_> {
    /// Request mutations, at every level.
    pub(super) fn mutate_request(
        &self,
        parts: &mut request::Parts,
        weighted: Option<&WeightedCluster>,
        cluster: &str,
    ) {
        let levels = self.levels(
            weighted.map(|weighted| &weighted.request_headers),
            &self.route.request_headers,
            &self.host.request_headers,
            &self.routes.request_headers,
        );
        let Some(levels) = levels else {
            return;
        };
        let path = path(parts).clone();
        let facts = Facts {
            peer: self.connection.caught.peer,
            local: self.connection.caught.destination,
            method: &parts.method,
            path: path.as_str(),
            authority: text(&self.authority),
            version: parts.version,
            route: &self.route.name,
            cluster,
            upstream: None,
        };
        for level in levels.into_iter().flatten() {
            headers::mutate(&mut parts.headers, level, &facts, Side::Request);
        }
    }

    /// Response mutations, at every level.
    pub(super) fn finish(
        &self,
        mut response: Response<ProxyBody>,
        asked: &Asked,
        weighted: Option<&WeightedCluster>,
        cluster: &str,
        upstream: Option<std::net::SocketAddr>,
    ) -> Response<ProxyBody> {
        let levels = self.levels(
            weighted.map(|weighted| &weighted.response_headers),
            &self.route.response_headers,
            &self.host.response_headers,
            &self.routes.response_headers,
        );
        if let Some(levels) = levels {
            let facts = Facts {
                peer: self.connection.caught.peer,
                local: self.connection.caught.destination,
                method: &asked.method,
                path: asked.path.as_str(),
                authority: text(&self.authority),
                version: asked.version,
                route: &self.route.name,
                cluster,
                upstream,
            };
            let side = Side::Response {
                request: &asked.headers,
                status: response.status(),
            };
            for level in levels.into_iter().flatten() {
                headers::mutate(response.headers_mut(), level, &facts, side);
            }
        }
        if self.hcm.always_set_request_id_in_response
            && let Some(id) = asked.headers.get(headers::REQUEST_ID)
        {
            response
                .headers_mut()
                .insert(headers::REQUEST_ID, id.clone());
        }
        response
    }

    /// Whether [`Self::finish`] will look at the request.
    pub(super) fn response_needs_request(&self, weighted: Option<&WeightedCluster>) -> bool {
        self.hcm.always_set_request_id_in_response
            || weighted.is_some_and(|weighted| !weighted.response_headers.is_empty())
            || !self.route.response_headers.is_empty()
            || !self.host.response_headers.is_empty()
            || !self.routes.response_headers.is_empty()
    }

    /// Most specific first, unless the most specific is to win and therefore comes last; a
    /// weighted cluster's come before either way. `None`: nothing is configured at any level.
    fn levels<'l>(
        &self,
        weighted: Option<&'l HeaderMutations>,
        route: &'l HeaderMutations,
        host: &'l HeaderMutations,
        all: &'l HeaderMutations,
    ) -> Option<[Option<&'l HeaderMutations>; 4]> {
        let mut levels = [weighted, Some(route), Some(host), Some(all)];
        if levels.iter().flatten().all(|level| level.is_empty()) {
            return None;
        }
        if self.routes.most_specific_header_mutations_wins {
            levels[1..].reverse();
        }
        Some(levels)
    }
}

/// Whether a request without a body says so by `content-length: 0`
/// (Envoy: `HeaderUtility::requestShouldHaveNoBody`).
pub(super) fn announces_empty_body(parts: &request::Parts, body: &RequestBody) -> bool {
    body.is_end_stream()
        && !parts.headers.contains_key(header::CONTENT_LENGTH)
        && !matches!(
            parts.method,
            Method::GET | Method::HEAD | Method::DELETE | Method::TRACE | Method::CONNECT
        )
}
