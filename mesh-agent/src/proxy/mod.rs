//! The proxy: accept -> (TCP | HTTP) -> upstream.

use std::net::{SocketAddr, TcpListener};

/// Tells where a caught connection was going.
pub trait OriginalDst: Send + Sync + 'static {
    /// The destination the application dialled, for the connection accepted in the namespace
    /// with that cookie from `peer`. Each entry is read once. `None`: the kernel programs did
    /// not redirect this connection (somebody dialled the listener itself).
    fn take(&self, netns_cookie: u64, peer: SocketAddr) -> Option<SocketAddr>;
}

/// What a listener inside a pod serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListenerKind {
    /// 15001: connections the pod makes.
    Outbound,
    /// 15006: connections the pod receives; `getsockname()` is the original destination.
    Inbound,
}

/// A listening socket inside a pod's namespace, for one worker.
#[derive(Debug)]
pub struct PodListener {
    /// What it serves.
    pub kind: ListenerKind,
    /// Bound, listening, non-blocking.
    pub socket: TcpListener,
}
