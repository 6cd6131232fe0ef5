//! Hands the original destination of a caught connection from the kernel to the proxy.

use std::net::SocketAddr;

use aya::maps::MapData;
use mesh_common::{Addr, OrigKey, OriginalDst as Entry};

use crate::proxy::OriginalDst;

use super::take::take;

/// Reads and deletes entries of `ORIG` in one system call.
#[derive(Debug)]
pub(super) struct KernelOriginalDst {
    map: MapData,
}

impl KernelOriginalDst {
    pub(super) fn new(map: MapData) -> Self {
        Self { map }
    }
}

impl OriginalDst for KernelOriginalDst {
    fn take(&self, netns_cookie: u64, peer: SocketAddr) -> Option<SocketAddr> {
        let key = OrigKey {
            netns_cookie,
            addr: Addr::from(peer.ip()),
            port: peer.port(),
            pad: [0; 3],
        };
        take(&self.map, &key).map(|entry: Entry| entry.socket_addr())
    }
}
