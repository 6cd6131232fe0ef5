//! What the server serves, and what it was asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use envoy_types::pb::google::protobuf::Any;
use serde_json::Value;
use tokio::sync::watch;

use super::resource;

/// A request, of either variant.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Asked {
    /// Which stream, from 1.
    pub stream: u64,
    /// The kind of resource.
    pub type_url: String,
    /// Names subscribed to (delta) or wanted (state of the world).
    pub names: Vec<String>,
    /// Names given up.
    pub given_up: Vec<String>,
    /// The response that is answered.
    pub nonce: String,
    /// What the client holds (delta).
    pub held: BTreeMap<String, String>,
    /// The version accepted last (state of the world).
    pub version: String,
    /// Why the response is refused.
    pub error: Option<String>,
    /// The node's id, if it was told.
    pub node: Option<String>,
}

/// What the server serves.
#[derive(Debug, Default)]
pub struct State {
    pub(super) resources: BTreeMap<String, BTreeMap<String, (u64, Any)>>,
    pub(super) withheld: BTreeSet<String>,
    /// Parts of node ids that alone see a resource (`type_url#name`).
    pub(super) only: BTreeMap<String, String>,
    pub(super) raw: Vec<Raw>,
    pub(super) version: u64,
    /// Sends, and reads no requests.
    pub(super) deaf: bool,
}

/// A response that is sent as it is to every stream.
#[derive(Debug, Clone)]
pub(super) enum Raw {
    Delta(DeltaDiscoveryResponse),
    Sotw(DiscoveryResponse),
    /// The stream ends.
    Close,
}

impl State {
    /// Serves a resource, under a new version.
    ///
    /// # Panics
    /// The JSON is not of that type: a mistake in the test.
    pub fn set(&mut self, type_url: &str, name: &str, json: &Value) {
        match resource(type_url, json) {
            Ok(any) => self.set_any(type_url, name, any),
            Err(error) => panic!("{error:#}"),
        }
    }

    /// As [`Self::set`], right or wrong.
    pub fn set_any(&mut self, type_url: &str, name: &str, any: Any) {
        self.version += 1;
        self.resources
            .entry(type_url.into())
            .or_default()
            .insert(name.into(), (self.version, any));
    }

    /// Serves it no more.
    pub fn remove(&mut self, type_url: &str, name: &str) {
        self.version += 1;
        if let Some(resources) = self.resources.get_mut(type_url) {
            resources.remove(name);
        }
    }

    /// Says nothing of a kind, or of one resource (`type_url#name`), until it is released.
    pub fn withhold(&mut self, what: &str) {
        self.withheld.insert(what.into());
    }

    /// Ends that.
    pub fn release(&mut self, what: &str) {
        self.withheld.remove(what);
    }

    /// Lets only nodes see a resource whose id holds `part`.
    pub fn only_for(&mut self, type_url: &str, name: &str, part: &str) {
        self.version += 1;
        self.only.insert(format!("{type_url}#{name}"), part.into());
    }

    /// Lets every node see it again.
    pub fn for_all(&mut self, type_url: &str, name: &str) {
        self.version += 1;
        self.only.remove(&format!("{type_url}#{name}"));
    }

    /// Sends a response as it is.
    pub fn send_delta(&mut self, response: DeltaDiscoveryResponse) {
        self.raw.push(Raw::Delta(response));
    }

    /// As [`Self::send_delta`].
    pub fn send_sotw(&mut self, response: DiscoveryResponse) {
        self.raw.push(Raw::Sotw(response));
    }

    /// Sends, and reads no requests until it is told to again.
    pub fn deaf(&mut self, deaf: bool) {
        self.deaf = deaf;
    }

    /// Ends every stream in order.
    pub fn close_streams(&mut self) {
        self.raw.push(Raw::Close);
    }

    /// Whether a node sees a resource.
    pub(super) fn shows(&self, type_url: &str, name: &str, node: &str) -> bool {
        self.only
            .get(&format!("{type_url}#{name}"))
            .is_none_or(|part| node.contains(part.as_str()))
    }

    pub(super) fn says(&self, type_url: &str, name: &str) -> bool {
        !self.withheld.contains(type_url) && !self.withheld.contains(&format!("{type_url}#{name}"))
    }
}

/// Shared by the test and the streams.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    asked: Mutex<Vec<Asked>>,
    /// Streams that are open.
    pub(super) open: AtomicUsize,
    changed: watch::Sender<u64>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            asked: Mutex::default(),
            open: AtomicUsize::new(0),
            changed: watch::channel(0).0,
        }
    }
}

impl Shared {
    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.send_modify(|changes| *changes += 1);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(super) fn note(&self, asked: Asked) {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(asked);
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
