//! `BPF_MAP_LOOKUP_AND_DELETE_ELEM`, which aya does not offer for hash maps (kernel >= 5.14).

use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::Pod;
use aya::maps::MapData;

/// Takes an entry out of a hash map in one step; `None`: there is none.
/// The types must be those that the map was created with.
pub(super) fn take<K: Pod, V: Pod>(map: &MapData, key: &K) -> Option<V> {
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

    let mut value = MaybeUninit::<V>::uninit();
    let attr = Attr {
        map_fd: map.fd().as_fd().as_raw_fd() as u32,
        pad: 0,
        key: std::ptr::from_ref(key) as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: key and value point to memory of the sizes the map was created with, which is the
    // callers' to know, and live during the call.
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
