//! CPU time: of a stage, of its parts, and of everybody else.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// CPU time used by a stage.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    /// All its processes.
    pub(super) all: Duration,
    /// The proxy alone.
    pub(super) proxy: Duration,
    /// The server's pod.
    pub(super) server: Duration,
}

impl Usage {
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            all: self.all.saturating_sub(before.all),
            proxy: self.proxy.saturating_sub(before.proxy),
            server: self.server.saturating_sub(before.server),
        }
    }
}

/// Of all processes that are or were in a cgroup or below. Work of the network stack counts for
/// whoever runs while it is done.
pub(super) fn of_cgroup(path: &Path) -> Result<Duration> {
    let file = path.join("cpu.stat");
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("cannot read {}", file.display()))?;
    let micros = text
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "))
        .and_then(|value| value.parse().ok())
        .with_context(|| format!("{} has no usage_usec", file.display()))?;
    Ok(Duration::from_micros(micros))
}

/// Of a process.
pub(super) fn of_process(pid: u32) -> Result<Duration> {
    let file = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    // After the name, which may contain anything: fields 14 and 15 are user and system time.
    let (_, fields) = text.rsplit_once(") ").context("a process has a name")?;
    let ticks = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(str::parse::<u64>)
        .sum::<Result<u64, std::num::ParseIntError>>()?;
    Ok(Duration::from_secs_f64(ticks as f64 / hertz()))
}

/// What the whole machine did since this was made.
#[derive(Debug)]
pub(super) struct Machine {
    since: Instant,
    busy: Duration,
    stolen: Duration,
}

impl Machine {
    pub(super) fn now() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        // user nice system idle iowait irq softirq steal; guests are in user.
        let ticks: Vec<f64> = text
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            .filter_map(|field| field.parse().ok())
            .collect();
        let of = |columns: &[usize]| {
            let sum: f64 = columns.iter().filter_map(|&column| ticks.get(column)).sum();
            Duration::from_secs_f64(sum / hertz())
        };
        Ok(Self {
            since: Instant::now(),
            busy: of(&[0, 1, 2, 5, 6]),
            stolen: of(&[7]),
        })
    }

    /// The share of the machine that others than `own` took since: other processes, and other
    /// machines of the same host.
    pub(super) fn others(&self, own: Duration) -> Result<f64> {
        let now = Self::now()?;
        let cores = std::thread::available_parallelism()?.get() as f64;
        let capacity = (now.since - self.since).as_secs_f64() * cores;
        let busy = now.busy.saturating_sub(self.busy).saturating_sub(own);
        let stolen = now.stolen.saturating_sub(self.stolen);
        Ok((busy + stolen).as_secs_f64() / capacity)
    }
}

fn hertz() -> f64 {
    // SAFETY: sysconf takes a constant and touches no memory.
    let hertz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    if hertz > 0 { hertz as f64 } else { 100.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_computes_uses_time() {
        let before = of_process(std::process::id()).unwrap();
        let (machine, start) = (Machine::now().unwrap(), Instant::now());
        while start.elapsed() < Duration::from_millis(200) {
            std::hint::black_box(start);
        }
        let used = of_process(std::process::id()).unwrap() - before;
        assert!(used >= Duration::from_millis(20), "{used:?}");
        // Tests of the same process count as ours.
        assert!(machine.others(used).unwrap() >= 0.0);
    }
}
