//! What the kernel is told of a cluster: endpoints, their shares of new connections, and limits.

use std::net::SocketAddr;

use mesh_common::UNLIMITED;
use xxhash_rust::xxh64::xxh64;

use crate::snapshot::{ClusterView, ViewId};

/// An endpoint and its share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weighted {
    /// The endpoint.
    pub address: SocketAddr,
    /// Its share of the sum of all.
    pub weight: f64,
    /// What its cluster allows.
    pub limits: Limits,
    /// Not 0: its cluster chooses by the client's address, in this set of pods' slots.
    pub by_pod: u32,
}

/// How many connections of a cluster may be open at once, over all addresses it stands behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The cluster's number in the kernel: a hash of its view and name, so that no list of numbers
    /// needs to outlive the agent. Clusters that collide would share a limit.
    pub cluster: u64,
    /// Of the whole cluster (Envoy: `thresholds`, 1024 unless configured).
    pub max_connections: u32,
    /// To each endpoint (Envoy: `per_host_thresholds`).
    pub max_per_endpoint: u32,
    /// Connections to an endpoint that leaves are reset.
    pub close_on_removal: bool,
}

impl Limits {
    /// What a cluster of a view allows.
    pub fn of(view: ViewId, cluster: &ClusterView) -> Self {
        let breakers = &cluster.config.circuit_breakers;
        Self {
            cluster: xxh64(cluster.config.name.as_bytes(), u64::from(view.0)),
            max_connections: breakers.default.max_connections,
            max_per_endpoint: breakers.max_connections_per_endpoint.unwrap_or(UNLIMITED),
            close_on_removal: cluster.config.close_connections_on_host_removal,
        }
    }
}

/// The endpoints new connections may go to, with weights that sum to 1; empty when there are
/// none.
pub fn weights(view: ViewId, cluster: &ClusterView) -> Vec<Weighted> {
    let limits = Limits::of(view, cluster);
    cluster
        .balancer()
        .shares(cluster.config.lb)
        .into_iter()
        .map(|(host, weight)| Weighted {
            address: host.address,
            weight,
            limits,
            by_pod: 0,
        })
        .collect()
}
