//! Responses of clusters: by class, and how long they took.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use crate::snapshot::Snapshot;
use crate::telemetry::labels::escaped;

/// The metrics, in Prometheus' text format.
pub(super) fn prometheus(snapshot: &Snapshot, out: &mut String) {
    let views = snapshot.views.values();
    let clusters: Vec<_> = views.flat_map(|view| view.clusters.iter()).collect();
    let name = "envoy_cluster_upstream_rq_xx";
    let _ = writeln!(
        out,
        "# HELP {name} Responses of clusters by class.\n# TYPE {name} counter"
    );
    for (cluster, of) in &clusters {
        let cluster = escaped(cluster);
        for (class, counter) in of.state.stats.upstream_rq_xx.iter().enumerate().skip(1) {
            let value = counter.load(Ordering::Relaxed);
            let _ = writeln!(
                out,
                "{name}{{envoy_response_code_class=\"{class}\",envoy_cluster_name=\"{cluster}\"}} {value}"
            );
        }
    }
    let name = "envoy_cluster_upstream_rq_time";
    let _ = writeln!(
        out,
        "# HELP {name} Milliseconds from a request's first byte to its response's last one.\n\
         # TYPE {name} histogram"
    );
    for (cluster, of) in clusters {
        let stats = &of.state.stats;
        // Of ten thousand clusters most were never asked.
        if stats.upstream_rq_total.load(Ordering::Relaxed) > 0 {
            let labels = format!("{{envoy_cluster_name=\"{}\"}}", escaped(cluster));
            stats.upstream_rq_time.prometheus(name, &labels, out);
        }
    }
}
