//! `cargo xtask bench hooks`: what every kernel program costs, by the kernel's own account
//! (`run_time_ns`), with few services and with many.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use clap::Args as ClapArgs;
use mesh_testbed::wire::Ending;
use mesh_testbed::{Churn, MeshAgent, Pod, Server, Testbed};
use serde_json::{Value, json};

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";
const TCP: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Numbers of services to measure with.
    #[arg(long, value_delimiter = ',', default_value = "1,1000,10000")]
    services: Vec<u32>,
    /// Connections to each kind of destination.
    #[arg(long, default_value_t = 20_000)]
    connections: usize,
}

/// The kernel accounts for programs while it is there.
pub(super) struct Accounting {
    before: String,
}

impl Accounting {
    pub(super) fn on() -> Result<Self> {
        let before = std::fs::read_to_string(SWITCH)
            .with_context(|| format!("this kernel has no {SWITCH}"))?;
        std::fs::write(SWITCH, "1").with_context(|| format!("cannot write {SWITCH}"))?;
        Ok(Self { before })
    }
}

impl Drop for Accounting {
    fn drop(&mut self) {
        let _ = std::fs::write(SWITCH, &self.before);
    }
}

/// What programs did so far.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Runs {
    pub(super) ns: u64,
    pub(super) times: u64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let _accounting = Accounting::on()?;
    println!(
        "{:<10} {:<28} {:<18} {:>10} {:>10}",
        "services", "destination", "program", "runs", "ns a run"
    );
    for services in &args.services {
        measure(*services, args.connections)?;
    }
    Ok(())
}

fn measure(services: u32, connections: usize) -> Result<()> {
    let testbed = Testbed::new()?;
    let pods = testbed.pods(["client", "plain", "server"])?;
    let app = Server::tcp(&pods[2], "app", 9000)?;
    let (direct, denied): (SocketAddr, SocketAddr) =
        ((testbed.vip4(1), 700).into(), (testbed.vip4(2), 700).into());
    let config = config(&pods[0], services, direct, denied, app.addr4());
    let agent = MeshAgent::start(&testbed, &config.to_string())?;
    for (what, to, from) in [
        ("a service of the kernel", direct, &pods[0]),
        ("a service without endpoints", denied, &pods[0]),
        ("no service", app.addr4(), &pods[0]),
        ("from a pod of no mesh", app.addr4(), &pods[1]),
    ] {
        let before = accounts(&agent)?;
        let made = Churn::new(to, Ending::Reset, connections).run(from)?;
        let refused = made.failed.get(&libc::ECONNREFUSED).copied().unwrap_or(0);
        let right = if to == denied { refused } else { made.made };
        ensure!(right == connections, "{what}: {made:?}");
        for (name, now) in accounts(&agent)? {
            let old = before.get(&name).copied().unwrap_or_default();
            let (ns, times) = (now.ns - old.ns, now.times - old.times);
            if times >= connections as u64 / 2 {
                println!(
                    "{services:<10} {what:<28} {name:<18} {times:>10} {:>10}",
                    ns / times
                );
            }
        }
    }
    agent.terminate()?;
    Ok(())
}

/// By program: the agent holds their descriptors, of which the kernel tells.
pub(super) fn accounts(agent: &MeshAgent) -> Result<BTreeMap<String, Runs>> {
    let status: Value = serde_json::from_str(&agent.get("/status")?.body)?;
    let mut names = BTreeMap::new();
    for program in status["programs"].as_array().into_iter().flatten() {
        if let (Some(id), Some(name)) = (program["id"].as_u64(), program["name"].as_str()) {
            names.insert(id, name.to_owned());
        }
    }
    let mut accounts = BTreeMap::new();
    for entry in std::fs::read_dir(format!("/proc/{}/fdinfo", agent.pid()))? {
        let text = std::fs::read_to_string(entry?.path()).unwrap_or_default();
        let number = |field: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(field))?;
            line.trim_start_matches(':').trim().parse().ok()
        };
        let Some(name) = number("prog_id").and_then(|id| names.get(&id)) else {
            continue;
        };
        // Links tell the program's number, but not its account.
        if let (Some(ns), Some(times)) = (number("run_time_ns"), number("run_cnt")) {
            accounts.insert(name.clone(), Runs { ns, times });
        }
    }
    ensure!(!accounts.is_empty(), "the kernel tells of no program");
    Ok(accounts)
}

/// So many TCP services, one with a server and one without any endpoint among them.
fn config(
    client: &Pod,
    services: u32,
    direct: SocketAddr,
    denied: SocketAddr,
    server: SocketAddr,
) -> Value {
    let mut listeners = Vec::new();
    let mut clusters = Vec::new();
    let mut add = |name: String, at: SocketAddr, endpoint: Option<SocketAddr>| {
        let endpoints: Vec<Value> = endpoint
            .iter()
            .map(|at| json!({ "endpoint": { "address": address(*at) } }))
            .collect();
        listeners.push(json!({
            "name": name, "traffic_direction": "OUTBOUND", "address": address(at),
            "filter_chains": [{ "filters": [{ "name": "tcp", "typed_config": {
                "@type": TCP, "stat_prefix": name, "cluster": name } }] }],
        }));
        clusters.push(json!({
            "name": name,
            "circuit_breakers": { "thresholds": [{ "max_connections": 1_000_000 }] },
            "load_assignment": { "cluster_name": name,
                "endpoints": [{ "lb_endpoints": endpoints }] },
        }));
    };
    add("direct".into(), direct, Some(server));
    add("denied".into(), denied, None);
    for number in 1..services {
        // 10.128.0.0/9 and 11.0.0.0/8: nothing is sent there.
        let at = Ipv4Addr::from(0x0a80_0000 + number);
        let endpoint = Ipv4Addr::from(0x0b00_0000 + number);
        add(
            format!("service-{number}"),
            (at, 80).into(),
            Some((endpoint, 8080).into()),
        );
    }
    json!({
        "workloads": [{ "name": "client", "netns": client.netns_path() }],
        "static_resources": { "listeners": listeners, "clusters": clusters },
    })
}

fn address(at: SocketAddr) -> Value {
    json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } })
}
