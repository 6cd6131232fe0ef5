//! What the tests of the whole agent share.

// Every test program uses its own part of it.
#![allow(dead_code)]

pub(crate) mod capture;
pub(crate) mod certs;
pub(crate) mod filters;
pub(crate) mod hbone;
pub(crate) mod raw_grpc;
pub(crate) mod resources;
pub(crate) mod scene;
pub(crate) mod tls;
pub(crate) mod tokens;
pub(crate) mod traffic;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_testbed::wire::Connection;
use mesh_testbed::{MeshAgent, Pod, eventually};

/// How long the agent may take for what it does on its own.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A configuration, piece by piece.
#[derive(Default)]
pub(crate) struct Config {
    mesh: String,
    workloads: String,
    listeners: String,
    clusters: String,
    endpoints: String,
}

impl Config {
    pub(crate) fn enrol(mut self, pod: &Pod, extra: &str) -> Self {
        let (name, netns) = (pod.name(), pod.netns_path());
        let _ = writeln!(
            self.workloads,
            "  - {{name: {name}, netns: {}{extra}}}",
            netns.display()
        );
        self
    }

    /// A pod given by one of its processes.
    pub(crate) fn enrol_process(mut self, name: &str, pid: u32) -> Self {
        let _ = writeln!(self.workloads, "  - {{name: {name}, pid: {pid}}}");
        self
    }

    pub(crate) fn mesh(mut self, line: &str) -> Self {
        let _ = writeln!(self.mesh, "  {line}");
        self
    }

    pub(crate) fn tcp(self, name: &str, at: SocketAddr, extra: &str) -> Self {
        let filter = format!(
            "{{name: tcp, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.\
             network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: {name}{extra}}}}}"
        );
        self.listener(name, at, "OUTBOUND", &filter)
    }

    pub(crate) fn http(self, name: &str, at: SocketAddr, direction: &str, routes: &str) -> Self {
        let filter = format!(
            "{{name: http, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.\
             network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: h, \
             upgrade_configs: [{{upgrade_type: websocket}}], \
             route_config: {{name: r, virtual_hosts: [{{name: v, domains: [\"*\"], routes: \
             [{routes}]}}]}}, http_filters: [{{name: envoy.filters.http.router, typed_config: \
             {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}"
        );
        self.listener(name, at, direction, &filter)
    }

    pub(crate) fn listener(
        mut self,
        name: &str,
        at: SocketAddr,
        direction: &str,
        filter: &str,
    ) -> Self {
        let _ = writeln!(
            self.listeners,
            "    - {{name: {name}, traffic_direction: {direction}, address: {{socket_address: \
             {{address: \"{}\", port_value: {}}}}}, filter_chains: [{{filters: [{filter}]}}]}}",
            at.ip(),
            at.port()
        );
        self
    }

    pub(crate) fn cluster(self, name: &str, endpoints: &[SocketAddr]) -> Self {
        self.cluster_with(name, endpoints, "")
    }

    /// A cluster with further fields: `, lb_policy: RANDOM`.
    pub(crate) fn cluster_with(self, name: &str, endpoints: &[SocketAddr], extra: &str) -> Self {
        let endpoints: Vec<String> = endpoints
            .iter()
            .map(|at| {
                format!(
                    "{{endpoint: {{address: {{socket_address: {{address: \"{}\", port_value: {}}}}}}}}}",
                    at.ip(),
                    at.port()
                )
            })
            .collect();
        self.cluster_of(&format!(
            "name: {name}, load_assignment: {{cluster_name: {name}, endpoints: \
             [{{lb_endpoints: [{}]}}]}}{extra}",
            endpoints.join(", ")
        ))
    }

    /// A cluster from its fields.
    pub(crate) fn cluster_of(mut self, fields: &str) -> Self {
        let _ = writeln!(self.clusters, "    - {{{fields}}}");
        self
    }

    /// A load assignment for an EDS cluster, from its fields.
    pub(crate) fn endpoints(mut self, fields: &str) -> Self {
        let _ = writeln!(self.endpoints, "    - {{{fields}}}");
        self
    }

    pub(crate) fn original_dst(self, name: &str) -> Self {
        self.cluster_of(&format!(
            "name: {name}, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED"
        ))
    }

    pub(crate) fn yaml(&self) -> String {
        let section = |name: &str, body: &str| {
            if body.is_empty() {
                String::new()
            } else {
                format!("{name}:\n{body}")
            }
        };
        format!(
            "{}{}static_resources:\n{}{}{}",
            section("mesh", &self.mesh),
            section("workloads", &self.workloads),
            section("  listeners", &self.listeners),
            section("  clusters", &self.clusters),
            section("  endpoints", &self.endpoints)
        )
    }
}

/// The name an `echo-tcp` greets with.
pub(crate) fn greeted_by(one: &Connection) -> Result<String> {
    Ok(one
        .banner()
        .with_context(|| format!("no greeting: {one:?}"))?
        .name)
}

/// A counter or gauge of a cluster, by Envoy's name.
pub(crate) fn cluster_stat(agent: &MeshAgent, cluster: &str, stat: &str) -> Result<u64> {
    metric(
        agent,
        &format!("envoy_cluster_{stat}{{envoy_cluster_name=\"{cluster}\"}}"),
    )
}

/// A counter or gauge, with its labels.
pub(crate) fn metric(agent: &MeshAgent, name: &str) -> Result<u64> {
    let page = agent.get("/stats/prometheus")?.body;
    let line = page
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .with_context(|| format!("no {name} among:\n{page}"))?;
    Ok(line.trim().parse()?)
}

/// Replaces the configuration and waits until it is in force, in the kernel too.
pub(crate) fn apply(agent: &MeshAgent, config: &str) -> Result<()> {
    let generation = metric(agent, "mesh_snapshot_generation")?;
    let failures = metric(agent, "mesh_config_reload_failures_total")?;
    agent.reconfigure(config)?;
    eventually(
        "the new configuration is in force or refused",
        PATIENCE,
        || {
            metric(agent, "mesh_snapshot_generation").is_ok_and(|now| now > generation)
                || metric(agent, "mesh_config_reload_failures_total")
                    .is_ok_and(|now| now > failures)
        },
    )?;
    let refused = metric(agent, "mesh_config_reload_failures_total")? > failures;
    ensure!(
        !refused,
        "the configuration is refused: {}",
        agent.command("status")?
    );
    Ok(())
}
