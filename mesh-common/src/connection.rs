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
    /// [`ConnsKey::cluster`]
    pub cluster: u64,
    /// The address dialled; of an inbound connection the pod's own.
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
    /// Bytes received when the peer had acknowledged our FIN.
    pub fin_wait_bytes: u64,
}

/// Bits of [`SkState::flags`].
pub mod sk_flags {
    /// The socket was rewritten to the agent's listener.
    pub const AGENT: u16 = 1 << 0;
    /// The socket was rewritten to a backend.
    pub const DIRECT: u16 = 1 << 1;
    /// The connection is counted for its cluster and must be released once.
    pub const IN_CLUSTER: u16 = 1 << 2;
    /// The connection is counted for its backend and must be released once.
    pub const IN_BACKEND: u16 = 1 << 3;
    /// The connection is counted for its service and must be released once.
    pub const IN_SERVICE: u16 = 1 << 4;
    /// The first packet has left: TCP will say when the connection ends.
    pub const STARTED: u16 = 1 << 5;
    /// The application closed its last descriptor.
    pub const LEFT: u16 = 1 << 6;
    /// The application of an enrolled pod accepted it: nothing was chosen, it is only told of.
    pub const INBOUND: u16 = 1 << 7;
    /// The socket is a subflow of a multipath connection, whose own state is that of the whole.
    pub const SUBFLOW: u16 = 1 << 8;
    /// Whatever must be released.
    pub const RESERVED: u16 = IN_CLUSTER | IN_BACKEND | IN_SERVICE;
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
    /// The cluster: a hash of its view and name, so that whoever comes back finds its count.
    pub cluster: u64,
    /// The backend; 0 counts the cluster as a whole.
    pub backend_id: u32,
    /// Zero.
    pub pad: u32,
}

impl ConnsKey {
    /// A cluster's connections to one backend.
    #[inline(always)]
    pub const fn of(cluster: u64, backend_id: u32) -> Self {
        Self {
            cluster,
            backend_id,
            pad: 0,
        }
    }

    /// A cluster's connections.
    #[inline(always)]
    pub const fn whole(cluster: u64) -> Self {
        Self::of(cluster, 0)
    }
}

/// Connections that the kernel balanced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Conns {
    /// Open now.
    pub active: u64,
    /// Ever.
    pub total: u64,
    /// Refused, because there were as many as allowed.
    pub overflow: u64,
}
