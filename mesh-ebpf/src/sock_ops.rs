//! sockops: TCP events of sockets below the cgroup.
//!
//! When: TCP_CONNECT_CB runs in connect(2) when the local port is known and before the SYN
//! leaves, so the agent always finds the original destination of what it accepts. STATE_CB runs
//! on every state change once asked for. The two ESTABLISHED callbacks run when a handshake is
//! done, before the client's ACK leaves and before the server's socket can be accepted.
//! Returns: ignored by these callbacks; 1 by convention.

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
    BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock,
};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::debug;
use mesh_common::{Addr, OrigKey, OriginalDst, sk_flags};

use crate::events::tcp;
use crate::maps::ORIG;
use crate::{accelerate, events, inbound, reserve, sk_state};

const DONE: u32 = 1;
const AF_INET: u32 = 2;

#[sock_ops]
pub fn mesh_sock_ops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&ctx),
        BPF_SOCK_OPS_STATE_CB => changed(&ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => connected(&ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&ctx),
        _ => {}
    }
    DONE
}

#[inline(always)]
fn socket(ctx: &SockOpsContext) -> Option<*mut bpf_sock> {
    // SAFETY: the context's own field; null for sockets that are not full ones.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk }.cast::<bpf_sock>();
    (!sk.is_null()).then_some(sk)
}

/// The socket's local end as the agent's accept(2) will see it.
#[inline(always)]
pub(crate) fn local(ctx: &SockOpsContext) -> (Addr, u16) {
    let addr = if ctx.family() == AF_INET {
        Addr::from_v4_be(ctx.local_ip4())
    } else {
        // Of a v4-mapped socket this is `::ffff:a.b.c.d` already.
        // SAFETY: word by word, as the kernel's access rewriting wants it.
        unsafe {
            Addr([
                core::ptr::read_volatile(&raw const (*ctx.ops).local_ip6[0]),
                core::ptr::read_volatile(&raw const (*ctx.ops).local_ip6[1]),
                core::ptr::read_volatile(&raw const (*ctx.ops).local_ip6[2]),
                core::ptr::read_volatile(&raw const (*ctx.ops).local_ip6[3]),
            ])
        }
    };
    // local_port is host order, unlike remote_port.
    (addr, ctx.local_port() as u16)
}

#[inline(always)]
fn connecting(ctx: &SockOpsContext) {
    let Some(sk) = socket(ctx) else { return };
    let Some(state) = sk_state::get(sk) else {
        return;
    };
    if state.flags & sk_flags::AGENT != 0 {
        let (addr, port) = local(ctx);
        let key = OrigKey {
            netns_cookie: state.netns_cookie,
            addr,
            port,
            pad: [0; 3],
        };
        let value = OriginalDst {
            addr: state.orig_addr,
            port: state.orig_port,
            pad: 0,
            svc_id: state.svc_id,
        };
        let stored = ORIG.insert(key, value, 0);
        debug!(
            ctx,
            "orig port {} for local port {}: {}",
            state.orig_port,
            port,
            stored.is_ok() as u32
        );
    }
    if let Some(connection) = sk_state::whole(sk, state) {
        connection.flags |= sk_flags::STARTED;
        let flags = ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG;
        // Without the callback the reservation is given back by sock_release.
        let _ = ctx.set_cb_flags(flags as i32);
    }
}

/// Subflows of multipath connections are left alone.
#[inline(always)]
fn connected(ctx: &SockOpsContext) {
    if !accelerate::is_on() {
        return;
    }
    let Some(sk) = socket(ctx) else { return };
    if let Some(state) = sk_state::get(sk)
        && state.flags & sk_flags::SUBFLOW == 0
    {
        accelerate::connected(ctx, sk, state);
    }
}

#[inline(always)]
fn accepted(ctx: &SockOpsContext) {
    let Some(pod) = inbound::pod(ctx) else { return };
    let Some(sk) = socket(ctx) else { return };
    if sk_state::multipath(sk).is_null() {
        let told = inbound::accepted(ctx, sk, pod);
        accelerate::accepted(ctx, sk, told);
    }
}

#[inline(always)]
fn changed(ctx: &SockOpsContext) {
    let Some(sk) = socket(ctx) else { return };
    let Some(own) = sk_state::get(sk) else { return };
    let Some(connection) = sk_state::whole(sk, own) else {
        return;
    };
    let (before, now) = (ctx.arg(0), ctx.arg(1));
    match now {
        tcp::ESTABLISHED if before == tcp::SYN_SENT => {
            if connection.flags & sk_flags::DIRECT != 0 {
                events::opened(ctx, connection);
            }
        }
        tcp::FIN_WAIT2 if before == tcp::FIN_WAIT1 => {
            connection.fin_wait_bytes = events::received(ctx);
        }
        tcp::CLOSE => {
            let fast = accelerate::ended(sk, connection);
            let told = sk_flags::DIRECT | sk_flags::INBOUND;
            if connection.flags & told != 0 && connection.flags & sk_flags::STARTED != 0 {
                events::ended(ctx, connection, before, fast);
            }
            connection.flags &= !sk_flags::STARTED;
            reserve::release(connection);
        }
        _ => {}
    }
}
