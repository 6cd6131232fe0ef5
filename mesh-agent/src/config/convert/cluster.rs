//! Clusters.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::cluster::v3::cluster::common_lb_config::LocalityConfigSpecifier;
use envoy_types::pb::envoy::config::cluster::v3::cluster::ring_hash_lb_config::HashFunction as HashFunctionPb;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, DnsLookupFamily as PbFamily, LbConfig,
    LbPolicy as PbPolicy,
};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::load_balancing_policies::least_request::v3::LeastRequest;
use envoy_types::pb::envoy::extensions::load_balancing_policies::maglev::v3::Maglev;
use envoy_types::pb::envoy::extensions::load_balancing_policies::ring_hash::v3::RingHash;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
};

use crate::balance::hash::HashFunction;
use crate::balance::maglev;
use crate::balance::ring::RingSize;
use crate::config::model::cluster::{
    CircuitBreakers, Cluster, Discovery, DnsLookupFamily, DnsOptions, Http2Options, LbPolicy,
    OriginalDst, RetryBudget, TcpKeepalive, Thresholds, UpstreamProtocol,
};
use crate::config::model::endpoint::LoadAssignment;
use crate::config::model::tls::UpstreamTransport;

use super::{
    Converted, IGNORED_NETWORK_FILTERS, Problems, client_weights, decode, duration, endpoint,
    hbone, health_check, is_one_of, outlier, slow_start, subset, timeout, tls, type_name,
};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// A cluster.
///
/// # Errors
/// Everything that is wrong with it.
pub fn cluster(message: &pb::Cluster) -> Converted<Cluster> {
    let mut problems = Problems::of("envoy.config.cluster.v3.Cluster", message);
    let converted = convert(message, &mut problems);
    match converted {
        Some(value) => problems.finish(|| value),
        None => Err(problems.0),
    }
}

fn convert(message: &pb::Cluster, problems: &mut Problems) -> Option<Cluster> {
    if message.name.is_empty() {
        problems.push("name", "a name is missing");
    }
    let common = message.common_lb_config.clone().unwrap_or_default();
    let http = http_options(message, problems);
    let circuit_breakers = circuit_breakers(message.circuit_breakers.as_ref(), problems);
    let own_destination = matches!(
        &message.cluster_discovery_type,
        Some(ClusterDiscoveryType::Type(kind)) if *kind == DiscoveryType::OriginalDst as i32
    );
    let lb = lb_policy(message, problems);
    if let Some(lb) = lb
        && own_destination != (lb == LbPolicy::ClusterProvided)
    {
        problems.push(
            "lb_policy",
            "CLUSTER_PROVIDED goes with type ORIGINAL_DST, and only with it",
        );
    }
    if message
        .connect_timeout
        .is_some_and(|t| t.seconds == 0 && t.nanos == 0)
    {
        problems.push("connect_timeout", "must be more than 0");
    }
    network_filters(message, problems);
    let transport = tls::upstream(
        message.transport_socket.as_ref(),
        "transport_socket",
        problems,
    );
    let transport_matches = tls::matches(&message.transport_socket_matches, problems);
    let hbone = hbone::context(transport.as_ref(), transport_matches.as_ref());
    hbone::check_cluster(&message.name, transport.as_ref(), problems);
    let subsets = message
        .lb_subset_config
        .as_ref()
        .and_then(|config| subset::config(config, "lb_subset_config", problems));
    if subsets.is_some() && lb == Some(LbPolicy::ClusterProvided) {
        problems.push("lb_subset_config", "an ORIGINAL_DST cluster has no subsets");
    }
    let tunnelled =
        |transport: &UpstreamTransport| matches!(transport, UpstreamTransport::Hbone(_));
    let all = transport
        .iter()
        .chain(transport_matches.iter().flatten().map(|one| &one.transport));
    if !message.health_checks.is_empty() && all.into_iter().any(tunnelled) {
        problems.push(
            "health_checks",
            "health checks through HBONE tunnels are not supported",
        );
    }
    let source_addresses = source_addresses(message.upstream_bind_config.as_ref(), problems);
    Some(Cluster {
        name: message.name.as_str().into(),
        discovery: discovery(message, problems)?,
        lb: lb?,
        slow_start: slow_start::of(message, problems),
        client_weights: client_weights::of(message, problems)
            .filter(|_| lb == Some(LbPolicy::ClientWeighted))
            .map(Arc::new),
        subsets,
        panic_threshold_percent: panic_threshold(&common, problems),
        locality_weighted: matches!(
            common.locality_config_specifier,
            Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_))
        ),
        connect_timeout: timeout(
            message.connect_timeout.as_ref(),
            None,
            "connect_timeout",
            problems,
        )
        .unwrap_or(Duration::from_secs(5)),
        protocol: http.protocol,
        http1_trailers: http.trailers,
        outlier: message
            .outlier_detection
            .as_ref()
            .map(|message| outlier::convert(message, problems)),
        health_check: health_check::convert(&message.health_checks, problems),
        circuit_breakers,
        max_requests_per_connection: http.max_requests,
        idle_timeout: http.idle_timeout,
        tcp_keepalive: keepalive(message, problems),
        source_addresses,
        transport: transport?,
        transport_matches: transport_matches?,
        hbone,
        service: super::service::name(message.metadata.as_ref()),
        close_connections_on_host_removal: message.close_connections_on_host_health_failure,
    })
}

/// Envoy rounds it to a whole number.
fn panic_threshold(common: &pb::cluster::CommonLbConfig, problems: &mut Problems) -> u32 {
    let Some(percent) = &common.healthy_panic_threshold else {
        return 50;
    };
    if !(0.0..=100.0).contains(&percent.value) {
        problems.push(
            "common_lb_config.healthy_panic_threshold",
            format!("is a percentage from 0 to 100, not {}", percent.value),
        );
    }
    percent.value.clamp(0.0, 100.0).round() as u32
}

fn discovery(message: &pb::Cluster, problems: &mut Problems) -> Option<Discovery> {
    let kind = match &message.cluster_discovery_type {
        None => DiscoveryType::Static,
        Some(ClusterDiscoveryType::Type(kind)) => {
            DiscoveryType::try_from(*kind).unwrap_or(DiscoveryType::Static)
        }
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            problems.push(
                "cluster_type",
                format!("{} is not supported yet", custom.name),
            );
            return None;
        }
    };
    let dns = DnsOptions {
        refresh_rate: message
            .dns_refresh_rate
            .as_ref()
            .map_or(Duration::from_secs(5), |rate| {
                duration(rate, "dns_refresh_rate", problems)
            }),
        respect_ttl: message.respect_dns_ttl,
        lookup_family: match PbFamily::try_from(message.dns_lookup_family) {
            Ok(PbFamily::V4Only) => DnsLookupFamily::V4Only,
            Ok(PbFamily::V6Only) => DnsLookupFamily::V6Only,
            Ok(PbFamily::V4Preferred) => DnsLookupFamily::V4Preferred,
            Ok(PbFamily::All) => DnsLookupFamily::All,
            _ => DnsLookupFamily::Auto,
        },
    };
    let names = matches!(kind, DiscoveryType::StrictDns | DiscoveryType::LogicalDns);
    match kind {
        DiscoveryType::Static => Some(Discovery::Static(assignment(message, names, problems))),
        DiscoveryType::StrictDns => Some(Discovery::StrictDns {
            assignment: assignment(message, names, problems),
            dns,
        }),
        DiscoveryType::LogicalDns => {
            let assignment = assignment(message, names, problems);
            let endpoints: usize = assignment
                .localities
                .iter()
                .map(|locality| locality.endpoints.len())
                .sum();
            if endpoints != 1 {
                problems.hint(
                    "load_assignment.endpoints",
                    format!("a LOGICAL_DNS cluster has exactly one endpoint, not {endpoints}"),
                    "use STRICT_DNS for several",
                );
            }
            Some(Discovery::LogicalDns { assignment, dns })
        }
        DiscoveryType::Eds => {
            let service = message
                .eds_cluster_config
                .as_ref()
                .map(|config| config.service_name.as_str())
                .filter(|name| !name.is_empty())
                .unwrap_or(&message.name);
            if message.load_assignment.is_some() {
                problems.hint(
                    "load_assignment",
                    "an EDS cluster has no inline endpoints",
                    "put them under static_resources.endpoints, or make the cluster STATIC",
                );
            }
            Some(Discovery::Eds {
                service_name: service.into(),
            })
        }
        DiscoveryType::OriginalDst => {
            if message.load_assignment.is_some() {
                problems.push(
                    "load_assignment",
                    "an ORIGINAL_DST cluster has no endpoints",
                );
            }
            Some(Discovery::OriginalDst(original_dst(message, problems)))
        }
    }
}

fn assignment(message: &pb::Cluster, names: bool, problems: &mut Problems) -> Arc<LoadAssignment> {
    let empty = LoadAssignment {
        cluster_name: message.name.as_str().into(),
        localities: Vec::new(),
        overprovisioning_factor: 140,
        weighted_priority_health: false,
    };
    Arc::new(match &message.load_assignment {
        Some(assignment) => endpoint::convert(assignment, names, "load_assignment", problems),
        None => empty,
    })
}

fn original_dst(message: &pb::Cluster, problems: &mut Problems) -> OriginalDst {
    let Some(LbConfig::OriginalDstLbConfig(config)) = &message.lb_config else {
        return OriginalDst::default();
    };
    let path = "original_dst_lb_config";
    hbone::check_metadata_key(config, path, problems);
    let header = if config.use_http_header {
        let name = if config.http_header_name.is_empty() {
            "x-envoy-original-dst-host"
        } else {
            &config.http_header_name
        };
        http::HeaderName::try_from(name).ok().or_else(|| {
            problems.push(format!("{path}.http_header_name"), "is not a header name");
            None
        })
    } else {
        None
    };
    let port_override = config.upstream_port_override.as_ref().and_then(|port| {
        u16::try_from(port.value).ok().or_else(|| {
            problems.push(format!("{path}.upstream_port_override"), "is not a port");
            None
        })
    });
    OriginalDst {
        http_header: header,
        port_override,
    }
}

fn lb_policy(message: &pb::Cluster, problems: &mut Problems) -> Option<LbPolicy> {
    if let Some(policy) = &message.load_balancing_policy {
        return typed_policy(policy, problems);
    }
    match PbPolicy::try_from(message.lb_policy) {
        Ok(PbPolicy::RoundRobin) => Some(LbPolicy::RoundRobin),
        Ok(PbPolicy::Random) => Some(LbPolicy::Random),
        Ok(PbPolicy::ClusterProvided) => Some(LbPolicy::ClusterProvided),
        Ok(PbPolicy::LeastRequest) => {
            let (choices, bias) = match &message.lb_config {
                Some(LbConfig::LeastRequestLbConfig(config)) => {
                    (config.choice_count, config.active_request_bias.as_ref())
                }
                _ => (None, None),
            };
            let choices = choices.as_ref().map(|count| count.value);
            least_request(choices, bias, "least_request_lb_config", problems)
        }
        Ok(PbPolicy::RingHash) => {
            let config = match &message.lb_config {
                Some(LbConfig::RingHashLbConfig(config)) => *config,
                _ => Default::default(),
            };
            ring_hash(
                config.minimum_ring_size.map(|size| size.value),
                config.maximum_ring_size.map(|size| size.value),
                config.hash_function == HashFunctionPb::MurmurHash2 as i32,
                by_hostname(message),
                "ring_hash_lb_config",
                problems,
            )
        }
        Ok(PbPolicy::Maglev) => {
            let size = match &message.lb_config {
                Some(LbConfig::MaglevLbConfig(config)) => config.table_size,
                _ => None,
            };
            let size = size.map(|size| size.value);
            maglev(size, by_hostname(message), "maglev_lb_config", problems)
        }
        Ok(other) => {
            problems.hint(
                "lb_policy",
                format!("{} is not supported", other.as_str_name()),
                "use ROUND_ROBIN, RANDOM, LEAST_REQUEST, RING_HASH or MAGLEV",
            );
            None
        }
        Err(_) => {
            problems.push("lb_policy", "unknown policy");
            None
        }
    }
}

/// The first policy that is known here, as Envoy does.
fn typed_policy(policy: &pb::LoadBalancingPolicy, problems: &mut Problems) -> Option<LbPolicy> {
    for (index, policy) in policy.policies.iter().enumerate() {
        let Some(any) = policy
            .typed_extension_config
            .as_ref()
            .and_then(|config| config.typed_config.as_ref())
        else {
            continue;
        };
        match type_name(any) {
            "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin" => {
                return Some(LbPolicy::RoundRobin);
            }
            client_weights::KIND => return Some(LbPolicy::ClientWeighted),
            "envoy.extensions.load_balancing_policies.random.v3.Random" => {
                return Some(LbPolicy::Random);
            }
            "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest" => {
                let path = format!("load_balancing_policy.policies[{index}]");
                let config: LeastRequest = decode(any, &path, problems)?;
                let choices = config.choice_count.as_ref().map(|count| count.value);
                let bias = config.active_request_bias.as_ref();
                return least_request(choices, bias, &path, problems);
            }
            "envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash" => {
                let path = format!("load_balancing_policy.policies[{index}]");
                let config: RingHash = decode(any, &path, problems)?;
                #[expect(deprecated, reason = "older control planes write it")]
                let by_hostname = config
                    .consistent_hashing_lb_config
                    .as_ref()
                    .map_or(config.use_hostname_for_hashing, |common| {
                        common.use_hostname_for_hashing
                    });
                return ring_hash(
                    config.minimum_ring_size.map(|size| size.value),
                    config.maximum_ring_size.map(|size| size.value),
                    // MURMUR_HASH_2
                    config.hash_function == 2,
                    by_hostname,
                    &path,
                    problems,
                );
            }
            "envoy.extensions.load_balancing_policies.maglev.v3.Maglev" => {
                let path = format!("load_balancing_policy.policies[{index}]");
                let config: Maglev = decode(any, &path, problems)?;
                let by_hostname = config
                    .consistent_hashing_lb_config
                    .as_ref()
                    .is_some_and(|common| common.use_hostname_for_hashing);
                let size = config.table_size.map(|size| size.value);
                return maglev(size, by_hostname, &path, problems);
            }
            _ => {}
        }
    }
    problems.hint(
        "load_balancing_policy",
        "none of the policies is supported yet",
        "use round_robin, random or least_request",
    );
    None
}

fn least_request(
    choice_count: Option<u32>,
    bias: Option<&core::RuntimeDouble>,
    path: &str,
    problems: &mut Problems,
) -> Option<LbPolicy> {
    let choice_count = choice_count.unwrap_or(2);
    if choice_count < 2 {
        problems.push(format!("{path}.choice_count"), "must be 2 at least");
        return None;
    }
    let active_request_bias = bias.map_or(1.0, |bias| bias.default_value);
    if !(active_request_bias >= 0.0 && active_request_bias.is_finite()) {
        let path = format!("{path}.active_request_bias.default_value");
        problems.push(path, "must not be negative");
        return None;
    }
    Some(LbPolicy::LeastRequest {
        choice_count,
        active_request_bias,
    })
}

fn by_hostname(message: &pb::Cluster) -> bool {
    message
        .common_lb_config
        .as_ref()
        .and_then(|common| common.consistent_hashing_lb_config.as_ref())
        .is_some_and(|config| config.use_hostname_for_hashing)
}

/// Envoy's largest ring and table.
const LARGEST_RING: u64 = 8 << 20;
const LARGEST_TABLE: u64 = 5_000_011;

fn ring_hash(
    min: Option<u64>,
    max: Option<u64>,
    murmur2: bool,
    by_hostname: bool,
    path: &str,
    problems: &mut Problems,
) -> Option<LbPolicy> {
    let default = RingSize::default();
    let size = RingSize {
        min: min.unwrap_or(default.min),
        max: max.unwrap_or(default.max),
    };
    if size.min > size.max || size.max > LARGEST_RING {
        problems.push(
            format!("{path}.maximum_ring_size"),
            "must be at least minimum_ring_size, and 8388608 at most",
        );
        return None;
    }
    let function = if murmur2 {
        HashFunction::Murmur2
    } else {
        HashFunction::XxHash
    };
    Some(LbPolicy::RingHash {
        size,
        function,
        by_hostname,
    })
}

fn maglev(
    size: Option<u64>,
    by_hostname: bool,
    path: &str,
    problems: &mut Problems,
) -> Option<LbPolicy> {
    let table_size = size.unwrap_or(maglev::TABLE_SIZE);
    let prime = |n: u64| {
        n > 1
            && (2..)
                .take_while(|d| d * d <= n)
                .all(|d| !n.is_multiple_of(d))
    };
    if table_size > LARGEST_TABLE || !prime(table_size) {
        problems.push(
            format!("{path}.table_size"),
            "must be a prime, 5000011 at most",
        );
        return None;
    }
    Some(LbPolicy::Maglev {
        table_size,
        by_hostname,
    })
}

struct HttpOptions {
    trailers: bool,
    protocol: UpstreamProtocol,
    idle_timeout: Option<Duration>,
    max_requests: Option<u32>,
}

fn http_options(message: &pb::Cluster, problems: &mut Problems) -> HttpOptions {
    let mut common = message.common_http_protocol_options;
    let mut protocol = match &message.http2_protocol_options {
        Some(options) => UpstreamProtocol::Http2(http2(options)),
        None => UpstreamProtocol::Http1,
    };
    let mut trailers = message
        .http_protocol_options
        .as_ref()
        .is_some_and(|http1| http1.enable_trailers);
    for (name, any) in &message.typed_extension_protocol_options {
        let path = format!("typed_extension_protocol_options[{name}]");
        if type_name(any) != HTTP_OPTIONS {
            problems.push(path, format!("{} is not supported yet", type_name(any)));
            continue;
        }
        let Some(options) = decode::<HttpProtocolOptions>(any, &path, problems) else {
            continue;
        };
        common = options.common_http_protocol_options.or(common);
        protocol = match options.upstream_protocol_options {
            Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => {
                match explicit.protocol_config {
                    Some(ProtocolConfig::Http2ProtocolOptions(options)) => {
                        UpstreamProtocol::Http2(http2(&options))
                    }
                    Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                        problems.push(&path, "HTTP/3 is not supported");
                        continue;
                    }
                    Some(ProtocolConfig::HttpProtocolOptions(options)) => {
                        trailers = options.enable_trailers;
                        UpstreamProtocol::Http1
                    }
                    None => UpstreamProtocol::Http1,
                }
            }
            Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(options)) => {
                let http1 = options.http_protocol_options.as_ref();
                trailers = http1.is_some_and(|http1| http1.enable_trailers);
                let options = options.http2_protocol_options.as_ref().map(http2);
                UpstreamProtocol::Downstream(options.unwrap_or_default())
            }
            Some(UpstreamProtocolOptions::AutoConfig(_)) | None => {
                problems.hint(
                    &path,
                    "the upstream protocol is missing or automatic",
                    "set explicit_http_config or use_downstream_protocol_config",
                );
                continue;
            }
        };
    }
    let common = common.unwrap_or_default();
    let max_requests = common
        .max_requests_per_connection
        .as_ref()
        .or(message.max_requests_per_connection.as_ref())
        .map(|value| value.value);
    HttpOptions {
        trailers,
        protocol,
        idle_timeout: timeout(
            common.idle_timeout.as_ref(),
            Some(Duration::from_secs(3600)),
            "common_http_protocol_options.idle_timeout",
            problems,
        ),
        max_requests: max_requests.filter(|max| *max > 0),
    }
}

fn http2(options: &core::Http2ProtocolOptions) -> Http2Options {
    let value = |value: &Option<envoy_types::pb::google::protobuf::UInt32Value>| {
        value.as_ref().map(|value| value.value)
    };
    Http2Options {
        max_concurrent_streams: value(&options.max_concurrent_streams),
        initial_stream_window_bytes: value(&options.initial_stream_window_size),
        initial_connection_window_bytes: value(&options.initial_connection_window_size),
    }
}

fn circuit_breakers(
    message: Option<&pb::CircuitBreakers>,
    problems: &mut Problems,
) -> CircuitBreakers {
    let mut breakers = CircuitBreakers::default();
    for (i, limits) in message
        .iter()
        .flat_map(|message| &message.thresholds)
        .enumerate()
    {
        let thresholds = match core::RoutingPriority::try_from(limits.priority) {
            Ok(core::RoutingPriority::Default) => &mut breakers.default,
            Ok(core::RoutingPriority::High) => &mut breakers.high,
            Err(_) => {
                let path = format!("circuit_breakers.thresholds[{i}].priority");
                problems.push(path, "unknown priority");
                continue;
            }
        };
        let default = Thresholds::default();
        let limit = |value: &Option<envoy_types::pb::google::protobuf::UInt32Value>, default| {
            value.as_ref().map_or(default, |value| value.value)
        };
        *thresholds = Thresholds {
            max_connections: limit(&limits.max_connections, default.max_connections),
            max_pending_requests: limit(&limits.max_pending_requests, default.max_pending_requests),
            max_requests: limit(&limits.max_requests, default.max_requests),
            max_retries: limit(&limits.max_retries, default.max_retries),
            retry_budget: limits.retry_budget.as_ref().map(|budget| RetryBudget {
                percent: budget.budget_percent.map_or(20.0, |percent| percent.value),
                min_concurrency: limit(&budget.min_retry_concurrency, 3),
            }),
            configured: true,
        };
    }
    for (i, limits) in message
        .iter()
        .flat_map(|message| &message.per_host_thresholds)
        .enumerate()
    {
        // Envoy looks at no other priority and at no other limit of these.
        if limits.priority == core::RoutingPriority::Default as i32 {
            let limit = limits.max_connections.as_ref();
            breakers.max_connections_per_endpoint = limit.map(|value| value.value);
        } else {
            let path = format!("circuit_breakers.per_host_thresholds[{i}].priority");
            problems.push(path, "only limits of the default priority have an effect");
        }
    }
    breakers
}

/// Istio's mark for connections of its inbound proxy. Its init container puts it on a pod's
/// loopback interface; here nobody does, and nothing needs the mark.
const ISTIO_SOURCE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6));

fn source_addresses(message: Option<&core::BindConfig>, problems: &mut Problems) -> Arc<[IpAddr]> {
    let Some(message) = message else {
        return Arc::default();
    };
    let extra = message
        .extra_source_addresses
        .iter()
        .enumerate()
        .map(|(i, extra)| (format!("extra_source_addresses[{i}]"), &extra.address));
    std::iter::once(("source_address".to_owned(), &message.source_address))
        .chain(extra)
        .filter_map(|(field, address)| {
            let text = &address.as_ref()?.address;
            let parsed = text.parse();
            if parsed.is_err() {
                problems.push(
                    format!("upstream_bind_config.{field}.address"),
                    format!("{text:?} is not an IP address"),
                );
            }
            parsed.ok().filter(|ip| *ip != ISTIO_SOURCE_V6)
        })
        .collect()
}

/// Filters between us and the endpoint: only those without effect are understood.
fn network_filters(message: &pb::Cluster, problems: &mut Problems) {
    for (i, filter) in message.filters.iter().enumerate() {
        let kind = filter.typed_config.as_ref().map_or("", type_name);
        if !is_one_of(IGNORED_NETWORK_FILTERS, &filter.name, kind) {
            problems.hint(
                format!("filters[{i}]"),
                format!(
                    "upstream network filter {} ({kind}) is not supported",
                    filter.name
                ),
                "a filter that decides about connections is never left out silently",
            );
        }
    }
}

fn keepalive(message: &pb::Cluster, _problems: &mut Problems) -> Option<TcpKeepalive> {
    let options = message
        .upstream_connection_options
        .as_ref()?
        .tcp_keepalive
        .as_ref()?;
    let seconds = |value: &Option<envoy_types::pb::google::protobuf::UInt32Value>| {
        value
            .as_ref()
            .map(|value| Duration::from_secs(value.value.into()))
    };
    Some(TcpKeepalive {
        probes: options.keepalive_probes.as_ref().map(|probes| probes.value),
        time: seconds(&options.keepalive_time),
        interval: seconds(&options.keepalive_interval),
    })
}
