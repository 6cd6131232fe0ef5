//! HTTP filters and what routes say of them.

mod compressor;
mod cors;
mod ext_authz;
mod fault;
mod jwt;
mod local_rate_limit;
mod rate_limit;
pub(super) mod rbac;
mod service;
mod stateful_session;

use std::collections::HashMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3::FilterConfig;
use envoy_types::pb::envoy::extensions::filters::http::buffer::v3 as buffer;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use envoy_types::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use envoy_types::pb::google::protobuf::Any;

use crate::config::model::Fraction;
use crate::config::model::filter::{FilterOverride, HttpFilter, HttpFilterKind, Overrides};

use super::{Problems, decode, is_one_of, type_name, typed_struct};

const ROUTER: &[&str] = &[
    "envoy.extensions.filters.http.router.v3.Router",
    "envoy.filters.http.router",
];

/// HTTP filters accepted without effect: telemetry of others.
pub(super) const IGNORED: &[&str] = &[
    "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
    "istio.metadata_exchange",
    "istio.peer_metadata",
    "istio.stats",
    "istio.alpn",
    "envoy.filters.http.grpc_stats",
];

const FAULT: &str = "envoy.extensions.filters.http.fault.v3.HTTPFault";
const CORS: &str = "envoy.extensions.filters.http.cors.v3.Cors";
const CORS_POLICY: &str = "envoy.extensions.filters.http.cors.v3.CorsPolicy";
const RBAC: &str = "envoy.extensions.filters.http.rbac.v3.RBAC";
const RBAC_PER_ROUTE: &str = "envoy.extensions.filters.http.rbac.v3.RBACPerRoute";
const LOCAL_RATE_LIMIT: &str = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
const JWT: &str = "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication";
const JWT_PER_ROUTE: &str = "envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig";
const EXT_AUTHZ: &str = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz";
const EXT_AUTHZ_PER_ROUTE: &str = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute";
const RATE_LIMIT: &str = "envoy.extensions.filters.http.ratelimit.v3.RateLimit";
const RATE_LIMIT_PER_ROUTE: &str = "envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute";
const COMPRESSOR: &str = "envoy.extensions.filters.http.compressor.v3.Compressor";
const COMPRESSOR_PER_ROUTE: &str = "envoy.extensions.filters.http.compressor.v3.CompressorPerRoute";
const STATEFUL_SESSION: &str = "envoy.extensions.filters.http.stateful_session.v3.StatefulSession";
const STATEFUL_SESSION_PER_ROUTE: &str =
    "envoy.extensions.filters.http.stateful_session.v3.StatefulSessionPerRoute";
const BUFFER: &str = "envoy.extensions.filters.http.buffer.v3.Buffer";
const BUFFER_PER_ROUTE: &str = "envoy.extensions.filters.http.buffer.v3.BufferPerRoute";
const FILTER_CONFIG: &str = "envoy.config.route.v3.FilterConfig";

/// The filters of a connection manager, without the router.
pub(super) fn chain(
    filters: &[pb::HttpFilter],
    path: &str,
    problems: &mut Problems,
) -> Vec<HttpFilter> {
    let mut known = Vec::new();
    let mut routed = false;
    for (i, filter) in filters.iter().enumerate() {
        let path = format!("{path}.http_filters[{i}]");
        let any = match &filter.config_type {
            Some(ConfigType::TypedConfig(any)) => Some(any),
            _ => None,
        };
        let kind = any.map_or("", type_name);
        if routed {
            problems.push(&path, "stands behind the router, which ends the chain");
            continue;
        }
        if is_one_of(ROUTER, &filter.name, kind) {
            routed = true;
            continue;
        }
        if is_one_of(IGNORED, &filter.name, kind) {
            continue;
        }
        let converted =
            any.and_then(|any| self::filter(any, &format!("{path}.typed_config"), problems));
        match converted {
            Some(kind) => known.push(HttpFilter {
                name: filter.name.as_str().into(),
                disabled: filter.disabled,
                kind,
            }),
            None if is_known(kind) => {}
            None => unsupported(filter, kind, &path, problems),
        }
    }
    if !routed {
        problems.hint(
            format!("{path}.http_filters"),
            "the router is missing",
            "end the list with envoy.filters.http.router",
        );
    }
    known
}

/// Whether a problem of such a filter is told by its own conversion.
fn is_known(kind: &str) -> bool {
    matches!(
        kind,
        FAULT
            | CORS
            | RBAC
            | LOCAL_RATE_LIMIT
            | BUFFER
            | JWT
            | EXT_AUTHZ
            | RATE_LIMIT
            | COMPRESSOR
            | STATEFUL_SESSION
    )
}

/// Whether a filter says who may do what, as far as its name and its types tell: such a one is
/// never left out, optional or not.
fn decides_about_access(filter: &pb::HttpFilter, kind: &str) -> bool {
    let discovered = match &filter.config_type {
        Some(ConfigType::ConfigDiscovery(source)) => source.type_urls.as_slice(),
        _ => &[],
    };
    let loose = match &filter.config_type {
        Some(ConfigType::TypedConfig(any)) => typed_struct(&any.type_url, &any.value),
        _ => None,
    };
    let loose = loose.map(|(url, _)| url);
    let names = [&*filter.name, kind, loose.as_deref().unwrap_or_default()];
    let mut names = names.into_iter().chain(discovered.iter().map(|url| &**url));
    let parts = ["rbac", "auth", "jwt", "csrf"];
    names.any(|name| {
        let name = name.to_ascii_lowercase();
        parts.iter().any(|part| name.contains(part))
    })
}

/// Why a filter will not be supported either.
fn never(kind: &str) -> Option<&'static str> {
    Some(match kind.rsplit(".http.").next()?.split('.').next()? {
        "lua" => "scripts do not run in the agent",
        "wasm" => "modules do not run in the agent",
        "grpc_json_transcoder" => "JSON is not translated to gRPC",
        _ => return None,
    })
}

fn unsupported(filter: &pb::HttpFilter, kind: &str, path: &str, problems: &mut Problems) {
    if let Some(reason) = never(kind).filter(|_| !filter.is_optional) {
        problems.hint(
            path,
            format!("HTTP filter {} ({kind}): {reason}", filter.name),
            "remove it, or mark it is_optional if requests may pass without it",
        );
    } else if !filter.is_optional {
        problems.hint(
            path,
            format!("HTTP filter {} ({kind}) is not supported yet", filter.name),
            "remove it, or mark it is_optional if requests may pass without it",
        );
    } else if decides_about_access(filter, kind) {
        problems.push(
            path,
            format!(
                "HTTP filter {} decides about access and is not supported yet",
                filter.name
            ),
        );
    }
}

fn filter(any: &Any, path: &str, problems: &mut Problems) -> Option<HttpFilterKind> {
    Some(match type_name(any) {
        FAULT => HttpFilterKind::Fault(Arc::new(fault::convert(
            &decode(any, path, problems)?,
            path,
            problems,
        ))),
        CORS => HttpFilterKind::Cors,
        RBAC => HttpFilterKind::Rbac(Arc::new(rbac::convert(
            &decode(any, path, problems)?,
            path,
            problems,
        )?)),
        LOCAL_RATE_LIMIT => HttpFilterKind::LocalRateLimit(Arc::new(local_rate_limit::convert(
            &decode(any, path, problems)?,
            path,
            problems,
        )?)),
        JWT => HttpFilterKind::Jwt(Arc::new(jwt::convert(
            &decode(any, path, problems)?,
            path,
            problems,
        )?)),
        EXT_AUTHZ => HttpFilterKind::ExtAuthz(Arc::new(ext_authz::convert(
            &decode(any, path, problems)?,
            path,
            problems,
        )?)),
        RATE_LIMIT => HttpFilterKind::RateLimit(Arc::new(rate_limit::convert(
            &decode(any, path, problems)?,
            path,
            problems,
        )?)),
        COMPRESSOR => HttpFilterKind::Compressor(Arc::new(compressor::convert(
            &decode(any, path, problems)?,
            path,
            problems,
        )?)),
        STATEFUL_SESSION => HttpFilterKind::StatefulSession(Arc::new(stateful_session::convert(
            &decode(any, path, problems)?,
            path,
            problems,
        )?)),
        BUFFER => {
            HttpFilterKind::Buffer(buffer_limit(&decode(any, path, problems)?, path, problems)?)
        }
        _ => return None,
    })
}

/// `typed_per_filter_config` of a route, a virtual host or a route configuration.
pub(super) fn overrides(
    map: &HashMap<String, Any>,
    path: &str,
    problems: &mut Problems,
) -> Overrides {
    let mut overrides: Vec<_> = map
        .iter()
        .filter_map(|(name, any)| {
            let path = format!("{path}.typed_per_filter_config[{name}]");
            let said = wrapped(name, any, &path, problems)?;
            Some((name.as_str().into(), said))
        })
        .collect();
    overrides.sort_by(|(a, _): &(Arc<str>, _), (b, _)| a.cmp(b));
    Overrides(overrides)
}

/// An override that may stand in a `FilterConfig`.
fn wrapped(name: &str, any: &Any, path: &str, problems: &mut Problems) -> Option<FilterOverride> {
    if type_name(any) != FILTER_CONFIG {
        return override_of(name, any, false, path, problems);
    }
    let config: FilterConfig = decode(any, path, problems)?;
    if config.disabled {
        return Some(FilterOverride::Disabled);
    }
    match &config.config {
        Some(any) => override_of(name, any, config.is_optional, path, problems),
        None => Some(FilterOverride::Enabled),
    }
}

fn override_of(
    name: &str,
    any: &Any,
    optional: bool,
    path: &str,
    problems: &mut Problems,
) -> Option<FilterOverride> {
    Some(match type_name(any) {
        FAULT => FilterOverride::Fault(Arc::new(fault::convert(
            &decode(any, path, problems)?,
            path,
            problems,
        ))),
        CORS_POLICY => FilterOverride::Cors(Arc::new(cors::convert(
            &decode(any, path, problems)?,
            path,
            problems,
        ))),
        CORS => FilterOverride::Enabled,
        RBAC_PER_ROUTE => rbac::per_route(&decode(any, path, problems)?, path, problems)?,
        LOCAL_RATE_LIMIT => FilterOverride::LocalRateLimit(Arc::new(local_rate_limit::convert(
            &decode(any, path, problems)?,
            path,
            problems,
        )?)),
        JWT_PER_ROUTE => jwt::per_route(&decode(any, path, problems)?, path, problems)?,
        EXT_AUTHZ_PER_ROUTE => ext_authz::per_route(&decode(any, path, problems)?, path, problems)?,
        RATE_LIMIT_PER_ROUTE => {
            rate_limit::per_route(&decode(any, path, problems)?, path, problems)
        }
        COMPRESSOR_PER_ROUTE => {
            compressor::per_route(&decode(any, path, problems)?, path, problems)?
        }
        STATEFUL_SESSION_PER_ROUTE => {
            stateful_session::per_route(&decode(any, path, problems)?, path, problems)?
        }
        BUFFER_PER_ROUTE => {
            let config: buffer::BufferPerRoute = decode(any, path, problems)?;
            match &config.r#override {
                Some(buffer::buffer_per_route::Override::Disabled(_)) => FilterOverride::Disabled,
                Some(buffer::buffer_per_route::Override::Buffer(config)) => {
                    FilterOverride::Buffer(buffer_limit(config, path, problems)?)
                }
                None => FilterOverride::Enabled,
            }
        }
        kind if is_one_of(IGNORED, name, kind) || optional => return None,
        kind => {
            problems.hint(
                path,
                format!("{kind} is not supported yet"),
                "remove it: it would be without effect",
            );
            return None;
        }
    })
}

fn buffer_limit(config: &buffer::Buffer, path: &str, problems: &mut Problems) -> Option<usize> {
    match config.max_request_bytes.as_ref().map(|limit| limit.value) {
        Some(limit @ 1..) => Some(limit as usize),
        _ => {
            problems.push(format!("{path}.max_request_bytes"), "must be 1 at least");
            None
        }
    }
}

/// A percentage; nothing is 0 %.
pub(super) fn fraction(message: Option<&FractionalPercent>) -> Fraction {
    let message = message.copied().unwrap_or_default();
    Fraction {
        numerator: message.numerator,
        denominator: match DenominatorType::try_from(message.denominator) {
            Ok(DenominatorType::TenThousand) => 10_000,
            Ok(DenominatorType::Million) => 1_000_000,
            _ => 100,
        },
    }
}

/// A percentage that runtime could change elsewhere; nothing is 100 %.
pub(super) fn runtime_fraction(
    message: Option<&envoy_types::pb::envoy::config::core::v3::RuntimeFractionalPercent>,
) -> Fraction {
    match message {
        Some(message) => fraction(message.default_value.as_ref()),
        None => Fraction::ALWAYS,
    }
}

#[cfg(test)]
mod tests;
