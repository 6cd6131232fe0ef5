//! Records of connections for the agent, and of those that were refused.
//!
//! The agent reads the ring buffer at its own pace; it is woken only when a quarter is full, so
//! that a connection does not pay for a wake-up. What finds no room is counted.

use core::ptr::{read_volatile, write};

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::{bpf_get_socket_cookie, bpf_ktime_get_ns};
use aya_ebpf::programs::SockOpsContext;
use mesh_common::{Addr, Counter, DeniedKey, End, Event, EventKind, SkState, capacity, sk_flags};

use crate::atomic::add;
use crate::maps::{DENIED, EVENTS, count};

/// States of a socket, as `bpf_sock_ops` has them.
pub(crate) mod tcp {
    pub(crate) const ESTABLISHED: u32 = 1;
    pub(crate) const SYN_SENT: u32 = 2;
    pub(crate) const FIN_WAIT1: u32 = 4;
    pub(crate) const FIN_WAIT2: u32 = 5;
    pub(crate) const CLOSE: u32 = 7;
    pub(crate) const CLOSE_WAIT: u32 = 8;
    pub(crate) const LAST_ACK: u32 = 9;
    pub(crate) const CLOSING: u32 = 11;
}

const AF_INET: u32 = 2;

/// The connection stands.
#[inline(always)]
pub(crate) fn opened(ctx: &SockOpsContext, state: &SkState) {
    emit(ctx, state, EventKind::Opened, End::No, 0, 0);
}

/// The connection is over, or never came to be; `before` is the state it was in, and `fast` what
/// was sent and received past TCP.
#[inline(always)]
pub(crate) fn ended(ctx: &SockOpsContext, state: &SkState, before: u32, fast: (u64, u64)) {
    let left = state.flags & sk_flags::LEFT != 0;
    if before == tcp::SYN_SENT {
        let end = if retransmits(ctx) > 0 {
            End::TimedOut
        } else if left {
            End::Cancelled
        } else {
            End::Refused
        };
        return emit(ctx, state, EventKind::Failed, end, 0, 0);
    }
    // SAFETY (all context accesses): see connect.rs.
    let (acked, received, una, next) = unsafe {
        (
            read_volatile(&raw const (*ctx.ops).bytes_acked),
            read_volatile(&raw const (*ctx.ops).bytes_received),
            read_volatile(&raw const (*ctx.ops).snd_una),
            read_volatile(&raw const (*ctx.ops).snd_nxt),
        )
    };
    // The kernel counts SYN and FIN as bytes.
    let fin_acked = match before {
        tcp::FIN_WAIT2 | tcp::CLOSING => 1,
        tcp::LAST_ACK if una == next => 1,
        _ => 0,
    };
    let fin_received = match before {
        tcp::CLOSE_WAIT | tcp::LAST_ACK | tcp::CLOSING => 1,
        // Of a socket that the application left, FIN_WAIT2 ends at once if no FIN came along.
        tcp::FIN_WAIT2 if !left || received != state.fin_wait_bytes => 1,
        _ => 0,
    };
    let end = match before {
        tcp::FIN_WAIT2 | tcp::CLOSING => End::Closed,
        tcp::LAST_ACK if una == next => End::Closed,
        tcp::ESTABLISHED | tcp::CLOSE_WAIT if left => End::Aborted,
        _ => End::Reset,
    };
    // Of an accepted socket the SYN is not among the bytes.
    let syn = u64::from(state.flags & sk_flags::INBOUND == 0);
    let sent = acked.saturating_sub(syn + fin_acked) + fast.0;
    let received = received.saturating_sub(fin_received) + fast.1;
    emit(ctx, state, EventKind::Closed, end, sent, received);
}

/// Bytes received so far, the kernel's way.
#[inline(always)]
pub(crate) fn received(ctx: &SockOpsContext) -> u64 {
    // SAFETY: see connect.rs.
    unsafe { read_volatile(&raw const (*ctx.ops).bytes_received) }
}

#[inline(always)]
fn retransmits(ctx: &SockOpsContext) -> u32 {
    // SAFETY: see connect.rs.
    unsafe { read_volatile(&raw const (*ctx.ops).total_retrans) }
}

#[inline(always)]
fn emit(
    ctx: &SockOpsContext,
    state: &SkState,
    kind: EventKind,
    end: End,
    sent_bytes: u64,
    received_bytes: u64,
) {
    let Some(mut room) = EVENTS.reserve::<Event>(0) else {
        count(Counter::EventLost);
        return;
    };
    // SAFETY: see connect.rs; the helpers take the hook's own context.
    let event = unsafe {
        // Both families before the branch, as in sk_lookup.rs.
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
        Event {
            cookie: bpf_get_socket_cookie(ctx.as_ptr()),
            netns_cookie: state.netns_cookie,
            cluster: state.cluster,
            connected_ns: state.connected_ns,
            now_ns: bpf_ktime_get_ns(),
            sent_bytes,
            received_bytes,
            orig_addr: state.orig_addr,
            addr,
            svc_id: state.svc_id,
            backend_id: state.backend_id,
            srtt_us: read_volatile(&raw const (*ctx.ops).srtt_us) >> 3,
            retransmits: retransmits(ctx),
            orig_port: state.orig_port,
            // Big-endian in the high half.
            port: u16::from_be((read_volatile(&raw const (*ctx.ops).remote_port) >> 16) as u16),
            kind: kind as u8,
            end: end as u8,
            inbound: (state.flags & sk_flags::INBOUND != 0) as u8,
            pad: 0,
        }
    };
    // SAFETY: the record has this size.
    unsafe { write(room.as_mut_ptr(), event) };
    let full = EVENTS.query(BPF_RB_AVAIL_DATA.into()) > u64::from(capacity::EVENT_BYTES / 4);
    let wake = if full {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    };
    room.submit(wake.into());
}

/// A connect was refused. The agent takes the counts out several times a second.
#[inline(always)]
pub(crate) fn denied(state: &SkState, why: Counter) {
    let key = DeniedKey {
        addr: state.orig_addr,
        netns_cookie: state.netns_cookie,
        svc_id: state.svc_id,
        port: state.orig_port,
        why: why as u16,
    };
    match DENIED.get_ptr_mut(key) {
        // SAFETY: a live, aligned map value.
        Some(times) => unsafe { add(times, 1) },
        None => {
            // Two at once may make one: the counters of the hooks know both.
            let _ = DENIED.insert(key, 1, 0);
        }
    }
}
