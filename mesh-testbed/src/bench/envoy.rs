//! Envoy as Istio puts it into a pod: packet filter rules lead all outbound connections to its
//! port 15001, except its own, which they know by its user.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::{Envoy, EnvoyOptions, Pod};
use serde_json::{Value, json};

use super::config::{Service, socket_address, tcp_proxy};

pub(super) const USER: u32 = 1337;
const OUTBOUND: u16 = 15001;
pub(super) const ADMIN: u16 = 15000;
const PASSTHROUGH: &str = "PassthroughCluster";

/// As istio-init writes them, without what these pods have no use for.
const RULES: [&str; 6] = [
    "-N ISTIO_REDIRECT",
    "-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001",
    "-A OUTPUT -p tcp -m owner --uid-owner 1337 -j RETURN",
    "-A OUTPUT -p tcp -m owner --gid-owner 1337 -j RETURN",
    "-A OUTPUT -d 127.0.0.1/32 -j RETURN",
    "-A OUTPUT -p tcp -j ISTIO_REDIRECT",
];

/// As large as the machine: so is the agent.
pub(super) fn concurrency() -> Result<u32> {
    Ok(std::thread::available_parallelism()?.get() as u32)
}

/// One rule of the table that redirects.
pub(super) fn rule(pod: &Pod, rule: &str) -> Result<()> {
    let mut words = vec!["-w", "-t", "nat"];
    words.extend(rule.split(' '));
    run(pod, "iptables", &words)
}

/// Puts one into the client's pod.
pub(super) fn sidecar(pod: &Pod, services: &[Service], verbose: bool) -> Result<Envoy> {
    let clusters: Vec<Value> = services.iter().map(Service::cluster).collect();
    sidecar_with(pod, services, &clusters, verbose)
}

/// As [`sidecar`], with clusters that say more.
pub(super) fn sidecar_with(
    pod: &Pod,
    services: &[Service],
    clusters: &[Value],
    verbose: bool,
) -> Result<Envoy> {
    let concurrency = concurrency()?;
    // Outbound packets are routed before the rules see them, and services have no route.
    for service in services {
        let to = format!("{}/32", service.address.ip());
        run(pod, "ip", &["route", "replace", &to, "dev", "eth0"])?;
    }
    for one in RULES {
        rule(pod, one)?;
    }
    let resources = resources(services, clusters);
    if verbose {
        println!("Envoy ({concurrency} workers), in the client's pod:");
        for rule in RULES {
            println!("  iptables -t nat {rule}");
        }
        println!("{}", serde_json::to_string_pretty(&resources)?);
    }
    let options = EnvoyOptions {
        concurrency,
        user: Some(USER),
    };
    let resources = format!("static_resources: {resources}");
    Envoy::start_with(pod, &resources, ADMIN, options)
}

/// `virtualOutbound` takes every connection and hands it to the listener of its destination.
fn resources(services: &[Service], of_services: &[Value]) -> Value {
    let mut listeners = vec![json!({
        "name": "virtualOutbound", "traffic_direction": "OUTBOUND", "use_original_dst": true,
        "address": socket_address(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), OUTBOUND)),
        "filter_chains": [{ "filters": [tcp_proxy(PASSTHROUGH)] }],
    })];
    let mut clusters = vec![json!({
        "name": PASSTHROUGH, "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED",
    })];
    for service in services {
        let mut listener = service.listener();
        listener["bind_to_port"] = json!(false);
        listeners.push(listener);
    }
    clusters.extend_from_slice(of_services);
    json!({ "listeners": listeners, "clusters": clusters })
}

fn run(pod: &Pod, program: &str, args: &[&str]) -> Result<()> {
    let output = pod
        .command(program)
        .args(args)
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
