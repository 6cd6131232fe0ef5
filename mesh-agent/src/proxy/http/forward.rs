//! The route action: a request to a cluster, and its response.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, StatusCode, header};
use tokio::time::Instant;

use crate::balance::subset::{Metadata, Value};
use crate::config::model::access_log::Piece;
use crate::config::model::cluster::LbPolicy;
use crate::config::model::response_flag::ResponseFlag;
use crate::config::model::route::{
    ClusterSpecifier, Forward, RandomValue, WeightedCluster, WeightedClusters,
};
use crate::proxy::lb;
use crate::proxy::stats::count;
use crate::snapshot::ClusterView;

use super::attempts::{Attempts, Ran, none_healthy};
use super::body::{ProxyBody, RequestBody, Streamed, UpstreamStream};
use super::exchange::{Exchange, announces_empty_body};
use super::hash::{self, Hashed};
use super::internal_redirect::Again;
use super::limits::StreamLimits;
use super::message::{Pinned, Reply, Request, Why, text};
use super::reply::{local, with_body};
use super::retry::Retry;
use super::timeouts::{Deadlines, Timeouts};
use super::upstream::{Answer, Failure, Serving};
use super::{headers, mirror, rewrite, upgrade};

impl Exchange<'_> {
    /// Sends the request to the route's cluster and returns what came of it.
    pub(super) async fn forward(
        &self,
        forward: &Forward,
        mut request: Request,
        body: RequestBody,
    ) -> Reply {
        let stats = &self.connection.context.shared.stats;
        let (name, weighted) = self.cluster_of(forward, &request);
        let Some(cluster) = self.view.clusters.get(name) else {
            count(&stats.no_cluster);
            let reply = local(forward.cluster_not_found_status, "")
                .because("cluster_not_found")
                .flagged(ResponseFlag::NoClusterFound);
            return self.finish(reply, &request, weighted);
        };
        self.record.cluster(cluster);
        if let Some(idle) = forward.idle_timeout {
            self.limits.set_idle(idle);
        }
        let started = Instant::now();
        let progress = body.progress();
        let timeouts = Timeouts::of(forward, self.hcm, &mut request.headers);
        let retry = Retry::of(forward, &mut request);
        let hashed = self.hashed(cluster, forward, &request);
        let caught = &self.connection.caught;
        let subset = subset(cluster, forward, weighted, &request);
        let wanted = lb::Asked::request(caught.destination, &request.headers)
            .hashed(hashed.hash)
            .within(subset.as_deref());
        let pinned = request.pinned.as_ref();
        let own = pinned.and_then(|pinned| lb::at(cluster, pinned.address?));
        if own.is_none()
            && let Some(Pinned {
                address: Some(_),
                strict: Some(status),
                ..
            }) = pinned
        {
            let reply = local(*status, "no healthy upstream")
                .because("no_healthy_upstream")
                .flagged(ResponseFlag::NoHealthyUpstream);
            return self.finish(reply, &request, weighted);
        }
        let used = pinned.map(|pinned| pinned.used.clone());
        let Some(target) = own.or_else(|| lb::pick(cluster, &wanted)) else {
            count(&cluster.state.stats.upstream_cx_none_healthy);
            self.record.asks();
            return self.finish(none_healthy(), &request, weighted);
        };
        let upgrade = upgrade::wanted(&request).cloned();
        headers::strip_hop_by_hop(&mut request.headers);
        self.mutate_request(&mut request, weighted);
        let path_of = |pieces: &[Piece]| self.text_of(pieces, &request, true);
        let host_of = |pieces: &[Piece]| self.text_of(pieces, &request, false);
        let (path, matcher) = (request.path.as_str(), &self.route.matcher.path);
        let new_path = rewrite::path(path, matcher, forward, path_of);
        let new_host = rewrite::host(forward, weighted, &target, &request, host_of);
        if rewrite::apply(&mut request, new_host, new_path, forward).is_err() {
            let reply = local(StatusCode::BAD_REQUEST, "");
            return self.finish(reply, &request, weighted);
        }
        let timeouts = Timeouts {
            request: timeouts.request.filter(|_| upgrade.is_none()),
            ..timeouts
        };
        self.announce(&mut request, forward, &timeouts, upgrade.as_ref(), &body);
        self.record.keep(&request);
        // What is added to responses speaks of the request as the upstream got it.
        let asked = self
            .response_needs_request(weighted)
            .then(|| request.clone());
        let finish = |reply| match &asked {
            Some(asked) => self.finish(reply, asked, weighted),
            None => reply,
        };
        let body = if forward.mirrors.is_empty() || upgrade.is_some() {
            body
        } else {
            mirror::send(self, forward, &request, &timeouts, body)
        };
        let attempts = Attempts {
            exchange: self,
            cluster,
            forward,
            weighted,
            timeouts,
            retry: retry.filter(|_| upgrade.is_none()),
            progress,
            started,
            hash: hashed.hash,
            subset,
            upgrade,
        };
        let running = attempts.run(target, request, body);
        let Ran {
            mut reply,
            from,
            sent,
        } = match self.limits.hold(running).await {
            Ok(ran) => ran,
            Err(cut) => return finish(self.limits.reply(cut)),
        };
        if let Some(again) = sent.and_then(|sent| self.again(forward, cluster, &reply, sent)) {
            reply.again = Some(again);
            reply.body = ProxyBody::Own(None);
            return reply.because("internal_redirect");
        }
        if let (Some(used), Some(from)) = (used, &from) {
            used.set(Some(from.address()));
        }
        if matches!(reply.body, ProxyBody::Upstream(_)) {
            for cookie in hashed.cookies {
                reply.headers.append(header::SET_COOKIE, cookie);
            }
        }
        finish(reply)
    }

    /// The name of the cluster that takes the request.
    pub(super) fn cluster_of<'n, 'f: 'n>(
        &self,
        forward: &'f Forward,
        request: &'n Request,
    ) -> (&'n str, Option<&'f WeightedCluster>) {
        match &forward.cluster {
            ClusterSpecifier::Cluster(name) => (name, None),
            ClusterSpecifier::Weighted(weighted) => {
                let picked = weighted.pick(self.drawn_by(forward, weighted, request));
                let name = match &picked.header {
                    Some(header) => request.headers.get(header).map_or("", text),
                    None => &picked.name,
                };
                (name, Some(picked))
            }
            ClusterSpecifier::Header(header) => {
                (request.headers.get(header).map_or("", text), None)
            }
        }
    }

    /// The number by which one of several clusters is drawn.
    fn drawn_by(&self, forward: &Forward, weighted: &WeightedClusters, request: &Request) -> u64 {
        let said = match &weighted.random {
            RandomValue::Own => None,
            RandomValue::Header(name) => request
                .headers
                .get(name)
                .and_then(|value| text(value).trim().parse().ok()),
            RandomValue::Hash => hash::of(&forward.hash, request, self.ends()).hash,
        };
        said.unwrap_or(self.random)
    }

    fn ends(&self) -> hash::Ends {
        let caught = &self.connection.caught;
        hash::Ends {
            peer: caught.peer,
            local: caught.destination,
            remote: self.remote,
        }
    }

    /// What is served instead of a redirect, if the route follows it.
    fn again(
        &self,
        forward: &Forward,
        cluster: &ClusterView,
        reply: &Reply,
        sent: Box<Again>,
    ) -> Option<Box<Again>> {
        let policy = forward.internal_redirect.as_ref()?;
        let stats = &cluster.state.stats;
        let Again { request, body } = *sent;
        let Some(next) = self.follow(policy, reply.status, &reply.headers, &request) else {
            count(&stats.upstream_internal_redirect_failed_total);
            return None;
        };
        count(&stats.upstream_internal_redirect_succeeded_total);
        // Who is to look with GET brings nothing.
        let body = if next.method == request.method {
            body
        } else {
            RequestBody::of_pieces([])
        };
        Some(Box::new(Again {
            request: next,
            body,
        }))
    }

    /// The request's hash, if its cluster chooses by one.
    fn hashed(&self, cluster: &ClusterView, forward: &Forward, request: &Request) -> Hashed {
        let by_hash = matches!(
            cluster.config.lb,
            LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. }
        );
        if !by_hash {
            return Hashed::default();
        }
        hash::of(&forward.hash, request, self.ends())
    }

    /// Headers that tell the upstream of this hop.
    fn announce(
        &self,
        request: &mut Request,
        forward: &Forward,
        timeouts: &Timeouts,
        upgrade: Option<&HeaderValue>,
        body: &RequestBody,
    ) {
        if let Some(protocol) = upgrade.filter(|_| request.method != Method::CONNECT) {
            let upgrade = HeaderValue::from_static("upgrade");
            request.headers.insert(header::CONNECTION, upgrade);
            request.headers.insert(header::UPGRADE, protocol.clone());
        } else if announces_empty_body(request, body) {
            let zero = HeaderValue::from_static("0");
            request.headers.insert(header::CONTENT_LENGTH, zero);
        }
        // An upgrade is told the route's timeout although none is held against it.
        let expected = match upgrade {
            Some(_) => forward.timeout,
            None => timeouts.expected(Duration::ZERO),
        };
        if let Some(timeout) = expected {
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

/// The subset a request asks for: what the route says and, above that, what filters found out
/// (Envoy: `Filter::metadataMatchCriteria`).
fn subset(
    cluster: &ClusterView,
    forward: &Forward,
    weighted: Option<&WeightedCluster>,
    request: &Request,
) -> Option<Arc<Metadata>> {
    cluster.config.subsets.as_ref()?;
    let route = match weighted {
        Some(weighted) => &weighted.subset,
        None => &forward.subset,
    };
    let Some(serde_json::Value::Object(found)) = request.metadata.get("envoy.lb") else {
        return route.clone();
    };
    let mut wanted = route.as_deref().cloned().unwrap_or_default();
    let found = found.iter();
    wanted.extend(found.filter_map(|(key, value)| Some((key.as_str().into(), of_json(value)?))));
    Some(Arc::new(wanted))
}

fn of_json(value: &serde_json::Value) -> Option<Value> {
    Some(match value {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(truth) => Value::Bool(*truth),
        serde_json::Value::Number(number) => number.as_f64()?.into(),
        serde_json::Value::String(text) => text.as_str().into(),
        serde_json::Value::Array(values) => {
            Value::List(values.iter().filter_map(of_json).collect())
        }
        serde_json::Value::Object(_) => return None,
    })
}

/// A response as the client gets it. `complete`: the whole request was read.
pub(super) fn answered(
    answer: Answer,
    started: Instant,
    deadlines: Deadlines,
    limits: &StreamLimits,
    serving: &Serving,
    complete: bool,
) -> Reply {
    let Answer {
        status,
        mut headers,
        body,
    } = answer;
    let (tunnel, body) = match body {
        UpstreamStream::Http1(body) if body.is_tunnel() => {
            (body.into_tunnel(limits.idle()).map(Box::new), None)
        }
        UpstreamStream::Tunnel(mut tunnel) => {
            tunnel.idle = limits.idle();
            (Some(tunnel), None)
        }
        body => (None, Some(body)),
    };
    let Some(body) = body else {
        if status != StatusCode::SWITCHING_PROTOCOLS {
            headers::strip_hop_by_hop(&mut headers);
        }
        return Reply {
            status,
            headers,
            body: ProxyBody::Own(None),
            grpc_status: None,
            tunnel,
            why: via_upstream(),
            again: None,
        };
    };
    headers::strip_hop_by_hop(&mut headers);
    // Who answers before the request has ended took no time that could be told.
    if complete {
        let milliseconds = started.elapsed().as_millis() as u64;
        headers.insert(headers::SERVICE_TIME, HeaderValue::from(milliseconds));
    }
    Reply {
        status,
        headers,
        body: ProxyBody::Upstream(Box::new(Streamed {
            body,
            deadlines,
            limits: limits.clone(),
            serving: serving.clone(),
        })),
        grpc_status: None,
        tunnel: None,
        why: via_upstream(),
        again: None,
    }
}

fn via_upstream() -> Why {
    Why {
        details: "via_upstream".into(),
        ..Why::default()
    }
}

/// Envoy's answer when there is none from upstream.
pub(super) fn failed(failure: Failure, retried: bool, transport: Option<&str>) -> Reply {
    let reason = match failure {
        Failure::Connect => "remote connection failure",
        Failure::ConnectTimeout => "connection timeout",
        Failure::Reset => "connection termination",
        Failure::RemoteReset => "remote reset",
        Failure::Refused => "remote refused stream reset",
        Failure::Protocol => "protocol error",
        Failure::Overflow => "overflow",
        Failure::Client => {
            return local(StatusCode::BAD_REQUEST, "")
                .because("http1.codec_error")
                .flagged(ResponseFlag::DownstreamProtocolError);
        }
    };
    let status = match failure {
        Failure::Protocol => StatusCode::BAD_GATEWAY,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let again = if retried {
        "retried and the latest "
    } else {
        ""
    };
    let mut reply = with_body(
        status,
        format!(
            "upstream connect error or disconnect/reset before headers. {again}reset reason: {reason}"
        )
        .into(),
    );
    let transport = transport.map(|transport| format!("|{transport}"));
    let details = format!(
        "upstream_reset_before_response_started{{{reason}{}}}",
        transport.unwrap_or_default()
    );
    reply = reply
        .because(details.replace(' ', "_"))
        .flagged(failure.flag());
    if failure == Failure::Overflow {
        let yes = HeaderValue::from_static("true");
        reply.headers.insert(headers::OVERLOADED, yes);
    }
    reply
}
