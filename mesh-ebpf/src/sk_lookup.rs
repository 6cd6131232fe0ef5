//! sk_lookup, one link per enrolled pod's network namespace.
//!
//! When: a segment for which the kernel found no established connection looks for a listener.
//! The pod's inbound listener is assigned whatever address and port it is bound to, and the
//! accepted socket's own address stays the one that was dialled.
//! Returns: SK_PASS with or without an assigned socket; SK_DROP makes the kernel answer RST.
//! Leaves alone: connections from inside the pod, which is also how the agent reaches the
//! application.
//!
//! `mesh_sk_bar` stands in its place at a pod that is not caught and must not be served without:
//! nobody connects to it from outside. It reads no map, so it does its work when maps are full.

use core::ptr::read_volatile;

use aya_ebpf::bindings::bpf_sk_lookup;
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use mesh_common::{Addr, Counter, ListenKey, ListenKind, PodFlags, TCP};

use crate::maps::{IN_PODS, LISTEN, count};
use crate::{authz, capture, config};

const SK_PASS: u32 = 1;
const SK_DROP: u32 = 0;
const AF_INET: u32 = 2;
const LOOPBACK_IFINDEX: u32 = 1;

#[sk_lookup]
pub fn mesh_sk_lookup(ctx: SkLookupContext) -> u32 {
    let lookup = ctx.lookup;
    let Some((addr, from)) = from_outside(lookup) else {
        return SK_PASS;
    };
    // SAFETY: see `from_outside`.
    let port = unsafe { read_volatile(&raw const (*lookup).local_port) } as u16;
    // SAFETY: the agent replaces values whole.
    let Some(pod) = (unsafe { IN_PODS.get(addr) }) else {
        return SK_PASS;
    };
    if !capture::inbound(pod, port) {
        count(Counter::InboundPass);
        return SK_PASS;
    }
    if pod.flags & PodFlags::INBOUND_RULES != 0 && authz::denied(pod.pod_id, &from, port) {
        count(Counter::InboundDenied);
        return SK_DROP;
    }
    let key = ListenKey {
        pod_id: pod.pod_id,
        kind: ListenKind::INBOUND,
    };
    match LISTEN.redirect_sk_lookup(&ctx, key, 0) {
        Ok(()) => count(Counter::InboundSteered),
        Err(_) if pod.flags & PodFlags::INBOUND_FAIL_CLOSED != 0 => {
            count(Counter::InboundRefused);
            return SK_DROP;
        }
        Err(_) => count(Counter::InboundPass),
    }
    SK_PASS
}

#[sk_lookup]
pub fn mesh_sk_bar(ctx: SkLookupContext) -> u32 {
    if from_outside(ctx.lookup).is_none() {
        return SK_PASS;
    }
    count(Counter::InboundRefused);
    SK_DROP
}

/// The addresses dialled and dialled from, of a TCP connection that does not come from inside the
/// pod.
#[inline(always)]
fn from_outside(lookup: *mut bpf_sk_lookup) -> Option<(Addr, Addr)> {
    // SAFETY (all context accesses): see connect.rs.
    unsafe {
        if read_volatile(&raw const (*lookup).protocol) != TCP {
            return None;
        }
        if config::has_ingress_ifindex()
            && read_volatile(&raw const (*lookup).ingress_ifindex) == LOOPBACK_IFINDEX
        {
            return None;
        }
    }
    let (addr, from) = addresses(lookup);
    // A connection of the pod to its own address comes over loopback, but the kernel reports the
    // interface that has the address (`inet_iif`, `IP6CB->iif`). It has one address twice.
    let inside = addr.is_local() || from.is_local() || addr == from;
    (!inside).then_some((addr, from))
}

/// The addresses dialled and dialled from.
///
/// All fields are read before the family is looked at, which the kernel allows: of loads in two
/// branches the compiler makes one with a computed offset, which the verifier rejects.
#[inline(always)]
fn addresses(lookup: *mut bpf_sk_lookup) -> (Addr, Addr) {
    // SAFETY: see above.
    unsafe {
        let local4 = read_volatile(&raw const (*lookup).local_ip4);
        let remote4 = read_volatile(&raw const (*lookup).remote_ip4);
        let local6 = Addr([
            read_volatile(&raw const (*lookup).local_ip6[0]),
            read_volatile(&raw const (*lookup).local_ip6[1]),
            read_volatile(&raw const (*lookup).local_ip6[2]),
            read_volatile(&raw const (*lookup).local_ip6[3]),
        ]);
        let remote6 = Addr([
            read_volatile(&raw const (*lookup).remote_ip6[0]),
            read_volatile(&raw const (*lookup).remote_ip6[1]),
            read_volatile(&raw const (*lookup).remote_ip6[2]),
            read_volatile(&raw const (*lookup).remote_ip6[3]),
        ]);
        if read_volatile(&raw const (*lookup).family) == AF_INET {
            (Addr::from_v4_be(local4), Addr::from_v4_be(remote4))
        } else {
            (local6, remote6)
        }
    }
}
