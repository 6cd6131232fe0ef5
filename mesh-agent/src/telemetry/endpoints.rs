//! Who is where, by what the configuration says of endpoints: pods of other nodes, and the services
//! that an address belongs to.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::model::Name;
use crate::snapshot::Snapshot;

/// How old an index may become before another snapshot is looked through.
const AGE: Duration = Duration::from_secs(10);

/// An index of one snapshot's endpoints. It is made only when somebody asks for what it does not
/// know, and not often: there may be a hundred thousand.
#[derive(Debug, Default)]
pub(super) struct Endpoints {
    /// Of which snapshot, and since when.
    made: Option<(u64, Instant)>,
    workloads: HashMap<IpAddr, Arc<str>>,
    clusters: HashMap<SocketAddr, Name>,
}

impl Endpoints {
    /// Looks at the snapshot if it is another one and the last look was a while ago. Says whether
    /// it did.
    pub(super) fn follow(&mut self, snapshot: &Snapshot, now: Instant) -> bool {
        let current = |(generation, since): &(u64, Instant)| {
            *generation == snapshot.generation || now - *since < AGE
        };
        if self.made.as_ref().is_some_and(current) {
            return false;
        }
        self.made = Some((snapshot.generation, now));
        self.workloads.clear();
        self.clusters.clear();
        let views = snapshot.views.values();
        for cluster in views.flat_map(|view| view.clusters.values()) {
            for host in cluster.hosts() {
                if let Some(workload) = &host.workload {
                    self.workloads.insert(host.address.ip(), workload.clone());
                }
                let name = &cluster.config.name;
                // Of several the same one every time.
                let known = self.clusters.entry(host.address);
                let known = known.or_insert_with(|| name.clone());
                if **name < **known {
                    *known = name.clone();
                }
            }
        }
        true
    }

    /// Who has the address, as Istio's control plane tells it.
    pub(super) fn workload(&self, ip: IpAddr) -> Option<&str> {
        self.workloads.get(&ip).map(|text| &**text)
    }

    /// A cluster that has this endpoint.
    pub(super) fn cluster(&self, address: SocketAddr) -> Option<&str> {
        self.clusters.get(&address).map(|name| &**name)
    }
}
