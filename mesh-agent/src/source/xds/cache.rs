//! What a view was sent: the last good value of every resource, and how each fared.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use crate::config::model::Name;
use crate::config::model::cluster::Discovery;
use crate::config::model::listener::{Listener, RouteSource, Terminal};

use super::decode::{Decoded, Value};
use super::shared::{Commons, Fingerprint, Shared};
use super::types::{PerType, ResourceType};

/// So many refusals are remembered: a server that sends rubbish under ever new names must not fill
/// our memory with it.
const MAX_REJECTED: usize = 10_000;
/// And so much of why, in bytes.
const MAX_REASON: usize = 1024;

/// One resource.
#[derive(Debug, Default, Clone)]
pub(super) struct Entry {
    /// The last good value; `None`: never came, or the server says there is none.
    pub(super) good: Option<Good>,
    /// The server said that it does not exist, or did not say anything for too long.
    pub(super) absent: bool,
}

impl Entry {
    /// Of what does not exist.
    fn missing() -> Self {
        Self {
            good: None,
            absent: true,
        }
    }
}

impl Fingerprint for Entry {
    /// When it came is not told: equal entries of several streams have the time of the first.
    fn seed(&self) -> u64 {
        match &self.good {
            Some(good) => good.value.seed(&good.version),
            None => u64::from(self.absent),
        }
    }
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
    entries: PerType<Shared<Entry>>,
    /// What listeners and clusters refer to, and how often.
    wanted: PerType<Shared<usize>>,
    /// Grows when names come to be wanted or stop being it.
    wanted_version: PerType<u64>,
    change: Change,
    trouble: Trouble,
}

/// A resource: kind and name.
pub type Key = (ResourceType, String);

/// What did not go well, by resource.
#[derive(Debug, Default, Clone)]
pub struct Trouble {
    /// Newest versions that were refused; what they would have replaced stays in use.
    pub rejected: Arc<BTreeMap<Key, Rejected>>,
    /// What the server says does not exist, or did not send in time.
    pub absent: Arc<BTreeSet<Key>>,
}

impl Trouble {
    fn is_over(&mut self, key: &Key) {
        if self.rejected.contains_key(key) {
            Arc::make_mut(&mut self.rejected).remove(key);
        }
        if self.absent.contains(key) {
            Arc::make_mut(&mut self.absent).remove(key);
        }
    }
}

/// What happened since [`Cache::take_change`].
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing.
    #[default]
    None,
    /// Endpoints that were there were replaced, of these services.
    Endpoints(BTreeSet<String>),
    /// Anything else.
    Structure,
}

impl Cache {
    /// All of a kind.
    pub(super) fn of(&self, kind: ResourceType) -> &BTreeMap<Name, Entry> {
        self.entries.get(kind).map()
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
        self.trouble.is_over(&(kind, name.to_owned()));
        let entries = self.entries.get_mut(kind);
        let known = entries.get(name);
        let was_absent = known.is_some_and(|entry| entry.absent);
        let good = known.and_then(|entry| entry.good.as_ref());
        let changed = good.is_none_or(|good| good.raw != decoded.raw);
        let told = good.is_none_or(|good| *good.version != *version);
        if !(changed || told || was_absent) {
            return false;
        }
        let before = good.map(|good| good.value.clone());
        let name = decoded.value.name().clone();
        match (&mut self.change, kind) {
            (Change::Structure, _) => {}
            (Change::Endpoints(names), ResourceType::Endpoint) if before.is_some() => {
                names.insert(name.to_string());
            }
            (change @ Change::None, ResourceType::Endpoint) if before.is_some() => {
                *change = Change::Endpoints(BTreeSet::from([name.to_string()]));
            }
            (change, _) => *change = Change::Structure,
        }
        let value = decoded.value.clone();
        let entry = Entry {
            good: Some(Good {
                value: decoded.value,
                raw: decoded.raw,
                version: version.into(),
                updated: SystemTime::now(),
            }),
            absent: false,
        };
        entries.insert(name, entry);
        self.refer_anew(before.as_ref(), Some(&value));
        changed
    }

    /// What did not go well.
    pub(super) fn trouble(&self) -> &Trouble {
        &self.trouble
    }

    /// What happened since the last time.
    pub(super) fn take_change(&mut self) -> Change {
        std::mem::take(&mut self.change)
    }

    /// A value came in place of another, or of none.
    fn refer_anew(&mut self, before: Option<&Value>, value: Option<&Value>) {
        let (before, after) = (references(before), references(value));
        if before == after {
            return;
        }
        for (kind, name) in after {
            let wanted = self.wanted.get_mut(kind);
            let count = wanted.get(&name).copied().unwrap_or(0);
            wanted.insert(name, count + 1);
            *self.wanted_version.get_mut(kind) += u64::from(count == 0);
        }
        for (kind, name) in before {
            let wanted = self.wanted.get_mut(kind);
            match wanted.get(&name).copied() {
                None => {}
                Some(1) => {
                    wanted.remove(&name);
                    *self.wanted_version.get_mut(kind) += 1;
                }
                Some(count) => {
                    wanted.insert(name, count - 1);
                }
            }
        }
    }

    /// Makes maps that equal another stream's one with it.
    pub(super) fn share(&mut self, commons: &mut Commons) {
        for kind in ResourceType::ALL {
            commons.share(kind, self.entries.get_mut(kind), self.wanted.get_mut(kind));
        }
    }

    /// Notes that a version is not taken; the last good one stays.
    pub(super) fn reject(&mut self, kind: ResourceType, name: &str, version: &str, reason: &str) {
        let rejected = Rejected {
            version: version.to_owned(),
            reason: cut(reason, MAX_REASON),
            at: SystemTime::now(),
        };
        let all = Arc::make_mut(&mut self.trouble.rejected);
        all.insert((kind, name.to_owned()), rejected);
        if all.len() > MAX_REJECTED {
            all.pop_first();
        }
    }

    /// The server says there is none. Says whether anything changed.
    pub(super) fn remove(&mut self, kind: ResourceType, name: &str) -> bool {
        self.change = Change::Structure;
        self.trouble.is_over(&(kind, name.to_owned()));
        let entries = self.entries.get_mut(kind);
        if kind.is_wildcard() {
            let removed = entries.remove(name);
            let good = removed.as_ref().and_then(|entry| entry.good.as_ref());
            self.refer_anew(good.map(|good| &good.value), None);
            return removed.is_some();
        }
        let changed = entries.get(name).is_none_or(|entry| !entry.absent);
        entries.insert(name.into(), Entry::missing());
        Arc::make_mut(&mut self.trouble.absent).insert((kind, name.to_owned()));
        changed
    }

    /// The server said nothing of it for too long. A value that is there stays.
    pub(super) fn expire(&mut self, kind: ResourceType, name: &str) -> bool {
        self.change = Change::Structure;
        let entries = self.entries.get_mut(kind);
        let known = entries.get(name);
        if known.is_some_and(|entry| entry.good.is_some()) {
            return false;
        }
        let changed = known.is_none_or(|entry| !entry.absent);
        entries.insert(name.into(), Entry::missing());
        Arc::make_mut(&mut self.trouble.absent).insert((kind, name.to_owned()));
        changed
    }

    /// Forgets what nobody wants any more.
    pub(super) fn forget_unwanted(&mut self, kind: ResourceType) {
        let wanted = self.wanted.get(kind).map();
        let entries = self.entries.get_mut(kind);
        if entries.retain(|name| wanted.contains_key(name)) {
            self.change = Change::Structure;
        }
        let unwanted = |(of, name): &Key| *of == kind && !wanted.contains_key(name.as_str());
        if self.trouble.rejected.keys().any(unwanted) {
            Arc::make_mut(&mut self.trouble.rejected).retain(|key, _| !unwanted(key));
        }
        if self.trouble.absent.iter().any(unwanted) {
            Arc::make_mut(&mut self.trouble.absent).retain(|key| !unwanted(key));
        }
    }

    /// Versions of what is held, for a new stream.
    pub(super) fn versions(&self, kind: ResourceType) -> BTreeMap<String, String> {
        self.of(kind)
            .iter()
            .filter_map(|(name, entry)| {
                let good = entry.good.as_ref()?;
                Some((name.to_string(), good.version.to_string()))
            })
            .collect()
    }

    /// The names that listeners and clusters refer to, and how often each.
    pub(super) fn wanted(&self, kind: ResourceType) -> &Arc<BTreeMap<Name, usize>> {
        self.wanted.get(kind).map()
    }

    /// Whether a name was asked for.
    pub(super) fn is_wanted(&self, kind: ResourceType, name: &str) -> bool {
        kind.is_wildcard() || self.wanted.get(kind).get(name).is_some()
    }

    /// Another number than before: [`Self::wanted`] says something else.
    pub(super) fn wanted_version(&self, kind: ResourceType) -> u64 {
        *self.wanted_version.get(kind)
    }
}

/// A text, or its beginning.
pub(super) fn cut(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(bytes);
    format!("{}...", text.get(..end).unwrap_or_default())
}

/// The names of other resources in a resource.
fn references(value: Option<&Value>) -> Vec<(ResourceType, Name)> {
    let mut found = Vec::new();
    let mut each = |kind, name: &Name| found.push((kind, name.clone()));
    match value {
        Some(Value::Listener(listener)) => {
            route_names(listener).for_each(|name| each(ResourceType::Route, name));
            listener
                .secrets()
                .for_each(|name| each(ResourceType::Secret, name));
        }
        Some(Value::Cluster(cluster)) => {
            cluster
                .secrets()
                .for_each(|name| each(ResourceType::Secret, name));
            if let Discovery::Eds { service_name } = &cluster.discovery {
                each(ResourceType::Endpoint, service_name);
            }
        }
        Some(Value::Route(_) | Value::Endpoint(_) | Value::Secret(_)) | None => {}
    }
    found
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_without_end_fill_no_memory() {
        let mut cache = Cache::default();
        let reason = "x".repeat(1 << 20);
        for number in 0..MAX_REJECTED + 500 {
            let name = format!("{number:08}");
            cache.reject(ResourceType::Cluster, &name, "1", &reason);
        }
        let rejected = &cache.trouble().rejected;
        assert_eq!(rejected.len(), MAX_REJECTED);
        let longest = rejected.values().map(|one| one.reason.len()).max();
        assert!(longest <= Some(MAX_REASON + 3), "{longest:?}");
        // What is right in the end is refused no more.
        let last = (ResourceType::Cluster, format!("{:08}", MAX_REJECTED + 499));
        assert!(rejected.contains_key(&last));
        cache.remove(last.0, &last.1);
        assert!(!cache.trouble().rejected.contains_key(&last));
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("a\u{e4}b", 2), "a...");
    }
}
