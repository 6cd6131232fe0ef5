//! Histograms with Envoy's buckets.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// Upper bounds of Envoy's buckets, in thousandths.
const BOUNDS: [u64; 19] = [
    500,
    1_000,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
];

/// Counts observations by size.
#[derive(Debug, Default)]
pub struct Histogram {
    /// The last one has no bound.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    /// Of all observations, in thousandths.
    sum: AtomicU64,
}

impl Histogram {
    /// Counts an observation, in thousandths of the metric's unit.
    pub fn observe(&self, thousandths: u64) {
        let at = BOUNDS.partition_point(|bound| *bound < thousandths);
        self.buckets[at].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(thousandths, Ordering::Relaxed);
    }

    /// Writes it in Prometheus' text format. `labels` are in braces, or empty.
    pub fn prometheus(&self, name: &str, labels: &str, out: &mut String) {
        let inner = labels.strip_suffix('}').unwrap_or("{");
        let comma = if inner.len() > 1 { "," } else { "" };
        let mut count = 0;
        for (i, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Ordering::Relaxed);
            let _ = match BOUNDS.get(i) {
                Some(bound) => {
                    let bound = *bound as f64 / 1000.0;
                    writeln!(out, "{name}_bucket{inner}{comma}le=\"{bound}\"}} {count}")
                }
                None => writeln!(out, "{name}_bucket{inner}{comma}le=\"+Inf\"}} {count}"),
            };
        }
        let sum = self.sum.load(Ordering::Relaxed) as f64 / 1000.0;
        let _ = writeln!(out, "{name}_sum{labels} {sum}");
        let _ = writeln!(out, "{name}_count{labels} {count}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_belong_to_their_bucket_and_buckets_add_up() {
        let histogram = Histogram::default();
        for thousandths in [500, 501, 1_000, 4_000_000_000] {
            histogram.observe(thousandths);
        }
        let mut out = String::new();
        histogram.prometheus("h", "{a=\"b\"}", &mut out);
        let line = |text: &str| out.lines().any(|line| line == text);
        assert!(line("h_bucket{a=\"b\",le=\"0.5\"} 1"), "{out}");
        assert!(line("h_bucket{a=\"b\",le=\"1\"} 3"), "{out}");
        assert!(line("h_bucket{a=\"b\",le=\"3600000\"} 3"), "{out}");
        assert!(line("h_bucket{a=\"b\",le=\"+Inf\"} 4"), "{out}");
        assert!(line("h_sum{a=\"b\"} 4000002.001"), "{out}");
        assert!(line("h_count{a=\"b\"} 4"), "{out}");
        let mut out = String::new();
        histogram.prometheus("h", "", &mut out);
        assert!(out.starts_with("h_bucket{le=\"0.5\"} 1\n"), "{out}");
    }
}
