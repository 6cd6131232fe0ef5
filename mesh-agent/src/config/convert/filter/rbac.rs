//! `envoy.filters.http.rbac`

use std::sync::Arc;

use envoy_types::pb::envoy::config::rbac::v3 as pb;
use envoy_types::pb::envoy::config::rbac::v3::permission::Rule as Permitted;
use envoy_types::pb::envoy::config::rbac::v3::principal::Identifier;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3 as filter;
use envoy_types::pb::envoy::r#type::matcher::v3::{
    FilterStateMatcher, PathMatcher, filter_state_matcher, path_matcher,
};

use crate::config::convert::{Problems, address, matcher};
use crate::config::model::Name;
use crate::config::model::filter::FilterOverride;
use crate::config::model::filter::rbac::{Action, Policy, Rbac, Rule, Rules};
use crate::config::model::hbone::PEER_PRINCIPAL;
use crate::config::model::matcher::StringMatcher;

pub(super) fn convert(message: &filter::Rbac, path: &str, problems: &mut Problems) -> Option<Rbac> {
    Some(Rbac {
        rules: match &message.rules {
            Some(message) => Some(rules(message, &format!("{path}.rules"), problems)?),
            None => None,
        },
        shadow: match &message.shadow_rules {
            Some(message) => Some(rules(message, &format!("{path}.shadow_rules"), problems)?),
            None => None,
        },
        rules_prefix: message.rules_stat_prefix.clone(),
        shadow_prefix: message.shadow_rules_stat_prefix.clone(),
    })
}

/// Without rules of its own a route has none.
pub(super) fn per_route(
    message: &filter::RbacPerRoute,
    path: &str,
    problems: &mut Problems,
) -> Option<FilterOverride> {
    match &message.rbac {
        Some(rbac) => convert(rbac, &format!("{path}.rbac"), problems)
            .map(|rbac| FilterOverride::Rbac(Arc::new(rbac))),
        None => Some(FilterOverride::Disabled),
    }
}

/// Rules as the HTTP and the network filter have them. Every part must be understood: a
/// condition that is left out could let somebody in.
pub(in crate::config::convert) fn rules(
    message: &pb::Rbac,
    path: &str,
    problems: &mut Problems,
) -> Option<Rules> {
    let action = match pb::rbac::Action::try_from(message.action) {
        Ok(pb::rbac::Action::Allow) => Action::Allow,
        Ok(pb::rbac::Action::Deny) => Action::Deny,
        Ok(pb::rbac::Action::Log) => Action::Log,
        Err(_) => {
            problems.push(format!("{path}.action"), "unknown action");
            return None;
        }
    };
    let mut policies = message
        .policies
        .iter()
        .map(|(name, policy)| {
            let path = format!("{path}.policies[{name}]");
            let permissions = all(&policy.permissions, |i, one| {
                permission(one, &format!("{path}.permissions[{i}]"), problems)
            })?;
            let principals = all(&policy.principals, |i, one| {
                principal(one, &format!("{path}.principals[{i}]"), problems)
            })?;
            if permissions.is_empty() || principals.is_empty() {
                problems.push(&path, "needs a permission and a principal at least");
                return None;
            }
            let policy = Policy {
                permissions,
                principals,
            };
            Some((Arc::from(name.as_str()), policy))
        })
        .collect::<Option<Vec<(Name, Policy)>>>()?;
    policies.sort_by(|a, b| a.0.cmp(&b.0));
    Some(Rules { action, policies })
}

fn all<T>(list: &[T], mut convert: impl FnMut(usize, &T) -> Option<Rule>) -> Option<Vec<Rule>> {
    list.iter()
        .enumerate()
        .map(|(i, one)| convert(i, one))
        .collect()
}

fn permission(message: &pb::Permission, path: &str, problems: &mut Problems) -> Option<Rule> {
    let set = |set: &pb::permission::Set, field: &str, problems: &mut Problems| {
        all(&set.rules, |i, one| {
            permission(one, &format!("{path}.{field}.rules[{i}]"), problems)
        })
    };
    match message.rule.as_ref() {
        Some(Permitted::AndRules(rules)) => set(rules, "and_rules", problems).map(Rule::All),
        Some(Permitted::OrRules(rules)) => set(rules, "or_rules", problems).map(Rule::Any),
        Some(Permitted::Any(any)) => Some(if *any { Rule::Always } else { Rule::Never }),
        Some(Permitted::Header(header)) => {
            matcher::header(header, &format!("{path}.header"), problems).map(Rule::Header)
        }
        Some(Permitted::UrlPath(matcher)) => url_path(matcher, path, problems),
        Some(Permitted::DestinationIp(range)) => {
            address::range(range, &format!("{path}.destination_ip"), problems)
                .map(Rule::DestinationIp)
        }
        Some(Permitted::DestinationPort(port)) => {
            Some(Rule::DestinationPort(*port, port.saturating_add(1)))
        }
        Some(Permitted::DestinationPortRange(range)) => {
            let bound = |bound: i32| u32::try_from(bound).unwrap_or(0);
            Some(Rule::DestinationPort(bound(range.start), bound(range.end)))
        }
        Some(Permitted::NotRule(rule)) => {
            let rule = permission(rule, &format!("{path}.not_rule"), problems)?;
            Some(Rule::Not(Box::new(rule)))
        }
        Some(Permitted::RequestedServerName(name)) => {
            let path = format!("{path}.requested_server_name");
            matcher::string(name, &path, problems).map(Rule::ServerName)
        }
        #[expect(deprecated, reason = "istiod still writes it")]
        Some(Permitted::Metadata(metadata)) => {
            matcher::metadata(metadata, &format!("{path}.metadata"), problems).map(Rule::Metadata)
        }
        Some(Permitted::SourcedMetadata(metadata)) => sourced(metadata, path, problems),
        Some(Permitted::Matcher(_) | Permitted::UriTemplate(_)) => {
            problems.push(path, "matcher and uri_template are not supported");
            None
        }
        None => {
            problems.push(path, "a rule is missing");
            None
        }
    }
}

fn principal(message: &pb::Principal, path: &str, problems: &mut Problems) -> Option<Rule> {
    let set = |set: &pb::principal::Set, field: &str, problems: &mut Problems| {
        all(&set.ids, |i, one| {
            principal(one, &format!("{path}.{field}.ids[{i}]"), problems)
        })
    };
    let range = |range, field: &str, problems: &mut Problems| {
        address::range(range, &format!("{path}.{field}"), problems)
    };
    match message.identifier.as_ref() {
        Some(Identifier::AndIds(ids)) => set(ids, "and_ids", problems).map(Rule::All),
        Some(Identifier::OrIds(ids)) => set(ids, "or_ids", problems).map(Rule::Any),
        Some(Identifier::Any(any)) => Some(if *any { Rule::Always } else { Rule::Never }),
        Some(Identifier::Authenticated(authenticated)) => {
            let name = match &authenticated.principal_name {
                Some(name) => {
                    let path = format!("{path}.authenticated.principal_name");
                    Some(matcher::string(name, &path, problems)?)
                }
                None => None,
            };
            Some(Rule::Authenticated(name))
        }
        #[expect(deprecated, reason = "older control planes write it")]
        Some(Identifier::SourceIp(ip)) => range(ip, "source_ip", problems).map(Rule::RemoteIp),
        Some(Identifier::DirectRemoteIp(ip)) => {
            range(ip, "direct_remote_ip", problems).map(Rule::DirectRemoteIp)
        }
        Some(Identifier::RemoteIp(ip)) => range(ip, "remote_ip", problems).map(Rule::RemoteIp),
        Some(Identifier::Header(header)) => {
            matcher::header(header, &format!("{path}.header"), problems).map(Rule::Header)
        }
        Some(Identifier::UrlPath(matcher)) => url_path(matcher, path, problems),
        #[expect(deprecated, reason = "istiod still writes it")]
        Some(Identifier::Metadata(metadata)) => {
            matcher::metadata(metadata, &format!("{path}.metadata"), problems).map(Rule::Metadata)
        }
        Some(Identifier::SourcedMetadata(metadata)) => sourced(metadata, path, problems),
        Some(Identifier::NotId(id)) => {
            let id = principal(id, &format!("{path}.not_id"), problems)?;
            Some(Rule::Not(Box::new(id)))
        }
        Some(Identifier::FilterState(state)) => peer_principal(state, path, problems),
        Some(Identifier::Custom(_)) => {
            problems.push(path, "custom is not supported");
            None
        }
        None => {
            problems.push(path, "an identifier is missing");
            None
        }
    }
}

/// Who came through a tunnel: Istio keeps the name in the client's certificate in filter state.
fn peer_principal(
    message: &FilterStateMatcher,
    path: &str,
    problems: &mut Problems,
) -> Option<Rule> {
    let path = format!("{path}.filter_state");
    match &message.matcher {
        Some(filter_state_matcher::Matcher::StringMatch(name)) if message.key == PEER_PRINCIPAL => {
            let path = format!("{path}.string_match");
            matcher::string(name, &path, problems).map(|name| Rule::Authenticated(Some(name)))
        }
        _ => {
            problems.push(
                path,
                format!("only {PEER_PRINCIPAL} with string_match is supported"),
            );
            None
        }
    }
}

fn url_path(message: &PathMatcher, path: &str, problems: &mut Problems) -> Option<Rule> {
    let path = format!("{path}.url_path.path");
    let Some(path_matcher::Rule::Path(pattern)) = &message.rule else {
        problems.push(path, "a pattern is missing");
        return None;
    };
    let matcher: StringMatcher = matcher::string(pattern, &path, problems)?;
    Some(Rule::Path(matcher))
}

fn sourced(message: &pb::SourcedMetadata, path: &str, problems: &mut Problems) -> Option<Rule> {
    let path = format!("{path}.sourced_metadata");
    match &message.metadata_matcher {
        Some(metadata) if message.metadata_source == pb::MetadataSource::Dynamic as i32 => {
            let path = format!("{path}.metadata_matcher");
            matcher::metadata(metadata, &path, problems).map(Rule::Metadata)
        }
        Some(_) => {
            problems.push(path, "only dynamic metadata is supported");
            None
        }
        None => {
            problems.push(path, "a matcher is missing");
            None
        }
    }
}
