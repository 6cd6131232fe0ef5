//! cgroup/getpeername4, getpeername6, getsockname4 and getsockname6.
//!
//! When: getpeername(2) and getsockname(2) of any socket below the cgroup, after the kernel wrote
//! the answer. The application sees the address it dialled, and its own address instead of the
//! loopback one that a connection to the agent has.
//! Returns: 1 always.

use core::ptr::write_volatile;

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::{Addr, SkState, sk_flags};

use crate::maps::PODS;
use crate::sk_state;

const DONE: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
pub fn mesh_peer4(ctx: SockAddrContext) -> i32 {
    if let Some(state) = rewritten(&ctx) {
        write4(&ctx, &state.orig_addr);
        write_port(&ctx, state.orig_port);
    }
    DONE
}

#[cgroup_sock_addr(getpeername6)]
pub fn mesh_peer6(ctx: SockAddrContext) -> i32 {
    if let Some(state) = rewritten(&ctx) {
        write6(&ctx, &state.orig_addr);
        write_port(&ctx, state.orig_port);
    }
    DONE
}

#[cgroup_sock_addr(getsockname4)]
pub fn mesh_name4(ctx: SockAddrContext) -> i32 {
    // SAFETY: see connect.rs.
    let current = unsafe { core::ptr::read_volatile(&raw const (*ctx.sock_addr).user_ip4) };
    if let Some(own) = own_address(&ctx, &Addr::from_v4_be(current)) {
        write4(&ctx, &own);
    }
    DONE
}

#[cgroup_sock_addr(getsockname6)]
pub fn mesh_name6(ctx: SockAddrContext) -> i32 {
    // SAFETY: see connect.rs.
    let current = unsafe {
        Addr([
            core::ptr::read_volatile(&raw const (*ctx.sock_addr).user_ip6[0]),
            core::ptr::read_volatile(&raw const (*ctx.sock_addr).user_ip6[1]),
            core::ptr::read_volatile(&raw const (*ctx.sock_addr).user_ip6[2]),
            core::ptr::read_volatile(&raw const (*ctx.sock_addr).user_ip6[3]),
        ])
    };
    if let Some(own) = own_address(&ctx, &current) {
        write6(&ctx, &own);
    }
    DONE
}

#[inline(always)]
fn rewritten<'a>(ctx: &SockAddrContext) -> Option<&'a SkState> {
    // SAFETY: the context's own socket.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk }.cast::<bpf_sock>();
    if sk.is_null() {
        return None;
    }
    let state = sk_state::get(sk)?;
    (state.flags & (sk_flags::AGENT | sk_flags::DIRECT) != 0).then_some(state)
}

/// The pod's own address for a socket that the kernel gave a loopback one on the way to the
/// agent.
#[inline(always)]
fn own_address(ctx: &SockAddrContext, current: &Addr) -> Option<Addr> {
    let state = rewritten(ctx)?;
    if state.flags & sk_flags::AGENT == 0 || !current.is_local() {
        return None;
    }
    // SAFETY: the agent replaces values whole.
    let pod = unsafe { PODS.get(state.netns_cookie) }?;
    if current.is_v4() {
        (pod.own_v4 != 0).then_some(Addr::from_v4_be(pod.own_v4))
    } else {
        (pod.own_v6 != Addr::UNSPECIFIED).then_some(pod.own_v6)
    }
}

#[inline(always)]
fn write4(ctx: &SockAddrContext, addr: &Addr) {
    // SAFETY: see connect.rs.
    unsafe { write_volatile(&raw mut (*ctx.sock_addr).user_ip4, addr.0[3]) };
}

#[inline(always)]
fn write6(ctx: &SockAddrContext, addr: &Addr) {
    // SAFETY: see connect.rs.
    unsafe {
        write_volatile(&raw mut (*ctx.sock_addr).user_ip6[0], addr.0[0]);
        write_volatile(&raw mut (*ctx.sock_addr).user_ip6[1], addr.0[1]);
        write_volatile(&raw mut (*ctx.sock_addr).user_ip6[2], addr.0[2]);
        write_volatile(&raw mut (*ctx.sock_addr).user_ip6[3], addr.0[3]);
    }
}

#[inline(always)]
fn write_port(ctx: &SockAddrContext, port: u16) {
    // SAFETY: see connect.rs.
    unsafe { write_volatile(&raw mut (*ctx.sock_addr).user_port, u32::from(port.to_be())) };
}
