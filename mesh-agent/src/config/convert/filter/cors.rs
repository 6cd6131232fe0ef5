//! `envoy.filters.http.cors`

use envoy_types::pb::envoy::extensions::filters::http::cors::v3 as pb;
use http::HeaderValue;

use crate::config::convert::{Problems, matcher};
use crate::config::model::filter::cors::CorsPolicy;

use super::runtime_fraction;

pub(super) fn convert(message: &pb::CorsPolicy, path: &str, problems: &mut Problems) -> CorsPolicy {
    let allow_origins = message
        .allow_origin_string_match
        .iter()
        .enumerate()
        .filter_map(|(i, origin)| {
            let path = format!("{path}.allow_origin_string_match[{i}]");
            matcher::string(origin, &path, problems)
        })
        .collect();
    let mut value = |text: &str, field: &str| {
        if text.is_empty() {
            return None;
        }
        let value = HeaderValue::from_str(text);
        if value.is_err() {
            problems.push(format!("{path}.{field}"), "is not a header's value");
        }
        value.ok()
    };
    CorsPolicy {
        allow_origins,
        allow_methods: value(&message.allow_methods, "allow_methods"),
        allow_headers: value(&message.allow_headers, "allow_headers"),
        expose_headers: value(&message.expose_headers, "expose_headers"),
        max_age: value(&message.max_age, "max_age"),
        allow_credentials: message.allow_credentials.as_ref().map(|value| value.value),
        allow_private_network: message
            .allow_private_network_access
            .as_ref()
            .map(|value| value.value),
        enabled: runtime_fraction(message.filter_enabled.as_ref()),
        forward_not_matching_preflights: message
            .forward_not_matching_preflights
            .as_ref()
            .map(|value| value.value),
    }
}
