//! Maps that streams with equal contents have in common.
//!
//! The pods of a node are mostly sent the same, and each has a stream. What a stream knows is its
//! own; but a map of it is one in memory with every map that holds the same. It is copied when it
//! changes, and exchanged for one that is known already after each batch of responses. Which maps
//! are equal is told by the sum of their entries' fingerprints, so a change costs what it changes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};

use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

use crate::config::model::Name;
use crate::store::{Resource, ResourceSet};

use super::cache::Entry;
use super::types::{PerType, ResourceType};

/// What tells values of one name apart.
pub(super) trait Fingerprint {
    /// Not the same for values that differ.
    fn seed(&self) -> u64;
}

/// Of a value that is one in memory with all equal ones, so that its place tells it.
pub(super) fn seed_of<T>(value: &Arc<T>, version: &str) -> u64 {
    xxh3_64_with_seed(version.as_bytes(), Arc::as_ptr(value).addr() as u64)
}

impl<T> Fingerprint for Resource<T> {
    fn seed(&self) -> u64 {
        seed_of(&self.value, &self.version)
    }
}

impl Fingerprint for usize {
    fn seed(&self) -> u64 {
        *self as u64
    }
}

fn mark(name: &str, seed: u64) -> u128 {
    xxh3_128_with_seed(name.as_bytes(), seed)
}

/// A map that may be somebody else's, too.
#[derive(Debug)]
pub(super) struct Shared<V> {
    map: Arc<BTreeMap<Name, V>>,
    /// Of the fingerprints of all entries.
    sum: u128,
    /// Nobody was asked since the last change whether there is an equal one.
    changed: bool,
}

impl<V> Default for Shared<V> {
    fn default() -> Self {
        Self {
            map: Arc::default(),
            sum: 0,
            changed: false,
        }
    }
}

impl<V> Shared<V> {
    pub(super) fn map(&self) -> &Arc<BTreeMap<Name, V>> {
        &self.map
    }

    pub(super) fn get(&self, name: &str) -> Option<&V> {
        self.map.get(name)
    }
}

impl<V: Clone + Fingerprint> Shared<V> {
    pub(super) fn insert(&mut self, name: Name, value: V) -> Option<V> {
        let mark = mark(&name, value.seed());
        let before = Arc::make_mut(&mut self.map).insert(name.clone(), value);
        self.exchange(before.as_ref().map(|before| (&*name, before)), mark);
        before
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<V> {
        self.map.get(name)?;
        let before = Arc::make_mut(&mut self.map).remove(name);
        self.exchange(before.as_ref().map(|before| (name, before)), 0);
        before
    }

    /// Removes what is not to be kept; says whether there was anything.
    pub(super) fn retain(&mut self, keep: impl Fn(&Name) -> bool) -> bool {
        let gone: Vec<Name> = self
            .map
            .keys()
            .filter(|name| !keep(name))
            .cloned()
            .collect();
        for name in &gone {
            self.remove(name);
        }
        !gone.is_empty()
    }

    fn exchange(&mut self, old: Option<(&str, &V)>, new: u128) {
        let old = old.map_or(0, |(name, value)| mark(name, value.seed()));
        self.sum = self.sum.wrapping_sub(old).wrapping_add(new);
        self.changed = true;
    }

    /// Takes an equal map that is known for its own, or makes its own known.
    fn share(&mut self, known: &mut Known<V>) {
        if std::mem::take(&mut self.changed) {
            known.share(self.sum, &mut self.map);
        }
    }
}

/// Maps in use, by the sum of their entries' fingerprints.
#[derive(Debug)]
struct Known<V>(HashMap<u128, Weak<BTreeMap<Name, V>>>);

impl<V> Default for Known<V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<V> Known<V> {
    fn share(&mut self, sum: u128, map: &mut Arc<BTreeMap<Name, V>>) {
        match self.0.get(&sum).and_then(Weak::upgrade) {
            Some(known) if known.len() == map.len() => *map = known,
            _ => {
                self.0.insert(sum, Arc::downgrade(map));
            }
        }
    }

    fn forget_unused(&mut self) {
        self.0.retain(|_, map| map.strong_count() > 0);
        self.0.shrink_to_fit();
    }
}

/// What all streams have in common.
#[derive(Debug, Default)]
pub(super) struct Commons {
    entries: PerType<Known<Entry>>,
    wanted: PerType<Known<usize>>,
    listeners: Known<Resource<crate::config::model::listener::Listener>>,
    routes: Known<Resource<crate::config::model::route::RouteConfiguration>>,
    clusters: Known<Resource<crate::config::model::cluster::Cluster>>,
    endpoints: Known<Resource<crate::config::model::endpoint::LoadAssignment>>,
    secrets: Known<Resource<crate::config::model::secret::Secret>>,
}

impl Commons {
    pub(super) fn share(
        &mut self,
        kind: ResourceType,
        entries: &mut Shared<Entry>,
        wanted: &mut Shared<usize>,
    ) {
        entries.share(self.entries.get_mut(kind));
        wanted.share(self.wanted.get_mut(kind));
    }

    /// Exchanges the maps of a set that differ from those `before`; returns what tells its values.
    pub(super) fn share_set(
        &mut self,
        set: &mut ResourceSet,
        before: &ResourceSet,
        sums: &mut PublishedSums,
    ) -> u128 {
        fn share<T>(
            known: &mut Known<Resource<T>>,
            map: &mut Arc<BTreeMap<Name, Resource<T>>>,
            before: &Arc<BTreeMap<Name, Resource<T>>>,
            values: &mut u128,
        ) {
            if Arc::ptr_eq(map, before) {
                return;
            }
            let mut all = 0_u128;
            *values = 0;
            for (name, resource) in &**map {
                all = all.wrapping_add(mark(name, resource.seed()));
                *values = values.wrapping_add(mark(name, seed_of(&resource.value, "")));
            }
            known.share(all, map);
        }
        let [listeners, routes, clusters, endpoints, secrets] = &mut sums.0;
        let to = &mut *set;
        share(
            &mut self.listeners,
            &mut to.listeners,
            &before.listeners,
            listeners,
        );
        share(&mut self.routes, &mut to.routes, &before.routes, routes);
        share(
            &mut self.clusters,
            &mut to.clusters,
            &before.clusters,
            clusters,
        );
        share(
            &mut self.endpoints,
            &mut to.endpoints,
            &before.endpoints,
            endpoints,
        );
        share(&mut self.secrets, &mut to.secrets, &before.secrets, secrets);
        // Each kind by another factor: one thing under one name in two of them is not nothing.
        let kinds = (1_u128..).step_by(2).zip(sums.0);
        kinds.fold(0, |all, (factor, sum)| {
            all.rotate_left(25).wrapping_add(sum.wrapping_mul(factor))
        })
    }

    pub(super) fn forget_unused(&mut self) {
        for kind in ResourceType::ALL {
            self.entries.get_mut(kind).forget_unused();
            self.wanted.get_mut(kind).forget_unused();
        }
        self.listeners.forget_unused();
        self.routes.forget_unused();
        self.clusters.forget_unused();
        self.endpoints.forget_unused();
        self.secrets.forget_unused();
    }
}

/// What tells the values of each map of a published set, without their versions.
#[derive(Debug, Default)]
pub(super) struct PublishedSums([u128; 5]);

/// Names of one map that another has not, in order.
pub(super) fn names_beyond<V, W>(
    these: &BTreeMap<Name, V>,
    others: &BTreeMap<Name, W>,
) -> Vec<String> {
    let mut others = others.keys().peekable();
    these
        .keys()
        .filter(|name| {
            while others.next_if(|other| other < name).is_some() {}
            others.next_if(|other| other == name).is_none()
        })
        .map(ToString::to_string)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(entries: &[(&str, usize)]) -> Shared<usize> {
        let mut shared = Shared::default();
        for (name, value) in entries {
            shared.insert((*name).into(), *value);
        }
        shared
    }

    #[test]
    fn equal_maps_are_one_however_they_came_to_be() {
        let mut known = Known::default();
        let mut one = shared(&[("a", 1), ("b", 2)]);
        let mut other = shared(&[("c", 3), ("b", 7), ("a", 1), ("b", 2)]);
        other.remove("c");
        one.share(&mut known);
        other.share(&mut known);
        assert!(Arc::ptr_eq(one.map(), other.map()));
        // A change is nobody else's.
        other.insert("b".into(), 3);
        assert_eq!((one.get("b"), other.get("b")), (Some(&2), Some(&3)));
        other.share(&mut known);
        assert!(!Arc::ptr_eq(one.map(), other.map()));
        one.insert("b".into(), 3);
        one.share(&mut known);
        assert!(Arc::ptr_eq(one.map(), other.map()));
        known.forget_unused();
        assert_eq!(known.0.len(), 1);
        drop((one, other));
        known.forget_unused();
        assert!(known.0.is_empty());
    }

    #[test]
    fn a_known_map_that_its_only_owner_changed_is_known_no_more() {
        let mut known = Known::default();
        let mut one = shared(&[("a", 1)]);
        one.share(&mut known);
        one.insert("a".into(), 2);
        let mut other = shared(&[("a", 1)]);
        other.share(&mut known);
        assert_eq!(other.get("a"), Some(&1));
    }

    #[test]
    fn what_goes_is_taken_off() {
        let mut one = shared(&[("a", 1), ("b", 2), ("c", 3)]);
        assert!(one.retain(|name| **name != *"b"));
        assert!(!one.retain(|_| true));
        assert_eq!(one.remove("z"), None);
        assert_eq!(one.sum, shared(&[("a", 1), ("c", 3)]).sum);
        assert_eq!(shared(&[]).sum, 0);
    }

    #[test]
    fn names_beyond_others_are_found_in_order() {
        let one = shared(&[("a", 1), ("b", 1), ("d", 1), ("e", 1)]);
        let other = shared(&[("b", 2), ("c", 2), ("e", 2), ("f", 2)]);
        assert_eq!(names_beyond(one.map(), other.map()), ["a", "d"]);
        assert_eq!(names_beyond(other.map(), one.map()), ["c", "f"]);
        assert_eq!(names_beyond(one.map(), shared(&[]).map()).len(), 4);
    }
}
