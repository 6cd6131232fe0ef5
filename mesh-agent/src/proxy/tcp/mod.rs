//! TCP proxying: both directions until both have ended, each end forwarded as it comes.

mod connect;
mod copy;
mod direction;
mod pipe;
mod pool;
mod relay;

use std::io::ErrorKind;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::config::model::Name;
use crate::config::model::cluster::RoutingPriority;
use crate::config::model::listener::TcpProxy;
use crate::config::model::response_flag::ResponseFlag;
use crate::snapshot::outlier::{self, Outcome};
use crate::snapshot::{ClusterView, View};

use super::accept::Caught;
use super::lb::{self, InFlight, Target};
use super::record::ConnectionRecord;
use super::sniff::Prefixed;
use super::stats::count;
use super::stream::Stream;
use super::worker::Context;

pub(super) use connect::{ConnectError, Open, connect};
pub(super) use copy::copy;
pub(super) use pool::Pool as TcpPool;

/// Serves a connection through a `tcp_proxy`.
pub(super) async fn serve(
    context: &Rc<Context>,
    caught: &Caught,
    view: &Arc<View>,
    proxy: &TcpProxy,
    mut stream: Prefixed<Stream>,
    record: &mut ConnectionRecord,
) {
    let connected = tokio::select! {
        connected = connect_upstream(context, caught, view, proxy, record) => connected,
        // Nobody waits for it any more.
        () = stream.get_mut().failed() => None,
    };
    match connected {
        Some(upstream) => carry(context, proxy, stream, upstream, record).await,
        None => stream.get_mut().reset(),
    }
}

/// A connection to an endpoint, and what counts it.
pub(super) struct Upstream {
    stream: Stream,
    open: Open,
    _in_flight: InFlight,
}

/// Copies both ways until both sides have ended.
pub(super) async fn carry(
    context: &Rc<Context>,
    proxy: &TcpProxy,
    stream: Prefixed<Stream>,
    upstream: Upstream,
    record: &mut ConnectionRecord,
) {
    let copied = copy(context, stream, upstream.stream, proxy.idle_timeout).await;
    record.carried(copied.sent, copied.received);
    let stats = upstream.open.stats();
    stats
        .upstream_cx_tx_bytes_total
        .fetch_add(copied.sent, Ordering::Relaxed);
    stats
        .upstream_cx_rx_bytes_total
        .fetch_add(copied.received, Ordering::Relaxed);
}

/// Ends when the connection was reset. A client that only closed its side is still there to be
/// answered.
async fn failed(stream: &TcpStream) {
    // An error of the wait itself is the end of the connection, too.
    let _ = stream.ready(Interest::ERROR).await;
}

/// Tries endpoints until one takes the connection, as often as configured.
pub(super) async fn connect_upstream(
    context: &Rc<Context>,
    caught: &Caught,
    view: &Arc<View>,
    proxy: &TcpProxy,
    record: &mut ConnectionRecord,
) -> Option<Upstream> {
    let name = pick_cluster(proxy);
    let Some(cluster) = view.clusters.get(name) else {
        count(&context.shared.stats.no_cluster);
        record.flag(ResponseFlag::NoClusterFound);
        return None;
    };
    record.cluster(name);
    for _ in 0..proxy.max_connect_attempts {
        record.asks();
        let Some(target) = lb::pick(cluster, &lb::Asked::connection(caught.destination)) else {
            count(&cluster.state.stats.upstream_cx_none_healthy);
            record.flag(ResponseFlag::NoHealthyUpstream);
            return None;
        };
        record.attempt(target.address());
        // No limit: requests are HTTP's (Envoy: `enforceMaxRequests`).
        let in_flight = InFlight::begin(cluster, &target);
        match connect(
            context,
            cluster,
            &target,
            RoutingPriority::Default,
            caught,
            None,
        )
        .await
        {
            Ok((stream, open)) => {
                observe(cluster, &target, Outcome::Connected);
                record.connected(open.local());
                return Some(Upstream {
                    stream,
                    open,
                    _in_flight: in_flight,
                });
            }
            Err(error) => {
                let address = target.address();
                tracing::debug!(cluster = %name, %address, %error, "connect failed");
                if matches!(error, ConnectError::Overflow) {
                    record.flag(ResponseFlag::UpstreamOverflow);
                    // Another endpoint of the cluster is not less full (Envoy: no retry).
                    return None;
                }
                let late = matches!(&error, ConnectError::Io(error) if error.kind() == ErrorKind::TimedOut);
                let outcome = if late {
                    Outcome::TimedOut
                } else {
                    Outcome::Failed
                };
                observe(cluster, &target, outcome);
                record.flag(ResponseFlag::UpstreamConnectionFailure);
                if let ConnectError::Io(error) = &error {
                    record.transport_failed(error);
                }
            }
        }
    }
    record.flag(ResponseFlag::UpstreamRetryLimitExceeded);
    count(&cluster.state.stats.upstream_cx_connect_attempts_exceeded);
    None
}

fn observe(cluster: &ClusterView, target: &Target, outcome: Outcome) {
    if let Target::Host(host) = target {
        outlier::observe(cluster, host, outcome);
    }
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
