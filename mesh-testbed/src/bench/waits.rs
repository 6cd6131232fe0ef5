//! How long the agent's workers were ready to run and had no core.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Threads that serve traffic.
const WORKERS: &str = "proxy-";

/// What all workers waited for a core since they began, and how often they ran.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Waits {
    waited: Duration,
    times: u64,
}

impl Waits {
    /// Of the workers of an agent.
    pub(super) fn of(agent: u32) -> Result<Self> {
        let mut all = Self::default();
        for task in fs::read_dir(format!("/proc/{agent}/task"))? {
            let task = task?.path();
            if !fs::read_to_string(task.join("comm"))?.starts_with(WORKERS) {
                continue;
            }
            let text = fs::read_to_string(task.join("schedstat"))?;
            let numbers: Vec<u64> = text
                .split_whitespace()
                .filter_map(|number| number.parse().ok())
                .collect();
            let [_, waited, times] = numbers[..] else {
                anyhow::bail!("schedstat is {text:?}");
            };
            all.waited += Duration::from_nanos(waited);
            all.times += times;
        }
        Ok(all)
    }

    /// The mean wait since then, in microseconds, of all the times that a worker was woken.
    pub(super) fn mean_us_since(self, before: Self) -> Result<f64> {
        let times = self
            .times
            .checked_sub(before.times)
            .filter(|times| *times > 0)
            .context("the workers did not run")?;
        let waited = self.waited.saturating_sub(before.waited);
        Ok(waited.as_secs_f64() * 1e6 / times as f64)
    }
}
