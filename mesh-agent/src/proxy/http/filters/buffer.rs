//! The whole body before the request goes on.

use std::pin::Pin;

use http::{HeaderValue, StatusCode, header};
use hyper::body::Body as _;

use crate::proxy::http::body::RequestBody;
use crate::proxy::http::message::{Reply, Request};
use crate::proxy::http::reply::local;

pub(super) async fn gather(
    limit: usize,
    request: &mut Request,
    body: &mut RequestBody,
) -> Result<(), Box<Reply>> {
    if body.is_end_stream() {
        return Ok(());
    }
    let mut pieces = Vec::new();
    let mut length = 0;
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
        let Ok(frame) = frame else {
            // What is sent on ends the same way.
            return Ok(());
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
    body.refill(pieces);
    if !request.headers.contains_key(header::CONTENT_LENGTH) {
        let length = HeaderValue::from(length);
        request.headers.insert(header::CONTENT_LENGTH, length);
    }
    Ok(())
}
