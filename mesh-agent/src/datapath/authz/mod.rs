//! Access rules of inbound listeners as the kernel can apply them: who is surely denied, by source
//! address and port. Everybody else goes to the agent, which asks all rules.

mod known;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use mesh_common::{Addr, AuthzKey, AuthzVerdict};

use crate::config::model::filter::rbac::Rule;
use crate::config::model::listener::{FilterChain, Listener};

pub(super) use self::known::{Known, Port, Truth};

/// Who is surely denied, of one listener and for one pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct InboundRules {
    /// By port, 0 for those no rule names; sources from the most specific range to the least.
    ports: BTreeMap<u16, Vec<(IpNet, bool)>>,
}

impl InboundRules {
    /// Of a listener whose connections come to these addresses.
    pub(super) fn new(listener: &Listener, ips: &[IpAddr]) -> Self {
        let chains: Vec<&FilterChain> = listener
            .filter_chains
            .iter()
            .chain(&listener.default_filter_chain)
            .collect();
        let mut ports = BTreeSet::from([0]);
        let mut sources = BTreeSet::from([
            net(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            net(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        ]);
        for chain in &chains {
            ports.extend(chain.matcher.destination_port);
            known::walk(&chain.rbac, &mut |rule| match rule {
                Rule::DestinationPort(first, end) if *end == first + 1 => {
                    ports.extend(u16::try_from(*first));
                }
                Rule::DirectRemoteIp(range) | Rule::RemoteIp(range) => {
                    sources.insert(range.trunc());
                }
                _ => {}
            });
        }
        let mut all = Self::default();
        for port in ports {
            let mut denied: Vec<(IpNet, bool)> = sources
                .iter()
                .filter_map(|range| {
                    let source = representative(*range, &sources)?;
                    let mut own = ips.iter().filter(|ip| ip.is_ipv4() == source.is_ipv4());
                    // Of several addresses any may be dialled.
                    let destination = own.next().filter(|_| own.next().is_none());
                    let known = Known {
                        source: Some(source),
                        destination: destination.copied(),
                        port: match port {
                            0 => Port::Unnamed,
                            port => Port::Is(port),
                        },
                    };
                    Some((*range, surely_denied(&chains, port, &known)))
                })
                .collect();
            denied.sort_by_key(|(range, _)| std::cmp::Reverse(range.prefix_len()));
            all.ports.insert(port, denied);
        }
        if all.ports.values().flatten().any(|(_, denied)| *denied) {
            all
        } else {
            Self::default()
        }
    }

    /// Nobody is denied.
    pub(super) fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    /// Whether a connection is denied.
    pub(super) fn denies(&self, source: IpAddr, port: u16) -> bool {
        let ranges = self.ports.get(&port).or_else(|| self.ports.get(&0));
        ranges.is_some_and(|ranges| {
            ranges
                .iter()
                .find(|(range, _)| range.contains(&source))
                .is_some_and(|(_, denied)| *denied)
        })
    }

    /// For the map `AUTHZ`: prefix length over the whole key -> verdict.
    pub(super) fn entries(&self, pod_id: u32) -> BTreeMap<(u32, AuthzKey), u32> {
        let ports = self.ports.iter();
        ports
            .flat_map(|(port, ranges)| ranges.iter().map(move |range| (*port, range)))
            .map(|(port, (range, denied))| {
                let bits = match range {
                    IpNet::V4(range) => 96 + u32::from(range.prefix_len()),
                    IpNet::V6(range) => u32::from(range.prefix_len()),
                };
                let key = AuthzKey {
                    pod_id,
                    port: u32::from(port),
                    addr: Addr::from(range.network()),
                };
                let verdict = if *denied {
                    AuthzVerdict::DENY
                } else {
                    AuthzVerdict::ASK
                };
                ((AuthzKey::FIXED_BITS + bits, key), verdict)
            })
            .collect()
    }
}

fn net(ip: IpAddr) -> IpNet {
    IpNet::new_assert(ip, 0)
}

/// Whether every chain that may take such a connection denies it. If none does, the agent says
/// what that means.
fn surely_denied(chains: &[&FilterChain], port: u16, known: &Known) -> bool {
    let mut taken = chains
        .iter()
        .filter(|chain| {
            chain
                .matcher
                .destination_port
                .is_none_or(|wanted| wanted == port)
        })
        .peekable();
    taken.peek().is_some() && taken.all(|chain| known.denied(&chain.rbac) == Truth::Yes)
}

/// An address of a range that is in none of the smaller ones; `None`: they cover it.
fn representative(range: IpNet, all: &BTreeSet<IpNet>) -> Option<IpAddr> {
    let mut candidate = range.network();
    loop {
        let inside = all.iter().find(|other| {
            other.prefix_len() > range.prefix_len()
                && range.contains(&other.network())
                && other.contains(&candidate)
        });
        let Some(inside) = inside else {
            return range.contains(&candidate).then_some(candidate);
        };
        candidate = after(inside.broadcast())?;
        if !range.contains(&candidate) {
            return None;
        }
    }
}

fn after(ip: IpAddr) -> Option<IpAddr> {
    Some(match ip {
        IpAddr::V4(ip) => Ipv4Addr::from(u32::from(ip).checked_add(1)?).into(),
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip).checked_add(1)?).into(),
    })
}
