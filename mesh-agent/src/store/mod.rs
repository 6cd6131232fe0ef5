//! The resource store: what the sources delivered, by type and name, already validated.
//!
//! A source replaces or removes resources; nothing else writes here. The store keeps the last
//! good value of every resource, with what an operator wants to see about it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use crate::config::model::Name;
use crate::config::model::cluster::Cluster;
use crate::config::model::endpoint::LoadAssignment;
use crate::config::model::listener::Listener;
use crate::config::model::route::RouteConfiguration;
use crate::config::model::secret::Secret;

/// All resources of one view. A clone shares the maps that do not change.
#[derive(Debug, Clone, Default)]
pub struct ResourceSet {
    /// By listener name.
    pub listeners: Arc<BTreeMap<Name, Resource<Listener>>>,
    /// By route configuration name. Inline ones are in their listeners.
    pub routes: Arc<BTreeMap<Name, Resource<RouteConfiguration>>>,
    /// By cluster name.
    pub clusters: Arc<BTreeMap<Name, Resource<Cluster>>>,
    /// By cluster or EDS service name. Inline ones are in their clusters.
    pub endpoints: Arc<BTreeMap<Name, Resource<LoadAssignment>>>,
    /// By secret name.
    pub secrets: Arc<BTreeMap<Name, Resource<Secret>>>,
}

impl ResourceSet {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.listeners.is_empty()
            && self.routes.is_empty()
            && self.clusters.is_empty()
            && self.endpoints.is_empty()
            && self.secrets.is_empty()
    }

    /// These, and of the others what has a name of its own.
    #[must_use]
    pub fn over(&self, others: &Self) -> Self {
        fn over<T>(
            these: &Arc<BTreeMap<Name, Resource<T>>>,
            others: &Arc<BTreeMap<Name, Resource<T>>>,
        ) -> Arc<BTreeMap<Name, Resource<T>>> {
            if these.is_empty() {
                return others.clone();
            }
            let mut all = others.clone();
            let owned = Arc::make_mut(&mut all);
            owned.extend(these.iter().map(|(name, one)| (name.clone(), one.clone())));
            all
        }
        Self {
            listeners: over(&self.listeners, &others.listeners),
            routes: over(&self.routes, &others.routes),
            clusters: over(&self.clusters, &others.clusters),
            endpoints: over(&self.endpoints, &others.endpoints),
            secrets: over(&self.secrets, &others.secrets),
        }
    }
}

/// One resource: the model, and what `/config_dump` and `status` show.
#[derive(Debug)]
pub struct Resource<T> {
    /// The validated value.
    pub value: Arc<T>,
    /// The version the source gave it.
    pub version: Arc<str>,
    /// When this version was accepted.
    pub updated: SystemTime,
    /// The encoded protobuf message it was made from, for `/config_dump`.
    pub raw: Bytes,
}

impl<T> Clone for Resource<T> {
    fn clone(&self) -> Self {
        Self {
            value: self.value.clone(),
            version: self.version.clone(),
            updated: self.updated,
            raw: self.raw.clone(),
        }
    }
}
