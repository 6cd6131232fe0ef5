//! HBONE: connections as CONNECT streams of HTTP/2 tunnels with mutual TLS, as Istio's ambient
//! mode has them.
//!
//! Inbound, [`server`] ends a client's tunnel in the pod's namespace, and [`serve`] leads each of
//! its streams through the pod's filter chains. Outbound, [`pool`] keeps a worker's tunnels, and
//! [`client`] makes them. Both sides see a stream as [`Tunnelled`], a connection like others.

mod client;
mod pool;
mod request;
mod serve;
mod server;
pub(super) mod stats;
mod stream;
#[cfg(test)]
mod tests;
mod watch;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::config::model::hbone;
use crate::config::model::tls::DownstreamTls;

pub(super) use client::connect;
pub(super) use pool::Tunnels;
pub(super) use server::serve;
pub(super) use stream::Tunnelled;
pub(super) use watch::{Changes, Watch};

use server::Handshakes;

/// Bytes a stream may be ahead of its reader (ztunnel: 4 MiB).
const STREAM_WINDOW: u32 = 4 << 20;
/// Bytes all streams of a tunnel together may be ahead (ztunnel: 16 MiB).
const TUNNEL_WINDOW: u32 = 16 << 20;
/// Largest frame taken: a bulk stream spends less on frames (ztunnel: 1 MiB).
const FRAME: u32 = 1 << 20;
/// Bytes of a tunnel's streams that wait to be written.
const SEND_BUFFER: usize = 1 << 20;
/// What frames of few bytes may cost in memory beyond these bytes; it is given back as they are
/// read. Chatty streams send hundreds of thousands of them.
const SMALL_FRAMES: usize = 16 << 20;
/// Largest block of headers; a CONNECT request has few and small ones.
const HEADERS: u32 = 16 << 10;
/// Streams of a tunnel; for more another tunnel is made (ztunnel's pool, Istio's listener).
const STREAMS: u32 = 100;
/// How often a tunnel's peer is asked whether it is there, and how long it may take to answer
/// (ztunnel).
const PING: Duration = Duration::from_secs(10);
const PONG: Duration = Duration::from_secs(20);
/// How long TLS and the HTTP/2 preface of a client may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What a worker's tunnels share.
#[derive(Debug)]
pub(super) struct Hbone {
    /// How tunnels are ended where the configuration does not say.
    downstream: Arc<DownstreamTls>,
    handshakes: Rc<Handshakes>,
    pub(super) tunnels: Tunnels,
    pub(super) changes: Changes,
}

impl Hbone {
    pub(super) fn new(trust_domain: &str, changes: Changes) -> Self {
        Self {
            downstream: Arc::new(hbone::downstream(trust_domain)),
            handshakes: Rc::default(),
            tunnels: Tunnels::default(),
            changes,
        }
    }
}
