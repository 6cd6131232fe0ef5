//! Inbound: which pod an address belongs to, and its listener sockets.

use bytemuck::{Pod, Zeroable};

/// `IN_PODS`: pod address -> this. sk_lookup programs cannot see the namespace's cookie, so the
/// pod is known by the address dialled, which is unique on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct InboundPod {
    /// [`crate::Pod::pod_id`]
    pub pod_id: u32,
    /// [`crate::Pod::capture_id`]
    pub capture_id: u32,
    /// [`crate::PodFlags`]
    pub flags: u32,
}

/// `LISTEN`: this -> a listening socket inside the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct ListenKey {
    /// [`crate::Pod::pod_id`]
    pub pod_id: u32,
    /// [`ListenKind`]
    pub kind: u32,
}

/// What a listener inside a pod serves.
pub struct ListenKind;

impl ListenKind {
    /// 15006
    pub const INBOUND: u32 = 0;
    /// 15008
    pub const HBONE: u32 = 1;
}
