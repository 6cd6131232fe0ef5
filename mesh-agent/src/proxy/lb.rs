//! Choosing an endpoint.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::config::model::cluster::{Discovery, LbPolicy};
use crate::snapshot::ClusterView;
use crate::snapshot::cluster::Host;

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

/// Picks an endpoint; `None`: there is none to use.
pub(super) fn pick(cluster: &ClusterView, original: SocketAddr) -> Option<Target> {
    if let Discovery::OriginalDst(options) = &cluster.config.discovery {
        let port = options.port_override.unwrap_or(original.port());
        return Some(Target::Original(SocketAddr::new(original.ip(), port)));
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
