//! Answers of our own, with Envoy's codes and texts.

use std::fmt::Write as _;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::body::ProxyBody;
use crate::config::model::response_flag::ResponseFlag;

use super::message::{Reply, Why};

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// gRPC's status of a call that took too long.
pub(super) const DEADLINE_EXCEEDED: u16 = 4;

/// Why a request is not taken; the connection ends with the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    status: StatusCode,
    text: &'static str,
    details: &'static str,
}

impl Refusal {
    /// The request breaks the protocol.
    pub(super) const MALFORMED: Self = Self::codec(StatusCode::BAD_REQUEST, "Bad Request");

    /// What Envoy's codec answers, with a text.
    pub(super) const fn codec(status: StatusCode, text: &'static str) -> Self {
        Self {
            status,
            text,
            details: "http1.codec_error",
        }
    }

    /// With other response code details.
    pub(super) const fn because(self, details: &'static str) -> Self {
        Self { details, ..self }
    }

    /// What Envoy's connection manager answers, without one.
    pub(super) const fn request(status: StatusCode) -> Self {
        Self {
            status,
            text: "",
            details: "missing_host_header",
        }
    }

    /// The answer.
    pub(super) fn reply(self) -> Reply {
        let reply = local(self.status, self.text).because(self.details);
        match self.text {
            "" => reply,
            _ => reply.flagged(ResponseFlag::DownstreamProtocolError),
        }
    }
}

/// A local reply. An empty text has no content type, as Envoy's.
pub(super) fn local(status: StatusCode, text: &'static str) -> Reply {
    with_body(status, Bytes::from_static(text.as_bytes()))
}

/// As [`local`], with any body.
pub(super) fn with_body(status: StatusCode, body: Bytes) -> Reply {
    let mut headers = HeaderMap::with_capacity(8);
    if !body.is_empty() {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    Reply {
        status,
        headers,
        body: ProxyBody::Own((!body.is_empty()).then_some(body)),
        grpc_status: None,
        tunnel: None,
        why: Why::default(),
        again: None,
    }
}

/// Whether a message is gRPC's (Envoy: `Grpc::Common::hasGrpcContentType`).
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+')))
}

/// A gRPC client reads trailers, not statuses: the reply becomes one of 200 whose headers say
/// what happened (Envoy: `Utility::prepareLocalReply`).
pub(super) fn for_grpc(reply: &mut Reply) {
    let ProxyBody::Own(body) = &mut reply.body else {
        return;
    };
    let mut message = body.take();
    // A JSON object's line ends; a message does not.
    if let Some(message) = &mut message
        && message.last() == Some(&b'\n')
        && reply
            .headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind == "application/json")
    {
        message.truncate(message.len() - 1);
    }
    let status = std::mem::replace(&mut reply.status, StatusCode::OK);
    let headers = &mut reply.headers;
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, GRPC);
    let status = reply.grpc_status.unwrap_or_else(|| grpc_status(status));
    headers.insert(GRPC_STATUS, HeaderValue::from(status));
    if let Some(message) = message
        && let Ok(message) = HeaderValue::try_from(percent_encoded(&message))
    {
        headers.insert(GRPC_MESSAGE, message);
    }
}

/// gRPC's own table (`doc/http-grpc-status-mapping.md`).
pub(super) fn grpc_status(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// The other way round (Envoy: `Grpc::Utility::grpcToHttpStatus`).
pub(super) fn http_status(grpc: u16) -> StatusCode {
    match grpc {
        0 => StatusCode::OK,
        3 | 9 | 11 => StatusCode::BAD_REQUEST,
        4 => StatusCode::GATEWAY_TIMEOUT,
        5 => StatusCode::NOT_FOUND,
        6 | 10 => StatusCode::CONFLICT,
        7 => StatusCode::FORBIDDEN,
        8 => StatusCode::TOO_MANY_REQUESTS,
        12 => StatusCode::NOT_IMPLEMENTED,
        14 => StatusCode::SERVICE_UNAVAILABLE,
        16 => StatusCode::UNAUTHORIZED,
        // Cancelled: the client's doing (499, which has no name).
        1 => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn percent_encoded(message: &[u8]) -> String {
    let mut text = String::with_capacity(message.len());
    for byte in message {
        match byte {
            b'%' | ..b' ' | b'~'.. => {
                let _ = write!(text, "%{byte:02X}");
            }
            _ => text.push(char::from(*byte)),
        }
    }
    text
}
