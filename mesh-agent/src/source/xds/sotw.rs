//! The state-of-the-world protocol variant: what is sent and received on one stream.

use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::google::rpc::Status;

use crate::config::model::Name;

use super::shared::names_beyond;
use super::types::{PerType, ResourceType};

/// What the requests of a kind carry.
#[derive(Debug, Default)]
struct Kind {
    /// Names, in the map that wants them.
    asked: Option<Arc<BTreeMap<Name, usize>>>,
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
        wanted: &Arc<BTreeMap<Name, usize>>,
        version: &str,
    ) -> Option<(DiscoveryRequest, Vec<String>)> {
        let state = self.kinds.get_mut(kind);
        let first = state.asked.is_none();
        let before = state.asked.clone().unwrap_or_default();
        let nothing_new = if kind.is_wildcard() {
            !first
        } else {
            wanted.keys().eq(before.keys())
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
            resource_names: wanted.keys().map(ToString::to_string).collect(),
            ..DiscoveryRequest::default()
        };
        Some((request, names_beyond(wanted, &before)))
    }

    /// The names asked for are those of this map, too.
    pub(super) fn asked_as(&mut self, kind: ResourceType, wanted: &Arc<BTreeMap<Name, usize>>) {
        if let Some(asked) = &mut self.kinds.get_mut(kind).asked {
            asked.clone_from(wanted);
        }
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
        let names = state.asked.iter().flat_map(|asked| asked.keys());
        DiscoveryRequest {
            type_url: response.type_url.clone(),
            version_info: version.into(),
            response_nonce: response.nonce.clone(),
            resource_names: names.map(ToString::to_string).collect(),
            error_detail: error,
            ..DiscoveryRequest::default()
        }
    }
}
