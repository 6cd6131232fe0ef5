//! Where endpoints stand when they are chosen by hash.

use std::collections::HashMap;
use std::sync::Arc;

use crate::balance::locality::effective_weight;
use crate::balance::maglev::Maglev;
use crate::balance::ring::Ring;
use crate::config::model::cluster::LbPolicy;
use crate::config::model::endpoint::Locality;

use super::balancer::Settings;
use super::cluster::Host;

/// A ring or a table of endpoints.
#[derive(Debug)]
pub(super) enum Places {
    Ring(Ring),
    Maglev(Maglev),
}

/// Whether a policy chooses by hash.
pub(super) const fn is_by_hash(policy: LbPolicy) -> bool {
    matches!(policy, LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. })
}

impl Places {
    /// `None`: the policy does not choose by hash.
    pub(super) fn new(hosts: &[Arc<Host>], settings: &Settings) -> Option<Self> {
        let (LbPolicy::RingHash { by_hostname, .. } | LbPolicy::Maglev { by_hostname, .. }) =
            settings.policy
        else {
            return None;
        };
        let weights = weights(hosts, settings);
        let endpoints: Vec<(String, f64)> = hosts
            .iter()
            .zip(weights)
            .map(|(host, weight)| (key(host, by_hostname), weight))
            .collect();
        Some(match settings.policy {
            LbPolicy::Maglev { table_size, .. } => {
                Self::Maglev(Maglev::new(&endpoints, table_size))
            }
            LbPolicy::RingHash { size, function, .. } => {
                Self::Ring(Ring::new(&endpoints, size, function))
            }
            _ => return None,
        })
    }

    pub(super) fn pick(&self, hash: u64, attempt: usize) -> Option<usize> {
        match self {
            Self::Ring(ring) => ring.pick(hash, attempt),
            Self::Maglev(table) => table.pick(hash, attempt as u64),
        }
    }
}

fn key(host: &Host, by_hostname: bool) -> String {
    if by_hostname {
        host.hostname.to_string()
    } else {
        host.address.to_string()
    }
}

/// Endpoints' weights, as shares of their locality's where localities weigh.
fn weights(hosts: &[Arc<Host>], settings: &Settings) -> Vec<f64> {
    let own = |host: &Host| f64::from(host.weight);
    if !settings.locality_weighted {
        return hosts.iter().map(|host| own(host)).collect();
    }
    let mut localities: HashMap<&Locality, (f64, usize)> = HashMap::new();
    for host in hosts {
        let (sum, count) = localities.entry(&host.locality).or_default();
        *sum += own(host);
        *count += 1;
    }
    hosts
        .iter()
        .map(|host| {
            let (sum, count) = localities[&*host.locality];
            let factor = settings.overprovisioning_factor;
            let locality = effective_weight(host.locality_weight, count, count, factor);
            own(host) / sum * locality
        })
        .collect()
}
