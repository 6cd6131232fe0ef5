//! The parts of a file that are ours: `mesh` and `workloads`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;

use crate::config::Problem;
use crate::config::error::{join, nearest};
use crate::config::model::workload::{
    AllOr, Capture, FailureMode, InboundBeforeConfiguration, NetnsSource, OutboundTrafficPolicy,
    ShortCircuit, Workload,
};

use super::tree::{Node, Value};

const MESH_FIELDS: &[&str] = &[
    "capture",
    "outbound_traffic_policy",
    "short_circuit",
    "inbound_before_configuration",
    "failure_mode_allow",
    "failure_mode_allow_services",
];
const WORKLOAD_FIELDS: &[&str] = &[
    "name",
    "namespace",
    "service_account",
    "labels",
    "netns",
    "pid",
    "cgroup",
    "capture",
];
const CAPTURE_FIELDS: &[&str] = &[
    "include_outbound_cidrs",
    "exclude_outbound_cidrs",
    "include_outbound_ports",
    "exclude_outbound_ports",
    "include_inbound_ports",
    "exclude_inbound_ports",
];

/// What the `mesh` section says; `None` where it says nothing.
#[derive(Debug, Default)]
pub(super) struct Mesh {
    pub(super) capture: Option<Capture>,
    pub(super) outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    pub(super) short_circuit: Option<ShortCircuit>,
    pub(super) inbound_before_configuration: InboundBeforeConfiguration,
    pub(super) failure_mode: FailureMode,
}

/// Reads the `mesh` section.
pub(super) fn mesh(node: &Node, problems: &mut Vec<Problem>) -> Mesh {
    known_fields(node, MESH_FIELDS, "mesh", problems);
    let capture = node
        .get("capture")
        .map(|node| capture(node, &Capture::default(), "mesh.capture", problems));
    let path = "mesh.outbound_traffic_policy";
    let policy = node
        .get("outbound_traffic_policy")
        .and_then(|node| match node.text() {
            Some("ALLOW_ANY") => Some(OutboundTrafficPolicy::AllowAny),
            Some("REGISTRY_ONLY") => Some(OutboundTrafficPolicy::RegistryOnly),
            _ => {
                problems.push(Problem::new(path, "must be ALLOW_ANY or REGISTRY_ONLY"));
                None
            }
        });
    let path = "mesh.short_circuit";
    let short_circuit = node
        .get("short_circuit")
        .and_then(|node| match &node.value {
            Value::Plain(value) if value == "true" => Some(ShortCircuit::On),
            Value::Plain(value) if value == "false" => Some(ShortCircuit::Off),
            _ => {
                problems.push(Problem::new(path, "must be true or false"));
                None
            }
        });
    let path = "mesh.inbound_before_configuration";
    let inbound = node.get("inbound_before_configuration");
    let inbound = inbound.map_or(Some("REFUSE"), Node::text);
    let inbound_before_configuration = match inbound {
        Some("REFUSE") => InboundBeforeConfiguration::Refuse,
        Some("PASS") => InboundBeforeConfiguration::Pass,
        _ => {
            problems.push(Problem::new(path, "must be REFUSE or PASS"));
            InboundBeforeConfiguration::Refuse
        }
    };
    Mesh {
        capture,
        outbound_traffic_policy: policy,
        short_circuit,
        inbound_before_configuration,
        failure_mode: failure_mode(node, problems),
    }
}

fn failure_mode(node: &Node, problems: &mut Vec<Problem>) -> FailureMode {
    let mut answer = |node: &Node, path: String| match node.text() {
        Some("true") => true,
        Some("false") => false,
        _ => {
            problems.push(Problem::new(path, "must be true or false"));
            false
        }
    };
    let allow = node
        .get("failure_mode_allow")
        .is_some_and(|node| answer(node, "mesh.failure_mode_allow".into()));
    let services = node.get("failure_mode_allow_services");
    let services = services
        .iter()
        .flat_map(|services| services.entries())
        .map(|entry| {
            let path = format!("mesh.failure_mode_allow_services[{}]", entry.key);
            (entry.key.clone(), answer(&entry.value, path))
        })
        .collect();
    FailureMode { allow, services }
}

/// Reads the `workloads` section. Workloads without capture settings of their own get `default`.
pub(super) fn workloads(
    node: &Node,
    default: &Arc<Capture>,
    problems: &mut Vec<Problem>,
) -> Vec<(String, Arc<Workload>)> {
    let Value::List(items) = &node.value else {
        if node.value != Value::Null {
            problems.push(Problem::new(
                "workloads",
                format!("must be a list, not {}", node.kind()),
            ));
        }
        return Vec::new();
    };
    items
        .iter()
        .enumerate()
        .filter_map(|(i, item)| {
            let path = format!("workloads[{i}]");
            let workload = workload(item, default, &path, problems)?;
            Some((path, Arc::new(workload)))
        })
        .collect()
}

fn workload(
    node: &Node,
    default: &Arc<Capture>,
    path: &str,
    problems: &mut Vec<Problem>,
) -> Option<Workload> {
    known_fields(node, WORKLOAD_FIELDS, path, problems);
    let mut text = |field: &str| {
        let node = node.get(field)?;
        let text = node.text().filter(|text| !text.is_empty());
        if text.is_none() {
            problems.push(Problem::new(
                join(path, field),
                format!("must be a text, not {}", node.kind()),
            ));
        }
        text
    };
    let name = text("name");
    let namespace = text("namespace").unwrap_or("default");
    let service_account = text("service_account").unwrap_or("default");
    let cgroup = text("cgroup").map(PathBuf::from);
    let (netns, pid) = (text("netns"), text("pid"));
    if name.is_none() && node.get("name").is_none() {
        problems.push(Problem::new(join(path, "name"), "a name is missing"));
    }
    let netns = match (netns, pid) {
        (Some(name), None) if name.contains('/') => Some(NetnsSource::Path(name.into())),
        (Some(name), None) => Some(NetnsSource::Path(format!("/var/run/netns/{name}").into())),
        (None, Some(pid)) => match pid.parse::<i32>() {
            Ok(pid) if pid > 0 => Some(NetnsSource::Pid(pid)),
            _ => {
                problems.push(Problem::new(
                    join(path, "pid"),
                    format!("{pid:?} is not a process id"),
                ));
                None
            }
        },
        (Some(_), Some(_)) => {
            problems.push(Problem::new(path, "only one of netns and pid may be set"));
            None
        }
        (None, None) => {
            problems.push(
                Problem::new(path, "the network namespace is missing")
                    .remedy("add netns (a path, or a name below /var/run/netns) or pid"),
            );
            None
        }
    };
    let mut labels = BTreeMap::new();
    if let Some(node) = node.get("labels") {
        for entry in node.entries() {
            match entry.value.text() {
                Some(value) => {
                    labels.insert(entry.key.clone(), value.to_owned());
                }
                None => problems.push(Problem::new(
                    format!("{path}.labels[{}]", entry.key),
                    format!("must be a text, not {}", entry.value.kind()),
                )),
            }
        }
    }
    let capture = match node.get("capture") {
        Some(node) => Arc::new(capture(node, default, &join(path, "capture"), problems)),
        None => default.clone(),
    };
    Some(Workload {
        name: name?.into(),
        namespace: namespace.into(),
        service_account: service_account.into(),
        labels,
        netns: netns?,
        cgroup,
        capture,
    })
}

/// Reads capture settings; what is not there stays as in `default`.
fn capture(node: &Node, default: &Capture, path: &str, problems: &mut Vec<Problem>) -> Capture {
    known_fields(node, CAPTURE_FIELDS, path, problems);
    let mut capture = default.clone();
    let field = |name: &str| {
        let node = node.get(name)?;
        (node.value != Value::Null).then(|| (node, join(path, name)))
    };
    if let Some((node, path)) = field("include_outbound_cidrs") {
        capture.include_outbound_cidrs = all_or(node, &path, parse_range, problems);
    }
    if let Some((node, path)) = field("exclude_outbound_cidrs") {
        capture.exclude_outbound_cidrs = list(node, &path, parse_range, problems);
    }
    if let Some((node, path)) = field("include_outbound_ports") {
        capture.include_outbound_ports = list(node, &path, parse_port, problems);
    }
    if let Some((node, path)) = field("exclude_outbound_ports") {
        capture.exclude_outbound_ports = list(node, &path, parse_port, problems);
    }
    if let Some((node, path)) = field("include_inbound_ports") {
        capture.include_inbound_ports = all_or(node, &path, parse_port, problems);
    }
    if let Some((node, path)) = field("exclude_inbound_ports") {
        capture.exclude_inbound_ports = list(node, &path, parse_port, problems);
    }
    capture
}

fn parse_range(text: &str) -> Result<IpNet, String> {
    if let Ok(range) = text.parse::<IpNet>() {
        return Ok(range.trunc());
    }
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(address.into()),
        Err(_) => Err(format!(
            "{text:?} is not an address range such as 10.0.0.0/8 or fd00::/8"
        )),
    }
}

fn parse_port(text: &str) -> Result<u16, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is not a port from 0 to 65535"))
}

fn all_or<T>(
    node: &Node,
    path: &str,
    parse: impl Fn(&str) -> Result<T, String>,
    problems: &mut Vec<Problem>,
) -> AllOr<T> {
    if node.text() == Some("*") {
        return AllOr::All;
    }
    AllOr::Only(list(node, path, parse, problems))
}

/// A YAML list, or istio-init's comma-separated text.
fn list<T>(
    node: &Node,
    path: &str,
    parse: impl Fn(&str) -> Result<T, String>,
    problems: &mut Vec<Problem>,
) -> Vec<T> {
    let texts: Vec<(String, Option<&str>)> = match &node.value {
        Value::List(items) => items
            .iter()
            .enumerate()
            .map(|(i, item)| (format!("{path}[{i}]"), item.text()))
            .collect(),
        Value::Plain(text) | Value::Text(text) => text
            .split(',')
            .map(str::trim)
            .filter(|text| !text.is_empty())
            .map(|text| (path.to_owned(), Some(text)))
            .collect(),
        Value::Null => Vec::new(),
        Value::Map(_) => vec![(path.to_owned(), None)],
    };
    texts
        .into_iter()
        .filter_map(|(path, text)| match text.map(&parse) {
            Some(Ok(value)) => Some(value),
            Some(Err(reason)) => {
                problems.push(Problem::new(path, reason));
                None
            }
            None => {
                problems.push(Problem::new(path, "must be a list of texts"));
                None
            }
        })
        .collect()
}

fn known_fields(node: &Node, fields: &[&str], path: &str, problems: &mut Vec<Problem>) {
    if !matches!(node.value, Value::Map(_) | Value::Null) {
        problems.push(Problem::new(
            path,
            format!("must be a mapping, not {}", node.kind()),
        ));
    }
    for entry in node
        .entries()
        .iter()
        .filter(|entry| !fields.contains(&entry.key.as_str()))
    {
        let problem = Problem::new(join(path, &entry.key), "unknown field");
        problems.push(match nearest(&entry.key, fields.iter().copied()) {
            Some(near) => problem.remedy(format!("did you mean {near}?")),
            None => problem.remedy(format!("known are {}", fields.join(", "))),
        });
    }
}
