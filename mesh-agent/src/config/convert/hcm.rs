//! HTTP connection managers.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::http_protocol_options::HeadersWithUnderscoresAction as UnderscoresAction;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType, ForwardClientCertDetails, PathWithEscapedSlashesAction, RouteSpecifier, ServerHeaderTransformation,
    StripPortMode,
};
use envoy_types::pb::google::protobuf::BoolValue;

use crate::config::model::listener::{
    ClientCert, Codec, EscapedSlashes, ForwardClientCert, HttpConnectionManager, RouteSource,
    ServerHeader, StripPort, Underscores,
};

use super::{Problems, access_log, address, alpn, filter, local_reply, route, timeout};

pub(super) fn convert(
    message: &pb::HttpConnectionManager,
    path: &str,
    problems: &mut Problems,
) -> Option<HttpConnectionManager> {
    let routes = match &message.route_specifier {
        Some(RouteSpecifier::RouteConfig(config)) => {
            route::convert(config, &format!("{path}.route_config"), problems)
                .map(|config| RouteSource::Inline(Arc::new(config)))
        }
        Some(RouteSpecifier::Rds(rds)) if !rds.route_config_name.is_empty() => {
            Some(RouteSource::Rds(rds.route_config_name.as_str().into()))
        }
        Some(RouteSpecifier::Rds(_)) => {
            problems.push(format!("{path}.rds.route_config_name"), "a name is missing");
            None
        }
        _ => {
            problems.push(path, "routes are missing: route_config or rds");
            None
        }
    };
    let common = message.common_http_protocol_options.unwrap_or_default();
    let http1 = message.http_protocol_options.clone().unwrap_or_default();
    let http2 = message.http2_protocol_options.clone().unwrap_or_default();
    let truth = |value: &Option<BoolValue>, default| value.as_ref().map_or(default, |v| v.value);
    let mut time =
        |value: &Option<envoy_types::pb::google::protobuf::Duration>, default, field: &str| {
            timeout(
                value.as_ref(),
                default,
                &format!("{path}.{field}"),
                problems,
            )
        };
    let stream_idle_timeout = time(
        &message.stream_idle_timeout,
        Some(Duration::from_secs(300)),
        "stream_idle_timeout",
    );
    let request_timeout = time(&message.request_timeout, None, "request_timeout");
    let request_headers_timeout = time(
        &message.request_headers_timeout,
        None,
        "request_headers_timeout",
    );
    let drain_timeout = time(
        &message.drain_timeout,
        Some(Duration::from_secs(5)),
        "drain_timeout",
    );
    let delayed_close_timeout = time(
        &message.delayed_close_timeout,
        Some(Duration::from_secs(1)),
        "delayed_close_timeout",
    );
    let idle_timeout = time(
        &common.idle_timeout,
        Some(Duration::from_secs(3600)),
        "common_http_protocol_options.idle_timeout",
    );
    let max_connection_duration = time(
        &common.max_connection_duration,
        None,
        "common_http_protocol_options.max_connection_duration",
    );
    let max_stream_duration = time(
        &common.max_stream_duration,
        None,
        "common_http_protocol_options.max_stream_duration",
    );
    let alpn = alpn::convert(&message.http_filters, path, problems);
    let http_filters = filter::chain(&message.http_filters, path, problems);
    let mut access_logs = access_log::convert(&message.access_log, path, problems);
    let local_reply = message.local_reply_config.as_ref().map(|config| {
        let path = format!("{path}.local_reply_config");
        let logs = Arc::make_mut(&mut access_logs);
        Arc::new(local_reply::convert(config, logs, &path, problems))
    });
    Some(HttpConnectionManager {
        stat_prefix: message.stat_prefix.as_str().into(),
        codec: match CodecType::try_from(message.codec_type) {
            Ok(CodecType::Http1) => Codec::Http1,
            Ok(CodecType::Http2) => Codec::Http2,
            Ok(CodecType::Http3) => {
                problems.push(format!("{path}.codec_type"), "HTTP3 is not supported");
                Codec::Auto
            }
            _ => Codec::Auto,
        },
        routes: routes?,
        server_name: if message.server_name.is_empty() {
            "envoy".into()
        } else {
            message.server_name.as_str().into()
        },
        server_header: match ServerHeaderTransformation::try_from(
            message.server_header_transformation,
        ) {
            Ok(ServerHeaderTransformation::AppendIfAbsent) => ServerHeader::AppendIfAbsent,
            Ok(ServerHeaderTransformation::PassThrough) => ServerHeader::PassThrough,
            _ => ServerHeader::Overwrite,
        },
        use_remote_address: truth(&message.use_remote_address, false),
        skip_xff_append: message.skip_xff_append,
        xff_num_trusted_hops: message.xff_num_trusted_hops,
        internal_networks: message
            .internal_address_config
            .iter()
            .flat_map(|config| &config.cidr_ranges)
            .enumerate()
            .filter_map(|(i, range)| {
                let path = format!("{path}.internal_address_config.cidr_ranges[{i}]");
                address::range(range, &path, problems)
            })
            .collect(),
        generate_request_id: truth(&message.generate_request_id, true),
        preserve_external_request_id: message.preserve_external_request_id,
        always_set_request_id_in_response: message.always_set_request_id_in_response,
        stream_idle_timeout,
        request_timeout,
        request_headers_timeout,
        idle_timeout,
        max_connection_duration,
        max_stream_duration,
        max_requests_per_connection: common
            .max_requests_per_connection
            .as_ref()
            .map(|value| value.value)
            .filter(|value| *value > 0),
        max_request_headers_kib: message
            .max_request_headers_kb
            .as_ref()
            .map_or(60, |value| value.value),
        max_headers_count: common
            .max_headers_count
            .as_ref()
            .map_or(100, |value| value.value),
        underscores: match UnderscoresAction::try_from(common.headers_with_underscores_action) {
            Ok(UnderscoresAction::RejectRequest) => Underscores::Reject,
            Ok(UnderscoresAction::DropHeader) => Underscores::Drop,
            _ => Underscores::Allow,
        },
        strip_trailing_host_dot: message.strip_trailing_host_dot,
        max_concurrent_streams: http2
            .max_concurrent_streams
            .as_ref()
            .map_or(1024, |value| value.value),
        upgrades: message
            .upgrade_configs
            .iter()
            .filter(|upgrade| truth(&upgrade.enabled, true))
            .map(|upgrade| upgrade.upgrade_type.to_ascii_lowercase().into())
            .collect(),
        normalize_path: truth(&message.normalize_path, false),
        merge_slashes: message.merge_slashes,
        client_cert: client_cert(message),
        escaped_slashes: match PathWithEscapedSlashesAction::try_from(
            message.path_with_escaped_slashes_action,
        ) {
            Ok(PathWithEscapedSlashesAction::RejectRequest) => EscapedSlashes::Reject,
            Ok(PathWithEscapedSlashesAction::UnescapeAndRedirect) => {
                EscapedSlashes::UnescapeAndRedirect
            }
            Ok(PathWithEscapedSlashesAction::UnescapeAndForward) => {
                EscapedSlashes::UnescapeAndForward
            }
            _ => EscapedSlashes::Keep,
        },
        strip_port: match (&message.strip_port_mode, message.strip_matching_host_port) {
            (Some(StripPortMode::StripAnyHostPort(true)), _) => StripPort::Any,
            (_, true) => StripPort::Matching,
            _ => StripPort::No,
        },
        accept_http_10: http1.accept_http_10,
        default_host_for_http_10: (!http1.default_host_for_http_10.is_empty())
            .then(|| http1.default_host_for_http_10.as_str().into()),
        via: (!message.via.is_empty()).then(|| message.via.as_str().into()),
        drain_timeout: drain_timeout.unwrap_or_default(),
        delayed_close_timeout,
        http_filters,
        alpn,
        access_logs,
        local_reply,
        append_x_forwarded_port: message.append_x_forwarded_port,
        proxy_100_continue: message.proxy_100_continue,
        trailers: http1.enable_trailers,
    })
}

fn client_cert(message: &pb::HttpConnectionManager) -> ClientCert {
    let details = message.set_current_client_cert_details.unwrap_or_default();
    let forward = match ForwardClientCertDetails::try_from(message.forward_client_cert_details) {
        Ok(ForwardClientCertDetails::ForwardOnly) => ForwardClientCert::ForwardOnly,
        Ok(ForwardClientCertDetails::AppendForward) => ForwardClientCert::AppendForward,
        Ok(ForwardClientCertDetails::SanitizeSet) => ForwardClientCert::SanitizeSet,
        Ok(ForwardClientCertDetails::AlwaysForwardOnly) => ForwardClientCert::AlwaysForwardOnly,
        _ => ForwardClientCert::Sanitize,
    };
    ClientCert {
        forward,
        subject: details.subject.as_ref().is_some_and(|value| value.value),
        cert: details.cert,
        chain: details.chain,
        dns: details.dns,
        uri: details.uri,
    }
}
