//! What the kernel is told of a cluster: endpoints and their shares of new connections.

use std::net::SocketAddr;

use crate::snapshot::ClusterView;

/// An endpoint and its share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weighted {
    /// The endpoint.
    pub address: SocketAddr,
    /// Its share of the sum of all.
    pub weight: f64,
}

/// The endpoints new connections may go to, with weights that sum to 1; empty when there are
/// none.
pub fn weights(cluster: &ClusterView) -> Vec<Weighted> {
    cluster
        .balancer
        .shares(cluster.config.lb)
        .into_iter()
        .map(|(host, weight)| Weighted {
            address: host.address,
            weight,
        })
        .collect()
}
