//! Decisions that are kept: what was allowed or refused a moment ago is not asked again.
//!
//! A key holds all that a decision may depend on, in full: two requests never share a decision
//! because they look alike. Requests with a body that the service is shown are always asked about.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::config::model::filter::ext_authz::CacheSettings;

use super::decision::Decision;

/// Parts, so that workers seldom wait for each other; a lock is held for a look only.
const PARTS: usize = 16;

/// The decisions of one configuration of the filter.
#[derive(Debug)]
pub(super) struct Cache {
    parts: [Mutex<Part>; PARTS],
    hasher: RandomState,
    settings: Arc<CacheSettings>,
}

/// Two generations: what is not asked for while the younger one fills up is forgotten.
#[derive(Debug, Default)]
struct Part {
    young: HashMap<Vec<u8>, Kept>,
    old: HashMap<Vec<u8>, Kept>,
}

#[derive(Debug, Clone)]
struct Kept {
    decision: Arc<Decision>,
    until: Instant,
}

impl Cache {
    pub(super) fn new(settings: &Arc<CacheSettings>) -> Self {
        Self {
            parts: Default::default(),
            hasher: RandomState::new(),
            settings: settings.clone(),
        }
    }

    fn part(&self, key: &[u8]) -> &Mutex<Part> {
        let hash = self.hasher.hash_one(key);
        &self.parts[hash as usize % PARTS]
    }

    /// A decision that still holds.
    pub(super) fn find(&self, key: &[u8]) -> Option<Arc<Decision>> {
        let mut part = self.part(key).lock();
        let kept = match part.young.get(key) {
            Some(kept) => kept.clone(),
            None => {
                let (key, kept) = part.old.remove_entry(key)?;
                part.young.insert(key, kept.clone());
                kept
            }
        };
        if Instant::now() >= kept.until {
            part.young.remove(key);
            return None;
        }
        Some(kept.decision)
    }

    /// Keeps a decision for as long as its kind is kept.
    pub(super) fn keep(&self, key: Vec<u8>, decision: Arc<Decision>) {
        let time = match &*decision {
            Decision::Allowed(_) => self.settings.positive,
            Decision::Denied(_) => self.settings.negative,
        };
        if time == Duration::ZERO {
            return;
        }
        let most = (self.settings.max_entries / PARTS / 2).max(1);
        let mut part = self.part(&key).lock();
        if part.young.len() >= most {
            part.old = std::mem::take(&mut part.young);
        }
        let until = Instant::now() + time;
        part.young.insert(key, Kept { decision, until });
    }
}

#[cfg(test)]
mod tests {
    use super::super::decision::Changes;
    use super::*;

    fn cache(positive: Duration, max_entries: usize) -> Cache {
        Cache::new(&Arc::new(CacheSettings {
            positive,
            negative: Duration::ZERO,
            max_entries,
            headers: None,
        }))
    }

    fn allowed() -> Arc<Decision> {
        Arc::new(Decision::Allowed(Changes::default()))
    }

    #[test]
    fn decisions_are_kept_for_their_time() {
        let kept = cache(Duration::from_secs(60), 100);
        kept.keep(b"a".to_vec(), allowed());
        assert!(kept.find(b"a").is_some());
        assert!(kept.find(b"b").is_none());
        let gone = cache(Duration::from_nanos(1), 100);
        gone.keep(b"a".to_vec(), allowed());
        assert!(gone.find(b"a").is_none());
    }

    #[test]
    fn there_are_never_many_more_than_allowed() {
        let cache = cache(Duration::from_secs(60), 320);
        for i in 0..10_000u32 {
            cache.keep(i.to_be_bytes().to_vec(), allowed());
        }
        let kept: usize = cache
            .parts
            .iter()
            .map(|part| {
                let part = part.lock();
                part.young.len() + part.old.len()
            })
            .sum();
        assert!(kept <= 320, "{kept}");
    }
}
