//! `cargo xtask bench xds`: a large mesh over delta ADS.
//!
//! The management server stands for another machine: it works only when nothing else here wants the
//! core, so what it costs is part of how long a push takes, and not of what traffic feels.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args as ClapArgs;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use mesh_testbed::ads::{Ads, CLUSTER, ENDPOINTS, LISTENER, ROUTES, resource};
use mesh_testbed::wire::Pace;
use mesh_testbed::{MeshAgent, Nginx, Paced, Pod, Protocol, Server, Talk, Testbed, priority};
use serde_json::json;

use super::pods;
use super::waits::Waits;
use super::world::{self, World};

/// How long any single step may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Quiet and pushing by turns: what else this machine does meets both.
const ROUNDS: u32 = 7;
/// How long traffic is watched without a push.
const QUIET: Duration = Duration::from_millis(1500);
/// How long the agent is given to free what the last push replaced.
const SETTLE: Duration = Duration::from_secs(4);
/// How often it is looked whether a push has arrived; the wait between two connections that ask.
const LOOK: Duration = Duration::from_millis(5);
/// The same for one endpoint.
const LOOK_CLOSELY: Duration = Duration::from_micros(500);
/// Requests a second on each of [`CONNECTIONS`].
const RATE: u32 = 250;
const CONNECTIONS: u32 = 4;
/// What the server of that traffic answers.
const BODY: &str = "web";

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// How many services; half of them TCP, half HTTP.
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// Endpoints of each.
    #[arg(long, default_value_t = 10)]
    endpoints: u32,
    /// Updates of one endpoint.
    #[arg(long, default_value_t = 50)]
    updates: u32,
    /// Pushes of everything in each of seven rounds, while a client sends requests.
    #[arg(long, default_value_t = 2)]
    pushes: u32,
    /// Pods with a stream each, whose memory is compared with that of one; 0: not measured.
    #[arg(long, default_value_t = 100)]
    pods: usize,
    /// Services that each of these pods is sent.
    #[arg(long, default_value_t = 1_000)]
    services_of_pods: u32,
    /// Write the figures to this file, too.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Wait for Enter before the agent starts and at the end, for a profiler.
    #[arg(long)]
    pause: bool,
}

/// What was measured.
#[derive(Debug, serde::Serialize)]
struct Figures {
    services: u32,
    endpoints: u32,
    /// From the stream's opening until the agent is ready, which it is when all is applied.
    full_apply_ms: f64,
    /// From the server's sending until a connection reaches the new endpoint.
    update_ms: Quantiles,
    /// Once idle.
    rss_mib: f64,
    /// After the pushes.
    rss_after_pushes_mib: f64,
    /// From the server's sending until the last listener of the push is served.
    push_ms: Quantiles,
    quiet: Traffic,
    pushing: Traffic,
    p99_ratio: f64,
    pods: Option<pods::Figures>,
}

/// How requests fared: medians of the windows of [`ROUNDS`].
#[derive(Debug, Default, serde::Serialize)]
struct Traffic {
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
    /// How long the agent's workers waited for a core each time they were woken.
    wait_us: f64,
}

/// What [`ROUNDS`] showed.
#[derive(Debug)]
struct Rounds {
    pushes: Vec<Duration>,
    quiet: Traffic,
    pushing: Traffic,
}

impl Traffic {
    fn of(windows: &[(Pace, f64)]) -> Self {
        let median = |read: &dyn Fn(&(Pace, f64)) -> f64| {
            let mut values: Vec<f64> = windows.iter().map(read).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or_default()
        };
        Self {
            p50_us: median(&|(pace, _)| pace.p50_us as f64),
            p99_us: median(&|(pace, _)| pace.p99_us as f64),
            max_us: median(&|(pace, _)| pace.max_us as f64),
            wait_us: median(&|(_, wait)| *wait),
        }
    }
}

#[derive(Debug, serde::Serialize)]
struct Quantiles {
    median: f64,
    p99: f64,
}

impl Quantiles {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |percent: usize| {
            let index = (times.len() * percent).div_ceil(100).saturating_sub(1);
            times.get(index).copied().unwrap_or_default().as_secs_f64() * 1e3
        };
        Self {
            median: at(50),
            p99: at(99),
        }
    }
}

/// The management server, the agent, and a pod with real services among the many.
struct Bench {
    world: World,
    ads: Ads,
    client: Pod,
    servers: [Server; 2],
    _nginx: Nginx,
    nginx: SocketAddr,
    /// An HTTP service that the agent serves.
    web: SocketAddr,
    /// A TCP service that the kernel serves.
    tcp: SocketAddr,
    /// A TCP service whose endpoints tell one push from the next.
    last: SocketAddr,
    _server: Pod,
    testbed: Testbed,
}

/// The names of the real services; the last one of every kind in the server's order.
const WEB: &str = "real-web";
const REAL_TCP: &str = "real-tcp";
const LAST: &str = "~last";

pub(super) fn run(args: &Args) -> Result<()> {
    let world = World {
        services: args.services,
        endpoints: args.endpoints,
    };
    let bench = Bench::new(world)?;
    if args.pause {
        pause("before the agent starts")?;
    }
    let (agent, full_apply) = bench.start()?;
    std::thread::sleep(Duration::from_secs(1));
    let rss = agent.memory()?;
    let mut traffic = Paced::start(
        &bench.client,
        bench.web,
        Protocol::Http1,
        BODY,
        CONNECTIONS,
        RATE,
    )?;
    let rounds = bench.rounds(args.pushes, &agent, &mut traffic)?;
    drop(traffic);
    std::thread::sleep(SETTLE);
    let rss_after = agent.memory()?;
    let updates = bench.update(args.updates)?;
    if args.pause {
        pause(&format!("the agent is process {}", agent.pid()))?;
    }
    agent.terminate()?;
    let figures = Figures {
        services: args.services,
        endpoints: args.endpoints,
        full_apply_ms: full_apply.as_secs_f64() * 1e3,
        update_ms: Quantiles::of(updates),
        rss_mib: rss as f64 / f64::from(1 << 20),
        rss_after_pushes_mib: rss_after as f64 / f64::from(1 << 20),
        push_ms: Quantiles::of(rounds.pushes),
        p99_ratio: rounds.pushing.p99_us / rounds.quiet.p99_us,
        quiet: rounds.quiet,
        pushing: rounds.pushing,
        pods: match args.pods {
            0 => None,
            count => Some(pods::measure(args.services_of_pods, args.endpoints, count)?),
        },
    };
    figures.print();
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&figures)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

impl Bench {
    fn new(world: World) -> Result<Self> {
        let testbed = Testbed::new()?;
        let (client, server) = (testbed.pod("client")?, testbed.pod("server")?);
        let servers = [
            Server::http(&server, "a", "v1", 0)?,
            Server::http(&server, "b", "v1", 0)?,
        ];
        let bench = Self {
            _nginx: Nginx::start(&server, BODY, 8080)?,
            nginx: SocketAddr::new(server.ip4().into(), 8080),
            world,
            ads: Ads::remote()?,
            web: SocketAddr::new(testbed.vip4(1).into(), 80),
            tcp: SocketAddr::new(testbed.vip4(2).into(), 80),
            last: SocketAddr::new(testbed.vip4(3).into(), 80),
            client,
            servers,
            _server: server,
            testbed,
        };
        let resources = bench.version(0)?;
        bench.ads.change(|state| world::serve(state, &resources));
        Ok(bench)
    }

    /// Everything, in one of two versions whose endpoints differ.
    fn version(&self, number: usize) -> Result<world::Resources> {
        let [a, _] = &self.servers;
        let weight = 10 + number as u32;
        let mut resources = self.world.resources(weight)?;
        let mut add = |name, at, http, to| world::add(&mut resources, name, at, http, [to], weight);
        add(WEB, self.web, true, self.nginx)?;
        add(REAL_TCP, self.tcp, false, a.addr4())?;
        add(LAST, self.last, false, self.servers[number % 2].addr4())?;
        Ok(resources)
    }

    /// Starts the agent; returns how long it took from its stream's opening to being ready.
    fn start(&self) -> Result<(MeshAgent, Duration)> {
        let config =
            json!({ "workloads": [{ "name": "client", "netns": self.client.netns_path() }] });
        let mut agent = MeshAgent::builder(&self.testbed)?
            .arg("--xds")
            .arg(self.ads.address())
            .spawn(&config.to_string())?;
        wait("the agent opens its stream", &mut agent, |_| {
            self.ads.open_streams() > 0
        })?;
        let start = Instant::now();
        wait("the agent is ready", &mut agent, |agent| {
            agent.get("/ready").is_ok_and(|page| page.status == 200)
        })?;
        Ok((agent, start.elapsed()))
    }

    /// Moves the one endpoint of a service to and fro; returns how long each move took.
    fn update(&self, count: u32) -> Result<Vec<Duration>> {
        let mut talk = Talk::start(&self.client)?;
        // Only what is said here is sent, so that the server does not compare all it has.
        self.ads.change(|state| {
            for kind in [CLUSTER, ENDPOINTS, LISTENER, ROUTES] {
                state.withhold(kind);
            }
        });
        let mut times = Vec::new();
        for number in 0..count {
            let to = &self.servers[(number as usize + 1) % 2];
            let json = world::assignment(REAL_TCP, [to.addr4()], 1);
            let resource = Resource {
                name: REAL_TCP.into(),
                version: format!("update-{number}"),
                resource: Some(resource(ENDPOINTS, &json)?),
                ..Resource::default()
            };
            let response = DeltaDiscoveryResponse {
                nonce: format!("update-{number}"),
                type_url: ENDPOINTS.into(),
                resources: vec![resource],
                ..DeltaDiscoveryResponse::default()
            };
            let name = ["b", "a"][number as usize % 2];
            let start = Instant::now();
            self.ads.change(|state| state.send_delta(response));
            served_by(&mut talk, self.tcp, name, LOOK_CLOSELY)?;
            times.push(start.elapsed());
        }
        Ok(times)
    }

    /// Pushes everything, one version after the other, in rounds with quiet in between.
    fn rounds(&self, pushes: u32, agent: &MeshAgent, traffic: &mut Paced) -> Result<Rounds> {
        let versions = [self.version(0)?, self.version(1)?];
        let mut talk = Talk::start(&self.client)?;
        served_by(&mut talk, self.last, "a", LOOK)?;
        std::thread::sleep(SETTLE);
        traffic.read()?;
        let (mut times, mut number) = (Vec::new(), 0);
        let (mut quiet, mut pushing) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let before = Waits::of(agent.pid())?;
            // Who looks whether a push has arrived looks now, too: that costs the same in both.
            let name = ["a", "b"][number % 2];
            let quiet_ends = Instant::now() + QUIET;
            while Instant::now() < quiet_ends {
                served_by(&mut talk, self.last, name, LOOK)?;
                std::thread::sleep(LOOK);
            }
            let between = Waits::of(agent.pid())?;
            quiet.push((read(traffic)?, between.mean_us_since(before)?));
            for _ in 0..pushes {
                number += 1;
                let start = Instant::now();
                let version = &versions[number % 2];
                // Copying it is the server's work, too.
                priority::idle(|| self.ads.change(|state| world::serve(state, version)))?;
                served_by(&mut talk, self.last, ["a", "b"][number % 2], LOOK)?;
                times.push(start.elapsed());
            }
            let waited = Waits::of(agent.pid())?.mean_us_since(between)?;
            pushing.push((read(traffic)?, waited));
            // What the push replaced is freed, and is neither's.
            std::thread::sleep(QUIET / 2);
            read(traffic)?;
        }
        Ok(Rounds {
            pushes: times,
            quiet: Traffic::of(&quiet),
            pushing: Traffic::of(&pushing),
        })
    }
}

/// How requests fared since the last time; none may have failed.
fn read(traffic: &mut Paced) -> Result<Pace> {
    let pace = traffic.read()?;
    ensure!(
        pace.failed == 0,
        "{} requests failed; the first: {:?}",
        pace.failed,
        pace.failure
    );
    Ok(pace)
}

/// Waits until a connection to the service is answered by this server.
fn served_by(talk: &mut Talk, at: SocketAddr, name: &str, look: Duration) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let wanted = format!("\"name\":\"{name}\"");
    loop {
        let answers = talk.ask(at, b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")?;
        if String::from_utf8_lossy(&answers.raw).contains(&wanted) {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{at} is not served by {name} within {PATIENCE:?}: {answers:?}"
        );
        std::thread::sleep(look);
    }
}

/// As `eventually`, more often, and not for an agent that is gone.
fn wait(what: &str, agent: &mut MeshAgent, holds: impl Fn(&MeshAgent) -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds(agent) {
        if Instant::now() > deadline || !agent.is_running()? {
            bail!("not within {PATIENCE:?}: {what}; its log:\n{}", agent.log());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn pause(what: &str) -> Result<()> {
    eprintln!("paused: {what}; Enter goes on");
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

impl Figures {
    fn print(&self) {
        let row = |what: &str, figure: String, must: &str, aim: &str| {
            println!("{what:<48}{figure:>18}{must:>10}{aim:>10}");
        };
        println!(
            "{} services x {} endpoints over delta ADS (the server runs at idle priority: it stands \
             for another machine; {ROUNDS} rounds of quiet and pushes, medians)",
            self.services, self.endpoints
        );
        row("", "measured".into(), "must", "aim");
        row(
            "full apply, stream opened to ready",
            format!("{:.0} ms", self.full_apply_ms),
            "2000 ms",
            "1000 ms",
        );
        row(
            "one endpoint, sent to reached (median, p99)",
            format!("{:.1}, {:.1} ms", self.update_ms.median, self.update_ms.p99),
            "20 ms",
            "5 ms",
        );
        row(
            "agent RSS",
            format!("{:.0} MiB", self.rss_mib),
            "300 MiB",
            "150 MiB",
        );
        row(
            "agent RSS after the pushes",
            format!("{:.0} MiB", self.rss_after_pushes_mib),
            "300 MiB",
            "150 MiB",
        );
        row(
            "everything pushed again, changed (median)",
            format!("{:.0} ms", self.push_ms.median),
            "",
            "",
        );
        for (what, pace) in [("quiet", &self.quiet), ("during pushes", &self.pushing)] {
            row(
                &format!("requests {what} (p50, p99, max)"),
                format!(
                    "{:.2} {:.2} {:.1} ms",
                    pace.p50_us / 1e3,
                    pace.p99_us / 1e3,
                    pace.max_us / 1e3
                ),
                "",
                "",
            );
        }
        row(
            "workers' wait for a core (quiet, during pushes)",
            format!("{:.0}, {:.0} us", self.quiet.wait_us, self.pushing.wait_us),
            "",
            "",
        );
        row(
            "p99 during pushes / quiet",
            format!("{:.2}", self.p99_ratio),
            "1.2",
            "",
        );
        if let Some(pods) = &self.pods {
            for (what, figure) in pods.rows() {
                row(&what, figure, "", "");
            }
        }
    }
}
