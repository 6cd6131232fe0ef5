//! Same-node acceleration: bytes handed from socket to socket, past TCP.

use bytemuck::{Pod, Zeroable};

use crate::Addr;

/// `ACCEL[0]`: what is accelerated, and until when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Acceleration {
    /// [`AccelerationFlags`]; 0 is nothing.
    pub flags: u32,
    /// A larger message, in bytes, shows that a stream is bulk.
    pub max_message: u32,
    /// So do more bytes that the peer has not answered.
    pub max_unanswered: u32,
    /// Zero.
    pub pad: u32,
}

/// Bits of [`Acceleration::flags`].
pub struct AccelerationFlags;

impl AccelerationFlags {
    /// Connections of a pod that the kernel balances to another pod of this node.
    pub const DIRECT: u32 = 1 << 0;
}

/// `PEERS` -> [`Hello`]: a connection whose client waits for its server to show up here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct Ends {
    /// The client's address.
    pub client: Addr,
    /// The server's address.
    pub server: Addr,
    /// The client's port.
    pub client_port: u16,
    /// The server's port.
    pub server_port: u16,
    /// Zero.
    pub pad: u32,
}

/// What tells a connection from another one with the same ends in other namespaces: both initial
/// sequence numbers, which nobody but its two sockets knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Hello {
    /// The pair: the client's socket cookie.
    pub pair: u64,
    /// The next sequence number that the client sends.
    pub next_sent: u32,
    /// The next one that it expects.
    pub next_received: u32,
}

/// `FAST`: one of the two sockets of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct FastKey {
    /// [`Hello::pair`]
    pub pair: u64,
    /// [`Side`]
    pub side: u32,
    /// Zero.
    pub pad: u32,
}

/// Which end of a connection.
pub struct Side;

impl Side {
    /// The one that connected.
    pub const CLIENT: u32 = 0;
    /// The one that accepted.
    pub const SERVER: u32 = 1;
}

/// `FLOW`: socket -> which end of which pair it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Flow {
    /// [`Hello::pair`]
    pub pair: u64,
    /// [`Side`]
    pub side: u32,
    /// 1: what it sends goes by TCP, for good.
    pub left: u32,
}

/// `PAIRS`: pair -> this. Arrays are by [`Side`] of the sender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Pair {
    /// Bytes that went past TCP.
    pub bytes: [u64; 2],
    /// In so many messages.
    pub messages: [u64; 2],
    /// Bytes since the receiver last said something with nothing left to read.
    pub unanswered: [u32; 2],
    /// The service.
    pub svc_id: u32,
    /// [`PairEnds`]
    pub ends: u32,
}

/// Bits of [`Pair::ends`]: who still asks what went past TCP.
pub struct PairEnds;

impl PairEnds {
    /// The server's side is told of, too.
    pub const BOTH: u32 = 1 << 0;
    /// One side has ended.
    pub const ONE_OVER: u32 = 1 << 1;
}
