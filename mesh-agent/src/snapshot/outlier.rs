//! Endpoints that are left alone for a while because they failed.
//!
//! What happened is counted on the endpoint's state, which outlives snapshots and is shared by
//! all workers. An ejection changes the number of the cluster's health; whoever chooses an
//! endpoint next finds it changed and builds the balancer anew.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::balance::outlier::{Rate, below_mean, failing};
use crate::config::model::outlier::{Check, OutlierDetection, RateCheck};

use super::ClusterView;
use super::cluster::{Host, now_ms};

/// How an attempt at an endpoint went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A response with this status, gRPC's status translated.
    Response(u16),
    /// A connection stands.
    Connected,
    /// No connection, or it ended before a response.
    Failed,
    /// It took too long.
    TimedOut,
}

/// What is remembered of an endpoint.
#[derive(Debug, Default)]
pub struct Record {
    ejected: AtomicBool,
    /// Milliseconds since the process began.
    ejected_at: AtomicU64,
    /// How many times the base the next ejection lasts.
    multiplier: AtomicU32,
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    consecutive_local: AtomicU32,
    external: Interval,
    local: Interval,
    /// Of the last interval, in hundredths of a percent and one more; 0: there were too few.
    success_rate: AtomicU64,
}

#[derive(Debug, Default)]
struct Interval {
    total: AtomicU64,
    success: AtomicU64,
}

impl Interval {
    fn count(&self, success: bool) {
        self.total.fetch_add(1, Ordering::Relaxed);
        if success {
            self.success.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn take(&self) -> Rate {
        Rate {
            total: self.total.swap(0, Ordering::Relaxed),
            success: self.success.swap(0, Ordering::Relaxed),
        }
    }
}

impl Record {
    /// Whether the endpoint is ejected now.
    pub fn ejected(&self) -> bool {
        self.ejected.load(Ordering::Relaxed)
    }

    /// How often it succeeded in the last interval, in percent; `None`: it was asked too seldom.
    pub fn success_rate(&self) -> Option<f64> {
        let told = self.success_rate.load(Ordering::Relaxed).checked_sub(1)?;
        Some(told as f64 / 100.0)
    }
}

/// Counters of a cluster, named as Envoy's `outlier_detection` statistics.
#[derive(Debug, Default)]
pub struct Stats {
    /// Ejections.
    pub ejections_enforced_total: AtomicU64,
    /// For 5xx in a row.
    pub ejections_enforced_consecutive_5xx: AtomicU64,
    /// For gateway errors in a row.
    pub ejections_enforced_consecutive_gateway_failure: AtomicU64,
    /// For failures without a response in a row.
    pub ejections_enforced_consecutive_local_origin_failure: AtomicU64,
    /// For the success rate.
    pub ejections_enforced_success_rate: AtomicU64,
    /// For the failure percentage.
    pub ejections_enforced_failure_percentage: AtomicU64,
    /// Not ejected because too many were.
    pub ejections_overflow: AtomicU64,
}

/// Why an endpoint is ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    Consecutive5xx,
    GatewayFailure,
    LocalOriginFailure,
    SuccessRate,
    FailurePercentage,
}

impl Reason {
    fn counter(self, stats: &Stats) -> &AtomicU64 {
        match self {
            Self::Consecutive5xx => &stats.ejections_enforced_consecutive_5xx,
            Self::GatewayFailure => &stats.ejections_enforced_consecutive_gateway_failure,
            Self::LocalOriginFailure => &stats.ejections_enforced_consecutive_local_origin_failure,
            Self::SuccessRate => &stats.ejections_enforced_success_rate,
            Self::FailurePercentage => &stats.ejections_enforced_failure_percentage,
        }
    }
}

/// Counts how an attempt went, and ejects the endpoint if it was one too many.
pub fn observe(cluster: &ClusterView, host: &Host, outcome: Outcome) {
    let Some(config) = &cluster.config.outlier else {
        return;
    };
    let record = &host.outlier;
    match outcome {
        Outcome::Response(status) => {
            if config.split_local_origin {
                record.local.count(true);
                record.consecutive_local.store(0, Ordering::Relaxed);
            }
            answered(cluster, config, host, status);
        }
        Outcome::Connected if config.split_local_origin => {
            record.local.count(true);
            record.consecutive_local.store(0, Ordering::Relaxed);
        }
        Outcome::Connected => answered(cluster, config, host, 200),
        Outcome::Failed | Outcome::TimedOut if config.split_local_origin => {
            record.local.count(false);
            in_a_row(
                cluster,
                config,
                host,
                &record.consecutive_local,
                config.consecutive_local_origin_failure,
                Reason::LocalOriginFailure,
            );
        }
        Outcome::Failed => answered(cluster, config, host, 503),
        Outcome::TimedOut => answered(cluster, config, host, 504),
    }
}

fn answered(cluster: &ClusterView, config: &OutlierDetection, host: &Host, status: u16) {
    let record = &host.outlier;
    let success = !(500..600).contains(&status);
    record.external.count(success);
    if success {
        // Only what is not so is written: all workers share the line.
        for row in [&record.consecutive_5xx, &record.consecutive_gateway] {
            if row.load(Ordering::Relaxed) != 0 {
                row.store(0, Ordering::Relaxed);
            }
        }
        return;
    }
    if (502..=504).contains(&status) {
        in_a_row(
            cluster,
            config,
            host,
            &record.consecutive_gateway,
            config.consecutive_gateway_failure,
            Reason::GatewayFailure,
        );
    } else {
        record.consecutive_gateway.store(0, Ordering::Relaxed);
    }
    in_a_row(
        cluster,
        config,
        host,
        &record.consecutive_5xx,
        config.consecutive_5xx,
        Reason::Consecutive5xx,
    );
}

fn in_a_row(
    cluster: &ClusterView,
    config: &OutlierDetection,
    host: &Host,
    row: &AtomicU32,
    check: Check,
    reason: Reason,
) {
    let reached = row.fetch_add(1, Ordering::Relaxed) + 1 == check.count;
    if reached {
        row.store(0, Ordering::Relaxed);
        eject(cluster, config, host, check.enforcing, reason);
    }
}

fn eject(
    cluster: &ClusterView,
    config: &OutlierDetection,
    host: &Host,
    enforcing: u32,
    reason: Reason,
) {
    let record = &host.outlier;
    if record.ejected() {
        return;
    }
    let stats = &cluster.state.stats.outlier;
    let all = cluster.hosts().count();
    let ejected = ejected(cluster);
    let share = 100.0 * (ejected + 1) as f64 / all as f64;
    if share > f64::from(config.max_ejection_percent) && !(config.always_eject_one && ejected == 0)
    {
        stats.ejections_overflow.fetch_add(1, Ordering::Relaxed);
        return;
    }
    if fastrand::u32(..100) >= enforcing || record.ejected.swap(true, Ordering::Relaxed) {
        return;
    }
    record.ejected_at.store(now_ms(), Ordering::Relaxed);
    let multiplier = record.multiplier.load(Ordering::Relaxed);
    if config.base_ejection_time * multiplier < config.max_ejection_time + config.base_ejection_time
    {
        record.multiplier.store(multiplier + 1, Ordering::Relaxed);
    }
    stats
        .ejections_enforced_total
        .fetch_add(1, Ordering::Relaxed);
    reason.counter(stats).fetch_add(1, Ordering::Relaxed);
    cluster.state.health_changed();
    tracing::info!(cluster = %cluster.config.name, address = %host.address, ?reason, "an endpoint is ejected");
}

/// How many endpoints are ejected.
pub fn ejected(cluster: &ClusterView) -> usize {
    cluster
        .hosts()
        .filter(|host| host.outlier.ejected())
        .count()
}

/// The turn of an interval: who may come back, and whose rate stands out.
pub fn turn(cluster: &ClusterView) {
    let Some(config) = &cluster.config.outlier else {
        return;
    };
    let hosts: Vec<&Host> = cluster.hosts().map(|host| &**host).collect();
    for host in &hosts {
        come_back(cluster, config, host);
    }
    let rates = |of: fn(&Record) -> &Interval| -> Vec<Rate> {
        let rate = |host: &&Host| {
            let rate = of(&host.outlier).take();
            // Who is ejected is not compared with the others.
            if host.outlier.ejected() {
                Rate::default()
            } else {
                rate
            }
        };
        hosts.iter().map(rate).collect()
    };
    let external = rates(|record| &record.external);
    let volume = u64::from(
        config
            .success_rate
            .request_volume
            .min(config.failure_percentage.request_volume),
    );
    for (host, rate) in hosts.iter().zip(&external) {
        let percent = (rate.total >= volume.max(1)).then(|| (rate.percent() * 100.0) as u64);
        let told = percent.map_or(0, |percent| percent + 1);
        host.outlier.success_rate.store(told, Ordering::Relaxed);
    }
    let success = config.success_rate;
    let failure = config.failure_percentage;
    compare(
        cluster,
        config,
        &hosts,
        &external,
        (success, success.enforcing),
        (failure, failure.enforcing),
    );
    if config.split_local_origin {
        let local = rates(|record| &record.local);
        compare(
            cluster,
            config,
            &hosts,
            &local,
            (success, success.enforcing_local_origin),
            (failure, failure.enforcing_local_origin),
        );
    }
}

fn compare(
    cluster: &ClusterView,
    config: &OutlierDetection,
    hosts: &[&Host],
    rates: &[Rate],
    (success, enforcing_success): (RateCheck, u32),
    (failure, enforcing_failure): (RateCheck, u32),
) {
    let factor = f64::from(success.threshold) / 1000.0;
    let volume = u64::from(success.request_volume);
    for index in below_mean(rates, volume, success.minimum_hosts as usize, factor) {
        let reason = Reason::SuccessRate;
        eject(cluster, config, hosts[index], enforcing_success, reason);
    }
    let threshold = f64::from(failure.threshold);
    let volume = u64::from(failure.request_volume);
    for index in failing(rates, volume, failure.minimum_hosts as usize, threshold) {
        let reason = Reason::FailurePercentage;
        eject(cluster, config, hosts[index], enforcing_failure, reason);
    }
}

fn come_back(cluster: &ClusterView, config: &OutlierDetection, host: &Host) {
    let record = &host.outlier;
    let multiplier = record.multiplier.load(Ordering::Relaxed);
    if !record.ejected() {
        // Well for an interval: the next ejection is a step shorter.
        record
            .multiplier
            .store(multiplier.saturating_sub(1), Ordering::Relaxed);
        return;
    }
    let jitter = config.max_ejection_jitter.mul_f64(fastrand::f64());
    let lasts = (config.base_ejection_time * multiplier).min(config.max_ejection_time) + jitter;
    let since = now_ms().saturating_sub(record.ejected_at.load(Ordering::Relaxed));
    if Duration::from_millis(since) >= lasts {
        for row in [
            &record.consecutive_5xx,
            &record.consecutive_gateway,
            &record.consecutive_local,
        ] {
            row.store(0, Ordering::Relaxed);
        }
        record.ejected.store(false, Ordering::Relaxed);
        cluster.state.health_changed();
        tracing::info!(cluster = %cluster.config.name, address = %host.address, "an endpoint is back");
    }
}
