//! What the kernel tells the agent of single connections.

use bytemuck::{Pod, Zeroable};

use crate::Addr;

/// A record of the ring buffer `EVENTS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Event {
    /// The socket's cookie, as `inet_diag` shows it.
    pub cookie: u64,
    /// Who connected, or was connected to: the pod's network namespace.
    pub netns_cookie: u64,
    /// [`crate::ConnsKey::cluster`]; 0 of an inbound connection.
    pub cluster: u64,
    /// When connect(2) was called, or the handshake done, in ns of the monotonic clock.
    pub connected_ns: u64,
    /// Now, by the same clock.
    pub now_ns: u64,
    /// Bytes of the application that the peer acknowledged.
    pub sent_bytes: u64,
    /// Bytes the peer sent, in order.
    pub received_bytes: u64,
    /// The address dialled.
    pub orig_addr: Addr,
    /// The other end: the backend, or the client of an inbound connection.
    pub addr: Addr,
    /// To which service.
    pub svc_id: u32,
    /// To which backend.
    pub backend_id: u32,
    /// Smoothed round-trip time; 0 is unknown.
    pub srtt_us: u32,
    /// Segments sent again, the SYN's included.
    pub retransmits: u32,
    /// The port dialled.
    pub orig_port: u16,
    /// The other end's port.
    pub port: u16,
    /// [`EventKind`]
    pub kind: u8,
    /// [`End`]
    pub end: u8,
    /// 1: the pod was connected to.
    pub inbound: u8,
    /// Zero.
    pub pad: u8,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EventKind {
    /// The connection stands.
    Opened = 0,
    /// A connection that stood is over.
    Closed = 1,
    /// A connection never came to be.
    Failed = 2,
}

impl EventKind {
    /// By number.
    pub const fn of(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Opened,
            1 => Self::Closed,
            2 => Self::Failed,
            _ => return None,
        })
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum End {
    /// It did not.
    No = 0,
    /// Both sides said FIN.
    Closed = 1,
    /// The peer reset it, or was not heard of any more.
    Reset = 2,
    /// The application reset it: closed it with bytes unread, or by SO_LINGER.
    Aborted = 3,
    /// The SYN was answered by RST, or by ICMP that there is nobody.
    Refused = 4,
    /// The SYN was not answered, although it was sent again.
    TimedOut = 5,
    /// The application gave up while the first SYN was on its way.
    Cancelled = 6,
}

impl End {
    /// By number; what is unknown is no end.
    pub const fn of(number: u8) -> Self {
        match number {
            1 => Self::Closed,
            2 => Self::Reset,
            3 => Self::Aborted,
            4 => Self::Refused,
            5 => Self::TimedOut,
            6 => Self::Cancelled,
            _ => Self::No,
        }
    }

    /// Whether the endpoint is to blame. Envoy: `local_origin` failures of outlier detection.
    pub const fn is_failure_of_endpoint(self) -> bool {
        matches!(self, Self::Reset | Self::Refused | Self::TimedOut)
    }
}

/// `DENIED` -> how often, since the agent last took it out: connects that were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct DeniedKey {
    /// The address dialled.
    pub addr: Addr,
    /// Who connected: the pod's network namespace.
    pub netns_cookie: u64,
    /// To which service.
    pub svc_id: u32,
    /// The port dialled.
    pub port: u16,
    /// [`crate::Counter`]: why.
    pub why: u16,
}
