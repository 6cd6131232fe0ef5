//! Steps of the way of a connection or request, one at a time, for `cargo xtask bench micro`.

use std::net::SocketAddr;

use crate::snapshot::ClusterView;

pub use super::http::h1::micro::Exchange;
pub use super::http::micro::{Asked, Routes};

use super::lb;

/// Chooses an endpoint of a cluster, as for a connection; `random` is the hash where one counts.
pub fn pick(cluster: &ClusterView, random: u64) -> Option<SocketAddr> {
    let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let asked = lb::Asked::connection(nowhere).hashed(Some(random));
    lb::pick(cluster, &asked).map(|target| target.address())
}
