//! What is known of a request: gathered on its way and told once, at its end.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};

use crate::config::model::Name;
use crate::config::model::access_log::{AccessLogs, Piece};
use crate::config::model::response_flag::{ResponseFlag, ResponseFlags};
use crate::identity::SpiffeId;
use crate::proxy::ListenerKind;
use crate::proxy::lb::Target;
use crate::proxy::record::transport_failure;
use crate::snapshot::ClusterView;
use crate::telemetry::access_log::{
    self, Addresses, Entry, Fields, Head, Kept, Kind, RequestHead, Spans, keep,
};
use crate::telemetry::peer::Peer;
use crate::telemetry::requests::{Finished, Reporter};

use super::Connection;
use super::body::{BodyError, Progress, ProxyBody, UpstreamStream};
use super::grpc_messages::Messages;
use super::message::{Metadata, Reply, Request, Why};
use super::reply::{grpc_status, is_grpc};

/// gRPC's status of a call nothing is known of.
const UNKNOWN: u16 = 2;

/// One request's record. The request, its body and its response are held by different parts of
/// one thread; each writes down what it knows.
pub(super) struct Record {
    connection: Rc<Connection>,
    logs: Arc<AccessLogs>,
    started: Instant,
    begun: SystemTime,
    version: Version,
    grpc: bool,
    progress: Progress,
    /// Bytes of the response's body.
    sent: Cell<u64>,
    /// gRPC's messages in it.
    messages: Cell<Messages>,
    facts: RefCell<Facts>,
    /// What access logs will want; empty without any.
    kept: RefCell<Heads>,
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Record")
            .field("facts", &self.facts)
            .finish_non_exhaustive()
    }
}

/// Heads of messages, as far as access logs look at them.
#[derive(Debug, Default)]
struct Heads {
    request: Option<RequestHead>,
    response: Kept,
    trailers: Kept,
    metadata: Metadata,
}

/// Heads of messages that are on their way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Live<'a> {
    pub(super) request: Head<'a>,
    pub(super) metadata: &'a Metadata,
    /// What the client will get; `None`: that is not known yet.
    pub(super) response: Option<Answering<'a>>,
}

/// A response before it is sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answering<'a> {
    pub(super) status: StatusCode,
    pub(super) headers: &'a HeaderMap,
    pub(super) why: &'a Why,
}

/// What an entry is made of beside the facts.
struct Told<'a> {
    request: Option<Head<'a>>,
    response: Fields<'a>,
    trailers: Fields<'a>,
    metadata: &'a Metadata,
    status: Option<StatusCode>,
    flags: ResponseFlags,
    details: &'a str,
    local_reply: &'a [u8],
    /// Whether the response was sent to its end.
    whole: bool,
    /// Whether somebody asks who is at the other end.
    peers: bool,
}

/// What is found out on the way.
#[derive(Debug, Default)]
struct Facts {
    /// Whose request it is, as trusted proxies say.
    remote: Option<IpAddr>,
    route: Option<Name>,
    cluster: Option<Arc<ClusterView>>,
    upstream: Option<Target>,
    /// Our end of the connection to it.
    upstream_local: Option<SocketAddr>,
    attempts: u32,
    /// When the response's head came from the upstream.
    answered: Option<Instant>,
    status: Option<StatusCode>,
    grpc_status: Option<u16>,
    flags: ResponseFlags,
    details: Cow<'static, str>,
    /// Why no connection to the upstream could be made.
    transport_failure: Option<Box<str>>,
}

impl Record {
    /// Begins with the request's head.
    pub(super) fn begin(
        connection: &Rc<Connection>,
        logs: Arc<AccessLogs>,
        request: &Request,
        progress: Progress,
    ) -> Rc<Self> {
        let grpc = is_grpc(&request.headers);
        Self::new(connection, logs, request.version, grpc, progress)
    }

    /// Of what is no request.
    pub(super) fn unread(connection: &Rc<Connection>, version: Version) -> Rc<Self> {
        let logs = connection.first().access_logs.clone();
        Self::new(connection, logs, version, false, Progress::unread())
    }

    fn new(
        connection: &Rc<Connection>,
        logs: Arc<AccessLogs>,
        version: Version,
        grpc: bool,
        progress: Progress,
    ) -> Rc<Self> {
        if grpc {
            progress.count_messages();
        }
        Rc::new(Self {
            connection: connection.clone(),
            logs,
            started: Instant::now(),
            begun: SystemTime::now(),
            version,
            grpc,
            progress,
            sent: Cell::new(0),
            messages: Cell::default(),
            facts: RefCell::default(),
            kept: RefCell::default(),
        })
    }

    /// Keeps what access logs look at of the request as it is now: they tell it as it was last.
    pub(super) fn keep(&self, request: &Request) {
        if !self.logs.keeps() {
            return;
        }
        let kept = &mut *self.kept.borrow_mut();
        kept.request = Some(RequestHead {
            method: request.method.clone(),
            path: request
                .path
                .to_value()
                .unwrap_or_else(|| HeaderValue::from_static("")),
            authority: request.authority.clone(),
            scheme: request.scheme,
            headers: keep(&request.headers, &self.logs.wanted.request),
        });
        if !request.metadata.is_empty() {
            kept.metadata = request.metadata.clone();
        }
    }

    /// Whose request it is, as trusted proxies say.
    pub(super) fn remote(&self, remote: IpAddr) {
        self.facts.borrow_mut().remote = Some(remote);
    }

    /// The route that was found.
    pub(super) fn routed(&self, route: &Name) {
        self.facts.borrow_mut().route = Some(route.clone());
    }

    /// The cluster that was chosen.
    pub(super) fn cluster(&self, cluster: &Arc<ClusterView>) {
        self.facts.borrow_mut().cluster = Some(cluster.clone());
    }

    /// The endpoint that is tried, for the how-manieth time.
    pub(super) fn attempt(&self, target: &Target, number: u32) {
        let facts = &mut *self.facts.borrow_mut();
        facts.upstream = Some(target.clone());
        facts.attempts = number;
        facts.transport_failure = None;
        facts.upstream_local = None;
    }

    /// It is asked of the cluster for an endpoint.
    pub(super) fn asks(&self) {
        self.facts.borrow_mut().attempts = 1;
    }

    /// Our end of the connection to the endpoint.
    pub(super) fn upstream_local(&self, local: Option<SocketAddr>) {
        self.facts.borrow_mut().upstream_local = local;
    }

    /// No connection could be made.
    pub(super) fn transport_failed(&self, error: &std::io::Error) {
        let reason = transport_failure(error).into_boxed_str();
        self.facts.borrow_mut().transport_failure = Some(reason);
    }

    /// Why no connection could be made, in the form of response code details.
    pub(super) fn transport_failure(&self) -> Option<Box<str>> {
        self.facts.borrow().transport_failure.clone()
    }

    /// The response's head came from the upstream.
    pub(super) fn answered(&self) {
        self.facts.borrow_mut().answered = Some(Instant::now());
    }

    /// Adds a flag that does not come with the response.
    pub(super) fn flag(&self, flag: ResponseFlag) {
        self.facts.borrow_mut().flags.set(flag);
    }

    /// The response as the client gets it.
    pub(super) fn responds(&self, reply: &mut Reply) {
        let facts = &mut *self.facts.borrow_mut();
        let Why { flags, details } = std::mem::take(&mut reply.why);
        facts.status = Some(reply.status);
        facts.flags.add(flags);
        facts.details = details;
        self.grpc_status(facts, &reply.headers);
        if !self.logs.is_empty() {
            let response = keep(&reply.headers, &self.logs.wanted.response);
            self.kept.borrow_mut().response = response;
        }
    }

    /// A piece of the response's body.
    pub(super) fn took(&self, data: &[u8]) {
        self.sent.set(self.sent.get() + data.len() as u64);
        if self.grpc {
            let mut messages = self.messages.get();
            messages.take(data);
            self.messages.set(messages);
        }
    }

    /// What came behind the response's body.
    pub(super) fn trailers(&self, trailers: &HeaderMap) {
        self.grpc_status(&mut self.facts.borrow_mut(), trailers);
        if !self.logs.is_empty() {
            self.kept.borrow_mut().trailers = keep(trailers, &self.logs.wanted.trailers);
        }
    }

    fn grpc_status(&self, facts: &mut Facts, headers: &HeaderMap) {
        const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
        if self.grpc
            && let Some(status) = headers.get(GRPC_STATUS)
        {
            facts.grpc_status = status.to_str().ok().and_then(|status| status.parse().ok());
        }
    }

    /// The upstream, or time, ended the response.
    pub(super) fn cut_off(&self, error: &BodyError, body: &ProxyBody) {
        self.facts.borrow_mut().cut_off(error, body);
    }

    /// What an upgraded connection carried.
    pub(super) fn carried(&self, sent: u64, received: u64) {
        self.sent.set(self.sent.get() + sent);
        self.progress.carried(received);
    }

    /// Tells everything. `whole`: the response was sent to its end.
    pub(super) fn end(&self, whole: bool) {
        let facts = &mut *self.facts.borrow_mut();
        if !whole && facts.flags.is_empty() {
            facts.gone(self.version);
        }
        self.count(facts);
        if !self.logs.is_empty() {
            self.log(facts, whole);
        }
    }

    /// Adds to Istio's metrics, and to the cluster's.
    fn count(&self, facts: &Facts) {
        let connection = &*self.connection;
        let (caught, peer) = (&connection.caught, &connection.place.peer);
        let duration = self.started.elapsed();
        let upstream = facts.upstream.as_ref();
        if let (Some(cluster), Some(_)) = (&facts.cluster, facts.answered) {
            let micros = duration.as_micros() as u64;
            cluster.state.stats.upstream_rq_time.observe(micros);
        }
        let mut finished = Finished {
            reporter: Reporter::Source,
            pod: &caught.pod,
            other: upstream.map(|target| target.address().ip()),
            endpoint: upstream.and_then(Target::workload),
            cluster: facts.cluster.as_ref(),
            source_principal: None,
            destination_principal: None,
            mutual_tls: false,
            status: facts.status.map_or(0, |status| status.as_u16()),
            grpc_status: self.grpc_status_of(facts),
            flags: facts.flags,
            duration,
            request_bytes: self.progress.bytes(),
            response_bytes: self.sent.get(),
            messages: self
                .grpc
                .then(|| (self.progress.messages(), self.messages.get().count())),
        };
        match caught.kind {
            ListenerKind::Inbound | ListenerKind::Hbone => {
                let names = peer.names.as_deref().unwrap_or_default();
                let principal = names.iter().find(|name| name.starts_with("spiffe://"));
                finished.reporter = Reporter::Destination;
                finished.other = Some(caught.peer.ip());
                finished.endpoint = None;
                finished.source_principal = principal.cloned();
                finished.destination_principal = peer.local.as_ref().map(|id| id.name().clone());
                finished.mutual_tls = peer.names.is_some();
            }
            ListenerKind::Outbound => {
                let (Some(cluster), Some(target)) = (&facts.cluster, upstream) else {
                    return connection.context.requests.count(&finished);
                };
                if !target.transport(cluster).is_plain() {
                    finished.source_principal = Some(connection.principal().clone());
                }
            }
        }
        connection.context.requests.count(&finished);
    }

    /// The status of a gRPC call; `None`: it is none.
    fn grpc_status_of(&self, facts: &Facts) -> Option<u16> {
        self.grpc.then(|| {
            let of_http = || facts.status.map_or(UNKNOWN, grpc_status);
            facts.grpc_status.unwrap_or_else(of_http)
        })
    }

    /// A text, computed from what is known by now. `omit_empty`: what has no value is left out
    /// instead of written as `-`.
    pub(super) fn value(&self, pieces: &[Piece], live: &Live<'_>, omit_empty: bool) -> Vec<u8> {
        let facts = &*self.facts.borrow();
        let answering = live.response;
        let told = Told {
            request: Some(live.request),
            response: answering.map_or(Fields::NONE, |reply| Fields::All(reply.headers)),
            trailers: Fields::NONE,
            metadata: live.metadata,
            status: answering.map(|reply| reply.status),
            flags: answering.map_or_else(ResponseFlags::default, |reply| reply.why.flags),
            details: answering.map_or("", |reply| &reply.why.details),
            local_reply: &[],
            whole: false,
            peers: true,
        };
        let mut value = Vec::with_capacity(64);
        self.with_entry(facts, &told, |entry| {
            access_log::text(pieces, entry, omit_empty, &mut value);
        });
        value
    }

    /// What is made of an answer of our own, told as its entry would be.
    pub(super) fn of_reply<R>(
        &self,
        answering: Answering<'_>,
        body: &[u8],
        use_it: impl FnOnce(&Entry<'_>) -> R,
    ) -> R {
        let kept = &*self.kept.borrow();
        let told = Told {
            request: kept.request.as_ref().map(RequestHead::head),
            response: Fields::All(answering.headers),
            trailers: Fields::NONE,
            metadata: &kept.metadata,
            status: Some(answering.status),
            flags: answering.why.flags,
            details: &answering.why.details,
            local_reply: body,
            whole: false,
            peers: self.logs.wanted.peers,
        };
        self.with_entry(&self.facts.borrow(), &told, use_it)
    }

    fn log(&self, facts: &Facts, whole: bool) {
        let kept = &*self.kept.borrow();
        let told = Told {
            request: kept.request.as_ref().map(RequestHead::head),
            response: Fields::Kept(&kept.response),
            trailers: Fields::Kept(&kept.trailers),
            metadata: &kept.metadata,
            status: facts.status,
            flags: ResponseFlags::default(),
            details: &facts.details,
            local_reply: &[],
            whole,
            peers: self.logs.wanted.peers,
        };
        let log = &self.connection.context.shared.access_log;
        self.with_entry(facts, &told, |entry| log.log(&self.logs, entry));
    }

    fn with_entry<R>(
        &self,
        facts: &Facts,
        told: &Told<'_>,
        use_it: impl FnOnce(&Entry<'_>) -> R,
    ) -> R {
        let connection = &*self.connection;
        let (caught, place) = (&connection.caught, &connection.place);
        let since = |moment: Instant| moment.saturating_duration_since(self.started);
        let remote = match facts.remote {
            // A proxy before does not say from which port.
            Some(remote) if remote != caught.peer.ip() => SocketAddr::new(remote, 0),
            _ => caught.peer,
        };
        let upstream = facts.upstream.as_ref().map(Target::address);
        let peer = |ip: Option<IpAddr>| {
            let known = ip.filter(|_| told.peers)?;
            connection.context.requests.peer(known)
        };
        let mut client = peer(Some(caught.peer.ip()));
        if let Some(client) = &mut client {
            let names = place.peer.names.as_deref().unwrap_or_default();
            client.principal = names.first().cloned();
        }
        let server = peer(upstream.map(|address| address.ip())).or_else(|| {
            let target = facts.upstream.as_ref().filter(|_| told.peers)?;
            target.workload().map(Peer::of_endpoint)
        });
        let entry = Entry {
            kind: Kind::Request,
            started: self.begun,
            spans: Spans {
                whole: self.started.elapsed(),
                request: match self.progress.ended_at() {
                    Some(ended) => Some(since(ended)),
                    None => self.progress.ended().then_some(Duration::ZERO),
                },
                response: facts.answered.map(since),
                complete: told.whole,
            },
            bytes_received: self.progress.bytes(),
            bytes_sent: self.sent.get(),
            protocol: Some(match self.version {
                Version::HTTP_10 => "HTTP/1.0",
                Version::HTTP_2 => "HTTP/2",
                _ => "HTTP/1.1",
            }),
            status: told.status.map(|status| status.as_u16()),
            details: told.details,
            termination: "",
            flags: {
                let mut flags = facts.flags;
                flags.add(told.flags);
                flags
            },
            attempts: facts.attempts,
            route: facts.route.as_deref().unwrap_or_default(),
            chain: &place.chain,
            cluster: facts
                .cluster
                .as_deref()
                .map(|cluster| &*cluster.config.name),
            transport_failure: facts.transport_failure.as_deref(),
            addresses: Addresses {
                remote,
                direct_remote: caught.peer,
                local: caught.destination,
                upstream,
                upstream_local: facts.upstream_local,
            },
            request: told.request,
            response: told.response,
            trailers: told.trailers,
            local_reply: told.local_reply,
            grpc_status: self.grpc_status_of(facts),
            metadata: told.metadata,
            server_name: place.peer.server_name.as_deref(),
            certificate: place.peer.certificate.as_deref(),
            local_identity: place.peer.local.as_ref().map(SpiffeId::as_str),
            connection_id: caught.id,
            peers: [client.as_ref(), server.as_ref()],
        };
        use_it(&entry)
    }
}

impl Facts {
    /// The client left before the end.
    fn gone(&mut self, version: Version) {
        let (flag, details) = if version == Version::HTTP_2 {
            (ResponseFlag::DownstreamRemoteReset, "http2.remote_reset")
        } else {
            (
                ResponseFlag::DownstreamConnectionTermination,
                "downstream_remote_disconnect",
            )
        };
        self.flags.set(flag);
        self.details = details.into();
    }

    /// The upstream, or time, ended the response.
    fn cut_off(&mut self, error: &BodyError, body: &ProxyBody) {
        let http1 = match body {
            ProxyBody::Upstream(streamed) => !matches!(streamed.body, UpstreamStream::Http2 { .. }),
            ProxyBody::Own(_) | ProxyBody::Compressed(_) => false,
        };
        let (flag, details) = match error {
            // A message that HTTP/1 promised is not whole: a breach of it.
            BodyError::Upstream(_) if http1 => (
                ResponseFlag::UpstreamProtocolError,
                "upstream_reset_after_response_started{protocol_error}",
            ),
            BodyError::Upstream(_) => (
                ResponseFlag::UpstreamConnectionTermination,
                "upstream_reset_after_response_started{connection_termination}",
            ),
            BodyError::Timeout => (ResponseFlag::UpstreamRequestTimeout, "response_timeout"),
            BodyError::Idle => (ResponseFlag::StreamIdleTimeout, "stream_idle_timeout"),
        };
        self.flags.set(flag);
        self.details = details.into();
    }
}
