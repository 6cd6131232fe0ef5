//! The clusters of a view: a map that snapshots share in parts, so that a new endpoint of one
//! cluster among ten thousand does not copy ten thousand entries.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, Hasher};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::config::model::Name;
use crate::config::model::cluster::Discovery;

use super::ClusterView;

type ByName<T> = HashMap<Name, T, BuildHasherDefault<NameHasher>>;
type Part = ByName<Arc<ClusterView>>;

/// Fast for short texts. Whoever could choose names that collide writes the configuration, and
/// can do worse.
#[derive(Debug, Clone, Default)]
struct NameHasher(u64);

impl Hasher for NameHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    /// The end of a text, which tells nothing: a key is one text.
    fn write_u8(&mut self, _: u8) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

/// About so many clusters are copied when one changes.
const PART: usize = 64;

/// Clusters by name.
#[derive(Debug, Clone, Default)]
pub struct Clusters {
    /// A power of two, or none.
    parts: Vec<Arc<Part>>,
    /// Which clusters take their endpoints from an EDS service.
    by_service: Arc<ByName<Vec<Name>>>,
}

impl Clusters {
    /// The cluster of a name.
    pub fn get(&self, name: &str) -> Option<&Arc<ClusterView>> {
        self.parts.get(self.part(name))?.get(name)
    }

    /// All clusters, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, &Arc<ClusterView>)> {
        self.parts.iter().flat_map(|part| part.iter())
    }

    /// As [`Self::iter`], without names.
    pub fn values(&self) -> impl Iterator<Item = &Arc<ClusterView>> {
        self.iter().map(|(_, cluster)| cluster)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The names of clusters with the endpoints of an EDS service.
    pub(super) fn of_service(&self, service: &str) -> &[Name] {
        self.by_service.get(service).map_or(&[], Vec::as_slice)
    }

    /// Puts another cluster in the place of one of the same name.
    pub(super) fn replace(&mut self, name: &Name, cluster: Arc<ClusterView>) {
        let index = self.part(name);
        if let Some(part) = self.parts.get_mut(index) {
            Arc::make_mut(part).insert(name.clone(), cluster);
        }
    }

    fn part(&self, name: &str) -> usize {
        match self.parts.len() {
            0 | 1 => 0,
            // The low bits choose within the part.
            parts => {
                let hash = BuildHasherDefault::<NameHasher>::default().hash_one(name);
                (hash >> 32) as usize & (parts - 1)
            }
        }
    }
}

impl FromIterator<(Name, Arc<ClusterView>)> for Clusters {
    fn from_iter<I: IntoIterator<Item = (Name, Arc<ClusterView>)>>(clusters: I) -> Self {
        let clusters: Vec<_> = clusters.into_iter().collect();
        let parts = (clusters.len() / PART).next_power_of_two();
        let mut all = Self {
            parts: vec![Arc::default(); parts],
            by_service: Arc::default(),
        };
        let mut by_service: ByName<Vec<Name>> = HashMap::default();
        for (name, cluster) in clusters {
            if let Discovery::Eds { service_name } = &cluster.config.discovery {
                let clusters = by_service.entry(service_name.clone()).or_default();
                clusters.push(name.clone());
            }
            all.replace(&name, cluster);
        }
        all.by_service = Arc::new(by_service);
        all
    }
}
