//! The route action: a request to a cluster, and its response.

use std::time::Duration;

use http::{HeaderValue, StatusCode, header};
use tokio::time::Instant;

use crate::config::model::route::{ClusterSpecifier, Forward};
use crate::proxy::lb;
use crate::proxy::stats::count;

use super::body::{ProxyBody, RequestBody, Streamed, UpstreamStream};
use super::exchange::{Exchange, announces_empty_body};
use super::message::{Reply, Request, text};
use super::reply::local;
use super::upstream::{Answer, Failure, Serving};
use super::{headers, rewrite, upgrade};

impl Exchange<'_> {
    /// Sends the request to the route's cluster and returns what came of it.
    pub(super) async fn forward(
        &self,
        forward: &Forward,
        mut request: Request,
        body: RequestBody,
    ) -> Reply {
        let stats = &self.connection.context.shared.stats;
        let (name, weighted) = match &forward.cluster {
            ClusterSpecifier::Cluster(name) => (&**name, None),
            ClusterSpecifier::Weighted(weighted) => {
                let picked = weighted.pick(self.random);
                (&*picked.name, Some(picked))
            }
            ClusterSpecifier::Header(header) => {
                (request.headers.get(header).map_or("", text), None)
            }
        };
        let Some(cluster) = self.view.clusters.get(name) else {
            count(&stats.no_cluster);
            let reply = local(forward.cluster_not_found_status, "");
            return self.finish(reply, &request, weighted, "", None);
        };
        let name = &cluster.config.name;
        let asked = self
            .response_needs_request(weighted)
            .then(|| request.clone());
        let finish = |reply, upstream| match &asked {
            Some(asked) => self.finish(reply, asked, weighted, name, upstream),
            None => reply,
        };
        let Some(target) = lb::pick(
            cluster,
            &lb::Asked::request(self.connection.caught.destination, &request.headers),
        ) else {
            count(&cluster.state.stats.upstream_cx_none_healthy);
            let reply = local(StatusCode::SERVICE_UNAVAILABLE, "no healthy upstream");
            return finish(reply, None);
        };
        let upstream = Some(target.address());
        let upgrade = upgrade::wanted(&request).cloned();
        headers::strip_hop_by_hop(&mut request.headers);
        self.mutate_request(&mut request, weighted, name);
        let new_path = rewrite::path(request.path.as_str(), &self.route.matcher.path, forward);
        let new_host = rewrite::host(forward, weighted, &target, &request.headers);
        if rewrite::apply(&mut request, new_host, new_path, forward).is_err() {
            return finish(local(StatusCode::BAD_REQUEST, ""), upstream);
        }
        self.announce(&mut request, forward, upgrade.as_ref(), &body);
        let Some(serving) = Serving::begin(cluster, &target) else {
            return finish(failed(&Failure::Overflow), upstream);
        };
        let limit = forward.timeout.filter(|_| upgrade.is_none());
        let reply = self.sent(&serving, request, body, limit).await;
        finish(reply, upstream)
    }

    /// The response, or what stands in for it.
    async fn sent(
        &self,
        serving: &Serving,
        request: Request,
        body: RequestBody,
        limit: Option<Duration>,
    ) -> Reply {
        let started = Instant::now();
        let mut deadline = limit.map(|limit| Box::pin(tokio::time::sleep_until(started + limit)));
        let sent = {
            let mut sending = std::pin::pin!(self.send(serving, request, body));
            std::future::poll_fn(|cx| {
                if let std::task::Poll::Ready(sent) = sending.as_mut().poll(cx) {
                    return std::task::Poll::Ready(Some(sent));
                }
                match &mut deadline {
                    Some(deadline) => deadline.as_mut().poll(cx).map(|()| None),
                    None => std::task::Poll::Pending,
                }
            })
            .await
        };
        let mut reply = match sent {
            Some(Ok(answer)) => answered(answer, started, deadline, serving),
            Some(Err(failure)) => {
                serving.failed();
                failed(&failure)
            }
            None => {
                serving.timed_out();
                local(StatusCode::GATEWAY_TIMEOUT, "upstream request timeout")
            }
        };
        serving.responded(reply.status);
        if self.host.include_attempt_count_in_response {
            let one = HeaderValue::from_static("1");
            reply.headers.insert(headers::ATTEMPT_COUNT, one);
        }
        reply
    }

    /// Headers that tell the upstream of this hop.
    fn announce(
        &self,
        request: &mut Request,
        forward: &Forward,
        upgrade: Option<&HeaderValue>,
        body: &RequestBody,
    ) {
        if let Some(protocol) = upgrade {
            let upgrade = HeaderValue::from_static("upgrade");
            request.headers.insert(header::CONNECTION, upgrade);
            request.headers.insert(header::UPGRADE, protocol.clone());
        } else if announces_empty_body(request, body) {
            let zero = HeaderValue::from_static("0");
            request.headers.insert(header::CONTENT_LENGTH, zero);
        }
        if let Some(timeout) = forward.timeout {
            let milliseconds = HeaderValue::from(timeout.as_millis() as u64);
            request
                .headers
                .insert(headers::EXPECTED_TIMEOUT, milliseconds);
        }
        if self.host.include_request_attempt_count {
            let one = HeaderValue::from_static("1");
            request.headers.insert(headers::ATTEMPT_COUNT, one);
        }
    }
}

/// A response as the client gets it.
fn answered(
    answer: Answer,
    started: Instant,
    deadline: Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
    serving: &Serving,
) -> Reply {
    let Answer {
        status,
        mut headers,
        body,
    } = answer;
    if status == StatusCode::SWITCHING_PROTOCOLS
        && let UpstreamStream::Http1(body) = body
    {
        return Reply {
            status,
            headers,
            body: ProxyBody::Own(None),
            tunnel: body.into_tunnel().map(Box::new),
        };
    }
    headers::strip_hop_by_hop(&mut headers);
    let milliseconds = started.elapsed().as_millis() as u64;
    headers.insert(headers::SERVICE_TIME, HeaderValue::from(milliseconds));
    Reply {
        status,
        headers,
        body: ProxyBody::Upstream(Box::new(Streamed {
            body,
            deadline,
            serving: serving.clone(),
        })),
        tunnel: None,
    }
}

/// Envoy's answer when there is none from upstream.
fn failed(failure: &Failure) -> Reply {
    let (status, text) = match failure {
        Failure::Connect => (
            StatusCode::SERVICE_UNAVAILABLE,
            "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
        ),
        Failure::Reset => (
            StatusCode::SERVICE_UNAVAILABLE,
            "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
        ),
        Failure::Protocol => (
            StatusCode::BAD_GATEWAY,
            "upstream connect error or disconnect/reset before headers. reset reason: protocol error",
        ),
        Failure::Overflow => (
            StatusCode::SERVICE_UNAVAILABLE,
            "upstream connect error or disconnect/reset before headers. reset reason: overflow",
        ),
        Failure::Client => (StatusCode::BAD_REQUEST, ""),
    };
    let mut reply = local(status, text);
    if matches!(failure, Failure::Overflow) {
        let yes = HeaderValue::from_static("true");
        reply.headers.insert(headers::OVERLOADED, yes);
    }
    reply
}
