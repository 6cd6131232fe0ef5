//! Tunnels of clients: TLS 1.3 with a certificate of the mesh, HTTP/2, and a task a stream.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use h2::Reason;
use h2::server::Connection;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::config::model::canonical;
use crate::config::model::hbone::ALPN;
use crate::config::model::tls::{DownstreamTls, NameKind};
use crate::identity::{Credentials, SpiffeId};
use crate::proxy::sniff::Prefixed;
use crate::proxy::stats::count;
use crate::proxy::stream::Stream;
use crate::proxy::tls::{Peer, Session, report, take_refused};
use crate::proxy::worker::{Context, reset};
use crate::workload::Pod;

use super::stream::told;
use super::watch::pings;
use super::{
    FRAME, HANDSHAKE, HEADERS, SEND_BUFFER, SMALL_FRAMES, STREAM_WINDOW, STREAMS, TUNNEL_WINDOW,
    serve as stream,
};

/// Handshakes a worker has under way at most; further connections are reset. One that was begun
/// costs some KiB until [`HANDSHAKE`] is over.
const MOST_HANDSHAKES: usize = 2048;

/// Counts handshakes under way.
#[derive(Debug, Default)]
pub(super) struct Handshakes(Cell<usize>);

/// One of them; drop ends it.
struct Handshake<'a>(&'a Handshakes);

impl Handshakes {
    fn begin(&self) -> Option<Handshake<'_>> {
        let under_way = self.0.get();
        (under_way < MOST_HANDSHAKES).then(|| {
            self.0.set(under_way + 1);
            Handshake(self)
        })
    }
}

impl Drop for Handshake<'_> {
    fn drop(&mut self) {
        self.0.0.set(self.0.0.get() - 1);
    }
}

/// A client's tunnel.
pub(super) struct Tunnel {
    pub(super) context: Rc<Context>,
    pub(super) pod: Arc<Pod>,
    /// Where it comes from.
    pub(super) from: SocketAddr,
    /// Whose it is.
    pub(super) peer: Peer,
    /// How it was secured.
    tls: Arc<DownstreamTls>,
    /// Who we are to it.
    id: SpiffeId,
    /// What held when it was made.
    credentials: Arc<Credentials>,
}

/// What new certificates or roots mean for a tunnel that stands.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// Nothing.
    Stays,
    /// Our own certificate was renewed: streams go on, new ones belong into another tunnel.
    Renewed,
    /// Its client would not be let in any more.
    Revoked,
}

/// Serves a client's tunnel to its end.
pub(in crate::proxy) async fn serve(context: Rc<Context>, pod: Arc<Pod>, tcp: TcpStream) {
    let Ok(peer) = tcp.peer_addr() else {
        return;
    };
    let _ = tcp.set_nodelay(true);
    let from = SocketAddr::new(canonical(peer.ip()), peer.port());
    let handshakes = context.hbone.handshakes.clone();
    let Some(handshake) = handshakes.begin() else {
        count(&context.shared.stats.hbone.handshakes_refused);
        return reset(&tcp);
    };
    let tls = context
        .shared
        .view(&pod)
        .and_then(|view| view.tunnels.clone())
        .unwrap_or_else(|| context.hbone.downstream.clone());
    let id = context.tls.identity(&pod.workload);
    let credentials = context.tls.current();
    let accepted = tokio::time::timeout(HANDSHAKE, accept(&context, &tls, &pod, tcp))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let refused = take_refused();
    drop(handshake);
    match accepted {
        Ok((connection, peer)) => {
            count(&context.shared.stats.hbone.tunnels_taken);
            let tunnel = Tunnel {
                context,
                pod,
                from,
                peer,
                tls,
                id,
                credentials,
            };
            run(Rc::new(tunnel), connection).await;
        }
        Err(error) => {
            let fault = refused.as_ref().map(|refused| refused.fault);
            context.shared.stats.ssl.failed(fault, &error);
            report::downstream(&id, from, "hbone", refused.as_ref(), &error);
        }
    }
}

async fn accept(
    context: &Context,
    tls: &Arc<DownstreamTls>,
    pod: &Arc<Pod>,
    tcp: TcpStream,
) -> io::Result<(Connection<Session, Bytes>, Peer)> {
    let offered = [ALPN.to_owned()];
    let (stream, peer) = context
        .tls
        .accept(tls, pod, &offered, Prefixed::new(tcp))
        .await?;
    context.shared.stats.ssl.stands(stream.is_resumed());
    // The tunnel looks at its client's trust itself.
    let Stream::Tls(secured) = stream else {
        return Err(io::Error::other("a tunnel is encrypted"));
    };
    let session = secured.session;
    if session.get_ref().1.alpn_protocol() != Some(ALPN.as_bytes()) {
        return Err(io::Error::other("it does not speak HTTP/2 (ALPN h2)"));
    }
    // SPIFFE X.509-SVID, 2: exactly one URI, or it is not known who is meant.
    let names = peer.certificate.iter().flat_map(|known| &known.names);
    let ids = names.filter(|(kind, _)| *kind == NameKind::Uri).count();
    if ids != 1 {
        let text = format!("its certificate names {ids} URIs; an identity is exactly one");
        return Err(io::Error::other(text));
    }
    let connection = builder().handshake(session).await.map_err(told)?;
    Ok((connection, peer))
}

/// The HTTP/2 of tunnels.
pub(super) fn builder() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(TUNNEL_WINDOW)
        .max_frame_size(FRAME)
        .max_header_list_size(HEADERS)
        .max_concurrent_streams(STREAMS)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(SMALL_FRAMES);
    builder
}

/// Moves a tunnel's frames and serves its streams. It is told to end when the agent drains, when
/// our certificate is renewed, and when its client is not trusted any more.
async fn run(tunnel: Rc<Tunnel>, mut connection: Connection<Session, Bytes>) {
    let context = &tunnel.context;
    let stats = &context.shared.stats;
    let mut pings = std::pin::pin!(pings(connection.ping_pong()));
    let mut streams = JoinSet::new();
    let mut draining = context.draining.clone();
    let mut changes = context.hbone.changes.clone();
    let mut ending = false;
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    streams.spawn_local(stream::serve(tunnel.clone(), request, respond));
                }
                Some(Err(error)) => {
                    if !error.is_io() {
                        count(&stats.hbone.protocol_error);
                    }
                    tracing::debug!(from = %tunnel.from, %error, "a client's tunnel broke");
                    break;
                }
                None => break,
            },
            Some(ended) = streams.join_next() => {
                if ended.is_err_and(|error| error.is_panic()) {
                    count(&stats.panics);
                    tracing::error!("a stream was dropped because of a bug in the agent; please report it");
                }
            }
            _ = draining.wait_for(|draining| *draining), if !ending => {
                ending = true;
                connection.graceful_shutdown();
            }
            Ok(()) = changes.changed() => match tunnel.standing() {
                Standing::Stays => {}
                Standing::Renewed if ending => {}
                Standing::Renewed => {
                    ending = true;
                    connection.graceful_shutdown();
                }
                Standing::Revoked => {
                    count(&stats.hbone.revoked);
                    tracing::info!(from = %tunnel.from, id = %tunnel.id, "a client is not trusted any more; its tunnel ends");
                    connection.abrupt_shutdown(Reason::NO_ERROR);
                }
            },
            () = &mut pings => {
                tracing::debug!(from = %tunnel.from, "a client does not answer pings; its tunnel ends");
                break;
            }
        }
    }
    drop(connection);
    // What they still have to say to applications is said, or their connections are reset.
    while streams.join_next().await.is_some() {}
}

impl Tunnel {
    fn standing(&self) -> Standing {
        let now = self.context.tls.current();
        if now.generation == self.credentials.generation {
            return Standing::Stays;
        }
        let alike = |a: &Credentials, b: &Credentials| match (&a.roots, &b.roots) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        if !alike(&now, &self.credentials) {
            let known = self.peer.certificate.as_deref();
            if !known.is_some_and(|known| self.context.tls.admits(&self.tls, &self.pod, known)) {
                return Standing::Revoked;
            }
        }
        let ours =
            |credentials: &Credentials| credentials.identities.get(&self.id).map(Arc::as_ptr);
        if ours(&now) == ours(&self.credentials) {
            Standing::Stays
        } else {
            Standing::Renewed
        }
    }
}
