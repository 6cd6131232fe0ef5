//! Shares of priorities, and panic: Envoy's `LoadBalancerBase`.

/// Endpoints of one priority, by number or by weight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// All of them.
    pub total: u64,
    /// The healthy ones.
    pub healthy: u64,
    /// The degraded ones.
    pub degraded: u64,
}

/// What decides over the share of one priority.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Level {
    /// How many endpoints there are: decides over panic.
    pub count: Endpoints,
    /// What counts as available: the same numbers, or weights (`weighted_priority_health`).
    pub available: Endpoints,
}

/// Which endpoints of a priority are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// The healthy ones.
    Healthy,
    /// The degraded ones.
    Degraded,
}

/// Percent of the load for each priority; all numbers together are 100.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loads {
    /// For the healthy endpoints of each priority.
    pub healthy: Vec<u32>,
    /// For the degraded endpoints of each priority.
    pub degraded: Vec<u32>,
    /// Whether a priority spreads its load over all its endpoints, however sick.
    pub panic: Vec<bool>,
}

impl Loads {
    /// Spreads the load over priorities, the first one being the highest.
    ///
    /// `factor` is the overprovisioning factor in percent: at 140 a priority takes all it is
    /// given until fewer than 72 % of its endpoints are available. `panic_threshold` is in
    /// percent, too; 0 disables panic.
    pub fn new(levels: &[Level], factor: u32, panic_threshold: u32) -> Self {
        let none = vec![0; levels.len()];
        let mut loads = Self {
            healthy: none.clone(),
            degraded: none,
            panic: vec![false; levels.len()],
        };
        if levels.is_empty() {
            return loads;
        }
        let percent = |part: fn(&Endpoints) -> u64| -> Vec<u32> {
            levels
                .iter()
                .map(|level| availability(part(&level.available), level.available.total, factor))
                .collect()
        };
        let healthy = percent(|endpoints| endpoints.healthy);
        let degraded = percent(|endpoints| endpoints.degraded);
        let sum: u32 = healthy.iter().chain(&degraded).sum();
        let available = sum.min(100);
        if available > 0 {
            loads.spread(&healthy, &degraded, available);
        }
        if available == 0 && panic_threshold == 0 {
            // Nobody can take it, but the load must add up.
            loads.healthy[0] = 100;
            return loads;
        }
        if available < 100 {
            for (panic, level) in loads.panic.iter_mut().zip(levels) {
                *panic = in_panic(&level.count, panic_threshold);
            }
        }
        if loads.panic.iter().all(|panic| *panic) {
            loads.spread_in_total_panic(levels);
        }
        loads
    }

    /// The priority and endpoints for a number drawn evenly at random.
    pub fn choose(&self, random: u64) -> Option<(usize, Availability)> {
        let mut left = (random % 100) as u32;
        let healthy = self
            .healthy
            .iter()
            .map(|load| (Availability::Healthy, load));
        let degraded = self
            .degraded
            .iter()
            .map(|load| (Availability::Degraded, load));
        let healthy = healthy.enumerate().chain(degraded.enumerate());
        for (priority, (availability, load)) in healthy {
            if left < *load {
                return Some((priority, availability));
            }
            left -= load;
        }
        None
    }

    /// Healthy endpoints first, then degraded ones, each from the highest priority down; what
    /// rounding leaves goes to the first that takes any.
    fn spread(&mut self, healthy: &[u32], degraded: &[u32], available: u32) {
        let mut left = 100;
        for (load, percent) in self
            .healthy
            .iter_mut()
            .zip(healthy)
            .chain(self.degraded.iter_mut().zip(degraded))
        {
            *load = left.min(100 * percent / available);
            left -= *load;
        }
        let first = self
            .healthy
            .iter_mut()
            .zip(healthy)
            .chain(self.degraded.iter_mut().zip(degraded))
            .find(|(_, percent)| **percent > 0);
        if let Some((load, _)) = first {
            *load += left;
        }
    }

    /// Nothing is well anywhere: by the number of endpoints.
    fn spread_in_total_panic(&mut self, levels: &[Level]) {
        self.degraded.fill(0);
        self.healthy.fill(0);
        let total: u64 = levels.iter().map(|level| level.count.total).sum();
        if total == 0 {
            self.healthy[0] = 100;
            return;
        }
        let mut left = 100;
        for (load, level) in self.healthy.iter_mut().zip(levels) {
            *load = (100 * level.count.total / total) as u32;
            left -= *load;
        }
        let first = levels.iter().position(|level| level.count.total > 0);
        self.healthy[first.unwrap_or(0)] += left;
    }
}

/// Percent of what a priority could be given that it can take.
fn availability(part: u64, total: u64, factor: u32) -> u32 {
    if total == 0 {
        return 0;
    }
    (u128::from(factor) * u128::from(part) / u128::from(total)).min(100) as u32
}

fn in_panic(count: &Endpoints, threshold: u32) -> bool {
    let available = count.healthy + count.degraded;
    let percent = match count.total {
        0 => 0.0,
        total => 100.0 * available as f64 / total as f64,
    };
    percent < f64::from(threshold)
}

#[cfg(test)]
mod tests;
