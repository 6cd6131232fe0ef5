//! Two pods with the same client and servers, and a mesh or none between them. Every system has
//! a stage of its own, on a bridge of its own, and all stand during the whole run: what is
//! measured in turn is measured under the same conditions.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use mesh_testbed::{Envoy, MeshAgent, NODE_CGROUP_AGENT, Nginx, Pod, Testbed};
use serde_json::json;

use super::config::{Handling, Service};
use super::cpu::Usage;
use super::mtls;
use super::path::{Ground, Path};
use super::servers::{self, Servers};

/// Who carries the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum System {
    /// This project.
    Ours,
    /// The same with same-node acceleration, which needs the server's pod to be enrolled, too.
    Accelerated,
    /// Nobody; the client dials the server.
    NoMesh,
    /// Envoy in the client's pod.
    Envoy,
}

impl System {
    pub(super) const ALL: [Self; 4] = [Self::Ours, Self::Accelerated, Self::NoMesh, Self::Envoy];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Accelerated => "ours, accelerated",
            Self::NoMesh => "no mesh",
            Self::Envoy => "envoy",
        }
    }
}

/// Which server of a path is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Port {
    /// The one that answers requests.
    Web,
    Iperf,
    Sockperf,
}

/// Who proxies; with mutual TLS there is one on either side, the client's first. Dropped before
/// the pods.
#[derive(Debug)]
enum Proxy {
    None,
    Agents(Vec<MeshAgent>),
    Envoys(Vec<Envoy>),
}

/// A system, ready to be measured.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) system: System,
    proxy: Proxy,
    _servers: Servers,
    _raw: Option<Nginx>,
    _secrets: Option<tempfile::TempDir>,
    pub(super) client: Pod,
    pub(super) server: Pod,
    testbed: Testbed,
}

impl Stage {
    /// For the paths on this ground.
    pub(super) fn set(system: System, ground: Ground, verbose: bool) -> Result<Self> {
        let over = match ground {
            Ground::Clear => "",
            Ground::TwoNodes => " with mutual TLS",
            Ground::OneNode => " on one node",
        };
        eprintln!("bench: setting up: {}{over}", system.name());
        let testbed = Testbed::new()?;
        let (client, server) = (testbed.pod("client")?, testbed.pod("server")?);
        let servers = Servers::start(&server)?;
        let raw = (ground == Ground::TwoNodes)
            .then(|| mtls::raw_server(&server))
            .transpose()?;
        let services = services(&testbed, &server);
        let mut secrets = None;
        let proxy = match (system, ground) {
            (System::NoMesh, _) => Proxy::None,
            (System::Ours, Ground::Clear) => Proxy::Agents(vec![agent(
                &testbed,
                &[&client],
                "off",
                &services,
                verbose,
            )?]),
            (System::Accelerated, _) => {
                let pods = [&client, &server];
                Proxy::Agents(vec![agent(
                    &testbed,
                    &pods,
                    "unchecked",
                    &services,
                    verbose,
                )?])
            }
            (System::Envoy, Ground::Clear) => {
                Proxy::Envoys(vec![super::envoy::sidecar(&client, &services, verbose)?])
            }
            (System::Ours, _) => {
                let (agents, authority) =
                    mtls::agents(&testbed, &client, &server, ground, verbose)?;
                secrets = Some(authority);
                Proxy::Agents(agents)
            }
            (System::Envoy, _) => {
                let (envoys, files) = mtls::sidecars(&testbed, &client, &server, ground, verbose)?;
                secrets = Some(files);
                Proxy::Envoys(envoys)
            }
        };
        Ok(Self {
            system,
            proxy,
            _servers: servers,
            _raw: raw,
            _secrets: secrets,
            client,
            server,
            testbed,
        })
    }

    /// Where the client connects to.
    pub(super) fn address(&self, path: Path, port: Port) -> SocketAddr {
        match self.system {
            System::NoMesh => SocketAddr::new(self.server.ip4().into(), server_port(path, port)),
            System::Ours | System::Accelerated | System::Envoy => {
                service_address(&self.testbed, path, port)
            }
        }
    }

    /// CPU time used so far by everything of this stage, and by its parts.
    pub(super) fn usage(&self) -> Result<Usage> {
        let proxy = match &self.proxy {
            Proxy::None => None,
            Proxy::Agents(_) => Some(super::cpu::of_cgroup(
                &self.testbed.cgroup().join(NODE_CGROUP_AGENT),
            )?),
            Proxy::Envoys(envoys) => {
                let mut used = std::time::Duration::ZERO;
                for envoy in envoys {
                    used += super::cpu::of_process(envoy.pid())?;
                }
                Some(used)
            }
        };
        Ok(Usage {
            all: super::cpu::of_cgroup(self.testbed.cgroup())?,
            proxy: proxy.unwrap_or_default(),
            server: super::cpu::of_cgroup(self.server.cgroup())?,
        })
    }

    /// The processes of the proxies, the client's first; none without a mesh.
    pub(super) fn proxy_pids(&self) -> Vec<u32> {
        match &self.proxy {
            Proxy::None => Vec::new(),
            Proxy::Agents(agents) => agents.iter().map(MeshAgent::pid).collect(),
            Proxy::Envoys(envoys) => envoys.iter().map(Envoy::pid).collect(),
        }
    }
}

/// A path's services: each has an address of its own.
fn services(testbed: &Testbed, server: &Pod) -> Vec<Service> {
    let mut services = Vec::new();
    for &path in Path::all() {
        let handling = match path {
            Path::MtlsL4 | Path::MtlsL4Hbone | Path::MtlsL7 | Path::SameNodeL7 => continue,
            Path::L4Direct | Path::L4DirectSockmap => Handling::Tcp,
            Path::L4Agent => Handling::TcpIdle,
            Path::L7Http1 => Handling::Http1,
            Path::L7H2 | Path::L7Grpc => Handling::Http2,
        };
        let ports: &[Port] = match handling {
            Handling::Tcp | Handling::TcpIdle => &[Port::Web, Port::Iperf, Port::Sockperf],
            Handling::Http1 | Handling::Http2 => &[Port::Web],
        };
        services.extend(ports.iter().map(|&port| {
            let address = service_address(testbed, path, port);
            Service {
                name: format!("{}_{}", path.name(), address.port()),
                address,
                handling,
                server: SocketAddr::new(server.ip4().into(), server_port(path, port)),
            }
        }));
    }
    services
}

pub(super) fn service_address(testbed: &Testbed, path: Path, port: Port) -> SocketAddr {
    let port = match port {
        Port::Web => 80,
        Port::Iperf => servers::IPERF,
        Port::Sockperf => servers::SOCKPERF,
    };
    SocketAddr::new(testbed.vip4(10 + path as u8).into(), port)
}

fn server_port(path: Path, port: Port) -> u16 {
    match (port, path) {
        (Port::Iperf, _) => servers::IPERF,
        (Port::Sockperf, _) => servers::SOCKPERF,
        (Port::Web, Path::L7H2) => servers::HTTP2,
        (Port::Web, Path::L7Grpc) => servers::GRPC,
        (Port::Web, _) => servers::HTTP1,
    }
}

fn agent(
    testbed: &Testbed,
    pods: &[&Pod],
    acceleration: &str,
    services: &[Service],
    verbose: bool,
) -> Result<MeshAgent> {
    let config = json!({
        "workloads": pods
            .iter()
            .map(|pod| json!({ "name": pod.name(), "netns": pod.netns_path() }))
            .collect::<Vec<_>>(),
        "static_resources": {
            "listeners": services.iter().map(Service::listener).collect::<Vec<_>>(),
            "clusters": services.iter().map(Service::cluster).collect::<Vec<_>>(),
        },
    });
    if verbose {
        println!("mesh-agent:\n{}", serde_json::to_string_pretty(&config)?);
    }
    MeshAgent::builder(testbed)?
        .arg("--acceleration")
        .arg(acceleration)
        .start(&config.to_string())
        .context("the agent cannot be measured")
}
