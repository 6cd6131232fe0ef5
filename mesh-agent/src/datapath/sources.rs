//! Services whose endpoint is chosen by the client's address: a slot for each pod.
//!
//! Whoever connects is a pod of this node, whose addresses are known before it connects. So the
//! kernel needs neither a ring nor a table: the agent asks the balancer that the proxy walks, once
//! for a pod, and writes the answer. The pod gets the endpoint that the agent, or an Envoy beside
//! it, would have chosen, for one look-up.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use mesh_common::SlotKey;

use crate::balance::hash::source_ip;
use crate::config::model::listener::{Listener, Terminal};
use crate::snapshot::slots::Limits;
use crate::snapshot::{ClusterView, ViewId};

use super::plan::PlannedSlot;

/// A pod that connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Its number in the kernel.
    pub pod_id: u32,
    /// The address its IPv4 connections come from.
    pub v4: Option<IpAddr>,
    /// The address its IPv6 connections come from.
    pub v6: Option<IpAddr>,
}

impl Source {
    /// A pod with these addresses; of several of a family the first one counts, as for the proxy.
    pub(super) fn new(pod_id: u32, ips: &[IpAddr]) -> Self {
        let first = |v4| ips.iter().copied().find(|ip| ip.is_ipv4() == v4);
        Self {
            pod_id,
            v4: first(true),
            v6: first(false),
        }
    }
}

/// The pods of this node by what they look at.
#[derive(Debug, Default)]
pub struct Sources {
    by_view: HashMap<ViewId, Vec<Source>>,
}

impl Sources {
    /// Adds a pod.
    pub fn add(&mut self, view: ViewId, source: Source) {
        self.by_view.entry(view).or_default().push(source);
    }

    /// Those that look at a view.
    pub(super) fn of(&self, view: ViewId) -> &[Source] {
        self.by_view.get(&view).map_or(&[], Vec::as_slice)
    }
}

/// Whether the client's address may decide where a listener's connections go.
pub(super) fn matter(listener: &Listener) -> bool {
    let chains = listener.filter_chains.iter();
    chains
        .chain(&listener.default_filter_chain)
        .any(|chain| matches!(&chain.terminal, Terminal::Tcp(proxy) if proxy.hash_source_ip))
}

/// The slot of each pod that dials an address, by its number in the kernel; of a cluster, and of the
/// set that it has among several.
pub(super) fn slots(
    view: ViewId,
    (cluster, set): (&ClusterView, u32),
    dialled: SocketAddr,
    sources: &[Source],
) -> BTreeMap<u32, PlannedSlot> {
    let limits = Limits::of(view, cluster);
    let balancer = cluster.balancer();
    sources
        .iter()
        .filter_map(|source| {
            let ip = if dialled.is_ipv4() {
                source.v4
            } else {
                source.v6
            };
            let hash = source_ip(ip?);
            let host = balancer.pool(hash)?.by_hash(hash, 0)?;
            let slot = PlannedSlot {
                address: host.address,
                limits,
                by_pod: 0,
            };
            Some((SlotKey::of_pod(source.pod_id, set), slot))
        })
        .collect()
}
