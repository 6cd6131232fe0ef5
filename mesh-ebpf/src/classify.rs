//! What happens to a connection: the verdict, and the address it is rewritten to.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_F_CURRENT_NETNS, bpf_sock_tuple};
use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_sk_lookup_tcp,
    bpf_sk_release,
};
use aya_ebpf::programs::SockAddrContext;
use mesh_common::{
    Addr, Counter, HEARTBEAT_STALE_NS, LbKind, MAX_CHOICES, OUTBOUND_PORT, Pod, Service,
    ServiceFlags, ServiceKey, ServiceState, SkState, Slot, SlotKey, TCP, Verdict, sk_flags,
};

use crate::atomic::{add, fetch_add};
use crate::maps::{BACK, CTRL, SLOTS, SVC, SVC_STATE, count};
use crate::{capture, events, reserve};

/// What the connect hook must do.
pub(crate) enum Outcome {
    /// Nothing; the socket is not ours.
    Leave,
    /// Rewrite the destination; `SkState` is to be stored with the socket.
    Rewrite(Addr, u16),
    /// Fail connect(2) with ECONNREFUSED.
    Refuse,
}

/// Classifies a connection of an enrolled pod. `state` comes with the address dialled and is
/// filled in.
#[inline(always)]
pub(crate) fn classify(ctx: &SockAddrContext, pod: &Pod, state: &mut SkState) -> Outcome {
    // SAFETY: no arguments.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    let control = CTRL.get(0);
    if let Some(control) = control
        && control.agent_cgroup == cgroup
    {
        count(Counter::AgentSelf);
        return Outcome::Leave;
    }
    let (addr, port) = (state.orig_addr, state.orig_port);
    if addr.is_local() || is_own(pod, &addr) {
        count(Counter::Local);
        return Outcome::Leave;
    }
    if !capture::outbound(pod, &addr, port) {
        count(Counter::Excluded);
        return Outcome::Leave;
    }
    let Some(service) = find(pod.view_id, &addr, port) else {
        count(Counter::Pass);
        return Outcome::Leave;
    };
    state.svc_id = service.svc_id;
    let counters = SVC_STATE.get_ptr_mut(service.svc_id);
    if let Some(counters) = counters {
        // SAFETY: a live, aligned map value.
        unsafe { add(&raw mut (*counters).connects, 1) };
    }
    if service.verdict == Verdict::Pass as u8 {
        count(Counter::Pass);
        return Outcome::Leave;
    }
    if service.verdict == Verdict::Direct as u8 {
        return direct(service, counters, pod, state);
    }
    if service.verdict != Verdict::Agent as u8 {
        return refuse(counters, state, Counter::Deny);
    }
    let heartbeat_ns = control.map_or(0, |control| control.heartbeat_ns);
    if agent_listens(ctx, &addr, heartbeat_ns) {
        state.flags |= sk_flags::AGENT;
        count(Counter::Agent);
        return Outcome::Rewrite(agent_address(&addr), OUTBOUND_PORT);
    }
    if service.flags & ServiceFlags::FAIL_OPEN == 0 {
        return refuse(counters, state, Counter::AgentDown);
    }
    count(Counter::FailOpen);
    if service.slots == 0 {
        Outcome::Leave
    } else {
        direct(service, counters, pod, state)
    }
}

#[inline(always)]
pub(crate) fn is_own(pod: &Pod, addr: &Addr) -> bool {
    match addr.v4_be() {
        Some(v4) => v4 == pod.own_v4,
        None => *addr == pod.own_v6,
    }
}

#[inline(always)]
fn refuse(counters: Option<*mut ServiceState>, state: &SkState, why: Counter) -> Outcome {
    if let Some(counters) = counters {
        // SAFETY: a live, aligned map value.
        unsafe { add(&raw mut (*counters).refused, 1) };
    }
    events::denied(state, why);
    count(why);
    Outcome::Refuse
}

/// The service for an address, from the most specific key to the least.
#[inline(always)]
fn find<'a>(view_id: u32, addr: &Addr, port: u16) -> Option<&'a Service> {
    let proto = TCP as u16;
    let mut key = ServiceKey {
        view_id,
        addr: *addr,
        port,
        proto,
    };
    // SAFETY (all four): values are replaced whole by the agent; a reader sees the old or the new.
    unsafe {
        if let Some(service) = SVC.get(key) {
            return Some(service);
        }
        key.port = 0;
        if let Some(service) = SVC.get(key) {
            return Some(service);
        }
        key.addr = addr.wildcard();
        key.port = port;
        if let Some(service) = SVC.get(key) {
            return Some(service);
        }
        key.port = 0;
        SVC.get(key)
    }
}

/// Picks a backend and takes a place among its connections.
#[inline(always)]
fn direct(
    service: &Service,
    counters: Option<*mut ServiceState>,
    pod: &Pod,
    state: &mut SkState,
) -> Outcome {
    let Some(slot) = pick(service, counters, pod) else {
        return refuse(counters, state, Counter::NoBackend);
    };
    // SAFETY: backends are written before the slots that name them.
    let Some(backend) = (unsafe { BACK.get(slot.backend_id) }) else {
        return refuse(counters, state, Counter::NoBackend);
    };
    if !reserve::take(state, slot, counters) {
        return refuse(counters, state, Counter::Overflow);
    }
    state.flags |= sk_flags::DIRECT;
    count(Counter::Direct);
    Outcome::Rewrite(backend.addr, backend.port)
}

#[inline(always)]
fn pick<'a>(service: &Service, counters: Option<*mut ServiceState>, pod: &Pod) -> Option<&'a Slot> {
    if service.slots == 0 {
        return None;
    }
    if service.lb == LbKind::SourceAddress as u8
        && let Some(own) = slot_at(service, SlotKey::of_pod(pod.pod_id, 0))
    {
        return Some(own);
    }
    let number = if service.lb == LbKind::RoundRobin as u8
        && let Some(counters) = counters
    {
        // SAFETY: a live, aligned map value.
        unsafe { fetch_add(&raw mut (*counters).cursor, 1) as u32 }
    } else {
        random()
    };
    let first = slot_of(service, number)?;
    if service.lb == LbKind::LeastConnections as u8 && service.slots > 1 {
        return Some(least_connections(service, first));
    }
    // The cluster is drawn; which of its endpoints is the client's address to say.
    if first.by_pod != 0
        && let Some(own) = slot_at(service, SlotKey::of_pod(pod.pod_id, first.by_pod))
    {
        return Some(own);
    }
    Some(first)
}

/// Power of choices, as Envoy's LEAST_REQUEST with `choice_count`.
#[inline(always)]
fn least_connections<'a>(service: &Service, first: &'a Slot) -> &'a Slot {
    let (mut best, mut least) = (first, reserve::active(first));
    let mut looked_at = 1;
    while looked_at < MAX_CHOICES {
        if looked_at >= 2 && looked_at >= service.choices {
            break;
        }
        if let Some(other) = slot_of(service, random()) {
            let active = reserve::active(other);
            if active < least {
                (best, least) = (other, active);
            }
        }
        looked_at += 1;
    }
    best
}

#[inline(always)]
fn random() -> u32 {
    // SAFETY: no arguments.
    unsafe { bpf_get_prandom_u32() }
}

#[inline(always)]
fn slot_of<'a>(service: &Service, number: u32) -> Option<&'a Slot> {
    // `%` would call a panic that never returns, which the verifier rejects.
    slot_at(service, number.checked_rem(service.slots)?)
}

#[inline(always)]
fn slot_at<'a>(service: &Service, slot: u32) -> Option<&'a Slot> {
    let key = SlotKey {
        svc_id: service.svc_id,
        generation: service.generation,
        slot,
    };
    // SAFETY: slots are written before the service that names them.
    unsafe { SLOTS.get(key) }
}

/// The agent's listener for the family the application dialled.
#[inline(always)]
fn agent_address(addr: &Addr) -> Addr {
    if addr.is_v4() {
        Addr::from_v4_be(0x7f00_0001_u32.to_be())
    } else {
        Addr([0, 0, 0, 1_u32.to_be()])
    }
}

/// Whether the agent is alive: its listener exists in this namespace and its heart beats.
#[inline(always)]
fn agent_listens(ctx: &SockAddrContext, addr: &Addr, heartbeat_ns: u64) -> bool {
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    if now > heartbeat_ns && now - heartbeat_ns > HEARTBEAT_STALE_NS {
        return false;
    }
    // SAFETY: plain old data.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let target = agent_address(addr);
    let size = if let Some(v4) = target.v4_be() {
        tuple.__bindgen_anon_1.ipv4.daddr = v4;
        tuple.__bindgen_anon_1.ipv4.dport = OUTBOUND_PORT.to_be();
        12
    } else {
        tuple.__bindgen_anon_1.ipv6.daddr = target.0;
        tuple.__bindgen_anon_1.ipv6.dport = OUTBOUND_PORT.to_be();
        36
    };
    // SAFETY: the tuple lives on the stack; a socket found is released at once.
    unsafe {
        let sk = bpf_sk_lookup_tcp(
            ctx.as_ptr(),
            &raw mut tuple,
            size,
            BPF_F_CURRENT_NETNS as u64,
            0,
        );
        if sk.is_null() {
            return false;
        }
        bpf_sk_release(sk.cast());
    }
    true
}
