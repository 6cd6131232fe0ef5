//! What an operator may ask of the kernel side.

use std::net::{IpAddr, SocketAddr};

use mesh_common::{Conns, ConnsKey, Counter, ServiceKey, ServiceState, Verdict};

use crate::snapshot::slots::Limits;
use crate::snapshot::{ClusterView, ViewId};

use super::load::Datapath;

/// A service as the kernel sees it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ServiceStatus {
    /// The listener's name.
    pub name: String,
    /// Of which view.
    pub view: u32,
    /// The address dialled; unspecified is every address.
    pub address: IpAddr,
    /// The port dialled; 0 is every port.
    pub port: u16,
    /// `direct`, `agent`, `pass` or `deny`.
    pub verdict: &'static str,
    /// Why it runs there.
    pub why: String,
    /// Which list of backends holds; grows with every change.
    pub generation: u32,
    /// Backends with their number of slots and open connections.
    pub backends: Vec<BackendStatus>,
    /// Connections the kernel classified.
    pub connects: u64,
    /// Connections the kernel refused.
    pub refused: u64,
    /// Connections open that the kernel balanced.
    pub active: u64,
    /// Endpoints of its clusters that outlier detection ejected.
    pub ejected: usize,
}

/// A backend of a service that the kernel balances.
#[derive(Debug, Clone, serde::Serialize)]
pub struct BackendStatus {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its share: slots of the service's list.
    pub slots: usize,
    /// Connections open.
    pub active: u64,
    /// Connections made.
    pub total: u64,
    /// Connections refused, because there were as many as its cluster allows to one endpoint.
    pub overflow: u64,
}

/// How full a map is.
#[derive(Debug, Clone, serde::Serialize)]
pub struct MapUse {
    /// The map's name.
    pub name: &'static str,
    /// Entries now.
    pub entries: usize,
    /// Entries at most.
    pub capacity: u32,
}

impl Datapath {
    /// Every service, in the order of views and addresses.
    pub fn services(&self) -> Vec<ServiceStatus> {
        self.reconciler
            .services()
            .map(|(key, installed)| {
                let svc_id = installed.service.svc_id;
                let state: ServiceState = self.services.state.get(&svc_id, 0).unwrap_or_default();
                let mut backends: Vec<BackendStatus> = Vec::new();
                for (address, slot) in installed.backends() {
                    if let Some(known) = backends.iter_mut().find(|b| b.address == address) {
                        known.slots += 1;
                        continue;
                    }
                    let key = ConnsKey::of(slot.cluster, slot.backend_id);
                    let conns = self.services.conns.get(&key, 0).unwrap_or_default();
                    backends.push(BackendStatus {
                        address,
                        slots: 1,
                        active: conns.active,
                        total: conns.total,
                        overflow: conns.overflow,
                    });
                }
                ServiceStatus {
                    name: installed.plan.name.to_string(),
                    view: key.view_id,
                    address: key.addr.into(),
                    port: key.port,
                    verdict: match installed.plan.verdict {
                        Verdict::Pass => "pass",
                        Verdict::Direct => "direct",
                        Verdict::Agent => "agent",
                        Verdict::Deny => "deny",
                    },
                    why: installed.plan.why.to_string(),
                    generation: installed.service.generation,
                    backends,
                    connects: state.connects,
                    refused: state.refused,
                    active: state.active,
                    ejected: self.ejected(key),
                }
            })
            .collect()
    }

    fn ejected(&self, key: &ServiceKey) -> usize {
        let at = SocketAddr::new(key.addr.into(), key.port);
        let found = self.applied.as_ref().and_then(|snapshot| {
            let view = snapshot.view(ViewId(key.view_id))?;
            Some((view, view.outbound.find(at)?))
        });
        let Some((view, listener)) = found else {
            return 0;
        };
        view.clusters_of(listener)
            .into_iter()
            .filter_map(|name| view.clusters.get(name))
            // Nobody else ejects anything.
            .filter(|cluster| cluster.config.outlier.is_some())
            .map(|cluster| {
                cluster
                    .hosts()
                    .filter(|host| host.outlier.ejected())
                    .count()
            })
            .sum()
    }

    /// Connections of a cluster that the kernel balanced, over all services it stands behind.
    pub fn connections(&self, view: ViewId, cluster: &ClusterView) -> Conns {
        let key = ConnsKey::whole(Limits::of(view, cluster).cluster);
        self.services.conns.get(&key, 0).unwrap_or_default()
    }

    /// Ways out of the hooks, summed over CPUs.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        (0..Counter::COUNT)
            .map(|index| {
                let total = self
                    .node
                    .counters
                    .get(&index, 0)
                    .map(|values| values.iter().sum())
                    .unwrap_or_default();
                (Counter::NAMES[index as usize], total)
            })
            .collect()
    }

    /// How full the maps are.
    pub fn maps(&self) -> Vec<MapUse> {
        use mesh_common::capacity;
        let (services, pods) = (&self.services, &self.pod_maps);
        [
            ("PODS", pods.pods.keys().count(), capacity::PODS),
            (
                "IN_PODS",
                pods.in_pods.keys().count(),
                capacity::POD_ADDRESSES,
            ),
            ("LISTEN", pods.listen.keys().count(), capacity::LISTENERS),
            ("CIDRS", pods.cidrs.keys().count(), capacity::CIDRS),
            ("AUTHZ", pods.authz.keys().count(), capacity::AUTHZ),
            ("PORTS", pods.ports.keys().count(), capacity::PORTS),
            ("SVC", services.svc.keys().count(), capacity::SERVICES),
            ("SLOTS", services.slots.keys().count(), capacity::SLOTS),
            ("BACK", services.back.keys().count(), capacity::BACKENDS),
            ("CONNS", services.conns.keys().count(), capacity::CONNS),
        ]
        .into_iter()
        .map(|(name, entries, capacity)| {
            let asked = self.map_sizes.iter().find(|size| size.map == name);
            MapUse {
                name,
                entries,
                capacity: asked.map_or(capacity, |size| size.entries),
            }
        })
        .collect()
    }

    /// The loaded programs: name and kernel id.
    pub fn programs(&self) -> Vec<(String, u32)> {
        self.ebpf
            .programs()
            .filter_map(|(name, program)| Some((name.to_owned(), program.info().ok()?.id())))
            .collect()
    }
}
