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

use smallvec::SmallVec;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::balance::hash::source_ip;
use crate::config::model::cluster::RoutingPriority;
use crate::config::model::listener::{TcpProxy, TcpWeightedCluster, Terminal};
use crate::config::model::response_flag::ResponseFlag;
use crate::snapshot::outlier::{self, Outcome};
use crate::snapshot::{ClusterView, View};

use super::accept::Caught;
use super::lb::{self, InFlight, Target};
use super::local::{Arrived, Speaks, Way};
use super::record::ConnectionRecord;
use super::sniff::Prefixed;
use super::standing::Entry;
use super::stats::count;
use super::stream::Stream;
use super::worker::Context;

pub(super) use connect::{ConnectError, Limit, Open, connect};
pub(super) use copy::{Ends, copy};
pub(super) use pool::Pool as TcpPool;

/// Serves a connection through a `tcp_proxy`, until it ends or is `denied`.
pub(super) async fn serve(
    context: &Rc<Context>,
    caught: &Caught,
    view: &Arc<View>,
    proxy: &TcpProxy,
    mut stream: Prefixed<Stream>,
    denied: Option<&Notify>,
    record: &mut ConnectionRecord,
) {
    let connected = tokio::select! {
        connected = connect_upstream(context, caught, view, proxy, record) => connected,
        // Nobody waits for it any more.
        () = stream.get_mut().failed() => None,
    };
    match connected {
        Some(upstream) => carry(context, proxy, stream, upstream, denied, record).await,
        None => stream.get_mut().reset(),
    }
}

/// A connection to an endpoint.
pub(super) struct Upstream {
    stream: Stream,
    /// Counts it: for the endpoint, and for the application where its pod's side is served here.
    counted: SmallVec<[(Open, InFlight); 2]>,
    /// The record of that side.
    here: Option<Box<ConnectionRecord>>,
    /// That side among those that stand by its pod's rules.
    stands: Option<Box<Entry>>,
}

/// Copies both ways until both sides have ended, or the connection is `denied`.
pub(super) async fn carry(
    context: &Rc<Context>,
    proxy: &TcpProxy,
    stream: Prefixed<Stream>,
    mut upstream: Upstream,
    denied: Option<&Notify>,
    record: &mut ConnectionRecord,
) {
    let ends = Ends {
        idle: proxy.idle_timeout,
        denied: [denied, upstream.stands.as_deref().map(Entry::denied)],
    };
    let copied = copy(context, stream, upstream.stream, ends).await;
    record.carried(copied.sent, copied.received);
    if let Some(here) = &mut upstream.here {
        here.carried(copied.sent, copied.received);
    }
    for (open, _) in &upstream.counted {
        let stats = open.stats();
        stats
            .upstream_cx_tx_bytes_total
            .fetch_add(copied.sent, Ordering::Relaxed);
        stats
            .upstream_cx_rx_bytes_total
            .fetch_add(copied.received, Ordering::Relaxed);
    }
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
    let picked = pick_cluster(proxy);
    let name = &picked.cluster;
    let Some(cluster) = view.clusters.get(name) else {
        count(&context.shared.stats.no_cluster);
        record.flag(ResponseFlag::NoClusterFound);
        return None;
    };
    record.cluster(name);
    let hash = proxy.hash_source_ip.then(|| source_ip(caught.peer.ip()));
    for _ in 0..proxy.max_connect_attempts {
        record.asks();
        let asked = lb::Asked::connection(caught.destination)
            .hashed(hash)
            .within(picked.subset.as_deref());
        let Some(target) = lb::pick(cluster, &asked) else {
            count(&cluster.state.stats.upstream_cx_none_healthy);
            record.flag(ResponseFlag::NoHealthyUpstream);
            return None;
        };
        record.attempt(target.address());
        // No limit: requests are HTTP's (Envoy: `enforceMaxRequests`).
        let in_flight = InFlight::begin(cluster, &target);
        if let Some(connected) = here(context, caught, cluster, &target, record).await {
            let mut connected = connected?;
            let open = Open::within_limit(
                cluster,
                &target,
                Limit::new(RoutingPriority::Default, false),
            )?;
            connected.counted.push((open, in_flight));
            return Some(connected);
        }
        match connect(
            context,
            cluster,
            &target,
            Limit::new(RoutingPriority::Default, false),
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
                    counted: SmallVec::from_iter([(open, in_flight)]),
                    here: None,
                    stands: None,
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

/// Where the endpoint is a pod of this node: its side of the connection, up to the application.
/// `None`: it goes the long way. `Some(None)`: that side did not reach the application.
async fn here(
    context: &Rc<Context>,
    caught: &Caught,
    cluster: &ClusterView,
    target: &Target,
    record: &mut ConnectionRecord,
) -> Option<Option<Upstream>> {
    let way = Way {
        caught,
        cluster,
        target,
        offer: None,
        speaks: Speaks::Tcp,
    };
    let Arrived::Anew(arrival) = way.arrive(context, None)? else {
        return None;
    };
    let Terminal::Tcp(proxy) = &arrival.terminal else {
        return None;
    };
    let view = context.shared.view(&arrival.caught.pod)?;
    count(&context.shared.stats.short_circuits);
    record.connected(None);
    let mut theirs = ConnectionRecord::begin(context, &arrival.caught);
    theirs.tell(&arrival.listener.access_logs);
    theirs.tell(&proxy.access_logs);
    theirs.chain(&arrival.chain);
    theirs.peer(&arrival.peer);
    // Before anything is waited for, so that no change of rules is missed.
    let stands = context.standing.enter(
        &arrival.caught,
        arrival.facts.clone(),
        arrival.peer.encrypted,
        arrival.peer.names.clone(),
        &arrival.listener,
    );
    let connecting = connect_upstream(context, &arrival.caught, &view, proxy, &mut theirs);
    let connected = Box::pin(connecting).await;
    Some(connected.map(|connected| Upstream {
        here: Some(Box::new(theirs)),
        stands: Some(Box::new(stands)),
        ..connected
    }))
}

fn observe(cluster: &ClusterView, target: &Target, outcome: Outcome) {
    if let Target::Host(host) = target {
        outlier::observe(cluster, host, outcome);
    }
}

fn pick_cluster(proxy: &TcpProxy) -> &TcpWeightedCluster {
    let mut left = match proxy.total_weight() {
        0 | 1 => 0,
        total => fastrand::u64(..total),
    };
    for cluster in &proxy.clusters {
        let weight = u64::from(cluster.weight);
        if left < weight {
            return cluster;
        }
        left -= weight;
    }
    &proxy.clusters[0]
}
