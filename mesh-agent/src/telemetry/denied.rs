//! Connects that the kernel refused: counted all, logged in moderation.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::config::model::workload::Workload;
use crate::datapath::Denied;

use super::labels::Rendering;
use super::pods::Pods;

/// In this time ...
const WINDOW: Duration = Duration::from_secs(10);
/// ... so many lines are logged.
const LINES: u32 = 20;

/// The counters, and how much was logged lately.
#[derive(Debug, Default)]
pub(super) struct DeniedConnects {
    by_labels: BTreeMap<String, u64>,
    window: Option<Instant>,
    lines: u32,
    unlogged: u64,
}

impl DeniedConnects {
    /// Counts them.
    pub(super) fn count(&mut self, denied: &[Denied], pods: &Pods, now: Instant) {
        if self.window.is_none_or(|start| now - start > WINDOW) {
            if self.unlogged > 0 {
                tracing::warn!(times = self.unlogged, "more connects were refused");
            }
            (self.window, self.lines, self.unlogged) = (Some(now), 0, 0);
        }
        for one in denied {
            let workload = pods.by_netns(one.netns_cookie).map(|workload| &**workload);
            let name = |of: fn(&Workload) -> &str| workload.map_or("unknown", of);
            *self.by_labels.entry(labels(one, workload)).or_default() += one.times;
            if self.lines < LINES {
                self.lines += 1;
                tracing::warn!(
                    pod = name(|workload| &workload.name),
                    namespace = name(|workload| &workload.namespace),
                    destination = %one.to,
                    service = one.service.as_deref().unwrap_or("unknown"),
                    reason = one.reason,
                    rule = one.rule,
                    times = one.times,
                    "connect refused"
                );
            } else {
                self.unlogged += one.times;
            }
        }
    }

    /// The metric. Destinations are not among its labels: a pod may dial any number of them.
    pub(super) fn prometheus(&self, out: &mut String) {
        out.push_str("# TYPE mesh_denied_connections_total counter\n");
        for (labels, times) in &self.by_labels {
            let _ = writeln!(out, "mesh_denied_connections_total{labels} {times}");
        }
    }
}

fn labels(denied: &Denied, workload: Option<&Workload>) -> String {
    let mut labels = Rendering::new();
    labels.add("source_workload", workload.map(|workload| &*workload.name));
    labels.add(
        "source_workload_namespace",
        workload.map(|workload| &*workload.namespace),
    );
    labels.add("service", denied.service.as_deref());
    labels.add("reason", Some(denied.reason));
    labels.finish()
}
