//! HTTP/2 clients, by hyper.

use std::cell::Cell;
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, Version, header, request};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::Instant;

use crate::config::model::listener::HttpConnectionManager;
use crate::proxy::sniff::Prefixed;
use crate::proxy::stats::count;
use crate::proxy::stream::Stream;

use super::body::{BodyError, RequestBody};
use super::message::{Metadata, Path, Reply, Request};
use super::reply::Refusal;
use super::told::Told;
use super::{Connection, LocalExecutor, exchange};

/// Serves a connection to its end.
pub(super) async fn serve(
    connection: &Rc<Connection>,
    stream: Prefixed<Stream>,
    hcm: &HttpConnectionManager,
) {
    let service = service_fn(|request: http::Request<Incoming>| {
        let connection = connection.clone();
        async move { Ok::<_, Infallible>(answer(&connection, request).await) }
    });
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(hcm.max_concurrent_streams)
        .max_header_list_size(hcm.max_request_headers_kib << 10)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20);
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = connection.drained() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
        () = idle(connection, hcm.idle_timeout) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result
        && (error.is_parse() || error.is_user())
    {
        count(&connection.context.shared.stats.downstream_cx_protocol_error);
    }
}

/// Ends when there was no stream for that long.
async fn idle(connection: &Connection, limit: Option<Duration>) {
    let Some(limit) = limit else {
        return std::future::pending().await;
    };
    loop {
        let since = connection.streams.idle_since();
        let look_at = since.unwrap_or_else(Instant::now) + limit;
        tokio::time::sleep_until(look_at).await;
        if since.is_some() && connection.streams.idle_since() == since {
            return;
        }
    }
}

/// The streams of a connection.
#[derive(Debug)]
pub(super) struct Streams {
    open: Cell<u32>,
    idle_since: Cell<Instant>,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            open: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
        }
    }
}

impl Streams {
    /// `None`: there are some.
    fn idle_since(&self) -> Option<Instant> {
        (self.open.get() == 0).then(|| self.idle_since.get())
    }
}

/// Counts a stream until its response was handed over whole.
pub(super) struct OpenStream(Rc<Connection>);

impl OpenStream {
    fn new(connection: &Rc<Connection>) -> Self {
        let open = &connection.streams.open;
        open.set(open.get() + 1);
        Self(connection.clone())
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let streams = &self.0.streams;
        streams.open.set(streams.open.get() - 1);
        streams.idle_since.set(Instant::now());
    }
}

/// A response's body, with what is counted until its end.
struct Counted {
    body: Told,
    _open: OpenStream,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

async fn answer(
    connection: &Rc<Connection>,
    request: http::Request<Incoming>,
) -> Response<Counted> {
    let open = OpenStream::new(connection);
    connection.count_stream();
    let (parts, body) = request.into_parts();
    let head = parts.method == Method::HEAD;
    let too_many = parts.headers.len() > connection.first().max_headers_count as usize;
    let parts = if too_many {
        Err(Refusal::codec(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "Request Header Fields Too Large",
        ))
    } else {
        request_of(parts)
    };
    let (reply, ending) = match parts {
        Ok(request) => exchange::handle(connection, request, RequestBody::http2(body)).await,
        Err(refusal) => exchange::refused(connection, refusal, Version::HTTP_2),
    };
    let Reply {
        status,
        mut headers,
        body,
        ..
    } = reply;
    let mut body = Told::new(body, ending);
    headers.remove(header::CONNECTION);
    if head {
        body.silence();
    }
    let mut response = Response::new(Counted { body, _open: open });
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn request_of(parts: request::Parts) -> Result<Request, Refusal> {
    let mut headers = parts.headers;
    let host = headers.remove(header::HOST);
    let authority = match parts.uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => host,
    };
    let path = match parts.uri.path_and_query() {
        Some(path) => Path::new(Bytes::copy_from_slice(path.as_str().as_bytes())),
        None => Some(Path::empty()),
    };
    let missing = Refusal::request(StatusCode::BAD_REQUEST);
    Ok(Request {
        method: parts.method,
        path: path.ok_or(missing)?,
        authority: authority.ok_or(missing)?,
        scheme: match parts.uri.scheme_str() {
            Some("https") => "https",
            _ => "http",
        },
        version: Version::HTTP_2,
        headers,
        metadata: Metadata::default(),
        pinned: None,
        redirects: None,
        early: None,
    })
}
