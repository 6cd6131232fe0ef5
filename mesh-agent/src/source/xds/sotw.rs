//! The state-of-the-world protocol variant: what is sent and received on one stream.

use std::collections::BTreeSet;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::google::rpc::Status;

use super::types::{PerType, ResourceType};

/// What the requests of a kind carry.
#[derive(Debug, Default)]
struct Kind {
    asked: Option<BTreeSet<String>>,
    /// Of the last response on this stream.
    nonce: String,
}

/// A stream.
#[derive(Debug, Default)]
pub(super) struct Sotw {
    kinds: PerType<Kind>,
    node: Option<Node>,
}

impl Sotw {
    /// A stream that is about to be opened by this node.
    pub(super) fn new(node: Node) -> Self {
        Self {
            kinds: PerType::default(),
            node: Some(node),
        }
    }

    /// The request that makes the server know what is wanted, if it does not know it already,
    /// and the names it had not been asked for. `version`: the last one that was accepted,
    /// perhaps on an earlier stream.
    pub(super) fn ask(
        &mut self,
        kind: ResourceType,
        wanted: &BTreeSet<String>,
        version: &str,
    ) -> Option<(DiscoveryRequest, Vec<String>)> {
        let state = self.kinds.get_mut(kind);
        let first = state.asked.is_none();
        let before = state.asked.clone().unwrap_or_default();
        let nothing_new = if kind.is_wildcard() {
            !first
        } else {
            *wanted == before
        };
        if nothing_new {
            return None;
        }
        state.asked = Some(wanted.clone());
        let request = DiscoveryRequest {
            node: self.node.take(),
            type_url: kind.url().into(),
            version_info: version.into(),
            response_nonce: state.nonce.clone(),
            resource_names: wanted.iter().cloned().collect(),
            ..DiscoveryRequest::default()
        };
        Some((request, wanted.difference(&before).cloned().collect()))
    }

    /// Whether this stream asked for the kind: an answer nobody asked for is not acknowledged.
    pub(super) fn asked(&self, kind: ResourceType) -> bool {
        self.kinds.get(kind).asked.is_some()
    }

    /// The acknowledgement of a response (`version` is its own), or its rejection (`version` is
    /// the last accepted one).
    pub(super) fn answer(
        &mut self,
        kind: ResourceType,
        response: &DiscoveryResponse,
        version: &str,
        error: Option<Status>,
    ) -> DiscoveryRequest {
        let state = self.kinds.get_mut(kind);
        state.nonce.clone_from(&response.nonce);
        DiscoveryRequest {
            type_url: response.type_url.clone(),
            version_info: version.into(),
            response_nonce: response.nonce.clone(),
            resource_names: state.asked.iter().flatten().cloned().collect(),
            error_detail: error,
            ..DiscoveryRequest::default()
        }
    }
}
