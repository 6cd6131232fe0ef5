//! Shares of localities within a priority.

/// A locality's weight after what it lost to sick endpoints: it keeps all of it until the
/// overprovisioning is used up (Envoy: `effectiveLocalityWeight`).
///
/// `factor` is the overprovisioning factor in percent. A locality without a weight gets nothing.
pub fn effective_weight(weight: Option<u32>, eligible: usize, total: usize, factor: u32) -> f64 {
    if total == 0 {
        return 0.0;
    }
    let available = f64::from(factor) / 100.0 * eligible as f64 / total as f64;
    f64::from(weight.unwrap_or(0)) * available.min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locality_keeps_its_weight_until_overprovisioning_is_used_up() {
        let of_100 = |healthy| effective_weight(Some(10), healthy, 100, 140);
        assert_eq!(of_100(100), 10.0);
        assert_eq!(of_100(72), 10.0);
        assert!((of_100(50) - 7.0).abs() < 1e-9);
        assert_eq!(of_100(0), 0.0);
        assert_eq!(effective_weight(None, 1, 1, 140), 0.0);
        assert_eq!(effective_weight(Some(1), 0, 0, 140), 0.0);
    }
}
