//! Calls of services that filters depend on: over a cluster of the view, on the worker's own
//! connections. Nothing is retried: a filter says what becomes of a request without an answer.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use prost::Message;

use crate::config::model::cluster::RoutingPriority;
use crate::config::model::filter::service::GrpcService;
use crate::config::model::listener::HttpConnectionManager;
use crate::proxy::lb;
use crate::proxy::stats::count;
use crate::snapshot::View;
use crate::snapshot::outlier::Outcome;

use super::body::{RequestBody, UpstreamStream};
use super::headers::{EXPECTED_TIMEOUT, INTERNAL_REQUEST};
use super::message::{Metadata, Path, Request};
use super::upstream::{Failure, Sender, Serving};

/// Most bytes of an answer.
const MOST: usize = 16 << 20;
/// What stands before a gRPC message: whether it is compressed, and its length.
const PREFIX: usize = 5;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// A whole answer.
#[derive(Debug)]
pub(super) struct Called {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) trailers: Option<HeaderMap>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// Nobody defines it.
    #[error("the cluster does not exist")]
    NoCluster,
    /// All are gone or ejected.
    #[error("the cluster has no endpoint to use")]
    NoEndpoint,
    /// No response.
    #[error("the service does not answer: {0:?}")]
    Failed(Failure),
    /// It began.
    #[error("the answer broke off: {0}")]
    Broken(io::Error),
    /// It is not worth the memory.
    #[error("the answer is longer than {MOST} bytes")]
    TooLong,
    /// The service is slow.
    #[error("no answer in time")]
    TimedOut,
    /// gRPC's own status; 2 also stands for what is not gRPC.
    #[error("the service answers with gRPC status {0}")]
    Grpc(u16),
    /// It does not hold what it should.
    #[error("the answer is malformed: {0}")]
    Malformed(prost::DecodeError),
}

/// Whose connections a filter's calls are sent over.
pub(super) fn sender<'a>(
    connection: &'a Rc<super::Connection>,
    hcm: &'a HttpConnectionManager,
) -> Sender<'a> {
    Sender {
        connection,
        alpn: hcm.alpn.as_deref(),
        record: None,
        connect_ends: false,
    }
}

/// A request of our own.
pub(super) fn request(method: Method, scheme: &'static str, authority: HeaderValue) -> Request {
    Request {
        method,
        path: Path::root(),
        authority,
        scheme,
        version: Version::HTTP_11,
        headers: HeaderMap::new(),
        metadata: Metadata::default(),
        pinned: None,
        redirects: None,
        early: None,
    }
}

/// Sends a request to a cluster and reads the whole answer.
pub(super) async fn call(
    sender: Sender<'_>,
    view: &View,
    cluster: &str,
    mut request: Request,
    body: Bytes,
    timeout: Option<Duration>,
) -> Result<Called, CallError> {
    let calling = async {
        let cluster = view.clusters.get(cluster).ok_or(CallError::NoCluster)?;
        let asked = lb::Asked::request(sender.connection.caught.destination, &request.headers);
        let Some(target) = lb::pick(cluster, &asked) else {
            count(&cluster.state.stats.upstream_cx_none_healthy);
            return Err(CallError::NoEndpoint);
        };
        let serving = Serving::begin(cluster, &target, RoutingPriority::Default)
            .ok_or(CallError::Failed(Failure::Overflow))?;
        if !body.is_empty() {
            let length = HeaderValue::from(body.len());
            request.headers.insert(header::CONTENT_LENGTH, length);
        }
        let headers = &mut request.headers;
        headers.insert(INTERNAL_REQUEST, HeaderValue::from_static("true"));
        if let Some(timeout) = timeout {
            let milliseconds = HeaderValue::from(timeout.as_millis() as u64);
            headers.insert(EXPECTED_TIMEOUT, milliseconds);
        }
        let pieces = (!body.is_empty()).then_some(body);
        let body = RequestBody::of_pieces(pieces);
        let answer = match sender.send(&serving, &mut request, body, true).await {
            Ok(answer) => answer,
            Err(failure) => {
                if failure != Failure::Overflow {
                    serving.observe(Outcome::Failed);
                }
                serving.failed();
                return Err(CallError::Failed(failure));
            }
        };
        serving.observe(Outcome::Response(answer.status.as_u16()));
        serving.responded(answer.status);
        let (body, trailers) = whole(answer.body).await?;
        Ok(Called {
            status: answer.status,
            headers: answer.headers,
            body,
            trailers,
        })
    };
    match timeout {
        Some(limit) => tokio::time::timeout(limit, calling)
            .await
            .unwrap_or(Err(CallError::TimedOut)),
        None => calling.await,
    }
}

async fn whole(mut body: UpstreamStream) -> Result<(Bytes, Option<HeaderMap>), CallError> {
    let mut first = Bytes::new();
    let mut more = BytesMut::new();
    let mut trailers = None;
    loop {
        let data = match std::future::poll_fn(|cx| body.poll_frame(cx)).await {
            None => None,
            Some(Err(error)) => Some(Err(error)),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => Some(Ok(data)),
                Err(frame) => {
                    trailers = frame.into_trailers().ok();
                    continue;
                }
            },
        };
        match data {
            None => break,
            Some(Err(error)) => return Err(CallError::Broken(error)),
            Some(Ok(data)) if first.is_empty() && more.is_empty() => first = data,
            Some(Ok(data)) => {
                more.extend_from_slice(&std::mem::take(&mut first));
                more.extend_from_slice(&data);
            }
        }
        if first.len() + more.len() > MOST {
            return Err(CallError::TooLong);
        }
    }
    let body = if more.is_empty() {
        first
    } else {
        more.freeze()
    };
    Ok((body, trailers))
}

/// A gRPC call with one message each way.
pub(super) async fn unary<Q: Message, A: Message + Default>(
    sender: Sender<'_>,
    view: &View,
    service: &GrpcService,
    method: &'static str,
    message: &Q,
) -> Result<A, CallError> {
    let mut body = BytesMut::with_capacity(PREFIX + message.encoded_len());
    body.extend_from_slice(&[0]);
    let length = u32::try_from(message.encoded_len()).map_err(|_| CallError::TooLong)?;
    body.extend_from_slice(&length.to_be_bytes());
    message.encode(&mut body).map_err(|_| CallError::TooLong)?;
    let mut request = request(Method::POST, "http", service.authority.clone());
    request.version = Version::HTTP_2;
    request.path = Path::new(Bytes::from_static(method.as_bytes())).unwrap_or(Path::root());
    let headers = &mut request.headers;
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    let grpc = HeaderValue::from_static("application/grpc");
    headers.insert(header::CONTENT_TYPE, grpc);
    if let Some(timeout) = service.timeout
        && let Ok(timeout) = HeaderValue::try_from(format!("{}m", timeout.as_millis()))
    {
        headers.insert(GRPC_TIMEOUT, timeout);
    }
    for (name, value) in &service.metadata {
        headers.append(name, value.clone());
    }
    let body = body.freeze();
    let called = call(
        sender,
        view,
        &service.cluster,
        request,
        body,
        service.timeout,
    )
    .await?;
    let status = called.trailers.as_ref().unwrap_or(&called.headers);
    let status = status.get(GRPC_STATUS);
    match status.and_then(|status| status.to_str().ok()?.parse().ok()) {
        Some(0) => {}
        Some(status) => return Err(CallError::Grpc(status)),
        None => return Err(CallError::Grpc(2)),
    }
    let (prefix, message) = called
        .body
        .split_at_checked(PREFIX)
        .ok_or(CallError::Grpc(INTERNAL))?;
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    if prefix[0] != 0 || message.len() != length as usize {
        return Err(CallError::Grpc(INTERNAL));
    }
    A::decode(message).map_err(CallError::Malformed)
}

/// gRPC's status of a broken exchange.
const INTERNAL: u16 = 13;
