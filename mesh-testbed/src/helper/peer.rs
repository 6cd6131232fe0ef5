//! `filter-peer`: what filters ask: an authorization service, a rate limit service, and an HTTP
//! server for keys and checks. It has no mind of its own: the request that is judged says in
//! `x-answer` what to answer.
//!
//! gRPC: the response message in base64, or `tell` (allow, and hand on what was asked in
//! `x-asked`), `status:7` (a gRPC status), `sleep:300` (milliseconds, then allow), `garbage`,
//! `reset`. A rate limit service looks for it in a descriptor's entry `answer`.
//! HTTP: JSON in base64 (`status`, `headers`, `body`, `sleep_ms`), in the header or, for who cannot
//! send one, in the query's `answer`; without it, 200 and what was asked in `x-asked`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{BufMut as _, Bytes, BytesMut};
use clap::Args as ClapArgs;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue as PbHeader, HeaderValueOption};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse, OkHttpResponse};
use envoy_types::pb::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use prost::Message;
use serde::Deserialize;
use serde_json::json;

use super::listen::Listen;

type Body = BoxBody<Bytes, Infallible>;

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    #[command(flatten)]
    listen: Listen,
}

/// An HTTP answer, as asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Wanted {
    status: Option<u16>,
    headers: Vec<(String, String)>,
    body: String,
    sleep_ms: u64,
}

pub(crate) async fn serve(args: Args) -> Result<()> {
    let listener = args.listen.start()?;
    let asked = Arc::new(AtomicU64::new(0));
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let asked = asked.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let number = asked.fetch_add(1, Ordering::Relaxed) + 1;
                answer(request, number)
            });
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

/// No answer at all: the stream is reset, or the connection closed.
#[derive(Debug)]
struct Reset;

impl std::fmt::Display for Reset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("reset as asked")
    }
}

impl std::error::Error for Reset {}

async fn answer(request: Request<Incoming>, number: u64) -> Result<Response<Body>, Reset> {
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/envoy.service.auth.v3.Authorization/Check" => {
            let Some(check) = message::<CheckRequest>(request).await else {
                return Ok(grpc(None, 13));
            };
            authorize(&check).await
        }
        "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit" => {
            let Some(limit) = message::<RateLimitRequest>(request).await else {
                return Ok(grpc(None, 13));
            };
            limited(&limit).await
        }
        _ => http(request, number).await,
    }
}

async fn message<M: Message + Default>(request: Request<Incoming>) -> Option<M> {
    let body = request.into_body().collect().await.ok()?.to_bytes();
    M::decode(body.get(5..)?).ok()
}

fn grpc(message: Option<Bytes>, status: u16) -> Response<Body> {
    let trailers = HeaderMap::from_iter([(
        HeaderName::from_static("grpc-status"),
        HeaderValue::from(status),
    )]);
    let mut body = BytesMut::new();
    if let Some(message) = message {
        body.put_u8(0);
        body.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
        body.extend_from_slice(&message);
    }
    // Streamed: no gRPC server sends a content-length.
    let body = Full::new(body.freeze()).with_trailers(async { Some(Ok(trailers)) });
    let mut response = Response::new(body.boxed());
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// What the two services have in common. `tell` makes the message that hands on what was asked.
async fn said<M: Message + Default>(
    answer: &str,
    allow: &M,
    tell: impl FnOnce() -> M,
) -> Result<Response<Body>, Reset> {
    let whole = |message: &M| grpc(Some(message.encode_to_vec().into()), 0);
    let (word, argument) = answer.split_once(':').unwrap_or((answer, ""));
    Ok(match word {
        "" => whole(allow),
        "tell" => whole(&tell()),
        "status" => grpc(None, argument.parse().unwrap_or(2)),
        "sleep" => {
            tokio::time::sleep(Duration::from_millis(argument.parse().unwrap_or(0))).await;
            whole(allow)
        }
        "garbage" => grpc(Some(Bytes::from_static(b"\xff\xff\xff\xff")), 0),
        "reset" => return Err(Reset),
        encoded => match URL_SAFE_NO_PAD.decode(encoded) {
            Ok(message) => grpc(Some(message.into()), 0),
            Err(_) => grpc(None, 3),
        },
    })
}

fn header(key: &str, value: String) -> PbHeader {
    PbHeader {
        key: key.into(),
        value,
        ..Default::default()
    }
}

async fn authorize(check: &CheckRequest) -> Result<Response<Body>, Reset> {
    let attributes = check.attributes.clone().unwrap_or_default();
    let request = attributes.request.unwrap_or_default();
    let http = request.http.unwrap_or_default();
    let answer = http.headers.get("x-answer").cloned().unwrap_or_default();
    let allow = CheckResponse::default();
    said(&answer, &allow, || {
        let headers: BTreeMap<_, _> = http
            .headers
            .iter()
            .filter(|(name, _)| *name != "x-request-id")
            .collect();
        let extensions: BTreeMap<_, _> = attributes.context_extensions.iter().collect();
        let metadata = attributes.metadata_context.unwrap_or_default();
        let metadata: BTreeMap<_, _> = metadata
            .filter_metadata
            .iter()
            .map(|(name, value)| (name.clone(), format!("{value:?}")))
            .collect();
        let told = json!({
            "method": http.method, "path": http.path, "host": http.host, "scheme": http.scheme,
            "protocol": http.protocol, "size": http.size, "query": http.query,
            "body": http.body, "raw_body": http.raw_body.len(), "headers": headers,
            "extensions": extensions, "metadata": metadata,
            "time": request.time.is_some(),
            "source": attributes.source.is_some_and(|peer| peer.address.is_some()),
        });
        CheckResponse {
            http_response: Some(HttpResponse::OkResponse(OkHttpResponse {
                headers: vec![HeaderValueOption {
                    header: Some(header("x-asked", told.to_string())),
                    ..Default::default()
                }],
                ..Default::default()
            })),
            ..Default::default()
        }
    })
    .await
}

async fn limited(limit: &RateLimitRequest) -> Result<Response<Body>, Reset> {
    let entries = || limit.descriptors.iter().flat_map(|one| &one.entries);
    let answer = entries().find(|entry| entry.key == "answer");
    let answer = answer.map_or("", |entry| entry.value.as_str());
    let allow = RateLimitResponse {
        overall_code: 1,
        ..Default::default()
    };
    said(answer, &allow, || {
        let descriptors: Vec<_> = limit
            .descriptors
            .iter()
            .map(|one| {
                let entries = one.entries.iter();
                let entries: Vec<_> = entries.map(|e| format!("{}={}", e.key, e.value)).collect();
                json!({ "entries": entries, "limit": one.limit.is_some(),
                    "hits": one.hits_addend.as_ref().map(|hits| hits.value) })
            })
            .collect();
        let told = json!({ "domain": limit.domain, "hits": limit.hits_addend,
            "descriptors": descriptors });
        RateLimitResponse {
            request_headers_to_add: vec![header("x-asked", told.to_string())],
            ..allow.clone()
        }
    })
    .await
}

async fn http(request: Request<Incoming>, number: u64) -> Result<Response<Body>, Reset> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Reset)?.to_bytes();
    let by_header = parts.headers.get("x-answer");
    let by_header = by_header.and_then(|value| value.to_str().ok());
    let query = parts.uri.query().unwrap_or_default();
    let by_query = query.split('&').find_map(|one| one.strip_prefix("answer="));
    let answer = by_header.or(by_query);
    if answer == Some("reset") {
        return Err(Reset);
    }
    let wanted: Wanted = answer
        .and_then(|encoded| URL_SAFE_NO_PAD.decode(encoded).ok())
        .and_then(|json| serde_json::from_slice(&json).ok())
        .unwrap_or_default();
    tokio::time::sleep(Duration::from_millis(wanted.sleep_ms)).await;
    // `{number}` tells how often it was asked.
    let told = wanted.body.replace("{number}", &number.to_string());
    let mut response = Response::new(Full::new(Bytes::from(told)).boxed());
    if let Some(status) = wanted.status
        && let Ok(status) = StatusCode::from_u16(status)
    {
        *response.status_mut() = status;
    }
    let headers = response.headers_mut();
    for (name, value) in &wanted.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.append(name, value);
        }
    }
    let asked: BTreeMap<_, _> = parts
        .headers
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), "x-request-id" | "x-answer"))
        .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes())))
        .collect();
    let asked = json!({ "method": parts.method.as_str(), "path": parts.uri.to_string(),
        "headers": asked, "body": body.len() });
    if let Ok(asked) = HeaderValue::try_from(asked.to_string()) {
        headers.insert(HeaderName::from_static("x-asked"), asked);
    }
    Ok(response)
}
