//! One check: a request, a connection or a gRPC call.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::config::model::health_check::{GrpcProbe, HealthCheck, HttpProbe, Probe, TcpProbe};
use crate::config::model::tls::UpstreamTransport;
use crate::proxy::http::LocalExecutor;
use crate::proxy::stream::Stream;
use crate::proxy::tls::Contexts;
use crate::proxy::upstream::{self, Options};
use crate::snapshot::ClusterView;
use crate::snapshot::checked::Finding;
use crate::snapshot::cluster::Host;
use crate::workload::Pod;

const DEGRADED: HeaderName = HeaderName::from_static("x-envoy-degraded");
const USER_AGENT: HeaderValue = HeaderValue::from_static("Envoy/HC");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
/// Most of a response that is read.
const MOST: usize = 64 << 10;

/// A connection that may serve another check.
pub(super) enum Line {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// Checks an endpoint, over a connection that is still there if there is one. The caller looks at
/// the time.
pub(super) async fn ask(
    tls: &Contexts,
    pod: &Arc<Pod>,
    cluster: &ClusterView,
    host: &Host,
    config: &HealthCheck,
    line: Option<Line>,
) -> (Finding, Option<Line>) {
    let asked = Asked {
        tls,
        pod,
        cluster,
        host,
        port: host.check.port,
    };
    let result = match &config.probe {
        Probe::Http(probe) => asked.http(probe, line).await,
        Probe::Tcp(probe) => asked.tcp(probe).await.map(|()| (Finding::Healthy, None)),
        Probe::Grpc(probe) => asked.grpc(probe, line).await,
    };
    result.unwrap_or_else(|error| {
        tracing::debug!(cluster = %cluster.config.name, address = %host.address, %error, "a health check failed");
        (Finding::Failed, None)
    })
}

struct Asked<'a> {
    tls: &'a Contexts,
    pod: &'a Arc<Pod>,
    cluster: &'a ClusterView,
    host: &'a Host,
    port: Option<u16>,
}

impl Asked<'_> {
    async fn connect(&self) -> io::Result<Stream> {
        let address = self.host.address;
        let address = SocketAddr::new(address.ip(), self.port.unwrap_or(address.port()));
        let options = Options::from(&*self.cluster.config);
        let stream = upstream::connect(self.pod, address, &options).await?;
        match &self.host.transport {
            UpstreamTransport::Plain => Ok(Stream::Plain(stream)),
            UpstreamTransport::Tls(tls) => self.tls.connect(tls, self.pod, None, stream).await,
            // Refused by the configuration.
            UpstreamTransport::Hbone(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The name asked for (Envoy: `HealthCheckerFactory::getHostname`).
    fn authority<'n>(&'n self, configured: Option<&'n str>) -> &'n str {
        match (configured, &*self.host.check.hostname) {
            (Some(name), _) => name,
            (None, "") => &self.cluster.config.name,
            (None, name) => name,
        }
    }

    /// A connection that takes a request.
    async fn line(&self, line: Option<Line>, http2: bool) -> io::Result<Line> {
        if let Some(mut line) = line {
            let ready = match &mut line {
                Line::Http1(sender) => sender.ready().await,
                Line::Http2(sender) => sender.ready().await,
            };
            // A check that is made another way has forgotten its connections.
            if ready.is_ok() {
                return Ok(line);
            }
        }
        let stream = TokioIo::new(self.connect().await?);
        if http2 {
            let handshake = http2::handshake(LocalExecutor, stream).await;
            let (sender, connection) = handshake.map_err(io::Error::other)?;
            tokio::task::spawn_local(async move {
                let _ = connection.await;
            });
            Ok(Line::Http2(sender))
        } else {
            let handshake = http1::handshake(stream).await;
            let (sender, connection) = handshake.map_err(io::Error::other)?;
            tokio::task::spawn_local(async move {
                let _ = connection.await;
            });
            Ok(Line::Http1(sender))
        }
    }

    async fn send(
        line: &mut Line,
        request: Request<Full<Bytes>>,
    ) -> io::Result<Response<Incoming>> {
        match line {
            Line::Http1(sender) => sender.send_request(request).await,
            Line::Http2(sender) => sender.send_request(request).await,
        }
        .map_err(io::Error::other)
    }

    async fn http(
        &self,
        probe: &HttpProbe,
        line: Option<Line>,
    ) -> io::Result<(Finding, Option<Line>)> {
        let mut line = self.line(line, probe.http2).await?;
        let authority = self.authority(probe.host.as_deref());
        let uri = if probe.http2 {
            format!("http://{authority}{}", probe.path)
        } else {
            probe.path.to_string()
        };
        let mut request = Request::builder()
            .method(&probe.method)
            .uri(uri)
            .body(Full::default())
            .map_err(io::Error::other)?;
        let headers = request.headers_mut();
        headers.insert(header::USER_AGENT, USER_AGENT);
        for name in &probe.remove {
            headers.remove(name);
        }
        for (name, value) in &probe.headers {
            headers.append(name, value.clone());
        }
        if !probe.http2 && !headers.contains_key(header::HOST) {
            let host = HeaderValue::from_str(authority).map_err(io::Error::other)?;
            headers.insert(header::HOST, host);
        }
        let response = Self::send(&mut line, request).await?;
        let (head, mut body) = response.into_parts();
        let mut read = 0;
        while let Some(frame) = body.frame().await {
            read += frame
                .map_err(io::Error::other)?
                .data_ref()
                .map_or(0, Bytes::len);
            if read > MOST {
                break;
            }
        }
        let status = head.status.as_u16();
        let within =
            |ranges: &[std::ops::Range<u16>]| ranges.iter().any(|range| range.contains(&status));
        let finding = if within(&probe.expected) {
            if head.headers.contains_key(DEGRADED) {
                Finding::Degraded
            } else {
                Finding::Healthy
            }
        } else if within(&probe.retriable) {
            Finding::Failed
        } else {
            Finding::Unwell
        };
        Ok((finding, (read <= MOST).then_some(line)))
    }

    async fn tcp(&self, probe: &TcpProbe) -> io::Result<()> {
        let mut stream = self.connect().await?;
        if probe.send.is_empty() && probe.receive.is_empty() {
            return Ok(());
        }
        stream.write_all(&probe.send).await?;
        stream.flush().await?;
        let mut received = Vec::new();
        while !holds(&received, &probe.receive) {
            if received.len() > MOST {
                return Err(io::Error::other("what is expected did not come"));
            }
            if stream.read_buf(&mut received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    async fn grpc(
        &self,
        probe: &GrpcProbe,
        line: Option<Line>,
    ) -> io::Result<(Finding, Option<Line>)> {
        let mut line = self.line(line, true).await?;
        let authority = self.authority(probe.authority.as_deref());
        let message = HealthCheckRequest {
            service: probe.service.to_string(),
        }
        .encode_to_vec();
        let mut body = BytesMut::with_capacity(message.len() + 5);
        body.put_u8(0);
        body.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
        body.put_slice(&message);
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{authority}/grpc.health.v1.Health/Check"))
            .header(header::CONTENT_TYPE, GRPC)
            .header(header::TE, "trailers")
            .header(header::USER_AGENT, USER_AGENT)
            .body(Full::new(body.freeze()))
            .map_err(io::Error::other)?;
        for (name, value) in &probe.headers {
            request.headers_mut().append(name, value.clone());
        }
        let response = Self::send(&mut line, request).await?;
        let (head, body) = response.into_parts();
        let body = http_body_util::Limited::new(body, MOST);
        let body = body.collect().await.map_err(io::Error::other)?;
        let grpc = |headers: &http::HeaderMap| headers.get("grpc-status").cloned();
        let status = body
            .trailers()
            .and_then(grpc)
            .or_else(|| grpc(&head.headers));
        let mut message = body.to_bytes();
        let serving = head.status == StatusCode::OK
            && status.is_some_and(|status| status.as_bytes() == b"0")
            && message.len() >= 5
            && {
                message.advance(5);
                HealthCheckResponse::decode(message).is_ok_and(|said| said.status == SERVING)
            };
        let finding = if serving {
            Finding::Healthy
        } else {
            Finding::Unwell
        };
        Ok((finding, Some(line)))
    }
}

/// `grpc.health.v1.HealthCheckRequest`
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;

/// Whether every part came, one after the other.
fn holds(received: &[u8], parts: &[Bytes]) -> bool {
    let mut rest = received;
    parts.iter().all(|part| {
        let found = memchr::memmem::find(rest, part);
        if let Some(at) = found {
            rest = &rest[at + part.len()..];
        }
        found.is_some()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_in_order() {
        let parts = |parts: &[&'static str]| -> Vec<Bytes> {
            parts
                .iter()
                .map(|part| Bytes::from_static(part.as_bytes()))
                .collect()
        };
        assert!(holds(b"xx220 hello", &parts(&["220", "hello"])));
        assert!(!holds(b"hello 220", &parts(&["220", "hello"])));
        assert!(!holds(b"aba", &parts(&["ab", "ba"])));
        assert!(holds(b"", &[]));
    }
}
