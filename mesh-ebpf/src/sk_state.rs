//! Socket storage: from which kind of context a socket may be taken, the helper is the same.

use core::ffi::c_void;

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::generated::{
    bpf_sk_storage_delete, bpf_sk_storage_get, bpf_skc_to_mptcp_sock,
};
use mesh_common::{SkState, sk_flags};

use crate::config;
use crate::maps::SK;

#[inline(always)]
fn map() -> *mut c_void {
    (&raw const SK).cast_mut().cast()
}

/// What is known of the socket.
#[inline(always)]
pub(crate) fn get<'a>(sk: *mut bpf_sock) -> Option<&'a mut SkState> {
    // SAFETY: the verifier checks that `sk` is a socket of the context.
    let state = unsafe { bpf_sk_storage_get(map(), sk.cast(), core::ptr::null_mut(), 0) };
    // SAFETY: socket storage lives as long as the socket, which the context holds.
    unsafe { state.cast::<SkState>().as_mut() }
}

/// Stores what is known of the socket, over whatever an earlier connect(2) left.
#[inline(always)]
pub(crate) fn put(sk: *mut bpf_sock, value: &mut SkState) -> bool {
    let pointer: *mut SkState = value;
    // SAFETY: as in `get`; the initial value is copied by the kernel.
    let state = unsafe {
        bpf_sk_storage_get(
            map(),
            sk.cast(),
            pointer.cast(),
            BPF_SK_STORAGE_GET_F_CREATE.into(),
        )
    };
    // SAFETY: as in `get`.
    match unsafe { state.cast::<SkState>().as_mut() } {
        Some(state) => {
            *state = *value;
            true
        }
        None => false,
    }
}

/// The multipath socket that a subflow belongs to: the one the application holds. Null for plain
/// TCP.
#[inline(always)]
pub(crate) fn multipath(sk: *mut bpf_sock) -> *mut bpf_sock {
    if !config::has_mptcp() {
        return core::ptr::null_mut();
    }
    // SAFETY: as in `get`.
    unsafe { bpf_skc_to_mptcp_sock(sk.cast()) }.cast()
}

/// What is known of the connection as a whole: of the multipath socket if there is one.
#[inline(always)]
pub(crate) fn of_connection<'a>(
    sk: *mut bpf_sock,
    multipath: *mut bpf_sock,
) -> Option<&'a mut SkState> {
    if multipath.is_null() {
        get(sk)
    } else {
        get(multipath)
    }
}

/// What is known of the connection that a socket's own state is of.
#[inline(always)]
pub(crate) fn whole<'a>(sk: *mut bpf_sock, state: &'a mut SkState) -> Option<&'a mut SkState> {
    if state.flags & sk_flags::SUBFLOW == 0 {
        return Some(state);
    }
    let multipath = multipath(sk);
    if multipath.is_null() {
        return None;
    }
    get(multipath)
}

/// Forgets the socket.
#[inline(always)]
pub(crate) fn delete(sk: *mut bpf_sock) {
    // SAFETY: as in `get`.
    unsafe { bpf_sk_storage_delete(map(), sk.cast()) };
}
