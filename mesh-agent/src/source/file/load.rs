//! Files into validated resources.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use std::{fs, io};

use bytes::Bytes;
use prost::Message;
use prost_reflect::MessageDescriptor;
use xxhash_rust::xxh64::xxh64;

use crate::config::Problem;
use crate::config::check::{Subject, check};
use crate::config::convert::{self, Converted};
use crate::config::descriptors::pool;
use crate::config::error::nearest;
use crate::config::model::Name;
use crate::config::model::workload::{Capture, NodeConfig};
use crate::store::{Resource, ResourceSet};

use super::bootstrap::{self, Bootstrap};
use super::errors::{ConfigErrors, FileError};
use super::identity::Identity;
use super::tree::{Node, Position, Value, parse};
use super::{discovery, fill, node};

/// Fields of Envoy's bootstrap that are accepted and without effect: they are about the Envoy
/// process, which the agent's flags and `mesh` stand for.
const IGNORED_BOOTSTRAP: &[&str] = &["admin", "layered_runtime", "stats_config"];
const TOP_LEVEL: &[&str] = &[
    "static_resources",
    "dynamic_resources",
    "node",
    "workloads",
    "mesh",
];
const STATIC_RESOURCES: &[&str] = &["listeners", "routes", "clusters", "endpoints", "secrets"];

/// A whole configuration.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Envoy's resources.
    pub resources: ResourceSet,
    /// The node's settings and workloads.
    pub node: Arc<NodeConfig>,
    /// The management server that it names.
    pub bootstrap: Option<Bootstrap>,
    /// The files it was read from.
    pub files: Vec<PathBuf>,
    /// What they were just before they were read.
    pub(super) identity: Identity,
}

/// Reads a file, or every `.yaml`, `.yml` and `.json` file of a folder as one configuration.
/// Resources equal to those of `previous` are shared with it.
///
/// # Errors
/// Everything that is wrong with any of the files.
pub fn load(path: &Path, previous: Option<&Loaded>) -> Result<Loaded, ConfigErrors> {
    let known = previous.map_or(&[][..], |previous| &previous.files);
    let identity = Identity::of(path, known);
    let mut loader = Loader::default();
    let mut files = match files(path) {
        Ok(files) => files,
        Err(error) => {
            let problem = Problem::new("", format!("cannot be read: {error}"))
                .remedy("--config names a file, or a folder with .yaml, .yml or .json files");
            return Err(ConfigErrors(vec![FileError {
                file: path.into(),
                at: None,
                problem,
            }]));
        }
    };
    for file in &files {
        loader.read(file);
    }
    loader.discover(&mut files);
    // Files that were not known when the look was taken are looked at now: read twice at worst.
    let identity = if files.iter().all(|file| known.contains(file)) {
        identity
    } else {
        Identity::of(path, &files)
    };
    let (resources, node, bootstrap) = loader.finish(previous)?;
    Ok(Loaded {
        resources,
        node: Arc::new(node),
        bootstrap,
        files,
        identity,
    })
}

/// The files to read, in order. Entries that begin with a dot (Kubernetes' `..data`) are left
/// out; symbolic links are followed.
fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let known = [".yaml", ".yml", ".json"]
            .iter()
            .any(|ending| name.ends_with(ending));
        if known && !name.starts_with('.') && fs::metadata(&file)?.is_file() {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(io::Error::other(
            "the folder has no .yaml, .yml or .json file",
        ));
    }
    Ok(files)
}

/// Kinds of resources: their section in a file, and their message.
const SECTIONS: [(&str, &str); 5] = [
    ("listeners", "envoy.config.listener.v3.Listener"),
    ("routes", "envoy.config.route.v3.RouteConfiguration"),
    ("clusters", "envoy.config.cluster.v3.Cluster"),
    (
        "endpoints",
        "envoy.config.endpoint.v3.ClusterLoadAssignment",
    ),
    ("secrets", SECRET),
];
const SECRET: &str = "envoy.extensions.transport_sockets.tls.v3.Secret";

fn list(node: Option<&Node>) -> &[Node] {
    match node.map(|node| &node.value) {
        Some(Value::List(items)) => items,
        _ => &[],
    }
}

#[derive(Default)]
struct Loader {
    documents: Vec<(PathBuf, Node)>,
    /// Documents from here on are discovery responses.
    responses: usize,
    errors: Vec<FileError>,
}

/// Where a resource stands.
#[derive(Clone)]
struct Place {
    document: usize,
    path: String,
}

/// Resources of one type as written.
struct Written<M> {
    /// In the order of the files.
    messages: Vec<(Place, M)>,
}

impl Loader {
    fn read(&mut self, file: &Path) {
        let text = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) => {
                let problem = Problem::new("", format!("cannot be read: {error}"));
                self.errors.push(FileError {
                    file: file.into(),
                    at: None,
                    problem,
                });
                return;
            }
        };
        match parse(&text) {
            Ok(root) => {
                self.documents.push((file.to_owned(), root));
                self.responses += 1;
                self.check_top_level(self.documents.len() - 1);
            }
            Err(error) => {
                let problem = Problem::new("", format!("not valid YAML: {}", error.reason));
                self.errors.push(FileError {
                    file: file.into(),
                    at: Some(error.at),
                    problem,
                });
            }
        }
    }

    /// Reads the files that those read refer to, and what these refer to in turn.
    fn discover(&mut self, files: &mut Vec<PathBuf>) {
        let mut document = 0;
        while document < self.documents.len() {
            let (by, root) = &self.documents[document];
            let referred: Vec<_> = discovery::referred(root)
                .into_iter()
                .map(|(file, path)| (discovery::resolve(&file, by), path))
                .collect();
            for (file, path) in referred {
                if files.contains(&file) {
                    continue;
                }
                files.push(file.clone());
                let read = fs::read_to_string(&file).map_err(|error| error.to_string());
                let parsed = read.and_then(|text| {
                    parse(&text).map_err(|error| {
                        let Position { line, column } = error.at;
                        format!("{line}:{column}: not valid YAML: {}", error.reason)
                    })
                });
                match parsed {
                    Ok(root) => self.documents.push((file, root)),
                    Err(reason) => {
                        let reason = format!("{} cannot be used: {reason}", file.display());
                        self.error(&Place { document, path }, Problem::new("", reason));
                    }
                }
            }
            document += 1;
        }
        for document in self.responses..self.documents.len() {
            self.check_response(document);
        }
    }

    /// A discovery response has a version and resources that say their type.
    fn check_response(&mut self, document: usize) {
        let root = self.documents[document].1.clone();
        let top = Place {
            document,
            path: String::new(),
        };
        for entry in root.entries() {
            if !["version_info", "resources"].contains(&entry.key.as_str()) {
                let problem = Problem::new(&entry.key, "unknown field")
                    .remedy("a discovery response has version_info and resources");
                self.error(&top, problem);
            }
        }
        for (i, item) in list(root.get("resources")).iter().enumerate() {
            let known = discovery::typed(item)
                .is_some_and(|(name, _)| SECTIONS.iter().any(|(_, message)| *message == name));
            if !known {
                let kinds: Vec<&str> = SECTIONS.iter().map(|(_, message)| *message).collect();
                let problem =
                    Problem::new(format!("resources[{i}].@type"), "unknown or missing").remedy(
                        format!("write type.googleapis.com/ and one of {}", kinds.join(", ")),
                    );
                self.error(&top, problem);
            }
        }
    }

    fn error(&mut self, place: &Place, problem: Problem) {
        let (file, root) = &self.documents[place.document];
        let problem = problem.below(&place.path);
        let at = Some(root.locate(&problem.path));
        self.errors.push(FileError {
            file: file.clone(),
            at,
            problem,
        });
    }

    fn check_top_level(&mut self, document: usize) {
        let root = self.documents[document].1.clone();
        let top = Place {
            document,
            path: String::new(),
        };
        if !matches!(root.value, Value::Map(_) | Value::Null) {
            let reason = format!("must be a mapping, not {}", root.kind());
            self.error(&top, Problem::new("", reason));
        }
        let known = || TOP_LEVEL.iter().chain(IGNORED_BOOTSTRAP).copied();
        for entry in root.entries() {
            if known().any(|field| field == entry.key) {
                continue;
            }
            let bootstrap = pool()
                .get_message_by_name("envoy.config.bootstrap.v3.Bootstrap")
                .and_then(|bootstrap| bootstrap.get_field_by_name(&entry.key));
            let problem = if bootstrap.is_some() {
                Problem::new(
                    &entry.key,
                    "this field of Envoy's bootstrap is not supported",
                )
                .remedy("remove it: it would be without effect")
            } else {
                let problem = Problem::new(&entry.key, "unknown field");
                match nearest(&entry.key, known()) {
                    Some(near) => problem.remedy(format!("did you mean {near}?")),
                    None => problem.remedy(format!("known are {}", TOP_LEVEL.join(", "))),
                }
            };
            self.error(&top, problem);
        }
        let Some(resources) = root.get("static_resources") else {
            return;
        };
        let path = "static_resources";
        for entry in resources.entries() {
            if !STATIC_RESOURCES.contains(&entry.key.as_str()) {
                let problem = Problem::new(
                    format!("{path}.{}", entry.key),
                    "unknown or unsupported field",
                )
                .remedy(format!("known are {}", STATIC_RESOURCES.join(", ")));
                self.error(&top, problem);
            }
        }
    }

    /// Messages of one section of `static_resources`, over all files.
    fn section<M: Message + Default>(
        &mut self,
        section: &str,
        message: &'static str,
    ) -> Written<M> {
        let descriptor = pool().get_message_by_name(message);
        let mut written = Written {
            messages: Vec::new(),
        };
        let Some(descriptor) = descriptor else {
            return written;
        };
        for document in self.responses..self.documents.len() {
            let items = list(self.documents[document].1.get("resources")).to_vec();
            for (i, item) in items.iter().enumerate() {
                let place = Place {
                    document,
                    path: format!("resources[{i}]"),
                };
                match discovery::typed(item) {
                    Some((name, item)) if name == message => {
                        self.fill(&descriptor, &item, place, &mut written);
                    }
                    _ => {}
                }
            }
        }
        for document in 0..self.responses {
            let Some(list) = self.documents[document]
                .1
                .get("static_resources")
                .and_then(|resources| resources.get(section))
                .cloned()
            else {
                continue;
            };
            let path = format!("static_resources.{section}");
            let Value::List(items) = &list.value else {
                if list.value != Value::Null {
                    let place = Place {
                        document,
                        path: path.clone(),
                    };
                    let reason = format!("must be a list, not {}", list.kind());
                    self.error(&place, Problem::new("", reason));
                }
                continue;
            };
            for (i, item) in items.iter().enumerate() {
                let place = Place {
                    document,
                    path: format!("{path}[{i}]"),
                };
                self.fill(&descriptor, item, place, &mut written);
            }
        }
        written
    }

    fn fill<M: Message + Default>(
        &mut self,
        descriptor: &MessageDescriptor,
        item: &Node,
        place: Place,
        written: &mut Written<M>,
    ) {
        let mut problems = Vec::new();
        let filled = fill::message(descriptor, item, &mut problems);
        if problems.is_empty() {
            match filled.transcode_to::<M>() {
                Ok(message) => written.messages.push((place.clone(), message)),
                Err(error) => self.error(&place, Problem::new("", error.to_string())),
            }
        }
        for problem in problems {
            self.error(&place, problem);
        }
    }

    /// Converts messages to resources by name.
    fn resources<M: Message, T>(
        &mut self,
        written: Written<M>,
        name: impl Fn(&M) -> &str,
        convert: impl Fn(&M) -> Converted<T>,
        previous: Option<&BTreeMap<Name, Resource<T>>>,
        places: &mut HashMap<Name, Place>,
    ) -> Arc<BTreeMap<Name, Resource<T>>> {
        let mut resources = BTreeMap::new();
        for (place, message) in written.messages {
            let resource_name: Name = name(&message).into();
            if let Some(first) = places.get(&resource_name).cloned() {
                let (file, root) = &self.documents[first.document];
                let at = root.locate(&first.path).line;
                let reason = format!(
                    "{resource_name} is defined already, in {}:{at}",
                    file.display()
                );
                self.error(&place, Problem::new("name", reason));
                continue;
            }
            places.insert(resource_name.clone(), place.clone());
            let raw = Bytes::from(message.encode_to_vec());
            if let Some(known) = previous.and_then(|previous| previous.get(&resource_name))
                && known.raw == raw
            {
                resources.insert(resource_name, known.clone());
                continue;
            }
            match convert(&message) {
                Ok(value) => {
                    let resource = Resource {
                        value: Arc::new(value),
                        version: self.version(&place, &raw),
                        updated: SystemTime::now(),
                        raw,
                    };
                    resources.insert(resource_name, resource);
                }
                Err(problems) => {
                    for problem in problems {
                        self.error(&place, problem);
                    }
                }
            }
        }
        Arc::new(resources)
    }

    /// What a response says of itself, else what tells contents apart.
    fn version(&self, place: &Place, raw: &[u8]) -> Arc<str> {
        let (_, root) = &self.documents[place.document];
        let told = root.get("version_info").and_then(Node::text);
        match told.filter(|_| place.document >= self.responses) {
            Some(version) => version.into(),
            None => format!("{:016x}", xxh64(raw, 0)).into(),
        }
    }

    /// The management server, from `dynamic_resources` and `node`.
    fn bootstrap(&mut self, resources: &ResourceSet) -> Option<Bootstrap> {
        let mut found = None;
        for document in 0..self.responses {
            let root = &self.documents[document].1;
            let Some(section) = root.get("dynamic_resources").cloned() else {
                continue;
            };
            let node = root.get("node").cloned();
            let place = Place {
                document,
                path: "dynamic_resources".into(),
            };
            let message = self.one(
                "envoy.config.bootstrap.v3.Bootstrap.DynamicResources",
                &section,
                &place,
            );
            let node = node.and_then(|node| {
                let place = Place {
                    document,
                    path: "node".into(),
                };
                self.one("envoy.config.core.v3.Node", &node, &place)
            });
            let mut problems = Vec::new();
            if let Some(message) = message {
                let bootstrap = bootstrap::convert(&message, node, resources, &mut problems);
                if found.is_some() && bootstrap.is_some() {
                    problems.push(Problem::new(
                        "",
                        "another file names a management server, too",
                    ));
                }
                found = found.or(bootstrap);
            }
            for problem in problems {
                self.error(&place, problem);
            }
        }
        found
    }

    fn one<M: Message + Default>(
        &mut self,
        message: &str,
        node: &Node,
        place: &Place,
    ) -> Option<M> {
        let descriptor = pool().get_message_by_name(message)?;
        let mut written = Written {
            messages: Vec::new(),
        };
        self.fill(&descriptor, node, place.clone(), &mut written);
        written.messages.pop().map(|(_, message)| message)
    }

    fn finish(
        mut self,
        previous: Option<&Loaded>,
    ) -> Result<(ResourceSet, NodeConfig, Option<Bootstrap>), ConfigErrors> {
        let before = previous.map(|previous| &previous.resources);
        let mut listeners = HashMap::new();
        let mut routes = HashMap::new();
        let mut clusters = HashMap::new();
        let written = self.section("listeners", "envoy.config.listener.v3.Listener");
        let resources = ResourceSet {
            listeners: self.resources(
                written,
                |message: &envoy_types::pb::envoy::config::listener::v3::Listener| &message.name,
                convert::listener,
                before.map(|before| &*before.listeners),
                &mut listeners,
            ),
            routes: {
                let written = self.section("routes", "envoy.config.route.v3.RouteConfiguration");
                self.resources(
                    written,
                    |message: &envoy_types::pb::envoy::config::route::v3::RouteConfiguration| {
                        &message.name
                    },
                    convert::route_configuration,
                    before.map(|before| &*before.routes),
                    &mut routes,
                )
            },
            clusters: {
                let written = self.section("clusters", "envoy.config.cluster.v3.Cluster");
                self.resources(
                    written,
                    |message: &envoy_types::pb::envoy::config::cluster::v3::Cluster| &message.name,
                    convert::cluster,
                    before.map(|before| &*before.clusters),
                    &mut clusters,
                )
            },
            endpoints: {
                let written = self.section(
                    "endpoints",
                    "envoy.config.endpoint.v3.ClusterLoadAssignment",
                );
                self.resources(
                    written,
                    |message: &envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment| {
                        &message.cluster_name
                    },
                    convert::load_assignment,
                    before.map(|before| &*before.endpoints),
                    &mut HashMap::new(),
                )
            },
            secrets: {
                let written = self.section("secrets", SECRET);
                self.resources(
                    written,
                    |message: &envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret| {
                        &message.name
                    },
                    convert::secret,
                    before.map(|before| &*before.secrets),
                    &mut HashMap::new(),
                )
            },
        };
        let node = self.node();
        // References are judged only when every resource is understood: otherwise one mistake
        // would show up as many.
        let bootstrap = self.bootstrap(&resources);
        if self.errors.is_empty() {
            for (subject, problem) in check(&resources) {
                let place = match &subject {
                    Subject::Listener(name) => listeners.get(name),
                    Subject::Routes(name) => routes.get(name),
                    Subject::Cluster(name) => clusters.get(name),
                };
                if let Some(place) = place {
                    self.error(place, problem);
                }
            }
        }
        if self.errors.is_empty() {
            Ok((resources, node, bootstrap))
        } else {
            self.errors.sort_by(|a, b| {
                let key = |e: &FileError| {
                    (
                        e.file.clone(),
                        e.at.map(|at: Position| (at.line, at.column)),
                    )
                };
                key(a).cmp(&key(b))
            });
            Err(ConfigErrors(self.errors))
        }
    }

    fn node(&mut self) -> NodeConfig {
        let mut config = NodeConfig::default();
        let mut default_capture = Arc::new(Capture::default());
        let mut seen: Option<usize> = None;
        for document in 0..self.responses {
            let Some(section) = self.documents[document].1.get("mesh").cloned() else {
                continue;
            };
            let place = Place {
                document,
                path: String::new(),
            };
            if let Some(first) = seen.replace(document) {
                let file = self.documents[first].0.display().to_string();
                self.error(
                    &place,
                    Problem::new("mesh", format!("stands in {file} already")),
                );
            }
            let mut problems = Vec::new();
            let mesh = node::mesh(&section, &mut problems);
            if let Some(capture) = mesh.capture {
                default_capture = Arc::new(capture);
            }
            config.outbound_traffic_policy = mesh.outbound_traffic_policy.unwrap_or_default();
            config.short_circuit = mesh.short_circuit.unwrap_or_default();
            config.inbound_before_configuration = mesh.inbound_before_configuration;
            config.failure_mode = Arc::new(mesh.failure_mode);
            for problem in problems {
                self.error(&place, problem);
            }
        }
        let mut keys: HashMap<Name, Place> = HashMap::new();
        for document in 0..self.responses {
            let Some(section) = self.documents[document].1.get("workloads").cloned() else {
                continue;
            };
            let top = Place {
                document,
                path: String::new(),
            };
            let mut problems = Vec::new();
            for (path, workload) in node::workloads(&section, &default_capture, &mut problems) {
                let place = Place { document, path };
                if keys.insert(workload.key(), place.clone()).is_some() {
                    let reason = format!("workload {} is defined already", workload.key());
                    self.error(&place, Problem::new("name", reason));
                    continue;
                }
                let same = config
                    .workloads
                    .iter()
                    .find(|other| other.netns == workload.netns);
                if let Some(other) = same.map(|other| other.key()) {
                    let reason = format!("workload {other} has the same network namespace");
                    self.error(&place, Problem::new("netns", reason));
                    continue;
                }
                config.workloads.push(workload);
            }
            for problem in problems {
                self.error(&top, problem);
            }
        }
        config
    }
}
