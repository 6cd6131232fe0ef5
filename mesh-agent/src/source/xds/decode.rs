//! Resources on the wire into the model, each distinct one once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use envoy_types::pb::envoy::config::cluster::v3::Cluster as PbCluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener as PbListener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration as PbRoutes;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret as PbSecret;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;
use xxhash_rust::xxh3::xxh3_128;

use crate::config::convert::{self, Converted};
use crate::config::model::Name;
use crate::config::model::cluster::Cluster;
use crate::config::model::endpoint::LoadAssignment;
use crate::config::model::listener::Listener;
use crate::config::model::route::RouteConfiguration;
use crate::config::model::secret::Secret;

use super::shared::{Commons, seed_of};
use super::types::ResourceType;

/// A validated resource, by kind.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Listener(Arc<Listener>),
    Route(Arc<RouteConfiguration>),
    Cluster(Arc<Cluster>),
    Endpoint(Arc<LoadAssignment>),
    Secret(Arc<Secret>),
}

/// A value and the message it was made from.
#[derive(Debug, Clone)]
pub(super) struct Decoded {
    pub(super) value: Value,
    pub(super) raw: Bytes,
}

/// Remembers what was decoded, so that equal resources of many views are one.
#[derive(Debug, Default)]
pub struct Interner {
    known: Mutex<Known>,
    /// Unless there is but one stream.
    commons: Option<Mutex<Commons>>,
}

#[derive(Debug, Default)]
struct Known {
    values: HashMap<(ResourceType, u128), (Handle, Bytes)>,
    /// Since what nobody uses was forgotten last.
    added: usize,
}

/// A value as long as someone uses it.
#[derive(Debug, Clone)]
enum Handle {
    Listener(Weak<Listener>),
    Route(Weak<RouteConfiguration>),
    Cluster(Weak<Cluster>),
    Endpoint(Weak<LoadAssignment>),
    Secret(Weak<Secret>),
}

impl Handle {
    fn get(&self) -> Option<Value> {
        Some(match self {
            Self::Listener(value) => Value::Listener(value.upgrade()?),
            Self::Route(value) => Value::Route(value.upgrade()?),
            Self::Cluster(value) => Value::Cluster(value.upgrade()?),
            Self::Endpoint(value) => Value::Endpoint(value.upgrade()?),
            Self::Secret(value) => Value::Secret(value.upgrade()?),
        })
    }
}

impl Handle {
    fn is_used(&self) -> bool {
        match self {
            Self::Listener(value) => value.strong_count() > 0,
            Self::Route(value) => value.strong_count() > 0,
            Self::Cluster(value) => value.strong_count() > 0,
            Self::Endpoint(value) => value.strong_count() > 0,
            Self::Secret(value) => value.strong_count() > 0,
        }
    }
}

impl Value {
    /// Its own.
    pub(super) fn name(&self) -> &Name {
        match self {
            Self::Listener(value) => &value.name,
            Self::Route(value) => &value.name,
            Self::Cluster(value) => &value.name,
            Self::Endpoint(value) => &value.cluster_name,
            Self::Secret(value) => &value.name,
        }
    }

    /// What tells it and its version from others of its kind.
    pub(super) fn seed(&self, version: &str) -> u64 {
        match self {
            Self::Listener(value) => seed_of(value, version),
            Self::Route(value) => seed_of(value, version),
            Self::Cluster(value) => seed_of(value, version),
            Self::Endpoint(value) => seed_of(value, version),
            Self::Secret(value) => seed_of(value, version),
        }
    }

    fn handle(&self) -> Handle {
        match self {
            Self::Listener(value) => Handle::Listener(Arc::downgrade(value)),
            Self::Route(value) => Handle::Route(Arc::downgrade(value)),
            Self::Cluster(value) => Handle::Cluster(Arc::downgrade(value)),
            Self::Endpoint(value) => Handle::Endpoint(Arc::downgrade(value)),
            Self::Secret(value) => Handle::Secret(Arc::downgrade(value)),
        }
    }
}

impl Known {
    fn forget_unused(&mut self) {
        self.values.retain(|_, (handle, _)| handle.is_used());
        self.added = 0;
    }
}

impl Interner {
    /// For several streams.
    pub(super) fn of_many() -> Self {
        Self {
            known: Mutex::default(),
            commons: Some(Mutex::default()),
        }
    }

    /// What the streams have in common; `None` for a single one.
    pub(super) fn commons(&self) -> Option<MutexGuard<'_, Commons>> {
        // Nothing in there panics half way through a change.
        let commons = self.commons.as_ref()?.lock();
        Some(commons.unwrap_or_else(PoisonError::into_inner))
    }

    /// Decodes and validates a resource that must have this name.
    ///
    /// # Errors
    /// Everything that is wrong with it, in one line.
    pub(super) fn decode(
        &self,
        kind: ResourceType,
        name: &str,
        any: &Any,
    ) -> Result<Decoded, String> {
        if any.type_url != kind.url() {
            return Err(format!("is a {}, not a {}", any.type_url, kind.url()));
        }
        let key = (kind, xxh3_128(&any.value));
        if let Some((handle, raw)) = self.lock().values.get(&key)
            && let Some(value) = handle.get()
        {
            return named(name, &value).map(|()| Decoded {
                value,
                raw: raw.clone(),
            });
        }
        let bytes = &any.value;
        let value = match kind {
            ResourceType::Listener => {
                parse::<PbListener, _>(bytes, convert::listener).map(Value::Listener)
            }
            ResourceType::Route => {
                parse::<PbRoutes, _>(bytes, convert::route_configuration).map(Value::Route)
            }
            ResourceType::Cluster => {
                parse::<PbCluster, _>(bytes, convert::cluster).map(Value::Cluster)
            }
            ResourceType::Endpoint => {
                parse::<ClusterLoadAssignment, _>(bytes, convert::load_assignment)
                    .map(Value::Endpoint)
            }
            ResourceType::Secret => parse::<PbSecret, _>(bytes, convert::secret).map(Value::Secret),
        }?;
        named(name, &value)?;
        let raw = Bytes::copy_from_slice(bytes);
        let mut known = self.lock();
        if known.values.len() == known.values.capacity() {
            known.forget_unused();
        }
        known.values.insert(key, (value.handle(), raw.clone()));
        known.added += 1;
        Ok(Decoded { value, raw })
    }

    /// Forgets what nobody uses any more, if there may be anything.
    pub(super) fn tidy(&self) {
        let mut known = self.lock();
        if known.added > 0 {
            known.forget_unused();
            known.values.shrink_to_fit();
        }
        if let Some(mut commons) = self.commons() {
            commons.forget_unused();
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().values.len()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Nothing in here panics half way through a change.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name inside a message, as far as it is needed before the message is understood.
pub(super) fn name_of(kind: ResourceType, any: &Any) -> Result<String, String> {
    let malformed = |error: prost::DecodeError| format!("malformed {}: {error}", any.type_url);
    let bytes = any.value.as_slice();
    Ok(match kind {
        ResourceType::Listener => PbListener::decode(bytes).map_err(malformed)?.name,
        ResourceType::Route => PbRoutes::decode(bytes).map_err(malformed)?.name,
        ResourceType::Cluster => PbCluster::decode(bytes).map_err(malformed)?.name,
        ResourceType::Endpoint => {
            ClusterLoadAssignment::decode(bytes)
                .map_err(malformed)?
                .cluster_name
        }
        ResourceType::Secret => PbSecret::decode(bytes).map_err(malformed)?.name,
    })
}

fn named(name: &str, value: &Value) -> Result<(), String> {
    let inside = value.name();
    if **inside == *name {
        Ok(())
    } else {
        Err(format!("its name inside is {inside:?}"))
    }
}

fn parse<M: Message + Default, T>(
    bytes: &[u8],
    convert: fn(&M) -> Converted<T>,
) -> Result<Arc<T>, String> {
    let message = M::decode(bytes).map_err(|error| format!("malformed: {error}"))?;
    convert(&message).map(Arc::new).map_err(|problems| {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        problems.join("; ")
    })
}
