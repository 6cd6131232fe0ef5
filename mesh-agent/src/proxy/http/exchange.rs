//! One request: route it, carry out the route's action, finish the response.

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use http::{HeaderValue, Method, StatusCode, Version, header};
use hyper::body::Body as _;

use crate::config::model::access_log::Piece;
use crate::config::model::headers::HeaderMutations;
use crate::config::model::listener::{HttpConnectionManager, RouteSource, ServerHeader};
use crate::config::model::response_flag::ResponseFlag;
use crate::config::model::route::{
    Route, RouteAction, RouteConfiguration, VirtualHost, WeightedCluster,
};
use crate::proxy::stats::{Gauge, ProxyStats, count};
use crate::snapshot::View;

use super::admit::{admit, underscores};
use super::body::{ProxyBody, RequestBody};
use super::filters::{Answered, Call, Steps};
use super::internal_redirect::Again;
use super::limits::StreamLimits;
use super::message::{Reply, Request};
use super::record::{Answering, Live, Record};
use super::reply::{Refusal, for_grpc, is_grpc, local, with_body};
use super::told::Ending;
use super::{Connection, date, headers, local_reply, normal, redirect, router, upgrade};

struct Active(Arc<ProxyStats>);

impl AsRef<AtomicU64> for Active {
    fn as_ref(&self) -> &AtomicU64 {
        &self.0.downstream_rq_active
    }
}

/// Answers a request. Its record ends when the response has been sent.
pub(super) async fn handle(
    connection: &Rc<Connection>,
    request: Request,
    body: RequestBody,
) -> (Reply, Ending) {
    let (mut request, mut body) = (request, body);
    loop {
        let current = connection.current();
        let logs = match &current {
            Some((_, hcm)) => hcm.access_logs.clone(),
            None => connection.first().access_logs.clone(),
        };
        let record = Record::begin(connection, logs, &request, body.progress());
        let mut ending = Ending::new(record);
        let mut reply = answer(connection, current, request, body, ending.record()).await;
        ending.record().responds(&mut reply);
        let Some(again) = reply.again else {
            return (reply, ending);
        };
        ending.followed();
        Again { request, body } = *again;
    }
}

/// A local reply in the form that the configuration gives it.
fn own(mut reply: Reply, hcm: &HttpConnectionManager, record: &Record) -> Reply {
    local_reply::rewrite(&mut reply, hcm, record);
    reply
}

async fn answer(
    connection: &Rc<Connection>,
    current: Option<(Arc<View>, Arc<HttpConnectionManager>)>,
    request: Request,
    body: RequestBody,
    record: &Record,
) -> Reply {
    let stats = &connection.context.shared.stats;
    count(&stats.downstream_rq_total);
    let _active = Gauge::new(Active(stats.clone()));
    let version = request.version;
    let upgrading = upgrade::wanted(&request).is_some();
    let progress = body.progress();
    let Some((view, hcm)) = current else {
        return local(StatusCode::SERVICE_UNAVAILABLE, "");
    };
    let mut reply = respond(connection, &view, &hcm, request, body, record).await;
    if progress.broken() && matches!(reply.body, ProxyBody::Own(_)) {
        // The client's own fault, not the upstream's.
        reply = own(Refusal::MALFORMED.reply(), &hcm, record);
    }
    let class = usize::from(reply.status.as_u16() / 100);
    if let Some(counter) = stats.downstream_rq_xx.get(class) {
        count(counter);
    }
    complete(&mut reply, &hcm);
    if reply.again.is_some() {
        return reply;
    }
    // A client that asked for another protocol may speak it already.
    let refused = upgrading && matches!(reply.body, ProxyBody::Own(_)) && reply.tunnel.is_none();
    if version < Version::HTTP_2 && (connection.ends_after(&hcm, &progress) || refused) {
        let close = HeaderValue::from_static("close");
        reply.headers.insert(header::CONNECTION, close);
    }
    reply
}

/// The answer to what is no request.
pub(super) fn refused(
    connection: &Rc<Connection>,
    refusal: Refusal,
    version: Version,
) -> (Reply, Ending) {
    let stats = &connection.context.shared.stats;
    count(&stats.downstream_rq_total);
    count(&stats.downstream_rq_xx[4]);
    let ending = Ending::new(Record::unread(connection, version));
    let mut reply = refusal.reply();
    // Its flag is set when all is over.
    let flags = std::mem::take(&mut reply.why.flags);
    local_reply::rewrite(&mut reply, connection.first(), ending.record());
    reply.why.flags = flags;
    complete(&mut reply, connection.first());
    ending.record().responds(&mut reply);
    (reply, ending)
}

/// Headers every response gets.
fn complete(reply: &mut Reply, hcm: &HttpConnectionManager) {
    let headers = &mut reply.headers;
    if let Some(via) = &hcm.via {
        headers::append_list(headers, header::VIA, via);
    }
    let keep = match hcm.server_header {
        ServerHeader::Overwrite => false,
        ServerHeader::AppendIfAbsent => headers.contains_key(header::SERVER),
        ServerHeader::PassThrough => true,
    };
    if !keep && let Ok(name) = HeaderValue::from_str(&hcm.server_name) {
        headers.insert(header::SERVER, name);
    }
    if !headers.contains_key(header::DATE) {
        headers.insert(header::DATE, date::now());
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
    pub(super) random: u64,
    /// Whose request it is, as trusted proxies say.
    pub(super) remote: IpAddr,
    pub(super) record: &'a Record,
    pub(super) limits: StreamLimits,
}

async fn respond(
    connection: &Rc<Connection>,
    view: &Arc<View>,
    hcm: &Arc<HttpConnectionManager>,
    mut request: Request,
    body: RequestBody,
    record: &Record,
) -> Reply {
    if let Err(refusal) = underscores(&mut request.headers, hcm) {
        let mut reply = refusal.reply();
        local_reply::rewrite(&mut reply, hcm, record);
        if request.version < Version::HTTP_2 {
            let close = HeaderValue::from_static("close");
            reply.headers.insert(header::CONNECTION, close);
        }
        return reply;
    }
    let (mut grpc, version) = (is_grpc(&request.headers), request.version);
    let mut reply = match normal::look(&request.path, hcm) {
        // A gRPC client follows no redirect.
        normal::Verdict::Redirect(path) if !grpc => {
            request.path = path.clone();
            record.keep(&request);
            own(redirect::to_path(&path), hcm, record)
        }
        verdict @ (normal::Verdict::Redirect(_) | normal::Verdict::Reject) => {
            if let normal::Verdict::Redirect(path) = verdict {
                request.path = path;
            }
            record.keep(&request);
            let reply = local(StatusCode::BAD_REQUEST, "").because("path_normalization_failed");
            own(reply, hcm, record)
        }
        verdict => {
            if let normal::Verdict::Use(path) = verdict {
                request.path = path;
            }
            let remote = match &request.redirects {
                // Everything was done to it that is done to a client's.
                Some(redirects) => redirects.remote,
                None => admit(&mut request, hcm, connection),
            };
            record.remote(remote);
            record.keep(&request);
            grpc = is_grpc(&request.headers);
            let place = Place {
                connection,
                view,
                hcm,
                record,
                remote,
            };
            routed(place, request, body).await
        }
    };
    if matches!(reply.body, ProxyBody::Own(_)) {
        // Envoy: who sent one broken request is not trusted with another.
        if reply.status == StatusCode::BAD_REQUEST && version < Version::HTTP_2 {
            let close = HeaderValue::from_static("close");
            reply.headers.insert(header::CONNECTION, close);
        }
        if grpc {
            for_grpc(&mut reply);
        }
    }
    reply
}

/// Where a request is routed.
#[derive(Clone, Copy)]
struct Place<'a> {
    connection: &'a Rc<Connection>,
    view: &'a Arc<View>,
    hcm: &'a Arc<HttpConnectionManager>,
    record: &'a Record,
    remote: IpAddr,
}

async fn routed(place: Place<'_>, mut request: Request, mut body: RequestBody) -> Reply {
    let Place {
        connection,
        view,
        hcm,
        record,
        remote,
    } = place;
    let stats = &connection.context.shared.stats;
    let routes = match &hcm.routes {
        RouteSource::Inline(routes) => Some(routes),
        RouteSource::Rds(name) => view.routes.get(name),
    };
    let random = fastrand::u64(..);
    // `*` names the server itself, which no route stands for.
    let routes = routes.filter(|_| request.path.path() != "*");
    let mut matched = routes.and_then(|routes| {
        let request = &request;
        let view = router::View {
            request,
            random,
            peer: connection.peer(),
        };
        let (host, route) = router::route(routes, &view)?;
        Some((&**host, &**route))
    });
    if let Some((_, route)) = matched {
        record.routed(&route.name);
    }
    let forward = matched.and_then(|(_, route)| match &route.action {
        RouteAction::Forward(forward) => Some(&**forward),
        _ => None,
    });
    if matched.is_some()
        && let Some(wanted) = upgrade::wanted(&request)
        // A stream of HTTP/2 carries requests only.
        && (request.version >= Version::HTTP_2 || !upgrade::allowed(wanted, hcm, forward))
    {
        let reply = local(StatusCode::FORBIDDEN, "").because("upgrade_failed");
        return own(reply, hcm, record);
    }
    let limits = StreamLimits::new(hcm, &body.progress());
    let mut steps = Steps::default();
    let mut answered = None;
    if !hcm.http_filters.is_empty() {
        let call = Call {
            connection,
            view,
            hcm,
            routes: routes.map(|routes| &**routes),
            matched: Cell::new(matched),
            random,
            remote,
            record,
        };
        let filtering = Box::pin(call.run(&mut request, &mut body, &mut steps));
        let ran = limits.hold(filtering).await;
        matched = call.matched.get();
        record.keep(&request);
        match ran {
            Ok(Ok(())) => {}
            Ok(Err(Answered::Local(reply))) => answered = Some(*reply),
            Ok(Err(Answered::Whole(reply))) => return steps.finish(*reply),
            Err(cut) => answered = Some(limits.reply(cut)),
        }
    }
    let (Some(routes), Some((host, route))) = (routes, matched) else {
        let reply = answered.unwrap_or_else(|| {
            count(&stats.no_route);
            local(StatusCode::NOT_FOUND, "")
                .because("route_not_found")
                .flagged(ResponseFlag::NoRouteFound)
        });
        return steps.finish(own(reply, hcm, record));
    };
    let exchange = Exchange {
        connection,
        view,
        hcm,
        routes,
        host,
        route,
        random,
        remote,
        record,
        limits,
    };
    if let Some(reply) = answered {
        if let RouteAction::Forward(forward) = &route.action
            && let Some(cluster) = view.clusters.get(exchange.cluster_of(forward, &request).0)
        {
            record.cluster(cluster);
        }
        let reply = exchange.finish(reply, &request, None);
        return steps.finish(own(reply, hcm, record));
    }
    let reply = match &route.action {
        RouteAction::Forward(forward) => exchange.forward(forward, request, body).await,
        RouteAction::Redirect(redirect) => {
            let text = |pieces: &[Piece]| exchange.text_of(pieces, &request, true);
            let reply = redirect::reply(redirect, &route.matcher.path, &request, text);
            exchange.finish(reply, &request, None)
        }
        RouteAction::DirectResponse(direct) => {
            let mut reply =
                with_body(direct.status, direct.body.clone()).because("direct_response");
            if direct.status == StatusCode::CREATED || direct.status.is_redirection() {
                redirect::locate(&mut reply, &request);
            }
            exchange.finish(reply, &request, None)
        }
        RouteAction::ToHttps => redirect::to_https(&request),
    };
    steps.finish(own(reply, hcm, record))
}

impl Exchange<'_> {
    /// Request mutations, at every level.
    pub(super) fn mutate_request(&self, request: &mut Request, weighted: Option<&WeightedCluster>) {
        let levels = self.levels(
            weighted.map(|weighted| &weighted.request_headers),
            &self.route.request_headers,
            &self.host.request_headers,
            &self.routes.request_headers,
        );
        let Some(levels) = levels else {
            return;
        };
        let mut headers = std::mem::take(&mut request.headers);
        let asked = &*request;
        for level in levels.into_iter().flatten() {
            headers::mutate(&mut headers, level, |headers, pieces| {
                let live = Live {
                    request: asked.head(headers),
                    metadata: &asked.metadata,
                    response: None,
                };
                self.record.value(pieces, &live, true)
            });
        }
        request.headers = headers;
    }

    /// A text of the configuration, computed from the request as it is now. `omit_empty`: what
    /// has no value is left out instead of written as `-`.
    pub(super) fn text_of(&self, pieces: &[Piece], request: &Request, omit_empty: bool) -> Vec<u8> {
        let live = Live {
            request: request.head(&request.headers),
            metadata: &request.metadata,
            response: None,
        };
        self.record.value(pieces, &live, omit_empty)
    }

    /// Response mutations, at every level. `asked` is the request as it was last.
    pub(super) fn finish(
        &self,
        mut reply: Reply,
        asked: &Request,
        weighted: Option<&WeightedCluster>,
    ) -> Reply {
        let levels = self.levels(
            weighted.map(|weighted| &weighted.response_headers),
            &self.route.response_headers,
            &self.host.response_headers,
            &self.routes.response_headers,
        );
        if let Some(levels) = levels {
            let (status, why) = (reply.status, &reply.why);
            for level in levels.into_iter().flatten() {
                headers::mutate(&mut reply.headers, level, |headers, pieces| {
                    let live = Live {
                        request: asked.head(&asked.headers),
                        metadata: &asked.metadata,
                        response: Some(Answering {
                            status,
                            headers,
                            why,
                        }),
                    };
                    self.record.value(pieces, &live, true)
                });
            }
        }
        if self.hcm.always_set_request_id_in_response
            && let Some(id) = asked.headers.get(headers::REQUEST_ID)
        {
            reply.headers.insert(headers::REQUEST_ID, id.clone());
        }
        reply
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
pub(super) fn announces_empty_body(request: &Request, body: &RequestBody) -> bool {
    body.is_end_stream()
        && !request.headers.contains_key(header::CONTENT_LENGTH)
        && !matches!(
            request.method,
            Method::GET | Method::HEAD | Method::DELETE | Method::TRACE | Method::CONNECT
        )
}
