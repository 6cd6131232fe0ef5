//! Takes over what an agent that is gone left in the maps.
//!
//! First the mirrors learn what is there, so that numbers go on and services keep their counts;
//! then the configuration is applied as a difference to it; last, what nobody asked for goes.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::net::SocketAddr;

use mesh_common::{Service, ServiceKey, Slot, SlotKey};

use super::DatapathError;
use super::backends::Backends;
use super::maps::{PodMaps, ServiceMaps};
use super::pods::Pods;
use super::reconcile::{Inherited, Reconciler};

/// What the service maps hold, as far as it hangs together. Slots and counters of services that
/// nothing refers to, of an agent that was killed while it wrote, are removed; so are, later,
/// backends and counters that stand at zero.
pub(super) fn services(maps: &mut ServiceMaps) -> Result<Reconciler, DatapathError> {
    let backends: HashMap<u32, SocketAddr> = maps
        .back
        .iter()
        .flatten()
        .map(|(id, backend)| (id, SocketAddr::new(backend.addr.into(), backend.port)))
        .collect();
    let written: BTreeMap<SlotKey, Slot> = maps.slots.iter().flatten().collect();
    let services: BTreeMap<ServiceKey, Service> = maps.svc.iter().flatten().collect();
    let inherited: BTreeMap<ServiceKey, Inherited> = services
        .into_iter()
        .map(|(key, service)| {
            let at = |slot| SlotKey {
                svc_id: service.svc_id,
                generation: service.generation,
                slot,
            };
            // Those of single pods come last.
            let slots = written
                .range(at(0)..=at(u32::MAX))
                .filter(|(key, _)| belongs(key, &service))
                .filter_map(|(key, slot)| Some((key.slot, *slot, *backends.get(&slot.backend_id)?)))
                .collect();
            (key, Inherited { service, slots })
        })
        .collect();
    let live: HashMap<u32, &Service> = inherited
        .values()
        .map(|inherited| (inherited.service.svc_id, &inherited.service))
        .collect();
    for key in written.keys() {
        let service = live.get(&key.svc_id);
        let holds = service.is_some_and(|service| belongs(key, service));
        if !holds {
            let _ = maps.slots.remove(key);
        }
    }
    for id in stale(maps.state.keys().flatten(), |id| live.contains_key(id)) {
        let _ = maps.state.remove(&id);
    }
    let backends = Backends::inherited(&backends, maps.conns.keys().flatten());
    Ok(Reconciler::inherit(inherited, backends))
}

/// Whether the kernel looks at a slot.
fn belongs(key: &SlotKey, service: &Service) -> bool {
    let read = key.slot < service.slots || key.slot >= SlotKey::of_pod(0, 0);
    key.generation == service.generation && read
}

/// What other agents enrolled.
pub(super) fn pods(maps: &PodMaps) -> Pods {
    Pods::inherited_from(maps.pods.iter().flatten().collect())
}

/// Keys that are not to stay.
pub(super) fn stale<K: Eq + Hash>(
    keys: impl Iterator<Item = K>,
    stays: impl Fn(&K) -> bool,
) -> Vec<K> {
    keys.filter(|key| !stays(key)).collect()
}
