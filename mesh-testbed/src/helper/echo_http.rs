//! `echo-http`: says what it was asked.
//!
//! A request may ask for something else: `x-echo-status: 503` sets the status, `x-echo-delay-ms`
//! the wait before the response, `x-echo-bytes` a body of that length, `x-echo-header: a=b` a
//! header (`%2C` is a comma in it); `x-echo-header-NAME` is for the server called NAME. A list, as in `x-echo-status: 503,200`, has a value for each of a proxy's attempts, by
//! `x-envoy-attempt-count`; the last one holds for all that follow. `x-echo: body`, or a
//! content type of gRPC, streams the request's body back, with `grpc-status: 0` as trailer for
//! gRPC. A call of `grpc.health.v1.Health/Check` is told SERVING. What a request with `x-echo-remember: KEY` asked is told, instead of to itself only, to
//! one with `x-echo-recall: KEY`: a list, which waits for its first entry. An upgrade to anything is accepted; from then on bytes are sent back.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use clap::Args as ClapArgs;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, UPGRADE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use mesh_testbed::wire::Echo;
use tokio::sync::Notify;

use super::listen::{Listen, ends};

type Body = BoxBody<Bytes, hyper::Error>;

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// What it calls itself.
    #[arg(long, default_value = "echo")]
    name: String,
    /// The version it says it is.
    #[arg(long, default_value = "v1")]
    version: String,
    #[command(flatten)]
    listen: Listen,
}

/// Requests by key, and who waits for one.
#[derive(Debug, Default)]
struct Memory {
    echoes: Mutex<HashMap<String, Vec<Echo>>>,
    grown: Notify,
}

/// How long a recall waits.
const RECALL: Duration = Duration::from_secs(5);

impl Memory {
    fn remember(&self, key: &str, echo: &Echo) {
        let mut echoes = self.echoes.lock().expect("nobody panics with it");
        echoes.entry(key.to_owned()).or_default().push(echo.clone());
        drop(echoes);
        self.grown.notify_waiters();
    }

    async fn recall(&self, key: &str) -> Vec<Echo> {
        let waiting = async {
            loop {
                let grown = self.grown.notified();
                let mut grown = std::pin::pin!(grown);
                grown.as_mut().enable();
                let known = self
                    .echoes
                    .lock()
                    .expect("nobody panics with it")
                    .remove(key);
                if let Some(known) = known {
                    return known;
                }
                grown.await;
            }
        };
        tokio::time::timeout(RECALL, waiting)
            .await
            .unwrap_or_default()
    }
}

/// What a connection knows.
#[derive(Debug, Clone)]
struct Context {
    args: Arc<Args>,
    memory: Arc<Memory>,
    peer: SocketAddr,
    local: SocketAddr,
}

pub(crate) async fn serve(args: Args) -> Result<()> {
    let listener = args.listen.start()?;
    let args = Arc::new(args);
    let memory = Arc::new(Memory::default());
    loop {
        let (stream, _) = listener.accept().await?;
        // A client that is gone already has no addresses; the next one may.
        let Ok((peer, local)) = ends(&stream) else {
            continue;
        };
        stream.set_nodelay(true)?;
        let context = Context {
            args: args.clone(),
            memory: memory.clone(),
            peer,
            local,
        };
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let context = context.clone();
                async move { Ok::<_, Infallible>(context.answer(request).await) }
            });
            // A client that breaks off ends its own connection only.
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection_with_upgrades(TokioIo::new(stream), answer)
                .await;
        });
    }
}

impl Context {
    async fn answer(&self, mut request: Request<Incoming>) -> Response<Body> {
        let headers = request.headers();
        if let Some(key) = headers.get("x-echo-recall") {
            let key = String::from_utf8_lossy(key.as_bytes()).into_owned();
            let known = self.memory.recall(&key).await;
            return Response::new(full(serde_json::to_vec(&known).unwrap_or_default()));
        }
        if let Some(delay) = number::<u64>(headers, "x-echo-delay-ms") {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        let status = number::<u16>(headers, "x-echo-status")
            .and_then(|status| StatusCode::from_u16(status).ok())
            .unwrap_or(StatusCode::OK);
        let own = format!("x-echo-header-{}", self.args.name);
        let header = nth(headers, &own).or_else(|| nth(headers, "x-echo-header"));
        let header = header.and_then(|text| {
            let (name, value) = text.split_once('=')?;
            Some((
                hyper::header::HeaderName::from_str(name).ok()?,
                HeaderValue::from_str(&value.replace("%2C", ",")).ok()?,
            ))
        });
        if headers.contains_key(UPGRADE) {
            return upgrade(&mut request);
        }
        let grpc = headers
            .get(CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        let mirror = headers.get("x-echo").is_some_and(|value| value == "body");
        let bytes = number::<usize>(headers, "x-echo-bytes");
        let health = request.uri().path() == "/grpc.health.v1.Health/Check";
        let mut response = if grpc && health {
            serving()
        } else if grpc || mirror {
            mirrored(request, grpc)
        } else if let Some(bytes) = bytes {
            Response::new(full(vec![b'x'; bytes]))
        } else {
            self.echo(request).await
        };
        *response.status_mut() = status;
        if let Some((name, value)) = header {
            response.headers_mut().insert(name, value);
        }
        response
    }

    async fn echo(&self, request: Request<Incoming>) -> Response<Body> {
        let (head, mut body) = request.into_parts();
        let mut body_length = 0;
        while let Some(Ok(frame)) = body.frame().await {
            body_length += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        let text = |value: &HeaderValue| value.as_bytes().escape_ascii().to_string();
        let echo = Echo {
            name: self.args.name.clone(),
            version: self.args.version.clone(),
            method: head.method.to_string(),
            protocol: format!("{:?}", head.version),
            authority: head
                .uri
                .authority()
                .map(ToString::to_string)
                .or_else(|| head.headers.get(HOST).map(text)),
            path: head
                .uri
                .path_and_query()
                .map(ToString::to_string)
                .unwrap_or_default(),
            headers: head
                .headers
                .iter()
                .map(|(name, value)| (name.to_string(), text(value)))
                .collect(),
            body_length,
            peer: self.peer,
            local: self.local,
        };
        if let Some(key) = echo.header("x-echo-remember") {
            self.memory.remember(key, &echo);
        }
        let mut json = serde_json::to_vec(&echo).unwrap_or_default();
        json.push(b'\n');
        let mut response = Response::new(full(json));
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

/// The answer of a gRPC server that is well.
fn serving() -> Response<Body> {
    let message = [0, 0, 0, 0, 2, 0x08, 0x01];
    let trailers = HeaderMap::from_iter([(
        hyper::header::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]);
    let body = Full::new(Bytes::copy_from_slice(&message))
        .map_err(|never| match never {})
        .with_trailers(async { Some(Ok(trailers)) })
        .boxed();
    let mut response = Response::new(body);
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, grpc);
    response
}

/// The request's body, streamed back.
fn mirrored(request: Request<Incoming>, grpc: bool) -> Response<Body> {
    let content_type = request.headers().get(CONTENT_TYPE).cloned();
    let body = request.into_body();
    let mut response = Response::new(if grpc {
        let trailers = HeaderMap::from_iter([(
            hyper::header::HeaderName::from_static("grpc-status"),
            HeaderValue::from_static("0"),
        )]);
        Unsized(body)
            .with_trailers(async { Some(Ok(trailers)) })
            .boxed()
    } else {
        body.boxed()
    });
    if let Some(content_type) = content_type {
        response.headers_mut().insert(CONTENT_TYPE, content_type);
    }
    response
}

/// A body whose length is not announced: no gRPC server sends a content-length.
struct Unsized(Incoming);

impl hyper::body::Body for Unsized {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.0).poll_frame(context)
    }
}

/// Accepts the upgrade and sends back bytes.
fn upgrade(request: &mut Request<Incoming>) -> Response<Body> {
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = request.headers().get(UPGRADE) {
        headers.insert(UPGRADE, protocol.clone());
    }
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }
    });
    response
}

fn full(bytes: Vec<u8>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed()
}

fn number<T: FromStr>(headers: &HeaderMap, name: &str) -> Option<T> {
    nth(headers, name)?.parse().ok()
}

/// The value of a list that is meant for this attempt.
fn nth<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let attempt: usize = headers
        .get("x-envoy-attempt-count")
        .and_then(|count| count.to_str().ok()?.parse().ok())
        .unwrap_or(1);
    let list: Vec<&str> = headers.get(name)?.to_str().ok()?.split(',').collect();
    list.get(attempt.max(1) - 1)
        .or_else(|| list.last())
        .map(|value| value.trim())
}
