//! What may go on while the agent is down. Whatever needs it for safety may not, whoever asks.

use std::collections::BTreeSet;

use crate::config::model::listener::{FilterChain, Listener, RouteSource, Terminal};
use crate::snapshot::{ClusterView, View};

/// Whether connections to a service go on without the agent: the configuration says so, nobody is
/// to be asked who connects, and nothing it leads to is encrypted.
pub(super) fn allows(listener: &Listener, view: &View) -> bool {
    view.failure_mode.allows(&listener.name)
        && chains(listener).all(|chain| {
            let open = chain.transport.is_plain() && chain.rbac.is_empty();
            open && leads_to_plain(chain, view)
        })
}

fn leads_to_plain(chain: &FilterChain, view: &View) -> bool {
    let plain = |name: &str| view.clusters.get(name).is_some_and(|one| is_plain(one));
    match &chain.terminal {
        Terminal::Tcp(proxy) => proxy.clusters.iter().all(|one| plain(&one.cluster)),
        Terminal::Http(hcm) => match &hcm.routes {
            RouteSource::Inline(routes) => routes.clusters().all(|(_, name)| plain(name)),
            // Its routes may change while nobody looks at its listener again.
            RouteSource::Rds(_) => false,
        },
    }
}

/// Whether no connection to a cluster is ever encrypted, whichever endpoints it has or gets.
fn is_plain(cluster: &ClusterView) -> bool {
    let config = &cluster.config;
    config.transport.is_plain()
        && config
            .transport_matches
            .iter()
            .all(|one| one.transport.is_plain())
}

/// Whether inbound connections have to be refused while the agent is down: on some port nobody is
/// let in without TLS (Istio: PeerAuthentication STRICT), or somebody is to be asked who connects.
pub fn closes_inbound(listener: &Listener) -> bool {
    if chains(listener).any(|chain| !chain.rbac.is_empty()) {
        return true;
    }
    let plain = |chain: &FilterChain| chain.transport.is_plain();
    let by_port: Vec<(Option<u16>, bool)> = listener
        .filter_chains
        .iter()
        .map(|chain| (chain.matcher.destination_port, plain(chain)))
        .collect();
    let rest = listener.default_filter_chain.as_ref();
    closes(&by_port, rest.is_some_and(plain))
}

/// Chains of a port of its own come before those of all others; what neither takes, the default
/// chain does.
fn closes(chains: &[(Option<u16>, bool)], default_is_plain: bool) -> bool {
    let ports: BTreeSet<Option<u16>> = chains.iter().map(|(port, _)| *port).chain([None]).collect();
    let is_plain = |wanted| chains.iter().any(|(port, plain)| *port == wanted && *plain);
    !default_is_plain && !ports.into_iter().all(is_plain)
}

fn chains(listener: &Listener) -> impl Iterator<Item = &FilterChain> {
    let chains = listener.filter_chains.iter();
    chains.chain(&listener.default_filter_chain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_lets_nobody_in_without_tls_is_closed() {
        let all = None;
        for (chains, closed) in [
            (&[(all, true)][..], false),
            (&[(all, false)], true),
            // PERMISSIVE: with and without.
            (&[(all, false), (all, true)], false),
            // Of one port only.
            (&[(all, true), (Some(80), false)], true),
            (&[(all, true), (Some(80), false), (Some(80), true)], false),
            (&[(all, false), (Some(15006), true)], true),
            (&[], true),
        ] {
            assert_eq!(closes(chains, false), closed, "{chains:?}");
            assert!(!closes(chains, true), "{chains:?}");
        }
    }
}
