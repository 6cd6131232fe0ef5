//! What the operator reads.

use super::measure::{Metric, Row};
use super::stats::median;

/// A larger share than this of the machine in other hands, and figures are in doubt.
const QUIET: f64 = 0.05;

/// The least a ratio must be, and what is aimed at.
const TARGETS: [(&str, Metric, &str, f64, f64); 21] = [
    ("l4-direct", Metric::Rps, "no mesh", 0.95, 1.0),
    ("l4-direct", Metric::Connects, "no mesh", 0.95, 1.0),
    ("l4-direct", Metric::Throughput, "no mesh", 0.95, 1.0),
    ("l4-direct-sockmap", Metric::Rps, "no mesh", 1.4, 1.6),
    // 0.7 and 0.6 of the CPU time.
    (
        "l4-direct-sockmap",
        Metric::CpuPerRequest,
        "no mesh",
        1.43,
        1.67,
    ),
    ("l4-direct-sockmap", Metric::Connects, "no mesh", 0.93, 1.0),
    (
        "l4-direct-sockmap",
        Metric::Throughput,
        "no mesh",
        0.95,
        1.0,
    ),
    ("l7-http1", Metric::Rps, "envoy", 1.3, 2.0),
    ("l7-http1", Metric::LatencyP99, "envoy", 1.3, 2.0),
    ("l7-h2", Metric::Rps, "envoy", 1.3, 2.0),
    ("l7-h2", Metric::LatencyP99, "envoy", 1.3, 2.0),
    ("l7-grpc", Metric::Rps, "envoy", 1.3, 2.0),
    ("l7-grpc", Metric::LatencyP99, "envoy", 1.3, 2.0),
    ("mtls-l4", Metric::Rps, "envoy", 1.5, 2.0),
    ("mtls-l4", Metric::Connects, "envoy", 1.5, 2.0),
    ("mtls-l4", Metric::Throughput, "envoy", 1.5, 2.0),
    ("mtls-l4-hbone", Metric::Rps, "envoy", 1.5, 2.0),
    ("mtls-l4-hbone", Metric::Connects, "envoy", 1.5, 2.0),
    ("mtls-l4-hbone", Metric::Throughput, "envoy", 1.5, 2.0),
    ("mtls-l7", Metric::Rps, "envoy", 2.5, 4.0),
    ("same-node-l7", Metric::Rps, "envoy", 3.0, 5.0),
];

pub(super) fn print(rows: &[Row]) {
    println!(
        "\n{:<18}{:<22}{:>12}{:>12}  {:<14}{:<9}{:>7}{:>8}  must  aim",
        "path", "metric", "ours", "reference", "unit", "", "ratio", "spread"
    );
    for row in rows {
        let target = TARGETS.iter().find(|(path, metric, reference, ..)| {
            (*path, *metric, *reference) == (row.path, row.metric, row.reference_name)
        });
        let target = target.map_or(String::new(), |(.., must, aim)| {
            let verdict = match row.ratio {
                ratio if ratio >= *aim => "aim reached",
                ratio if ratio >= *must => "reached",
                _ => "MISSED",
            };
            format!("{must:<5} {aim:<4} {verdict}")
        });
        println!(
            "{:<18}{:<22}{:>12}{:>12}  {:<14}{:<9}{:>6.2}x{:>7.0}%  {target}",
            row.path,
            name(row.metric),
            figure(row.ours),
            figure(row.reference),
            row.unit,
            row.reference_name,
            row.ratio,
            row.spread * 100.0
        );
    }
}

/// Says whether others used the machine meanwhile.
pub(super) fn print_noise(shares: &[f64]) {
    let noisy = shares.iter().filter(|share| **share > QUIET).count();
    if noisy > 0 {
        println!(
            "\nnoisy: others had more than {:.0}% of the machine in {noisy} of {} measurements \
             (median {:.0}%); trust ratios and CPU time, and repeat when it is quiet",
            QUIET * 100.0,
            shares.len(),
            median(shares).unwrap_or_default() * 100.0
        );
    }
}

/// Says what went wrong and was measured again.
pub(super) fn print_failures(failures: &[String]) {
    if !failures.is_empty() {
        println!("\nmeasured again, because something went wrong:");
    }
    for failure in failures {
        println!("  {failure}");
    }
}

/// As JSON names it.
pub(super) fn name(metric: Metric) -> String {
    serde_json::to_value(metric)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// Three digits that mean something.
fn figure(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
