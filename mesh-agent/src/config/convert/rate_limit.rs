//! Rate limits of routes and virtual hosts.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::rate_limit::action::ActionSpecifier;
use envoy_types::pb::envoy::config::route::v3::rate_limit::r#override::OverrideSpecifier;
use envoy_types::pb::envoy::config::route::v3::rate_limit::{Action as PbAction, action};
use envoy_types::pb::envoy::r#type::metadata::v3 as metadata;
use envoy_types::pb::envoy::r#type::metadata::v3::metadata_key::path_segment::Segment;
use http::HeaderName;

use crate::config::model::rate_limit::{Action, LimitOverride, MetadataKey, RateLimit};

use super::{Problems, address, matcher};

/// Envoy's highest stage.
const STAGES: u32 = 10;

pub(super) fn convert(
    list: &[pb::RateLimit],
    path: &str,
    problems: &mut Problems,
) -> Vec<RateLimit> {
    list.iter()
        .enumerate()
        .filter_map(|(i, limit)| one(limit, &format!("{path}.rate_limits[{i}]"), problems))
        .collect()
}

fn one(message: &pb::RateLimit, path: &str, problems: &mut Problems) -> Option<RateLimit> {
    let stage = message.stage.as_ref().map_or(0, |stage| stage.value);
    if stage > STAGES {
        problems.push(format!("{path}.stage"), "must be from 0 to 10");
        return None;
    }
    if message.actions.is_empty() {
        problems.push(format!("{path}.actions"), "one at least is needed");
        return None;
    }
    let actions = message
        .actions
        .iter()
        .enumerate()
        .map(|(i, one)| action(one, &format!("{path}.actions[{i}]"), problems))
        .collect::<Option<_>>()?;
    let limit = match message
        .limit
        .as_ref()
        .and_then(|limit| limit.override_specifier.as_ref())
    {
        None => None,
        Some(OverrideSpecifier::DynamicMetadata(key)) => {
            let path = format!("{path}.limit.dynamic_metadata.metadata_key");
            let key = metadata_key(key.metadata_key.as_ref(), &path, problems)?;
            Some(LimitOverride::Metadata(key))
        }
        Some(OverrideSpecifier::RateLimit(limit)) => Some(LimitOverride::Fixed {
            requests_per_unit: limit.requests_per_unit,
            unit: limit.unit,
        }),
    };
    let hits = match &message.hits_addend {
        None => None,
        Some(hits) if hits.format.is_empty() && !hits.is_negative_hits => {
            hits.number.as_ref().map(|number| number.value)
        }
        Some(_) => {
            problems.push(
                format!("{path}.hits_addend"),
                "format and is_negative_hits are not supported",
            );
            return None;
        }
    };
    Some(RateLimit {
        stage,
        actions,
        limit,
        hits,
    })
}

fn action(message: &PbAction, path: &str, problems: &mut Problems) -> Option<Action> {
    let Some(specifier) = &message.action_specifier else {
        problems.push(path, "an action is missing");
        return None;
    };
    let key = |key: &str, default: &str| -> Arc<str> {
        if key.is_empty() { default } else { key }.into()
    };
    Some(match specifier {
        ActionSpecifier::SourceCluster(_) => Action::SourceCluster,
        ActionSpecifier::DestinationCluster(_) => Action::DestinationCluster,
        ActionSpecifier::RemoteAddress(_) => Action::RemoteAddress,
        ActionSpecifier::MaskedRemoteAddress(mask) => {
            let bits = |bits: Option<u32>, most: u8| {
                bits.map_or(Some(most), |bits| {
                    u8::try_from(bits).ok().filter(|bits| *bits <= most)
                })
            };
            let v4 = bits(mask.v4_prefix_mask_len.as_ref().map(|bits| bits.value), 32);
            let v6 = bits(mask.v6_prefix_mask_len.as_ref().map(|bits| bits.value), 128);
            let (Some(v4), Some(v6)) = (v4, v6) else {
                problems.push(format!("{path}.masked_remote_address"), "has too many bits");
                return None;
            };
            Action::MaskedRemoteAddress { v4, v6 }
        }
        ActionSpecifier::RequestHeaders(header) => {
            let Ok(name) = HeaderName::try_from(header.header_name.as_str()) else {
                problems.push(
                    format!("{path}.request_headers.header_name"),
                    "is not a header name",
                );
                return None;
            };
            Action::Header {
                name,
                key: header.descriptor_key.as_str().into(),
                skip_if_absent: header.skip_if_absent,
            }
        }
        ActionSpecifier::QueryParameters(query) => Action::Query {
            name: query.query_parameter_name.as_str().into(),
            key: query.descriptor_key.as_str().into(),
            skip_if_absent: query.skip_if_absent,
        },
        ActionSpecifier::GenericKey(fixed) => Action::Fixed {
            key: key(&fixed.descriptor_key, "generic_key"),
            value: fixed_text(&fixed.descriptor_value, path, problems)?,
        },
        ActionSpecifier::HeaderValueMatch(matched) => Action::HeaderMatch {
            key: key(&matched.descriptor_key, "header_match"),
            value: fixed_text(&matched.descriptor_value, path, problems)?,
            expected: matched
                .expect_match
                .as_ref()
                .is_none_or(|value| value.value),
            headers: matched
                .headers
                .iter()
                .enumerate()
                .map(|(i, header)| {
                    let path = format!("{path}.header_value_match.headers[{i}]");
                    matcher::header(header, &path, problems)
                })
                .collect::<Option<_>>()?,
        },
        ActionSpecifier::QueryParameterValueMatch(matched) => Action::QueryMatch {
            key: key(&matched.descriptor_key, "query_match"),
            value: fixed_text(&matched.descriptor_value, path, problems)?,
            expected: matched
                .expect_match
                .as_ref()
                .is_none_or(|value| value.value),
            parameters: matched
                .query_parameters
                .iter()
                .enumerate()
                .map(|(i, one)| {
                    let at = format!("{path}.query_parameter_value_match.query_parameters[{i}]");
                    matcher::query(one, &at, problems)
                })
                .collect::<Option<_>>()?,
        },
        ActionSpecifier::RemoteAddressMatch(matched) => {
            let ranges = matched.address_matcher.as_ref();
            Action::AddressMatch {
                key: key(&matched.descriptor_key, "remote_address_match"),
                value: fixed_text(&matched.descriptor_value, path, problems)?,
                invert: ranges.is_some_and(|one| one.invert_match),
                ranges: ranges
                    .map_or(&[][..], |one| &one.ranges)
                    .iter()
                    .map(|range| {
                        let at = format!("{path}.remote_address_match.address_matcher.ranges");
                        let range = core::CidrRange {
                            address_prefix: range.address_prefix.clone(),
                            prefix_len: range.prefix_len,
                        };
                        address::range(&range, &at, problems)
                    })
                    .collect::<Option<_>>()?,
            }
        }
        #[expect(deprecated, reason = "older control planes write it")]
        ActionSpecifier::DynamicMetadata(dynamic) => Action::Metadata {
            key: dynamic.descriptor_key.as_str().into(),
            source: metadata_key(
                dynamic.metadata_key.as_ref(),
                &format!("{path}.dynamic_metadata.metadata_key"),
                problems,
            )?,
            default: dynamic.default_value.as_str().into(),
            skip_if_absent: false,
        },
        ActionSpecifier::Metadata(found) => {
            if found.source != action::meta_data::Source::Dynamic as i32 {
                problems.push(
                    format!("{path}.metadata.source"),
                    "only DYNAMIC is supported",
                );
                return None;
            }
            Action::Metadata {
                key: found.descriptor_key.as_str().into(),
                source: metadata_key(
                    found.metadata_key.as_ref(),
                    &format!("{path}.metadata.metadata_key"),
                    problems,
                )?,
                default: found.default_value.as_str().into(),
                skip_if_absent: found.skip_if_absent,
            }
        }
        ActionSpecifier::Extension(extension) => {
            problems.push(
                format!("{path}.extension"),
                format!("{} is not supported", extension.name),
            );
            return None;
        }
    })
}

fn fixed_text(text: &str, path: &str, problems: &mut Problems) -> Option<Arc<str>> {
    if text.is_empty() {
        problems.push(format!("{path}.descriptor_value"), "a value is missing");
        return None;
    }
    if text.contains('%') {
        problems.push(
            format!("{path}.descriptor_value"),
            "command operators are not supported here",
        );
        return None;
    }
    Some(text.into())
}

fn metadata_key(
    message: Option<&metadata::MetadataKey>,
    path: &str,
    problems: &mut Problems,
) -> Option<MetadataKey> {
    let keys = message.map_or(&[][..], |message| &message.path);
    let keys = keys.iter().map(|segment| match segment.segment.as_ref()? {
        Segment::Key(key) => Some(Arc::from(key.as_str())),
        Segment::Index(_) => None,
    });
    match (message, keys.collect::<Option<Vec<_>>>()) {
        (Some(message), Some(path)) if !path.is_empty() => Some(MetadataKey {
            filter: message.key.as_str().into(),
            path,
        }),
        _ => {
            problems.push(path, "needs a key and a path of keys");
            None
        }
    }
}
