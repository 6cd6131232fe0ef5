//! Which filter chain takes a connection.
//!
//! Envoy's rule: criteria are looked at in a fixed order, and at each of them only the chains
//! with the most specific match go on (`FilterChainManagerImpl::findFilterChain`).

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::config::model::listener::{FilterChain, FilterChainMatch, Listener, SourceType};

use super::sniff::Sniffed;

/// What is known of a connection.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) destination: SocketAddr,
    pub(super) source: SocketAddr,
    /// The source is the same pod.
    pub(super) local: bool,
    pub(super) transport_protocol: &'static str,
    pub(super) server_name: Option<String>,
    pub(super) application_protocols: Vec<String>,
}

impl Facts {
    /// Adds what the first bytes told.
    pub(super) fn learn(&mut self, sniffed: Sniffed) {
        if sniffed.tls {
            self.transport_protocol = "tls";
        }
        self.server_name = sniffed.server_name;
        self.application_protocols = sniffed.application_protocols;
    }
}

/// Whether a chain asks for what only the first bytes tell, among those left once the
/// destination is looked at.
pub(super) fn needs_sniffing(listener: &Listener, facts: &Facts) -> bool {
    by_destination(listener, facts).iter().any(|chain| {
        let matcher = &chain.matcher;
        !matcher.server_names.is_empty()
            || matcher.transport_protocol.is_some()
            || !matcher.application_protocols.is_empty()
    })
}

/// The first two criteria, which need no byte of the client.
fn by_destination<'a>(listener: &'a Listener, facts: &Facts) -> Vec<&'a FilterChain> {
    let chains = most_specific(listener.filter_chains.iter().collect(), &|m| {
        exact(m.destination_port.as_ref(), &facts.destination.port())
    });
    most_specific(chains, &|m| {
        prefix(&m.prefix_ranges, facts.destination.ip())
    })
}

/// The chains that are left once everything is looked at that is known before the client speaks.
pub(super) fn candidates<'a>(listener: &'a Listener, facts: &Facts) -> Vec<&'a FilterChain> {
    let chains = most_specific(by_destination(listener, facts), &|m| {
        server_name(&m.server_names, facts.server_name.as_deref())
    });
    most_specific(chains, &|m| {
        exact(m.transport_protocol.as_deref(), facts.transport_protocol)
    })
}

/// The chain, or the default one, or none.
pub(super) fn select<'a>(listener: &'a Listener, facts: &Facts) -> Option<&'a FilterChain> {
    let mut chains = by_destination(listener, facts);
    let stages: [Score<'_>; 6] = [
        &|m| server_name(&m.server_names, facts.server_name.as_deref()),
        &|m| exact(m.transport_protocol.as_deref(), facts.transport_protocol),
        &|m| application_protocol(&m.application_protocols, &facts.application_protocols),
        &|m| prefix(&m.direct_source_prefix_ranges, facts.source.ip()),
        &|m| match (m.source_type, facts.local) {
            (SourceType::Any, _) => Some(0),
            (SourceType::SameIpOrLoopback, true) | (SourceType::External, false) => Some(1),
            _ => None,
        },
        &|m| prefix(&m.source_prefix_ranges, facts.source.ip()),
    ];
    for stage in stages {
        chains = most_specific(chains, stage);
    }
    chains = most_specific(chains, &|m| {
        any_of(m.source_ports.is_empty(), || {
            m.source_ports.contains(&facts.source.port())
        })
    });
    chains
        .first()
        .copied()
        .or(listener.default_filter_chain.as_ref())
}

/// How specifically a chain's match takes a connection; `None`: it does not.
type Score<'a> = &'a dyn Fn(&FilterChainMatch) -> Option<u32>;

/// Keeps the chains with the highest score; those without one are out.
fn most_specific<'a>(chains: Vec<&'a FilterChain>, score: Score<'_>) -> Vec<&'a FilterChain> {
    let scored: Vec<(u32, &FilterChain)> = chains
        .into_iter()
        .filter_map(|chain| Some((score(&chain.matcher)?, chain)))
        .collect();
    let best = scored.iter().map(|(score, _)| *score).max();
    scored
        .into_iter()
        .filter(|(score, _)| Some(*score) == best)
        .map(|(_, chain)| chain)
        .collect()
}

/// 0: matches everything, 1: matches this.
fn exact<T: PartialEq + ?Sized>(wanted: Option<&T>, actual: &T) -> Option<u32> {
    match wanted {
        None => Some(0),
        Some(wanted) => (wanted == actual).then_some(1),
    }
}

fn any_of(all: bool, matches: impl FnOnce() -> bool) -> Option<u32> {
    if all { Some(0) } else { matches().then_some(1) }
}

/// What the client named first decides, whichever chain stands first.
fn application_protocol(wanted: &[std::sync::Arc<str>], named: &[String]) -> Option<u32> {
    if wanted.is_empty() {
        return Some(0);
    }
    let is_wanted = |name: &String| wanted.iter().any(|wanted| **wanted == **name);
    let index = u32::try_from(named.iter().position(is_wanted)?).ok()?;
    Some(u32::MAX - index)
}

/// The longer the prefix, the more specific.
fn prefix(ranges: &[IpNet], ip: IpAddr) -> Option<u32> {
    if ranges.is_empty() {
        return Some(0);
    }
    ranges
        .iter()
        .filter(|range| range.contains(&ip))
        .map(|range| 1 + u32::from(range.prefix_len()))
        .max()
}

/// An exact name beats every wildcard, a longer wildcard a shorter one.
fn server_name(names: &[std::sync::Arc<str>], actual: Option<&str>) -> Option<u32> {
    if names.is_empty() {
        return Some(0);
    }
    let actual = actual?;
    names
        .iter()
        .filter_map(|name| match name.strip_prefix('*') {
            Some(suffix) => (actual.len() > suffix.len() && actual.ends_with(suffix))
                .then_some(1 + suffix.len() as u32),
            None => (**name == *actual).then_some(u32::MAX),
        })
        .max()
}

#[cfg(test)]
mod tests;
