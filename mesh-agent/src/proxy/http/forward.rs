//! One request: route it, forward it, answer it.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use crate::config::model::cluster::UpstreamProtocol;
use crate::config::model::headers::HeaderMutations;
use crate::config::model::listener::{HttpConnectionManager, RouteSource, ServerHeader, StripPort};
use crate::config::model::route::{
    ClusterSpecifier, Forward, HostRewrite, PathMatcher, Redirect, RedirectPath, RegexRewrite,
    Route, RouteAction, RouteConfiguration, VirtualHost, WeightedCluster, without_port,
};
use crate::proxy::lb::{self, Target};
use crate::proxy::stats::{Gauge, ProxyStats, count};
use crate::proxy::tcp::{self, Open};
use crate::snapshot::{ClusterView, View};

use super::body::{ProxyBody, Upstream};
use super::pool::{Key, Lease, handshake_http2};
use super::reply::{local, with_body};
use super::{Connection, headers, router};

/// Envoy's texts.
const CONNECT_FAILED: &str = "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure";
const RESET: &str = "upstream connect error or disconnect/reset before headers. reset reason: connection termination";
const OVERFLOW: &str =
    "upstream connect error or disconnect/reset before headers. reset reason: overflow";

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
    let mut response = respond(connection, &view, &hcm, request).await;
    let class = usize::from(response.status().as_u16() / 100);
    if let Some(counter) = stats.downstream_rq_xx.get(class) {
        count(counter);
    }
    let headers = response.headers_mut();
    let keep = match hcm.server_header {
        ServerHeader::Overwrite => false,
        ServerHeader::AppendIfAbsent => headers.contains_key(header::SERVER),
        ServerHeader::PassThrough => true,
    };
    if !keep && let Ok(name) = HeaderValue::from_str(&hcm.server_name) {
        headers.insert(header::SERVER, name);
    }
    if connection.draining() && version < Version::HTTP_2 {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// What a request carries from routing to the response.
struct Exchange<'a> {
    connection: &'a Rc<Connection>,
    view: &'a Arc<View>,
    hcm: &'a HttpConnectionManager,
    routes: &'a RouteConfiguration,
    host: &'a VirtualHost,
    route: &'a Route,
    authority: String,
    random: u64,
}

async fn respond(
    connection: &Rc<Connection>,
    view: &Arc<View>,
    hcm: &HttpConnectionManager,
    request: Request<Incoming>,
) -> Response<ProxyBody> {
    let (mut parts, body) = request.into_parts();
    if let Some(refusal) = refuse(&parts, hcm) {
        return refusal;
    }
    let mut authority = headers::authority(&parts);
    if authority.is_empty() && parts.version == Version::HTTP_10 {
        authority = hcm
            .default_host_for_http_10
            .as_deref()
            .unwrap_or_default()
            .to_owned();
    }
    match hcm.strip_port {
        StripPort::No => {}
        StripPort::Any => authority = without_port(&authority).to_owned(),
        StripPort::Matching => {
            let port = format!(":{}", connection.caught.destination.port());
            if authority.ends_with(&port) {
                authority = without_port(&authority).to_owned();
            }
        }
    }
    prepare(&mut parts, hcm, connection);
    let routes = match &hcm.routes {
        RouteSource::Inline(routes) => Some(routes.clone()),
        RouteSource::Rds(name) => view.routes.get(name).cloned(),
    };
    let stats = &connection.context.shared.stats;
    let random = fastrand::u64(..);
    let Some(routes) = routes else {
        count(&stats.no_route);
        return local(StatusCode::NOT_FOUND, "");
    };
    let matched = router::route(
        &routes,
        &router::View {
            parts: &parts,
            authority: &authority,
            random,
        },
    );
    let Some((host, route)) = matched else {
        count(&stats.no_route);
        return local(StatusCode::NOT_FOUND, "");
    };
    let exchange = Exchange {
        connection,
        view,
        hcm,
        routes: &routes,
        host,
        route,
        authority,
        random,
    };
    match &route.action {
        RouteAction::Forward(forward) => exchange.forward(forward, parts, body).await,
        RouteAction::Redirect(redirect) => exchange.redirect(redirect, &parts),
        RouteAction::DirectResponse(direct) => {
            let response = with_body(direct.status, direct.body.clone());
            exchange.finish(response, &parts, None, "", None)
        }
    }
}

/// What is refused whatever the routes say.
fn refuse(
    parts: &http::request::Parts,
    hcm: &HttpConnectionManager,
) -> Option<Response<ProxyBody>> {
    let close = |status| {
        let mut response = local(status, "");
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
        Some(response)
    };
    if parts.version == Version::HTTP_10 && !hcm.accept_http_10 {
        return close(StatusCode::UPGRADE_REQUIRED);
    }
    let chunked = parts.headers.contains_key(header::TRANSFER_ENCODING);
    // Both lengths at once is how requests are smuggled (RFC 9112, 6.1).
    if chunked && parts.headers.contains_key(header::CONTENT_LENGTH) {
        return close(StatusCode::BAD_REQUEST);
    }
    if parts.version == Version::HTTP_11 && parts.headers.get_all(header::HOST).iter().count() != 1
    {
        return close(StatusCode::BAD_REQUEST);
    }
    None
}

/// Headers every request gets.
fn prepare(parts: &mut http::request::Parts, hcm: &HttpConnectionManager, connection: &Connection) {
    if hcm.generate_request_id && !parts.headers.contains_key(headers::REQUEST_ID) {
        parts
            .headers
            .insert(headers::REQUEST_ID, headers::request_id());
    }
    if !parts.headers.contains_key(headers::FORWARDED_PROTO) {
        parts
            .headers
            .insert(headers::FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if hcm.use_remote_address && !hcm.skip_xff_append {
        let mut value = parts
            .headers
            .remove(headers::FORWARDED_FOR)
            .and_then(|value| value.to_str().map(str::to_owned).ok())
            .unwrap_or_default();
        if !value.is_empty() {
            value.push(',');
        }
        value.push_str(&connection.caught.peer.ip().to_string());
        if let Ok(value) = HeaderValue::try_from(value) {
            parts.headers.insert(headers::FORWARDED_FOR, value);
        }
    }
}

impl Exchange<'_> {
    async fn forward(
        &self,
        forward: &Forward,
        mut parts: http::request::Parts,
        body: Incoming,
    ) -> Response<ProxyBody> {
        let stats = &self.connection.context.shared.stats;
        let (name, weighted) = match &forward.cluster {
            ClusterSpecifier::Cluster(name) => (name.clone(), None),
            ClusterSpecifier::Weighted(weighted) => {
                let picked = weighted.pick(self.random);
                (picked.name.clone(), Some(picked))
            }
            ClusterSpecifier::Header(header) => {
                match parts
                    .headers
                    .get(header)
                    .and_then(|value| value.to_str().ok())
                {
                    Some(name) => (name.into(), None),
                    None => ("".into(), None),
                }
            }
        };
        let Some(cluster) = self.view.clusters.get(&name) else {
            count(&stats.no_cluster);
            let response = local(forward.cluster_not_found_status, "");
            return self.finish(response, &parts, weighted, &name, None);
        };
        let Some(target) = lb::pick(cluster, self.connection.caught.destination) else {
            count(&cluster.state.stats.upstream_cx_none_healthy);
            let response = local(StatusCode::SERVICE_UNAVAILABLE, "no healthy upstream");
            return self.finish(response, &parts, weighted, &name, None);
        };
        let upgrade = self.upgrade(&parts, forward);
        self.rewrite(&mut parts, forward, weighted, &target);
        headers::strip_hop_by_hop(&mut parts.headers);
        if let Some(protocol) = &upgrade {
            parts
                .headers
                .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            parts.headers.insert(header::UPGRADE, protocol.clone());
        }
        if let Some(timeout) = forward.timeout {
            let milliseconds = HeaderValue::from(timeout.as_millis() as u64);
            parts
                .headers
                .insert(headers::EXPECTED_TIMEOUT, milliseconds);
        }
        if self.host.include_request_attempt_count {
            parts
                .headers
                .insert(headers::ATTEMPT_COUNT, HeaderValue::from_static("1"));
        }
        let kept = parts.clone();
        let limit = if upgrade.is_some() {
            None
        } else {
            forward.timeout
        };
        let started = Instant::now();
        let upstream = Some(target.address());
        let sending = self.send(
            cluster,
            &target,
            Request::from_parts(parts, body),
            upgrade.is_some(),
        );
        let sent = match limit {
            Some(limit) => tokio::time::timeout_at(started + limit, Box::pin(sending)).await,
            None => Ok(sending.await),
        };
        let mut response = match sent {
            Ok(Ok(answer)) => self.answer(answer, started, limit),
            Ok(Err(failure)) => {
                if let Target::Host(host) = &target {
                    count(&host.state.rq_error);
                }
                failure.reply()
            }
            Err(_) => {
                count(&cluster.state.stats.upstream_rq_timeout);
                local(StatusCode::GATEWAY_TIMEOUT, "upstream request timeout")
            }
        };
        if self.host.include_attempt_count_in_response {
            response
                .headers_mut()
                .insert(headers::ATTEMPT_COUNT, HeaderValue::from_static("1"));
        }
        let class = usize::from(response.status().as_u16() / 100);
        if let Some(counter) = cluster.state.stats.upstream_rq_xx.get(class) {
            count(counter);
        }
        self.finish(response, &kept, weighted, &name, upstream)
    }

    /// The protocol a request upgrades to, when that is allowed.
    fn upgrade(&self, parts: &http::request::Parts, forward: &Forward) -> Option<HeaderValue> {
        let asked = parts.headers.get(header::UPGRADE)?;
        let wants = parts
            .headers
            .get(header::CONNECTION)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| {
                value
                    .split(',')
                    .any(|v| v.trim().eq_ignore_ascii_case("upgrade"))
            });
        let name = asked.to_str().ok()?.to_ascii_lowercase();
        let allowed = forward
            .upgrades
            .iter()
            .find(|(known, _)| **known == *name)
            .map_or_else(
                || self.hcm.upgrades.iter().any(|known| **known == *name),
                |(_, on)| *on,
            );
        (wants && allowed).then(|| asked.clone())
    }

    fn rewrite(
        &self,
        parts: &mut http::request::Parts,
        forward: &Forward,
        weighted: Option<&WeightedCluster>,
        target: &Target,
    ) {
        let path = parts
            .uri
            .path_and_query()
            .map_or("/", PathAndQuery::as_str)
            .to_owned();
        self.mutate_request(parts, weighted, target, &path);
        let new_path = match (&forward.prefix_rewrite, &forward.regex_rewrite) {
            (Some(prefix), _) => rewrite_prefix(&path, &self.route.matcher.path, prefix),
            (None, Some(rewrite)) => rewrite_regex(&path, rewrite),
            (None, None) => None,
        };
        if new_path.is_some()
            && let Ok(original) = HeaderValue::from_str(&path)
        {
            parts.headers.insert(headers::ORIGINAL_PATH, original);
        }
        let literal = weighted.and_then(|weighted| weighted.host_rewrite.as_deref());
        let new_host = match (&forward.host_rewrite, literal) {
            (_, Some(host)) => Some(host.to_owned()),
            (HostRewrite::Keep, None) => None,
            (HostRewrite::Literal(host), None) => Some(host.to_string()),
            (HostRewrite::Auto, None) => match target {
                Target::Host(host) if !host.hostname.is_empty() => Some(host.hostname.to_string()),
                _ => None,
            },
            (HostRewrite::Header(name), None) => parts
                .headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .filter(|host| !host.is_empty())
                .map(str::to_owned),
        };
        if new_host.is_some()
            && forward.append_x_forwarded_host
            && let Ok(old) = HeaderValue::from_str(&self.authority)
        {
            parts.headers.append(headers::FORWARDED_HOST, old);
        }
        let host = new_host.as_deref().unwrap_or(&self.authority);
        let path = new_path.as_deref().unwrap_or(&path);
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Authority::try_from(host).ok();
        uri.path_and_query = PathAndQuery::try_from(path).ok();
        if uri.authority.is_none() {
            uri.scheme = None;
        }
        if parts.method != Method::CONNECT
            && let Ok(uri) = Uri::from_parts(uri)
        {
            parts.uri = uri;
        }
        if let Ok(host) = HeaderValue::from_str(host) {
            parts.headers.insert(header::HOST, host);
        }
    }

    fn mutate_request(
        &self,
        parts: &mut http::request::Parts,
        weighted: Option<&WeightedCluster>,
        target: &Target,
        path: &str,
    ) {
        let levels = self.levels(
            weighted.map(|weighted| &weighted.request_headers),
            &self.route.request_headers,
            &self.host.request_headers,
            &self.routes.request_headers,
        );
        if levels.iter().all(|level| level.is_empty()) {
            return;
        }
        let mut mutated = parts.headers.clone();
        let facts = self.facts(
            &parts.headers,
            parts,
            path,
            "",
            Some(target.address()),
            None,
        );
        for level in levels {
            headers::mutate(&mut mutated, level, &facts);
        }
        parts.headers = mutated;
    }

    /// Most specific first, unless the most specific is to win and therefore comes last.
    fn levels<'a>(
        &self,
        weighted: Option<&'a HeaderMutations>,
        route: &'a HeaderMutations,
        host: &'a HeaderMutations,
        all: &'a HeaderMutations,
    ) -> Vec<&'a HeaderMutations> {
        let mut levels: Vec<&HeaderMutations> =
            weighted.into_iter().chain([route, host, all]).collect();
        if self.routes.most_specific_header_mutations_wins {
            levels.reverse();
        }
        levels
    }

    fn facts<'a>(
        &'a self,
        request: &'a http::HeaderMap,
        parts: &'a http::request::Parts,
        path: &'a str,
        cluster: &'a str,
        upstream: Option<std::net::SocketAddr>,
        response: Option<(&'a http::HeaderMap, StatusCode)>,
    ) -> headers::Facts<'a> {
        headers::Facts {
            peer: self.connection.caught.peer,
            local: self.connection.caught.destination,
            request,
            method: &parts.method,
            path,
            authority: &self.authority,
            version: parts.version,
            route: &self.route.name,
            cluster,
            upstream,
            response,
        }
    }

    /// Sends the request over a pooled or a new connection.
    async fn send(
        &self,
        cluster: &Arc<ClusterView>,
        target: &Target,
        request: Request<Incoming>,
        upgrade: bool,
    ) -> Result<Answer, Failure> {
        let stats = &cluster.state.stats;
        let limit = u64::from(cluster.config.circuit_breakers.default.max_requests);
        if stats.upstream_rq_active.load(Ordering::Relaxed) >= limit {
            count(&stats.upstream_rq_pending_overflow);
            return Err(Failure::Overflow);
        }
        count(&stats.upstream_rq_total);
        if let Target::Host(host) = target {
            count(&host.state.rq_total);
        }
        let key = Key {
            cluster: cluster.config.name.clone(),
            address: target.address(),
            netns: self.connection.caught.pod.netns.cookie(),
        };
        match &cluster.config.protocol {
            UpstreamProtocol::Http2(options) => {
                self.send_http2(cluster, target, key, options, request)
                    .await
            }
            UpstreamProtocol::Downstream(options) if request.version() == Version::HTTP_2 => {
                self.send_http2(cluster, target, key, options, request)
                    .await
            }
            _ => {
                self.send_http1(cluster, target, key, request, upgrade)
                    .await
            }
        }
    }

    async fn send_http1(
        &self,
        cluster: &Arc<ClusterView>,
        target: &Target,
        key: Key,
        mut request: Request<Incoming>,
        upgrade: bool,
    ) -> Result<Answer, Failure> {
        let context = &self.connection.context;
        *request.version_mut() = Version::HTTP_11;
        // HTTP/1 names the target by path and the authority by the host header.
        if request.method() != Method::CONNECT
            && let Some(path) = request.uri().path_and_query().cloned()
        {
            *request.uri_mut() = Uri::from(path);
        }
        let downstream = upgrade.then(|| hyper::upgrade::on(&mut request));
        loop {
            let idle = Lease::idle(context, &key, cluster.config.idle_timeout);
            let mut lease = match idle {
                Some(lease) => lease,
                None => {
                    let stream = self.connect(cluster, target).await?;
                    let open = Open::new(cluster, target);
                    Lease::new(context, key.clone(), stream, open)
                        .await
                        .map_err(|_| Failure::Reset)?
                }
            };
            let used = lease.is_used();
            match lease.sender().try_send_request(request).await {
                Ok(response) => {
                    lease.served(cluster.config.max_requests_per_connection);
                    return Ok(Answer {
                        response,
                        lease: Some(lease),
                        downstream,
                    });
                }
                Err(mut error) => {
                    let unsent = error.take_message();
                    lease.discard();
                    match unsent {
                        // The upstream closed an idle connection before a byte was sent on it.
                        Some(unsent) if used => request = unsent,
                        _ => return Err(Failure::Reset),
                    }
                }
            }
        }
    }

    async fn send_http2(
        &self,
        cluster: &Arc<ClusterView>,
        target: &Target,
        key: Key,
        options: &crate::config::model::cluster::Http2Options,
        mut request: Request<Incoming>,
    ) -> Result<Answer, Failure> {
        let context = &self.connection.context;
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().remove(header::HOST);
        for fresh in [false, true] {
            let known = if fresh {
                None
            } else {
                context.pool.borrow_mut().http2(&key)
            };
            let is_new = known.is_none();
            let mut sender = match known {
                Some(sender) => sender,
                None => {
                    let stream = self.connect(cluster, target).await?;
                    let open = Open::new(cluster, target);
                    let sender = handshake_http2(stream, options, open)
                        .await
                        .map_err(|_| Failure::Reset)?;
                    context
                        .pool
                        .borrow_mut()
                        .put_http2(key.clone(), sender.clone());
                    sender
                }
            };
            match sender.try_send_request(request).await {
                Ok(response) => {
                    return Ok(Answer {
                        response,
                        lease: None,
                        downstream: None,
                    });
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) if !is_new => request = unsent,
                    _ => return Err(Failure::Reset),
                },
            }
        }
        Err(Failure::Reset)
    }

    async fn connect(
        &self,
        cluster: &Arc<ClusterView>,
        target: &Target,
    ) -> Result<tokio::net::TcpStream, Failure> {
        tcp::connect(cluster, target, &self.connection.caught).await.map_err(|error| {
            tracing::debug!(cluster = %cluster.config.name, address = %target.address(), %error, "connect failed");
            Failure::Connect
        })
    }

    fn answer(
        &self,
        answer: Answer,
        started: Instant,
        limit: Option<Duration>,
    ) -> Response<ProxyBody> {
        let Answer {
            mut response,
            lease,
            downstream,
        } = answer;
        let milliseconds = started.elapsed().as_millis() as u64;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(downstream) = downstream
        {
            let upstream = hyper::upgrade::on(&mut response);
            tokio::task::spawn_local(async move {
                if let (Ok(downstream), Ok(upstream)) = tokio::join!(downstream, upstream) {
                    let (mut downstream, mut upstream) =
                        (TokioIo::new(downstream), TokioIo::new(upstream));
                    let copied =
                        tokio::io::copy_bidirectional(&mut downstream, &mut upstream).await;
                    if let Err(error) = copied {
                        tracing::debug!(%error, "an upgraded connection broke off");
                    }
                }
            });
            if let Some(lease) = lease {
                lease.discard();
            }
            return response.map(|_| ProxyBody::Own(None));
        }
        headers::strip_hop_by_hop(response.headers_mut());
        response
            .headers_mut()
            .insert(headers::SERVICE_TIME, HeaderValue::from(milliseconds));
        let deadline = limit.map(|limit| Box::pin(tokio::time::sleep_until(started + limit)));
        *response.version_mut() = Version::HTTP_11;
        response.map(|body| {
            ProxyBody::Upstream(Box::new(Upstream {
                body,
                lease,
                deadline,
            }))
        })
    }

    fn redirect(&self, redirect: &Redirect, parts: &http::request::Parts) -> Response<ProxyBody> {
        let path = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let (bare, query) = match path.split_once('?') {
            Some((bare, query)) => (bare, Some(query)),
            None => (path, None),
        };
        let new_path = match &redirect.path {
            RedirectPath::Keep => bare.to_owned(),
            RedirectPath::Replace(new) => new.to_string(),
            RedirectPath::Prefix(prefix) => rewrite_prefix(bare, &self.route.matcher.path, prefix)
                .unwrap_or_else(|| bare.into()),
            RedirectPath::Regex(rewrite) => {
                rewrite_regex(bare, rewrite).unwrap_or_else(|| bare.into())
            }
        };
        let old_scheme = "http";
        let scheme = redirect.scheme.as_deref().unwrap_or(old_scheme);
        let host = match (&redirect.host, redirect.port) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (Some(host), None) => host.to_string(),
            (None, Some(port)) => format!("{}:{port}", without_port(&self.authority)),
            (None, None) => {
                // The default port of the old scheme would be wrong under the new one.
                let default = if old_scheme == "http" { ":80" } else { ":443" };
                match self.authority.strip_suffix(default) {
                    Some(bare) if scheme != old_scheme => bare.to_owned(),
                    _ => self.authority.clone(),
                }
            }
        };
        let mut location = format!("{scheme}://{host}{new_path}");
        if let Some(query) = query
            && !redirect.strip_query
            && !new_path.contains('?')
        {
            location.push('?');
            location.push_str(query);
        }
        let mut response = local(redirect.status, "");
        if let Ok(location) = HeaderValue::try_from(location) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        self.finish(response, parts, None, "", None)
    }

    /// Response mutations, at every level.
    fn finish(
        &self,
        mut response: Response<ProxyBody>,
        parts: &http::request::Parts,
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
        if levels.iter().any(|level| !level.is_empty()) {
            let original = response.headers().clone();
            let path = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
            let seen = Some((&original, response.status()));
            let facts = self.facts(&parts.headers, parts, path, cluster, upstream, seen);
            for level in levels {
                headers::mutate(response.headers_mut(), level, &facts);
            }
        }
        if self.hcm.always_set_request_id_in_response
            && let Some(id) = parts.headers.get(headers::REQUEST_ID)
        {
            response
                .headers_mut()
                .insert(headers::REQUEST_ID, id.clone());
        }
        response
    }
}

/// An upstream's response, and what ends with it.
struct Answer {
    response: Response<Incoming>,
    lease: Option<Lease>,
    /// The client's side of an upgrade.
    downstream: Option<hyper::upgrade::OnUpgrade>,
}

/// Why there is no response.
enum Failure {
    Connect,
    Reset,
    Overflow,
}

impl Failure {
    fn reply(&self) -> Response<ProxyBody> {
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        match self {
            Self::Connect => local(unavailable, CONNECT_FAILED),
            Self::Reset => local(unavailable, RESET),
            Self::Overflow => {
                let mut response = local(unavailable, OVERFLOW);
                let name = http::HeaderName::from_static("x-envoy-overloaded");
                response
                    .headers_mut()
                    .insert(name, HeaderValue::from_static("true"));
                response
            }
        }
    }
}

/// Replaces what the route matched on: a prefix, or the whole path.
fn rewrite_prefix(path: &str, matcher: &PathMatcher, prefix: &str) -> Option<String> {
    let bare = path.split('?').next().unwrap_or(path);
    let matched = match matcher {
        PathMatcher::Prefix(matched) | PathMatcher::PathSeparatedPrefix(matched) => matched.len(),
        PathMatcher::Exact(_) | PathMatcher::Regex(_) => bare.len(),
        PathMatcher::Connect => return None,
    };
    Some(format!("{prefix}{}", path.get(matched..)?))
}

/// Replaces every match in the path; the query stays.
fn rewrite_regex(path: &str, rewrite: &RegexRewrite) -> Option<String> {
    let (bare, query) = path.split_at(path.find('?').unwrap_or(path.len()));
    let mut out = String::with_capacity(path.len());
    let mut end = 0;
    for captures in rewrite.pattern.captures_iter(bare) {
        let whole = captures.get_match()?;
        out.push_str(bare.get(end..whole.start())?);
        let mut characters = rewrite.substitution.chars();
        while let Some(character) = characters.next() {
            match (character, character == '\\') {
                (_, true) => match characters.next() {
                    Some(digit) if digit.is_ascii_digit() => {
                        let group = captures.get_group(digit as usize - '0' as usize);
                        out.push_str(group.and_then(|span| bare.get(span.range())).unwrap_or(""));
                    }
                    Some(other) => out.push(other),
                    None => {}
                },
                (character, false) => out.push(character),
            }
        }
        end = whole.end();
    }
    out.push_str(bare.get(end..)?);
    out.push_str(query);
    Some(out)
}
