//! A request over a pooled or a new connection.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderMap, Method, StatusCode, Uri, Version, header};

use crate::balance::load_report::LoadReport;
use crate::config::model::cluster::{Http2Options, RoutingPriority, UpstreamProtocol};
use crate::config::model::listener::AlpnOverride;
use crate::config::model::response_flag::ResponseFlag;
use crate::config::model::route::Forward;
use crate::config::model::tls::UpstreamTransport;
use crate::proxy::lb::{InFlight, Target};
use crate::proxy::stats::count;
use crate::proxy::tcp::{self, ConnectError, Open};
use crate::proxy::tls::Offer;
use crate::snapshot::ClusterView;
use crate::snapshot::breakers::Held;
use crate::snapshot::outlier;

use super::body::{RequestBody, UpstreamStream};
use super::exchange::Exchange;
use super::h1::client::{Connection, Home, Tunnel, Unanswered, exchange};
use super::lines::{self, Way};
use super::message::Request;
use super::pool::{Context, Key};
use super::queue::Freed;
use super::record::Record;

/// An upstream's response.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: UpstreamStream,
}

/// Why there is no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// No connection could be made.
    Connect,
    /// No connection stood in time.
    ConnectTimeout,
    /// The connection ended before the response's headers.
    Reset,
    /// The upstream reset the stream.
    RemoteReset,
    /// The upstream did not take the stream.
    Refused,
    /// What came back is no response.
    Protocol,
    /// A circuit breaker is open.
    Overflow,
    /// The client broke off.
    Client,
}

impl Failure {
    /// Envoy: `Filter::streamResetReasonToResponseFlag`.
    pub(super) fn flag(self) -> ResponseFlag {
        match self {
            Self::Connect | Self::ConnectTimeout => ResponseFlag::UpstreamConnectionFailure,
            Self::Reset => ResponseFlag::UpstreamConnectionTermination,
            Self::RemoteReset | Self::Refused => ResponseFlag::UpstreamRemoteReset,
            Self::Protocol => ResponseFlag::UpstreamProtocolError,
            Self::Overflow => ResponseFlag::UpstreamOverflow,
            Self::Client => ResponseFlag::DownstreamProtocolError,
        }
    }
}

/// A request in flight, counted until its response's last byte.
#[derive(Debug, Clone)]
pub(super) struct Serving(Rc<Flight>);

#[derive(Debug)]
struct Flight {
    cluster: Arc<ClusterView>,
    target: Target,
    priority: RoutingPriority,
    _in_flight: InFlight,
    _held: Held,
}

impl Serving {
    /// Counts it; `None`: `max_requests` are in flight already.
    pub(super) fn begin(
        cluster: &Arc<ClusterView>,
        target: &Target,
        priority: RoutingPriority,
    ) -> Option<Self> {
        let stats = &cluster.state.stats;
        let Some(held) = cluster.breakers.of(priority).hold_request() else {
            count(&stats.upstream_rq_pending_overflow);
            return None;
        };
        count(&stats.upstream_rq_total);
        if let Target::Host(host) = target {
            count(&host.state.rq_total);
        }
        Some(Self(Rc::new(Flight {
            cluster: cluster.clone(),
            target: target.clone(),
            priority,
            _in_flight: InFlight::begin(cluster, target),
            _held: held,
        })))
    }

    /// Where it goes.
    pub(super) fn cluster(&self) -> &Arc<ClusterView> {
        &self.0.cluster
    }

    /// To which endpoint.
    pub(super) fn target(&self) -> &Target {
        &self.0.target
    }

    /// The response has begun.
    pub(super) fn responded(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100);
        if let Some(counter) = self.0.cluster.state.stats.upstream_rq_xx.get(class) {
            count(counter);
        }
        if let Target::Host(host) = &self.0.target {
            if status.is_server_error() {
                count(&host.state.rq_error);
            } else {
                count(&host.state.rq_success);
            }
        }
    }

    /// The response will be followed by another attempt.
    pub(super) fn retried(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100);
        if let Some(counter) = self.0.cluster.state.stats.retry_upstream_rq_xx.get(class) {
            count(counter);
        }
        if let Target::Host(host) = &self.0.target {
            count(&host.state.rq_error);
        }
    }

    /// Tells outlier detection how the attempt went.
    pub(super) fn observe(&self, outcome: outlier::Outcome) {
        if let Target::Host(host) = &self.0.target {
            outlier::observe(&self.0.cluster, host, outcome);
        }
    }

    /// Takes the endpoint's report of its load, where requests are given by it.
    pub(super) fn reported(&self, headers: &HeaderMap) {
        if let (Some(config), Target::Host(host)) =
            (&self.0.cluster.config.client_weights, &self.0.target)
            && let Some(report) = LoadReport::of(headers)
        {
            host.state.reported.take(&report, config);
        }
    }

    /// There was no response.
    pub(super) fn failed(&self) {
        tracing::debug!(
            cluster = %self.0.cluster.config.name,
            address = %self.0.target.address(),
            "no response"
        );
    }

    /// An attempt took too long.
    pub(super) fn per_try_timed_out(&self) {
        count(&self.0.cluster.state.stats.upstream_rq_per_try_timeout);
    }

    /// The route's timeout ended it.
    pub(super) fn timed_out(&self) {
        count(&self.0.cluster.state.stats.upstream_rq_timeout);
    }
}

/// Whose connections upstream requests are sent over.
#[derive(Clone, Copy)]
pub(super) struct Sender<'a> {
    /// The client's.
    pub(super) connection: &'a Rc<super::Connection>,
    /// What is offered in TLS handshakes, instead of what the cluster says.
    pub(super) alpn: Option<&'a AlpnOverride>,
    /// What is written down of the request; `None`: it is nobody's.
    pub(super) record: Option<&'a Record>,
    /// The upstream of a CONNECT request gets its bytes only.
    pub(super) connect_ends: bool,
}

impl Exchange<'_> {
    pub(super) fn sender(&self, forward: &Forward) -> Sender<'_> {
        Sender {
            connection: self.connection,
            alpn: self.hcm.alpn.as_deref(),
            record: Some(self.record),
            connect_ends: forward.connect_ends,
        }
    }
}

impl Sender<'_> {
    /// Sends the request and waits for the response's headers. `last`: the request need not be
    /// kept for another attempt.
    pub(super) async fn send(
        &self,
        serving: &Serving,
        request: &mut Request,
        body: RequestBody,
        last: bool,
    ) -> Result<Answer, Failure> {
        if self.connect_ends && request.method == Method::CONNECT {
            return self.send_nothing(serving).await;
        }
        let cluster = &serving.0.cluster;
        let http2 = match &cluster.config.protocol {
            UpstreamProtocol::Http2(options) => Some(options),
            UpstreamProtocol::Downstream(options) if request.version == Version::HTTP_2 => {
                Some(options)
            }
            _ => None,
        };
        if let Some(here) = self.arrive(serving, http2.is_some(), request) {
            let http2 = http2.is_some();
            return Ok(Self::send_here(&here, http2, request, body, last).await);
        }
        match http2 {
            Some(options) => {
                let message = http2_request(request, body, last).ok_or(Failure::Client)?;
                self.send_http2(serving, options, message).await
            }
            None => self.send_http1(serving, request, body).await,
        }
    }

    /// A connection for the bytes of a client that asked for one
    /// (Envoy: `TcpUpstream`).
    async fn send_nothing(&self, serving: &Serving) -> Result<Answer, Failure> {
        let key = self.key(serving);
        let first = self
            .connection
            .context
            .pool
            .borrow_mut()
            .queue(&key)
            .is_first();
        let (stream, open) = self.connect(serving, false, first).await?;
        self.upstream_local(open.local());
        Ok(Answer {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: UpstreamStream::Tunnel(Box::new(Tunnel::new(stream, open))),
        })
    }

    /// What is offered in a handshake instead of the cluster's protocols.
    pub(super) fn offer(&self, http2: bool) -> Option<&Offer> {
        let alpn = self.alpn?;
        let offer = if http2 { &alpn.http2 } else { &alpn.http1 };
        offer.as_ref()
    }

    fn upstream_local(&self, local: Option<SocketAddr>) {
        if let Some(record) = self.record {
            record.upstream_local(local);
        }
    }

    fn key(&self, serving: &Serving) -> Key {
        let transport = serving.0.target.transport(&serving.0.cluster);
        let tunnel = match transport {
            UpstreamTransport::Hbone(_) => self.connection.context.tls.generation(),
            UpstreamTransport::Plain | UpstreamTransport::Tls(_) => 0,
        };
        Key {
            tunnel,
            cluster: Arc::as_ptr(&serving.0.cluster.state) as usize,
            address: serving.0.target.address(),
            netns: self.connection.caught.pod.netns.cookie(),
            transport: Context::of(transport),
        }
    }

    async fn send_http1(
        &self,
        serving: &Serving,
        request: &Request,
        mut body: RequestBody,
    ) -> Result<Answer, Failure> {
        let cluster = &serving.0.cluster;
        let worker = &self.connection.context;
        let key = self.key(serving);
        loop {
            let idle = worker.pool.borrow_mut().take_http1(&key);
            let reused = idle.is_some();
            let connection = match idle {
                Some(connection) => connection,
                None => self.obtain(serving, &key).await?,
            };
            self.upstream_local(connection.local());
            let home = Home {
                worker: worker.clone(),
                key: key.clone(),
                max_requests: cluster.config.max_requests_per_connection,
                trailers: cluster.config.http1_trailers,
            };
            match exchange(connection, home, request, body).await {
                Ok(response) => {
                    return Ok(Answer {
                        status: response.status,
                        headers: response.headers,
                        body: UpstreamStream::Http1(response.body),
                    });
                }
                // The upstream closed an idle connection while the request was on its way. What
                // is safe to ask twice (RFC 9110, 9.2.2) is asked again.
                Err(Unanswered::Reset(Some(unsent)))
                    if reused && request.method.is_idempotent() =>
                {
                    body = unsent;
                }
                Err(Unanswered::Reset(_)) => return Err(Failure::Reset),
                Err(Unanswered::Protocol) => return Err(Failure::Protocol),
                Err(Unanswered::Client) => return Err(Failure::Client),
            }
        }
    }

    /// A connection for a request that found none idle: a new one or, where the cluster may have
    /// no more of them, the next one that becomes free.
    async fn obtain(&self, serving: &Serving, key: &Key) -> Result<Connection, Failure> {
        let cluster = &serving.0.cluster;
        let Some(_pending) = cluster.breakers.of(serving.0.priority).hold_pending() else {
            count(&cluster.state.stats.upstream_rq_pending_overflow);
            return Err(Failure::Overflow);
        };
        let queue = self.connection.context.pool.borrow_mut().queue(key);
        loop {
            let first = queue.is_first();
            let place = queue.place();
            match self.connect(serving, false, first).await {
                Ok((stream, open)) => {
                    let idle = cluster.config.idle_timeout;
                    return Ok(Connection::new(stream, open, place, idle));
                }
                Err(Failure::Overflow) => {}
                Err(failure) => return Err(failure),
            }
            // Nobody is told of this place: there never was a connection.
            place.give_up();
            match queue.wait().await {
                Freed::Connection(mut connection) => {
                    if connection.is_usable() {
                        return Ok(*connection);
                    }
                }
                Freed::Place => {}
            }
        }
    }

    async fn send_http2(
        &self,
        serving: &Serving,
        options: &Http2Options,
        mut request: http::Request<RequestBody>,
    ) -> Result<Answer, Failure> {
        let key = self.key(serving);
        for _ in 0..2 {
            let (place, is_new) = self.stream(serving, options, &key).await?;
            self.upstream_local(place.local());
            match place.sender().try_send_request(request).await {
                Ok(response) => {
                    let (parts, body) = response.into_parts();
                    return Ok(Answer {
                        status: parts.status,
                        headers: parts.headers,
                        body: UpstreamStream::Http2 {
                            body,
                            _place: place,
                        },
                    });
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) if !is_new => request = unsent,
                    _ => return Err(reset_by(&error.into_error())),
                },
            }
        }
        Err(Failure::Reset)
    }

    /// A place for a stream, and whether its connection is new.
    async fn stream(
        &self,
        serving: &Serving,
        options: &Http2Options,
        key: &Key,
    ) -> Result<(lines::Place, bool), Failure> {
        let cluster = &serving.0.cluster;
        let lines = self.connection.context.pool.borrow_mut().lines(key);
        if let Some(place) = lines.room() {
            return Ok((place, false));
        }
        let Some(_pending) = cluster.breakers.of(serving.0.priority).hold_pending() else {
            count(&cluster.state.stats.upstream_rq_pending_overflow);
            return Err(Failure::Overflow);
        };
        let connecting = match lines.way().await {
            Way::Open(place) => return Ok((place, false)),
            Way::Connect(connecting) => connecting,
            Way::Failed(failure) => return Err(failure),
        };
        let first = connecting.is_first();
        let (stream, open) = match self.connect(serving, true, first).await {
            Ok(connected) => connected,
            Err(Failure::Overflow) => {
                drop(connecting);
                let crowded = lines.crowded().ok_or(Failure::Overflow)?;
                return Ok((crowded, false));
            }
            Err(failure) => return Err(connecting.fail(failure)),
        };
        let limits = lines::Limits {
            max_requests: cluster.config.max_requests_per_connection,
            idle_timeout: cluster.config.idle_timeout,
        };
        let place = connecting.handshake(stream, options, limits, open).await?;
        Ok((place, true))
    }

    /// `first`: without it no request would ever be served, so it may exceed the limit.
    async fn connect(
        &self,
        serving: &Serving,
        http2: bool,
        first: bool,
    ) -> Result<(crate::proxy::stream::Stream, Open), Failure> {
        let offer = self.offer(http2);
        let (cluster, target) = (&serving.0.cluster, &serving.0.target);
        let context = &self.connection.context;
        tcp::connect(context, cluster, target, tcp::Limit::new(serving.0.priority, first), &self.connection.caught, offer).await.map_err(|error| {
            tracing::debug!(cluster = %cluster.config.name, address = %target.address(), %error, "connect failed");
            match error {
                ConnectError::Overflow => Failure::Overflow,
                ConnectError::Io(error) if error.kind() == io::ErrorKind::TimedOut => {
                    Failure::ConnectTimeout
                }
                ConnectError::Io(error) => {
                    if let Some(record) = self.record {
                        record.transport_failed(&error);
                    }
                    Failure::Connect
                }
            }
        })
    }
}

/// What ended an HTTP/2 stream.
fn reset_by(error: &hyper::Error) -> Failure {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return match error.reason() {
                Some(h2::Reason::REFUSED_STREAM) => Failure::Refused,
                _ if error.is_reset() && error.is_remote() => Failure::RemoteReset,
                _ if error.is_reset() => Failure::Protocol,
                _ => Failure::Reset,
            };
        }
        source = error.source();
    }
    Failure::Reset
}

/// The request in the form of HTTP/2: scheme, authority and path. `None`: a part of it has no
/// such form.
fn http2_request(
    request: &mut Request,
    body: RequestBody,
    last: bool,
) -> Option<http::Request<RequestBody>> {
    let mut uri = Uri::builder().authority(request.authority.as_bytes());
    if request.method != Method::CONNECT {
        uri = uri
            .scheme(request.scheme)
            .path_and_query(request.path.as_str());
    }
    let mut headers = if last {
        std::mem::take(&mut request.headers)
    } else {
        request.headers.clone()
    };
    headers.remove(header::CONNECTION);
    let mut message = http::Request::new(body);
    *message.method_mut() = request.method.clone();
    *message.uri_mut() = uri.build().ok()?;
    *message.version_mut() = Version::HTTP_2;
    *message.headers_mut() = headers;
    Some(message)
}
