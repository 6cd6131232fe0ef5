//! What `status`, `/config_dump` and the metrics tell of a stream.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use envoy_types::pb::envoy::config::core::v3::Node;

use super::cache::{Key, Trouble};
use super::types::PerType;

/// A stream and what came by it.
#[derive(Debug, Clone, Default)]
pub struct XdsStatus {
    /// Where the server is.
    pub server: String,
    /// Whether a stream is open.
    pub connected: bool,
    /// When that changed last.
    pub since: Option<SystemTime>,
    /// Why the last stream ended.
    pub error: Option<String>,
    /// Streams opened.
    pub streams: u64,
    /// By kind.
    pub types: PerType<TypeStatus>,
    /// When an update was accepted last.
    pub updated: Option<SystemTime>,
    /// Who we say we are.
    pub node: Arc<Node>,
    /// What did not go well.
    pub trouble: Trouble,
    /// What was asked for and has not come yet.
    pub requested: Arc<BTreeSet<Key>>,
}

/// What came of one kind.
#[derive(Debug, Clone, Default)]
pub struct TypeStatus {
    /// Resources in use.
    pub resources: usize,
    /// The version of the last response that was accepted whole.
    pub version: String,
    /// Responses.
    pub responses: u64,
    /// Responses of which something was refused.
    pub rejected: u64,
    /// What was refused last, and why; gone with the next response that is accepted.
    pub error: Option<String>,
    /// When a response came last.
    pub updated: Option<SystemTime>,
}
