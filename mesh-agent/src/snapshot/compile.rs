//! Resources into a snapshot: a pure function.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::config::model::cluster::{Cluster, Discovery, DnsLookupFamily};
use crate::config::model::endpoint::{Endpoint, LoadAssignment};
use crate::config::model::hbone;
use crate::config::model::listener::{Listener, Role, TrafficDirection};
use crate::config::model::tls::{Metadata, UpstreamTransport};
use crate::config::model::workload::NodeConfig;
use crate::config::model::{Address, Name};
use crate::store::{Resource, ResourceSet};

use super::balancer::Settings;
use super::breakers::ByPriority;
use super::checked::Checked;
use super::cluster::{Changing, ClusterState, ClusterView, Host, HostState};
use super::outlier::Record;
use super::subsets::BySubset;
use super::{Clusters, Difference, OutboundListeners, Snapshot, View, ViewId};

/// What names resolved to, as the DNS source last saw it.
pub type DnsTable = HashMap<(Arc<str>, DnsLookupFamily), Arc<[IpAddr]>>;

/// What a snapshot is made of.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// Resources by view.
    pub views: &'a [(ViewId, Arc<ResourceSet>)],
    /// Which workload sees which; see [`Snapshot::pods`].
    pub pods: Option<Arc<HashMap<Name, ViewId>>>,
    /// Views that pods still look at: they stay until the pods have moved on.
    pub in_use: &'a [ViewId],
    /// The node's settings and workloads.
    pub node: &'a Arc<NodeConfig>,
    /// What names resolved to.
    pub dns: &'a Arc<DnsTable>,
}

/// Builds the next snapshot, taking counters over from `previous`.
pub fn compile(inputs: &Inputs<'_>, previous: &Snapshot) -> Snapshot {
    let kept = inputs.in_use.iter().filter_map(|id| {
        let view = previous.view(*id)?;
        Some((*id, view.clone()))
    });
    let compiled = inputs
        .views
        .iter()
        .map(|(id, resources)| (*id, compile_view(*id, resources, inputs, previous)));
    Snapshot {
        generation: previous.generation + 1,
        views: kept.chain(compiled).collect(),
        pods: inputs.pods.clone(),
        node: inputs.node.clone(),
    }
}

/// A view; the one before if nothing about it changed.
fn compile_view(
    id: ViewId,
    resources: &ResourceSet,
    inputs: &Inputs<'_>,
    snapshot: &Snapshot,
) -> Arc<View> {
    let previous = snapshot.view(id);
    let policy = inputs.node.outbound_traffic_policy;
    let failure_mode = &inputs.node.failure_mode;
    let listeners = || {
        resources
            .listeners
            .values()
            .map(|resource| resource.value.clone())
    };
    let same_listeners =
        previous.filter(|view| Arc::ptr_eq(&view.resources.listeners, &resources.listeners));
    let same_routes =
        previous.filter(|view| Arc::ptr_eq(&view.resources.routes, &resources.routes));
    let same_clusters = previous.filter(|view| {
        Arc::ptr_eq(&view.resources.clusters, &resources.clusters)
            && Arc::ptr_eq(&view.dns, inputs.dns)
    });
    let (clusters, changed) = match same_clusters {
        Some(view) => {
            let (clusters, changed) = update_clusters(view, resources, inputs.dns);
            (clusters, Some(changed))
        }
        None => (compile_clusters(resources, inputs.dns, previous), None),
    };
    let difference = match (previous, changed) {
        (Some(view), Some(clusters))
            if same_listeners.is_some()
                && view.outbound_traffic_policy == policy
                && view.failure_mode == *failure_mode =>
        {
            if clusters.is_empty()
                && same_routes.is_some()
                && Arc::ptr_eq(&view.resources.endpoints, &resources.endpoints)
                && Arc::ptr_eq(&view.resources.secrets, &resources.secrets)
            {
                return view.clone();
            }
            Difference::Endpoints {
                since: view.generation,
                clusters,
            }
        }
        _ => Difference::Everything,
    };
    Arc::new(View {
        id,
        resources: resources.clone(),
        outbound: same_listeners.map_or_else(
            || {
                let outbound = |one: &Arc<Listener>| one.direction == TrafficDirection::Outbound;
                Arc::new(OutboundListeners::new(listeners().filter(outbound)))
            },
            |view| view.outbound.clone(),
        ),
        inbound: match same_listeners {
            Some(view) => view.inbound.clone(),
            None => listeners().find(|one| one.role.is_caught() && is_inbound(one)),
        },
        tunnelled: match same_listeners {
            Some(view) => view.tunnelled.clone(),
            None => listeners().find(|one| matches!(one.role, Role::Internal) && is_inbound(one)),
        },
        tunnels: match same_listeners {
            Some(view) => view.tunnels.clone(),
            None => listeners().find_map(|one| match &one.role {
                Role::Terminates(tls) => Some(tls.clone()),
                Role::Caught | Role::Internal => None,
            }),
        },
        routes: same_routes.map_or_else(
            || {
                let routes = resources.routes.iter();
                let routes = routes.map(|(name, one)| (name.clone(), one.value.clone()));
                Arc::new(routes.collect())
            },
            |view| view.routes.clone(),
        ),
        clusters,
        outbound_traffic_policy: policy,
        failure_mode: failure_mode.clone(),
        generation: snapshot.generation + 1,
        difference,
        dns: inputs.dns.clone(),
    })
}

fn is_inbound(listener: &Arc<Listener>) -> bool {
    listener.direction == TrafficDirection::Inbound
}

fn compile_clusters(
    resources: &ResourceSet,
    dns: &DnsTable,
    previous: Option<&Arc<View>>,
) -> Clusters {
    let clusters = resources.clusters.iter();
    clusters
        .map(|(name, resource)| {
            let previous = previous.and_then(|view| view.clusters.get(name));
            let cluster = compile_cluster(name, &resource.value, resources, dns, previous);
            (name.clone(), cluster)
        })
        .collect()
}

/// The clusters of a view whose own configuration did not change, with their new endpoints, and
/// the names of those that have such.
fn update_clusters(view: &View, resources: &ResourceSet, dns: &DnsTable) -> (Clusters, Vec<Name>) {
    let mut clusters = view.clusters.clone();
    let mut changed = Vec::new();
    for service in differing(&view.resources.endpoints, &resources.endpoints) {
        for name in view.clusters.of_service(service) {
            let Some(previous) = view.clusters.get(name) else {
                continue;
            };
            let cluster = compile_cluster(name, &previous.config, resources, dns, Some(previous));
            if !Arc::ptr_eq(&cluster, previous) {
                clusters.replace(name, cluster);
                changed.push(name.clone());
            }
        }
    }
    (clusters, changed)
}

/// Names under which two maps do not have the very same value.
fn differing<'a, T>(
    before: &'a Arc<BTreeMap<Name, Resource<T>>>,
    after: &'a Arc<BTreeMap<Name, Resource<T>>>,
) -> Vec<&'a Name> {
    let mut names = Vec::new();
    if Arc::ptr_eq(before, after) {
        return names;
    }
    let (mut before, mut after) = (before.iter().peekable(), after.iter().peekable());
    loop {
        let order = match (before.peek(), after.peek()) {
            (None, None) => return names,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            // Most names are one string that both maps share.
            (Some((old, _)), Some((new, _))) if Arc::ptr_eq(old, new) => Ordering::Equal,
            (Some((old, _)), Some((new, _))) => old.cmp(new),
        };
        let old = before.next_if(|_| order != Ordering::Greater);
        let new = after.next_if(|_| order != Ordering::Less);
        let same = match (old, new) {
            (Some((_, old)), Some((_, new))) => Arc::ptr_eq(&old.value, &new.value),
            _ => false,
        };
        if !same {
            names.extend(old.or(new).map(|(name, _)| name));
        }
    }
}

/// A cluster with its endpoints; the one before if nothing about it changed.
fn compile_cluster(
    name: &Name,
    config: &Arc<Cluster>,
    resources: &ResourceSet,
    dns: &DnsTable,
    previous: Option<&Arc<ClusterView>>,
) -> Arc<ClusterView> {
    let (assignment, family) = match &config.discovery {
        Discovery::Static(assignment) => (Some(assignment), None),
        Discovery::Eds { service_name } => (
            resources
                .endpoints
                .get(service_name)
                .map(|resource| &resource.value),
            None,
        ),
        Discovery::StrictDns { assignment, dns } | Discovery::LogicalDns { assignment, dns } => {
            (Some(assignment), Some(dns.lookup_family))
        }
        Discovery::OriginalDst(_) => (None, None),
    };
    if let Some(previous) = previous
        && family.is_none()
        && Arc::ptr_eq(&previous.config, config)
        && previous.assignment.as_ref().map(Arc::as_ptr) == assignment.map(Arc::as_ptr)
    {
        return previous.clone();
    }
    let state = previous.map_or_else(
        || Arc::new(ClusterState::new(name.clone())),
        |view| view.state.clone(),
    );
    let first_only = matches!(config.discovery, Discovery::LogicalDns { .. });
    // Another outlier detection begins anew, as Envoy's.
    let watched_alike = previous.is_some_and(|view| view.config.outlier == config.outlier);
    let checked_alike =
        previous.is_some_and(|view| view.config.health_check == config.health_check);
    let known: HashMap<SocketAddr, Known> = previous
        .into_iter()
        .flat_map(|view| view.hosts())
        .map(|host| {
            let record = watched_alike.then(|| host.outlier.clone());
            let checked = host.checked.clone().filter(|_| checked_alike);
            (
                host.address,
                (host.state.clone(), record.unwrap_or_default(), checked),
            )
        })
        .collect();
    let resolve = |address: &Address| -> Vec<SocketAddr> {
        match (address, family) {
            (Address::Socket(address), _) => vec![*address],
            (Address::Hostname { host, port }, Some(family)) => dns
                .get(&(host.clone(), family))
                .into_iter()
                .flat_map(|addresses| addresses.iter())
                .take(if first_only { 1 } else { usize::MAX })
                .map(|ip| SocketAddr::new(*ip, *port))
                .collect(),
            (Address::Hostname { .. }, None) | (Address::Pipe(_), _) => Vec::new(),
        }
    };
    let priorities = assignment
        .map(|assignment| priorities(assignment, config, &resolve, &known))
        .unwrap_or_default();
    let settings = Settings {
        overprovisioning_factor: assignment
            .map_or(140, |assignment| assignment.overprovisioning_factor),
        panic_threshold: config.panic_threshold_percent,
        weighted_priority_health: assignment
            .is_some_and(|assignment| assignment.weighted_priority_health),
        locality_weighted: config.locality_weighted,
        policy: config.lb,
    };
    Arc::new(ClusterView {
        config: config.clone(),
        assignment: assignment.cloned(),
        breakers: ByPriority::new(&config.circuit_breakers, &state.resources),
        balancer: Changing::new(&priorities, settings, &state),
        subsets: config
            .subsets
            .as_ref()
            .map(|subsets| BySubset::new(subsets, &priorities, settings, &state)),
        priorities,
        transport: transport(config, &Metadata::new()),
        warmed: assignment.is_some() || matches!(config.discovery, Discovery::OriginalDst(_)),
        state,
    })
}

fn transport(config: &Cluster, metadata: &Metadata) -> UpstreamTransport {
    if hbone::asked_for(metadata) {
        return UpstreamTransport::Hbone(config.hbone.clone());
    }
    UpstreamTransport::select(&config.transport_matches, &config.transport, metadata)
}

/// What an endpoint takes over from the snapshot before.
type Known = (Arc<HostState>, Arc<Record>, Option<Arc<Checked>>);

fn priorities(
    assignment: &LoadAssignment,
    config: &Cluster,
    resolve: &dyn Fn(&Address) -> Vec<SocketAddr>,
    known: &HashMap<SocketAddr, Known>,
) -> Vec<Vec<Arc<Host>>> {
    let mut priorities: Vec<Vec<Arc<Host>>> = Vec::new();
    for group in &assignment.localities {
        let priority = group.priority as usize;
        if priorities.len() <= priority {
            priorities.resize_with(priority + 1, Vec::new);
        }
        let locality = Arc::new(group.locality.clone());
        let host = |endpoint: &Endpoint, address: SocketAddr| {
            let (state, outlier, checked) = known.get(&address).cloned().unwrap_or_default();
            let is_checked = config.health_check.is_some() && !endpoint.check.disabled;
            Arc::new(Host {
                address,
                hostname: endpoint.hostname.clone(),
                weight: endpoint.weight,
                locality: locality.clone(),
                locality_weight: group.weight,
                health: endpoint.health,
                transport: transport(config, &endpoint.transport_metadata),
                waypoint: endpoint.waypoint,
                workload: endpoint.workload.clone(),
                lb_metadata: endpoint.lb_metadata.clone(),
                outlier,
                checked: is_checked.then(|| checked.unwrap_or_default()),
                check: endpoint.check.clone(),
                state,
            })
        };
        for endpoint in &group.endpoints {
            for address in resolve(&endpoint.address) {
                priorities[priority].push(host(endpoint, address));
            }
        }
    }
    priorities
}
