//! Where a service runs: wholly in the kernel, in the agent, nowhere, or left alone. And why.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_common::{LbKind, MAX_CHOICES, OUTBOUND_PORT, SlotKey};

use crate::config::model::cluster::{Discovery, LbPolicy};
use crate::config::model::listener::{FilterChain, FilterChainMatch, Listener, TcpProxy, Terminal};
use crate::config::model::tls::UpstreamTransport;
use crate::snapshot::{ClusterView, View, ViewId};

use crate::snapshot::slots::{self, Weighted};

use super::authz::{Known, Port, Truth};

/// Envoy's default idle timeout of a TCP proxy. The kernel keeps no idle timer; a listener that
/// sets another one is served by the agent.
const DEFAULT_TCP_IDLE: Duration = Duration::from_secs(3600);

/// Envoy's default of `max_pending_requests`, which for TCP limits connects in flight. The kernel
/// does not tell those from connections that stand, so a lower limit is kept by the agent.
const LIKELY_PENDING: u32 = 1024;

/// Where a service's connections go.
#[derive(Debug, Clone)]
pub enum Placement {
    /// To where they were dialled.
    Pass,
    /// To a backend the kernel picks.
    Direct {
        /// How it picks.
        lb: LbKind,
        /// Of [`LbKind::LeastConnections`]: among how many.
        choices: u8,
        /// Among these; empty refuses.
        backends: Vec<Weighted>,
        /// Clusters whose endpoint is chosen by the client's address, with the number of their set
        /// of slots, see [`mesh_common::SlotKey::of_pod`].
        by_source: Vec<(u32, Arc<ClusterView>)>,
    },
    /// To the agent.
    Agent,
    /// connect(2) fails.
    Deny,
}

/// A placement and the reason `status` shows.
#[derive(Debug, Clone)]
pub struct Decision {
    /// Where.
    pub placement: Placement,
    /// Why.
    pub why: Cow<'static, str>,
}

impl Decision {
    fn agent(why: impl Into<Cow<'static, str>>) -> Self {
        Self {
            placement: Placement::Agent,
            why: why.into(),
        }
    }
}

/// Decides for a listener of a view, reached at `ip` and on `port` (`None`: at any).
pub fn decide(listener: &Listener, ip: Option<IpAddr>, port: Option<u16>, view: &View) -> Decision {
    let mut chains = listener
        .filter_chains
        .iter()
        .filter(|chain| reachable(&chain.matcher, port, listener.use_original_dst))
        .chain(&listener.default_filter_chain);
    let Some(chain) = chains.next() else {
        return Decision {
            placement: Placement::Deny,
            why: "no filter chain takes its connections".into(),
        };
    };
    if chains.next().is_some() {
        return Decision::agent("several filter chains: the agent selects one per connection");
    }
    if !matches_everything(chain, port) {
        return Decision::agent("its filter chain matches on facts only the agent looks at");
    }
    if !chain.transport.is_plain() {
        return Decision::agent("it terminates TLS");
    }
    let known = Known {
        source: None,
        destination: ip,
        port: port.map_or(Port::Unknown, Port::Is),
    };
    match known.denied(&chain.rbac) {
        Truth::No => {}
        Truth::Maybe => return Decision::agent("its access rules ask for who connects"),
        Truth::Yes => {
            return Decision {
                placement: Placement::Deny,
                why: "its access rules deny everybody".into(),
            };
        }
    }
    match &chain.terminal {
        Terminal::Http(_) => Decision::agent("HTTP routing"),
        Terminal::Tcp(proxy) => decide_tcp(proxy, view),
    }
}

/// Whether a chain can be selected at all. Istio's `virtualOutbound` guards against loops with a
/// chain for its own port, which no caught connection ever has as its destination.
fn reachable(matcher: &FilterChainMatch, port: Option<u16>, catch_all: bool) -> bool {
    match (matcher.destination_port, port) {
        (Some(wanted), Some(port)) => wanted == port,
        (Some(OUTBOUND_PORT), None) => !catch_all,
        _ => true,
    }
}

fn matches_everything(chain: &FilterChain, port: Option<u16>) -> bool {
    let mut matcher = chain.matcher.clone();
    if matcher.destination_port == port {
        matcher.destination_port = None;
    }
    matcher == FilterChainMatch::default()
}

fn decide_tcp(proxy: &TcpProxy, view: &View) -> Decision {
    if proxy.idle_timeout != Some(DEFAULT_TCP_IDLE) {
        return Decision::agent("tcp_proxy.idle_timeout is set: the kernel keeps no idle timer");
    }
    if proxy.max_connect_attempts > 1 {
        return Decision::agent("tcp_proxy.max_connect_attempts is set: the kernel tries once");
    }
    let mut clusters = Vec::with_capacity(proxy.clusters.len());
    for weighted in proxy.clusters.iter().filter(|weighted| weighted.weight > 0) {
        let Some(cluster) = view.clusters.get(&weighted.cluster) else {
            return Decision::agent(format!("cluster {} does not exist", weighted.cluster));
        };
        clusters.push((cluster, f64::from(weighted.weight)));
    }
    if let [(cluster, _)] = clusters[..] {
        if let Discovery::OriginalDst(options) = &cluster.config.discovery
            && options.http_header.is_none()
            && options.port_override.is_none()
            && needs_agent(cluster).is_none()
        {
            return Decision {
                placement: Placement::Pass,
                why: "passthrough".into(),
            };
        }
        if cluster.hosts().next().is_none() && cluster.warmed {
            return Decision {
                placement: Placement::Deny,
                why: format!("cluster {} has no endpoint", cluster.config.name).into(),
            };
        }
    }
    for (cluster, _) in &clusters {
        if matches!(cluster.config.discovery, Discovery::OriginalDst(_)) {
            return Decision::agent(format!(
                "cluster {} is ORIGINAL_DST among others",
                cluster.config.name
            ));
        }
        if let Some(why) = needs_agent(cluster) {
            return Decision::agent(format!("cluster {}: {why}", cluster.config.name));
        }
    }
    if clusters.len() > SlotKey::MAX_SET as usize && proxy.hash_source_ip {
        return Decision::agent("more weighted clusters by hash than the kernel tells apart");
    }
    direct(view.id, &clusters, proxy.hash_source_ip)
}

fn is_by_hash(cluster: &ClusterView) -> bool {
    matches!(
        cluster.config.lb,
        LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. }
    )
}

/// What a cluster asks for that only the agent can do.
fn needs_agent(cluster: &ClusterView) -> Option<&'static str> {
    let config = &cluster.config;
    let breakers = &config.circuit_breakers.default;
    let encrypted = |transport: &UpstreamTransport| !transport.is_plain();
    if encrypted(&cluster.transport) || cluster.hosts().any(|host| encrypted(&host.transport)) {
        Some("TLS to its endpoints")
    } else if !config.source_addresses.is_empty() {
        Some("upstream_bind_config is set")
    } else if config.slow_start.is_some() {
        Some("slow_start_config is set")
    } else if config.client_weights.is_some() {
        Some("client_side_weighted_round_robin: endpoints report to the agent")
    } else if config.subsets.is_some() {
        Some("lb_subset_config is set")
    } else if config.tcp_keepalive.is_some() {
        Some("tcp_keepalive is set")
    } else if matches!(config.lb, LbPolicy::LeastRequest { choice_count, .. } if choice_count > u32::from(MAX_CHOICES))
    {
        Some("LEAST_REQUEST with a choice_count above 8: the kernel looks at no more endpoints")
    } else if breakers.max_pending_requests < breakers.max_connections.min(LIKELY_PENDING) {
        Some(
            "circuit_breakers.max_pending_requests is low: the kernel counts no connects in flight",
        )
    } else {
        None
    }
}

fn direct(view: ViewId, clusters: &[(&Arc<ClusterView>, f64)], hash_source_ip: bool) -> Decision {
    let total: f64 = clusters.iter().map(|(_, weight)| weight).sum();
    let mut backends = Vec::new();
    let mut by_source = Vec::new();
    let several = clusters.len() > 1;
    for (number, (cluster, weight)) in (1..).zip(clusters) {
        let hashed = hash_source_ip && is_by_hash(cluster);
        // Alone it needs no number: every slot of a pod is of it.
        let set = if several { number } else { 0 };
        if hashed {
            by_source.push((set, Arc::clone(cluster)));
        }
        backends.extend(
            slots::weights(view, cluster)
                .into_iter()
                .map(|backend| Weighted {
                    weight: backend.weight * weight / total,
                    by_pod: if hashed { set } else { 0 },
                    ..backend
                }),
        );
    }
    let (lb, why) = match clusters {
        [(cluster, _)] => match cluster.config.lb {
            LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. } if hash_source_ip => (
                LbKind::SourceAddress,
                "plain tcp_proxy, by hash of the client's address",
            ),
            // Connections have no hash: any endpoint will do.
            LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. } => {
                (LbKind::Random, "plain tcp_proxy, by hash of nothing")
            }
            LbPolicy::Random => (LbKind::Random, "plain tcp_proxy, RANDOM"),
            LbPolicy::LeastRequest { .. } => (
                LbKind::LeastConnections,
                "plain tcp_proxy, LEAST_REQUEST on connections",
            ),
            LbPolicy::RoundRobin | LbPolicy::ClientWeighted | LbPolicy::ClusterProvided => {
                (LbKind::RoundRobin, "plain tcp_proxy, ROUND_ROBIN")
            }
        },
        // Envoy draws the cluster at random, so the slots are drawn at random.
        _ if by_source.is_empty() => (LbKind::Random, "plain tcp_proxy, weighted clusters"),
        _ => (
            LbKind::Random,
            "plain tcp_proxy, weighted clusters, then by hash of the client's address",
        ),
    };
    let choices = match clusters {
        [(cluster, _)] => match cluster.config.lb {
            LbPolicy::LeastRequest { choice_count, .. } => choice_count as u8,
            _ => 0,
        },
        _ => 0,
    };
    Decision {
        placement: Placement::Direct {
            lb,
            choices,
            backends,
            by_source,
        },
        why: why.into(),
    }
}
