//! Enrolled pods and what is captured of their traffic.

use bytemuck::{Pod as PlainOldData, Zeroable};

use crate::Addr;

/// `PODS`: netns cookie -> this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PlainOldData, Zeroable)]
#[repr(C)]
pub struct Pod {
    /// Its number; not 0.
    pub pod_id: u32,
    /// What it may see.
    pub view_id: u32,
    /// Who it is; 0 is nobody known.
    pub identity: u32,
    /// [`PodFlags`]
    pub flags: u32,
    /// Which capture settings hold; pods with equal settings share a number.
    pub capture_id: u32,
    /// Its IPv4 address in network order; 0 is none.
    pub own_v4: u32,
    /// Its IPv6 address; all zero is none.
    pub own_v6: Addr,
}

/// Bits of [`Pod::flags`] and [`crate::InboundPod::flags`].
pub struct PodFlags;

impl PodFlags {
    /// Every outbound address is captured: no look-up in `CIDRS`.
    pub const ALL_CIDRS: u32 = 1 << 0;
    /// No outbound port has a rule: no look-up in `PORTS`.
    pub const NO_PORT_RULES: u32 = 1 << 1;
    /// Every inbound port without a rule is captured.
    pub const ALL_INBOUND_PORTS: u32 = 1 << 2;
    /// Inbound connections are refused while the agent is down, instead of served without it.
    pub const INBOUND_FAIL_CLOSED: u32 = 1 << 3;
    /// `AUTHZ` speaks of who may connect to it.
    pub const INBOUND_RULES: u32 = 1 << 4;
}

/// `CIDRS`: longest prefix -> [`CaptureAction`]. The key's bits after `prefix_len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, PlainOldData, Zeroable)]
#[repr(C)]
pub struct CidrKey {
    /// [`crate::Pod::capture_id`], always matched whole (32 bits of the prefix).
    pub capture_id: u32,
    /// The address range.
    pub addr: Addr,
}

/// `PORTS` -> [`CaptureAction`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, PlainOldData, Zeroable)]
#[repr(C)]
pub struct PortKey {
    /// [`crate::Pod::capture_id`]
    pub capture_id: u32,
    /// The destination's port.
    pub port: u16,
    /// [`Direction`]
    pub direction: u16,
}

/// Which way a connection goes, seen from the pod.
pub struct Direction;

impl Direction {
    /// The pod connects.
    pub const OUTBOUND: u16 = 0;
    /// The pod is connected to.
    pub const INBOUND: u16 = 1;
}

/// What a capture rule says.
pub struct CaptureAction;

impl CaptureAction {
    /// Leave it alone.
    pub const EXCLUDE: u32 = 0;
    /// Capture it.
    pub const INCLUDE: u32 = 1;
}
