//! What is kept of single connections.

use bytemuck::{Pod, Zeroable};

use crate::Addr;

/// `SK`: socket -> this, from the connect hook to the socket's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SkState {
    /// The pod's network namespace.
    pub netns_cookie: u64,
    /// When connect(2) was called, in ns of the monotonic clock.
    pub connected_ns: u64,
    /// The address dialled.
    pub orig_addr: Addr,
    /// The port dialled.
    pub orig_port: u16,
    /// [`sk_flags`]
    pub flags: u16,
    /// The service.
    pub svc_id: u32,
    /// The backend; 0 when the agent chooses.
    pub backend_id: u32,
    /// Zero.
    pub pad: u32,
}

/// Bits of [`SkState::flags`].
pub mod sk_flags {
    /// The socket was rewritten to the agent's listener.
    pub const AGENT: u16 = 1 << 0;
    /// The socket was rewritten to a backend.
    pub const DIRECT: u16 = 1 << 1;
    /// The connection is counted in `CONNS` and `SVC_STATE` and must be released once.
    pub const RESERVED: u16 = 1 << 2;
}

/// `ORIG` -> [`OriginalDst`]: the client's end of a connection to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct OrigKey {
    /// The pod's network namespace.
    pub netns_cookie: u64,
    /// The client's address, as the agent's `accept(2)` shows it.
    pub addr: Addr,
    /// The client's port.
    pub port: u16,
    /// Zero.
    pub pad: [u16; 3],
}

/// Where the application wanted to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct OriginalDst {
    /// The address dialled.
    pub addr: Addr,
    /// The port dialled.
    pub port: u16,
    /// Zero.
    pub pad: u16,
    /// The service the kernel found; 0 is none.
    pub svc_id: u32,
}

/// `CONNS` -> [`Conns`]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct ConnsKey {
    /// The service.
    pub svc_id: u32,
    /// The backend.
    pub backend_id: u32,
}

/// Connections of a service to one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Conns {
    /// Open now.
    pub active: u64,
    /// Ever.
    pub total: u64,
}
