//! Upstream connections, counted from before they are made until they are gone.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::config::model::cluster::RoutingPriority;
use crate::config::model::tls::UpstreamTransport;
use crate::proxy::accept::Caught;
use crate::proxy::hbone;
use crate::proxy::lb::Target;
use crate::proxy::stats::count;
use crate::proxy::stream::Stream;
use crate::proxy::tls::{Offer, report, take_refused};
use crate::proxy::upstream::{self, Options};
use crate::proxy::worker::Context;
use crate::snapshot::ClusterView;
use crate::snapshot::breakers::Held;
use crate::snapshot::cluster::{ClusterState, ClusterStats};

/// Why there is no upstream connection.
#[derive(Debug, thiserror::Error)]
pub(in crate::proxy) enum ConnectError {
    /// The circuit breaker is open.
    #[error("circuit_breakers.max_connections of the cluster is reached")]
    Overflow,
    /// The endpoint does not take it.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Which limit counts.
#[derive(Debug, Clone, Copy)]
pub(in crate::proxy) struct Limit {
    priority: RoutingPriority,
    /// It may be one too many: without it nothing would ever be served.
    first: bool,
}

impl Limit {
    /// Of a priority.
    pub(in crate::proxy) fn new(priority: RoutingPriority, first: bool) -> Self {
        Self { priority, first }
    }
}

/// Connects to an endpoint and counts how it went. The connection is counted as long as the
/// returned [`Open`] lives.
///
/// # Errors
/// See [`ConnectError`]. Only an endpoint that did not take it counts as a failure to connect.
pub(in crate::proxy) async fn connect(
    context: &Context,
    cluster: &ClusterView,
    target: &Target,
    limit: Limit,
    caught: &Caught,
    offer: Option<&Offer>,
) -> Result<(Stream, Open), ConnectError> {
    let stats = &cluster.state.stats;
    let Some(mut open) = Open::within_limit(cluster, target, limit) else {
        count(&stats.upstream_cx_overflow);
        return Err(ConnectError::Overflow);
    };
    count(&stats.upstream_cx_total);
    if let Target::Host(host) = target {
        count(&host.state.cx_total);
    }
    let options = Options::from(&*cluster.config);
    match secured(context, cluster, target, caught, &options, offer).await {
        Ok(stream) => {
            open.local = stream.local_addr();
            Ok((stream, open))
        }
        Err(error) => {
            count(&stats.upstream_cx_connect_fail);
            if error.kind() == io::ErrorKind::TimedOut {
                count(&stats.upstream_cx_connect_timeout);
            }
            if let Target::Host(host) = target {
                count(&host.state.cx_connect_fail);
            }
            Err(error.into())
        }
    }
}

/// Connects as the endpoint's transport asks; TLS has what is left of the time to connect.
async fn secured(
    context: &Context,
    cluster: &ClusterView,
    target: &Target,
    caught: &Caught,
    options: &Options,
    offer: Option<&Offer>,
) -> io::Result<Stream> {
    let start = Instant::now();
    let address = target.address();
    let tls = match target.transport(cluster) {
        UpstreamTransport::Plain => {
            let stream = upstream::connect(&caught.pod, address, options).await?;
            return Ok(Stream::Plain(stream));
        }
        UpstreamTransport::Hbone(tls) => {
            // On its own, as TLS below: most connections need not make room for it.
            let tunnel = hbone::connect(context, cluster, target, tls, caught, options);
            let tunnelled = Box::pin(tunnel).await?;
            return Ok(Stream::Tunnelled(Box::new(tunnelled)));
        }
        UpstreamTransport::Tls(tls) => tls,
    };
    let stream = upstream::connect(&caught.pod, address, options).await?;
    let left = options.timeout.saturating_sub(start.elapsed());
    let connecting = Box::pin(context.tls.connect(tls, &caught.pod, offer, stream));
    let connected = tokio::time::timeout(left, connecting)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let refused = take_refused();
    let stats = &cluster.state.stats.ssl;
    match &connected {
        Ok(stream) => stats.stands(stream.is_resumed()),
        Err(error) => {
            stats.failed(refused.as_ref().map(|refused| refused.fault), error);
            let id = context.tls.identity(&caught.pod.workload);
            report::upstream(&id, address, cluster, refused.as_ref(), error);
        }
    }
    connected
}

/// Counts an upstream connection from the moment it is wanted; drop ends it.
#[derive(Debug)]
pub(in crate::proxy) struct Open {
    cluster: Arc<ClusterState>,
    target: Target,
    /// Our end of it, once it stands.
    local: Option<SocketAddr>,
    _held: Held,
}

impl Open {
    /// Reserves a place under `max_connections`: of many that ask at once no more get one than
    /// there are.
    pub(super) fn within_limit(
        cluster: &ClusterView,
        target: &Target,
        limit: Limit,
    ) -> Option<Self> {
        let breakers = cluster.breakers.of(limit.priority);
        let held = match breakers.hold_connection() {
            None if limit.first => breakers.hold_first_connection()?,
            held => held?,
        };
        count(&cluster.state.stats.upstream_cx_active);
        if let Target::Host(host) = target {
            count(&host.state.cx_active);
        }
        Some(Self {
            cluster: cluster.state.clone(),
            target: target.clone(),
            local: None,
            _held: held,
        })
    }

    /// Our end of the connection.
    pub(in crate::proxy) fn local(&self) -> Option<SocketAddr> {
        self.local
    }

    /// Counters of the cluster.
    pub(in crate::proxy) fn stats(&self) -> &ClusterStats {
        &self.cluster.stats
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let active = &self.cluster.stats.upstream_cx_active;
        active.fetch_sub(1, Ordering::Relaxed);
        if let Target::Host(host) = &self.target {
            host.state.cx_active.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
