//! The incremental protocol variant: what is sent and received on one stream.

use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use envoy_types::pb::google::rpc::Status;

use crate::config::model::Name;

use super::shared::names_beyond;
use super::types::{PerType, ResourceType};

/// Names asked for on this stream, in the map that wants them; `None`: the kind was not asked for
/// yet.
#[derive(Debug, Default)]
pub(super) struct Delta {
    asked: PerType<Option<Arc<BTreeMap<Name, usize>>>>,
    node: Option<Node>,
}

impl Delta {
    /// A stream that is about to be opened by this node.
    pub(super) fn new(node: Node) -> Self {
        Self {
            asked: PerType::default(),
            node: Some(node),
        }
    }

    /// The request that makes the server know what is wanted, if it does not know it already,
    /// and the names it had not been asked for. `held`: versions of what an earlier stream
    /// delivered, by name.
    pub(super) fn ask(
        &mut self,
        kind: ResourceType,
        wanted: &Arc<BTreeMap<Name, usize>>,
        held: impl FnOnce() -> BTreeMap<String, String>,
    ) -> Option<(DeltaDiscoveryRequest, Vec<String>)> {
        let first = self.asked.get(kind).is_none();
        if kind.is_wildcard() && !first {
            return None;
        }
        let before = self.asked.get(kind).clone().unwrap_or_default();
        let subscribe = names_beyond(wanted, &before);
        let unsubscribe = names_beyond(&before, wanted);
        // An empty first request of a kind without names would ask for all there is.
        if !kind.is_wildcard() && subscribe.is_empty() && unsubscribe.is_empty() {
            return None;
        }
        *self.asked.get_mut(kind) = Some(wanted.clone());
        let initial_resource_versions = if first {
            let held = held().into_iter();
            held.filter(|(name, _)| kind.is_wildcard() || wanted.contains_key(name.as_str()))
                .collect()
        } else {
            std::collections::HashMap::new()
        };
        let request = DeltaDiscoveryRequest {
            node: self.node.take(),
            type_url: kind.url().into(),
            resource_names_subscribe: subscribe.clone(),
            resource_names_unsubscribe: unsubscribe,
            initial_resource_versions,
            ..DeltaDiscoveryRequest::default()
        };
        Some((request, subscribe))
    }

    /// The names asked for are those of this map, too.
    pub(super) fn asked_as(&mut self, kind: ResourceType, wanted: &Arc<BTreeMap<Name, usize>>) {
        if let Some(asked) = self.asked.get_mut(kind) {
            asked.clone_from(wanted);
        }
    }

    /// Whether this stream asked for the kind: an answer nobody asked for is not acknowledged.
    pub(super) fn asked(&self, kind: ResourceType) -> bool {
        self.asked.get(kind).is_some()
    }

    /// The acknowledgement of a response, or its rejection.
    pub(super) fn answer(
        response: &DeltaDiscoveryResponse,
        error: Option<Status>,
    ) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: error,
            ..DeltaDiscoveryRequest::default()
        }
    }
}
