//! An enrolled pod.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

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
    /// What it may see; read by [`Self::view`].
    pub(super) view: AtomicU32,
    /// Its addresses, loopback and link-local ones left out.
    pub ips: Vec<IpAddr>,
}

impl Pod {
    /// What it may see now.
    pub fn view(&self) -> ViewId {
        ViewId(self.view.load(Ordering::Relaxed))
    }

    /// Lets it see something else from now on.
    pub(super) fn see(&self, view: ViewId) {
        self.view.store(view.0, Ordering::Relaxed);
    }
}
