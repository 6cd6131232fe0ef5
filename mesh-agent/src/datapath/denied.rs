//! Connects that the kernel refused.

use std::collections::HashMap;
use std::net::SocketAddr;

use aya::maps::{HashMap as BpfHashMap, Map, MapData};
use mesh_common::{Counter, DeniedKey};

use crate::config::model::Name;

use super::Datapath;
use super::take::take;

/// Connects of a pod to one address that were refused for one reason.
#[derive(Debug, Clone)]
pub struct Denied {
    /// Who: the pod's network namespace.
    pub netns_cookie: u64,
    /// Where to.
    pub to: SocketAddr,
    /// The service: a listener's name, or what stands for it. `None`: it is gone.
    pub service: Option<Name>,
    /// Why it is where it is: the reason `status` shows.
    pub rule: String,
    /// Which way out, as `mesh_datapath_connections_total` names it.
    pub reason: &'static str,
    /// How many, since they were last asked for.
    pub times: u64,
}

impl Datapath {
    /// Takes out what was refused since the last time.
    pub fn take_denied(&mut self) -> Vec<Denied> {
        let map = &self.node.denied;
        let Map::LruHashMap(data) = map else {
            return Vec::new();
        };
        let keys: Vec<DeniedKey> = match BpfHashMap::<&MapData, DeniedKey, u64>::try_from(map) {
            Ok(entries) => entries.keys().flatten().collect(),
            Err(error) => {
                tracing::error!(%error, "cannot read the map DENIED");
                return Vec::new();
            }
        };
        if keys.is_empty() {
            return Vec::new();
        }
        let services: HashMap<u32, _> = self
            .reconciler
            .services()
            .map(|(_, installed)| (installed.service.svc_id, &installed.plan))
            .collect();
        keys.into_iter()
            .filter_map(|key| {
                let times = take(data, &key)?;
                let plan = services.get(&key.svc_id);
                Some(Denied {
                    netns_cookie: key.netns_cookie,
                    to: SocketAddr::new(key.addr.into(), key.port),
                    service: plan.map(|plan| plan.name.clone()),
                    rule: plan.map(|plan| plan.why.to_string()).unwrap_or_default(),
                    reason: Counter::NAMES
                        .get(usize::from(key.why))
                        .copied()
                        .unwrap_or("unknown"),
                    times,
                })
            })
            .collect()
    }
}
