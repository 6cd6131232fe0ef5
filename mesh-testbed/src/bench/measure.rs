//! Measuring: every system in turn, many times over.

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::wire::Pace;
use mesh_testbed::{Connect, Paced};
use nix::sys::resource::{Resource, getrlimit};
use serde::Serialize;

use super::cpu::Machine;
use super::load;
use super::path::Path;
use super::servers::BODY;
use super::stage::{Port, Stage, System};
use super::stats::{median, spread};

/// Requests a second at which latency is measured, over [`PACED_CONNECTIONS`].
const PACED_RATE: u32 = 2048;
const PACED_CONNECTIONS: u32 = 32;
/// Idle connections held while memory is looked at.
const HELD: [(usize, Metric); 3] = [
    (0, Metric::RssIdle),
    (1000, Metric::Rss),
    (10_000, Metric::Rss10k),
];
/// What a proxy has open besides.
const SPARE_FILES: u64 = 500;
/// How often a measurement is tried.
const ATTEMPTS: u32 = 3;

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    seconds: u32,
    repetitions: usize,
}

impl Plan {
    pub(super) fn quick() -> Self {
        Self {
            seconds: 1,
            repetitions: 3,
        }
    }

    pub(super) fn thorough() -> Self {
        Self {
            seconds: 3,
            repetitions: 7,
        }
    }
}

/// One run of a tool; it may tell several figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Measure {
    /// As many requests as go through.
    Load,
    /// How long answers take at a rate far from that.
    Latency,
    /// New connections.
    Connects,
    /// One small message to and fro.
    RoundTrip,
    /// One large stream.
    Throughput,
    /// What connections cost that are open and idle.
    Memory,
}

/// What is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Metric {
    Rps,
    CpuPerRequest,
    /// Of the proxy alone.
    ProxyCpuPerRequest,
    /// Of the server's pod, with the sidecar where there is one in it.
    ServerCpuPerRequest,
    LatencyP50,
    LatencyP99,
    LatencyP999,
    Connects,
    RttP50,
    Throughput,
    /// Without a connection, after the loads of the path.
    RssIdle,
    /// With a thousand idle connections.
    Rss,
    /// With ten thousand.
    Rss10k,
}

impl Metric {
    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::Rps => "requests/s",
            Self::CpuPerRequest
            | Self::ProxyCpuPerRequest
            | Self::ServerCpuPerRequest
            | Self::LatencyP50
            | Self::LatencyP99
            | Self::LatencyP999
            | Self::RttP50 => "us",
            Self::Connects => "connections/s",
            Self::Throughput => "Gbit/s",
            Self::RssIdle | Self::Rss | Self::Rss10k => "MiB",
        }
    }

    fn more_is_better(self) -> bool {
        matches!(self, Self::Rps | Self::Connects | Self::Throughput)
    }

    /// Above 1 is better for us.
    fn ratio(self, ours: f64, reference: f64) -> f64 {
        if self.more_is_better() {
            ours / reference
        } else {
            reference / ours
        }
    }
}

/// One figure beside another.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    pub(super) path: &'static str,
    pub(super) metric: Metric,
    /// The median of all repetitions.
    pub(super) ours: f64,
    pub(super) reference: f64,
    pub(super) reference_name: &'static str,
    /// The median of the ratios of the repetitions, each of which measured both one after the
    /// other.
    pub(super) ratio: f64,
    pub(super) unit: &'static str,
    /// How far these ratios lie apart, as a share of their median.
    pub(super) spread: f64,
}

/// A path's figures.
#[derive(Debug, Default)]
pub(super) struct Measured {
    pub(super) rows: Vec<Row>,
    /// The share of the machine that others had, for each measurement.
    pub(super) noise: Vec<f64>,
    /// Measurements in which an answer was wrong or missing.
    pub(super) failures: Vec<String>,
}

/// What one system showed, repetition by repetition.
#[derive(Debug, Default, Clone)]
struct Samples(Vec<(Metric, f64)>);

impl Samples {
    fn of(&self, metric: Metric) -> Vec<f64> {
        let of_metric = self.0.iter().filter(|(of, _)| *of == metric);
        of_metric.map(|(_, value)| *value).collect()
    }

    fn metrics(&self) -> Vec<Metric> {
        let mut metrics = Vec::new();
        for (metric, _) in &self.0 {
            if !metrics.contains(metric) {
                metrics.push(*metric);
            }
        }
        metrics
    }
}

/// Measures a path on the stages that offer it.
pub(super) fn path(path: Path, stages: &[Stage], plan: Plan, verbose: bool) -> Result<Measured> {
    let references = path.references();
    let stages: Vec<&Stage> = stages
        .iter()
        .filter(|stage| stage.system == path.ours() || references.contains(&stage.system))
        .collect();
    let mut samples = vec![Samples::default(); stages.len()];
    let mut measured = Measured::default();
    for &measure in path.measures() {
        eprintln!("bench: {}: {measure:?}", path.name());
        // Whoever comes first finds a quieter or a busier machine than whoever comes last.
        let mut order: Vec<usize> = (0..stages.len()).collect();
        for _ in 0..measure.repetitions(plan) {
            for &index in &order {
                let stage = stages[index];
                let values = once(measure, stage, path, plan, &mut measured)?;
                if verbose {
                    println!("{}: {}: {values:?}", path.name(), stage.system.name());
                }
                samples[index].0.extend(values);
            }
            order.reverse();
        }
    }
    let of = |system| {
        let at = stages.iter().position(|stage| stage.system == system);
        at.map(|at| &samples[at])
    };
    let ours = of(path.ours()).context("our own stage is always there")?;
    for metric in ours.metrics() {
        for &reference in references {
            let Some(theirs) = of(reference) else {
                continue;
            };
            measured
                .rows
                .extend(row(path, metric, ours, reference, theirs));
        }
    }
    Ok(measured)
}

/// One measurement. One that went wrong is told at the end and made again.
fn once(
    measure: Measure,
    stage: &Stage,
    path: Path,
    plan: Plan,
    measured: &mut Measured,
) -> Result<Vec<(Metric, f64)>> {
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        let (machine, before) = (Machine::now()?, stage.usage()?);
        match measure.run(stage, path, plan.seconds) {
            Ok(values) => {
                let own = stage.usage()?.since(before);
                measured.noise.push(machine.others(own.all)?);
                return Ok(values);
            }
            Err(error) => {
                let what = format!("{measure:?} of {}", stage.system.name());
                if left == 0 {
                    return Err(error.context(what));
                }
                let failure = format!("{}: {what}: {error:#}", path.name());
                eprintln!("bench: {failure}");
                measured.failures.push(failure);
            }
        }
    }
}

/// `None` if the reference has no such figure.
fn row(
    path: Path,
    metric: Metric,
    ours: &Samples,
    reference: System,
    theirs: &Samples,
) -> Option<Row> {
    let (ours, theirs) = (ours.of(metric), theirs.of(metric));
    let ratios: Vec<f64> = ours
        .iter()
        .zip(&theirs)
        .map(|(ours, theirs)| metric.ratio(*ours, *theirs))
        .collect();
    Some(Row {
        path: path.name(),
        metric,
        ours: median(&ours)?,
        reference: median(&theirs)?,
        reference_name: reference.name(),
        ratio: median(&ratios)?,
        unit: metric.unit(),
        spread: spread(&ratios)?,
    })
}

impl Measure {
    /// Memory is no matter of chance.
    fn repetitions(self, plan: Plan) -> usize {
        match self {
            Self::Memory => 1,
            _ => plan.repetitions,
        }
    }

    fn run(self, stage: &Stage, path: Path, seconds: u32) -> Result<Vec<(Metric, f64)>> {
        let client = &stage.client;
        let to = |port| stage.address(path, port);
        Ok(match self {
            Self::Load => under_load(stage, path, seconds)?,
            Self::Latency => {
                let rate = PACED_RATE / PACED_CONNECTIONS;
                let pace = paced(stage, path, PACED_CONNECTIONS, rate, || {
                    std::thread::sleep(std::time::Duration::from_secs(seconds.into()));
                    Ok(())
                })?;
                vec![
                    (Metric::LatencyP50, pace.1.p50_us as f64),
                    (Metric::LatencyP99, pace.1.p99_us as f64),
                    (Metric::LatencyP999, pace.1.p999_us as f64),
                ]
            }
            Self::Connects => {
                let load = load::connects(client, to(Port::Web), seconds)?;
                vec![(Metric::Connects, load.per_second)]
            }
            Self::RoundTrip => {
                let median = load::round_trip(client, to(Port::Sockperf), seconds)?;
                vec![(Metric::RttP50, median)]
            }
            Self::Throughput => {
                let rate = load::throughput(client, to(Port::Iperf), seconds)?;
                vec![(Metric::Throughput, rate)]
            }
            Self::Memory if stage.proxy_pids().is_empty() => Vec::new(),
            Self::Memory => memory_of_held(stage, path)?,
        })
    }
}

/// Requests per second and their CPU time, while a second client looks at every byte of its
/// answers.
fn under_load(stage: &Stage, path: Path, seconds: u32) -> Result<Vec<(Metric, f64)>> {
    let ((load, used), _) = paced(stage, path, 1, 20, || {
        let before = stage.usage()?;
        let to = stage.address(path, Port::Web);
        let load = load::requests(&stage.client, to, path.protocol(), seconds)?;
        Ok((load, stage.usage()?.since(before)))
    })?;
    let each = |time: std::time::Duration| time.as_secs_f64() * 1e6 / load.requests;
    let mut values = vec![
        (Metric::Rps, load.per_second),
        (Metric::CpuPerRequest, each(used.all)),
    ];
    if !stage.proxy_pids().is_empty() {
        values.push((Metric::ProxyCpuPerRequest, each(used.proxy)));
    }
    values.push((Metric::ServerCpuPerRequest, each(used.server)));
    Ok(values)
}

/// Runs `work` while a client sends requests at a rate; every one of them must be answered right.
fn paced<T>(
    stage: &Stage,
    path: Path,
    connections: u32,
    rate: u32,
    work: impl FnOnce() -> Result<T>,
) -> Result<(T, Pace)> {
    let to = stage.address(path, Port::Web);
    let mut client = Paced::start(&stage.client, to, path.protocol(), BODY, connections, rate)?;
    // Connections are made before anything counts.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let warm = client.read()?;
    let value = work()?;
    let pace = client.read()?;
    for pace in [&warm, &pace] {
        ensure!(
            pace.failed == 0 && pace.answered > 0,
            "{} requests failed, {} went well; the first failure: {}",
            pace.failed,
            pace.answered,
            pace.failure.as_deref().unwrap_or("none")
        );
    }
    Ok((value, pace))
}

/// Resident memory of the proxies, in MiB, with connections that are open and had one answer.
fn memory_of_held(stage: &Stage, path: Path) -> Result<Vec<(Metric, f64)>> {
    let request = format!("GET / HTTP/1.1\r\nHost: {BODY}\r\n\r\n");
    let answered = |text: &str| text.starts_with("HTTP/1.1 200 OK");
    let mut values = Vec::new();
    let mut all = Vec::new();
    let mut open = 0;
    let (files, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    for (count, metric) in HELD {
        // A proxy has two sockets for each.
        if 2 * count as u64 + SPARE_FILES > files {
            eprintln!("bench: {count} connections need more than {files} open files: left out");
            continue;
        }
        if count > open {
            let held = Connect::to(stage.address(path, Port::Web))
                .times(count - open)
                .option("--send", &request)
                .hold(&stage.client)?;
            let right = held.connections.iter();
            let right = right.filter(|one| answered(&one.received)).count();
            ensure!(
                right == count - open,
                "not all of {count} connections were answered"
            );
            open = count;
            all.push(held);
        }
        let mut bytes = 0;
        for pid in stage.proxy_pids() {
            bytes += resident(pid)?;
        }
        values.push((metric, bytes as f64 / f64::from(1 << 20)));
    }
    Ok(values)
}

/// Of a process, in bytes.
pub(super) fn resident(pid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kibibytes: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .context("a process has VmRSS")?
        .parse()?;
    Ok(kibibytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_above_one_is_better_whatever_is_measured() {
        assert_eq!(Metric::Rps.ratio(30.0, 20.0), 1.5);
        assert_eq!(Metric::CpuPerRequest.ratio(20.0, 30.0), 1.5);
    }

    #[test]
    fn ratios_pair_what_was_measured_together() {
        let samples =
            |values: &[f64]| Samples(values.iter().map(|value| (Metric::Rps, *value)).collect());
        // The machine slowed down by half, then by half again: the ratio stays.
        let (ours, theirs) = (samples(&[40.0, 20.0, 10.0]), samples(&[20.0, 10.0, 5.0]));
        let row = row(Path::L7Http1, Metric::Rps, &ours, System::Envoy, &theirs).unwrap();
        assert_eq!((row.ratio, row.spread), (2.0, 0.0));
        assert_eq!((row.ours, row.reference), (20.0, 10.0));
        assert!(super::row(Path::L7Http1, Metric::Rss, &ours, System::NoMesh, &theirs).is_none());
    }
}
