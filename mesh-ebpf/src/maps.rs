//! All maps. Layouts are in mesh-common; the agent writes configuration, the kernel writes state.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SockHash};
use mesh_common::{
    Acceleration, Addr, AuthzKey, Backend, CidrKey, Conns, ConnsKey, Control, Counter, DeniedKey,
    Ends, FastKey, Flow, Hello, InboundPod, ListenKey, OrigKey, OriginalDst, Pair, Pod, PortKey,
    Service, ServiceKey, ServiceState, SkState, Slot, SlotKey, capacity,
};

/// netns cookie -> enrolled pod
#[map]
pub(crate) static PODS: HashMap<u64, Pod> =
    HashMap::with_max_entries(capacity::PODS, BPF_F_NO_PREALLOC);

/// captured and excluded address ranges
#[map]
pub(crate) static CIDRS: LpmTrie<CidrKey, u32> =
    LpmTrie::with_max_entries(capacity::CIDRS, BPF_F_NO_PREALLOC);

/// captured and excluded ports
#[map]
pub(crate) static PORTS: HashMap<PortKey, u32> =
    HashMap::with_max_entries(capacity::PORTS, BPF_F_NO_PREALLOC);

/// address dialled -> what happens
#[map]
pub(crate) static SVC: HashMap<ServiceKey, Service> =
    HashMap::with_max_entries(capacity::SERVICES, BPF_F_NO_PREALLOC);

/// slot -> backend number and limits
#[map]
pub(crate) static SLOTS: HashMap<SlotKey, Slot> =
    HashMap::with_max_entries(capacity::SLOTS, BPF_F_NO_PREALLOC);

/// backend number -> backend
#[map]
pub(crate) static BACK: HashMap<u32, Backend> =
    HashMap::with_max_entries(capacity::BACKENDS, BPF_F_NO_PREALLOC);

/// service number -> counters
#[map]
pub(crate) static SVC_STATE: HashMap<u32, ServiceState> =
    HashMap::with_max_entries(capacity::SERVICES, BPF_F_NO_PREALLOC);

/// connections of a cluster, and of a cluster to a backend
#[map]
pub(crate) static CONNS: HashMap<ConnsKey, Conns> =
    HashMap::with_max_entries(capacity::CONNS, BPF_F_NO_PREALLOC);

/// socket -> what the connect hook did to it
#[btf_map]
pub(crate) static SK: SkStorage<SkState> = SkStorage::new();

/// client end of a connection to the agent -> where it wanted to go
#[map]
pub(crate) static ORIG: LruHashMap<OrigKey, OriginalDst> =
    LruHashMap::with_max_entries(capacity::ORIG, 0);

/// pod address -> pod, for inbound connections
#[map]
pub(crate) static IN_PODS: HashMap<Addr, InboundPod> =
    HashMap::with_max_entries(capacity::POD_ADDRESSES, BPF_F_NO_PREALLOC);

/// who may connect to a pod, as far as addresses say
#[map]
pub(crate) static AUTHZ: LpmTrie<AuthzKey, u32> =
    LpmTrie::with_max_entries(capacity::AUTHZ, BPF_F_NO_PREALLOC);

/// listening sockets inside pods; a closed one leaves by itself
#[map]
pub(crate) static LISTEN: SockHash<ListenKey> = SockHash::with_max_entries(capacity::LISTENERS, 0);

/// one element: what the agent says of itself
#[map]
pub(crate) static CTRL: Array<Control> = Array::with_max_entries(1, 0);

/// ways out of the hooks
#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::COUNT, 0);

/// records of connections
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(capacity::EVENT_BYTES, 0);

/// refused connects -> how many
#[map]
pub(crate) static DENIED: LruHashMap<DeniedKey, u64> =
    LruHashMap::with_max_entries(capacity::DENIED, 0);

/// one element: what is accelerated
#[map]
pub(crate) static ACCEL: Array<Acceleration> = Array::with_max_entries(1, 0);

/// address of an enrolled pod -> 1
#[map]
pub(crate) static NEAR: HashMap<Addr, u32> =
    HashMap::with_max_entries(capacity::POD_ADDRESSES, BPF_F_NO_PREALLOC);

/// ends of a connection -> its client, until its server is there
#[map]
pub(crate) static PEERS: LruHashMap<Ends, Hello> = LruHashMap::with_max_entries(capacity::PEERS, 0);

/// sockets of accelerated connections; a closed one leaves by itself
#[map]
pub(crate) static FAST: SockHash<FastKey> = SockHash::with_max_entries(2 * capacity::PAIRS, 0);

/// socket -> which end of which pair it is
#[btf_map]
pub(crate) static FLOW: SkStorage<Flow> = SkStorage::new();

/// pair -> what went past TCP
#[map]
pub(crate) static PAIRS: HashMap<u64, Pair> =
    HashMap::with_max_entries(capacity::PAIRS, BPF_F_NO_PREALLOC);

/// service number -> how many of its connections are worth it, 256 is all
#[map]
pub(crate) static HABITS: LruHashMap<u32, u32> = LruHashMap::with_max_entries(capacity::PEERS, 0);

/// Counts a way out.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a per-CPU element; the program is not preempted by itself.
        unsafe { *value += 1 };
    }
}
