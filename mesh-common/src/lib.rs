//! What the kernel programs and the agent share: keys and values of the BPF maps, ports, limits.
//!
//! Everything here is plain old data in the layout both sides agree on: `repr(C)`, explicit
//! padding, no implicit gaps. Addresses are 16 bytes in network order, IPv4 as `::ffff:a.b.c.d`.
//! Ports are host order. Change a layout and [`LAYOUT_VERSION`] goes up: it is part of the pin
//! path, so maps of two layouts never meet.
#![cfg_attr(not(test), no_std)]

mod acceleration;
mod address;
#[cfg(feature = "agent")]
mod agent;
mod authz;
mod connection;
mod control;
mod event;
mod listen;
mod pod;
mod service;

pub use acceleration::{
    Acceleration, AccelerationFlags, Ends, FastKey, Flow, Hello, Pair, PairEnds, Side,
};
pub use address::Addr;
pub use authz::{AuthzKey, AuthzVerdict};
pub use connection::{Conns, ConnsKey, OrigKey, OriginalDst, SkState, sk_flags};
pub use control::{Control, Counter};
pub use event::{DeniedKey, End, Event, EventKind};
pub use listen::{InboundPod, ListenKey, ListenKind};
pub use pod::{CaptureAction, CidrKey, Direction, Pod, PodFlags, PortKey};
pub use service::{
    Backend, LbKind, MAX_CHOICES, Service, ServiceFlags, ServiceKey, ServiceState, Slot, SlotKey,
    UNLIMITED, Verdict,
};

/// Version of all layouts in this crate.
pub const LAYOUT_VERSION: u32 = 4;

/// Istio's port for connections pods make.
pub const OUTBOUND_PORT: u16 = 15001;
/// Istio's port for connections pods receive.
pub const INBOUND_PORT: u16 = 15006;
/// Istio's port for HBONE.
pub const HBONE_PORT: u16 = 15008;
/// Ports that are never captured inbound: the agent's own, and those Istio reserves for
/// telemetry, health and the legacy Prometheus endpoint.
pub const RESERVED_INBOUND_PORTS: [u16; 6] =
    [OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT, 15020, 15021, 15090];

/// `IPPROTO_TCP`
pub const TCP: u32 = 6;
/// `IPPROTO_MPTCP`
pub const MPTCP: u32 = 262;

/// The agent counts as dead when its heartbeat is older than this.
pub const HEARTBEAT_STALE_NS: u64 = 5_000_000_000;

/// Capacities of the maps. The agent refuses what does not fit with a clear error.
pub mod capacity {
    /// Enrolled pods of a node (Kubernetes: 110 to 250).
    pub const PODS: u32 = 4096;
    /// Addresses of enrolled pods.
    pub const POD_ADDRESSES: u32 = 16384;
    /// Services over all views.
    pub const SERVICES: u32 = 262_144;
    /// Slots over all services.
    pub const SLOTS: u32 = 2_097_152;
    /// Backends.
    pub const BACKENDS: u32 = 524_288;
    /// Clusters, and pairs of cluster and backend.
    pub const CONNS: u32 = 1_048_576;
    /// Connections on their way from connect(2) to the agent's accept(2).
    pub const ORIG: u32 = 65_536;
    /// Captured or excluded address ranges over all capture settings.
    pub const CIDRS: u32 = 65_536;
    /// Captured or excluded ports over all capture settings.
    pub const PORTS: u32 = 65_536;
    /// Bytes of records that wait for the agent.
    pub const EVENT_BYTES: u32 = 4 << 20;
    /// Kinds of refused connects that wait for the agent.
    pub const DENIED: u32 = 4096;
    /// Ranges that access rules speak of, over all pods and their ports.
    pub const AUTHZ: u32 = 262_144;
    /// Accelerated connections.
    pub const PAIRS: u32 = 65_536;
    /// Connections whose server has not shown up yet.
    pub const PEERS: u32 = 8192;
    /// Listener sockets.
    pub const LISTENERS: u32 = 16384;
}
