//! Request mirrors.

use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3::route_action::RequestMirrorPolicy;
use http::HeaderName;

use crate::config::model::mirror::{Mirror, MirrorCluster};

use super::{Problems, filter};

/// `request_mirror_policies` of a route, a virtual host or a route configuration.
pub(super) fn policies(
    policies: &[RequestMirrorPolicy],
    path: &str,
    problems: &mut Problems,
) -> Arc<[Mirror]> {
    policies
        .iter()
        .enumerate()
        .filter_map(|(i, policy)| {
            let path = crate::config::error::join(path, &format!("request_mirror_policies[{i}]"));
            convert(policy, &path, problems)
        })
        .collect()
}

fn convert(policy: &RequestMirrorPolicy, path: &str, problems: &mut Problems) -> Option<Mirror> {
    let cluster = match (&*policy.cluster, &*policy.cluster_header) {
        ("", "") => {
            problems.push(path, "a cluster is missing: cluster or cluster_header");
            return None;
        }
        (name, "") => MirrorCluster::Cluster(name.into()),
        ("", header) => match HeaderName::try_from(header) {
            Ok(header) => MirrorCluster::Header(header),
            Err(_) => {
                problems.push(format!("{path}.cluster_header"), "is not a header name");
                return None;
            }
        },
        _ => {
            problems.push(path, "only one of cluster and cluster_header may be set");
            return None;
        }
    };
    let host = &policy.host_rewrite_literal;
    Some(Mirror {
        cluster,
        fraction: filter::runtime_fraction(policy.runtime_fraction.as_ref()),
        host_suffix: !policy.disable_shadow_host_suffix_append,
        host_rewrite: (!host.is_empty()).then(|| host.as_str().into()),
    })
}
