//! Counting connections against their limits: taken in connect(2), given back exactly once.
//!
//! A place is taken by adding first and looking afterwards: of many connects at once no more get
//! one than there are. One that got none takes its addition back.

use mesh_common::{Conns, ConnsKey, ServiceState, SkState, Slot, UNLIMITED, sk_flags};

use crate::atomic::{add, fetch_add};
use crate::maps::{CONNS, SVC_STATE};

/// Adding all ones is subtracting one.
const MINUS_ONE: u64 = u64::MAX;

/// Connections open of a cluster to a backend.
#[inline(always)]
pub(crate) fn active(slot: &Slot) -> u64 {
    match CONNS.get_ptr(ConnsKey::of(slot.cluster, slot.backend_id)) {
        // SAFETY: a live map value; a torn read is impossible for an aligned u64.
        Some(conns) => unsafe { (*conns).active },
        None => 0,
    }
}

/// Takes a place of the cluster and of the backend, and marks the socket, so that it is given
/// back. Says whether there was one. What has no counter, because it is being removed from the
/// configuration, is not counted.
#[inline(always)]
pub(crate) fn take(state: &mut SkState, slot: &Slot, service: Option<*mut ServiceState>) -> bool {
    state.cluster = slot.cluster;
    state.backend_id = slot.backend_id;
    let cluster = CONNS.get_ptr_mut(ConnsKey::whole(slot.cluster));
    if let Some(cluster) = cluster {
        if !enter(cluster, slot.max_connections) {
            return false;
        }
        state.flags |= sk_flags::IN_CLUSTER;
    }
    if let Some(backend) = CONNS.get_ptr_mut(ConnsKey::of(slot.cluster, slot.backend_id)) {
        if !enter(backend, slot.max_per_endpoint) {
            release(state);
            return false;
        }
        state.flags |= sk_flags::IN_BACKEND;
        // SAFETY: a live, aligned map value.
        unsafe { add(&raw mut (*backend).total, 1) };
    }
    if let Some(cluster) = cluster {
        // SAFETY: as above.
        unsafe { add(&raw mut (*cluster).total, 1) };
    }
    if let Some(service) = service {
        // SAFETY: a live, aligned map value.
        unsafe { add(&raw mut (*service).active, 1) };
        state.flags |= sk_flags::IN_SERVICE;
    }
    true
}

/// Gives back what is still counted.
#[inline(always)]
pub(crate) fn release(state: &mut SkState) {
    let flags = state.flags;
    if flags & sk_flags::RESERVED == 0 {
        return;
    }
    state.flags = flags & !sk_flags::RESERVED;
    if flags & sk_flags::IN_CLUSTER != 0
        && let Some(cluster) = CONNS.get_ptr_mut(ConnsKey::whole(state.cluster))
    {
        leave(cluster);
    }
    if flags & sk_flags::IN_BACKEND != 0
        && let Some(backend) = CONNS.get_ptr_mut(ConnsKey::of(state.cluster, state.backend_id))
    {
        leave(backend);
    }
    if flags & sk_flags::IN_SERVICE != 0
        && let Some(service) = SVC_STATE.get_ptr_mut(state.svc_id)
    {
        // SAFETY: a live, aligned map value.
        unsafe { add(&raw mut (*service).active, MINUS_ONE) };
    }
}

#[inline(always)]
fn enter(conns: *mut Conns, limit: u32) -> bool {
    // SAFETY (all): a live, aligned map value.
    unsafe {
        let before = fetch_add(&raw mut (*conns).active, 1);
        if limit != UNLIMITED && before >= u64::from(limit) {
            add(&raw mut (*conns).active, MINUS_ONE);
            add(&raw mut (*conns).overflow, 1);
            return false;
        }
    }
    true
}

/// The agent removes counters that stand at zero. Should one come back between a connect and its
/// end, it must not wrap around and refuse everybody.
#[inline(always)]
fn leave(conns: *mut Conns) {
    // SAFETY (both): a live, aligned map value.
    unsafe {
        if fetch_add(&raw mut (*conns).active, MINUS_ONE) == 0 {
            add(&raw mut (*conns).active, 1);
        }
    }
}
