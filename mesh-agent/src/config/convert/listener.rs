//! Listeners and filter chains.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::TrafficDirection as PbDirection;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager as PbHcm;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as PbRbac;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use envoy_types::pb::envoy::r#type::v3::HashPolicy;
use envoy_types::pb::envoy::r#type::v3::hash_policy::PolicySpecifier;

use envoy_types::pb::google::protobuf::Any;
use prost::Message as _;
use xxhash_rust::xxh64::xxh64;

use crate::config::model::hbone::{self as model_hbone, MAIN_INTERNAL, ORIGINATE, TERMINATE};
use crate::config::model::tls::DownstreamTransport;

use crate::config::model::listener::{
    FilterChain, FilterChainMatch, ListenAddress, Listener, Role, SourceType, TcpProxy,
    TcpWeightedCluster, Terminal, TrafficDirection,
};

use super::{
    Converted, IGNORED_NETWORK_FILTERS, Problems, access_log, address, decode, hbone, hcm,
    inspectors, is_one_of, network_rbac, subset, timeout, tls, type_name, typed,
};

const HCM: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// A listener.
///
/// # Errors
/// Everything that is wrong with it.
pub fn listener(message: &pb::Listener) -> Converted<Listener> {
    let mut problems = Problems::default();
    let message = &*typed::listener(message, &mut problems);
    let role = role(message, &mut problems);
    let converted = match role {
        Role::Terminates(_) => of_hbone(message, role),
        Role::Internal if message.name == ORIGINATE => of_hbone(message, role),
        Role::Internal | Role::Caught => {
            problems.check("envoy.config.listener.v3.Listener", message);
            convert(message, role, &mut problems)
        }
    };
    problems.finish(|| converted)
}

/// Where its connections come from; Istio's listeners of HBONE are known by their names.
fn role(message: &pb::Listener, problems: &mut Problems) -> Role {
    let internal = message.listener_specifier.is_some();
    match &*message.name {
        TERMINATE if !internal => match hbone::terminate(message, problems) {
            Some(DownstreamTransport::Tls(tls)) => {
                Role::Terminates(Arc::new(model_hbone::downstream_of(&tls)))
            }
            // The problem was told.
            _ => Role::Internal,
        },
        ORIGINATE if internal => {
            hbone::check_originate(message, problems);
            Role::Internal
        }
        MAIN_INTERNAL if internal => Role::Internal,
        _ if internal => {
            problems.hint(
                "internal_listener",
                "internal listeners are not supported",
                format!("Istio's {ORIGINATE} and {MAIN_INTERNAL} are"),
            );
            Role::Internal
        }
        _ => Role::Caught,
    }
}

/// A listener of which the agent does everything by itself.
fn of_hbone(message: &pb::Listener, role: Role) -> Listener {
    Listener {
        name: message.name.as_str().into(),
        addresses: Vec::new(),
        direction: TrafficDirection::default(),
        role,
        use_original_dst: false,
        filter_chains: Vec::new(),
        default_filter_chain: None,
        inspect: inspectors::convert(&[], &mut Problems::default()),
        listener_filters_timeout: None,
        continue_on_listener_filters_timeout: false,
        access_logs: Arc::default(),
    }
}

fn convert(message: &pb::Listener, role: Role, problems: &mut Problems) -> Listener {
    let name = if message.name.is_empty() {
        problems.push("name", "a name is missing");
        ""
    } else {
        &message.name
    };
    let mut addresses = Vec::new();
    let mut listen = |message, path: &str, problems: &mut Problems| {
        if let Some(address) = address::literal(message, path, problems) {
            addresses.push(ListenAddress {
                ip: address.ip(),
                port: address.port(),
            });
        }
    };
    let api = message.api_listener.as_ref();
    if (api.is_none() && role.is_caught()) || message.address.is_some() {
        listen(message.address.as_ref(), "address", problems);
    }
    for (i, additional) in message.additional_addresses.iter().enumerate() {
        let path = format!("additional_addresses[{i}].address");
        listen(additional.address.as_ref(), &path, problems);
    }
    let api = api.and_then(|api| api_chain(api.api_listener.as_ref(), problems));
    if message.filter_chains.is_empty()
        && message.default_filter_chain.is_none()
        && message.api_listener.is_none()
    {
        problems.push("filter_chains", "at least one filter chain is needed");
    }
    let filter_chains: Vec<FilterChain> = message
        .filter_chains
        .iter()
        .enumerate()
        .filter_map(|(i, chain)| filter_chain(chain, &format!("filter_chains[{i}]"), problems))
        .collect();
    for (i, chain) in filter_chains.iter().enumerate() {
        let same = filter_chains[..i]
            .iter()
            .position(|other| other.matcher.conflicts_with(&chain.matcher));
        if let Some(first) = same {
            problems.hint(
                format!("filter_chains[{i}].filter_chain_match"),
                format!("matches some of the connections of filter_chains[{first}] as closely"),
                "give every chain a match of its own",
            );
        }
    }
    let default_filter_chain = message
        .default_filter_chain
        .as_ref()
        .and_then(|chain| filter_chain(chain, "default_filter_chain", problems))
        // Another one may match everything, too.
        .map(|chain| FilterChain {
            key: !chain.key,
            ..chain
        })
        .or(api);
    Listener {
        name: name.into(),
        addresses,
        direction: match PbDirection::try_from(message.traffic_direction) {
            Ok(PbDirection::Inbound) => TrafficDirection::Inbound,
            _ => TrafficDirection::Outbound,
        },
        role,
        use_original_dst: message
            .use_original_dst
            .as_ref()
            .is_some_and(|value| value.value),
        filter_chains,
        default_filter_chain,
        inspect: inspectors::convert(&message.listener_filters, problems),
        listener_filters_timeout: timeout(
            message.listener_filters_timeout.as_ref(),
            Some(Duration::from_secs(15)),
            "listener_filters_timeout",
            problems,
        ),
        continue_on_listener_filters_timeout: message.continue_on_listener_filters_timeout,
        access_logs: access_log::convert(&message.access_log, "", problems),
    }
}

/// The proxyless shape: a connection manager without addresses, which gRPC clients ask for by
/// the name they dial. It is understood, and serves no connection.
fn api_chain(any: Option<&Any>, problems: &mut Problems) -> Option<FilterChain> {
    let path = "api_listener.api_listener";
    let Some(any) = any.filter(|any| type_name(any) == HCM) else {
        problems.push(path, "must be an HttpConnectionManager");
        return None;
    };
    let message: PbHcm = decode(any, path, problems)?;
    let hcm = hcm::convert(&message, path, problems)?;
    Some(FilterChain {
        name: "api_listener".into(),
        key: 0,
        matcher: FilterChainMatch::default(),
        rbac: Vec::new(),
        terminal: Terminal::Http(Arc::new(hcm)),
        transport: DownstreamTransport::Plain,
    })
}

fn filter_chain(
    message: &pb::FilterChain,
    path: &str,
    problems: &mut Problems,
) -> Option<FilterChain> {
    let matcher = match &message.filter_chain_match {
        Some(matcher) => chain_match(matcher, &format!("{path}.filter_chain_match"), problems),
        None => FilterChainMatch::default(),
    };
    let handshake_timeout = timeout(
        message.transport_socket_connect_timeout.as_ref(),
        None,
        &format!("{path}.transport_socket_connect_timeout"),
        problems,
    );
    let transport = tls::downstream(
        message.transport_socket.as_ref(),
        handshake_timeout,
        &format!("{path}.transport_socket"),
        problems,
    );
    let mut terminal = None;
    let mut rbac = Vec::new();
    let mut ignored = 0;
    for (i, filter) in message.filters.iter().enumerate() {
        let path = format!("{path}.filters[{i}]");
        let type_name = match &filter.config_type {
            Some(ConfigType::TypedConfig(any)) => type_name(any),
            _ => "",
        };
        if is_one_of(IGNORED_NETWORK_FILTERS, &filter.name, type_name) {
            ignored += 1;
            continue;
        }
        if let Some(ConfigType::TypedConfig(any)) = &filter.config_type
            && type_name == "envoy.extensions.filters.network.rbac.v3.RBAC"
            && terminal.is_none()
        {
            let path = format!("{path}.typed_config");
            let message: Option<PbRbac> = decode(any, &path, problems);
            rbac.push(network_rbac::convert(&message?, &path, problems)?);
            continue;
        }
        if terminal.is_some() {
            problems.push(&path, "stands behind the filter that ends the chain");
            continue;
        }
        terminal = network_filter(filter, &path, problems);
    }
    if message.filters.len() == ignored + rbac.len() {
        problems.hint(
            format!("{path}.filters"),
            "no filter ends the chain",
            "add envoy.filters.network.tcp_proxy or envoy.filters.network.http_connection_manager",
        );
    }
    Some(FilterChain {
        name: message.name.as_str().into(),
        key: key(message),
        matcher,
        rbac,
        terminal: terminal?,
        transport: transport?,
    })
}

/// Envoy lets no two chains of a listener match alike; only the default one matches nothing.
fn key(message: &pb::FilterChain) -> u64 {
    let mut bytes = message.name.as_bytes().to_vec();
    bytes.push(0);
    if let Some(matcher) = &message.filter_chain_match {
        bytes.extend(matcher.encode_to_vec());
    }
    xxh64(&bytes, 0)
}

fn network_filter(filter: &pb::Filter, path: &str, problems: &mut Problems) -> Option<Terminal> {
    let Some(ConfigType::TypedConfig(any)) = &filter.config_type else {
        problems.push(format!("{path}.typed_config"), "is missing");
        return None;
    };
    let path = format!("{path}.typed_config");
    match type_name(any) {
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" => {
            let message: tcp::TcpProxy = decode(any, &path, problems)?;
            tcp_proxy(&message, &path, problems).map(|proxy| Terminal::Tcp(Arc::new(proxy)))
        }
        HCM => {
            let message: PbHcm = decode(any, &path, problems)?;
            hcm::convert(&message, &path, problems).map(|hcm| Terminal::Http(Arc::new(hcm)))
        }
        other => {
            problems.hint(
                &path,
                format!(
                    "network filter {} ({other}) is not supported yet",
                    filter.name
                ),
                "a filter that decides about connections is never left out silently",
            );
            None
        }
    }
}

fn chain_match(
    message: &pb::FilterChainMatch,
    path: &str,
    problems: &mut Problems,
) -> FilterChainMatch {
    let port = |value: u32, path: String, problems: &mut Problems| match u16::try_from(value) {
        Ok(port) => Some(port),
        Err(_) => {
            problems.push(path, format!("{value} is not a port: the largest is 65535"));
            None
        }
    };
    let mut ranges = |list: &[envoy_types::pb::envoy::config::core::v3::CidrRange], field: &str| {
        list.iter()
            .enumerate()
            .filter_map(|(i, range)| {
                address::range(range, &format!("{path}.{field}[{i}]"), problems)
            })
            .collect()
    };
    let prefix_ranges = ranges(&message.prefix_ranges, "prefix_ranges");
    let direct_source = ranges(
        &message.direct_source_prefix_ranges,
        "direct_source_prefix_ranges",
    );
    let source = ranges(&message.source_prefix_ranges, "source_prefix_ranges");
    for (i, name) in message.server_names.iter().enumerate() {
        if name.contains('*') && !name.starts_with("*.") {
            problems.push(
                format!("{path}.server_names[{i}]"),
                "a wildcard must begin with *.",
            );
        }
    }
    FilterChainMatch {
        destination_port: message
            .destination_port
            .as_ref()
            .and_then(|value| port(value.value, format!("{path}.destination_port"), problems)),
        prefix_ranges,
        server_names: message
            .server_names
            .iter()
            .map(|name| name.to_ascii_lowercase().into())
            .collect(),
        transport_protocol: (!message.transport_protocol.is_empty())
            .then(|| message.transport_protocol.as_str().into()),
        application_protocols: message
            .application_protocols
            .iter()
            .map(|name| name.as_str().into())
            .collect(),
        direct_source_prefix_ranges: direct_source,
        source_type: match message.source_type {
            1 => SourceType::SameIpOrLoopback,
            2 => SourceType::External,
            _ => SourceType::Any,
        },
        source_prefix_ranges: source,
        source_ports: message
            .source_ports
            .iter()
            .enumerate()
            .filter_map(|(i, value)| port(*value, format!("{path}.source_ports[{i}]"), problems))
            .collect(),
    }
}

fn tcp_proxy(message: &tcp::TcpProxy, path: &str, problems: &mut Problems) -> Option<TcpProxy> {
    let subset = subset::wanted(message.metadata_match.as_ref(), None);
    let clusters: Vec<TcpWeightedCluster> = match &message.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) if !name.is_empty() => {
            vec![TcpWeightedCluster {
                cluster: name.as_str().into(),
                weight: 1,
                subset,
            }]
        }
        Some(ClusterSpecifier::WeightedClusters(weighted)) => weighted
            .clusters
            .iter()
            .map(|cluster| TcpWeightedCluster {
                cluster: cluster.name.as_str().into(),
                weight: cluster.weight,
                subset: subset::wanted(cluster.metadata_match.as_ref(), subset.as_ref()),
            })
            .collect(),
        _ => Vec::new(),
    };
    if clusters.iter().all(|cluster| cluster.weight == 0) {
        problems.push(
            path,
            "a cluster is missing: cluster, or weighted_clusters with a weight",
        );
        return None;
    }
    Some(TcpProxy {
        stat_prefix: message.stat_prefix.as_str().into(),
        clusters,
        idle_timeout: timeout(
            message.idle_timeout.as_ref(),
            Some(Duration::from_secs(3600)),
            &format!("{path}.idle_timeout"),
            problems,
        ),
        max_connect_attempts: message
            .max_connect_attempts
            .as_ref()
            .map_or(1, |attempts| attempts.value.max(1)),
        access_logs: access_log::convert(&message.access_log, path, problems),
        hash_source_ip: hash_source_ip(&message.hash_policy, path, problems),
    })
}

/// Envoy takes one policy at most.
fn hash_source_ip(policies: &[HashPolicy], path: &str, problems: &mut Problems) -> bool {
    let path = format!("{path}.hash_policy");
    match policies {
        [] => false,
        [one] => match one.policy_specifier {
            Some(PolicySpecifier::SourceIp(_)) => true,
            Some(PolicySpecifier::FilterState(_)) => {
                problems.push(format!("{path}[0].filter_state"), "is not supported");
                false
            }
            None => {
                problems.push(format!("{path}[0]"), "what is hashed is missing");
                false
            }
        },
        _ => {
            problems.push(path, "only one is allowed");
            false
        }
    }
}
