//! cgroup/connect4 and cgroup/connect6.
//!
//! When: connect(2) of any socket below the cgroup, before the kernel looks for a route or picks
//! a source address; also MSG_FASTOPEN. UDP and ICMP sockets come here too and are left alone.
//! A v4-mapped destination of an AF_INET6 socket comes to connect6.
//! Returns: 1 goes on with the (possibly rewritten) address; 0 fails with the errno set, EPERM
//! when the kernel cannot set one (< 5.18).

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_ktime_get_ns, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::debug;
use mesh_common::{Addr, Counter, MPTCP, SkState, TCP, sk_flags};

use crate::classify::{Outcome, classify};
use crate::maps::{PODS, count};
use crate::{config, reserve, sk_state};

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;
const ECONNREFUSED: i32 = 111;

/// Which of the two hooks runs.
#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

#[cgroup_sock_addr(connect4)]
pub fn mesh_connect4(ctx: SockAddrContext) -> i32 {
    connect(&ctx, Family::V4)
}

#[cgroup_sock_addr(connect6)]
pub fn mesh_connect6(ctx: SockAddrContext) -> i32 {
    connect(&ctx, Family::V6)
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, family: Family) -> i32 {
    // SAFETY (all context accesses): the verifier knows the layout; volatile keeps the compiler
    // from merging or splitting accesses, which the kernel's access rewriting does not take.
    let protocol = unsafe { read_volatile(&raw const (*ctx.sock_addr).protocol) };
    if protocol != TCP && protocol != MPTCP {
        return ALLOW;
    }
    // SAFETY: the context is the hook's own.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: the agent replaces values whole.
    let Some(pod) = (unsafe { PODS.get(netns_cookie) }) else {
        count(Counter::NotEnrolled);
        return ALLOW;
    };
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk }.cast::<bpf_sock>();
    if sk.is_null() {
        return ALLOW;
    }
    let multipath = sk_state::multipath(sk);
    let mut known = false;
    // A socket may be connected twice: what the last connect left must not speak for this one.
    if let Some(state) = sk_state::of_connection(sk, multipath) {
        if !multipath.is_null() && state.flags & sk_flags::STARTED != 0 {
            // One more subflow of a connection that stands.
            return ALLOW;
        }
        reserve::release(state);
        known = true;
    }
    let mut state = SkState {
        netns_cookie,
        // SAFETY: no arguments.
        connected_ns: unsafe { bpf_ktime_get_ns() },
        orig_addr: destination(ctx, family),
        orig_port: unsafe {
            u16::from_be(read_volatile(&raw const (*ctx.sock_addr).user_port) as u16)
        },
        cluster: 0,
        flags: 0,
        svc_id: 0,
        backend_id: 0,
        pad: 0,
        fin_wait_bytes: 0,
    };
    let outcome = classify(ctx, pod, &mut state);
    match outcome {
        Outcome::Rewrite(addr, port) => {
            if !remember(sk, multipath, &mut state) {
                reserve::release(&mut state);
                count(Counter::NoMemory);
                return refuse();
            }
            debug!(
                ctx,
                "svc {} -> backend {} port {}", state.svc_id, state.backend_id, port
            );
            rewrite(ctx, family, &addr, port);
            ALLOW
        }
        Outcome::Leave => {
            if known {
                forget(sk, multipath);
            }
            ALLOW
        }
        Outcome::Refuse => {
            if known {
                forget(sk, multipath);
            }
            debug!(ctx, "svc {} refused port {}", state.svc_id, state.orig_port);
            refuse()
        }
    }
}

/// Of a multipath connection this hook sees the subflow, and getpeername(2), close(2) and the
/// application the socket above it: what was dialled is known of both, and the place that was
/// taken of the one above, because a subflow that never started ends unseen.
#[inline(always)]
fn remember(sk: *mut bpf_sock, multipath: *mut bpf_sock, state: &mut SkState) -> bool {
    if multipath.is_null() {
        return sk_state::put(sk, state);
    }
    if !sk_state::put(multipath, state) {
        return false;
    }
    let mut subflow = *state;
    subflow.flags = subflow.flags & !sk_flags::RESERVED | sk_flags::SUBFLOW;
    if sk_state::put(sk, &mut subflow) {
        return true;
    }
    sk_state::delete(multipath);
    false
}

#[inline(always)]
fn forget(sk: *mut bpf_sock, multipath: *mut bpf_sock) {
    sk_state::delete(sk);
    if !multipath.is_null() {
        sk_state::delete(multipath);
    }
}

#[inline(always)]
fn refuse() -> i32 {
    if config::has_set_retval() {
        // SAFETY: a plain number.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
    }
    REFUSE
}

#[inline(always)]
fn destination(ctx: &SockAddrContext, family: Family) -> Addr {
    // SAFETY: see `connect`.
    unsafe {
        match family {
            Family::V4 => Addr::from_v4_be(read_volatile(&raw const (*ctx.sock_addr).user_ip4)),
            Family::V6 => Addr([
                read_volatile(&raw const (*ctx.sock_addr).user_ip6[0]),
                read_volatile(&raw const (*ctx.sock_addr).user_ip6[1]),
                read_volatile(&raw const (*ctx.sock_addr).user_ip6[2]),
                read_volatile(&raw const (*ctx.sock_addr).user_ip6[3]),
            ]),
        }
    }
}

#[inline(always)]
fn rewrite(ctx: &SockAddrContext, family: Family, addr: &Addr, port: u16) {
    // SAFETY: see `connect`.
    unsafe {
        match family {
            Family::V4 => write_volatile(&raw mut (*ctx.sock_addr).user_ip4, addr.0[3]),
            Family::V6 => {
                write_volatile(&raw mut (*ctx.sock_addr).user_ip6[0], addr.0[0]);
                write_volatile(&raw mut (*ctx.sock_addr).user_ip6[1], addr.0[1]);
                write_volatile(&raw mut (*ctx.sock_addr).user_ip6[2], addr.0[2]);
                write_volatile(&raw mut (*ctx.sock_addr).user_ip6[3], addr.0[3]);
            }
        }
        write_volatile(&raw mut (*ctx.sock_addr).user_port, u32::from(port.to_be()));
    }
}
