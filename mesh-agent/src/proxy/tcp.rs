//! TCP proxying: both directions until both have ended, each end forwarded as it comes.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::config::model::Name;
use crate::config::model::listener::TcpProxy;
use crate::snapshot::{ClusterView, View};

use super::accept::Caught;
use super::lb::{self, Target};
use super::sniff::Prefixed;
use super::stats::count;
use super::upstream::{self, Options};
use super::worker::{Context, reset};

/// Bytes held per direction.
const BUFFER: usize = 16 << 10;

/// Serves a connection through a `tcp_proxy`.
pub(super) async fn serve(
    context: &Rc<Context>,
    caught: &Caught,
    view: &Arc<View>,
    proxy: &TcpProxy,
    stream: Prefixed,
) {
    let name = pick_cluster(proxy);
    let Some(cluster) = view.clusters.get(name) else {
        count(&context.shared.stats.no_cluster);
        return reset(stream.get_ref());
    };
    for _ in 0..proxy.max_connect_attempts {
        let Some(target) = lb::pick(cluster, caught.destination) else {
            count(&cluster.state.stats.upstream_cx_none_healthy);
            break;
        };
        match connect(cluster, &target, caught).await {
            Ok(upstream) => {
                let open = Open::new(cluster, &target);
                copy_counted(context, stream, upstream, proxy.idle_timeout, &open).await;
                return;
            }
            Err(error) => {
                tracing::debug!(cluster = %name, address = %target.address(), %error, "connect failed");
            }
        }
    }
    reset(stream.get_ref());
}

fn pick_cluster(proxy: &TcpProxy) -> &Name {
    let mut left = match proxy.total_weight() {
        0 | 1 => 0,
        total => fastrand::u64(..total),
    };
    for cluster in &proxy.clusters {
        let weight = u64::from(cluster.weight);
        if left < weight {
            return &cluster.cluster;
        }
        left -= weight;
    }
    &proxy.clusters[0].cluster
}

/// Connects to an endpoint and counts how it went.
pub(super) async fn connect(
    cluster: &ClusterView,
    target: &Target,
    caught: &Caught,
) -> io::Result<TcpStream> {
    let stats = &cluster.state.stats;
    let limit = cluster.config.circuit_breakers.default.max_connections;
    if stats.upstream_cx_active.load(Ordering::Relaxed) >= u64::from(limit) {
        count(&stats.upstream_cx_overflow);
        return Err(io::Error::other(
            "max_connections of the cluster is reached",
        ));
    }
    let options = Options::from(&*cluster.config);
    let result = upstream::connect(&caught.pod, target.address(), &options).await;
    count(&stats.upstream_cx_total);
    if let Target::Host(host) = target {
        count(&host.state.cx_total);
    }
    if let Err(error) = &result {
        count(&stats.upstream_cx_connect_fail);
        if error.kind() == io::ErrorKind::TimedOut {
            count(&stats.upstream_cx_connect_timeout);
        }
        if let Target::Host(host) = target {
            count(&host.state.cx_connect_fail);
        }
    }
    result
}

/// Counts an open upstream connection; drop ends it.
pub(super) struct Open {
    cluster: Arc<crate::snapshot::cluster::ClusterState>,
    target: Target,
}

impl Open {
    pub(super) fn new(cluster: &ClusterView, target: &Target) -> Self {
        cluster
            .state
            .stats
            .upstream_cx_active
            .fetch_add(1, Ordering::Relaxed);
        if let Target::Host(host) = target {
            host.state.active.fetch_add(1, Ordering::Relaxed);
            host.state.cx_active.fetch_add(1, Ordering::Relaxed);
        }
        Self {
            cluster: cluster.state.clone(),
            target: target.clone(),
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.cluster
            .stats
            .upstream_cx_active
            .fetch_sub(1, Ordering::Relaxed);
        if let Target::Host(host) = &self.target {
            host.state.active.fetch_sub(1, Ordering::Relaxed);
            host.state.cx_active.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

async fn copy_counted(
    context: &Rc<Context>,
    downstream: Prefixed,
    upstream: TcpStream,
    idle: Option<Duration>,
    open: &Open,
) {
    let (sent, received) = copy_until_end(context, downstream, upstream, idle).await;
    let stats = &open.cluster.stats;
    stats
        .upstream_cx_tx_bytes_total
        .fetch_add(sent, Ordering::Relaxed);
    stats
        .upstream_cx_rx_bytes_total
        .fetch_add(received, Ordering::Relaxed);
}

/// Copies both ways without counting.
pub(super) async fn copy(
    context: &Rc<Context>,
    downstream: Prefixed,
    upstream: TcpStream,
    idle: Option<Duration>,
) {
    copy_until_end(context, downstream, upstream, idle).await;
}

/// Copies both ways; returns the bytes sent and received. An error on one side resets the other.
async fn copy_until_end(
    _context: &Rc<Context>,
    downstream: Prefixed,
    upstream: TcpStream,
    idle: Option<Duration>,
) -> (u64, u64) {
    let busy = Cell::new(false);
    let mut downstream = Counted {
        stream: downstream,
        read: 0,
        busy: &busy,
    };
    let mut upstream = Counted {
        stream: upstream,
        read: 0,
        busy: &busy,
    };
    let result = {
        let copying = tokio::io::copy_bidirectional_with_sizes(
            &mut downstream,
            &mut upstream,
            BUFFER,
            BUFFER,
        );
        match idle {
            None => copying.await.map(drop),
            Some(idle) => {
                tokio::select! {
                    result = copying => result.map(drop),
                    () = until_idle(idle, &busy) => Ok(()),
                }
            }
        }
    };
    if result.is_err() {
        reset(downstream.stream.get_ref());
        reset(&upstream.stream);
    }
    (downstream.read, upstream.read)
}

/// Ends after a whole period without a byte.
async fn until_idle(period: Duration, busy: &Cell<bool>) {
    loop {
        tokio::time::sleep(period).await;
        if !busy.replace(false) {
            return;
        }
    }
}

/// A stream that notes what is read from it.
struct Counted<'a, S> {
    stream: S,
    read: u64,
    busy: &'a Cell<bool>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.read += (buf.filled().len() - before) as u64;
        self.busy.set(true);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<'_, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
