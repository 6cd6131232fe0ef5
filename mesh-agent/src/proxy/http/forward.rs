//! The route action: a request to a cluster, and its response.

use std::time::Duration;

use http::{HeaderValue, Response, StatusCode, header, request};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use crate::config::model::route::{ClusterSpecifier, Forward};
use crate::proxy::lb::{self, Target};
use crate::proxy::stats::count;

use super::body::{ProxyBody, RequestBody, Upstream};
use super::exchange::{Asked, Exchange, announces_empty_body, path, text};
use super::reply::local;
use super::upstream::{Answer, Failure};
use super::{headers, rewrite};

impl Exchange<'_> {
    /// Sends the request to the route's cluster and returns what came of it.
    pub(super) async fn forward(
        &self,
        forward: &Forward,
        mut parts: request::Parts,
        body: RequestBody,
    ) -> Response<ProxyBody> {
        let stats = &self.connection.context.shared.stats;
        let (name, weighted) = match &forward.cluster {
            ClusterSpecifier::Cluster(name) => (&**name, None),
            ClusterSpecifier::Weighted(weighted) => {
                let picked = weighted.pick(self.random);
                (&*picked.name, Some(picked))
            }
            ClusterSpecifier::Header(header) => (parts.headers.get(header).map_or("", text), None),
        };
        let Some(cluster) = self.view.clusters.get(name) else {
            count(&stats.no_cluster);
            let response = local(forward.cluster_not_found_status, "");
            return self.finish(response, &Asked::of(&parts), weighted, "", None);
        };
        let name = &cluster.config.name;
        let asked = self
            .response_needs_request(weighted)
            .then(|| Asked::of(&parts));
        let Some(target) = lb::pick(
            cluster,
            &lb::Asked::request(self.connection.caught.destination, &parts.headers),
        ) else {
            count(&cluster.state.stats.upstream_cx_none_healthy);
            let response = local(StatusCode::SERVICE_UNAVAILABLE, "no healthy upstream");
            return match &asked {
                Some(asked) => self.finish(response, asked, weighted, name, None),
                None => response,
            };
        };
        let upgrade = self.upgrade(&parts, forward);
        headers::strip_hop_by_hop(&mut parts.headers);
        self.mutate_request(&mut parts, weighted, name);
        self.rewrite(&mut parts, forward, weighted, &target);
        self.announce(&mut parts, forward, upgrade.as_ref(), &body);

        let limit = forward.timeout.filter(|_| upgrade.is_none());
        let started = Instant::now();
        let sending = self.send(cluster, &target, parts, body, upgrade.is_some());
        let sent = match limit {
            Some(limit) => tokio::time::timeout_at(started + limit, sending).await,
            None => Ok(sending.await),
        };
        let mut response = match sent {
            Ok(Ok(answer)) => self.answer(answer, started, limit),
            Ok(Err(failure)) => {
                if let Target::Host(host) = &target {
                    count(&host.state.rq_error);
                }
                failed(&failure)
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
        match &asked {
            Some(asked) => self.finish(response, asked, weighted, name, Some(target.address())),
            None => response,
        }
    }

    fn rewrite(
        &self,
        parts: &mut request::Parts,
        forward: &Forward,
        weighted: Option<&crate::config::model::route::WeightedCluster>,
        target: &Target,
    ) {
        let new_path = rewrite::path(path(parts).as_str(), &self.route.matcher.path, forward);
        let new_host = rewrite::host(forward, weighted, target, &parts.headers);
        let original = new_host.as_ref().map(|_| &self.authority);
        let authority = new_host.as_ref().unwrap_or(&self.authority);
        rewrite::apply(parts, authority, new_path.as_deref(), original, forward);
    }

    /// Headers that tell the upstream of this hop.
    fn announce(
        &self,
        parts: &mut request::Parts,
        forward: &Forward,
        upgrade: Option<&HeaderValue>,
        body: &RequestBody,
    ) {
        if let Some(protocol) = upgrade {
            let upgrade = HeaderValue::from_static("upgrade");
            parts.headers.insert(header::CONNECTION, upgrade);
            parts.headers.insert(header::UPGRADE, protocol.clone());
        } else if announces_empty_body(parts, body) {
            let zero = HeaderValue::from_static("0");
            parts.headers.insert(header::CONTENT_LENGTH, zero);
        }
        if let Some(timeout) = forward.timeout {
            let milliseconds = HeaderValue::from(timeout.as_millis() as u64);
            parts
                .headers
                .insert(headers::EXPECTED_TIMEOUT, milliseconds);
        }
        if self.host.include_request_attempt_count {
            let one = HeaderValue::from_static("1");
            parts.headers.insert(headers::ATTEMPT_COUNT, one);
        }
    }

    /// The protocol a request upgrades to, when that is allowed.
    fn upgrade(&self, parts: &request::Parts, forward: &Forward) -> Option<HeaderValue> {
        let asked = parts.headers.get(header::UPGRADE)?;
        let wants = parts.headers.get(header::CONNECTION).is_some_and(|value| {
            text(value)
                .split(',')
                .any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
        });
        let name = text(asked);
        let is = |known: &str| known.eq_ignore_ascii_case(name);
        let allowed = forward
            .upgrades
            .iter()
            .find(|(known, _)| is(known))
            .map_or_else(
                || self.hcm.upgrades.iter().any(|known| is(known)),
                |(_, on)| *on,
            );
        (wants && allowed).then(|| asked.clone())
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
            in_flight,
        } = answer;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(downstream) = downstream
        {
            let upstream = hyper::upgrade::on(&mut response);
            tokio::task::spawn_local(async move {
                tunnel(downstream, upstream).await;
                drop(in_flight);
            });
            if let Some(lease) = lease {
                lease.discard();
            }
            return response.map(|_| ProxyBody::Own(None));
        }
        headers::strip_hop_by_hop(response.headers_mut());
        let milliseconds = started.elapsed().as_millis() as u64;
        response
            .headers_mut()
            .insert(headers::SERVICE_TIME, HeaderValue::from(milliseconds));
        let deadline = limit.map(|limit| Box::pin(tokio::time::sleep_until(started + limit)));
        *response.version_mut() = http::Version::HTTP_11;
        response.map(|body| {
            ProxyBody::Upstream(Box::new(Upstream {
                body,
                lease,
                _in_flight: in_flight,
                deadline,
            }))
        })
    }
}

/// Bytes both ways after an upgrade.
async fn tunnel(downstream: hyper::upgrade::OnUpgrade, upstream: hyper::upgrade::OnUpgrade) {
    if let (Ok(downstream), Ok(upstream)) = tokio::join!(downstream, upstream) {
        let (mut downstream, mut upstream) = (TokioIo::new(downstream), TokioIo::new(upstream));
        let copied = tokio::io::copy_bidirectional(&mut downstream, &mut upstream).await;
        if let Err(error) = copied {
            tracing::debug!(%error, "an upgraded connection broke off");
        }
    }
}

/// Envoy's answer when there is none from upstream.
fn failed(failure: &Failure) -> Response<ProxyBody> {
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    match failure {
        Failure::Connect => local(
            unavailable,
            "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
        ),
        Failure::Reset => local(
            unavailable,
            "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
        ),
        Failure::Overflow => {
            let mut response = local(
                unavailable,
                "upstream connect error or disconnect/reset before headers. reset reason: overflow",
            );
            response
                .headers_mut()
                .insert(headers::OVERLOADED, HeaderValue::from_static("true"));
            response
        }
    }
}
