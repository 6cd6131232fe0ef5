//! `cargo xtask bench scale`: what grows with the mesh, and what should not. Each of services,
//! endpoints, pods, connections and routes grows tenfold twice, the others stay.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args as ClapArgs;
use mesh_testbed::wire::Ending;
use mesh_testbed::{Churn, Connect, MeshAgent, Nginx, Pod, Protocol, Server, Testbed};
use serde_json::{Value, json};

use super::config::{Handling, Service};
use super::hooks::{Accounting, accounts};
use super::servers::{self, BODY};
use super::{cpu, load};

/// Connections through a hook.
const CHURN: usize = 5000;
/// How often a time that should be flat is measured; the least counts, which others disturb least.
const TIMES: usize = 3;
/// What is flat grows by no more than this over two tenfold steps.
const FLAT: f64 = 1.5;

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Write the figures to this file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A figure at three sizes.
#[derive(Debug, serde::Serialize)]
struct Curve {
    /// What grows.
    grows: &'static str,
    metric: &'static str,
    unit: &'static str,
    sizes: [u32; 3],
    values: Vec<f64>,
    /// Whether it should stay as it is.
    flat: bool,
}

impl Curve {
    fn growth(&self) -> f64 {
        let ends = self.values.first().zip(self.values.last());
        ends.map_or(f64::NAN, |(first, last)| last / first)
    }

    fn print(&self) {
        let verdict = match (self.flat, self.growth() <= FLAT) {
            (true, true) => "flat",
            (true, false) => "NOT FLAT",
            (false, _) => "",
        };
        print!("{:<13}{:<34}", self.grows, self.metric);
        for (size, value) in self.sizes.iter().zip(&self.values) {
            print!("{:>18}", format!("{size}: {value:.1}"));
        }
        println!("  {:<14}{:>7.2}x  {verdict}", self.unit, self.growth());
    }
}

/// The sizes of an axis, measured one after the other.
fn curves<const N: usize>(
    grows: &'static str,
    sizes: [u32; 3],
    metrics: [(&'static str, &'static str, bool); N],
    measure: impl Fn(u32) -> Result<[f64; N]>,
) -> Result<Vec<Curve>> {
    let mut curves = metrics.map(|(metric, unit, flat)| Curve {
        grows,
        metric,
        unit,
        sizes,
        values: Vec::new(),
        flat,
    });
    for size in sizes {
        eprintln!("bench: scale: {size} {grows}");
        let values = measure(size).with_context(|| format!("{size} {grows}"))?;
        for (curve, value) in curves.iter_mut().zip(values) {
            curve.values.push(value);
        }
    }
    curves.iter().for_each(Curve::print);
    Ok(curves.into())
}

pub(super) fn run(args: &Args) -> Result<()> {
    let _accounting = Accounting::on()?;
    let hook = ("connect hook", "ns", true);
    let ready = ("start to ready", "ms", false);
    let rss = ("agent RSS", "MiB", false);
    let mut all = curves(
        "services",
        [100, 1000, 10_000],
        [hook, ready, rss],
        services,
    )?;
    all.extend(curves(
        "endpoints",
        [10, 100, 1000],
        [hook, ready],
        endpoints,
    )?);
    all.extend(curves("pods", [1, 10, 100], [hook, ready, rss], pods)?);
    all.extend(curves(
        "routes",
        [10, 100, 1000],
        [("proxy CPU a request, by host", "us", true)],
        routes,
    )?);
    all.extend(curves(
        "connections",
        // Within 20,000 descriptors, which is all that some containers have: TCP takes two each.
        [90, 900, 9000],
        [
            ("memory of an idle one, TCP", "KiB", true),
            ("memory of an idle one, HTTP/1.1", "KiB", true),
        ],
        connections,
    )?);
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&all)? + "\n";
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// A client and a server in two pods, and where services are.
struct Scene {
    client: Pod,
    server: Pod,
    testbed: Testbed,
}

impl Scene {
    fn new() -> Result<Self> {
        let testbed = Testbed::new()?;
        let (client, server) = (testbed.pod("client")?, testbed.pod("server")?);
        Ok(Self {
            client,
            server,
            testbed,
        })
    }

    fn service(&self, number: u8, handling: Handling, port: u16) -> Service {
        let address = SocketAddr::new(self.testbed.vip4(number).into(), 80);
        Service {
            name: format!("real-{number}"),
            address,
            handling,
            server: SocketAddr::new(self.server.ip4().into(), port),
        }
    }

    fn config(&self, listeners: &[Value], clusters: &[Value]) -> Value {
        json!({
            "workloads": [workload(&self.client)],
            "static_resources": { "listeners": listeners, "clusters": clusters },
        })
    }

    /// Starts an agent; returns how many milliseconds it took.
    fn start(&self, config: &Value) -> Result<(MeshAgent, f64)> {
        let start = Instant::now();
        let agent = MeshAgent::builder(&self.testbed)?
            .arg("--acceleration")
            .arg("off")
            .start(&config.to_string())?;
        Ok((agent, start.elapsed().as_secs_f64() * 1e3))
    }
}

fn workload(pod: &Pod) -> Value {
    json!({ "name": pod.name(), "netns": pod.netns_path() })
}

/// Nanoseconds of the program of connect(2), of connections that it balances.
fn connect_hook(agent: &MeshAgent, from: &Pod, to: SocketAddr) -> Result<f64> {
    let mut least = f64::MAX;
    for _ in 0..TIMES {
        let before = accounts(agent)?;
        let made = Churn::new(to, Ending::Reset, CHURN).run(from)?;
        ensure!(made.made == CHURN, "{made:?}");
        let now = accounts(agent)?;
        let name = "mesh_connect4";
        let (old, new) = before
            .get(name)
            .zip(now.get(name))
            .with_context(|| format!("no program {name} among {:?}", now.keys()))?;
        least = least.min((new.ns - old.ns) as f64 / (new.times - old.times) as f64);
    }
    Ok(least)
}

fn services(count: u32) -> Result<[f64; 3]> {
    let scene = Scene::new()?;
    let app = Server::tcp(&scene.server, "app", 9000)?;
    let real = scene.service(1, Handling::Tcp, 9000);
    let others = (1..count).map(|number| Service {
        name: format!("service-{number}"),
        // 10.128.0.0/9 and 11.0.0.0/8: nothing is sent there.
        address: SocketAddr::new(Ipv4Addr::from(0x0a80_0000 + number).into(), 80),
        handling: Handling::Tcp,
        server: SocketAddr::new(Ipv4Addr::from(0x0b00_0000 + number).into(), 80),
    });
    let all: Vec<Service> = std::iter::once(real.clone()).chain(others).collect();
    let listeners: Vec<Value> = all.iter().map(Service::listener).collect();
    let clusters: Vec<Value> = all.iter().map(Service::cluster).collect();
    let (agent, ready) = scene.start(&scene.config(&listeners, &clusters))?;
    let hook = connect_hook(&agent, &scene.client, real.address)?;
    let rss = mebibytes(&agent)?;
    agent.terminate()?;
    drop(app);
    Ok([hook, ready, rss])
}

/// One service with so many endpoints: ports of one server, which are led to the one it has.
fn endpoints(count: u32) -> Result<[f64; 2]> {
    const FIRST: u32 = 20_000;
    let scene = Scene::new()?;
    let app = Server::tcp(&scene.server, "app", 9000)?;
    let ports = format!("{FIRST}:{}", FIRST + count);
    let led = scene
        .server
        .command("iptables")
        .args(["-w", "-t", "nat", "-A", "PREROUTING", "-p", "tcp"])
        .args(["--dport", &ports, "-j", "REDIRECT", "--to-ports", "9000"])
        .status()
        .context("cannot start iptables; type: apt-get install iptables")?;
    ensure!(led.success(), "iptables: {led}");
    let real = scene.service(1, Handling::Tcp, 9000);
    let mut cluster = real.cluster();
    let ip = scene.server.ip4().to_string();
    let each = (FIRST..FIRST + count).map(|port| {
        json!({ "endpoint": { "address": { "socket_address":
            { "address": ip, "port_value": port } } } })
    });
    cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = each.collect();
    let (agent, ready) = scene.start(&scene.config(&[real.listener()], &[cluster]))?;
    let hook = connect_hook(&agent, &scene.client, real.address)?;
    agent.terminate()?;
    drop(app);
    Ok([hook, ready])
}

fn pods(count: u32) -> Result<[f64; 3]> {
    let scene = Scene::new()?;
    let app = Server::tcp(&scene.server, "app", 9000)?;
    let more = (1..count).map(|number| format!("pod{number}"));
    let more = scene.testbed.pods(more)?;
    let real = scene.service(1, Handling::Tcp, 9000);
    let mut config = scene.config(&[real.listener()], &[real.cluster()]);
    let all = std::iter::once(&scene.client).chain(&more);
    config["workloads"] = all.map(workload).collect();
    let (agent, ready) = scene.start(&config)?;
    let hook = connect_hook(&agent, &scene.client, real.address)?;
    let rss = mebibytes(&agent)?;
    agent.terminate()?;
    drop(app);
    Ok([hook, ready, rss])
}

/// So many hosts with a route each; requests are for one of them.
fn routes(count: u32) -> Result<[f64; 1]> {
    let scene = Scene::new()?;
    let nginx = Nginx::start(&scene.server, BODY, servers::HTTP1)?;
    let real = scene.service(1, Handling::Http1, servers::HTTP1);
    let mut listener = real.listener();
    let host = |number: u32| {
        let name = match number {
            0 => real.address.to_string(),
            _ => format!("host-{number}.test"),
        };
        json!({ "name": name, "domains": [name, format!("{name}:80")],
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": real.name } }] })
    };
    // wrk names the address without its port.
    let mut hosts: Vec<Value> = (0..count).map(host).collect();
    hosts[0]["domains"] = json!([real.address.ip().to_string(), real.address.to_string()]);
    let filter = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
    filter["route_config"]["virtual_hosts"] = hosts.into();
    let (agent, _) = scene.start(&scene.config(&[listener], &[real.cluster()]))?;
    let mut least = f64::MAX;
    for _ in 0..TIMES {
        let before = cpu::of_process(agent.pid())?;
        let load = load::requests(&scene.client, real.address, Protocol::Http1, 1)?;
        let used = cpu::of_process(agent.pid())?.saturating_sub(before);
        least = least.min(used.as_secs_f64() * 1e6 / load.requests);
    }
    agent.terminate()?;
    drop(nginx);
    Ok([least])
}

fn connections(count: u32) -> Result<[f64; 2]> {
    Ok([
        held(count, Handling::TcpIdle)?,
        held(count, Handling::Http1)?,
    ])
}

/// KiB of the agent for an idle connection that had an answer.
fn held(count: u32, handling: Handling) -> Result<f64> {
    let scene = Scene::new()?;
    let nginx = Nginx::start(&scene.server, BODY, servers::HTTP1)?;
    let real = scene.service(1, handling, servers::HTTP1);
    let (agent, _) = scene.start(&scene.config(&[real.listener()], &[real.cluster()]))?;
    let hold = |count: usize| {
        let held = Connect::to(real.address)
            .times(count)
            .option("--send", "GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
            .hold(&scene.client)?;
        let answers = held.connections.iter();
        let right = answers.filter(|one| one.received.starts_with("HTTP/1.1 200"));
        ensure!(right.count() == count, "not all of {count} were answered");
        Ok(held)
    };
    // What the first ones cost once and for all.
    let first = hold(10)?;
    settle();
    let before = agent.memory()?;
    let held = hold(count as usize)?;
    settle();
    let after = agent.memory()?;
    drop((first, held));
    agent.terminate()?;
    drop(nginx);
    Ok(after.saturating_sub(before) as f64 / 1024.0 / f64::from(count))
}

/// What fell free goes back to the system two seconds later.
fn settle() {
    std::thread::sleep(Duration::from_secs(3));
}

fn mebibytes(agent: &MeshAgent) -> Result<f64> {
    settle();
    Ok(agent.memory()? as f64 / f64::from(1 << 20))
}
