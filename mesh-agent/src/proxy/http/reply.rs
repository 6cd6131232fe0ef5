//! Answers of our own, with Envoy's codes and texts.

use std::fmt::Write as _;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use super::body::ProxyBody;

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// A local reply. An empty text has no content type, as Envoy's.
pub(super) fn local(status: StatusCode, text: &'static str) -> Response<ProxyBody> {
    with_body(status, Bytes::from_static(text.as_bytes()))
}

/// As [`local`], with any body.
pub(super) fn with_body(status: StatusCode, body: Bytes) -> Response<ProxyBody> {
    let length = body.len();
    let mut response = Response::new(ProxyBody::Own((length > 0).then_some(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if length > 0 {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    response
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
pub(super) fn for_grpc(response: &mut Response<ProxyBody>) {
    let status = response.status();
    let message = match response.body_mut() {
        ProxyBody::Own(body) => body.take(),
        ProxyBody::Upstream(_) => return,
    };
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, GRPC);
    headers.insert(GRPC_STATUS, HeaderValue::from(grpc_status(status)));
    if let Some(message) = message
        && let Ok(message) = HeaderValue::try_from(percent_encoded(&message))
    {
        headers.insert(GRPC_MESSAGE, message);
    }
}

/// gRPC's own table (`doc/http-grpc-status-mapping.md`).
fn grpc_status(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
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
