//! Snapshots that were replaced.
//!
//! A request holds on to its view for as long as it lasts, and whoever lets go of it last frees all
//! of it: for ten thousand services that is milliseconds. So that it is never a worker, replaced
//! snapshots are kept here until nobody else has them.

use std::sync::Arc;

use super::{Snapshot, View};

/// What was replaced and may still be in use.
#[derive(Debug, Default)]
pub struct Retired {
    snapshots: Vec<Arc<Snapshot>>,
    views: Vec<Arc<View>>,
}

impl Retired {
    /// Takes a snapshot that another one was published in place of.
    pub fn keep(&mut self, snapshot: Arc<Snapshot>) {
        self.snapshots.push(snapshot);
    }

    /// Frees what nobody else has any more.
    pub fn sweep(&mut self) {
        let (free, used) = std::mem::take(&mut self.snapshots)
            .into_iter()
            .partition(|snapshot| Arc::strong_count(snapshot) == 1);
        self.snapshots = used;
        let free: Vec<Arc<Snapshot>> = free;
        for view in free.iter().flat_map(|snapshot| snapshot.views.values()) {
            if !self.views.iter().any(|known| Arc::ptr_eq(known, view)) {
                self.views.push(view.clone());
            }
        }
        drop(free);
        self.views.retain(|view| Arc::strong_count(view) > 1);
    }

    /// How many views wait.
    pub fn len(&self) -> usize {
        self.views.len() + self.snapshots.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::config::model::workload::NodeConfig;
    use crate::snapshot::{Inputs, ViewId, compile};
    use crate::store::ResourceSet;

    fn snapshot(previous: &Snapshot) -> Arc<Snapshot> {
        // The same as before, if there is any before.
        let known = previous.view(ViewId::NODE);
        let resources: ResourceSet = known.map(|view| view.resources.clone()).unwrap_or_default();
        let views = [(ViewId::NODE, Arc::new(resources))];
        let none = Arc::new(HashMap::new());
        let inputs = Inputs {
            views: &views,
            pods: None,
            in_use: &[],
            node: &Arc::new(NodeConfig::default()),
            dns: previous.view(ViewId::NODE).map_or(&none, |view| &view.dns),
        };
        Arc::new(compile(&inputs, previous))
    }

    #[test]
    fn a_view_goes_when_its_last_request_has_gone_and_not_with_it() {
        let mut retired = Retired::default();
        let old = snapshot(&Snapshot::default());
        let request = old.views[&ViewId::NODE].clone();
        let weak = Arc::downgrade(&request);
        let reader = old.clone();
        retired.keep(old);
        retired.sweep();
        assert_eq!(retired.len(), 1, "somebody reads the snapshot");
        drop(reader);
        retired.sweep();
        assert_eq!(retired.len(), 1, "a request has the view");
        drop(request);
        assert!(weak.upgrade().is_some(), "the request freed it");
        retired.sweep();
        assert!(retired.is_empty() && weak.upgrade().is_none());
    }

    #[test]
    fn what_the_next_snapshot_shares_stays_until_that_is_replaced_too() {
        let mut retired = Retired::default();
        let first = snapshot(&Snapshot::default());
        let second = snapshot(&first);
        assert!(Arc::ptr_eq(
            &first.views[&ViewId::NODE],
            &second.views[&ViewId::NODE]
        ));
        retired.keep(first);
        retired.sweep();
        assert_eq!(retired.len(), 1);
        retired.keep(second);
        retired.sweep();
        assert!(retired.is_empty());
    }
}
