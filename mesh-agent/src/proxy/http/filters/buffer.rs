//! The whole body before the request goes on.

use std::pin::Pin;

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use hyper::body::Body as _;

use crate::proxy::http::body::RequestBody;
use crate::proxy::http::message::{Reply, Request};
use crate::proxy::http::reply::local;

/// Reads the whole body and tells its length.
pub(super) async fn check(
    limit: usize,
    request: &mut Request,
    body: &mut RequestBody,
) -> Result<(), Box<Reply>> {
    if body.is_end_stream() {
        return Ok(());
    }
    let pieces = gather(limit, body).await?;
    if body.is_whole() && !request.headers.contains_key(header::CONTENT_LENGTH) {
        let length: usize = pieces.iter().map(Bytes::len).sum();
        let length = HeaderValue::from(length);
        request.headers.insert(header::CONTENT_LENGTH, length);
    }
    Ok(())
}

/// Reads the whole body, which stays in the request, too.
pub(super) async fn gather(limit: usize, body: &mut RequestBody) -> Result<Vec<Bytes>, Box<Reply>> {
    if body.is_end_stream() {
        return Ok(Vec::new());
    }
    let mut pieces = Vec::new();
    let mut length = 0;
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
        let Ok(frame) = frame else {
            // What is sent on ends the same way.
            return Ok(Vec::new());
        };
        let Ok(data) = frame.into_data() else {
            continue;
        };
        length += data.len();
        if length > limit {
            let status = StatusCode::PAYLOAD_TOO_LARGE;
            let mut reply = local(status, "Payload Too Large").because("request_payload_too_large");
            let close = HeaderValue::from_static("close");
            reply.headers.insert(header::CONNECTION, close);
            return Err(Box::new(reply));
        }
        pieces.push(data);
    }
    body.refill(pieces.clone());
    Ok(pieces)
}
