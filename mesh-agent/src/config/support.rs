//! Which fields of which messages are understood.
//!
//! A field that is set and neither understood nor listed as harmless is refused: a configuration
//! never seems to work while part of it is dropped. Messages without an entry are understood
//! whole.

use std::collections::HashMap;
use std::sync::OnceLock;

use prost_reflect::prost::bytes::Bytes;
use prost_reflect::{DynamicMessage, ReflectMessage as _, Value};

use super::descriptors::pool;
use super::error::{Problem, join};

/// Message, fields with effect, fields accepted without effect.
type Entry = (&'static str, &'static str, &'static str);

/// Fields without effect are accepted when dropping them changes no decision about a request:
/// statistics' names, documentation, and telemetry that is configured elsewhere.
const UNDERSTOOD: &[Entry] = &[
    (
        "envoy.config.listener.v3.Listener",
        "name address additional_addresses filter_chains use_original_dst default_filter_chain \
         api_listener listener_filters listener_filters_timeout continue_on_listener_filters_timeout \
         traffic_direction access_log internal_listener",
        "stat_prefix metadata bind_to_port deprecated_v1 connection_balance_config \
         max_connections_to_accept_per_socket_event enable_reuse_port reuse_port tcp_backlog_size per_connection_buffer_limit_bytes drain_type \
         ignore_global_conn_limit transparent freebind",
    ),
    (
        "envoy.config.listener.v3.FilterChain",
        "filter_chain_match filters name transport_socket transport_socket_connect_timeout",
        "metadata",
    ),
    (
        "envoy.config.listener.v3.ListenerFilter",
        "name typed_config filter_disabled",
        "",
    ),
    ("envoy.config.listener.v3.ApiListener", "api_listener", ""),
    ("envoy.config.listener.v3.Filter", "name typed_config", ""),
    (
        "envoy.extensions.filters.network.rbac.v3.RBAC",
        "rules shadow_rules",
        // A connection is judged before its first byte; when it is closed makes no difference.
        "stat_prefix shadow_rules_stat_prefix enforcement_type delay_deny",
    ),
    (
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "cluster weighted_clusters idle_timeout max_connect_attempts access_log hash_policy \
         metadata_match",
        // Entries are written at the end, whatever else is asked for.
        "stat_prefix access_log_options",
    ),
    (
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight",
        "name weight metadata_match",
        "",
    ),
    (
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "codec_type http_filters route_config rds common_http_protocol_options \
         http_protocol_options http2_protocol_options server_name server_header_transformation \
         stream_idle_timeout request_timeout request_headers_timeout drain_timeout delayed_close_timeout \
         max_request_headers_kb use_remote_address xff_num_trusted_hops skip_xff_append \
         generate_request_id preserve_external_request_id always_set_request_id_in_response \
         upgrade_configs normalize_path merge_slashes path_with_escaped_slashes_action \
         forward_client_cert_details set_current_client_cert_details \
         strip_matching_host_port \
         strip_any_host_port strip_trailing_host_dot via internal_address_config access_log \
         append_x_forwarded_port local_reply_config proxy_100_continue",
        "stat_prefix access_log_options tracing \
         request_id_extension stream_error_on_invalid_http_message \
         http1_safe_max_connection_duration",
    ),
    (
        "envoy.config.accesslog.v3.AccessLog",
        "name filter typed_config",
        "",
    ),
    (
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        "path format json_format typed_json_format log_format",
        "",
    ),
    (
        "envoy.config.core.v3.SubstitutionFormatString",
        "text_format text_format_source json_format omit_empty_values formatters",
        // Keys are always sorted.
        "content_type json_format_options",
    ),
    (
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
        "name typed_config is_optional disabled",
        "",
    ),
    (
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.UpgradeConfig",
        "upgrade_type enabled",
        "",
    ),
    (
        "envoy.config.core.v3.HttpProtocolOptions",
        "idle_timeout max_connection_duration max_headers_count max_requests_per_connection \
         max_stream_duration headers_with_underscores_action",
        "",
    ),
    (
        "envoy.config.core.v3.Http1ProtocolOptions",
        "accept_http_10 default_host_for_http_10 enable_trailers",
        "allow_absolute_url",
    ),
    (
        "envoy.config.core.v3.Http2ProtocolOptions",
        "max_concurrent_streams initial_stream_window_size initial_connection_window_size",
        "allow_connect hpack_table_size max_outbound_frames max_outbound_control_frames \
         max_consecutive_inbound_frames_with_empty_payload \
         max_inbound_window_update_frames_per_data_frame_sent",
    ),
    (
        "envoy.config.route.v3.RouteConfiguration",
        "name virtual_hosts response_headers_to_add response_headers_to_remove \
         request_headers_to_add request_headers_to_remove most_specific_header_mutations_wins \
         validate_clusters ignore_port_in_host_matching typed_per_filter_config \
         request_mirror_policies",
        "metadata max_direct_response_body_size_bytes",
    ),
    (
        "envoy.config.route.v3.VirtualHost",
        "name domains routes request_headers_to_add request_headers_to_remove \
         response_headers_to_add response_headers_to_remove require_tls \
         include_request_attempt_count include_attempt_count_in_response retry_policy \
         typed_per_filter_config include_is_timeout_retry_header per_request_buffer_limit_bytes \
         request_body_buffer_limit request_mirror_policies rate_limits",
        "metadata virtual_clusters",
    ),
    (
        "envoy.config.route.v3.Route",
        "name match route redirect direct_response request_headers_to_add \
         request_headers_to_remove response_headers_to_add response_headers_to_remove \
         per_request_buffer_limit_bytes request_body_buffer_limit typed_per_filter_config",
        "metadata decorator stat_prefix tracing",
    ),
    (
        "envoy.config.route.v3.RouteMatch",
        "prefix path safe_regex path_separated_prefix connect_matcher case_sensitive \
         runtime_fraction headers query_parameters cookies grpc tls_context dynamic_metadata \
         path_match_policy",
        "",
    ),
    (
        "envoy.config.route.v3.RouteAction",
        "cluster cluster_header weighted_clusters cluster_not_found_response_code prefix_rewrite \
         regex_rewrite host_rewrite_literal auto_host_rewrite host_rewrite_header \
         append_x_forwarded_host timeout idle_timeout upgrade_configs priority retry_policy hash_policy \
         max_stream_duration max_grpc_timeout request_mirror_policies path_rewrite_policy \
         host_rewrite_path_regex metadata_match rate_limits include_vh_rate_limits \
         internal_redirect_policy path_rewrite host_rewrite",
        "",
    ),
    (
        "envoy.config.route.v3.RouteAction.RequestMirrorPolicy",
        "cluster cluster_header runtime_fraction disable_shadow_host_suffix_append \
         host_rewrite_literal",
        "trace_sampled",
    ),
    (
        "envoy.extensions.filters.http.fault.v3.HTTPFault",
        "delay abort upstream_cluster headers downstream_nodes max_active_faults",
        "delay_percent_runtime abort_percent_runtime delay_duration_runtime \
         abort_http_status_runtime max_active_faults_runtime abort_grpc_status_runtime \
         response_rate_limit_percent_runtime disable_downstream_cluster_stats filter_metadata",
    ),
    (
        "envoy.extensions.filters.http.fault.v3.FaultAbort",
        "percentage http_status grpc_status header_abort",
        "",
    ),
    (
        "envoy.extensions.filters.http.cors.v3.CorsPolicy",
        "allow_origin_string_match allow_methods allow_headers expose_headers max_age \
         allow_credentials filter_enabled allow_private_network_access \
         forward_not_matching_preflights",
        "shadow_enabled",
    ),
    (
        "envoy.extensions.filters.http.rbac.v3.RBAC",
        "rules shadow_rules rules_stat_prefix shadow_rules_stat_prefix",
        "track_per_rule_stats",
    ),
    (
        "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        "providers rules bypass_cors_preflight requirement_map strip_failure_response",
        "stat_prefix",
    ),
    (
        "envoy.extensions.filters.http.jwt_authn.v3.JwtProvider",
        "issuer audiences subjects require_expiration max_lifetime remote_jwks local_jwks forward \
         from_headers from_params from_cookies forward_payload_header pad_forward_payload_header \
         payload_in_metadata normalize_payload_in_metadata header_in_metadata \
         failed_status_in_metadata clock_skew_seconds claim_to_headers clear_route_cache",
        // A cache of verified tokens changes no answer.
        "jwt_cache_config",
    ),
    (
        "envoy.extensions.filters.http.jwt_authn.v3.RemoteJwks",
        "http_uri cache_duration async_fetch",
        "",
    ),
    (
        "envoy.extensions.filters.http.jwt_authn.v3.JwksAsyncFetch",
        "failed_refetch_duration",
        // Keys are fetched when the first request needs them.
        "fast_listener",
    ),
    (
        "envoy.config.core.v3.GrpcService",
        "envoy_grpc timeout initial_metadata",
        "",
    ),
    (
        "envoy.config.core.v3.GrpcService.EnvoyGrpc",
        "cluster_name authority",
        "skip_envoy_headers",
    ),
    (
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
        "grpc_service http_service transport_api_version failure_mode_allow \
         failure_mode_allow_header_add with_request_body clear_route_cache status_on_error \
         validate_mutations metadata_context_namespaces filter_enabled filter_enabled_metadata \
         deny_at_disable allowed_headers disallowed_headers include_tls_session filter_metadata",
        "stat_prefix charge_cluster_response_stats emit_filter_state_stats emit_client_span",
    ),
    (
        "envoy.extensions.filters.http.ext_authz.v3.HttpService",
        "server_uri path_prefix path_override authorization_request authorization_response",
        "",
    ),
    (
        "envoy.extensions.filters.http.ext_authz.v3.AuthorizationRequest",
        "headers_to_add",
        "",
    ),
    (
        "envoy.extensions.filters.http.ext_authz.v3.CheckSettings",
        "context_extensions disable_request_body_buffering with_request_body grpc_service \
         http_service",
        "emit_client_span",
    ),
    (
        "envoy.extensions.common.ratelimit.v3.LocalRateLimitDescriptor",
        "entries token_bucket",
        "",
    ),
    (
        "envoy.extensions.filters.http.ratelimit.v3.RateLimit",
        "domain stage request_type timeout failure_mode_deny rate_limited_as_resource_exhausted \
         rate_limit_service enable_x_ratelimit_headers disable_x_envoy_ratelimited_header \
         rate_limited_status response_headers_to_add status_on_error filter_enabled \
         filter_enforced failure_mode_deny_percent rate_limits",
        "stat_prefix",
    ),
    (
        "envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute",
        "vh_rate_limits rate_limits domain",
        "",
    ),
    (
        "envoy.config.route.v3.RateLimit",
        "stage actions limit hits_addend",
        // A flag of Envoy's runtime that is never set here.
        "disable_key",
    ),
    (
        "envoy.extensions.compression.gzip.compressor.v3.Gzip",
        "compression_level",
        // They trade memory and time for bytes.
        "memory_level compression_strategy window_bits chunk_size",
    ),
    (
        "envoy.extensions.compression.brotli.compressor.v3.Brotli",
        "quality window_bits",
        "encoder_mode input_block_bits chunk_size disable_literal_context_modeling",
    ),
    (
        "envoy.extensions.compression.zstd.compressor.v3.Zstd",
        "compression_level",
        "enable_checksum strategy chunk_size",
    ),
    (
        "envoy.extensions.filters.http.compressor.v3.Compressor.ResponseDirectionConfig",
        "common_config disable_on_etag_header weaken_etag_on_compress \
         remove_accept_encoding_header uncompressible_response_codes",
        "",
    ),
    (
        "envoy.extensions.filters.http.stateful_session.v3.StatefulSession",
        "session_state strict status_on_strict_destination_not_found",
        "stat_prefix",
    ),
    (
        "envoy.config.rbac.v3.RBAC",
        "action policies",
        "audit_logging_options",
    ),
    ("envoy.config.rbac.v3.Policy", "permissions principals", ""),
    (
        "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        "status token_bucket filter_enabled filter_enforced response_headers_to_add \
         request_headers_to_add_when_not_enforced enable_x_ratelimit_headers \
         rate_limited_as_resource_exhausted stage vh_rate_limits descriptors rate_limits \
         always_consume_default_token_bucket",
        "stat_prefix",
    ),
    (
        "envoy.config.route.v3.RetryPolicy",
        "retry_on num_retries per_try_timeout per_try_idle_timeout retry_priority \
         retry_host_predicate host_selection_retry_max_attempts retriable_status_codes \
         retry_back_off rate_limited_retry_back_off retriable_headers retriable_request_headers",
        "",
    ),
    (
        "envoy.config.route.v3.RouteAction.UpgradeConfig",
        "upgrade_type enabled connect_config",
        "",
    ),
    (
        "envoy.config.route.v3.RouteAction.UpgradeConfig.ConnectConfig",
        "",
        "",
    ),
    (
        "envoy.config.route.v3.WeightedCluster",
        "clusters total_weight header_name use_hash_policy",
        "runtime_key_prefix",
    ),
    (
        "envoy.config.route.v3.WeightedCluster.ClusterWeight",
        "name cluster_header weight request_headers_to_add request_headers_to_remove \
         response_headers_to_add response_headers_to_remove host_rewrite_literal metadata_match",
        "",
    ),
    (
        "envoy.config.route.v3.DirectResponseAction",
        "status body",
        "",
    ),
    (
        "envoy.config.cluster.v3.Cluster",
        "name type cluster_type eds_cluster_config connect_timeout lb_policy load_assignment \
         max_requests_per_connection circuit_breakers common_http_protocol_options filters transport_socket transport_socket_matches \
         http2_protocol_options typed_extension_protocol_options dns_refresh_rate \
         respect_dns_ttl dns_lookup_family upstream_bind_config common_lb_config \
         upstream_connection_options close_connections_on_host_health_failure \
         load_balancing_policy round_robin_lb_config original_dst_lb_config least_request_lb_config ring_hash_lb_config maglev_lb_config outlier_detection lb_subset_config health_checks",
        "alt_stat_name metadata per_connection_buffer_limit_bytes wait_for_warm_on_init \
         http_protocol_options cleanup_interval dns_failure_refresh_rate dns_jitter \
         protocol_selection ignore_health_on_host_removal",
    ),
    (
        "envoy.config.cluster.v3.Cluster.LbSubsetConfig",
        "fallback_policy default_subset subset_selectors locality_weight_aware panic_mode_any \
         list_as_any",
        "",
    ),
    (
        "envoy.config.cluster.v3.Cluster.LbSubsetConfig.LbSubsetSelector",
        "keys fallback_policy fallback_keys_subset",
        "",
    ),
    (
        "envoy.config.cluster.v3.Cluster.CommonLbConfig.ConsistentHashingLbConfig",
        "use_hostname_for_hashing",
        "",
    ),
    (
        "envoy.extensions.load_balancing_policies.common.v3.ConsistentHashingLbConfig",
        "use_hostname_for_hashing",
        "",
    ),
    (
        "envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash",
        "hash_function minimum_ring_size maximum_ring_size use_hostname_for_hashing \
         consistent_hashing_lb_config",
        "",
    ),
    (
        "envoy.extensions.load_balancing_policies.maglev.v3.Maglev",
        "table_size consistent_hashing_lb_config",
        "",
    ),
    (
        "envoy.config.cluster.v3.OutlierDetection",
        "consecutive_5xx interval base_ejection_time max_ejection_percent \
         enforcing_consecutive_5xx enforcing_success_rate success_rate_minimum_hosts \
         success_rate_request_volume success_rate_stdev_factor consecutive_gateway_failure \
         enforcing_consecutive_gateway_failure split_external_local_origin_errors \
         consecutive_local_origin_failure enforcing_consecutive_local_origin_failure \
         enforcing_local_origin_success_rate failure_percentage_threshold \
         enforcing_failure_percentage enforcing_failure_percentage_local_origin \
         failure_percentage_minimum_hosts failure_percentage_request_volume max_ejection_time \
         max_ejection_time_jitter always_eject_one_host",
        "successful_active_health_check_uneject_host",
    ),
    (
        "envoy.config.cluster.v3.CircuitBreakers.Thresholds",
        "priority max_connections max_pending_requests max_requests max_retries retry_budget",
        "track_remaining",
    ),
    (
        "envoy.config.cluster.v3.CircuitBreakers",
        "thresholds per_host_thresholds",
        "",
    ),
    (
        "envoy.config.cluster.v3.Cluster.CommonLbConfig",
        "healthy_panic_threshold locality_weighted_lb_config consistent_hashing_lb_config",
        "update_merge_window",
    ),
    (
        "envoy.config.cluster.v3.UpstreamConnectionOptions",
        "tcp_keepalive",
        "",
    ),
    ("envoy.config.cluster.v3.Filter", "name typed_config", ""),
    (
        "envoy.config.core.v3.BindConfig",
        "source_address extra_source_addresses",
        "freebind",
    ),
    ("envoy.config.core.v3.ExtraSourceAddress", "address", ""),
    (
        "envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name endpoints policy",
        "",
    ),
    (
        "envoy.config.endpoint.v3.ClusterLoadAssignment.Policy",
        "overprovisioning_factor weighted_priority_health",
        "",
    ),
    (
        "envoy.config.endpoint.v3.LocalityLbEndpoints",
        "locality lb_endpoints load_balancing_weight priority",
        "metadata proximity",
    ),
    (
        "envoy.config.endpoint.v3.LbEndpoint",
        "endpoint health_status load_balancing_weight",
        "metadata",
    ),
    (
        "envoy.config.endpoint.v3.Endpoint",
        "address hostname health_check_config",
        "observability_name",
    ),
    (
        "envoy.config.endpoint.v3.Endpoint.HealthCheckConfig",
        "port_value hostname disable_active_health_check",
        "",
    ),
    (
        "envoy.config.core.v3.HealthCheck",
        "timeout interval initial_jitter interval_jitter interval_jitter_percent \
         unhealthy_threshold healthy_threshold reuse_connection no_traffic_interval \
         no_traffic_healthy_interval unhealthy_interval unhealthy_edge_interval \
         healthy_edge_interval http_health_check tcp_health_check grpc_health_check \
         custom_health_check",
        "event_log_path event_logger event_service always_log_health_check_failures \
         always_log_health_check_success",
    ),
    (
        "envoy.config.core.v3.HealthCheck.HttpHealthCheck",
        "host path request_headers_to_add request_headers_to_remove expected_statuses \
         retriable_statuses codec_client_type method",
        "response_buffer_size",
    ),
    (
        "envoy.config.core.v3.HealthCheck.TcpHealthCheck",
        "send receive",
        "",
    ),
    (
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "common_http_protocol_options explicit_http_config use_downstream_protocol_config",
        "",
    ),
    (
        "envoy.config.core.v3.TransportSocket",
        "name typed_config",
        "",
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context sni",
        "max_session_keys allow_renegotiation enforce_rsa_key_usage",
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context require_client_certificate",
        "session_ticket_keys disable_stateless_session_resumption \
         disable_stateful_session_resumption session_timeout prefer_client_ciphers",
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext",
        "tls_params tls_certificates tls_certificate_sds_secret_configs alpn_protocols \
         validation_context validation_context_sds_secret_config combined_validation_context",
        "",
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext.\
         CombinedCertificateValidationContext",
        "default_validation_context validation_context_sds_secret_config",
        "",
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.TlsParameters",
        "tls_minimum_protocol_version tls_maximum_protocol_version cipher_suites",
        "ecdh_curves",
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.TlsCertificate",
        "certificate_chain private_key",
        // Files are looked at wherever their links lead.
        "watched_directory",
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext",
        "trusted_ca match_typed_subject_alt_names match_subject_alt_names crl \
         custom_validator_config",
        "watched_directory",
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig",
        "trust_domains",
        "",
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.Secret",
        "name tls_certificate validation_context",
        "",
    ),
    (
        "envoy.config.core.v3.DataSource",
        "filename inline_bytes inline_string",
        "",
    ),
    (
        "envoy.config.core.v3.SocketAddress",
        "address port_value protocol",
        "ipv4_compat",
    ),
    ("envoy.config.core.v3.HeaderValue", "key value", ""),
    (
        "envoy.config.listener.v3.FilterChainMatch",
        "destination_port prefix_ranges server_names transport_protocol application_protocols \
         direct_source_prefix_ranges source_type source_prefix_ranges source_ports",
        "",
    ),
    (
        "envoy.config.cluster.v3.Cluster.OriginalDstLbConfig",
        "use_http_header http_header_name upstream_port_override metadata_key",
        "",
    ),
    (
        "envoy.config.cluster.v3.Cluster.LeastRequestLbConfig",
        "choice_count active_request_bias slow_start_config",
        "",
    ),
    (
        "envoy.config.cluster.v3.Cluster.RoundRobinLbConfig",
        "slow_start_config",
        "",
    ),
    (
        "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest",
        "choice_count active_request_bias slow_start_config",
        "",
    ),
    (
        "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin",
        "slow_start_config",
        "",
    ),
    (
        "envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin",
        "enable_oob_load_report blackout_period weight_expiration_period weight_update_period \
         error_utilization_penalty metric_names_for_computing_utilization",
        // Of reports out of band, which are refused.
        "oob_reporting_period oob_reporting_config",
    ),
    (
        "envoy.extensions.load_balancing_policies.random.v3.Random",
        "",
        "",
    ),
    (
        "envoy.extensions.filters.http.router.v3.Router",
        "",
        "dynamic_stats start_child_span upstream_log upstream_log_options \
         suppress_grpc_request_failure_code_stats",
    ),
];

/// Refuses fields that would be without effect. `bytes` is an encoded message of that name.
pub fn check(message: &str, bytes: Bytes, problems: &mut Vec<Problem>) {
    let Some(descriptor) = pool().get_message_by_name(message) else {
        return;
    };
    match DynamicMessage::decode(descriptor, bytes) {
        Ok(message) => walk(&message, "", problems),
        Err(error) => problems.push(Problem::new("", format!("malformed protobuf: {error}"))),
    }
}

fn table() -> &'static HashMap<&'static str, Vec<&'static str>> {
    static TABLE: OnceLock<HashMap<&'static str, Vec<&'static str>>> = OnceLock::new();
    TABLE.get_or_init(|| {
        UNDERSTOOD
            .iter()
            .map(|(message, effective, harmless)| {
                let fields = effective
                    .split_whitespace()
                    .chain(harmless.split_whitespace())
                    .collect();
                (*message, fields)
            })
            .collect()
    })
}

fn walk(message: &DynamicMessage, path: &str, problems: &mut Vec<Problem>) {
    let descriptor = message.descriptor();
    if descriptor.full_name() == "google.protobuf.Any" {
        return walk_any(message, path, problems);
    }
    let understood = table().get(descriptor.full_name());
    for (field, value) in message.fields() {
        let path = join(path, field.name());
        if understood.is_some_and(|fields| !fields.contains(&field.name())) {
            problems.push(
                Problem::new(path, format!("{} is not supported yet", field.name()))
                    .remedy("remove it: it would be without effect"),
            );
            continue;
        }
        match value {
            Value::Message(inner) => walk(inner, &path, problems),
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    if let Value::Message(inner) = item {
                        walk(inner, &format!("{path}[{index}]"), problems);
                    }
                }
            }
            Value::Map(map) => {
                for (key, item) in map {
                    if let (Value::Message(inner), Some(key)) = (item, key.as_str()) {
                        walk(inner, &format!("{path}[{key}]"), problems);
                    }
                }
            }
            _ => {}
        }
    }
}

fn walk_any(any: &DynamicMessage, path: &str, problems: &mut Vec<Problem>) {
    let (Some(url), Some(value)) = (
        any.get_field_by_name("type_url"),
        any.get_field_by_name("value"),
    ) else {
        return;
    };
    let name = url
        .as_str()
        .and_then(|url| url.rsplit('/').next())
        .unwrap_or_default();
    // An unknown type is for the conversion to judge: it knows whether the extension is optional.
    let Some(descriptor) = pool().get_message_by_name(name) else {
        return;
    };
    let Some(bytes) = value.as_bytes() else {
        return;
    };
    match DynamicMessage::decode(descriptor, bytes.clone()) {
        Ok(inner) => walk(&inner, path, problems),
        Err(error) => problems.push(Problem::new(path, format!("malformed {name}: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_names_real_fields() {
        for (message, effective, harmless) in UNDERSTOOD {
            let descriptor = pool().get_message_by_name(message).expect(message);
            for field in effective
                .split_whitespace()
                .chain(harmless.split_whitespace())
            {
                assert!(
                    descriptor.get_field_by_name(field).is_some(),
                    "{message}.{field}"
                );
            }
        }
    }
}
