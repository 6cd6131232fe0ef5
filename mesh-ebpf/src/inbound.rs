//! Connections that an enrolled pod's application accepts without the agent: the part of sockops
//! that has them told. What the agent accepts it tells itself.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock};
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_ktime_get_ns};
use aya_ebpf::programs::SockOpsContext;
use mesh_common::{Pod, SkState, sk_flags};

use crate::accelerate::remote;
use crate::classify::is_own;
use crate::maps::{IN_PODS, PODS};
use crate::sock_ops::local;
use crate::{capture, events, sk_state};

/// The enrolled pod that the socket is in, with its namespace.
#[inline(always)]
pub(crate) fn pod<'a>(ctx: &SockOpsContext) -> Option<(u64, &'a Pod)> {
    // SAFETY: the hook's own context.
    let netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: the agent replaces values whole.
    let pod = unsafe { PODS.get(netns_cookie) }?;
    Some((netns_cookie, pod))
}

/// The server's handshake is done. Says whether the connection is told of.
#[inline(always)]
pub(crate) fn accepted(
    ctx: &SockOpsContext,
    sk: *mut bpf_sock,
    (netns_cookie, pod): (u64, &Pod),
) -> bool {
    let (own, port) = local(ctx);
    let (peer, _) = remote(ctx);
    // From inside the pod, which is also how the agent reaches the application.
    if peer.is_local() || is_own(pod, &peer) || capture::is_reserved(port) {
        return false;
    }
    // SAFETY: the agent replaces values whole.
    if let Some(pod) = unsafe { IN_PODS.get(own) }
        && capture::inbound(pod, port)
    {
        return false;
    }
    let mut state = SkState {
        netns_cookie,
        // SAFETY: no arguments.
        connected_ns: unsafe { bpf_ktime_get_ns() },
        cluster: 0,
        orig_addr: own,
        orig_port: port,
        flags: sk_flags::INBOUND | sk_flags::STARTED,
        svc_id: 0,
        backend_id: 0,
        pad: 0,
        fin_wait_bytes: 0,
    };
    if !sk_state::put(sk, &mut state) {
        return false;
    }
    let flags = ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG;
    if ctx.set_cb_flags(flags as i32).is_err() {
        sk_state::delete(sk);
        return false;
    }
    events::opened(ctx, &state);
    true
}
