//! Counting connections: taken in connect(2), given back exactly once.

use mesh_common::{ConnsKey, SkState, sk_flags};

use crate::atomic::add;
use crate::maps::{CONNS, SVC_STATE};

/// Connections open of a service to a backend.
#[inline(always)]
pub(crate) fn active(svc_id: u32, backend_id: u32) -> u64 {
    match CONNS.get_ptr(ConnsKey { svc_id, backend_id }) {
        // SAFETY: a live map value; a torn read is impossible for an aligned u64.
        Some(conns) => unsafe { (*conns).active },
        None => 0,
    }
}

/// Counts a connection and marks the socket, so that it is given back.
#[inline(always)]
pub(crate) fn take(state: &mut SkState) {
    let key = ConnsKey {
        svc_id: state.svc_id,
        backend_id: state.backend_id,
    };
    // Without a counter (map full) the connection is simply not counted.
    if let Some(conns) = CONNS.get_ptr_mut(key) {
        // SAFETY: live, aligned map values.
        unsafe {
            add(&raw mut (*conns).active, 1);
            add(&raw mut (*conns).total, 1);
        }
        if let Some(service) = SVC_STATE.get_ptr_mut(state.svc_id) {
            // SAFETY: as above.
            unsafe { add(&raw mut (*service).active, 1) };
        }
        state.flags |= sk_flags::RESERVED;
    }
}

/// Gives a connection back, if it is still counted.
#[inline(always)]
pub(crate) fn release(state: &mut SkState) {
    if state.flags & sk_flags::RESERVED == 0 {
        return;
    }
    state.flags &= !sk_flags::RESERVED;
    let key = ConnsKey {
        svc_id: state.svc_id,
        backend_id: state.backend_id,
    };
    if let Some(conns) = CONNS.get_ptr_mut(key) {
        // SAFETY: live, aligned map values. Adding all ones is subtracting one.
        unsafe { add(&raw mut (*conns).active, u64::MAX) };
    }
    if let Some(service) = SVC_STATE.get_ptr_mut(state.svc_id) {
        // SAFETY: as above.
        unsafe { add(&raw mut (*service).active, u64::MAX) };
    }
}
