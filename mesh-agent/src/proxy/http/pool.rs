//! Upstream connections of one worker, kept for the next request.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::config::model::Name;
use crate::config::model::cluster::Http2Options;
use crate::proxy::tcp::Open;
use crate::proxy::worker::Context;

use super::LocalExecutor;
use super::body::RequestBody;

/// Connections are shared by requests of one pod to one endpoint of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::proxy) struct Key {
    pub(super) cluster: Name,
    pub(super) address: SocketAddr,
    /// The client pod's namespace: connections leave with its address.
    pub(super) netns: u64,
}

/// Idle connections.
#[derive(Default)]
pub(in crate::proxy) struct Pool {
    http1: HashMap<Key, Vec<Idle>>,
    http2: HashMap<Key, http2::SendRequest<RequestBody>>,
}

struct Idle {
    sender: http1::SendRequest<RequestBody>,
    since: Instant,
    served: u32,
}

/// An HTTP/1 connection in use. Dropping it after a complete response gives it back.
pub(super) struct Lease {
    context: Rc<Context>,
    key: Key,
    idle: Option<Idle>,
    reusable: bool,
}

impl Pool {
    /// Drops connections that ended.
    pub(in crate::proxy) fn forget_closed(&mut self) {
        for idle in self.http1.values_mut() {
            idle.retain(|idle| !idle.sender.is_closed());
        }
        self.http1.retain(|_, idle| !idle.is_empty());
        self.http2.retain(|_, sender| !sender.is_closed());
    }

    /// The connection used last that is ready for another request.
    fn take(&mut self, key: &Key, idle_timeout: Option<std::time::Duration>) -> Option<Idle> {
        let idle = self.http1.get_mut(key)?;
        idle.retain(|idle| {
            !idle.sender.is_closed()
                && idle_timeout.is_none_or(|timeout| idle.since.elapsed() < timeout)
        });
        let at = idle.iter().rposition(|idle| idle.sender.is_ready())?;
        Some(idle.remove(at))
    }

    /// The shared HTTP/2 connection.
    pub(super) fn http2(&mut self, key: &Key) -> Option<http2::SendRequest<RequestBody>> {
        match self.http2.get(key) {
            Some(sender) if !sender.is_closed() => Some(sender.clone()),
            Some(_) => {
                self.http2.remove(key);
                None
            }
            None => None,
        }
    }

    pub(super) fn put_http2(&mut self, key: Key, sender: http2::SendRequest<RequestBody>) {
        self.http2.insert(key, sender);
    }
}

impl Lease {
    /// An idle connection, if there is one.
    pub(super) fn idle(
        context: &Rc<Context>,
        key: &Key,
        idle_timeout: Option<std::time::Duration>,
    ) -> Option<Self> {
        let idle = context.pool.borrow_mut().take(key, idle_timeout)?;
        Some(Self {
            context: context.clone(),
            key: key.clone(),
            idle: Some(idle),
            reusable: true,
        })
    }

    /// A new connection over a socket.
    pub(super) async fn new(
        context: &Rc<Context>,
        key: Key,
        stream: TcpStream,
        open: Open,
    ) -> io::Result<Self> {
        let (sender, connection) = http1::Builder::new()
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        tokio::task::spawn_local(async move {
            let _open = open;
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "an upstream connection ended");
            }
        });
        let idle = Idle {
            sender,
            since: Instant::now(),
            served: 0,
        };
        Ok(Self {
            context: context.clone(),
            key,
            idle: Some(idle),
            reusable: true,
        })
    }

    /// The sender of requests.
    pub(super) fn sender(&mut self) -> &mut http1::SendRequest<RequestBody> {
        let idle = self
            .idle
            .as_mut()
            .expect("a lease holds its connection until it is dropped");
        &mut idle.sender
    }

    /// Whether it served a request before.
    pub(super) fn is_used(&self) -> bool {
        self.idle.as_ref().is_some_and(|idle| idle.served > 0)
    }

    /// Counts a request; after `max` of them the connection is not kept.
    pub(super) fn served(&mut self, max: Option<u32>) {
        if let Some(idle) = &mut self.idle {
            idle.served += 1;
            self.reusable &= max.is_none_or(|max| idle.served < max);
        }
    }

    /// Closes the connection instead of keeping it.
    pub(super) fn discard(mut self) {
        self.idle = None;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(mut idle) = self.idle.take()
            && self.reusable
            && !idle.sender.is_closed()
        {
            idle.since = Instant::now();
            let key = self.key.clone();
            self.context
                .pool
                .borrow_mut()
                .http1
                .entry(key)
                .or_default()
                .push(idle);
        }
    }
}

/// Speaks HTTP/2 over a socket.
pub(super) async fn handshake_http2(
    stream: TcpStream,
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
