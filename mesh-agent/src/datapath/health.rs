//! Follows endpoints that are ejected or come back: the slots of their services are written anew.

use std::sync::Arc;

use crate::config::model::Name;
use crate::snapshot::ViewId;

use super::Datapath;
use super::plan::Plan;
use super::reconcile::Report;

impl Datapath {
    /// Writes anew the services whose clusters' endpoints were ejected or came back since the last
    /// time; to be called several times a second.
    pub fn follow_health(&mut self) -> Report {
        let Some(snapshot) = self.applied.clone() else {
            return Report::default();
        };
        // Once more: whoever was building a balancer while the last plan was made is done now.
        let mut changed: Vec<(ViewId, Name)> = std::mem::take(&mut self.replanned);
        let mut new = Vec::new();
        for view in snapshot.views.values() {
            let watched = view.clusters.iter();
            for (name, cluster) in watched.filter(|(_, one)| {
                one.config.outlier.is_some() || one.config.health_check.is_some()
            }) {
                let state = Arc::as_ptr(&cluster.state) as usize;
                let health = cluster.state.health();
                if self.health.insert(state, health).unwrap_or(0) != health {
                    new.push((view.id, name.clone()));
                }
            }
        }
        changed.extend(new.iter().cloned());
        self.replanned = new;
        if changed.is_empty() {
            return Report::default();
        }
        let plan = Plan::of_clusters(&snapshot, &changed, &self.pods.sources());
        self.reconciler.apply(plan, &mut self.services)
    }
}
