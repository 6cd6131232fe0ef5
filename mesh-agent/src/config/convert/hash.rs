//! Hash policies of routes.

use envoy_types::pb::envoy::config::route::v3::route_action as pb;
use envoy_types::pb::envoy::config::route::v3::route_action::hash_policy::PolicySpecifier;
use http::HeaderName;

use crate::config::model::hash::{CookieHash, HashPolicy, HashSource};

use super::{Problems, duration, route};

pub(super) fn policies(
    list: &[pb::HashPolicy],
    path: &str,
    problems: &mut Problems,
) -> Vec<HashPolicy> {
    list.iter()
        .enumerate()
        .filter_map(|(i, policy)| {
            let path = format!("{path}.hash_policy[{i}]");
            Some(HashPolicy {
                source: source(policy, &path, problems)?,
                terminal: policy.terminal,
            })
        })
        .collect()
}

fn source(policy: &pb::HashPolicy, path: &str, problems: &mut Problems) -> Option<HashSource> {
    match &policy.policy_specifier {
        Some(PolicySpecifier::Header(header)) => {
            let Ok(name) = HeaderName::try_from(header.header_name.as_str()) else {
                problems.push(format!("{path}.header.header_name"), "is not a header name");
                return None;
            };
            let rewrite = match &header.regex_rewrite {
                Some(rewrite) => {
                    let path = format!("{path}.header.regex_rewrite");
                    Some(route::regex_rewrite(rewrite, &path, problems)?)
                }
                None => None,
            };
            Some(HashSource::Header { name, rewrite })
        }
        Some(PolicySpecifier::Cookie(cookie)) => Some(HashSource::Cookie(CookieHash {
            name: cookie.name.as_str().into(),
            ttl: cookie
                .ttl
                .as_ref()
                .map(|ttl| duration(ttl, &format!("{path}.cookie.ttl"), problems)),
            path: cookie.path.as_str().into(),
            attributes: cookie
                .attributes
                .iter()
                .map(|one| (one.name.as_str().into(), one.value.as_str().into()))
                .collect(),
        })),
        Some(PolicySpecifier::ConnectionProperties(properties)) if properties.source_ip => {
            Some(HashSource::SourceIp)
        }
        // Nothing of the connection is asked for.
        Some(PolicySpecifier::ConnectionProperties(_)) => None,
        Some(PolicySpecifier::QueryParameter(query)) => {
            Some(HashSource::Query(query.name.as_str().into()))
        }
        Some(PolicySpecifier::FilterState(_)) => {
            problems.push(format!("{path}.filter_state"), "is not supported");
            None
        }
        None => {
            problems.push(path, "what is hashed is missing");
            None
        }
    }
}
