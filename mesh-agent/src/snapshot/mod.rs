//! The immutable compiled view of the configuration.
//!
//! A snapshot is built whole by [`compile`], published through one atomic swap and never changed.
//! A request reads one snapshot from start to end and takes no lock. What must outlive a
//! snapshot (counters, health, active connections) hangs on [`cluster::ClusterState`] and
//! [`cluster::HostState`], which a new snapshot takes over from the one before.

pub mod balancer;
pub mod breakers;
pub mod checked;
pub mod cluster;
mod clusters;
mod compile;
mod listeners;
pub mod outlier;
mod places;
pub mod reported;
mod retired;
pub mod slots;
mod subsets;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::config::model::Name;
use crate::config::model::listener::{Listener, RouteSource, Terminal};
use crate::config::model::route::RouteConfiguration;
use crate::config::model::tls::DownstreamTls;
use crate::config::model::workload::{FailureMode, NodeConfig, OutboundTrafficPolicy};
use crate::store::ResourceSet;

pub use cluster::ClusterView;
pub use clusters::Clusters;
pub use compile::{DnsTable, Inputs, compile};
pub use listeners::{ANYTHING, OutboundListeners};
pub use retired::Retired;

/// Where the current snapshot is published.
pub type SharedSnapshot = Arc<ArcSwap<Snapshot>>;

/// What a set of pods may see: one per distinct configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ViewId(pub u32);

impl ViewId {
    /// The view of the node's own stream or file.
    pub const NODE: Self = Self(1);
}

/// Everything the data plane reads, as of one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Grows by one with every snapshot; 0 is the empty one before the first configuration.
    pub generation: u64,
    /// By view.
    pub views: HashMap<ViewId, Arc<View>>,
    /// Which workload sees which view; `None`: all see [`ViewId::NODE`].
    pub pods: Option<Arc<HashMap<Name, ViewId>>>,
    /// The node's settings and workloads.
    pub node: Arc<NodeConfig>,
}

impl Snapshot {
    /// What a workload sees; `None`: there is no configuration for it yet.
    pub fn view_of(&self, workload: &Name) -> Option<ViewId> {
        match &self.pods {
            None => Some(ViewId::NODE),
            Some(pods) => pods.get(workload).copied(),
        }
    }

    /// A cell holding the empty snapshot.
    pub fn shared() -> SharedSnapshot {
        Arc::new(ArcSwap::from_pointee(Self::default()))
    }

    /// The view, unless it is gone.
    pub fn view(&self, id: ViewId) -> Option<&Arc<View>> {
        self.views.get(&id)
    }
}

/// One view: listeners by original destination, routes and clusters by name.
#[derive(Debug)]
pub struct View {
    /// Its number, also in the BPF maps.
    pub id: ViewId,
    /// What it was made of.
    pub resources: ResourceSet,
    /// Listeners for connections pods make.
    pub outbound: Arc<OutboundListeners>,
    /// The listener for connections pods receive; `None` leaves inbound traffic alone.
    pub inbound: Option<Arc<Listener>>,
    /// The listener for what came through HBONE tunnels, if it is another one.
    pub tunnelled: Option<Arc<Listener>>,
    /// How tunnels are ended that lead to pods, where the configuration says so.
    pub tunnels: Option<Arc<DownstreamTls>>,
    /// Named route configurations.
    pub routes: Arc<HashMap<Name, Arc<RouteConfiguration>>>,
    /// Clusters with their endpoints.
    pub clusters: Clusters,
    /// For connections no listener takes.
    pub outbound_traffic_policy: OutboundTrafficPolicy,
    /// For services of the agent while it is down.
    pub failure_mode: Arc<FailureMode>,
    /// The snapshot it was made for.
    pub generation: u64,
    /// What is new in it.
    pub difference: Difference,
    /// What names resolved to when it was made.
    pub dns: Arc<DnsTable>,
}

impl View {
    /// The listener for what comes through HBONE tunnels: Istio's own for that, or else the one
    /// for all connections pods receive.
    pub fn behind_tunnels(&self) -> Option<&Arc<Listener>> {
        self.tunnelled.as_ref().or(self.inbound.as_ref())
    }

    /// The clusters that connections or requests of a listener may go to.
    pub fn clusters_of<'a>(&'a self, listener: &'a Listener) -> BTreeSet<&'a Name> {
        let chains = listener.filter_chains.iter();
        let mut names = BTreeSet::new();
        for chain in chains.chain(&listener.default_filter_chain) {
            match &chain.terminal {
                Terminal::Tcp(proxy) => names.extend(proxy.clusters.iter().map(|one| &one.cluster)),
                Terminal::Http(hcm) => {
                    let routes = match &hcm.routes {
                        RouteSource::Inline(routes) => Some(routes),
                        RouteSource::Rds(name) => self.routes.get(name),
                    };
                    let routes = routes.into_iter().flat_map(|routes| routes.clusters());
                    names.extend(routes.map(|(_, name)| name));
                }
            }
        }
        names
    }
}

/// What a view differs in from the one before, for those who follow by difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// Perhaps everything.
    Everything,
    /// The endpoints of some clusters, and nothing else.
    Endpoints {
        /// [`View::generation`] of the one before.
        since: u64,
        /// The clusters.
        clusters: Vec<Name>,
    },
}
