//! istio-init's capture rules, in iptables' order: ports excluded, ports included, address ranges.

use aya_ebpf::maps::lpm_trie::Key;
use mesh_common::RESERVED_INBOUND_PORTS;
use mesh_common::{Addr, CaptureAction, CidrKey, Direction, InboundPod, Pod, PodFlags, PortKey};

use crate::maps::{CIDRS, PORTS};

/// Bits of a [`CidrKey`].
const CIDR_BITS: u32 = 32 + 128;

#[inline(always)]
fn port_rule(capture_id: u32, port: u16, direction: u16) -> Option<u32> {
    // SAFETY: the value is a u32 the agent replaces whole.
    unsafe {
        PORTS.get(PortKey {
            capture_id,
            port,
            direction,
        })
    }
    .copied()
}

/// Whether a connection the pod makes is captured.
#[inline(always)]
pub(crate) fn outbound(pod: &Pod, addr: &Addr, port: u16) -> bool {
    if pod.flags & PodFlags::NO_PORT_RULES == 0 {
        match port_rule(pod.capture_id, port, Direction::OUTBOUND) {
            Some(CaptureAction::EXCLUDE) => return false,
            Some(_) => {
                return !matches!(cidr_rule(pod, addr), Some(CaptureAction::EXCLUDE));
            }
            None => {}
        }
    }
    if pod.flags & PodFlags::ALL_CIDRS != 0 {
        return true;
    }
    matches!(cidr_rule(pod, addr), Some(CaptureAction::INCLUDE))
}

#[inline(always)]
fn cidr_rule(pod: &Pod, addr: &Addr) -> Option<u32> {
    if pod.flags & PodFlags::ALL_CIDRS != 0 {
        return None;
    }
    let key = Key::new(
        CIDR_BITS,
        CidrKey {
            capture_id: pod.capture_id,
            addr: *addr,
        },
    );
    CIDRS.get(key).copied()
}

/// Whether a connection the pod receives is captured.
#[inline(always)]
pub(crate) fn inbound(pod: &InboundPod, port: u16) -> bool {
    if is_reserved(port) {
        return false;
    }
    if pod.flags & PodFlags::NO_PORT_RULES == 0 {
        match port_rule(pod.capture_id, port, Direction::INBOUND) {
            Some(CaptureAction::EXCLUDE) => return false,
            Some(_) => return true,
            None => {}
        }
    }
    pod.flags & PodFlags::ALL_INBOUND_PORTS != 0
}

/// Whether a port is never captured inbound.
#[inline(always)]
pub(crate) fn is_reserved(port: u16) -> bool {
    let mut i = 0;
    while i < RESERVED_INBOUND_PORTS.len() {
        if RESERVED_INBOUND_PORTS[i] == port {
            return true;
        }
        i += 1;
    }
    false
}
