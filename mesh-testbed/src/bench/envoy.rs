//! Envoy as Istio puts it into a pod: packet filter rules lead all outbound connections to its
//! port 15001, except its own, which they know by its user.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::{Envoy, EnvoyOptions, Pod};
use serde_json::{Value, json};

use super::config::{Service, socket_address, tcp_proxy};

const USER: u32 = 1337;
const OUTBOUND: u16 = 15001;
const ADMIN: u16 = 15000;
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

/// Puts one into the client's pod, as large as the machine: so is the agent.
pub(super) fn sidecar(pod: &Pod, services: &[Service], verbose: bool) -> Result<Envoy> {
    let concurrency = std::thread::available_parallelism()?.get() as u32;
    // Outbound packets are routed before the rules see them, and services have no route.
    for service in services {
        let to = format!("{}/32", service.address.ip());
        run(pod, "ip", &["route", "replace", &to, "dev", "eth0"])?;
    }
    for rule in RULES {
        let mut words = vec!["-w", "-t", "nat"];
        words.extend(rule.split(' '));
        run(pod, "iptables", &words)?;
    }
    let resources = resources(services);
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
fn resources(services: &[Service]) -> Value {
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
        clusters.push(service.cluster());
    }
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
