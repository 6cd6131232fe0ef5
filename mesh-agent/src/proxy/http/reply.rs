//! Answers of our own, with Envoy's codes and texts.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use super::body::ProxyBody;

/// A local reply. An empty text has no content type, as Envoy's.
pub(super) fn local(status: StatusCode, text: &'static str) -> Response<ProxyBody> {
    with_body(status, Bytes::from_static(text.as_bytes()))
}

/// As [`local`], with any body.
pub(super) fn with_body(status: StatusCode, body: Bytes) -> Response<ProxyBody> {
    let length = body.len();
    let mut response = Response::new(ProxyBody::Own((length > 0).then_some(body)));
    *response.status_mut() = status;
    if length > 0 {
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    response
        .headers_mut()
        .insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    response
}
