//! Choosing an endpoint.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::HeaderMap;

use crate::config::model::cluster::{Discovery, LbPolicy, OriginalDst};
use crate::snapshot::ClusterView;
use crate::snapshot::cluster::{ClusterState, Host};

use super::stats::count;

/// Where a request or connection goes.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// An endpoint of the cluster.
    Host(Arc<Host>),
    /// The original destination.
    Original(SocketAddr),
}

impl Target {
    pub(super) fn address(&self) -> SocketAddr {
        match self {
            Self::Host(host) => host.address,
            Self::Original(address) => *address,
        }
    }
}

/// What a choice may depend on.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    original: SocketAddr,
    headers: Option<&'a HeaderMap>,
}

impl<'a> Asked<'a> {
    /// For a connection.
    pub(super) fn connection(original: SocketAddr) -> Self {
        Self {
            original,
            headers: None,
        }
    }

    /// For a request on a connection.
    pub(super) fn request(original: SocketAddr, headers: &'a HeaderMap) -> Self {
        Self {
            original,
            headers: Some(headers),
        }
    }
}

/// Picks an endpoint; `None`: there is none to use.
pub(super) fn pick(cluster: &ClusterView, asked: &Asked<'_>) -> Option<Target> {
    if let Discovery::OriginalDst(options) = &cluster.config.discovery {
        return original_dst(options, asked).map(Target::Original);
    }
    let slots = &cluster.schedule;
    if slots.is_empty() {
        return None;
    }
    let random = || &slots[fastrand::usize(..slots.len())];
    let host = match cluster.config.lb {
        LbPolicy::Random => random(),
        LbPolicy::LeastRequest { choice_count } => {
            let active = |host: &&Arc<Host>| host.state.active.load(Ordering::Relaxed);
            (0..choice_count)
                .map(|_| random())
                .min_by_key(active)
                .unwrap_or(&slots[0])
        }
        LbPolicy::RoundRobin | LbPolicy::ClusterProvided => {
            let turn = cluster.state.round_robin.fetch_add(1, Ordering::Relaxed);
            &slots[turn % slots.len()]
        }
    };
    Some(Target::Host(host.clone()))
}

/// Where the connection was going, unless the request names another address. A name that is no
/// address leaves no endpoint (Envoy: `OriginalDstCluster::LoadBalancer::requestOverrideHost`).
fn original_dst(options: &OriginalDst, asked: &Asked<'_>) -> Option<SocketAddr> {
    let named = options
        .http_header
        .as_ref()
        .and_then(|name| asked.headers?.get(name));
    let address: SocketAddr = match named {
        Some(value) => value.to_str().ok()?.parse().ok()?,
        None => asked.original,
    };
    let port = options.port_override.unwrap_or(address.port());
    Some(SocketAddr::new(address.ip(), port))
}

/// Counts a request, or a connection that carries none, towards its endpoint: what least request
/// looks at. Drop ends it.
#[derive(Debug)]
pub(super) struct InFlight {
    cluster: Arc<ClusterState>,
    target: Target,
}

impl InFlight {
    /// Reserves a place under `max_requests`; `None`: there is none.
    pub(super) fn within(cluster: &ClusterView, target: &Target, limit: u32) -> Option<Self> {
        let active = &cluster.state.stats.upstream_rq_active;
        active
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |active| {
                (active < u64::from(limit)).then_some(active + 1)
            })
            .ok()?;
        if let Target::Host(host) = target {
            count(&host.state.active);
        }
        Some(Self {
            cluster: cluster.state.clone(),
            target: target.clone(),
        })
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let active = &self.cluster.stats.upstream_rq_active;
        active.fetch_sub(1, Ordering::Relaxed);
        if let Target::Host(host) = &self.target {
            host.state.active.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
