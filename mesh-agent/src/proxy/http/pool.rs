//! Upstream connections of one worker, kept for the next request.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};

use crate::config::model::cluster::Http2Options;
use crate::config::model::tls::{UpstreamTls, UpstreamTransport};
use crate::proxy::stream::Stream;
use crate::proxy::tcp::Open;

use super::LocalExecutor;
use super::body::RequestBody;
use super::h1::client::Connection;

/// Connections are shared by requests of one pod to one endpoint of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::proxy) struct Key {
    /// The cluster's state, by address: connections hold on to it, so none is given twice.
    pub(super) cluster: usize,
    pub(super) address: SocketAddr,
    /// The client pod's namespace: connections leave with its address.
    pub(super) netns: u64,
    /// The TLS context; `None`: plain. A connection of another transport serves no request.
    pub(super) transport: Option<Context>,
    /// Which certificates a tunnel below is of; 0: there is none.
    pub(super) tunnel: u64,
}

/// A TLS context, told from others by where it is.
#[derive(Debug, Clone)]
pub(super) struct Context(Arc<UpstreamTls>);

impl Context {
    /// Of a transport.
    pub(super) fn of(transport: &UpstreamTransport) -> Option<Self> {
        match transport {
            UpstreamTransport::Plain => None,
            UpstreamTransport::Tls(tls) | UpstreamTransport::Hbone(tls) => Some(Self(tls.clone())),
        }
    }
}

impl PartialEq for Context {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Context {}

impl std::hash::Hash for Context {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

/// An HTTP/2 connection that requests share, and our end of it.
type Shared = (http2::SendRequest<RequestBody>, Option<SocketAddr>);

/// Idle connections.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Pool {
    http1: HashMap<Key, Vec<Connection>>,
    http2: HashMap<Key, Shared>,
}

impl Pool {
    /// Drops connections that ended or were idle for too long, and those over tunnels of other
    /// certificates than those of this generation.
    pub(in crate::proxy) fn forget_closed(&mut self, generation: u64) {
        for idle in self.http1.values_mut() {
            idle.retain_mut(Connection::is_usable);
        }
        self.http1.retain(|_, idle| !idle.is_empty());
        self.http2.retain(|key, (sender, _)| {
            (key.tunnel == 0 || key.tunnel == generation) && !sender.is_closed()
        });
    }

    /// Drops the connections of a namespace: its pod is gone.
    pub(in crate::proxy) fn forget_pod(&mut self, netns: u64) {
        self.http1.retain(|key, _| key.netns != netns);
        self.http2.retain(|key, _| key.netns != netns);
    }

    /// The connection used last that can serve another request.
    pub(super) fn take_http1(&mut self, key: &Key) -> Option<Connection> {
        let connections = self.http1.get_mut(key)?;
        while let Some(mut connection) = connections.pop() {
            if connection.is_usable() {
                return Some(connection);
            }
        }
        None
    }

    pub(super) fn put_http1(&mut self, key: Key, connection: Connection) {
        self.http1.entry(key).or_default().push(connection);
    }

    /// The shared HTTP/2 connection.
    pub(super) fn http2(&mut self, key: &Key) -> Option<Shared> {
        match self.http2.get(key) {
            Some(shared) if !shared.0.is_closed() => Some(shared.clone()),
            Some(_) => {
                self.http2.remove(key);
                None
            }
            None => None,
        }
    }

    pub(super) fn put_http2(
        &mut self,
        key: Key,
        sender: http2::SendRequest<RequestBody>,
        local: Option<SocketAddr>,
    ) {
        self.http2.insert(key, (sender, local));
    }
}

/// Speaks HTTP/2 over a socket.
pub(super) async fn handshake_http2(
    stream: Stream,
    options: &Http2Options,
    open: Open,
) -> io::Result<http2::SendRequest<RequestBody>> {
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(options.initial_stream_window_bytes.unwrap_or(1 << 20))
        .initial_connection_window_size(options.initial_connection_window_bytes.unwrap_or(4 << 20));
    if let Some(max) = options.max_concurrent_streams {
        builder.initial_max_send_streams(max as usize);
    }
    let (sender, connection) = builder
        .handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    tokio::task::spawn_local(async move {
        let _open = open;
        if let Err(error) = connection.await {
            tracing::debug!(%error, "an upstream connection ended");
        }
    });
    Ok(sender)
}
