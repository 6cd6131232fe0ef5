//! Weights into slots: what the kernel's round robin and random choice walk over.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::config::model::endpoint::Health;
use crate::snapshot::ClusterView;
use crate::snapshot::cluster::Host;

/// Most slots of one service. Finer weights are rounded to this resolution.
pub const MAX_SLOTS: usize = 1024;

/// An endpoint and its share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weighted {
    /// The endpoint.
    pub address: SocketAddr,
    /// Its share of the sum of all.
    pub weight: f64,
}

/// The endpoints new connections may go to, with weights that sum to 1; empty when there are
/// none. The highest priority with a healthy endpoint serves; without any, Envoy's panic: all do.
pub fn weights(cluster: &ClusterView) -> Vec<Weighted> {
    let hosts = usable(&cluster.priorities, cluster.config.panic_threshold_percent);
    let total: f64 = hosts.iter().map(|host| f64::from(host.weight)).sum();
    hosts
        .into_iter()
        .map(|host| Weighted {
            address: host.address,
            weight: f64::from(host.weight) / total,
        })
        .collect()
}

/// The usable endpoints in the order round robin walks them, each as often as its weight says.
pub fn schedule(priorities: &[Vec<Arc<Host>>], panic_threshold_percent: f64) -> Vec<Arc<Host>> {
    let hosts = usable(priorities, panic_threshold_percent);
    let weights: Vec<f64> = hosts.iter().map(|host| f64::from(host.weight)).collect();
    interleave(&shares(&weights))
        .into_iter()
        .map(|index| hosts[index].clone())
        .collect()
}

fn usable(priorities: &[Vec<Arc<Host>>], panic_threshold_percent: f64) -> Vec<&Arc<Host>> {
    let with = |health: Health| {
        priorities.iter().find_map(|hosts| {
            let hosts: Vec<&Arc<Host>> =
                hosts.iter().filter(|host| host.health == health).collect();
            (!hosts.is_empty()).then_some(hosts)
        })
    };
    with(Health::Healthy)
        .or_else(|| with(Health::Degraded))
        .unwrap_or_else(|| {
            if panic_threshold_percent > 0.0 {
                priorities.first().into_iter().flatten().collect()
            } else {
                Vec::new()
            }
        })
}

/// How many slots each endpoint gets: proportional to its weight, at least one when there is
/// room, [`MAX_SLOTS`] in total at most. Equal weights and small whole ratios come out exact.
pub fn shares(weights: &[f64]) -> Vec<usize> {
    let weights: Vec<f64> = weights.iter().map(|weight| weight.max(0.0)).collect();
    let total: f64 = weights.iter().sum();
    if total <= 0.0 {
        return vec![0; weights.len()];
    }
    let positive = weights.iter().filter(|weight| **weight > 0.0).count();
    let smallest = weights
        .iter()
        .copied()
        .filter(|weight| *weight > 0.0)
        .fold(f64::INFINITY, f64::min);
    // A small total that hits every weight exactly, if there is one.
    for multiple in 1..=100_usize {
        let unit = smallest / multiple as f64;
        if total / unit > MAX_SLOTS as f64 + 0.5 {
            break;
        }
        if weights
            .iter()
            .all(|weight| (weight / unit - (weight / unit).round()).abs() < 1e-6)
        {
            return weights
                .iter()
                .map(|weight| (weight / unit).round() as usize)
                .collect();
        }
    }
    // Largest remainder at full resolution.
    let slots = MAX_SLOTS.max(positive.min(MAX_SLOTS));
    let exact: Vec<f64> = weights
        .iter()
        .map(|weight| weight / total * slots as f64)
        .collect();
    let mut counts: Vec<usize> = exact
        .iter()
        .map(|share| {
            if *share > 0.0 {
                (share.floor() as usize).max(1)
            } else {
                0
            }
        })
        .collect();
    let mut order: Vec<usize> = (0..counts.len()).filter(|i| exact[*i] > 0.0).collect();
    order.sort_by(|a, b| (exact[*b].fract()).total_cmp(&exact[*a].fract()));
    let used: usize = counts.iter().sum();
    for index in order.iter().cycle().take(slots.saturating_sub(used)) {
        counts[*index] += 1;
    }
    counts
}

/// The slots in the order round robin walks them: a smooth weighted round robin, so that an
/// endpoint's turns are spread out. Returns indices into `shares`.
pub fn interleave(shares: &[usize]) -> Vec<usize> {
    let total: usize = shares.iter().sum();
    if shares.iter().all(|share| *share == 1) {
        return (0..total).collect();
    }
    // Every turn of an endpoint has an ideal position; turns are sorted by it.
    let mut turns: Vec<(f64, usize)> = shares
        .iter()
        .enumerate()
        .flat_map(|(index, share)| {
            (0..*share).map(move |turn| ((turn as f64 + 0.5) / *share as f64, index))
        })
        .collect();
    turns.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    turns.into_iter().map(|(_, index)| index).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn whole_ratios_are_exact() {
        assert_eq!(shares(&[0.9, 0.1]), [9, 1]);
        assert_eq!(shares(&[1.0, 1.0, 1.0]), [1, 1, 1]);
        assert_eq!(shares(&[0.2, 0.3]), [2, 3]);
        assert_eq!(shares(&[1.0, 0.0]), [1, 0]);
        assert_eq!(shares(&[0.0, 0.0]), [0, 0]);
    }

    #[test]
    fn turns_are_spread_out() {
        assert_eq!(interleave(&[2, 1]), [0, 1, 0]);
        assert_eq!(interleave(&[1, 1, 1]), [0, 1, 2]);
        let order = interleave(&[9, 1]);
        assert_eq!(order.iter().filter(|index| **index == 1).count(), 1);
        assert_eq!(order.iter().position(|index| *index == 1), Some(5));
    }

    proptest! {
        #[test]
        fn shares_follow_weights(weights in proptest::collection::vec(0.0_f64..100.0, 1..200)) {
            let counts = shares(&weights);
            let slots: usize = counts.iter().sum();
            let total: f64 = weights.iter().sum();
            prop_assert!(slots <= MAX_SLOTS + weights.len());
            for (weight, count) in weights.iter().zip(&counts) {
                prop_assert_eq!(*weight > 0.0, *count > 0);
                if total > 0.0 {
                    let share = *count as f64 / slots as f64;
                    prop_assert!((share - weight / total).abs() < 0.2 / (weights.len() as f64).sqrt() + 0.01);
                }
            }
            prop_assert_eq!(interleave(&counts).len(), slots);
        }
    }
}
