//! Rates of endpoints, and who stands out (Envoy: `DetectorImpl`).

/// How often an endpoint succeeded in an interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rate {
    /// Requests.
    pub total: u64,
    /// Those that succeeded.
    pub success: u64,
}

impl Rate {
    /// In percent; of nothing, nothing failed.
    pub fn percent(self) -> f64 {
        match self.total {
            0 => 100.0,
            total => 100.0 * self.success as f64 / total as f64,
        }
    }
}

/// Which of the endpoints succeed less often than the mean less `factor` standard deviations.
/// Endpoints with fewer than `volume` requests do not count, and fewer than `minimum` of the
/// others tell nothing.
pub fn below_mean(rates: &[Rate], volume: u64, minimum: usize, factor: f64) -> Vec<usize> {
    let valid: Vec<(usize, f64)> = enough(rates, volume);
    if valid.is_empty() || valid.len() < minimum {
        return Vec::new();
    }
    let count = valid.len() as f64;
    let mean = valid.iter().map(|(_, rate)| rate).sum::<f64>() / count;
    let variance = valid
        .iter()
        .map(|(_, rate)| (rate - mean).powi(2))
        .sum::<f64>()
        / count;
    let threshold = mean - factor * variance.sqrt();
    valid
        .into_iter()
        .filter(|(_, rate)| *rate < threshold)
        .map(|(index, _)| index)
        .collect()
}

/// Which of the endpoints fail at least `threshold` percent of their requests.
pub fn failing(rates: &[Rate], volume: u64, minimum: usize, threshold: f64) -> Vec<usize> {
    let valid = enough(rates, volume);
    if valid.is_empty() || valid.len() < minimum {
        return Vec::new();
    }
    valid
        .into_iter()
        .filter(|(_, rate)| 100.0 - rate >= threshold)
        .map(|(index, _)| index)
        .collect()
}

fn enough(rates: &[Rate], volume: u64) -> Vec<(usize, f64)> {
    rates
        .iter()
        .enumerate()
        .filter(|(_, rate)| rate.total >= volume.max(1))
        .map(|(index, rate)| (index, rate.percent()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(total: u64, success: u64) -> Rate {
        Rate { total, success }
    }

    #[test]
    fn who_succeeds_less_often_than_the_others_stands_out() {
        // The example of Envoy's documentation of the success rate's threshold.
        let mut rates = vec![rate(100, 100); 4];
        rates.push(rate(100, 50));
        assert_eq!(below_mean(&rates, 100, 5, 1.9), [4]);
        assert_eq!(below_mean(&rates, 100, 6, 1.9), [] as [usize; 0]);
        assert_eq!(below_mean(&rates, 101, 5, 1.9), [] as [usize; 0]);
    }

    #[test]
    fn who_fails_too_often_stands_out() {
        let rates = [rate(50, 7), rate(50, 8), rate(49, 0)];
        assert_eq!(failing(&rates, 50, 2, 85.0), [0]);
        assert_eq!(failing(&rates, 50, 3, 85.0), [] as [usize; 0]);
    }
}
