//! Typed handles of the maps.

use aya::Ebpf;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, RingBuf, SockHash};
use mesh_common::{
    Acceleration, Addr, AuthzKey, Backend, CidrKey, Conns, ConnsKey, Control, InboundPod,
    ListenKey, Pod, PortKey, Service, ServiceKey, ServiceState, Slot, SlotKey,
};

use super::DatapathError;

/// Maps of services: written by [`super::reconcile`].
pub(super) struct ServiceMaps {
    pub(super) svc: HashMap<MapData, ServiceKey, Service>,
    pub(super) slots: HashMap<MapData, SlotKey, Slot>,
    pub(super) back: HashMap<MapData, u32, Backend>,
    pub(super) state: HashMap<MapData, u32, ServiceState>,
    pub(super) conns: HashMap<MapData, ConnsKey, Conns>,
}

/// Maps of pods: written by [`super::pods`].
pub(super) struct PodMaps {
    pub(super) pods: HashMap<MapData, u64, Pod>,
    pub(super) in_pods: HashMap<MapData, Addr, InboundPod>,
    pub(super) near: HashMap<MapData, Addr, u32>,
    pub(super) listen: SockHash<MapData, ListenKey>,
    pub(super) cidrs: LpmTrie<MapData, CidrKey, u32>,
    pub(super) ports: HashMap<MapData, PortKey, u32>,
    pub(super) authz: LpmTrie<MapData, AuthzKey, u32>,
}

/// Everything else.
pub(super) struct NodeMaps {
    /// Until somebody writes it.
    pub(super) control: Option<Array<MapData, Control>>,
    pub(super) acceleration: Array<MapData, Acceleration>,
    pub(super) counters: PerCpuArray<MapData, u64>,
    pub(super) denied: Map,
    /// Until somebody reads them.
    pub(super) events: Option<RingBuf<MapData>>,
}

/// Takes the maps out of the loaded object; the last one hands over original destinations and is
/// read by the proxy workers.
pub(super) fn take(
    ebpf: &mut Ebpf,
) -> Result<(ServiceMaps, PodMaps, NodeMaps, MapData), DatapathError> {
    macro_rules! map {
        ($name:literal) => {
            ebpf.take_map($name)
                .ok_or(DatapathError::Missing(concat!("map ", $name)))?
                .try_into()
                .map_err(super::error::map_error($name, "open it"))?
        };
    }
    let services = ServiceMaps {
        svc: map!("SVC"),
        slots: map!("SLOTS"),
        back: map!("BACK"),
        state: map!("SVC_STATE"),
        conns: map!("CONNS"),
    };
    let pods = PodMaps {
        pods: map!("PODS"),
        in_pods: map!("IN_PODS"),
        near: map!("NEAR"),
        listen: map!("LISTEN"),
        cidrs: map!("CIDRS"),
        ports: map!("PORTS"),
        authz: map!("AUTHZ"),
    };
    let node = NodeMaps {
        control: Some(map!("CTRL")),
        acceleration: map!("ACCEL"),
        counters: map!("COUNTERS"),
        denied: ebpf
            .take_map("DENIED")
            .ok_or(DatapathError::Missing("map DENIED"))?,
        events: Some(map!("EVENTS")),
    };
    let Some(Map::LruHashMap(orig)) = ebpf.take_map("ORIG") else {
        return Err(DatapathError::Missing("map ORIG"));
    };
    Ok((services, pods, node, orig))
}
