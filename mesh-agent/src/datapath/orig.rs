//! Hands the original destination of a caught connection from the kernel to the proxy.

use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

use aya::maps::MapData;
use mesh_common::{Addr, OrigKey, OriginalDst as Entry};

use crate::proxy::OriginalDst;

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
        lookup_and_delete(self.map.fd().as_fd().as_raw_fd(), &key).map(|entry| entry.socket_addr())
    }
}

/// `BPF_MAP_LOOKUP_AND_DELETE_ELEM` (hash maps: kernel >= 5.14), which aya does not offer for
/// this map type.
fn lookup_and_delete(map: i32, key: &OrigKey) -> Option<Entry> {
    const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;

    /// The part of `union bpf_attr` this command reads.
    #[repr(C)]
    struct Attr {
        map_fd: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }

    let mut value = MaybeUninit::<Entry>::uninit();
    let attr = Attr {
        map_fd: map as u32,
        pad: 0,
        key: std::ptr::from_ref(key) as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: key and value point to memory of the sizes the map was created with, and live
    // during the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_LOOKUP_AND_DELETE_ELEM,
            std::ptr::from_ref(&attr),
            size_of::<Attr>(),
        )
    };
    // SAFETY: on success the kernel has filled the value.
    (result == 0).then(|| unsafe { value.assume_init() })
}
