//! Subsets of a cluster's endpoints, by their metadata (`SubsetLoadBalancer`).
//!
//! Groups are made once, from the sets of keys the cluster names; a request names values and is
//! led to a group, or to what stands in for one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Values by key: an endpoint's `envoy.lb` metadata, or what a route asks for.
pub type Metadata = BTreeMap<Arc<str>, Value>;

/// A value that endpoints are grouped by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Value {
    /// Null.
    Null,
    /// True or false.
    Bool(bool),
    /// A number, by its bits: metadata is compared, not calculated with.
    Number(u64),
    /// Text.
    Text(Arc<str>),
    /// Several; see [`Settings::list_as_any`].
    List(Vec<Value>),
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        // Both zeros are one number.
        Self::Number(if number == 0.0 { 0 } else { number.to_bits() })
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

/// What serves a request that no group matches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Fallback {
    /// Nobody.
    #[default]
    None,
    /// Every endpoint.
    Any,
    /// The endpoints with the default subset's metadata.
    Default,
}

/// What serves a request that names a selector's keys with values nobody has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SelectorFallback {
    /// What the cluster says.
    #[default]
    Cluster,
    /// This.
    To(Fallback),
    /// The request is looked at again with these of its keys alone.
    Keys(Vec<Arc<str>>),
}

/// A set of keys to group by.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector {
    /// The keys; order does not matter.
    pub keys: Vec<Arc<str>>,
    /// For values nobody has.
    pub fallback: SelectorFallback,
}

/// How a cluster is divided.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// The sets of keys.
    pub selectors: Vec<Selector>,
    /// For requests no selector is meant for.
    pub fallback: Fallback,
    /// Of [`Fallback::Default`].
    pub default_subset: Metadata,
    /// An endpoint whose value is a list has each of its values.
    pub list_as_any: bool,
    /// When the fallback has no endpoint, every endpoint serves.
    pub panic_mode_any: bool,
}

/// Which endpoints a request may go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Every endpoint.
    Any,
    /// Those of a group: an index into [`Subsets::groups`].
    Group(usize),
    /// Nobody.
    Nobody,
}

/// The groups of a cluster.
#[derive(Debug, Clone, Default)]
pub struct Subsets {
    by_metadata: HashMap<Metadata, usize>,
    groups: Vec<Vec<usize>>,
    selectors: HashMap<Vec<Arc<str>>, SelectorFallback>,
    fallback: Fallback,
    /// The one of the default subset, if anybody has its metadata.
    default_group: Option<usize>,
    panic_mode_any: bool,
}

impl Subsets {
    /// Groups endpoints, given by their metadata.
    pub fn new(endpoints: &[&Metadata], settings: &Settings) -> Self {
        let mut by_metadata: HashMap<Metadata, Vec<usize>> = HashMap::new();
        let mut selectors = HashMap::new();
        for selector in &settings.selectors {
            let keys = sorted(&selector.keys);
            for (index, endpoint) in endpoints.iter().enumerate() {
                for group in values(endpoint, &keys, settings.list_as_any) {
                    let members = by_metadata.entry(group).or_default();
                    // Two selectors of the same keys, or a value listed twice.
                    if members.last() != Some(&index) {
                        members.push(index);
                    }
                }
            }
            selectors
                .entry(keys)
                .or_insert_with(|| selector.fallback.clone());
        }
        let mut groups = Vec::with_capacity(by_metadata.len() + 1);
        let by_metadata = by_metadata
            .into_iter()
            .map(|(metadata, mut members)| {
                members.sort_unstable();
                members.dedup();
                groups.push(members);
                (metadata, groups.len() - 1)
            })
            .collect();
        let has_default = |endpoint: &Metadata| {
            settings.default_subset.iter().all(|(key, wanted)| {
                endpoint
                    .get(key)
                    .is_some_and(|value| has(value, wanted, settings.list_as_any))
            })
        };
        let default: Vec<usize> = (0..endpoints.len())
            .filter(|index| has_default(endpoints[*index]))
            .collect();
        let default_group = (!default.is_empty()).then(|| {
            groups.push(default);
            groups.len() - 1
        });
        Self {
            by_metadata,
            groups,
            selectors,
            fallback: settings.fallback.clone(),
            default_group,
            panic_mode_any: settings.panic_mode_any,
        }
    }

    /// The members of each group: indices into the endpoints given.
    pub fn groups(&self) -> &[Vec<usize>] {
        &self.groups
    }

    /// The endpoints for a request that asks for `wanted`, which may be nothing.
    pub fn find(&self, wanted: &Metadata) -> Choice {
        if wanted.is_empty() {
            return self.cluster_fallback();
        }
        if let Some(group) = self.by_metadata.get(wanted) {
            return Choice::Group(*group);
        }
        let keys: Vec<Arc<str>> = wanted.keys().cloned().collect();
        match self.selectors.get(&keys) {
            None | Some(SelectorFallback::Cluster) => self.cluster_fallback(),
            Some(SelectorFallback::To(fallback)) => self.fall_back(fallback),
            Some(SelectorFallback::Keys(fewer)) => {
                let mut fewer_wanted = wanted.clone();
                fewer_wanted.retain(|key, _| fewer.contains(key));
                if fewer_wanted.len() < wanted.len() {
                    self.find(&fewer_wanted)
                } else {
                    // Envoy refuses such a configuration; never to end is no alternative.
                    Choice::Nobody
                }
            }
        }
    }

    fn cluster_fallback(&self) -> Choice {
        match self.fall_back(&self.fallback) {
            Choice::Nobody if self.panic_mode_any => Choice::Any,
            choice => choice,
        }
    }

    fn fall_back(&self, fallback: &Fallback) -> Choice {
        match fallback {
            Fallback::None => Choice::Nobody,
            Fallback::Any => Choice::Any,
            Fallback::Default => self.default_group.map_or(Choice::Nobody, Choice::Group),
        }
    }
}

fn sorted(keys: &[Arc<str>]) -> Vec<Arc<str>> {
    let mut keys = keys.to_vec();
    keys.sort();
    keys.dedup();
    keys
}

/// Whether an endpoint's value is the one wanted.
fn has(value: &Value, wanted: &Value, list_as_any: bool) -> bool {
    match value {
        Value::List(values) if list_as_any => values.contains(wanted),
        value => value == wanted,
    }
}

/// The groups an endpoint is in: one, several if it lists values, none if a key is missing.
fn values(endpoint: &Metadata, keys: &[Arc<str>], list_as_any: bool) -> Vec<Metadata> {
    let mut groups = vec![Metadata::new()];
    for key in keys {
        let own: &[Value] = match endpoint.get(key) {
            Some(Value::List(values)) if list_as_any => values,
            Some(value) => std::slice::from_ref(value),
            None => return Vec::new(),
        };
        groups = groups
            .iter()
            .flat_map(|group| {
                own.iter().map(|value| {
                    let mut group = group.clone();
                    group.insert(key.clone(), value.clone());
                    group
                })
            })
            .collect();
    }
    if keys.is_empty() {
        // A selector without keys selects nothing.
        groups.clear();
    }
    groups
}

#[cfg(test)]
mod tests;
