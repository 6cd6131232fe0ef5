//! HTTP/2 clients, by hyper.

use std::convert::Infallible;
use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, Version, header, request};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};

use crate::config::model::listener::HttpConnectionManager;
use crate::proxy::sniff::Prefixed;
use crate::proxy::stats::count;
use crate::proxy::stream::Stream;

use super::body::RequestBody;
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
        .initial_connection_window_size(4 << 20)
        .enable_connect_protocol();
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = connection.drained() => {
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

async fn answer(connection: &Rc<Connection>, request: http::Request<Incoming>) -> Response<Told> {
    let (parts, body) = request.into_parts();
    let head = parts.method == Method::HEAD;
    let (reply, ending) = match request_of(parts) {
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
    let mut response = Response::new(body);
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
    })
}
