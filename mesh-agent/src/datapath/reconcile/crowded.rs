//! When the kernel's maps have no room for all services of a view.
//!
//! A connection to a service that is not written would be taken for one to nowhere in particular
//! and go on as it was dialled: without encryption, rules or limits. So the agent is given
//! whatever the kernel knows no service for; it knows them all.

use std::collections::BTreeSet;

use mesh_common::{Addr, LbKind, ServiceKey, TCP, Verdict};

use super::super::plan::{Scope, ServicePlan};
use super::super::sink::Sink;
use super::{Reconciler, Report};

/// Whether a key stands for every address that has no service.
pub(super) fn is_rest(key: &ServiceKey) -> bool {
    key.port == 0 && (key.addr == Addr::UNSPECIFIED || key.addr == Addr::UNSPECIFIED_V4)
}

impl Reconciler {
    /// Views of which a service is not written at all.
    pub(super) fn find_crowded(&self, scope: &Scope, report: &Report) -> BTreeSet<u32> {
        let missing = report
            .failed
            .iter()
            .map(|(key, _)| key)
            .filter(|key| !self.services.contains_key(key))
            .map(|key| key.view_id);
        // Of views that were not planned whole nobody knows whether there is room now.
        let before = self.crowded.iter().copied().filter(|view| {
            let [key, _] = rest_of(*view);
            !scope.contains(&key)
        });
        missing.chain(before).collect()
    }

    /// Where no more services are missing than entries of the rest hold room, those are taken back
    /// for the moment it takes to write them.
    pub(super) fn make_room(
        &mut self,
        scope: &Scope,
        services: &[(ServiceKey, ServicePlan)],
        sink: &mut impl Sink,
    ) {
        for view in self.crowded.clone() {
            let rest = rest_of(view);
            let missing = services
                .iter()
                .filter(|(key, _)| key.view_id == view && !self.services.contains_key(key))
                .count();
            if scope.contains(&rest[0]) && missing <= rest.len() {
                for key in rest {
                    // What stays is told when there is no room again.
                    let _ = self.remove(key, sink);
                }
            }
        }
    }

    /// Has the agent take the rest of these views, and of no others any more.
    pub(super) fn relieve(&mut self, crowded: BTreeSet<u32>, scope: &Scope, sink: &mut impl Sink) {
        for view in &crowded {
            for key in rest_of(*view) {
                self.give_rest(key, sink);
            }
        }
        let relieved: Vec<u32> = self.crowded.difference(&crowded).copied().collect();
        for key in relieved.into_iter().flat_map(rest_of) {
            let ours = self.services.get(&key);
            // What is planned for the rest has been written over ours.
            if scope.contains(&key)
                && ours.is_some_and(|ours| ours.plan == to_agent())
                && let Err(error) = self.remove(key, sink)
            {
                tracing::error!(%error, "the agent is still given what no service takes");
            }
        }
        self.crowded = crowded;
    }

    /// Where there is no room for that either, a service gives way: the agent serves it as well.
    fn give_rest(&mut self, key: ServiceKey, sink: &mut impl Sink) {
        let written = |one: &Self| {
            one.services
                .get(&key)
                .is_some_and(|one| one.plan == to_agent())
        };
        while !written(self) {
            let Err(error) = self.put(key, to_agent(), sink) else {
                return;
            };
            let gives_way = self
                .services
                .keys()
                .rfind(|one| one.view_id == key.view_id && !is_rest(one))
                .copied();
            let Some(gives_way) = gives_way else {
                tracing::error!(%error, "services that are not in the kernel are not served");
                return;
            };
            if let Err(error) = self.remove(gives_way, sink) {
                tracing::error!(%error, "services that are not in the kernel are not served");
                return;
            }
        }
    }
}

fn rest_of(view_id: u32) -> [ServiceKey; 2] {
    [Addr::UNSPECIFIED_V4, Addr::UNSPECIFIED].map(|addr| ServiceKey {
        view_id,
        addr,
        port: 0,
        proto: TCP as u16,
    })
}

fn to_agent() -> ServicePlan {
    ServicePlan {
        name: "(the rest)".into(),
        verdict: Verdict::Agent,
        lb: LbKind::RoundRobin,
        choices: 0,
        slots: Vec::new(),
        by_pod: std::collections::BTreeMap::new(),
        fail_open: false,
        why: "the kernel has no room for all services: the agent knows the others".into(),
    }
}
