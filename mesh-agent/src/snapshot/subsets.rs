//! A cluster's endpoints by the subset that a request asks for.

use std::sync::Arc;

use crate::balance::subset::{Choice, Metadata, Subsets};
use crate::config::model::cluster::Subsetting;

use super::balancer::{Balancer, Settings};
use super::cluster::{Changing, ClusterState, Host};

/// The subsets of a cluster, each with a balancer of its own.
#[derive(Debug)]
pub(super) struct BySubset {
    subsets: Subsets,
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    priorities: Vec<Vec<Arc<Host>>>,
    balancer: Changing,
}

/// Who serves a request.
pub(super) enum Chosen {
    /// The whole cluster.
    Any,
    /// A subset.
    Some(arc_swap::Guard<Arc<Balancer>>),
    Nobody,
}

impl BySubset {
    pub(super) fn new(
        config: &Subsetting,
        priorities: &[Vec<Arc<Host>>],
        settings: Settings,
        state: &ClusterState,
    ) -> Self {
        let settings = Settings {
            locality_weighted: settings.locality_weighted && config.locality_weight_aware,
            ..settings
        };
        let hosts: Vec<(usize, &Arc<Host>)> = priorities
            .iter()
            .enumerate()
            .flat_map(|(priority, hosts)| hosts.iter().map(move |host| (priority, host)))
            .collect();
        let metadata: Vec<&Metadata> = hosts.iter().map(|(_, host)| &*host.lb_metadata).collect();
        let subsets = Subsets::new(&metadata, &config.settings);
        let groups = subsets
            .groups()
            .iter()
            .map(|members| {
                let mut own = vec![Vec::new(); priorities.len()];
                for (priority, host) in members.iter().map(|member| hosts[*member]) {
                    own[priority].push(host.clone());
                }
                Group {
                    balancer: Changing::new(&own, settings, state),
                    priorities: own,
                }
            })
            .collect();
        Self { subsets, groups }
    }

    pub(super) fn choose(&self, wanted: &Metadata, state: &ClusterState) -> Chosen {
        match self.subsets.find(wanted) {
            Choice::Any => Chosen::Any,
            Choice::Nobody => Chosen::Nobody,
            Choice::Group(group) => {
                let group = &self.groups[group];
                Chosen::Some(group.balancer.current(&group.priorities, state))
            }
        }
    }
}
