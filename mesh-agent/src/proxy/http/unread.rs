//! What is left of a request on an HTTP/2 stream that has been answered.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;

/// What is taken of it at most: what a client sends without waiting for more window.
const MOST_BYTES: usize = 64 << 10;
/// How long the client may take, before its stream is reset (`NO_ERROR`, RFC 9113, 8.1).
const PATIENCE: Duration = Duration::from_secs(1);

/// Reads a little of it and throws it away.
pub(super) fn discard(body: Incoming) {
    tokio::task::spawn_local(async move {
        // Either way the stream ends here.
        let _ = tokio::time::timeout(PATIENCE, read(body)).await;
    });
}

async fn read(mut body: Incoming) {
    let mut room = MOST_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, bytes::Bytes::len);
        match room.checked_sub(length) {
            Some(left) => room = left,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::poll_fn;
    use std::task::Poll;

    use bytes::Bytes;
    use h2::Reason;
    use http::{Request, Response};
    use hyper::server::conn::http2;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::task::LocalSet;

    use super::super::LocalExecutor;
    use super::super::body::{ProxyBody, RequestBody};

    /// A server that answers at once and reads nothing, and a client in the middle of a request.
    async fn answered_early() -> (h2::SendStream<Bytes>, h2::PingPong) {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        tokio::task::spawn_local(async move {
            let service = service_fn(|request: Request<hyper::body::Incoming>| async move {
                drop(RequestBody::http2(request.into_body()));
                Ok::<_, Infallible>(Response::new(ProxyBody::Own(None)))
            });
            let serving = http2::Builder::new(LocalExecutor)
                .serve_connection(TokioIo::new(theirs), service)
                .await;
            assert!(serving.is_ok(), "{serving:?}");
        });
        let (sender, mut connection) = h2::client::handshake(ours).await.unwrap();
        let pings = connection.ping_pong().unwrap();
        tokio::task::spawn_local(async move { connection.await.unwrap() });
        let request = Request::post("http://x/").body(()).unwrap();
        let (response, body) = sender
            .ready()
            .await
            .unwrap()
            .send_request(request, false)
            .unwrap();
        assert_eq!(response.await.unwrap().status(), 200);
        (body, pings)
    }

    async fn reset_by_now(
        body: &mut h2::SendStream<Bytes>,
        pings: &mut h2::PingPong,
    ) -> Option<Reason> {
        pings.ping(h2::Ping::opaque()).await.unwrap();
        poll_fn(|cx| match body.poll_reset(cx) {
            Poll::Ready(reason) => Poll::Ready(Some(reason.unwrap())),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    #[tokio::test]
    async fn a_client_may_end_its_request_after_the_answer() {
        let checked = async {
            let (mut body, mut pings) = answered_early().await;
            assert_eq!(reset_by_now(&mut body, &mut pings).await, None);
            body.send_data("the rest".into(), true).unwrap();
            assert_eq!(reset_by_now(&mut body, &mut pings).await, None);
        };
        LocalSet::new().run_until(checked).await;
    }

    #[tokio::test]
    async fn one_that_goes_on_and_on_is_reset() {
        let checked = async {
            let (mut body, _pings) = answered_early().await;
            let reset = async {
                loop {
                    body.reserve_capacity(16 << 10);
                    tokio::select! {
                        reason = poll_fn(|cx| body.poll_reset(cx)) => return reason,
                        () = tokio::task::yield_now() => {}
                    }
                    // Refused once the stream is reset.
                    let _ = body.send_data(Bytes::from_static(&[0; 16 << 10]), false);
                }
            };
            assert_eq!(reset.await.unwrap(), Reason::NO_ERROR);
        };
        LocalSet::new().run_until(checked).await;
    }
}
