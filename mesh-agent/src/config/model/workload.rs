//! Workloads of this node and what is captured of their traffic.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;

use super::Name;

/// A pod of this node, as the `workloads:` section or Kubernetes names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Unique with the namespace.
    pub name: Name,
    /// Its namespace.
    pub namespace: Name,
    /// Its service account (default `default`).
    pub service_account: Name,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Where its network namespace is found.
    pub netns: NetnsSource,
    /// Its cgroup v2 directory, when known. Only for checks: programs are attached to one
    /// cgroup above all pods.
    pub cgroup: Option<PathBuf>,
    /// What is captured; the node's settings where the workload gives none.
    pub capture: Arc<Capture>,
}

impl Workload {
    /// `namespace/name`, unique on the node.
    pub fn key(&self) -> Name {
        format!("{}/{}", self.namespace, self.name).into()
    }
}

/// How a network namespace is found.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NetnsSource {
    /// A path such as `/var/run/netns/NAME`.
    Path(PathBuf),
    /// The namespace of a running process.
    Pid(i32),
}

/// The capture settings of istio-init, under istio-init's names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Capture {
    /// `-i`, `traffic.sidecar.istio.io/includeOutboundIPRanges`. Default: all.
    pub include_outbound_cidrs: AllOr<IpNet>,
    /// `-x`: excluded although included.
    pub exclude_outbound_cidrs: Vec<IpNet>,
    /// `-q`: captured whatever the address ranges say (istio-init: `includeOutboundPorts`).
    pub include_outbound_ports: Vec<u16>,
    /// `-o`: never captured.
    pub exclude_outbound_ports: Vec<u16>,
    /// `-b`: ports captured inbound. Default: all.
    pub include_inbound_ports: AllOr<u16>,
    /// `-d`: never captured inbound. 15020, 15021 and 15090 never are, as in Istio.
    pub exclude_inbound_ports: Vec<u16>,
}

/// Ports of Istio's own probes and pages, never captured inbound.
const NEVER_INBOUND: [u16; 3] = [15020, 15021, 15090];

impl Capture {
    /// Whether any inbound connection is captured.
    pub fn takes_some_inbound(&self) -> bool {
        match &self.include_inbound_ports {
            AllOr::All => true,
            AllOr::Only(ports) => ports.iter().any(|port| self.takes_inbound(*port)),
        }
    }

    /// Whether connections to this port of the pod are captured.
    pub fn takes_inbound(&self, port: u16) -> bool {
        let included = match &self.include_inbound_ports {
            AllOr::All => true,
            AllOr::Only(ports) => ports.contains(&port),
        };
        included && !self.exclude_inbound_ports.contains(&port) && !NEVER_INBOUND.contains(&port)
    }
}

impl Default for Capture {
    fn default() -> Self {
        Self {
            include_outbound_cidrs: AllOr::All,
            exclude_outbound_cidrs: Vec::new(),
            include_outbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            include_inbound_ports: AllOr::All,
            exclude_inbound_ports: Vec::new(),
        }
    }
}

/// `*` or a list.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum AllOr<T> {
    /// `*`
    All,
    /// Only these; an empty list is none.
    Only(Vec<T>),
}

/// What happens to connections no listener takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutboundTrafficPolicy {
    /// They go straight to where the application dialled.
    #[default]
    AllowAny,
    /// connect(2) fails with ECONNREFUSED.
    RegistryOnly,
}

/// What a file says beside Envoy's resources: the node's settings and its workloads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeConfig {
    /// In order of the file; keys are unique.
    pub workloads: Vec<Arc<Workload>>,
    /// For connections no listener takes.
    pub outbound_traffic_policy: OutboundTrafficPolicy,
    /// For services of the agent while it is down.
    pub failure_mode: Arc<FailureMode>,
    /// Whether both sides of a connection are served in one pass where both pods are here.
    pub short_circuit: ShortCircuit,
    /// For connections to pods that no configuration has come for.
    pub inbound_before_configuration: InboundBeforeConfiguration,
}

/// What happens to connections to a pod that the management server has not configured yet, and that
/// no agent knew before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InboundBeforeConfiguration {
    /// They are refused: the pod may turn out to let nobody in without TLS. Istio: what comes to a
    /// sidecar without listeners is refused, too.
    #[default]
    Refuse,
    /// The application gets them.
    Pass,
}

/// What happens to connections between pods of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ShortCircuit {
    /// The server's side is served in the same pass as the client's.
    #[default]
    On,
    /// They are made as between nodes.
    Off,
}

/// What becomes of connections to services of the agent while there is no agent.
///
/// Envoy's filters call the same choice `failure_mode_allow`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FailureMode {
    /// They go on without it, instead of being refused.
    pub allow: bool,
    /// Services, by their listener's name, for which another answer holds.
    pub services: BTreeMap<String, bool>,
}

impl FailureMode {
    /// Whether connections to a service may go on without the agent.
    pub fn allows(&self, service: &str) -> bool {
        self.services.get(service).copied().unwrap_or(self.allow)
    }
}
