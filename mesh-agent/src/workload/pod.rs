//! An enrolled pod.

use std::net::IpAddr;
use std::sync::Arc;

use crate::config::model::workload::Workload;
use crate::snapshot::ViewId;

use super::Netns;

/// Number of an enrolled pod, unique while the agent runs; also in the BPF maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodId(pub u32);

/// A pod whose traffic is caught.
#[derive(Debug)]
pub struct Pod {
    /// Its number.
    pub id: PodId,
    /// What is configured of it.
    pub workload: Arc<Workload>,
    /// Its network namespace; sockets towards upstreams are made in it.
    pub netns: Netns,
    /// What it may see.
    pub view: ViewId,
    /// Its addresses, loopback and link-local ones left out.
    pub ips: Vec<IpAddr>,
}
