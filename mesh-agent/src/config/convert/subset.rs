//! Subsets of endpoints, and the metadata they are chosen by.

use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::cluster::LbSubsetConfig;
use envoy_types::pb::envoy::config::cluster::v3::cluster::lb_subset_config::lb_subset_selector::LbSubsetSelectorFallbackPolicy as SelectorPolicy;
use envoy_types::pb::envoy::config::cluster::v3::cluster::lb_subset_config::{
    LbSubsetFallbackPolicy, LbSubsetSelector,
};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::google::protobuf;
use envoy_types::pb::google::protobuf::value::Kind;

use crate::balance::subset::{Fallback, Metadata, Selector, SelectorFallback, Settings, Value};
use crate::config::model::cluster::Subsetting;

use super::Problems;

/// Where the metadata is that endpoints are grouped by.
const NAMESPACE: &str = "envoy.lb";

/// What a route asks for, or an endpoint has.
pub(super) fn metadata(message: Option<&core::Metadata>) -> Metadata {
    let fields = message.and_then(|message| message.filter_metadata.get(NAMESPACE));
    fields.map(structure).unwrap_or_default()
}

/// As [`metadata`], of a route's `metadata_match`; on top of what the route already asks for.
pub(super) fn wanted(
    message: Option<&core::Metadata>,
    route: Option<&Arc<Metadata>>,
) -> Option<Arc<Metadata>> {
    let own = metadata(message);
    if own.is_empty() {
        return route.cloned();
    }
    let mut all = route.map(|route| (**route).clone()).unwrap_or_default();
    all.extend(own);
    Some(Arc::new(all))
}

fn structure(message: &protobuf::Struct) -> Metadata {
    message
        .fields
        .iter()
        .filter_map(|(key, value)| Some((key.as_str().into(), self::value(value)?)))
        .collect()
}

/// `None`: a structure, by which nothing is grouped.
fn value(message: &protobuf::Value) -> Option<Value> {
    Some(match message.kind.as_ref()? {
        Kind::NullValue(_) => Value::Null,
        Kind::BoolValue(truth) => Value::Bool(*truth),
        Kind::NumberValue(number) => (*number).into(),
        Kind::StringValue(text) => text.as_str().into(),
        Kind::ListValue(list) => Value::List(list.values.iter().filter_map(value).collect()),
        Kind::StructValue(_) => return None,
    })
}

/// `lb_subset_config`; `None`: it groups nothing.
pub(super) fn config(
    message: &LbSubsetConfig,
    path: &str,
    problems: &mut Problems,
) -> Option<Arc<Subsetting>> {
    if message.subset_selectors.is_empty() && message.fallback_policy == 0 {
        return None;
    }
    let selectors = message
        .subset_selectors
        .iter()
        .enumerate()
        .filter_map(|(i, selector)| {
            self::selector(selector, &format!("{path}.subset_selectors[{i}]"), problems)
        })
        .collect();
    Some(Arc::new(Subsetting {
        settings: Settings {
            selectors,
            fallback: match LbSubsetFallbackPolicy::try_from(message.fallback_policy) {
                Ok(LbSubsetFallbackPolicy::AnyEndpoint) => Fallback::Any,
                Ok(LbSubsetFallbackPolicy::DefaultSubset) => Fallback::Default,
                _ => Fallback::None,
            },
            default_subset: message
                .default_subset
                .as_ref()
                .map(structure)
                .unwrap_or_default(),
            list_as_any: message.list_as_any,
            panic_mode_any: message.panic_mode_any,
        },
        locality_weight_aware: message.locality_weight_aware,
    }))
}

fn selector(message: &LbSubsetSelector, path: &str, problems: &mut Problems) -> Option<Selector> {
    if message.keys.is_empty() {
        problems.push(format!("{path}.keys"), "at least one key is needed");
        return None;
    }
    let fewer: Vec<Arc<str>> = message
        .fallback_keys_subset
        .iter()
        .map(|key| key.as_str().into())
        .collect();
    let to_keys = message.fallback_policy == SelectorPolicy::KeysSubset as i32;
    let proper = !fewer.is_empty()
        && fewer
            .iter()
            .all(|key| message.keys.iter().any(|own| **own == **key))
        && message
            .keys
            .iter()
            .any(|own| !fewer.iter().any(|key| **key == **own));
    if to_keys && !proper {
        problems.push(
            format!("{path}.fallback_keys_subset"),
            "must name some of keys, and not all",
        );
    } else if !to_keys && !fewer.is_empty() {
        problems.push(
            format!("{path}.fallback_keys_subset"),
            "goes with fallback_policy KEYS_SUBSET",
        );
    }
    Some(Selector {
        keys: message.keys.iter().map(|key| key.as_str().into()).collect(),
        fallback: match SelectorPolicy::try_from(message.fallback_policy) {
            Ok(SelectorPolicy::NoFallback) => SelectorFallback::To(Fallback::None),
            Ok(SelectorPolicy::AnyEndpoint) => SelectorFallback::To(Fallback::Any),
            Ok(SelectorPolicy::DefaultSubset) => SelectorFallback::To(Fallback::Default),
            Ok(SelectorPolicy::KeysSubset) => SelectorFallback::Keys(fewer),
            _ => SelectorFallback::Cluster,
        },
    })
}
