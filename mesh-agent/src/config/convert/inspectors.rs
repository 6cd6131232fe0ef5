//! Listener filters: who looks at the first bytes, and for which ports.

use std::ops::Range;

use envoy_types::pb::envoy::config::listener::v3::listener_filter::ConfigType;
use envoy_types::pb::envoy::config::listener::v3::listener_filter_chain_match_predicate::Rule;
use envoy_types::pb::envoy::config::listener::v3::{
    ListenerFilter, ListenerFilterChainMatchPredicate as Predicate,
};
use envoy_types::pb::envoy::r#type::v3::Int32Range;

use crate::config::model::listener::{Inspector, Inspectors, PortPredicate};

use super::{Problems, is_one_of, type_name};

const TLS_INSPECTOR: &[&str] = &[
    "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
    "envoy.filters.listener.tls_inspector",
];
const HTTP_INSPECTOR: &[&str] = &[
    "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
    "envoy.filters.listener.http_inspector",
];
const ORIGINAL_DST: &[&str] = &[
    "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
    "envoy.filters.listener.original_dst",
];

pub(super) fn convert(filters: &[ListenerFilter], problems: &mut Problems) -> Inspectors {
    let mut inspect = Inspectors::default();
    for (i, filter) in filters.iter().enumerate() {
        let path = format!("listener_filters[{i}]");
        let any = match &filter.config_type {
            Some(ConfigType::TypedConfig(any)) => type_name(any),
            _ => "",
        };
        let is = |known: &[&str]| is_one_of(known, &filter.name, any);
        let inspector = if is(TLS_INSPECTOR) {
            &mut inspect.tls
        } else if is(HTTP_INSPECTOR) {
            &mut inspect.http
        } else if is(ORIGINAL_DST) {
            // The kernel programs do its work, for every connection.
            continue;
        } else {
            let reason = format!("listener filter {} ({any}) is not supported", filter.name);
            problems.push(path, reason);
            continue;
        };
        let disabled = filter
            .filter_disabled
            .as_ref()
            .map(|disabled| predicate(disabled, &format!("{path}.filter_disabled"), problems));
        *inspector = Inspector::On { disabled };
    }
    inspect
}

fn predicate(message: &Predicate, path: &str, problems: &mut Problems) -> PortPredicate {
    let mut all = |rules: &[Predicate], field: &str| {
        rules
            .iter()
            .enumerate()
            .map(|(i, rule)| predicate(rule, &format!("{path}.{field}.rules[{i}]"), problems))
            .collect()
    };
    match &message.rule {
        Some(Rule::OrMatch(set)) => PortPredicate::Or(all(&set.rules, "or_match")),
        Some(Rule::AndMatch(set)) => PortPredicate::And(all(&set.rules, "and_match")),
        Some(Rule::NotMatch(rule)) => PortPredicate::Not(Box::new(predicate(
            rule,
            &format!("{path}.not_match"),
            problems,
        ))),
        Some(Rule::AnyMatch(_)) => PortPredicate::Any,
        Some(Rule::DestinationPortRange(range)) => PortPredicate::In(ports(range)),
        None => {
            problems.push(path, "a rule is missing");
            PortPredicate::Not(Box::new(PortPredicate::Any))
        }
    }
}

/// Envoy's ranges leave their end out.
fn ports(range: &Int32Range) -> Range<u32> {
    let bound = |value: i32| u32::try_from(value).unwrap_or(0);
    bound(range.start)..bound(range.end)
}
