//! From an accepted connection to the filter chain that serves it.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::config::model::canonical;
use crate::config::model::listener::{FilterChain, Listener, Terminal};
use crate::config::model::tls::DownstreamTransport;
use crate::config::model::workload::OutboundTrafficPolicy;
use crate::snapshot::View;
use crate::workload::Pod;

use super::filter_chain::{self, Facts};
use super::record::ConnectionRecord;
use super::sniff::{Looking, Prefixed, sniff};
use super::stats::count;
use super::stream::Stream;
use super::tls::{Peer, report, take_refused};
use super::worker::{Context, reset};
use super::{ListenerKind, authz, hbone, http, tcp, upstream};

/// How long a client may take for its TLS handshake unless its chain says otherwise (Envoy:
/// `transport_socket_connect_timeout`, for ever by default; Istio sends this).
const HANDSHAKE: Duration = Duration::from_secs(15);

/// A caught connection.
#[derive(Debug, Clone)]
pub(super) struct Caught {
    /// The pod whose listener accepted it.
    pub(super) pod: Arc<Pod>,
    /// Which listener.
    pub(super) kind: ListenerKind,
    /// The other end.
    pub(super) peer: SocketAddr,
    /// Where the client wanted to go.
    pub(super) destination: SocketAddr,
    /// Its number among the connections of the agent.
    pub(super) id: u64,
}

/// The next connection's number.
pub(super) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Serves a connection to its end.
pub(super) async fn serve(
    context: Rc<Context>,
    pod: Arc<Pod>,
    kind: ListenerKind,
    stream: TcpStream,
) {
    let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else {
        return;
    };
    let _ = stream.set_nodelay(true);
    let destination = match kind {
        ListenerKind::Outbound => {
            match context.shared.original_dst.take(pod.netns.cookie(), peer) {
                Some(destination) => destination,
                None => {
                    // Somebody dialled 15001 itself: forwarding would be a loop.
                    count(&context.shared.stats.no_original_dst);
                    return reset(&stream);
                }
            }
        }
        ListenerKind::Inbound => local,
        ListenerKind::Hbone => return Box::pin(hbone::serve(context, pod, stream)).await,
    };
    let plain = |address: SocketAddr| SocketAddr::new(canonical(address.ip()), address.port());
    let (mut peer, destination) = (plain(peer), plain(destination));
    if kind == ListenerKind::Outbound && peer.ip().is_loopback() {
        // The way to the agent is loopback; the application's own address is the pod's.
        let of_family = |ip: &&std::net::IpAddr| ip.is_ipv4() == destination.is_ipv4();
        if let Some(own) = pod.ips.iter().find(of_family) {
            peer.set_ip(*own);
        }
    }
    let caught = Caught {
        pod,
        kind,
        peer,
        destination,
        id: next_id(),
    };
    if kind == ListenerKind::Inbound && !caught.pod.ips.contains(&caught.destination.ip()) {
        // Dialled on 15006 through another address, or on loopback: nothing was steered here.
        count(&context.shared.stats.no_original_dst);
        return reset(&stream);
    }
    let Some(view) = context.shared.view(&caught.pod) else {
        return reset(&stream);
    };
    let listener = match kind {
        ListenerKind::Outbound => view.outbound.find(caught.destination).cloned(),
        ListenerKind::Inbound | ListenerKind::Hbone => view.inbound.clone(),
    };
    match listener {
        Some(listener) => listened(context, caught, &view, listener, stream).await,
        None => {
            let allowed = kind == ListenerKind::Inbound
                || view.outbound_traffic_policy == OutboundTrafficPolicy::AllowAny;
            if allowed {
                passthrough(&context, &caught, stream).await;
            } else {
                count(&context.shared.stats.no_filter_chain_match);
                reset(&stream);
            }
        }
    }
}

async fn listened(
    context: Rc<Context>,
    caught: Caught,
    view: &Arc<View>,
    listener: Arc<Listener>,
    stream: TcpStream,
) {
    let mut facts = Facts {
        destination: caught.destination,
        source: caught.peer,
        local: caught.pod.ips.contains(&caught.peer.ip()) || caught.peer.ip().is_loopback(),
        transport_protocol: "raw_buffer",
        server_name: None,
        application_protocols: Vec::new(),
    };
    let mut record = ConnectionRecord::begin(&context, &caught);
    record.tell(&listener.access_logs);
    let mut stream = Prefixed::new(stream);
    let port = facts.destination.port();
    let wanted = Looking {
        tls: listener.inspect.tls.looks_at(port),
        http: listener.inspect.http.looks_at(port),
    };
    // Sniffing waits for the client to speak, which a client of a server-first protocol never
    // does: only chains that match on what is sniffed are worth the wait.
    if (wanted.tls || wanted.http) && filter_chain::needs_sniffing(&listener, &facts) {
        match sniff(&mut stream, &listener, wanted).await {
            Ok(sniffed) => facts.learn(sniffed),
            Err(_) => return reset(stream.get_ref()),
        }
    }
    let Some(chain) = filter_chain::select(&listener, &facts) else {
        count(&context.shared.stats.no_filter_chain_match);
        record.unmatched();
        return reset(stream.get_ref());
    };
    let chain: &FilterChain = chain;
    record.chain(&chain.name);
    if let Terminal::Tcp(proxy) = &chain.terminal {
        record.tell(&proxy.access_logs);
    }
    tracing::debug!(
        peer = %caught.peer,
        destination = %caught.destination,
        listener = %listener.name,
        chain = %chain.name,
        transport = facts.transport_protocol,
        protocols = ?facts.application_protocols,
        "caught"
    );
    let (mut stream, peer) = match &chain.transport {
        DownstreamTransport::Plain => {
            let (prefix, tcp) = stream.into_parts();
            (
                Prefixed::with_prefix(Stream::Plain(tcp), prefix),
                Peer::default(),
            )
        }
        DownstreamTransport::Tls(tls) => {
            // On its own: connections that are not encrypted need not make room for it.
            let protocols = &facts.application_protocols;
            let accepting = Box::pin(context.tls.accept(tls, &caught.pod, protocols, stream));
            let patience = tls.handshake_timeout.unwrap_or(HANDSHAKE);
            let accepted = tokio::time::timeout(patience, accepting)
                .await
                .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
            let refused = take_refused();
            let stats = &context.shared.stats.ssl;
            match accepted {
                Ok((stream, peer)) => {
                    stats.stands(stream.is_resumed());
                    (Prefixed::new(stream), peer)
                }
                Err(error) => {
                    stats.failed(refused.as_ref().map(|refused| refused.fault), &error);
                    let id = context.tls.identity(&caught.pod.workload);
                    report::downstream(&id, caught.peer, &listener.name, refused.as_ref(), &error);
                    return;
                }
            }
        }
    };
    record.peer(&peer);
    let server_name = facts.server_name.as_deref().unwrap_or_default();
    if let Err(policy) = authz::allows(chain, &caught, server_name, peer.names.as_deref()) {
        record.denied(&policy);
        count(&context.shared.stats.rbac_denied);
        return stream.get_mut().reset();
    }
    match &chain.terminal {
        Terminal::Tcp(proxy) => {
            let entry =
                context
                    .standing
                    .enter(&caught, facts, peer.encrypted, peer.names, &listener);
            let denied = entry.denied();
            tcp::serve(
                &context,
                &caught,
                view,
                proxy,
                stream,
                Some(denied),
                &mut record,
            )
            .await;
        }
        Terminal::Http(hcm) => {
            let place = http::Place {
                listener: listener.name.clone(),
                chain: chain.name.clone(),
                key: chain.key,
                peer,
            };
            // On its own: connections that are not HTTP need not make room for it.
            Box::pin(http::serve(context, caught, hcm.clone(), place, stream)).await;
        }
    }
}

/// Straight to the original destination.
async fn passthrough(context: &Rc<Context>, caught: &Caught, stream: TcpStream) {
    let options = upstream::Options::default();
    match upstream::connect(&caught.pod, caught.destination, &options).await {
        Ok(upstream) => {
            let stream = Prefixed::new(Stream::Plain(stream));
            tcp::copy(context, stream, Stream::Plain(upstream), None).await;
        }
        Err(_) => reset(&stream),
    }
}
