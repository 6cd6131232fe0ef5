//! A request over a pooled or a new connection.

use std::sync::Arc;

use http::{Method, Request, Response, Version, request};
use hyper::body::Incoming;
use tokio::net::TcpStream;

use crate::config::model::cluster::{Http2Options, UpstreamProtocol};
use crate::proxy::lb::{InFlight, Target};
use crate::proxy::stats::count;
use crate::proxy::tcp::{self, ConnectError, Open};
use crate::snapshot::ClusterView;

use super::body::RequestBody;
use super::exchange::Exchange;
use super::pool::{Key, Lease, handshake_http2};
use super::rewrite;

/// An upstream's response, and what ends with it.
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    pub(super) lease: Option<Lease>,
    /// The client's side of an upgrade.
    pub(super) downstream: Option<hyper::upgrade::OnUpgrade>,
    /// Counts the request until its response has ended.
    pub(super) in_flight: Option<InFlight>,
}

/// Why there is no response.
pub(super) enum Failure {
    /// No connection could be made.
    Connect,
    /// The connection ended before the response's headers.
    Reset,
    /// A circuit breaker is open.
    Overflow,
}

impl Exchange<'_> {
    /// Sends the request and waits for the response's headers.
    pub(super) async fn send(
        &self,
        cluster: &Arc<ClusterView>,
        target: &Target,
        parts: request::Parts,
        body: RequestBody,
        upgrade: bool,
    ) -> Result<Answer, Failure> {
        let stats = &cluster.state.stats;
        let limit = cluster.config.circuit_breakers.default.max_requests;
        let Some(in_flight) = InFlight::within(cluster, target, limit) else {
            count(&stats.upstream_rq_pending_overflow);
            return Err(Failure::Overflow);
        };
        count(&stats.upstream_rq_total);
        if let Target::Host(host) = target {
            count(&host.state.rq_total);
        }
        let key = Key {
            cluster: cluster.config.name.clone(),
            address: target.address(),
            netns: self.connection.caught.pod.netns.cookie(),
        };
        let http2 = match &cluster.config.protocol {
            UpstreamProtocol::Http2(options) => Some(options),
            UpstreamProtocol::Downstream(options) if parts.version == Version::HTTP_2 => {
                Some(options)
            }
            _ => None,
        };
        let mut answer = match http2 {
            Some(options) => {
                self.send_http2(cluster, target, key, options, parts, body)
                    .await?
            }
            None => {
                self.send_http1(cluster, target, key, parts, body, upgrade)
                    .await?
            }
        };
        answer.in_flight = Some(in_flight);
        Ok(answer)
    }

    async fn send_http1(
        &self,
        cluster: &Arc<ClusterView>,
        target: &Target,
        key: Key,
        mut parts: request::Parts,
        body: RequestBody,
        upgrade: bool,
    ) -> Result<Answer, Failure> {
        let context = &self.connection.context;
        parts.version = Version::HTTP_11;
        rewrite::origin_form(&mut parts);
        let mut request = Request::from_parts(parts, body);
        let downstream = upgrade.then(|| hyper::upgrade::on(&mut request));
        loop {
            let idle = Lease::idle(context, &key, cluster.config.idle_timeout);
            let mut lease = match idle {
                Some(lease) => lease,
                None => {
                    let (stream, open) = self.connect(cluster, target).await?;
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
                        in_flight: None,
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
        options: &Http2Options,
        mut parts: request::Parts,
        body: RequestBody,
    ) -> Result<Answer, Failure> {
        let context = &self.connection.context;
        parts.version = Version::HTTP_2;
        rewrite::absolute_form(&mut parts);
        if parts.method == Method::CONNECT {
            parts.headers.remove(http::header::CONTENT_LENGTH);
        }
        let mut request = Request::from_parts(parts, body);
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
                    let (stream, open) = self.connect(cluster, target).await?;
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
                        in_flight: None,
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
    ) -> Result<(TcpStream, Open), Failure> {
        tcp::connect(cluster, target, &self.connection.caught).await.map_err(|error| {
            tracing::debug!(cluster = %cluster.config.name, address = %target.address(), %error, "connect failed");
            match error {
                ConnectError::Overflow => Failure::Overflow,
                ConnectError::Io(_) => Failure::Connect,
            }
        })
    }
}
