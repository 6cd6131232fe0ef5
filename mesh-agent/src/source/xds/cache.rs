//! What a view was sent: the last good value of every resource, and how each fared.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use crate::config::model::cluster::Discovery;
use crate::config::model::listener::{Listener, RouteSource, Terminal};

use super::decode::{Decoded, Value};
use super::types::{PerType, ResourceType};

/// One resource.
#[derive(Debug, Default, Clone)]
pub(super) struct Entry {
    /// The last good value; `None`: never came, or the server says there is none.
    pub(super) good: Option<Good>,
    /// The server said that it does not exist, or did not say anything for too long.
    pub(super) absent: bool,
    /// Why the newest version was refused.
    pub(super) rejected: Option<Rejected>,
}

/// A resource that was accepted.
#[derive(Debug, Clone)]
pub(super) struct Good {
    pub(super) value: Value,
    pub(super) raw: Bytes,
    pub(super) version: Arc<str>,
    pub(super) updated: SystemTime,
}

/// A version that was refused.
#[derive(Debug, Clone)]
pub struct Rejected {
    /// The version.
    pub version: String,
    /// Why.
    pub reason: String,
    /// When it came.
    pub at: SystemTime,
}

/// By kind and name.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: PerType<BTreeMap<String, Entry>>,
}

impl Cache {
    /// All of a kind.
    pub(super) fn of(&self, kind: ResourceType) -> &BTreeMap<String, Entry> {
        self.entries.get(kind)
    }

    /// One.
    pub(super) fn get(&self, kind: ResourceType, name: &str) -> Option<&Entry> {
        self.entries.get(kind).get(name)
    }

    /// Takes a good value. Says whether anything changed.
    pub(super) fn accept(
        &mut self,
        kind: ResourceType,
        name: &str,
        version: &str,
        decoded: Decoded,
    ) -> bool {
        let entry = self
            .entries
            .get_mut(kind)
            .entry(name.to_owned())
            .or_default();
        entry.absent = false;
        entry.rejected = None;
        let changed = entry
            .good
            .as_ref()
            .is_none_or(|good| good.raw != decoded.raw);
        let updated = match &entry.good {
            Some(good) if !changed && *good.version == *version => good.updated,
            _ => SystemTime::now(),
        };
        entry.good = Some(Good {
            value: decoded.value,
            raw: decoded.raw,
            version: version.into(),
            updated,
        });
        changed
    }

    /// Notes that a version is not taken; the last good one stays.
    pub(super) fn reject(&mut self, kind: ResourceType, name: &str, version: &str, reason: &str) {
        let entry = self
            .entries
            .get_mut(kind)
            .entry(name.to_owned())
            .or_default();
        entry.rejected = Some(Rejected {
            version: version.to_owned(),
            reason: reason.to_owned(),
            at: SystemTime::now(),
        });
    }

    /// The server says there is none. Says whether anything changed.
    pub(super) fn remove(&mut self, kind: ResourceType, name: &str) -> bool {
        if kind.is_wildcard() {
            return self.entries.get_mut(kind).remove(name).is_some();
        }
        let entry = self
            .entries
            .get_mut(kind)
            .entry(name.to_owned())
            .or_default();
        entry.rejected = None;
        let changed = entry.good.take().is_some() || !entry.absent;
        entry.absent = true;
        changed
    }

    /// The server said nothing of it for too long. A value that is there stays.
    pub(super) fn expire(&mut self, kind: ResourceType, name: &str) -> bool {
        let entry = self
            .entries
            .get_mut(kind)
            .entry(name.to_owned())
            .or_default();
        let changed = entry.good.is_none() && !entry.absent;
        entry.absent |= entry.good.is_none();
        changed
    }

    /// Forgets what nobody wants any more.
    pub(super) fn retain(&mut self, kind: ResourceType, wanted: &BTreeSet<String>) {
        self.entries
            .get_mut(kind)
            .retain(|name, _| wanted.contains(name));
    }

    /// Versions of what is held, for a new stream.
    pub(super) fn versions(&self, kind: ResourceType) -> BTreeMap<String, String> {
        self.of(kind)
            .iter()
            .filter_map(|(name, entry)| {
                let good = entry.good.as_ref()?;
                Some((name.clone(), good.version.to_string()))
            })
            .collect()
    }

    /// The names that listeners and clusters refer to.
    pub(super) fn wanted(&self, kind: ResourceType) -> BTreeSet<String> {
        match kind {
            ResourceType::Cluster | ResourceType::Listener => BTreeSet::new(),
            ResourceType::Route => self
                .of(ResourceType::Listener)
                .values()
                .filter_map(|entry| match &entry.good.as_ref()?.value {
                    Value::Listener(listener) => Some(listener),
                    _ => None,
                })
                .flat_map(|listener| route_names(listener))
                .map(|name| name.to_string())
                .collect(),
            ResourceType::Endpoint => self
                .of(ResourceType::Cluster)
                .values()
                .filter_map(|entry| match &entry.good.as_ref()?.value {
                    Value::Cluster(cluster) => match &cluster.discovery {
                        Discovery::Eds { service_name } => Some(service_name.to_string()),
                        _ => None,
                    },
                    _ => None,
                })
                .collect(),
        }
    }
}

/// The route configurations a listener asks for by name.
pub(super) fn route_names(listener: &Listener) -> impl Iterator<Item = &Arc<str>> {
    listener
        .filter_chains
        .iter()
        .chain(&listener.default_filter_chain)
        .filter_map(|chain| match &chain.terminal {
            Terminal::Http(hcm) => match &hcm.routes {
                RouteSource::Rds(name) => Some(name),
                RouteSource::Inline(_) => None,
            },
            Terminal::Tcp(_) => None,
        })
}
