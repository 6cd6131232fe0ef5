//! `envoy.filters.http.ext_authz`

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::check_settings::ServiceOverride;
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::ext_authz::Services;
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::ext_authz_per_route::Override;
use envoy_types::pb::envoy::r#type::matcher::v3::ListStringMatcher;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value};
use http::{HeaderName, StatusCode};

use crate::config::convert::{Problems, matcher};
use crate::config::model::filter::FilterOverride;
use crate::config::model::filter::ext_authz::{
    BodySettings, CacheSettings, CheckSettings, ExtAuthz, HttpService, Kept, Service,
};
use crate::config::model::matcher::StringMatcher;

use super::{runtime_fraction, service};

/// How many answers are kept unless configured.
const MAX_ENTRIES: usize = 10_000;
/// What `filter_metadata` is understood of.
const CACHE: &str = "check_cache";

pub(super) fn convert(
    message: &pb::ExtAuthz,
    path: &str,
    problems: &mut Problems,
) -> Option<ExtAuthz> {
    let service = match &message.services {
        Some(Services::GrpcService(grpc)) => Service::Grpc(service::grpc(
            grpc,
            &format!("{path}.grpc_service"),
            problems,
        )?),
        Some(Services::HttpService(http)) => Service::Http(http_service(
            http,
            &format!("{path}.http_service"),
            problems,
        )?),
        None => {
            problems.push(path, "a service is missing: grpc_service or http_service");
            return None;
        }
    };
    let body = match &message.with_request_body {
        Some(settings) => Some(body(
            settings,
            &format!("{path}.with_request_body"),
            problems,
        )?),
        None => None,
    };
    let enabled_metadata = match &message.filter_enabled_metadata {
        Some(one) => Some(matcher::metadata(
            one,
            &format!("{path}.filter_enabled_metadata"),
            problems,
        )?),
        None => None,
    };
    let allowed = message.allowed_headers.as_ref();
    Some(ExtAuthz {
        service,
        failure_mode_allow: message.failure_mode_allow,
        failure_mode_allow_header_add: message.failure_mode_allow_header_add,
        body,
        clear_route_cache: message.clear_route_cache,
        status_on_error: message
            .status_on_error
            .as_ref()
            .and_then(|status| StatusCode::from_u16(u16::try_from(status.code).ok()?).ok())
            .unwrap_or(StatusCode::FORBIDDEN),
        validate_mutations: message.validate_mutations,
        metadata_namespaces: message
            .metadata_context_namespaces
            .iter()
            .map(|name| name.as_str().into())
            .collect(),
        enabled: runtime_fraction(message.filter_enabled.as_ref()),
        enabled_metadata,
        deny_at_disable: message
            .deny_at_disable
            .as_ref()
            .and_then(|flag| flag.default_value.as_ref())
            .is_some_and(|value| value.value),
        allowed_headers: match allowed {
            Some(list) => Some(strings(
                Some(list),
                &format!("{path}.allowed_headers"),
                problems,
            )?),
            None => None,
        },
        disallowed_headers: strings(
            message.disallowed_headers.as_ref(),
            &format!("{path}.disallowed_headers"),
            problems,
        )?,
        include_tls_session: message.include_tls_session,
        cache: match &message.filter_metadata {
            Some(metadata) => cache(metadata, &format!("{path}.filter_metadata"), problems)?,
            None => None,
        },
        decisions: Kept::default(),
    })
}

pub(super) fn per_route(
    message: &pb::ExtAuthzPerRoute,
    path: &str,
    problems: &mut Problems,
) -> Option<FilterOverride> {
    let settings = match &message.r#override {
        Some(Override::Disabled(true)) => return Some(FilterOverride::Disabled),
        Some(Override::CheckSettings(settings)) => settings,
        Some(Override::Disabled(false)) | None => {
            problems.push(path, "says nothing: disabled: true, or check_settings");
            return None;
        }
    };
    let path = format!("{path}.check_settings");
    let body = match &settings.with_request_body {
        Some(settings) => Some(body(
            settings,
            &format!("{path}.with_request_body"),
            problems,
        )?),
        None => None,
    };
    if body.is_some() && settings.disable_request_body_buffering {
        problems.push(
            &path,
            "with_request_body and disable_request_body_buffering contradict each other",
        );
        return None;
    }
    let service = match &settings.service_override {
        None => None,
        Some(ServiceOverride::GrpcService(grpc)) => Some(Service::Grpc(service::grpc(
            grpc,
            &format!("{path}.grpc_service"),
            problems,
        )?)),
        Some(ServiceOverride::HttpService(http)) => Some(Service::Http(http_service(
            http,
            &format!("{path}.http_service"),
            problems,
        )?)),
    };
    let extensions = settings.context_extensions.iter();
    Some(FilterOverride::ExtAuthz(Arc::new(CheckSettings {
        context_extensions: extensions.map(|(k, v)| (k.clone(), v.clone())).collect(),
        without_body: settings.disable_request_body_buffering,
        body,
        service,
    })))
}

fn body(message: &pb::BufferSettings, path: &str, problems: &mut Problems) -> Option<BodySettings> {
    if message.max_request_bytes == 0 {
        problems.push(format!("{path}.max_request_bytes"), "must be 1 at least");
        return None;
    }
    Some(BodySettings {
        max_bytes: message.max_request_bytes as usize,
        allow_partial: message.allow_partial_message,
        pack_as_bytes: message.pack_as_bytes,
    })
}

fn http_service(
    message: &pb::HttpService,
    path: &str,
    problems: &mut Problems,
) -> Option<Arc<HttpService>> {
    let request = message.authorization_request.clone().unwrap_or_default();
    let response = message.authorization_response.clone().unwrap_or_default();
    if !message.path_prefix.is_empty() && !message.path_prefix.starts_with('/') {
        problems.push(format!("{path}.path_prefix"), "must begin with a slash");
        return None;
    }
    if !message.path_override.is_empty() && !message.path_override.starts_with('/') {
        problems.push(format!("{path}.path_override"), "must begin with a slash");
        return None;
    }
    let mut list = |list: Option<&ListStringMatcher>, field: &str| {
        let path = format!("{path}.authorization_response.{field}");
        strings(list, &path, problems)
    };
    let upstream = list(
        response.allowed_upstream_headers.as_ref(),
        "allowed_upstream_headers",
    )?;
    let upstream_append = list(
        response.allowed_upstream_headers_to_append.as_ref(),
        "allowed_upstream_headers_to_append",
    )?;
    let client = list(
        response.allowed_client_headers.as_ref(),
        "allowed_client_headers",
    )?;
    let client_on_success = list(
        response.allowed_client_headers_on_success.as_ref(),
        "allowed_client_headers_on_success",
    )?;
    let metadata = list(
        response.dynamic_metadata_from_headers.as_ref(),
        "dynamic_metadata_from_headers",
    )?;
    Some(Arc::new(HttpService {
        uri: service::http_uri(
            message.server_uri.as_ref(),
            &format!("{path}.server_uri"),
            problems,
        )?,
        path_prefix: message.path_prefix.clone(),
        path_override: message.path_override.clone(),
        headers_to_add: service::plain_headers(
            &request.headers_to_add,
            &format!("{path}.authorization_request.headers_to_add"),
            problems,
        ),
        upstream,
        upstream_append,
        client,
        client_on_success,
        metadata,
    }))
}

fn strings(
    list: Option<&ListStringMatcher>,
    path: &str,
    problems: &mut Problems,
) -> Option<Vec<StringMatcher>> {
    let patterns = list.map_or(&[][..], |list| &list.patterns);
    patterns
        .iter()
        .enumerate()
        .map(|(i, one)| matcher::string(one, &format!("{path}.patterns[{i}]"), problems))
        .collect()
}

fn cache(
    metadata: &Struct,
    path: &str,
    problems: &mut Problems,
) -> Option<Option<Arc<CacheSettings>>> {
    let Some(Kind::StructValue(settings)) = metadata.fields.get(CACHE).and_then(kind) else {
        return Some(None);
    };
    let path = format!("{path}.{CACHE}");
    let mut converted = CacheSettings {
        positive: Duration::ZERO,
        negative: Duration::ZERO,
        max_entries: MAX_ENTRIES,
        headers: None,
    };
    for (field, value) in &settings.fields {
        let understood = match field.as_str() {
            "positive_ttl" => time(value).map(|time| converted.positive = time),
            "negative_ttl" => time(value).map(|time| converted.negative = time),
            "max_entries" => match kind(value) {
                Some(Kind::NumberValue(number)) if *number >= 1.0 => {
                    converted.max_entries = *number as usize;
                    Some(())
                }
                _ => None,
            },
            "headers" => names(value).map(|names| converted.headers = Some(names)),
            _ => None,
        };
        if understood.is_none() {
            problems.hint(
                format!("{path}.{field}"),
                "is not understood",
                "positive_ttl and negative_ttl such as 1.5s, max_entries, headers (a list of names)",
            );
            return None;
        }
    }
    Some(Some(Arc::new(converted)))
}

fn kind(value: &Value) -> Option<&Kind> {
    value.kind.as_ref()
}

/// Seconds with an `s`, as protobuf's JSON has them.
fn time(value: &Value) -> Option<Duration> {
    let Some(Kind::StringValue(text)) = kind(value) else {
        return None;
    };
    Duration::try_from_secs_f64(text.strip_suffix('s')?.parse().ok()?).ok()
}

fn names(value: &Value) -> Option<Vec<HeaderName>> {
    let Some(Kind::ListValue(list)) = kind(value) else {
        return None;
    };
    let names = list.values.iter().map(|one| match kind(one) {
        Some(Kind::StringValue(name)) => HeaderName::try_from(name).ok(),
        _ => None,
    });
    names.collect()
}
