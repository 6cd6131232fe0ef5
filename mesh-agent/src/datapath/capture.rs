//! Capture settings into map entries.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use mesh_common::{Addr, CaptureAction, CidrKey, Direction, PodFlags, PortKey};

use crate::config::model::workload::{AllOr, Capture};

/// What the maps hold for one set of capture settings.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct CaptureEntries {
    /// Bits of [`PodFlags`] that follow from the settings.
    pub(super) flags: u32,
    /// Prefix length over the whole key -> action.
    pub(super) cidrs: BTreeMap<(u32, CidrKey), u32>,
    /// Port rules.
    pub(super) ports: BTreeMap<PortKey, u32>,
}

/// The entries of settings under a number.
pub(super) fn entries(capture: &Capture, capture_id: u32) -> CaptureEntries {
    let mut entries = CaptureEntries::default();
    let excluded = &capture.exclude_outbound_cidrs;
    match &capture.include_outbound_cidrs {
        AllOr::All if excluded.is_empty() => entries.flags |= PodFlags::ALL_CIDRS,
        AllOr::All => {
            for all in [
                IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            ] {
                let all = IpNet::new_assert(all, 0);
                entries
                    .cidrs
                    .insert(cidr_key(capture_id, all), CaptureAction::INCLUDE);
            }
        }
        AllOr::Only(included) => {
            // iptables looks at the exclusions first: an included range inside an excluded one
            // never counts, however specific it is.
            for included in included {
                if !excluded.iter().any(|excluded| excluded.contains(included)) {
                    let key = cidr_key(capture_id, *included);
                    entries.cidrs.insert(key, CaptureAction::INCLUDE);
                }
            }
        }
    }
    for excluded in excluded {
        entries
            .cidrs
            .insert(cidr_key(capture_id, *excluded), CaptureAction::EXCLUDE);
    }
    let mut port = |port, direction, action| {
        entries.ports.insert(
            PortKey {
                capture_id,
                port,
                direction,
            },
            action,
        );
    };
    for included in &capture.include_outbound_ports {
        port(*included, Direction::OUTBOUND, CaptureAction::INCLUDE);
    }
    if let AllOr::Only(included) = &capture.include_inbound_ports {
        for included in included {
            port(*included, Direction::INBOUND, CaptureAction::INCLUDE);
        }
    }
    for excluded in &capture.exclude_outbound_ports {
        port(*excluded, Direction::OUTBOUND, CaptureAction::EXCLUDE);
    }
    for excluded in &capture.exclude_inbound_ports {
        port(*excluded, Direction::INBOUND, CaptureAction::EXCLUDE);
    }
    if capture.include_inbound_ports == AllOr::All {
        entries.flags |= PodFlags::ALL_INBOUND_PORTS;
    }
    if entries.ports.is_empty() {
        entries.flags |= PodFlags::NO_PORT_RULES;
    }
    entries
}

fn cidr_key(capture_id: u32, range: IpNet) -> (u32, CidrKey) {
    let range = range.trunc();
    let bits = match range {
        IpNet::V4(range) => 96 + u32::from(range.prefix_len()),
        IpNet::V6(range) => u32::from(range.prefix_len()),
    };
    (
        32 + bits,
        CidrKey {
            capture_id,
            addr: Addr::from(range.network()),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn everything_needs_no_look_up() {
        let entries = entries(&Capture::default(), 1);
        assert_eq!(
            entries.flags,
            PodFlags::ALL_CIDRS | PodFlags::NO_PORT_RULES | PodFlags::ALL_INBOUND_PORTS
        );
        assert!(entries.cidrs.is_empty() && entries.ports.is_empty());
    }

    #[test]
    fn an_excluded_range_beats_an_included_one_inside_it() {
        let capture = Capture {
            include_outbound_cidrs: AllOr::Only(vec![net("10.1.0.0/16"), net("192.168.0.0/16")]),
            exclude_outbound_cidrs: vec![net("10.0.0.0/8"), net("192.168.7.0/24")],
            ..Capture::default()
        };
        let entries = entries(&capture, 7);
        let action = |text| entries.cidrs.get(&cidr_key(7, net(text))).copied();
        assert_eq!(action("10.1.0.0/16"), None);
        assert_eq!(action("10.0.0.0/8"), Some(CaptureAction::EXCLUDE));
        assert_eq!(action("192.168.0.0/16"), Some(CaptureAction::INCLUDE));
        assert_eq!(action("192.168.7.0/24"), Some(CaptureAction::EXCLUDE));
        assert_eq!(entries.flags & PodFlags::ALL_CIDRS, 0);
    }

    #[test]
    fn an_excluded_port_beats_an_included_one() {
        let capture = Capture {
            include_outbound_ports: vec![80, 81],
            exclude_outbound_ports: vec![81],
            ..Capture::default()
        };
        let entries = entries(&capture, 7);
        let action = |port| {
            let key = PortKey {
                capture_id: 7,
                port,
                direction: Direction::OUTBOUND,
            };
            entries.ports.get(&key).copied()
        };
        assert_eq!(action(80), Some(CaptureAction::INCLUDE));
        assert_eq!(action(81), Some(CaptureAction::EXCLUDE));
    }
}
