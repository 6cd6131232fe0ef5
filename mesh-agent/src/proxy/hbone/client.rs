//! Streams to endpoints: a place in a tunnel, a CONNECT request, and what came of it.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use http::{HeaderValue, Method, Request, StatusCode, Uri, Version};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::config::model::cluster::Cluster;
use crate::config::model::hbone::{self, ALPN};
use crate::config::model::tls::UpstreamTls;
use crate::proxy::accept::Caught;
use crate::proxy::lb::Target;
use crate::proxy::stats::{Gauge, ProxyStats, count};
use crate::proxy::tls::{self, report};
use crate::proxy::upstream::{self, Options};
use crate::proxy::worker::Context;
use crate::snapshot::ClusterView;
use crate::workload::Pod;

use super::pool::{Granted, Key, NewSlot, State};
use super::stream::told;
use super::watch::pings;
use super::{
    FRAME, HEADERS, SEND_BUFFER, SMALL_FRAMES, STREAM_WINDOW, STREAMS, TUNNEL_WINDOW, Tunnelled,
};

/// How often a request is asked again that a tunnel did not take because it ended.
const ATTEMPTS: u32 = 3;

/// Why an endpoint's gateway granted no stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error(
        "the other side denies it (401): an AuthorizationPolicy there does not allow this identity"
    )]
    Denied,
    #[error("the other side cannot connect to the application (503): does it listen on that port?")]
    Unavailable,
    #[error(
        "the other side does not take the request ({0}): is the endpoint of the pod that answers?"
    )]
    Other(StatusCode),
}

impl Refused {
    fn of(status: StatusCode) -> Option<Self> {
        match status {
            StatusCode::OK => None,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Some(Self::Denied),
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::BAD_GATEWAY => Some(Self::Unavailable),
            other => Some(Self::Other(other)),
        }
    }
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        io::Error::new(io::ErrorKind::ConnectionRefused, refused)
    }
}

/// A connection to an endpoint, as a stream of a tunnel.
///
/// # Errors
/// There is no certificate, no tunnel in time, or the other side grants no stream.
pub(in crate::proxy) async fn connect(
    context: &Context,
    cluster: &ClusterView,
    target: &Target,
    tls: &Arc<UpstreamTls>,
    caught: &Caught,
    options: &Options,
) -> io::Result<Tunnelled> {
    let destination = target.address();
    let gateway = hbone::gateway(destination, target.waypoint());
    let opening = open(context, cluster, destination, gateway, tls, caught, options);
    let result = tokio::time::timeout(options.timeout, opening)
        .await
        .unwrap_or_else(|_| {
            let text = "no answer in time; maybe a NetworkPolicy blocks port 15008";
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        });
    if let Err(error) = &result {
        count(&context.shared.stats.hbone.connect_fail);
        if let Some(omitted) = report::permitted("tunnel") {
            let id = context.tls.identity(&caught.pod.workload);
            let cluster = &cluster.config.name;
            tracing::warn!(%id, %destination, %gateway, %cluster, %error, omitted, "no stream through a tunnel");
        }
    }
    result
}

async fn open(
    context: &Context,
    cluster: &ClusterView,
    destination: SocketAddr,
    gateway: SocketAddr,
    tls: &Arc<UpstreamTls>,
    caught: &Caught,
    options: &Options,
) -> io::Result<Tunnelled> {
    // Of whom the cluster says nothing, Istio's cluster for tunnels may: the trust domain.
    let view = context.shared.view(&caught.pod);
    let originate = view.and_then(|view| {
        let cluster = view.clusters.get(hbone::ORIGINATE)?;
        Arc::ptr_eq(tls, &hbone::any_endpoint()).then(|| cluster.config.hbone.clone())
    });
    let tls = originate.as_ref().unwrap_or(tls);
    let config = context.tls.client(tls, &caught.pod, None)?;
    let key = Key {
        netns: caught.pod.netns.cookie(),
        gateway,
        tls: Arc::as_ptr(&config).addr(),
    };
    let slot = || NewSlot {
        generation: context.tls.generation(),
        tls: config.clone(),
        baggage: baggage(&caught.pod),
    };
    let dial = || {
        let (pod, config) = (caught.pod.clone(), config.clone());
        let (options, stats) = (options.clone(), context.shared.stats.clone());
        async move { dial(&pod, gateway, config, &options, &stats).await }
    };
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        let granted = context.hbone.tunnels.place(&key, slot, dial).await?;
        let (reused, request) = (
            granted.reused,
            request(destination, caught, cluster, &granted)?,
        );
        match send(granted, request).await {
            Ok(stream) => return Ok(stream),
            // The tunnel ended while the request was on its way; none of the application's bytes
            // were.
            Err(error) if (reused || is_ended(&error)) && left > 0 && !is_refused(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

fn is_refused(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|inner| inner.downcast_ref::<Refused>().is_some())
}

/// Whether the tunnel said that it takes no more streams.
fn is_ended(error: &io::Error) -> bool {
    let error = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<h2::Error>());
    error.is_some_and(|error| {
        error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM)
    })
}

async fn send(granted: Granted, request: Request<()>) -> io::Result<Tunnelled> {
    let Granted {
        mut sender, place, ..
    } = granted;
    let result = async {
        poll_fn(|cx| sender.poll_ready(cx)).await?;
        let (response, stream) = sender.send_request(request, false)?;
        Ok((response.await?, stream))
    }
    .await;
    match result {
        Ok((response, stream)) => match Refused::of(response.status()) {
            None => Ok(Tunnelled::new(stream, response.into_body(), Some(place))),
            Some(refused) => Err(refused.into()),
        },
        Err(error) => {
            let error: h2::Error = error;
            if !error.is_reset() {
                place.end_tunnel();
            }
            Err(told(error))
        }
    }
}

/// A tunnel: TCP inside the pod, TLS, HTTP/2.
async fn dial(
    pod: &Pod,
    gateway: SocketAddr,
    config: Arc<ClientConfig>,
    options: &Options,
    stats: &Arc<ProxyStats>,
) -> io::Result<(SendRequest<Bytes>, Rc<State>)> {
    let dialling = async {
        let tcp = upstream::connect(pod, gateway, options)
            .await
            .map_err(|error| {
                let text = match error.kind() {
                    io::ErrorKind::TimedOut => {
                        "does not answer; maybe a NetworkPolicy blocks port 15008"
                    }
                    io::ErrorKind::ConnectionRefused => {
                        "refuses; nobody there speaks HBONE: is the pod in the mesh?"
                    }
                    _ => "cannot be reached",
                };
                io::Error::new(error.kind(), format!("{gateway} {text} ({error})"))
            })?;
        // No name is sent for an address.
        let name = ServerName::from(gateway.ip());
        let session = tls::connect(config, name, tcp).await?;
        if session.get_ref().1.alpn_protocol() != Some(ALPN.as_bytes()) {
            return Err(io::Error::other(format!("{gateway} does not speak HTTP/2")));
        }
        h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(TUNNEL_WINDOW)
            .max_frame_size(FRAME)
            .max_header_list_size(HEADERS)
            .max_send_buffer_size(SEND_BUFFER)
            .data_frame_budget(SMALL_FRAMES)
            .initial_max_send_streams(STREAMS as usize)
            .enable_push(false)
            .handshake(session)
            .await
            .map_err(told)
    };
    let (sender, connection) = tokio::time::timeout(options.timeout, dialling)
        .await
        .unwrap_or_else(|_| {
            let text = format!("{gateway} does not complete a handshake in time");
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        })?;
    let state = State::new();
    count(&stats.hbone.tunnels_made);
    tokio::task::spawn_local(drive(connection, state.clone(), stats.clone()));
    Ok((sender, state))
}

/// Moves a tunnel's frames until it ends.
async fn drive<T: AsyncRead + AsyncWrite + Unpin>(
    mut connection: Connection<T>,
    state: Rc<State>,
    stats: Arc<ProxyStats>,
) {
    let _counted = Gauge::new(Open(stats));
    let ping = connection.ping_pong();
    tokio::select! {
        ended = connection => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a tunnel ended");
            }
        }
        () = pings(ping) => tracing::debug!("a tunnel's other side does not answer pings"),
    }
    state.end();
}

/// Counts our tunnels.
#[derive(Debug)]
struct Open(Arc<ProxyStats>);

impl AsRef<std::sync::atomic::AtomicU64> for Open {
    fn as_ref(&self) -> &std::sync::atomic::AtomicU64 {
        &self.0.hbone.tunnels_active
    }
}

fn request(
    destination: SocketAddr,
    caught: &Caught,
    cluster: &ClusterView,
    granted: &Granted,
) -> io::Result<Request<()>> {
    let uri = Uri::builder()
        .authority(destination.to_string())
        .build()
        .map_err(io::Error::other)?;
    Request::builder()
        .method(Method::CONNECT)
        .uri(uri)
        .version(Version::HTTP_2)
        .header("baggage", &granted.baggage)
        .header("forwarded", forwarded(caught, &cluster.config))
        .header("traceparent", trace_parent())
        .body(())
        .map_err(io::Error::other)
}

/// Who the client is, as ztunnel says it: in the words of OpenTelemetry.
fn baggage(pod: &Pod) -> HeaderValue {
    let workload = &pod.workload;
    let label = |name: &str| workload.labels.get(name).map_or("", String::as_str);
    let service = match label("service.istio.io/canonical-name") {
        "" => match label("app") {
            "" => &workload.name,
            app => app,
        },
        name => name,
    };
    let version = match label("service.istio.io/canonical-revision") {
        "" => label("version"),
        revision => revision,
    };
    let text = format!(
        "k8s.namespace.name={},k8s.pod.name={},service.name={service},service.version={version}",
        workload.namespace, workload.name,
    );
    // Names of Kubernetes have no character that a header may not have; others are left out.
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

/// RFC 7239: the application's address, and the service it dialled where its name is known.
fn forwarded(caught: &Caught, cluster: &Cluster) -> String {
    let client = caught.peer.ip();
    let client = match client {
        std::net::IpAddr::V4(ip) => ip.to_string(),
        std::net::IpAddr::V6(ip) => format!("\"[{ip}]\""),
    };
    // istiod: `outbound|PORT|SUBSET|HOST`.
    match cluster.name.rsplit_once('|') {
        Some((_, host)) if !host.is_empty() => format!("for={client};host=\"{host}\""),
        _ => format!("for={client}"),
    }
}

/// W3C Trace Context of a connection whose application gave none; it is not sampled.
fn trace_parent() -> String {
    let trace = fastrand::u128(1..);
    let span = fastrand::u64(1..);
    format!("00-{trace:032x}-{span:016x}-00")
}
