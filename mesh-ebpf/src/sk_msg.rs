//! sk_msg, attached to `FAST`: the two sockets of accelerated connections.
//!
//! When: an application sends; the message is still the sender's, with the socket locked.
//! Returns: SK_PASS, with or without the peer as the target. Without one the bytes go by TCP,
//! which is also what happens whenever something is not as it should be: a message is never
//! dropped.
//!
//! Order: a receiver drains what was redirected before what came by TCP. So a stream may leave for
//! TCP once, and never comes back. It starts redirected only if its socket was put into `FAST`
//! before anything was sent, and if its first message finds the peer there.

use core::ptr::read_volatile;

use aya_ebpf::bindings::{BPF_F_INGRESS, bpf_sock, sk_msg_md};
use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_skc_to_tcp_sock};
use aya_ebpf::macros::sk_msg;
use aya_ebpf::programs::SkMsgContext;
use mesh_common::{Counter, FastKey, Flow, Side};

use crate::accelerate;
use crate::config;
use crate::maps::{ACCEL, FAST, PAIRS, count};

const SK_PASS: u32 = 1;
const TCP_ESTABLISHED: u32 = 1;
const TCP_CLOSE_WAIT: u32 = 8;
/// Pointers in `sk_user_data` carry flags in their low bits.
const USER_DATA_FLAGS: u64 = 7;
/// Urgent bytes are sent alone in practice, and only TCP can mark them.
const URGENT: u32 = 1;
/// A stream that turns to bulk before so many messages is nothing but bulk.
const FEW: u64 = 64;
/// Messages after which a connection has been worth it, whatever follows.
const MANY: u64 = 256;

#[sk_msg]
pub fn mesh_sk_msg(ctx: SkMsgContext) -> u32 {
    consider(&ctx);
    SK_PASS
}

#[inline(always)]
fn consider(ctx: &SkMsgContext) {
    let msg: *mut sk_msg_md = ctx.msg;
    // SAFETY: the context's own field.
    let sk: *mut bpf_sock = unsafe { (*msg).__bindgen_anon_3.sk };
    if sk.is_null() {
        return;
    }
    let Some(flow) = accelerate::flow(sk) else {
        return;
    };
    let Some(pair) = PAIRS.get_ptr_mut(flow.pair) else {
        flow.left = 1;
        return;
    };
    // The index is the verifier's to know, too.
    let (own, peer) = if flow.side == Side::CLIENT {
        (0, 1)
    } else {
        (1, 0)
    };
    // SAFETY: a live, aligned map value.
    let pair = unsafe { &mut *pair };
    // Who has read everything and answers has made room.
    if pair.unanswered[peer] != 0 && drained(sk) {
        pair.unanswered[peer] = 0;
    }
    if flow.left != 0 {
        return;
    }
    let Some(settings) = ACCEL.get(0) else { return };
    // SAFETY: fields of the context and of its socket.
    let (size, state) = unsafe {
        (
            read_volatile(&raw const (*msg).size),
            read_volatile(&raw const (*sk).state),
        )
    };
    let unanswered = pair.unanswered[own].saturating_add(size);
    // TCP alone refuses what is sent after shutdown(2).
    let may_send = state == TCP_ESTABLISHED || state == TCP_CLOSE_WAIT;
    if size > settings.max_message || unanswered > settings.max_unanswered {
        leave(flow);
        if pair.messages[own] < FEW {
            accelerate::learn_bulk(pair.svc_id);
        }
        return;
    }
    if size <= URGENT || !may_send {
        leave(flow);
        return;
    }
    let key = FastKey {
        pair: flow.pair,
        side: peer as u32,
        pad: 0,
    };
    if FAST.redirect_msg(ctx, key, BPF_F_INGRESS.into()) as u32 != SK_PASS {
        // The peer is not there yet, or not any more.
        leave(flow);
        return;
    }
    pair.unanswered[own] = unanswered;
    pair.bytes[own] += u64::from(size);
    pair.messages[own] += 1;
    // A connection that lasts speaks for its service before it ends.
    if own == 0 && pair.messages[own] == MANY {
        accelerate::learn(pair.svc_id, MANY);
    }
}

#[inline(always)]
fn leave(flow: &mut Flow) {
    flow.left = 1;
    count(Counter::AcceleratedLeft);
}

/// Whether the application has read all that was redirected to its socket.
#[inline(always)]
fn drained(sk: *mut bpf_sock) -> bool {
    let Some((user_data, ingress)) = config::ingress_offsets() else {
        return true;
    };
    // SAFETY: the hook's own socket; what is read is checked by the kernel.
    unsafe {
        let tcp = bpf_skc_to_tcp_sock(sk.cast()).cast::<u8>();
        if tcp.is_null() {
            return false;
        }
        let Some(psock) = read(tcp.add(user_data) as u64) else {
            return false;
        };
        let list = (psock & !USER_DATA_FLAGS) + ingress as u64;
        // An empty list points to itself.
        read(list) == Some(list)
    }
}

#[inline(always)]
fn read(address: u64) -> Option<u64> {
    let mut value = 0_u64;
    // SAFETY: the kernel checks the address and writes eight bytes to the stack.
    let result = unsafe {
        bpf_probe_read_kernel(
            (&raw mut value).cast(),
            size_of::<u64>() as u32,
            address as *const core::ffi::c_void,
        )
    };
    (result == 0).then_some(value)
}
