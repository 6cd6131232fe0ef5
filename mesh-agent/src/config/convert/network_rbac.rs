//! `envoy.filters.network.rbac`

use envoy_types::pb::envoy::extensions::filters::network::rbac::v3 as pb;

use crate::config::model::filter::rbac::{Rbac, Rule};

use super::Problems;
use super::filter::rbac::rules;

/// The filter of a chain.
pub(super) fn convert(message: &pb::Rbac, path: &str, problems: &mut Problems) -> Option<Rbac> {
    let rbac = Rbac {
        rules: match &message.rules {
            Some(message) => Some(rules(message, &format!("{path}.rules"), problems)?),
            None => None,
        },
        shadow: match &message.shadow_rules {
            Some(message) => Some(rules(message, &format!("{path}.shadow_rules"), problems)?),
            None => None,
        },
        rules_prefix: message.stat_prefix.clone(),
        shadow_prefix: message.shadow_rules_stat_prefix.clone(),
    };
    for (name, policy) in rbac.rules.iter().flat_map(|rules| &rules.policies) {
        // As Envoy: a connection has no headers, and a rule that never holds is a mistake.
        if policy
            .permissions
            .iter()
            .chain(&policy.principals)
            .any(asks_for_headers)
        {
            let path = format!("{path}.rules.policies[{name}]");
            problems.push(path, "a rule on headers or paths: connections have none");
            return None;
        }
    }
    Some(rbac)
}

fn asks_for_headers(rule: &Rule) -> bool {
    match rule {
        Rule::All(rules) | Rule::Any(rules) => rules.iter().any(asks_for_headers),
        Rule::Not(rule) => asks_for_headers(rule),
        Rule::Header(_) | Rule::Path(_) => true,
        _ => false,
    }
}
