//! What endpoints report of their load, and the weights that follow
//! (Envoy: `OrcaWeightManager`, `ClientSideWeightedRoundRobinLoadBalancer`).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::balance::load_report::LoadReport;
use crate::config::model::client_weights::ClientWeights;

use super::ClusterView;
use super::cluster::{Host, now_ms};

/// No moment.
const NEVER: u64 = u64::MAX;

/// An endpoint's reports; outlives snapshots.
#[derive(Debug)]
pub struct Reported {
    /// By the last report.
    weight: AtomicU32,
    /// Since when there are reports without a gap.
    since_ms: AtomicU64,
    /// When the last one came.
    last_ms: AtomicU64,
    /// What requests are given by; computed at intervals.
    current: AtomicU32,
}

impl Default for Reported {
    fn default() -> Self {
        Self {
            weight: AtomicU32::new(0),
            since_ms: AtomicU64::new(NEVER),
            last_ms: AtomicU64::new(0),
            current: AtomicU32::new(1),
        }
    }
}

impl Reported {
    /// Takes a report.
    pub fn take(&self, report: &LoadReport, config: &ClientWeights) {
        self.take_at(report, config, now_ms());
    }

    fn take_at(&self, report: &LoadReport, config: &ClientWeights, now: u64) {
        let Some(weight) = report.weight(&config.metrics, config.error_penalty) else {
            return;
        };
        self.weight.store(weight, Ordering::Relaxed);
        // Whoever comes first tells since when.
        let _ = self
            .since_ms
            .compare_exchange(NEVER, now, Ordering::Relaxed, Ordering::Relaxed);
        self.last_ms.store(now, Ordering::Relaxed);
    }

    /// The weight, if it counts.
    fn valid(&self, config: &ClientWeights, now: u64) -> Option<u32> {
        let since = self.since_ms.load(Ordering::Relaxed);
        let ms =
            |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(NEVER);
        if since == NEVER || since.saturating_add(ms(config.blackout)) > now {
            return None;
        }
        let last = self.last_ms.load(Ordering::Relaxed);
        if last.saturating_add(ms(config.expiration)) < now {
            self.since_ms.store(NEVER, Ordering::Relaxed);
            return None;
        }
        Some(self.weight.load(Ordering::Relaxed))
    }

    /// What requests are given by.
    pub fn current(&self) -> f64 {
        f64::from(self.current.load(Ordering::Relaxed).max(1))
    }
}

impl ClusterView {
    /// Computes the weights of all endpoints anew when it is time. One of those who ask does.
    pub fn weigh(&self, config: &ClientWeights) {
        let now = now_ms();
        let due = &self.state.weighed_ms;
        let last = due.load(Ordering::Relaxed);
        let interval = u64::try_from(config.update.as_millis()).unwrap_or(NEVER);
        if now < last.saturating_add(interval) {
            return;
        }
        if due
            .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
        {
            weigh(self.hosts().map(|host| &**host), config, now);
        }
    }
}

/// Endpoints without a weight of their own get the median of the others', or 1.
fn weigh<'h>(hosts: impl Iterator<Item = &'h Host>, config: &ClientWeights, now: u64) {
    let reported: Vec<&Reported> = hosts.map(|host| &host.state.reported).collect();
    let weights: Vec<Option<u32>> = reported
        .iter()
        .map(|reported| reported.valid(config, now))
        .collect();
    let instead = median(weights.iter().flatten().copied().collect());
    for (reported, weight) in reported.iter().zip(weights) {
        let weight = weight.unwrap_or(instead);
        reported.current.store(weight, Ordering::Relaxed);
    }
}

fn median(mut weights: Vec<u32>) -> u32 {
    weights.sort_unstable();
    let middle = weights.len() / 2;
    match weights.len() {
        0 => 1,
        odd if odd % 2 == 1 => weights[middle],
        _ => {
            let sum = u64::from(weights[middle - 1]) + u64::from(weights[middle]);
            u32::try_from(sum / 2).unwrap_or(u32::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn reports_count_after_the_blackout_and_until_they_expire() {
        let config = ClientWeights {
            blackout: Duration::from_secs(10),
            expiration: Duration::from_secs(180),
            update: Duration::from_secs(1),
            error_penalty: 1.0,
            metrics: Vec::new(),
        };
        let report = LoadReport::parse_text("application_utilization=0.5,rps_fractional=100")
            .expect("a report");
        let reported = Reported::default();
        assert_eq!(reported.valid(&config, 0), None);
        reported.take_at(&report, &config, 1_000);
        assert_eq!(reported.valid(&config, 10_999), None);
        assert_eq!(reported.valid(&config, 11_000), Some(200));
        assert_eq!(reported.valid(&config, 181_000), Some(200));
        assert_eq!(reported.valid(&config, 181_001), None);
        // After a gap the blackout begins anew.
        reported.take_at(&report, &config, 200_000);
        assert_eq!(reported.valid(&config, 209_999), None);
        assert_eq!(reported.valid(&config, 210_000), Some(200));
    }

    #[test]
    fn who_did_not_report_weighs_as_the_others_do() {
        assert_eq!(median(vec![]), 1);
        assert_eq!(median(vec![7]), 7);
        assert_eq!(median(vec![9, 1, 5]), 5);
        assert_eq!(median(vec![4, 2, 9, 1]), 3);
    }
}
