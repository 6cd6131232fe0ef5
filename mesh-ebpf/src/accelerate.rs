//! Which connections are accelerated: the part of sockops.
//!
//! A client that is connected to an address of this node says hello, before its ACK leaves; the
//! server's socket that finds the hello, with the sequence numbers that only it can know, is the
//! other end. Sockets can be put into `FAST` at no other time.

use core::ffi::c_void;
use core::ptr::read_volatile;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_get_socket_cookie};
use aya_ebpf::programs::SockOpsContext;
use mesh_common::{
    AccelerationFlags, Addr, Counter, Ends, FastKey, Flow, Hello, Pair, PairEnds, Side, SkState,
    sk_flags,
};

use crate::capture;
use crate::maps::{ACCEL, FAST, FLOW, HABITS, IN_PODS, NEAR, PAIRS, PEERS, count};
use crate::sock_ops::local;

const AF_INET: u32 = 2;
/// Where there is nothing in `FAST`, the element is made; where there is, it is replaced.
const ANY: u64 = 0;
/// `HABITS` keeps eight times the average of messages a connection.
const SCALE: u32 = 8;
/// Before anything is known of a service.
const BLANK: u32 = 32 * SCALE;
/// Below so many messages a connection pays more for being put into `FAST` than it gains.
const WORTH: u32 = 3 * SCALE;
/// More messages are not worth more.
const MOST: u64 = 4096;
/// Of services whose connections are not worth it, one in so many is tried.
const SAMPLED: u32 = 16;

/// Which end of which pair a socket is.
#[inline(always)]
pub(crate) fn flow<'a>(sk: *mut bpf_sock) -> Option<&'a mut Flow> {
    let map: *mut c_void = (&raw const FLOW).cast_mut().cast();
    // SAFETY: the verifier checks that `sk` is a socket of the context.
    let flow = unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), 0) };
    // SAFETY: socket storage lives as long as the socket, which the context holds.
    unsafe { flow.cast::<Flow>().as_mut() }
}

#[inline(always)]
fn store(sk: *mut bpf_sock, flow: &mut Flow) -> bool {
    let map: *mut c_void = (&raw const FLOW).cast_mut().cast();
    let pointer: *mut Flow = flow;
    // SAFETY: as in `flow`; the initial value is copied by the kernel.
    let stored = unsafe {
        let create = BPF_SK_STORAGE_GET_F_CREATE.into();
        bpf_sk_storage_get(map, sk.cast(), pointer.cast(), create)
    };
    // SAFETY: as in `flow`.
    match unsafe { stored.cast::<Flow>().as_mut() } {
        Some(stored) => {
            *stored = *flow;
            true
        }
        None => false,
    }
}

/// The client's handshake is done.
#[inline(always)]
pub(crate) fn connected(ctx: &SockOpsContext, sk: *mut bpf_sock, state: &SkState) {
    if flags() & AccelerationFlags::DIRECT == 0 || state.flags & sk_flags::DIRECT == 0 {
        return;
    }
    let (client, client_port) = local(ctx);
    let (server, server_port) = remote(ctx);
    if !is_near(&server, server_port) || !is_worth_it(state.svc_id) {
        return;
    }
    // SAFETY (all context accesses): see connect.rs.
    let (acked, una, next_sent, next_received) = unsafe {
        (
            read_volatile(&raw const (*ctx.ops).bytes_acked),
            read_volatile(&raw const (*ctx.ops).snd_una),
            read_volatile(&raw const (*ctx.ops).snd_nxt),
            read_volatile(&raw const (*ctx.ops).rcv_nxt),
        )
    };
    // Bytes of TCP Fast Open went by TCP.
    if una != next_sent || acked > 1 {
        return;
    }
    // SAFETY: the hook's own context.
    let pair = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let value = Pair {
        svc_id: state.svc_id,
        ..Pair::default()
    };
    if PAIRS.insert(pair, value, 0).is_err() {
        return;
    }
    let ends = Ends {
        client,
        server,
        client_port,
        server_port,
        pad: 0,
    };
    let hello = Hello {
        pair,
        next_sent,
        next_received,
    };
    if join(ctx, sk, pair, Side::CLIENT) && PEERS.insert(ends, hello, 0).is_ok() {
        count(Counter::Accelerated);
    } else {
        let _ = PAIRS.remove(pair);
    }
}

/// The server's handshake is done, in an enrolled pod; `told`: its side is told of, too.
#[inline(always)]
pub(crate) fn accepted(ctx: &SockOpsContext, sk: *mut bpf_sock, told: bool) {
    if flags() == 0 {
        return;
    }
    let (server, server_port) = local(ctx);
    let (client, client_port) = remote(ctx);
    let ends = Ends {
        client,
        server,
        client_port,
        server_port,
        pad: 0,
    };
    // SAFETY: values are replaced whole.
    let Some(hello) = (unsafe { PEERS.get(ends) }) else {
        return;
    };
    let hello = *hello;
    // SAFETY: see connect.rs.
    let (next_sent, next_received) = unsafe {
        (
            read_volatile(&raw const (*ctx.ops).snd_nxt),
            read_volatile(&raw const (*ctx.ops).rcv_nxt),
        )
    };
    if (hello.next_sent, hello.next_received) != (next_received, next_sent) {
        return;
    }
    let _ = PEERS.remove(ends);
    if join(ctx, sk, hello.pair, Side::SERVER)
        && told
        && let Some(pair) = PAIRS.get_ptr_mut(hello.pair)
    {
        // SAFETY: a live, aligned map value; nothing was sent past TCP yet.
        unsafe { (*pair).ends |= PairEnds::BOTH };
    }
}

/// A socket is closed: what went past TCP, from it and to it.
#[inline(always)]
pub(crate) fn ended(sk: *mut bpf_sock, state: &SkState) -> (u64, u64) {
    let Some(flow) = flow(sk) else { return (0, 0) };
    let number = flow.pair;
    let Some(pair) = PAIRS.get_ptr_mut(number) else {
        return (0, 0);
    };
    // SAFETY: a live, aligned map value.
    let pair = unsafe { &mut *pair };
    let (client, server) = (pair.bytes[0], pair.bytes[1]);
    let messages = pair.messages[0];
    if pair.ends == PairEnds::BOTH {
        pair.ends |= PairEnds::ONE_OVER;
    } else {
        let _ = PAIRS.remove(number);
    }
    if state.flags & sk_flags::INBOUND != 0 {
        return (server, client);
    }
    learn(state.svc_id, messages);
    (client, server)
}

/// Whether anything is accelerated.
#[inline(always)]
pub(crate) fn is_on() -> bool {
    flags() != 0
}

#[inline(always)]
fn flags() -> u32 {
    ACCEL.get(0).map_or(0, |settings| settings.flags)
}

/// Whether the address is that of an enrolled pod whose own socket answers at this port.
#[inline(always)]
fn is_near(addr: &Addr, port: u16) -> bool {
    // SAFETY: the agent replaces values whole.
    unsafe {
        if NEAR.get(addr).is_none() {
            return false;
        }
        match IN_PODS.get(addr) {
            Some(pod) => !capture::inbound(pod, port),
            None => true,
        }
    }
}

/// Puts a socket into `FAST`.
#[inline(always)]
fn join(ctx: &SockOpsContext, sk: *mut bpf_sock, pair: u64, side: u32) -> bool {
    let mut flow = Flow {
        pair,
        side,
        left: 0,
    };
    if !store(sk, &mut flow) {
        return false;
    }
    let key = FastKey { pair, side, pad: 0 };
    // SAFETY: the hook's own context.
    FAST.update(key, unsafe { &mut *ctx.ops }, ANY).is_ok()
}

/// Connections of one request, and those that are bulk from the start, pay more for being put into
/// `FAST` than they gain. Connections to one service are alike, so the last ones tell.
#[inline(always)]
fn is_worth_it(svc_id: u32) -> bool {
    // SAFETY: a u32, replaced whole.
    match unsafe { HABITS.get(svc_id) } {
        // SAFETY: no arguments.
        Some(habit) if *habit < WORTH => unsafe { bpf_get_prandom_u32() % SAMPLED == 0 },
        _ => true,
    }
}

/// A connection to the service had so many messages.
#[inline(always)]
pub(crate) fn learn(svc_id: u32, messages: u64) {
    let messages = if messages > MOST { MOST } else { messages } as u32;
    match HABITS.get_ptr_mut(svc_id) {
        // SAFETY: a live, aligned map value; of two at once one may be lost.
        Some(habit) => unsafe { *habit = *habit - *habit / SCALE + messages },
        None => {
            let _ = HABITS.insert(svc_id, BLANK - BLANK / SCALE + messages, 0);
        }
    }
}

/// Connections to the service are bulk.
#[inline(always)]
pub(crate) fn learn_bulk(svc_id: u32) {
    let _ = HABITS.insert(svc_id, 0, 0);
}

#[inline(always)]
pub(crate) fn remote(ctx: &SockOpsContext) -> (Addr, u16) {
    // SAFETY: see connect.rs; both families before the branch, as in sk_lookup.rs.
    unsafe {
        let addr4 = read_volatile(&raw const (*ctx.ops).remote_ip4);
        let addr6 = Addr([
            read_volatile(&raw const (*ctx.ops).remote_ip6[0]),
            read_volatile(&raw const (*ctx.ops).remote_ip6[1]),
            read_volatile(&raw const (*ctx.ops).remote_ip6[2]),
            read_volatile(&raw const (*ctx.ops).remote_ip6[3]),
        ]);
        let addr = if read_volatile(&raw const (*ctx.ops).family) == AF_INET {
            Addr::from_v4_be(addr4)
        } else {
            addr6
        };
        // Big-endian in the high half.
        let port = u16::from_be((read_volatile(&raw const (*ctx.ops).remote_port) >> 16) as u16);
        (addr, port)
    }
}
