//! Services: what happens to a connection to an address, and their backends.

use bytemuck::{Pod, Zeroable};

use crate::Addr;

/// `SVC` -> [`Service`]. Looked up in this order: address and port; address and port 0;
/// unspecified address of the family and port; unspecified address and port 0 (everything else).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct ServiceKey {
    /// [`crate::Pod::view_id`]
    pub view_id: u32,
    /// The address dialled.
    pub addr: Addr,
    /// The port dialled; 0 is every port.
    pub port: u16,
    /// The protocol: [`crate::TCP`].
    pub proto: u16,
}

/// What happens to a connection to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Service {
    /// Its number; never reused while the maps live.
    pub svc_id: u32,
    /// Which slots hold; a new list is written under the next generation, then flipped here.
    pub generation: u32,
    /// How many slots; 0 has no backend.
    pub slots: u32,
    /// [`Verdict`]
    pub verdict: u8,
    /// [`LbKind`]
    pub lb: u8,
    /// [`ServiceFlags`]
    pub flags: u8,
    /// Of [`LbKind::LeastConnections`]: among how many random slots; 0 is 2.
    pub choices: u8,
}

/// More random slots are not looked at: each is a step for the verifier.
pub const MAX_CHOICES: u8 = 8;

/// What the connect hook does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// Goes to where it was dialled.
    Pass = 0,
    /// The kernel picks a backend.
    Direct = 1,
    /// Goes to the agent.
    Agent = 2,
    /// connect(2) fails with ECONNREFUSED.
    Deny = 3,
}

/// How the kernel picks a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LbKind {
    /// The slots in turn; their order is a smooth weighted round robin.
    RoundRobin = 0,
    /// A random slot.
    Random = 1,
    /// The least loaded of [`Service::choices`] random slots.
    LeastConnections = 2,
    /// The slot that is written for the pod that connects, see [`SlotKey::of_pod`]; a random one
    /// if there is none.
    SourceAddress = 3,
}

/// Bits of [`Service::flags`].
pub struct ServiceFlags;

impl ServiceFlags {
    /// Without the agent the connection goes to where it was dialled or, with slots, to a
    /// backend. Without this bit it is refused.
    pub const FAIL_OPEN: u8 = 1 << 0;
}

/// `SLOTS` -> [`Slot`]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct SlotKey {
    /// [`Service::svc_id`]
    pub svc_id: u32,
    /// [`Service::generation`]
    pub generation: u32,
    /// `0..slots`, or [`SlotKey::of_pod`]
    pub slot: u32,
}

impl SlotKey {
    /// The number of the slot for connections of one pod, by [`crate::Pod::pod_id`]; `set` tells
    /// apart several of a service, see [`Slot::by_pod`].
    #[inline(always)]
    pub const fn of_pod(pod_id: u32, set: u32) -> u32 {
        1 << 31 | (set & Self::MAX_SET) << Self::POD_BITS | (pod_id & ((1 << Self::POD_BITS) - 1))
    }

    const POD_BITS: u32 = 25;

    /// The highest number of a set.
    pub const MAX_SET: u32 = (1 << (31 - Self::POD_BITS)) - 1;
}

/// One share of a service's new connections, with the limits of the cluster it comes from. Limits
/// are of Envoy's clusters, not of services: one cluster may stand behind several addresses, and
/// one address before several clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Slot {
    /// [`crate::ConnsKey::cluster`]
    pub cluster: u64,
    /// Its number; not 0.
    pub backend_id: u32,
    /// Connections of the cluster allowed at once; [`UNLIMITED`] is without limit.
    pub max_connections: u32,
    /// Connections of the cluster to this backend allowed at once; likewise.
    pub max_per_endpoint: u32,
    /// Not 0: it stands for a cluster that chooses by the client's address. The slot of the pod that
    /// connects, in the set of this number, goes instead if there is one.
    pub by_pod: u32,
}

/// A number of connections that is no limit. Envoy: `max_connections: 4294967295`, as Istio sets.
pub const UNLIMITED: u32 = u32::MAX;

/// `BACK`: backend number -> this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Backend {
    /// Where it listens.
    pub addr: Addr,
    /// Where it listens.
    pub port: u16,
    /// Zero.
    pub flags: u16,
}

/// `SVC_STATE`: service number -> counters the kernel keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ServiceState {
    /// Where round robin stands.
    pub cursor: u64,
    /// Connections classified.
    pub connects: u64,
    /// Connections refused by the kernel.
    pub refused: u64,
    /// Connections open that the kernel balanced.
    pub active: u64,
}
