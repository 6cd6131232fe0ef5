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
            let slots = (0..service.slots)
                .filter_map(|slot| {
                    let slot = SlotKey {
                        svc_id: service.svc_id,
                        generation: service.generation,
                        slot,
                    };
                    let slot = *written.get(&slot)?;
                    Some((slot, *backends.get(&slot.backend_id)?))
                })
                .collect();
            (key, Inherited { service, slots })
        })
        .collect();
    let live: HashMap<u32, &Service> = inherited
        .values()
        .map(|inherited| (inherited.service.svc_id, &inherited.service))
        .collect();
    for key in written.keys() {
        let holds = live.get(&key.svc_id).is_some_and(|service| {
            key.generation == service.generation && key.slot < service.slots
        });
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

/// Numbers that no pod, view or capture setting in the maps has.
pub(super) fn pods(maps: &PodMaps) -> Pods {
    let (mut pod_id, mut view_id, mut capture_id) = (0, 0, 0);
    for (_, pod) in maps.pods.iter().flatten() {
        pod_id = pod_id.max(pod.pod_id);
        view_id = view_id.max(pod.view_id);
        capture_id = capture_id.max(pod.capture_id);
    }
    Pods::starting_after(pod_id, view_id, capture_id)
}

/// Keys that are not to stay.
pub(super) fn stale<K: Eq + Hash>(
    keys: impl Iterator<Item = K>,
    stays: impl Fn(&K) -> bool,
) -> Vec<K> {
    keys.filter(|key| !stays(key)).collect()
}
